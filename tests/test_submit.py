"""What goes to SLURM, without one: profiles, graph, scripts, ledger, causes."""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as some

from pipeline import cli_options, paths, store
from pipeline.errors import UserError
from pipeline.orchestrate import (
    batch,
    cancel,
    cluster,
    executor,
    graph,
    ledger,
    profile,
    put_off,
    report_job,
    resume,
    retry,
    room,
    send,
    slurm,
    slurm_lines,
    state,
    submit,
    submitted,
    watch,
    writable,
)
from pipeline.orchestrate.graph import Queued, Request
from pipeline.orchestrate.slurm import Row
from pipeline.paths import AttemptPaths, Work
from pipeline.store import Failure
from pipeline.sweep import Pack
from pipeline.sweep.settings import Dataset
from tests import results

ASKED = Request(40, 240)
GOLDEN = Path(__file__).parent / "golden"


# --- profiles --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", profile.shipped())
def test_the_shipped_profiles_ask_for_an_a100(name):
    shipped = profile.load(name).profile
    assert (shipped.gres, shipped.cores, shipped.memory_gib) == ("gpu:a100:1", 24, 40)


def test_sol_knows_its_charge_and_its_waste():
    sol = profile.load("sol").profile
    assert (sol.partition, sol.qos, sol.charge_an_hour()) == ("public", "public", 59.0)
    [note] = sol.notes()
    assert note.startswith("24 cores a job strand two of the four GPUs") and "at most 12" in note
    assert not list(profile.load("sol", ["cores=12"]).profile.notes())


@pytest.mark.parametrize(
    "setting, said",
    [
        ("cores=many", "--set cores=many: cores: expected a whole number"),
        ("coers=2", "--set coers=2: coers: unknown key; did you mean 'cores'?"),
        ("cores", "--set cores: expected KEY=VALUE"),
        ("partition=a b", "--set partition=a b: partition: "),
        ('setup=["a\\nb"]', "setup[0]"),
        ("report.cores=0", "--set report.cores=0: report.cores: "),
        ("cores.x=1", "cores has no parts"),
        ('options={"x y":"1"}', "options"),
        ('options={"array":"1-9"}', "'array' is set by netpress itself"),
        ('options={"mem":"9G"}', "the profile's key for it is 'memory_gib'"),
        ('options={"arr":"1-9"}', "'arr' is not the full name of an option of sbatch"),
        ('options={"-array":"1-9"}', "'-array' is not the full name"),
        ('options={"job-nam":"x"}', "not the full name"),
        ('options={"reservatio":"x"}', "did you mean 'reservation'?"),
        ("node={cores: 48, cors: 1}", "--set node={cores: 48, cors: 1}: node"),
        ("node={cores: 48", "--set node={cores: 48: node: "),
        ("setup=[a\nb: c", "setup"),
    ],
)
def test_a_bad_setting_is_one_sentence(setting, said):
    with pytest.raises(UserError) as error:
        profile.load("sol", [setting])
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "setting",
    [
        "node={cores: 48, memory_gib: 512, gpus: 4}",
        "setup=[module load cuda, 'export A=1']",
        "measure={cores: 8, options: {nice: 100}}",
        "follow_up=null",
    ],
)
def test_a_setting_is_written_as_in_a_profile(setting, tmp_path):
    before, mine = tmp_path / "before.yaml", tmp_path / "mine.yaml"
    before.write_text("cores: 2\n")
    mine.write_text("cores: 2\n" + setting.replace("=", ": ", 1) + "\n")
    assert profile.load(str(before), [setting]).profile == profile.load(str(mine)).profile


@pytest.mark.parametrize("text", ["1", "2", "a100:1", "1g.10gb:1", "4090:1", "a100.20gb:2"])
def test_a_gpu_is_named_as_sbatch_names_it(text, tmp_path):
    """In a file, where `1` is a number, and with --set."""
    file = tmp_path / "mine.yaml"
    file.write_text(f"gpu: {text}\n")
    for loaded in (profile.load(str(file)), profile.load("generic", [f"gpu={text}"])):
        assert loaded.profile.gres == f"gpu:{text}"
        assert loaded.profile.gpus == int(text.rpartition(":")[2])


@pytest.mark.parametrize("text", ["0", "true", "a100", ":1", "a b:1", "1.5", "[1]", "-1"])
def test_what_is_no_gpu_is_refused(text, tmp_path):
    with pytest.raises(UserError, match=r"--set gpu=.*: gpu: ") as error:
        profile.load("generic", [f"gpu={text}"])
    assert "\n" not in str(error.value)
    file = tmp_path / "mine.yaml"
    file.write_text(f"gpu: {text!r}\n")
    with pytest.raises(UserError, match="mine.yaml:1: gpu: .* expected KIND:COUNT"):
        profile.load(str(file))


def test_numbers_for_sbatch_may_stand_without_quotes(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("options: {nice: 100}\n")
    assert profile.load(str(file)).profile.options == {"nice": "100"}
    for setting in ("account=1234", "account=1e3", "account=0123"):
        assert profile.load("generic", [setting]).profile.account == setting.partition("=")[2]
    assert profile.load("generic", ["options.nice=100"]).profile.options == {"nice": "100"}
    with pytest.raises(UserError, match="cores=1.5: cores: expected a whole number"):
        profile.load("generic", ["cores=1.5"])


def test_a_profile_of_ones_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("partition: gpu\ncores: 8\ngpu: null\nreport: {partition: cpu}\n")
    mine = profile.load(str(file), ["report.cores=2", "minutes=90"])
    assert mine.name == "mine" and mine.profile.gres is None and mine.profile.minutes == 90
    assert (mine.profile.report.cores, mine.profile.report.partition) == (2, "cpu")
    file.write_text("partition: gpu\ncoers: 8\n")
    with pytest.raises(UserError, match=r"mine.yaml:2: coers: unknown key; did you mean 'cores'"):
        profile.load(str(file))
    with pytest.raises(UserError, match="unknown profile 'sool'.*did you mean 'sol'"):
        profile.load("sool")


# --- the graph -------------------------------------------------------------------------------


def made(counts, limit, queued=None, pack=None):
    """The arrays for bases with so many techniques each."""
    techniques = tuple(f"t-{i}" for i in range(max(counts, default=0)))
    sweep = results.sweep(techniques=techniques, seeds=tuple(range(len(counts))))
    cells = [c for c in sweep.cells if c.is_base or int(c.technique.split("-")[1]) < counts[c.seed]]
    missing = [c for c in cells if not (queued and c.id in queued)]
    return cells, graph.arrays(missing, lambda cell: ASKED, limit, queued=queued, pack=pack)


@given(some.lists(some.integers(0, 12), min_size=1, max_size=12), some.integers(2, 6))
def test_every_cell_is_in_one_task_that_waits_for_its_own_base(counts, limit):
    cells, arrays = made(counts, limit)
    where = {i: (a, index) for a in arrays for index, ids in a.tasks.items() for i in ids}
    assert sorted(i for a in arrays for i in a.cells) == sorted(c.id for c in cells)
    names = [array.name for array in arrays]
    assert len(set(names)) == len(names)
    for cell in cells:
        array, index = where[cell.id]
        assert max(array.tasks) < limit
        if cell.is_base:
            assert array.after == ()
            continue
        base, base_index = where[cell.base_id]
        waits = f"{base.name}_{base_index}" if array.kind == "afterok" else base.name
        assert array.after == (waits,) and names.index(base.name) < names.index(array.name)
        assert array.kind == "afterok" or index == base_index


@given(some.lists(some.integers(0, 6), min_size=1, max_size=6), some.integers(0, 30))
def test_what_is_cut_off_leaves_nothing_that_waits_for_it(counts, room_for):
    cells, arrays = made(counts, 4)
    kept, others = graph.cut(arrays, room_for)
    left = {cell for _, of_array in others for cell in of_array}
    assert {i for a in kept for i in a.cells} | left == {cell.id for cell in cells}
    assert sum(len(a.tasks) for a in kept) == min(room_for, sum(len(a.tasks) for a in arrays))
    there = {(a.name, index) for a in kept for index in a.tasks}
    for array in kept:
        for index in array.tasks if array.after else ():
            name, _, at = array.after[0].rpartition("_")
            waits = (name, int(at)) if array.kind == "afterok" else (array.after[0], index)
            assert waits in there


def test_what_there_was_no_room_for_is_in_the_ledger_until_it_is_submitted(tmp_path):
    place, request = Work(tmp_path).sweep("s"), {"memory_gib": 4, "minutes": 10, "exclude": []}
    with ledger.locked(place) as known:
        known.append("put_off", reason="full", requests=[[request, ["c1", "c2"]]], by={})
        intend(known, "a1", ("c1",))
        intend(known, "b2", ("c3",))
        known.append("refused", intent="b2", reason="Invalid partition")
    known = ledger.read(place)
    assert known.put_off == {"c2": request}
    assert known.not_submitted == {"c2": "full", "c3": "Invalid partition"}


@pytest.mark.parametrize("who", ["{}", "me({})"])
def test_a_limit_of_a_user_is_found_among_those_of_others(who):
    uid = os.getuid()
    limits = "MaxJobsPU=N(0) MaxSubmitJobsPU={} MaxTRESPU=cpu=N(0)"
    users = f"{uid}7={{{limits.format('9(1)')}}} {who.format(uid)}={{{limits.format('4(3)')}}}"
    line = f"QOS=public(2) GrpSubmitJobs=N(4) Account Limits= No Accounts User Limits= {users}"
    [limit] = room._of_qos([line], "public")
    assert limit == room.Limit("MaxSubmitJobsPerUser of QOS public", 4, 3) and limit.room == 1


def test_what_becomes_of_the_rest_is_told(tmp_path):
    """By the job that submits it, while that is in the queue; then how it failed."""
    sweep, work = results.sweep(techniques=(), seeds=(0, 1)), Work(tmp_path)
    request = {"memory_gib": 4, "minutes": 10, "exclude": []}
    with ledger.locked(work.sweep("test")) as known:
        intend(known, "f1", kind="follow-up", tasks={"0": []})
        known.append("submitted", intent="f1", job=7)
        left = [[request, [cell.id for cell in sweep.cells]]]
        known.append("put_off", reason="limit of 4", requests=left, by={})

    def told(*rows):
        view = cluster.View(known, work, {row.task: row for row in rows})
        states = [state._state(cell, work, False, None, view) for cell in sweep.cells]
        assert {(s.state, s.reason) for s in states} == {("missing", "not submitted: limit of 4")}
        return list(put_off.lines(state.SweepState(tuple(states), view), "s.yaml"))

    [line] = told(Row(7, 0, "PENDING"))
    assert line == ("2 cells not submitted yet (limit of 4): job 7 submits them when there is room")
    [line] = told()
    assert line.endswith("`netpress submit s.yaml` submits them when there is room")
    job = known.paths.job("f1")
    job.folder.mkdir(parents=True)
    store.write_failure(job.report, Failure("exception", "UserError: no room for 7 days"))
    [_, why] = told()
    assert why == (
        "Job 7, which was to submit them, failed: exception: UserError: no room for 7 days"
    )


@pytest.mark.parametrize(
    "counts, calls",
    [([19] * 500, 20), ([9999], 11), ([1] * 1002, 4), ([3, 3, 2000], 5), ([0] * 5, 1)],
)
def test_few_calls_at_the_usual_limit(counts, calls):
    assert len(made(counts, 1001)[1]) == calls


def test_a_base_that_is_queued_is_waited_for_where_it_is():
    base = results.sweep(seeds=(0,)).cells[0]
    _, [array] = made([3], 1001, {base.id: Queued(77, 5)})
    assert (array.kind, array.after, len(array.tasks)) == ("afterok", ("77_5",), 3)


def test_short_cells_share_a_task():
    pack = graph.packer(10, lambda cell: 240.0)  # two in ten minutes
    _, [bases, *rest] = made([5, 5, 5], 1001, pack=pack)
    assert [len(ids) for ids in bases.tasks.values()] == [2, 1] and bases.shares
    assert all(len(ids) <= 2 for array in rest for ids in array.tasks.values())


def test_ranges():
    assert graph.ranges([7, 0, 1, 2, 5, 8]) == "0-2,5,7-8"
    assert list(slurm.expanded("0-2,5,7-8%4")) == [0, 1, 2, 5, 7, 8]


# --- scripts ---------------------------------------------------------------------------------


def test_the_scripts_are_these():
    """Golden: `ACCEPT_GOLDEN=1 pytest tests/test_submit.py -k scripts` accepts a change."""
    sol = profile.load("sol", ["mail=a@asu.edu", "python=/env/bin/python"])
    sweep = results.sweep(techniques=("half", "tiny"), seeds=(0, 1))
    made = batch.prepare(
        batch.Target(sweep, Work(Path("/scratch/sparky/it's here")), Path("/data"), sol),
        batch.Chosen.all_of(sweep.cells),
        ledger.Ledger(Work(Path("/none")).sweep("test")),
    )
    intents = {item.intent: f"INTENT{n}" for n, item in enumerate(made.prepared)}
    for item in made.prepared:
        text = item.script.replace(str(paths.CODE), "/CHECKOUT")
        for intent, name in intents.items():
            text = text.replace(intent, name)
        file = GOLDEN / f"{item.array.name}.sh"
        if os.environ.get("ACCEPT_GOLDEN"):
            file.write_text(text)
        assert text == file.read_text(), file


def test_nodes_are_excluded_beside_those_that_the_user_excludes():
    """A retry elsewhere does not bring back a node that the profile excludes."""
    wanted = profile.load("sol", ['options={"exclude":"n7"}']).profile
    job = Work(Path("/w")).sweep("s").job("abc")
    request = executor.JobRequest(
        wanted, "name", job, cores=1, memory_gib=1, minutes=9, gres=None, indices=(0,)
    )
    alone = executor.script(request)
    more = executor.script(replace(request, exclude=("n1",)))
    assert "#SBATCH --exclude=n7\n" in alone
    assert "#SBATCH --exclude=n7,n1\n" in more
    assert executor.without_nodes(more, wanted.options_of(measures=False), ("n1",)) == alone


@pytest.mark.parametrize(
    "settings, more",
    [
        ([], {}),
        (['setup=["module load x"]', "signal_s=60", "python=/a b/python"], {"exclude": ("n1",)}),
        (
            [
                "constraint=a100&ib",
                "account=me",
                "mail=a@asu.edu",
                'python=["conda", "run", "-n", "a b", "python"]',
                'options={"nodelist":"n2","exclusive":true}',
            ],
            {"dependency": "aftercorr:@x@", "gres": None, "indices": (0, 7)},
        ),
        (
            ['container={"image":"/i/net press.sif","bind":["/data:/data:ro"]}', "gpu=1"],
            {"gres": "gpu:1"},
        ),
    ],
)
def test_a_script_is_the_one_that_submitit_would_write(settings, more):
    from submitit.slurm.slurm import _make_sbatch_string

    wanted = profile.load("sol", settings).profile
    job = Work(Path("/w/it's here")).sweep("s").job("abc")
    common = dict(cores=4, memory_gib=8, minutes=30, gres="gpu:1", indices=(0, 1, 2)) | more
    ask = executor.JobRequest(wanted, "the name", job, **common)
    flags = executor._flags(ask)
    own = {"array", "chdir", "export", "kill-on-invalid-dep", "requeue", "signal", *wanted.options}
    python = executor._python(ask)
    text = _make_sbatch_string(
        f"{python} -u -m submitit.core._submit {shlex.quote(str(job.folder))}",
        job.folder,
        **{name: value for name, value in flags.items() if name not in own},
        wckey=None,
        signal_delay_s=wanted.signal_s,
        map_count=len(ask.indices),
        setup=executor._setup(ask),
        srun_args=["--export=ALL", "--cpus-per-task=4", "--cpu-bind=cores"],
        additional_parameters={name: flags[name] for name in own - {"signal"}},
    )
    assert executor.script(ask) == text


def flags_of(what, *settings, exclude=()):
    """{option: value} of a job of the sweep (base, cells, report), as it stands in its script."""
    sweep, work = results.sweep(seeds=(0, 1)), Work(Path("/w"))
    known = ledger.Ledger(work.sweep("test"))
    cluster = profile.load("generic", settings)
    made = batch.prepare(
        batch.Target(sweep, work, Path("/d"), cluster), batch.Chosen.all_of(sweep.cells), known
    )
    [text] = [item.script for item in made.prepared if item.array.name.startswith(what)]
    lines = [line[10:] for line in text.splitlines() if line.startswith("#SBATCH --")]
    return {name: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}


def test_what_each_kind_of_job_requests():
    """Jobs with a GPU, jobs without, and the report."""
    gpu = flags_of("base", 'options={"nice":1}', 'gpu_options={"nice":2}', "constraint=ib")
    assert gpu["nice"] == "2" and gpu["constraint"] == "ib" and gpu["gres"] == "gpu:a100:1"
    cpu = ("gpu=null", "constraint=ib", 'options={"exclusive":true,"nice":1}')
    cells = flags_of("base", *cpu, 'cpu_options={"nice":3,"exclusive":false}')
    assert cells["nice"] == "3" and cells["constraint"] == "ib"
    assert not {"gres", "exclusive"} & set(cells)
    report = flags_of(
        "report",
        'options={"exclusive":true,"nice":1}',
        "constraint=ib",
        "account=lab",
        "report.account=free",
        "report.partition=cpu",
        "report.constraint=disk",
        "report.memory_gib=7",
        'report.options={"exclusive":false,"reservation":"r"}',
    )
    expected = {"account": "free", "partition": "cpu", "constraint": "disk", "mem": "7G"}
    assert report.items() >= {**expected, "nice": "1", "reservation": "r"}.items()
    assert not {"gres", "exclusive"} & set(report)
    assert "constraint" not in flags_of("report", "constraint=ib")
    for option, value in (("gpus-per-node", "a100:1"), ("gpus", "a100:1"), ("gres", "gpu:a100:1")):
        assert flags_of("base", f"gpu_request={option}")[option] == value
    assert flags_of("base", "gpu_request=gpus-per-node", "gpu=2")["gpus-per-node"] == "2"
    mails = {what: flags_of(what, "mail=a@b.c")["mail-type"] for what in ("base", "cell", "report")}
    assert mails == {"base": "FAIL", "cell": "FAIL", "report": "END,FAIL"}
    waits = flags_of("base", "dependency=afterok:12_3,afterany:7")["dependency"]
    assert waits == "afterok:12_3,afterany:7"
    assert flags_of("cell", "dependency=afterok:12")["dependency"].startswith("aftercorr:@")


@pytest.mark.parametrize(
    "setting, reason",
    [
        ("clusters=other", "clusters: netpress submits to the cluster of this machine"),
        ('options={"clusters":"other"}', "netpress submits to the cluster of this machine"),
        ("dependency=7", "'7' is not a dependency on jobs; expected KIND:JOB such as afterok:4711"),
        ("dependency=singleton", "is not a dependency on jobs"),
        ('python="a \'b"', 'python: "a \'b" is not a command: No closing quotation'),
        (
            'container={"image":"i","bind":["/a,b"]}',
            "container.bind[0]: '/a,b' is not valid; expec",
        ),
        ('container={"image":"i","bind":["~/data"]}', "expected FOLDER or FOLDER:THERE, with :ro"),
        ('container={"image":"i","bind":["/a:/b:nosuid"]}', "both begin with /"),
        ('container={"image":"--writable"}', "expected an image, such as /images/netpress.sif"),
        ("constraint=a b", "'a b' is not valid; expected features as --constraint of sbatch"),
        ("mail=me", "'me' is not valid; expected an address such as me@example.org"),
        ('options={"nice":[1]}', 'options={"nice":[1]}: options.nice: expected text, got a list'),
        ('options={"comment":"x"}', ": options.comment: 'comment' is set by netpress itself"),
        ('python=""', ": python: '' is not valid; expected 1 to 1,000 characters without a line"),
        ('options={"nice":"a b"}', "'a b' is not valid; expected 1 to 128 of A-Z a-z 0-9 . _ :"),
        ("gpu_request=gpu", "gpu_request: "),
        ('cpu_options={"mem":"9G"}', "the profile's key for it is 'memory_gib'"),
        ('report.options={"clusters":"x"}', "netpress submits to the cluster of this machine"),
    ],
)
def test_what_a_profile_cannot_request(setting, reason):
    with pytest.raises(UserError) as error:
        profile.load("generic", [setting])
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_python_in_a_container_and_with_arguments(tmp_path):
    sweep, work = results.sweep(), Work(Path("/w"))
    (tmp_path / "images").mkdir()
    own = replace(sweep.cells[0], dataset=Dataset(name="own", folder=str(tmp_path / "images")))
    sweep = replace(sweep, cells=(own, *sweep.cells[1:]))

    def command(*settings):
        known = ledger.Ledger(work.sweep("test"))
        cluster = profile.load("generic", settings)
        made = batch.prepare(
            batch.Target(sweep, work, Path("/not/there"), cluster, tmp_path / "reports"),
            batch.Chosen.all_of(sweep.cells),
            known,
        )
        lines = (item.script.splitlines()[-1] for item in (made.prepared[0], made.prepared[-1]))
        return [shlex.split(line.partition("--cpu-bind=cores")[2])[:-3] for line in lines]

    image = 'container={"image":"/i/n p.sif","bind":["/data:/data:ro"]}'
    # The reports' folder is not there yet: the one that it will be in.
    bound = (str(paths.CODE), "/w", str(tmp_path), f"{tmp_path}/images", "/data:/data:ro")
    binds = [word for folder in bound for word in ("--bind", folder)]
    cells, report = command(image)
    assert cells == ["apptainer", "exec", "--nv", *binds, "/i/n p.sif", "python3", "-u"]
    assert report == [word for word in cells if word != "--nv"]
    assert command("python=conda run -n 'a b' python")[0] == [
        *("conda", "run", "-n", "a b", "python", "-u")
    ]
    assert command(image, "python=/opt/python -X dev")[1][-4:] == ["/opt/python", "-X", "dev", "-u"]
    work = Work(Path("/scratch/a,b"))
    with pytest.raises(UserError, match="/scratch/a,b: apptainer cannot bind a folder with , : or"):
        command(image)


def test_so_many_at_once_are_of_the_whole_submission():
    sweep, work = results.sweep(techniques=("half", "tiny"), seeds=range(100)), Work(Path("/w"))
    known = ledger.Ledger(work.sweep("test"))

    def shares(*settings):
        sol = profile.load("sol", ["time_margin=null", "measure=in-job", *settings])
        made = batch.prepare(
            batch.Target(sweep, work, Path("/d"), sol), batch.Chosen.all_of(sweep.cells), known
        )
        texts = [item.script for item in made.prepared if item.array.cells]
        return [int(text.partition("#SBATCH --array=0-99%")[2].split()[0]) for text in texts]

    assert shares("at_once=300") == [100, 100, 100]
    assert sum(shares("at_once=64")) == 64 and min(shares("at_once=64")) == 21
    assert shares("at_once=2") == [1, 1, 1]


def test_variables_that_sbatch_would_follow_are_named_where_they_are_ignored(monkeypatch):
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    monkeypatch.setenv("SLURM_CLUSTERS", "other")
    account, clusters = profile.load("generic").profile.ignored()
    assert account == "SBATCH_ACCOUNT=mine is set and ignored; `--set account=mine` requests it"
    assert clusters.startswith("SLURM_CLUSTERS=other is set and ignored: ")
    assert len(list(profile.load("generic", ["account=mine"]).profile.ignored())) == 1


def test_the_logs_are_where_submitit_puts_them(tmp_path):
    from submitit.core.utils import JobPaths

    mine = Work(tmp_path).sweep("s").job("abc")
    theirs = JobPaths(mine.folder, job_id="12_3", task_id=0)
    assert (mine.out("12_3"), mine.err("12_3")) == (theirs.stdout, theirs.stderr)
    assert theirs.submitted_pickle.name == "12_3_submitted.pkl"  # what the set-up links


@pytest.mark.parametrize("name", ["a%j", "a\nb", "a\\b"])
def test_a_folder_that_slurm_would_misread_is_refused(name):
    sweep = results.sweep()
    with pytest.raises(UserError, match="Slurm cannot write logs"):
        batch.prepare(
            batch.Target(sweep, Work(Path("/w") / name), Path("/d"), profile.load("generic")),
            batch.Chosen.all_of(sweep.cells),
            ledger.Ledger(Work(Path("/n")).sweep("t")),
        )


def test_a_job_folder_holds_no_code_and_is_private(tmp_path):
    from jobs.task import Task

    job = Work(tmp_path).sweep("s").job("abc")
    executor.write(job, "#!/bin/sh\n", Task("f", "w", "d", {0: ("a",)}), 10, {"a": {}})
    assert job.pickle.stat().st_size < 1000 and b"jobs.task" in job.pickle.read_bytes()
    assert job.folder.stat().st_mode & 0o077 == 0 and job.pickle.stat().st_mode & 0o077 == 0


# --- the ledger ------------------------------------------------------------------------------


def intend(known, intent="a1", cells=("c1",), **more):
    facts = dict(
        name=f"netpress-{intent}",
        kind="cells",
        tasks={"0": list(cells)},
        request={},
        after=[],
        user="me",
    )
    known.append("intent", intent=intent, **{**facts, **more})


def test_the_ledger_knows_where_each_cell_is(tmp_path):
    place = Work(tmp_path).sweep("s")
    with ledger.locked(place) as known:
        intend(known)
        assert [e.open for e in known.entries.values()] == [True]
        known.append("submitted", intent="a1", job=7)
        intend(known, "b2", ("c1", "c2"))
        known.append("refused", intent="b2", reason="no")
        known.append("cancelled", cells=["c1"])
    again = ledger.read(place)
    assert again.last["c1"].task == "7_0" and "c2" not in again.last
    assert again.jobs == [7] and set(again.cancelled) == {"c1"}
    with ledger.locked(place) as known:
        intend(known, "d4")
    assert ledger.read(place).cancelled == {}


def test_a_torn_last_line_never_counted(tmp_path):
    """Of a process that was killed as it wrote the third line, or before it said that there is
    one."""
    place = Work(tmp_path).sweep("s")
    with ledger.locked(place) as known:
        intend(known)
        known.append("submitted", intent="a1", job=7)
        two, count = place.ledger.read_bytes(), place.ledger_count.read_bytes()
        intend(known, "b2")
    three = place.ledger.read_bytes()
    for end in range(len(two), len(three) + 1, 7):
        place.ledger.write_bytes(three[:end])
        place.ledger_count.write_bytes(count)
        assert ledger.read(place).jobs == [7] and "b2" not in ledger.read(place).entries
        with ledger.locked(place) as known:
            intend(known, "e5")
        assert list(ledger.read(place).entries) == ["a1", "e5"]
    place.ledger.write_bytes(three)
    assert list(ledger.read(place).entries) == ["a1", "b2"]


def test_no_damage_to_a_ledger_passes_for_another_one(tmp_path):
    """Bits, bytes, lines that are lost, doubled or exchanged, and the end that is cut off, at the
    end of a line too."""
    place = Work(tmp_path).sweep("s")
    with ledger.locked(place) as known:
        intend(known, cells=("c1", "c2"))
        known.append("submitted", intent="a1", job=4711)
        known.append("cancelled", cells=["c1"])
    random, whole, right = Random(0), place.ledger.read_bytes(), ledger.read(place)
    one, two, three = whole.splitlines(keepends=True)
    damaged = [one + three, one + two + two + three, two + one + three, one, one + two, b""]
    damaged += [whole[:end] for end in range(0, len(whole), 11)]
    for _ in range(300):
        changed = bytearray(whole)
        changed[random.randrange(len(whole))] ^= 1 << random.randrange(8)
        damaged.append(bytes(changed))
    for data in damaged:
        place.ledger.write_bytes(data)
        with pytest.raises(
            UserError, match=r"ledger\.jsonl.*so it is not known what was submitted"
        ):
            ledger.read(place)
    place.ledger.unlink()
    with pytest.raises(UserError, match=r"ledger\.jsonl: is missing"):
        ledger.read(place)
    place.ledger.write_bytes(whole)
    assert ledger.read(place) == right
    place.ledger_count.write_bytes(place.ledger_count.read_bytes().replace(b"3", b"2"))
    with pytest.raises(UserError, match=r"ledger\.count: damaged"):
        ledger.read(place)


def test_a_line_that_is_added_while_a_ledger_is_read_is_no_damage(tmp_path, monkeypatch):
    """A reader has no lock: `status` while a job submits."""
    place = Work(tmp_path).sweep("s")
    with ledger.locked(place) as known:
        intend(known)
    read_bytes = Path.read_bytes

    def read_then_append(path):
        data = read_bytes(path)
        monkeypatch.undo()
        with ledger.locked(place) as known:
            known.append("submitted", intent="a1", job=7)
        return data

    monkeypatch.setattr(Path, "read_bytes", read_then_append)
    assert ledger.read(place).jobs == [7]


def test_a_ledger_of_before_there_were_checksums_is_read_and_goes_on(tmp_path):
    place = Work(tmp_path).sweep("s")
    with ledger.locked(place) as known:
        intend(known)
    line = json.loads(place.ledger.read_bytes())
    place.ledger.write_text(json.dumps({k: v for k, v in line.items() if k not in ("n", "sum")}))
    with open(place.ledger, "a") as file:
        file.write("\n")
    place.ledger_count.unlink()
    with ledger.locked(place) as known:
        known.append("submitted", intent="a1", job=7)
    assert ledger.read(place).jobs == [7]
    old, new = place.ledger.read_bytes().splitlines(keepends=True)
    for damaged in (old, new.replace(b"7", b"8")):
        place.ledger.write_bytes(damaged)
        with pytest.raises(UserError):
            ledger.read(place)


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    place = Work(tmp_path).sweep("s")
    with ledger.locked(place) as known:
        intend(known)
    place.ledger.write_bytes(b"garbage\n" + place.ledger.read_bytes())
    with pytest.raises(UserError, match="ledger.jsonl:1: damaged"):
        ledger.read(place)


def in_zone(monkeypatch, name):
    monkeypatch.setenv("TZ", name)
    time.tzset()


@pytest.fixture
def zones(monkeypatch):
    yield lambda name: in_zone(monkeypatch, name)
    monkeypatch.undo()
    time.tzset()


def test_an_ended_job_of_before_of_the_same_name_is_not_ours(zones):
    """One that has not ended is: its name is its own. squeue prints local time."""
    rows = [Row(5, 0, "COMPLETED", name="n", submitted="2026-01-01T00:00:00")]
    for zone, hours in (("UTC", 0), ("America/Phoenix", 7), ("Asia/Tokyo", -9)):
        zones(zone)
        made = datetime(2026, 1, 1, tzinfo=timezone.utc).timestamp() + hours * 3600
        assert slurm.find(rows, "n", made + 86_400) is None
        assert slurm.find(rows, "n", made + 30) == 5
        alive = Row(6, 0, "PENDING", name="n", submitted="2026-01-01T00:00:00")
        assert slurm.find([*rows, alive], "n", made + 86_400) == 6


def test_an_intent_is_as_old_in_every_time_zone(tmp_path, zones):
    """On another machine, or where the clocks are put back: of 1:30 there are two, and a job of
    the second is not older than an intent of ten minutes before."""
    place, began = Work(tmp_path).sweep("s"), time.time()
    zones("America/Phoenix")
    with ledger.locked(place) as known:
        intend(known)
    zones("Asia/Tokyo")
    assert abs(ledger.when(ledger.read(place).entries["a1"]) - began) < 60
    old = replace(known.entries["a1"], at="2026-11-25T10:00:00")
    assert ledger.when(old) == datetime(2026, 11, 25, 1, tzinfo=timezone.utc).timestamp()
    zones("Europe/Berlin")
    second = Row(5, 0, "FAILED", name="n", submitted="2026-10-25T02:30:00")
    made = datetime(2026, 10, 25, 1, 20, tzinfo=timezone.utc).timestamp()
    assert slurm.find([second], "n", made) == 5


def test_a_job_of_an_intent_that_was_given_up_is_not_known(tmp_path):
    """It is in the queue all the same, and its cells must not be sent again."""
    sweep, work = results.sweep(techniques=()), Work(tmp_path)
    sol = profile.load("sol")
    with ledger.locked(work.sweep("test")) as known:
        target = batch.Target(sweep, work, tmp_path, sol)
        [item, *_] = batch.prepare(target, batch.Chosen.all_of(sweep.cells), known).prepared
        rows = [Row(5, 0, "PENDING", name=item.name)]
        assert batch.unknown_jobs(sweep, work, known, rows) == [5]
        intend(known, item.intent, name=item.name)
        assert batch.unknown_jobs(sweep, work, known, rows) == []
        known.append("void", intent=item.intent, reason="no job of this name in the queue")
        assert batch.unknown_jobs(sweep, work, known, rows) == [5]


def sent_with(cluster, work, name="test", intent="a1", **more):
    sweep = replace(results.sweep(techniques=()), name=name)
    with ledger.locked(work.sweep(name)) as known:
        submitted.remember(sweep, work)
        intend(known, intent, profile=submitted.profile_json(cluster), **more)
        known.append("submitted", intent=intent, job=7)
    return sweep


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("NETPRESS_WORK", "NETPRESS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_profile_of_the_last_submission_is_found_wherever_it_was_sent(here, monkeypatch):
    """In ./runs, where the profile puts the work, and again in ./runs; a refusal never counts."""
    file = here / "mine.yaml"
    file.write_text(f"cores: 3\nwork: {here / 'scratch'}\n")
    mine = profile.load("mine.yaml", ["minutes=45"])
    first = sent_with(profile.load("sol"), Work(here / "runs"))
    assert submitted.last(first).cluster == profile.load("sol")
    sweep = sent_with(mine, Work(here / "scratch"))
    assert submitted.last(sweep).cluster == mine
    more = submitted.last(sweep, ["minutes=50", "cores=4"]).cluster
    assert more == profile.load("mine.yaml", ["minutes=50", "cores=4"])
    with ledger.locked(Work(here / "scratch").sweep("test")) as known:
        intend(known, "b2", profile=submitted.profile_json(more))
        known.append("refused", intent="b2", reason="no")
    assert submitted.last(sweep).cluster == mine
    sent_with(profile.load("sol"), Work(here / "runs"), intent="c3")
    assert submitted.last(sweep).cluster == profile.load("sol")
    assert submitted.last(replace(sweep, name="other")) is None

    monkeypatch.setenv("NETPRESS_PROFILE", "sol")
    assert submitted.last(sweep).notes == ()
    monkeypatch.setenv("NETPRESS_PROFILE", "mine.yaml")
    [note] = submitted.last(sweep).notes
    assert "submitted with profile sol" in note and "--profile mine.yaml" in note


@pytest.mark.parametrize("settings", [(), ("minutes=50",)])
@pytest.mark.parametrize("needed", [False, True])
def test_a_setting_does_not_replace_the_profile_of_the_environment(
    here, monkeypatch, settings, needed
):
    """`plan --set` shows what `submit --set` submits; without any profile both take `generic`."""
    sweep = results.sweep()
    chosen = cli_options.cluster_for(sweep, None, settings, needed)
    assert (chosen and chosen.name) == ("generic" if settings or needed else None)
    monkeypatch.setenv("NETPRESS_PROFILE", "")
    assert cli_options.cluster_for(sweep, None, settings, needed) == chosen
    monkeypatch.setenv("NETPRESS_PROFILE", "sol")
    assert cli_options.cluster_for(sweep, None, settings, needed) == profile.load("sol", settings)


def test_a_profile_that_is_gone_counts_as_it_was(here):
    file = here / "mine.yaml"
    file.write_text("cores: 3\nreport: {cores: 2}\n")
    mine = profile.load("mine.yaml", ["minutes=45"])
    sweep = sent_with(mine, Work(here / "runs"))
    file.unlink()
    last = submitted.last(sweep, ["cores=4"])
    assert last.cluster.profile == mine.profile.model_copy(update={"cores": 4})
    [note] = last.notes
    assert "mine.yaml is gone" in note


def test_a_list_of_work_roots_that_is_damaged_is_one_sentence(here):
    sweep = results.sweep()
    place = Work(here / "runs").sweep(sweep.name)
    place.folder.mkdir(parents=True)
    place.roots.write_text('{"a": 1}')
    with pytest.raises(UserError, match="roots.json: damaged; expected a JSON list"):
        submitted.last(sweep)


# --- how jobs end ----------------------------------------------------------------------------

GIB = 1024**3


@pytest.mark.parametrize(
    "row, more, kind, reason",
    [
        (
            Row(1, 0, "FAILED"),
            {"log": "x exceeded memory limit (44238372864 > 42949672960), b"},
            "out_of_memory",
            "out of memory: 41.2 of 40 GiB",
        ),
        (
            Row(1, 0, "OUT_OF_MEMORY", peak_bytes=39 * GIB, requested_bytes=40 * GIB),
            {},
            "out_of_memory",
            "out of memory: 40.0 of 40 GiB",
        ),
        (Row(1, 0, "TIMEOUT"), {}, "stuck", "time limit: job 1_0 was ended by it before it made"),
        (
            Row(1, 0, "TIMEOUT"),
            {"rounds": 4, "progress": True},
            "time_limit",
            "time limit after 3 requeues: job 1_0",
        ),
        (Row(1, 0, "NODE_FAIL", nodes="cn042"), {}, "node_failure", "node cn042 failed"),
        (Row(1, 0, "PREEMPTED"), {}, "preempted", "preempted"),
        (Row(1, 0, "CANCELLED", by="1000"), {}, "cancelled", "cancelled by 1000"),
        (Row(1, 0, "CANCELLED", "Dependency"), {}, "base_failed", "its base failed"),
        (
            Row(1, 0, "FAILED", exit_code="1:0"),
            {"log": "a\nImportError: b"},
            "exception",
            "job 1_0 failed with exit code 1:0: ImportError: b",
        ),
        (
            Row(1, 0, "FAILED", exit_code="9:0"),
            {"log": "srun: Force Terminated StepId=1.0"},
            "killed",
            "job 1_0 was killed from outside (exit code 9:0)",
        ),
        (Row(1, 0, "FAILED", exit_code="0:9"), {}, "killed", "killed from outside"),
        (Row(1, 0, "FAILED"), {"log": "srun: error: n2: task 0: Killed"}, "killed", "killed"),
        (
            Row(1, 0, "FAILED", exit_code="1:0"),
            {
                "log": "CalledProcessError: Command '['scontrol', "
                "'requeue', '1_0']' returned non-zero exit status 1."
            },
            "not_requeued",
            "did not requeue",
        ),
        (
            Row(1, 0, "FAILED", exit_code="1:0"),
            {
                "busy": "cell ab is being worked on by process 1 on x in job 2_0",
                "log": "srun: error",
            },
            "busy",
            "on x in job 2_0 when",
        ),
        (
            Row(1, 0, "FAILED"),
            {"failure": Failure("exception", "ValueError: at")},
            "exception",
            "exception: ValueError: at",
        ),
        (Row(1, 0, "FAILED"), {"setup": "set-up failed with exit code 1: x"}, "set_up", "set-up"),
        (Row(1, 0, "COMPLETED"), {}, "lost", "completed without a result"),
        (Row(1, 0, "FROBNICATED"), {}, "lost", "Slurm says FROBNICATED"),
        (None, {"task": "1_0"}, "lost", "Slurm has no record of job 1_0"),
    ],
)
def test_causes(row, more, kind, reason):
    cause = retry.cause(row, **more)
    assert cause.kind == kind and reason in cause.reason


# All of squeue's and sacct's manual pages, Slurm 20.11 to 25.05.
DOCUMENTED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "COMPLETING",
    "CONFIGURING",
    "DEADLINE",
    "EXPEDITING",
    "FAILED",
    "LAUNCH_FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PENDING",
    "POWER_UP_NODE",
    "PREEMPTED",
    "RECONFIG_FAIL",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESIZING",
    "RESV_DEL_HOLD",
    "REVOKED",
    "RUNNING",
    "SIGNALING",
    "SPECIAL_EXIT",
    "STAGE_OUT",
    "STOPPED",
    "SUSPENDED",
    "TIMEOUT",
    "UPDATE_DB",
)


def test_every_final_state_has_a_rule():
    assert set(retry.ENDED) == slurm.FINAL and set(retry.ENDED.values()) <= set(retry.RULES)
    assert not slurm.FINAL & set(slurm.IN_QUEUE)


@pytest.mark.parametrize("name", [*DOCUMENTED, "FROBNICATED"])
def test_every_state_of_slurm_and_what_it_is_for_a_cell(name, tmp_path):
    """None makes a cell done; one that is not known is shown as it is, its job left alone."""
    from pipeline.orchestrate import state

    sweep, work = results.sweep(techniques=()), Work(tmp_path)
    [cell] = sweep.cells
    with ledger.locked(work.sweep("test")) as known:
        intend(known, cells=(cell.id,), request={"memory_gib": 1, "minutes": 1, "exclude": []})
        known.append("submitted", intent="a1", job=7)
    view = cluster.View(known, work, {"7_0": Row(7, 0, name, nodes="n1")})
    cell_state = state._state(cell, work, False, None, view)
    assert cell_state.state in ("running", "queued", "failed", "cancelled", "missing")
    assert view.in_queue(cell.id) is (name not in slurm.FINAL)
    if name in slurm.IN_QUEUE:
        assert cell_state.state == slurm.IN_QUEUE[name] and "job 7_0" in cell_state.reason
        assert (
            name in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "FROBNICATED")
            or name.lower() in cell_state.reason
        )
    elif name in slurm.FINAL:
        assert cell_state.state not in ("running", "queued") and cell_state.reason
    else:
        assert name == "FROBNICATED" in cell_state.reason and cell_state.state == "running"


def test_a_busy_cell_is_known_by_the_event_of_its_job(tmp_path):
    """Not by words in a log, which a user's own code may print as well."""
    sweep, work = results.sweep(techniques=("half",)), Work(tmp_path)
    first, second = sweep.cells
    with ledger.locked(work.sweep("test")) as known:
        ids = (first.id, second.id)
        intend(known, cells=ids, request={"memory_gib": 1, "minutes": 1, "exclude": []})
        known.append("submitted", intent="a1", job=7)
    job = known.paths.job("a1")
    job.folder.mkdir(parents=True)
    reason = f"cell {first.id} is being worked on by process 1 on x"
    events = [{"cell": first.id, "stage": "busy", "reason": reason}]
    events += [{"cell": second.id, "stage": "base", "epoch": n} for n in range(500)]
    job.out("7_0").write_text('"busy"\n' + "".join(json.dumps(e) + "\n" for e in events))
    job.err("7_0").write_text(f"netpress: cell {second.id} is being watched\n")
    view = cluster.View(known, work, {"7_0": Row(7, 0, "FAILED", exit_code="1:0")})
    cause = view.cause(first)
    assert (cause.kind, cause.reason) == ("busy", f"{reason} when job 7_0 reached it")
    assert view.cause(second).kind == "exception"


def test_memory_of_a_gpu_is_a_kind_of_its_own_and_reads_as_before():
    reason = "OutOfMemoryError: CUDA out of memory"
    cause = retry.cause(None, failure=Failure("gpu_out_of_memory", reason))
    assert (cause.kind, cause.reason) == ("gpu_out_of_memory", f"out of memory: {reason}")
    assert not cause.rule.again
    host = Failure("out_of_memory", "MemoryError: reading /data/CUDA.bin")
    assert retry.cause(None, failure=host).kind == "out_of_memory"


def test_resume_leaves_out_its_own_advice_and_nothing_else(tmp_path):
    """By what a line is for: the name of the sweep's file is in other lines too."""
    sweep = replace(results.sweep(), path=tmp_path / "netpress resume.yaml")
    work, sol = Work(tmp_path), profile.load("generic")
    states = tuple(state.CellState(cell, "failed", 1, "x") for cell in sweep.cells)
    nothing, sent = batch.Batch(sweep, work, tmp_path, sol), send.Sent({"netpress-a": 7})
    submitted = submit.Submitted(nothing, state.SweepState(states), sent)
    *others, hint, last = submit.lines(submitted)
    assert "submits them again" in hint.text and "shows the progress" in last.text
    lines = list(resume.lines(resume.Resumed(submitted, ["a decision"])))
    assert lines == [submit.Line("a decision"), *others, last]


def test_resume_after_a_base_failed_outside_of_slurm(tmp_path):
    """Its techniques failed with it, and have no attempt of their own."""
    sweep, work = results.sweep(), Work(tmp_path)
    base = sweep.cells[0]
    failure = Failure("killed", "by a user")
    store.write_failure(store.new_attempt(work.cell(base.id)), failure)
    states, choice = state.find(sweep, work), resume.Choice(frozenset(), exceptions=False)
    assert [s.state for s in states.cells] == ["failed", "failed"]
    for cell_state in states.cells:
        times = batch.durations(sweep, work, profile.load("generic"))
        resume._decide(choice, cell_state, states, work, times)
    assert set(choice.requests) == {cell.id for cell in sweep.cells}


def test_the_functions_of_jobs_are_passed_in(tmp_path):
    from jobs.aggregate import Report
    from jobs.follow_up import FollowUp, functions
    from jobs.task import Task

    sweep, work = results.sweep(seeds=(0, 1)), Work(tmp_path)
    known, limit = ledger.Ledger(work.sweep("test")), room.Limit("a limit", 4, 1)
    made = [
        batch.prepare(
            batch.Target(sweep, work, tmp_path, profile.load("generic")),
            batch.Chosen.all_of(sweep.cells),
            known,
            room=limited,
        )
        for limited in (None, limit)
    ]
    kinds = [[type(send._function(one, functions(), i)) for i in one.prepared] for one in made]
    assert kinds == [[Task, Task, Task, Task, Report], [FollowUp, Report, Task]]
    acts = [send._function(made[0], functions(), item).act for item in made[0].prepared[:4]]
    assert acts == ["train", "train", "measure", "measure"]


@pytest.mark.parametrize(
    "settings, devices",
    [
        ((), {"train": "cuda", "measure": "auto"}),
        (("measure=in-job",), {"all": "cuda"}),
        (("gpu=null",), {"all": "auto"}),
    ],
)
def test_a_job_that_requests_a_gpu_trains_on_nothing_else(tmp_path, settings, devices):
    from jobs.follow_up import functions

    sweep, work = results.sweep(), Work(tmp_path)
    made = batch.prepare(
        batch.Target(sweep, work, tmp_path, profile.load("generic", settings)),
        batch.Chosen.all_of(sweep.cells),
        ledger.Ledger(work.sweep("test")),
    )
    jobs = [send._function(made, functions(), one) for one in made.prepared if one.array.cells]
    assert {job.act: job.device for job in jobs} == devices


def test_orchestrate_does_not_reach_up_into_jobs():
    for file in Path(batch.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.split(".")[0] == "jobs" for name in names), file


def test_orchestrate_does_not_reach_up_into_the_report_to_tell_the_state():
    code = "import sys, pipeline.orchestrate.submit, pipeline.orchestrate.resume as r; "
    code += "print([name for name in sys.modules if name.startswith('pipeline.report')])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_what_is_asked_for_next_time():
    def after(kind, node="", asked=ASKED):
        return retry.escalated(retry.Cause(kind, "", node), asked, 100)

    assert after("out_of_memory") == Request(60, 240)
    assert after("out_of_memory", asked=Request(90, 1)) == Request(100, 1)
    assert "100 GiB already" in after("out_of_memory", asked=Request(100, 1))
    assert after("time_limit") == ASKED and after("stuck") == Request(40, 480)
    assert retry.escalated(retry.Cause("stuck", ""), ASKED, 100, 300) == Request(40, 300)
    at_cap = retry.escalated(retry.Cause("stuck", ""), Request(40, 300), 100, 300)
    assert "300 minutes already" in at_cap
    assert after("node_failure", "cn1") == Request(40, 240, ("cn1",))
    assert after("no_gpu", "cn1") == Request(40, 240, ("cn1",))
    assert not retry.RULES["exception"].again


# --- Slurm's words ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said, transient",
    [
        ("sbatch: error: Batch job submission failed: Invalid partition name specified", False),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv op", True),
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", True),
        ("sacct: error: Problem talking to the database: Connection refused", True),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit", False),
    ],
)
def test_what_is_worth_another_try(said, transient):
    assert bool(slurm.TRANSIENT.search(said)) is transient


def test_what_overrides_a_script_is_not_passed_on(monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "gpu")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")
    monkeypatch.setenv("SLURM_CONF", "/c")
    environment = slurm.environment()
    assert "SBATCH_PARTITION" not in environment and "SLURM_MEM_PER_NODE" not in environment
    assert environment["SLURM_CONF"] == "/c" and environment["SLURM_BITSTR_LEN"] == "0"


def test_who_we_are_is_not_what_the_environment_says(monkeypatch):
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    import pwd

    assert slurm.user() == pwd.getpwuid(os.getuid()).pw_name


@pytest.mark.parametrize(
    "text, seconds", [("1:00", 60), ("2-03:04:05", 183845), ("10:00:00", 36000), ("INVALID", None)]
)
def test_time_left(text, seconds):
    assert slurm._seconds(text) == seconds


QUEUE_HEADER = (
    "ARRAY_JOB_ID",
    "ARRAY_TASK_ID",
    "STATE",
    "REASON",
    "NODELIST",
    "SUBMIT_TIME",
    "DEPENDENCY",
    "NAME",
)
QUEUED = ("13", "5-6%4", "PENDING", "None", "", "2026-01-01T00:00:00", "(null)", "a|b")
BANNERS = ("*** maintenance on 12 Jan ***", "", "12 SUs left", "13 5-6 PENDING", "13")


def table_of(*rows, before=BANNERS, after=BANNERS):
    return "\n".join([*before, *map(slurm_lines.MARK.join, rows), *after])


def test_rows_of_squeue_and_sacct_among_foreign_lines():
    rows = slurm_lines.queue_rows(table_of(QUEUE_HEADER, QUEUED))
    assert [(r.task, r.after, r.name) for r in rows] == [("13_5", "", "a|b"), ("13_6", "", "a|b")]
    first, second = slurm_lines.records(
        table_of(
            slurm_lines.RECORD_FIELDS,
            ("7_0", "CANCELLED by 1000", "None", "n1", "0:0", "", "2G", "9", "x"),
            ("7_0.0", "CANCELLED", "", "n1", "0:9", "1048576K", "", "9", "python"),
            ("SUs", "left", "12", "", "", "", "", "soon", "x"),
            ("7_1", "FAILED", "None", "n1", "1:0", "", "2G", "9", "x"),
            ("7_1.0", "OUT_OF_MEMORY", "", "n1", "0:125", "3G", "", "9", "python"),
        )
    )
    assert (first.state, first.by, first.peak_bytes) == ("CANCELLED", "1000", GIB)
    assert (second.state, second.peak_bytes, second.requested_bytes) == (
        "OUT_OF_MEMORY",
        3 * GIB,
        2 * GIB,
    )


def test_a_queue_that_is_not_understood_is_not_an_empty_one():
    """A wrapper that changes the marks, or shortens a list of our tasks: nothing may be sent then;
    what is not understood of other jobs does not matter."""
    short = ("13", "[1-3,5,...]", *QUEUED[2:7])
    assert slurm_lines.queue_rows(table_of(QUEUE_HEADER)) == []
    assert slurm_lines.queue_rows(table_of(QUEUE_HEADER, (*short, "other"))) == []
    for text in (
        "",
        table_of(QUEUED),
        table_of(QUEUE_HEADER, QUEUED).replace(slurm_lines.MARK, " "),
        table_of(QUEUE_HEADER, (*short, "netpress-0123456789-tiny-cells-0")),
    ):
        with pytest.raises(slurm_lines.Unreadable):
            slurm_lines.queue_rows(text)


@pytest.mark.parametrize(
    "printed, job",
    [
        ("4711\n", 4711),
        ("4711;sol\n12 SUs left\n", 4711),
        ("Welcome\nSubmitted batch job 4711 on cluster sol\n", 4711),
        ("12 SUs left\n", None),
        ("12\n4711\n", None),  # which of them? the job's name tells
        ("4711\n4711\n", 4711),
        ("4711; and 12\n", None),
        ("", None),
    ],
)
def test_only_a_whole_line_is_a_job_id(printed, job):
    assert slurm_lines.job_id(printed) == job


# --- clusters without arrays, jobs without scontrol ------------------------------------------


@given(some.lists(some.integers(0, 4), min_size=1, max_size=4), some.integers(0, 1))
def test_without_arrays_each_task_is_a_job(counts, limit):
    """Dependents wait for the job of their own base."""
    cells, jobs = made(counts, limit)
    assert all(job.single and list(job.tasks) == [0] and len(job.cells) == 1 for job in jobs)
    place = {job.cells[0]: job for job in jobs}
    assert sorted(place) == sorted(cell.id for cell in cells)
    for cell in cells:
        job = place[cell.id]
        waits = () if cell.is_base else (place[cell.base_id].name,)
        assert job.after == waits and (cell.is_base or job.kind == "afterok")


def test_a_single_job_in_the_queue_is_waited_for():
    base = results.sweep(seeds=(0,)).cells[0]
    for limit in (0, 1001):
        _, jobs = made([3], limit, {base.id: Queued(77, 0, single=True)})
        assert {(job.kind, job.after) for job in jobs} == {("afterok", ("77",))}
        _, jobs = made([3], limit, {base.id: Queued(77, 5)})
        assert {(job.kind, job.after) for job in jobs} == {("afterok", ("77_5",))}


def test_a_single_job_is_named_as_slurm_names_it(tmp_path):
    single = profile.load("generic", ["max_array_size=0"])
    sweep = results.sweep(techniques=("quick",), seeds=(0,))
    work = Work(tmp_path)
    known = ledger.read(work.sweep(sweep.name))
    sent = batch.prepare(
        batch.Target(sweep, work, tmp_path, single), batch.Chosen.all_of(sweep.cells), known
    )
    base, quick, measured, report = sent.prepared
    for item in sent.prepared:
        assert "--array" not in item.script and 'task="$SLURM_JOB_ID"' in item.script
        assert f"--output={item.job.folder}/%j_0_log.out" in item.script
    assert f"--dependency=afterok:@{base.name}@\n" in quick.script
    assert f"--dependency=afterany:@{base.name}@:@{quick.name}@\n" in measured.script
    after = f"@{base.name}@:@{quick.name}@:@{measured.name}@"
    assert f"--dependency=afterany:{after}\n" in report.script
    assert [*sent.notes] == [batch.NO_ARRAYS]
    at = ledger.At(ledger.Entry("i", "n", "cells", {}, "", "", {}, single=True, job=7), 0)
    assert at.task == "7" and Row(7, None, "RUNNING").task == "7"
    assert set(cancel._grouped({"7", "8_1", "8_2"})) == {"7", "8_[1-2]"}


def test_a_job_whose_log_could_not_be_opened(tmp_path):
    row = Row(3, 0, "FAILED", exit_code="0:53")
    why = retry.cause(row, task="3_0", log_file=tmp_path / "3_0_0_log.out")
    assert why.kind == "no_log" and why.rule.again
    assert why.reason == f"Slurm could not open the log file {tmp_path}/3_0_0_log.out of job 3_0"


@pytest.mark.parametrize(
    "setting", ["minutes=2", "report.minutes=2", "follow_up.minutes=2", "signal_s=1800"]
)
def test_a_job_that_ends_before_its_signal_is_refused(setting):
    with pytest.raises(
        UserError, match=r"minutes \d+ ends before the signal to checkpoint"
    ) as error:
        profile.load("generic", [setting])
    assert "\n" not in str(error.value) and "expected at least" in str(error.value)


def test_a_held_state_tells_what_releases_it():
    for held in cluster.HELD:
        assert "`scontrol release 3_0`" in cluster.pending(Row(3, 0, held))


def test_a_watched_cluster_is_queried_less_and_less():
    slow = list(islice(watch.pauses(None, submitted=True), 10))
    assert slow[0] == 5 and slow[-1] == 60 and slow == sorted(slow)
    assert list(islice(watch.pauses(None, submitted=False), 3)) == [watch.WATCH_S] * 3
    assert list(islice(watch.pauses(20.0, submitted=True), 3)) == [20.0] * 3


# --- estimates and rehearsals ----------------------------------------------------------------


def used(cell, work, wall_s=100.0, training_s=60.0, epochs=2, gpu_bytes=0, job="1_0", **more):
    """The cell is done, and its attempt wrote down what it took."""
    from pipeline import store

    results.publish(cell, work)
    record = {
        "job": job,
        "ended": "now",
        "wall_s": wall_s,
        "training_s": training_s,
        "epochs": epochs,
        "asked": {"cores": 24, "memory_bytes": 40 * GIB, "gpus": 1},
        "used": {
            "memory_bytes": 3 * GIB,
            "cores": 2.5,
            "gpu_memory_bytes": gpu_bytes,
            "gpu_busy": None,
            **more,
        },
    }
    store.publish_json(store.new_attempt(work.cell(cell.id)).usage, record)


def test_estimates_come_from_the_best_there_is(tmp_path):
    from pipeline.orchestrate import estimate, rehearse

    sweep, work = results.sweep(seeds=(0, 1)), Work(tmp_path)
    cell = sweep.cells[0]
    assert estimate.best(sweep, work).source == estimate.SOURCE
    half = estimate.best(sweep, work, "h100:1")
    assert "one H100 of 989 TFLOP/s" in half.source and half.scale < 0.4
    assert "not in the table" in estimate.best(sweep, work, "z9:1").source
    assert "any kind of GPU" in estimate.best(sweep, work, "1").source

    small, root = rehearse.sliver(sweep), rehearse.root(work)
    used(small.cells[0], root)
    assert estimate.best(sweep, work, "a100:1", small, root).source == estimate.SOURCE
    used(small.cells[1], root, gpu_bytes=GIB)
    assert "1 cells rehearsed on a GPU" in estimate.best(sweep, work, "a100:1", small, root).source

    used(sweep.cells[1], work)  # on a CPU, which is no evidence for a GPU
    assert "rehearsed on a GPU" in estimate.best(sweep, work, "a100:1", small, root).source
    assert "1 finished cells" in estimate.best(sweep, work, None, small, root).source
    used(cell, work, gpu_bytes=GIB)
    best = estimate.best(sweep, work, "a100:1", small, root)
    assert best.source == "from 1 finished cells of this sweep"
    assert best.seconds(cell) == pytest.approx(100.0)


def arrays_for(sweep, work, *settings):
    """{name: (wall time, tasks)} of what would be sent with a profile for an A100, where jobs
    measure what they train."""
    known = ledger.Ledger(work.sweep("test"))
    sol = profile.load("sol", ["measure=in-job", *settings])
    made = batch.prepare(
        batch.Target(sweep, work, work.root, sol), batch.Chosen.all_of(sweep.cells), known
    )
    arrays = [item.array for item in made.prepared if item.array.cells]
    return {a.name: (a.request.minutes, [len(ids) for ids in a.tasks.values()]) for a in arrays}


def test_wall_time_and_packs_follow_the_estimates(tmp_path):
    """Two minutes a cell, by arithmetic: ten minutes for one, an hour's worth in one job."""
    names = tuple(f"t-{n}" for n in range(40))
    sweep, work = results.sweep(techniques=names, seeds=(0, 1)), Work(tmp_path)
    arrays = arrays_for(sweep, work)
    assert arrays["base-0"] == (10, [1, 1])  # for these, the others wait
    (first_s, first), (second_s, second) = arrays["cells-1"], arrays["cells-2"]
    assert first == [30, 30] and second == [10, 10]
    assert (first_s, second_s) == (182, 62)  # three times that, and the signal's lead
    # At most the profile's minutes, of which a pack makes full use.
    shorter = arrays_for(sweep, work, "minutes=60")
    assert shorter["cells-1"] == shorter["cells-2"] == (56, [9, 9, 9, 9, 4])
    assert arrays_for(sweep, work, "time_margin=1")["cells-1"][0] == 62
    never = {minutes for minutes, _ in arrays_for(sweep, work, "time_margin=null").values()}
    assert never == {240}
    alone = replace(sweep, pack=Pack(minutes=0))
    assert {n for _, tasks in arrays_for(alone, work).values() for n in tasks} == {1}
    bases = arrays_for(results.sweep(techniques=(), seeds=range(40)), work)
    assert bases == {"base-0": (177, [29, 11])}  # nothing waits for one of them
    together = arrays_for(replace(sweep, pack=Pack(minutes=5)), work)
    assert together["base-0"][1] == [2] and together["cells-1"][1][0] == 2


def test_of_what_little_is_known_requests_all_the_minutes_and_is_alone(tmp_path):
    """No GPU, an unknown one, a data set or a network of one's own, until cells are finished."""
    sweep, work = results.sweep(techniques=("half", "tiny")), Work(tmp_path)
    own = results.sweep(techniques=("half", "tiny"), datasets=("leaves",), checked=False)
    for cells, settings in ((sweep, ["gpu=null"]), (sweep, ["gpu=z9:1"]), (own, [])):
        arrays = arrays_for(cells, work, *settings)
        assert list(arrays.values()) == [(240, [1]), (240, [1, 1])], settings
    used(sweep.cells[0], work, wall_s=400.0)  # 340 s of them before and after its epochs
    arrays = arrays_for(sweep, work, "gpu=null")
    assert arrays == {"base-0": (22, [1]), "cells-1": (36, [2])}  # (400, 2 x 340) x 3 + 120 s


def test_cells_of_different_length_are_in_different_arrays(tmp_path):
    sweep = results.sweep(techniques=(), seeds=range(5), models=(("vgg16_bn", 4.0),))
    long = [
        replace(cell, recipe=cell.recipe.model_copy(update={"epochs": 6000}))
        for cell in sweep.cells[:2]
    ]
    arrays = arrays_for(replace(sweep, cells=(*long, *sweep.cells[2:])), Work(tmp_path))
    assert arrays["base-0"][1] == [1, 1] and arrays["base-0"][0] == 96
    assert arrays["base-1"] == (21, [3])  # one job for the three


def test_what_was_used_and_a_better_request(tmp_path):
    from pipeline import usage

    sweep, work = results.sweep(seeds=(0, 1)), Work(tmp_path)
    assert usage.read(sweep.cells, work) is None
    used(sweep.cells[0], work)
    used(sweep.cells[1], work, job=None)  # a local run requested nothing
    seen = usage.read(sweep.cells, work)
    first, second = usage.lines(seen, threads=4)
    assert first == "At most 3.0 of 40 GiB and 2.5 of 24 cores were used (1 job)."
    assert second == "This would do: --set cores=4 --set memory_gib=4"
    # Advice changes nothing that is measured.
    assert [*usage.lines(seen, threads=8)][1].startswith("This would do: --set cores=8 ")
    assert [*usage.lines(seen, threads=24)][1] == "This would do: --set memory_gib=4"
    assert [*usage.lines(seen)][1] == (
        "This would do: --set memory_gib=4; also --set cores=4, once the sweep has `measure: "
        "{threads: 4}`: without it, all threads are as many as the cores that are requested"
    )
    used(sweep.cells[0], work, job=None, memory_bytes=GIB)  # finished outside of jobs, later
    assert next(usage.lines(usage.read(sweep.cells, work))) == first
    alone = usage.of_cell(work.cell(sweep.cells[0].id))
    alone["request"] = {"cores": 24, "memory_bytes": 40 * GIB, "gpus": 1, "minutes": 240}
    better = usage.request(usage.total([{**alone, "all": {"wall_s": 600.0}}]))
    assert better == [("cores", 4), ("memory_gib", 4), ("minutes", 20)]
    record = usage.of_cell(work.cell(sweep.cells[0].id))
    assert record["all"] == {
        "attempts": 2,
        "wall_s": 100.0,
        "gpu_s": 100.0,
        "cpu_s": 2400.0,
        "training_gpu_s": 60.0,
    }
    assert [*usage.costs([record])] == [
        "0.028 GPU-hours and 0.667 CPU-hours (cores × time).",
        "60% of the GPU time was training; start and measurement took the rest.",
    ]
    charged = {**record, "all": {**record["all"], "charge": 1.64}}
    assert [*usage.costs([charged])][2] == "1.6 units of fair share were charged for it."
    assert len([*usage.costs([charged, record])]) == 2  # of one, it is not known


def test_what_a_sweep_costs_and_what_would_lower_that(tmp_path):
    sol, sweep, work = profile.load("sol"), results.sweep(seeds=(0, 1)), Work(tmp_path)
    planned = submit.planned(submit.Target(sweep, work, tmp_path, replace(sol)))
    training = planned.cpu_hours - planned.measure_cpu_hours
    assert training == pytest.approx(24 * planned.gpu_hours)
    assert 0 < planned.training_share < 1
    text = "\n".join(planned.lines())
    assert "at 59 an hour a job: cores 24, memory 10, GPUs 25" in text
    [line, *_] = planned.savings
    assert line.startswith("--set cores=12: 47 units an hour instead of 59, the GPU's part")
    used(sweep.cells[0], work)  # cells that ran know better
    assert any(
        "--set cores=4" in s
        for s in submit.planned(submit.Target(sweep, work, tmp_path, sol)).savings
    )
    sol = profile.load("sol", ["measure=in-job"])
    savings = submit.planned(submit.Target(sweep, work, tmp_path, sol)).savings
    assert not any("--set cores" in s for s in savings)  # that would change what is measured
    [line] = [line for line in savings if "memory_gib" in line]
    assert line.startswith("--set memory_gib=4: 50 units an hour instead of 59, as 1 finished")
    data = planned.to_json()
    assert data["cpu_hours"] and data["charge_parts"]["GPUs"] == 25


def test_a_job_knows_its_charge(monkeypatch):
    from jobs.usage import requested

    monkeypatch.setenv("NETPRESS_CHARGE", "59")
    assert requested().charge == 59
    monkeypatch.setenv("NETPRESS_CHARGE", "nan")
    assert requested().charge is None


def test_the_cores_that_were_used_are_the_most_at_any_time(tmp_path, monkeypatch):
    """An hour on one core and half a minute on eight: with two, the half minute would be longer."""
    from jobs import usage

    looks = [(0.0, 0.0), (3600.0, 3600.0), (3630.0, 3840.0), (3630.05, 3841.0)]
    monkeypatch.setattr(usage.time, "monotonic", lambda: looks[0][0])
    monkeypatch.setattr(usage, "_cpu_s", lambda: looks[0][1])
    seen = usage.Monitor(AttemptPaths(tmp_path))
    while len(looks) > 1:
        del looks[0]
        seen._look()
    assert seen.usage(None).used.cores == 8.0


def test_a_report_in_the_queue_counts_if_it_is_of_this_text_and_after_all_others(tmp_path):
    work = Work(tmp_path)
    with ledger.locked(work.sweep("test")) as known:
        for job, (kind, text) in enumerate([("cells", "a"), ("report", "a"), ("report", "b")]):
            intend(known, f"i{job}", kind=kind, sweep=text)
            known.append("submitted", intent=f"i{job}", job=job)

    def view(*alive):
        return cluster.View(known, work, {f"{job}_0": Row(job, 0, "PENDING") for job in alive})

    assert view(0, 1).has_report("a") and not view(0, 1).has_report("b")
    assert view(0, 1, 2).has_report("b") and not view(0, 1, 2).has_report("a")
    assert not view(0).has_report("a") and not view().has_report("a")
    assert view(0, 1, 2).alive_reports == [1, 2]
    with ledger.locked(work.sweep("test")) as known:
        intend(known, "i3", sweep="b")
        known.append("submitted", intent="i3", job=3)
    assert not view(2, 3).has_report("b")  # it would not wait for what came after it


def reported(work, *, job=1, reports=None, **more):
    """The ledger of a sweep whose report was sent as this job, after cells of job 0."""
    reports = str(reports or work.root / "reports")
    request = {"memory_gib": 4, "minutes": 30, "exclude": []}
    with ledger.locked(work.sweep("test")) as known:
        intend(known, "i0", reports=reports, request=request)
        known.append("submitted", intent="i0", job=0)
        if job is not None:
            intend(known, "i1", kind="report", reports=reports, request=request, **more)
            known.append("submitted", intent="i1", job=job)
    return known


def test_what_became_of_the_report(tmp_path):
    known = reported(Work(tmp_path))
    look = report_job.look
    assert look(known, {"1_0": Row(1, 0, "PENDING")}, True).state == "queued"
    assert look(known, {"1_0": Row(1, 0, "RUNNING")}, True).state == "running"
    assert look(known, {"1_0": Row(1, 0, "COMPLETED")}, True).state == "made"
    assert look(known, {}, False).state == "unknown"
    lost = look(known, {}, True)
    assert lost.state == "failed" and "Slurm has no record" in lost.reason
    by_hand = look(known, {"1_0": Row(1, 0, "CANCELLED", by="1000")}, True)
    assert (by_hand.state, by_hand.reason) == ("failed", "cancelled by 1000")
    assert report_job.unsettled(known).job == 1

    job = known.paths.job("i1")
    job.folder.mkdir(parents=True)
    store.write_failure(job.report, Failure("exception", "PermissionError: /x"))
    failed = look(known, {}, True)
    assert (failed.state, failed.reason) == ("failed", "exception: PermissionError: /x")
    page = paths.report("test", tmp_path / "reports").page
    page.parent.mkdir(parents=True)
    page.touch()
    then = job.report.failure.stat().st_mtime
    os.utime(page, (then - 60, then - 60))
    assert look(known, {}, True).state == "failed"
    os.utime(page, (then + 60, then + 60))  # made by hand since
    assert look(known, {}, True).state == "made"
    assert look(known, {"1_0": Row(1, 0, "RUNNING")}, True).state == "running"


def test_a_report_by_hand_counts_until_another_cell_has_ended(tmp_path):
    """Made while jobs run, it lacks what they make; and the job that would add it has failed."""
    sweep, work = results.sweep(techniques=()), Work(tmp_path)
    known = reported(work)
    job = known.paths.job("i1")
    job.folder.mkdir(parents=True)
    store.write_failure(job.report, Failure("exception", "PermissionError: /x"))
    page = paths.report("test", tmp_path / "reports").page
    page.parent.mkdir(parents=True)
    page.touch()
    now = time.time()
    os.utime(page, (now + 60, now + 60))

    def made():
        begun = frozenset([sweep.cells[0].id])
        return report_job.look(known, {}, True, lambda: state._last_end(sweep, work, begun)).state

    assert made() == "made"
    attempt = store.new_attempt(work.cell(sweep.cells[0].id))
    store.write_failure(attempt, Failure("exception", "x"))
    for later, expected in ((30, "made"), (90, "failed")):
        os.utime(attempt.failure, (now + later, now + later))
        assert made() == expected
    os.utime(attempt.failure, (now, now))
    results.publish(sweep.cells[0], work)
    os.utime(work.cell(sweep.cells[0].id).manifest, (now + 90, now + 90))
    assert made() == "failed"
    os.utime(page, (now + 120, now + 120))
    assert made() == "made"


def test_a_report_that_says_that_it_is_made_needs_no_scheduler(tmp_path):
    known = reported(Work(tmp_path))
    job = known.paths.job("i1")
    job.folder.mkdir(parents=True)
    store.publish_json(job.made, {})
    assert report_job.look(known, {}, False).state == "made"
    assert report_job.unsettled(known) is None


def test_a_report_that_was_never_sent_or_refused(tmp_path):
    known = reported(Work(tmp_path / "a"), job=None)
    assert report_job.look(known, {}, True).state == "missing"
    with ledger.locked(known.paths) as known:
        intend(known, "i1", kind="report", reports=str(tmp_path / "reports"))
        known.append("refused", intent="i1", reason="submit limit")
    report_state = report_job.look(known, {}, True)
    assert (report_state.state, report_state.reason) == ("failed", "submit limit")
    old = Work(tmp_path / "b")
    with ledger.locked(old.sweep("test")) as known:  # of a version that did not say where
        intend(known, "i1", kind="report")
        known.append("submitted", intent="i1", job=1)
    assert report_job.look(known, {}, True) is None


def test_a_report_that_ran_out_gets_more():
    generic = profile.load("generic").profile
    request = Request(4, 30)

    def after(kind):
        state_now = report_job.ReportState("failed", retry.Cause(kind, "", "n1"), None, request)
        return state_now.next_request(generic)

    assert after("out_of_memory") == Request(6, 30) and after("stuck") == Request(4, 60)
    assert after("node_failure") == Request(4, 30, ("n1",)) and after("exception") == request


def test_where_the_report_goes_is_tried_before_anything_is_sent(tmp_path):
    writable.require_report(tmp_path / "reports", "s")
    assert list(tmp_path.iterdir()) == []
    folder = tmp_path / "reports" / "s"
    folder.mkdir(parents=True)
    (folder / "figures").write_text("in the way")
    with pytest.raises(UserError, match="figures is not a folder; remove it"):
        writable.require_report(tmp_path / "reports", "s")
    with pytest.raises(UserError, match="cannot be written there, .* in /proc; run this in"):
        writable.require_report(Path("/proc/reports"), "s")


def test_the_job_of_a_report_says_what_became_of_it(tmp_path):
    from jobs.aggregate import Report

    job = Work(tmp_path).sweep("s").job("a1")
    job.folder.mkdir(parents=True)
    gone = Report(
        str(tmp_path / "s.yaml"), "name: [", str(tmp_path), str(tmp_path), str(job.folder)
    )
    with pytest.raises(UserError):
        gone()
    failure = store.read_failure(job.report)
    assert failure.kind == "exception" and "s.yaml:2: not valid YAML" in failure.reason
    assert not job.made.exists()


def test_a_rehearsal_is_the_same_matrix_in_small():
    from pipeline.orchestrate import rehearse

    sweep = results.sweep(techniques=("half", "tiny"))
    small = rehearse.sliver(sweep)
    assert [cell.name for cell in small.cells] == [cell.name for cell in sweep.cells]
    assert not {cell.id for cell in small.cells} & {cell.id for cell in sweep.cells}
    assert all(c.recipe.epochs == 1 and c.recipe.train_images == 256 for c in small.cells)
    assert small.cells[1].base_id == small.cells[0].id and small.name == "test-rehearsal"


# --- one cell, one job -----------------------------------------------------------------------


def test_a_cell_that_another_job_may_hold_is_left_alone(tmp_path):
    """Where flock does not reach other machines, the lock file's words and Slurm decide."""
    from pipeline import store

    cell = Work(tmp_path).cell("0" * 16)
    queried = []

    def lives(job):
        queried.append(job)
        return job == "7_1"

    store.make_folder(cell.folder)
    cell.lock.write_text("process 1 on another-node in job 7_1\n")
    with pytest.raises(store.Busy, match="in job 7_1"), store.lock_cell(cell, "8_0", lives):
        pass
    with store.lock_cell(cell, "7_1", lives):  # our own job, requeued: its first run is over
        assert cell.lock.read_text().endswith("in job 7_1\n")
    assert cell.lock.read_text() == "" and queried == ["7_1"]
    cell.lock.write_text("process 1 on another-node in job 7_2\n")
    with store.lock_cell(cell, "8_0", lives):
        pass
    assert queried == ["7_1", "7_2"]
