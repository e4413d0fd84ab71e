"""A report measured again by somebody else: with real models, and with everything that could be
wrong in it put there for real."""

from __future__ import annotations

import base64
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy
import pytest
from PIL import Image

from pipeline import artifact, remeasure, report, store, verify
from pipeline.cli import main
from pipeline.errors import Corrupt
from pipeline.measure import complexity
from pipeline.models.spec import NetworkSpec
from pipeline.orchestrate import plan
from pipeline.paths import CODE, ReportPaths, Work
from pipeline.report import artifacts, merged, sources
from pipeline.report.measured import CLASSIFIED_ON
from pipeline.sweep import Sweep
from pipeline.verify import DIFFERS, NOTE, OK, UNCHECKED
from pipeline.verify import files as verify_files
from tests import cells
from tests.made_once import MADE

pytestmark = pytest.mark.usefixtures("made_once")


@dataclass
class Shared:
    """A report as it lies in a repository, and where it was made."""

    folder: Path
    sweep: Sweep
    work: Work

    @property
    def paths(self) -> ReportPaths:
        return ReportPaths(self.folder)

    @property
    def small(self) -> str:
        """The id of the compressed cell."""
        return self.sweep.cells[1].id

    def checks(self, accuracy=True, speed=False) -> list[verify.Check]:
        """On a machine that has only the report, and the images of the digits."""
        cache = self.work.cache
        return list(verify.checks(self.folder, self.folder, cache, accuracy=accuracy, speed=speed))

    def wrong(self, **more) -> dict[str, str]:
        return {c.what: c.why for c in self.checks(**more) if c.outcome == DIFFERS}

    def change(self, change) -> None:
        """results.h5 by another hand, sealed again. The files made from it count as right: what is
        tested here is whether its numbers are."""
        before = self.paths.merged.read_bytes()
        with h5py.File(self.paths.merged, "r+") as file:
            change(file["cells"][self.small])
        self.paths.merged.write_bytes(store.sealed(self.paths.merged.read_bytes()))
        MADE[self.paths.merged.read_bytes()] = MADE[before]


@pytest.fixture(scope="module")
def original(bench, tmp_path_factory, made_once):
    """Two real cells on the digits, with both artifacts in the report."""
    home = tmp_path_factory.mktemp("verify")
    cell = bench.cells(["base", "ptq-int8"])["ptq-int8"]
    cells.run(cell, bench.work)
    sweep = plan.load_sweep(bench.folder / "test.yaml")
    paths, _ = report.build(sweep, bench.work, home, artifact_bytes=10_000_000)
    return Shared(paths.folder, sweep, bench.work)


@pytest.fixture
def shared(original, tmp_path):
    shutil.copytree(original.folder, tmp_path / "shared")
    return Shared(tmp_path / "shared", original.sweep, original.work)


def measured(cell):
    """The group of the one measurement of a cell."""
    [measurement] = cell["measurements"].values()
    return measurement


def put(cell, name, value):
    del measured(cell)[name]
    measured(cell)[name] = value


def flip(path, place=-1000):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


# --- measured again --------------------------------------------------------------------------


def of_another_cpu(cell) -> None:
    """All that is recorded, as if another kind of CPU had predicted another class of one image."""
    facts = json.loads(measured(cell).attrs["facts"])
    facts |= {"machine": "other-1c", "hardware": {**facts["hardware"], "flags": ["sve"]}}
    measured(cell).attrs["facts"] = json.dumps(facts)
    classes = measured(cell)["measure/base_predictions"][()]
    classes[0] = (classes[0] + 1) % 10
    put(cell, "measure/base_predictions", classes)


def measured_here(shared) -> store.Result:
    """The compressed cell, of this machine."""
    with cells.one_core():
        nowhere = shared.folder / "nowhere"
        assert remeasure.report(shared.folder, nowhere, shared.work.cache, lambda line: None)
    with store.open_hdf5(shared.paths.merged) as file:
        every = sources.results_of(file, shared.small, everything=True)
    return next(result for _, result in every if result.facts["machine"] != "other-1c")


def test_a_drop_that_is_measured_again_is_of_one_machine(shared):
    base = merged.read(shared.paths.merged).result(shared.sweep.cells[0].id)
    shared.change(of_another_cpu)
    result = measured_here(shared).measured
    assert (result["base_predictions"] == base.measured["predictions"]).all()
    assert result["base_accuracy"] == base.measured["accuracy"]
    assert result["base_accuracy"] - result["accuracy"] == result["accuracy_drop"]
    assert result["base_test_set_seconds"] > 0


@pytest.mark.parametrize("same", [True, False])
def test_what_follows_from_predictions_is_kept_with_the_same_alone(shared, same):
    def derived(result: store.Result) -> set[str]:
        return {n for n in result.measured if n.startswith(remeasure.FROM_PREDICTIONS)}

    recorded = derived(merged.read(shared.paths.merged).result(shared.small))
    assert "simulated_agreement" in recorded
    if not same:
        shared.change(of_another_cpu)
    assert derived(measured_here(shared)) == (recorded if same else set())


def test_without_the_base_a_drop_is_that_of_the_same_kind_of_cpu(shared):
    shutil.rmtree(shared.paths.artifact(shared.sweep.cells[0].id))
    recorded = merged.read(shared.paths.merged).result(shared.small).measured["base_predictions"]
    result = measured_here(shared)
    assert (result.measured["base_predictions"] == recorded).all()
    assert CLASSIFIED_ON not in result.facts


def test_without_the_base_another_cpus_drop_stays_that_cpus(shared):
    shutil.rmtree(shared.paths.artifact(shared.sweep.cells[0].id))
    shared.change(of_another_cpu)
    result = measured_here(shared)
    assert result.facts[CLASSIFIED_ON] == "other-1c"
    assert any(name.startswith("latency/") for name in result.measured)


# --- all is well -----------------------------------------------------------------------------


def test_an_untouched_report_holds(shared):
    before = {p: p.stat().st_mtime_ns for p in shared.folder.rglob("*")}
    checks = shared.checks(speed=True)
    timed = [check for check in checks if " speed, " in check.what]  # in a few milliseconds
    assert {check.outcome for check in checks if check not in timed} == {OK, NOTE}
    by_what = {check.what: check for check in checks}
    named = f"artifacts/{shared.small} digits/vgg11_bn-w0.125/ptq-int8/0"
    assert "0 of 450 predictions differ" in by_what[f"{named} accuracy"].why
    assert by_what[f"{named} integer kernels"].why == "100.0% of the work"
    assert {"results.h5", "results.csv", "report.md", "index.html"} <= set(by_what)
    speeds = [check for what, check in by_what.items() if what.startswith(f"{named} speed")]
    assert len(speeds) == 5 and "against its base, on" in speeds[0].why
    assert speeds[1:] == timed and all("recorded" in check.why for check in timed)
    assert {p: p.stat().st_mtime_ns for p in shared.folder.rglob("*")} == before


def test_a_base_that_is_not_there_is_made_with_random_weights(shared):
    shutil.rmtree(shared.paths.artifact(shared.sweep.cells[0].id))
    checks = shared.checks(accuracy=False, speed=True)
    assert any("a base of its shape with random weights" in check.why for check in checks)
    assert [check.what for check in checks if check.outcome == UNCHECKED] == ["artifacts"]
    assert "1 of 2 results" in checks[-1].why and "netpress run test.yaml" in checks[-1].why
    assert not [c for c in checks if c.outcome == DIFFERS and " speed, " not in c.what]


def test_the_random_base_has_the_recorded_shape(shared, bench):
    cell = shared.sweep.cells[1]
    made = verify.artifacts._random_base(cell, artifact.load(shared.paths.artifact(cell.id)))
    real = artifact.load(bench.work.cell(cell.base_id).artifact)
    assert made.manifest["network"] == real.manifest["network"]
    assert len(made.model) == pytest.approx(len(real.model), rel=0.02)


# --- the command -----------------------------------------------------------------------------


def asked(*arguments, capsys):
    code = main(["verify", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_says_a_line_each_and_ends_with_zero(shared, capsys, monkeypatch):
    monkeypatch.setenv("NETPRESS_WORK", str(shared.work.root))
    code, out, err = asked(shared.folder, "--no-speed", capsys=capsys)
    assert (code, err) == (0, "")
    *lines, last = out.splitlines()
    assert all(line.split()[0] in (OK, NOTE) for line in lines)
    assert last == f"{len(lines)} as recorded, 0 differ, 0 cannot be checked here"


def test_json_is_one_object(shared, capsys):
    flip(shared.paths.csv)
    code, out, _ = asked(shared.folder, "--json", "--no-speed", "--no-accuracy", capsys=capsys)
    checks = json.loads(out)["checks"]
    assert code == 1
    assert [c["what"] for c in checks if c["found"] == DIFFERS] == ["results.csv"]
    assert all(set(check) == {"what", "found", "why"} for check in checks)
    assert not any(check["what"].endswith(" accuracy") for check in checks)


@pytest.mark.parametrize("name", ["nothing", "a-file", "empty"])
def test_no_report_is_an_input_error(tmp_path, capsys, name):
    (tmp_path / "a-file").write_text("x")
    (tmp_path / "empty").mkdir()
    code, out, err = asked(tmp_path / name, capsys=capsys)
    assert code == 2 and out == "" and "no report, expected a folder with results.h5" in err


def test_a_report_of_another_version_is_an_input_error(shared, capsys):
    with h5py.File(shared.paths.merged, "r+") as file:
        file.attrs.modify("format", 99)
    shared.paths.merged.write_bytes(store.sealed(shared.paths.merged.read_bytes()))
    code, _, err = asked(shared.folder, capsys=capsys)
    assert code == 2 and "format 99, this netpress reads 1" in err


# --- what was changed ------------------------------------------------------------------------


def test_results_that_were_changed_are_found(shared):
    flip(shared.paths.merged)
    assert shared.wrong() == {"results.h5": "results.h5: is damaged, its checksum does not match"}


@pytest.mark.parametrize("name", ["csv", "markdown", "page", "yaml"])
def test_a_file_that_was_changed_is_found_and_named(shared, name):
    path = getattr(shared.paths, name)
    text = path.read_text()
    digit = next(c for c in text if c.isdigit())
    path.write_text(text.replace(digit, "7" if digit != "7" else "8", 1))
    assert shared.wrong(accuracy=False) == {path.name: "is not what results.h5 gives"}


def test_a_file_that_is_missing_or_too_many_is_found(shared):
    drawn = shared.paths.drawn_or_set()
    drawn[0].unlink()
    stray = shared.paths.figures / "stray.svg"
    stray.write_text("<svg/>")
    differences = shared.wrong(accuracy=False)
    assert differences == {
        shared.paths.name(drawn[0]): "cannot be read (No such file or directory)",
        "figures/stray.svg": "is not part of this report",
    }


def test_files_that_nobody_listed_are_named(shared):
    """A note, no difference: they may be the user's own."""
    (shared.paths.folder / "run.sh").write_text("rm -rf /")
    (shared.paths.tables / "deep").mkdir()
    (shared.paths.tables / "deep" / "x").symlink_to("/")
    notes = [c.what for c in shared.checks(accuracy=False) if c.outcome == "note"]
    assert notes == ["run.sh", "tables/deep/x"] and not shared.wrong(accuracy=False)


@pytest.mark.parametrize(("kind", "mark"), [(".svg", b"<path"), (".pdf", b"endobj")])
def test_a_figure_of_another_matplotlib_is_not_called_changed(shared, kind, mark):
    path = next(p for p in shared.paths.drawn_or_set() if p.suffix == kind)
    changed = path.read_bytes().replace(mark, mark + b" ", 1)
    path.write_bytes(verify.files.DRAWN_BY.sub(b"Matplotlib v0.1", changed))
    by_what = {check.what: check for check in shared.checks(accuracy=False)}
    assert by_what[shared.paths.name(path)].outcome == UNCHECKED
    assert "drawn by matplotlib 0.1, here is" in by_what[shared.paths.name(path)].why
    path.write_bytes(changed)
    assert shared.wrong(accuracy=False) == {shared.paths.name(path): "is not what results.h5 gives"}


def test_figures_in_the_page_of_another_matplotlib_may_differ_but_its_text_may_not(shared):
    page = shared.paths.page.read_bytes()

    def other(version: bytes) -> bytes:
        def redrawn(picture: re.Match[bytes]) -> bytes:
            drawn = base64.b64decode(picture[0].partition(b",")[2])
            svg = verify.files.DRAWN_BY.sub(version, drawn) + b"\n"
            return b"data:image/svg+xml;base64," + base64.b64encode(svg)

        return verify.files.IN_PAGE.sub(redrawn, page)

    shared.paths.page.write_bytes(other(b"Matplotlib v0.1"))
    by_what = {check.what: check for check in shared.checks(accuracy=False)}
    assert by_what["index.html"].outcome == UNCHECKED
    assert "drawn by matplotlib 0.1, here is" in by_what["index.html"].why
    shared.paths.page.write_bytes(other(b"Matplotlib v0.1").replace(b"</h1>", b"!</h1>", 1))
    assert "index.html" in shared.wrong(accuracy=False)
    shared.paths.page.write_bytes(other(rb"\g<0>"))  # this one's own version drew something else
    assert "index.html" in shared.wrong(accuracy=False)
    cut = verify.files.IN_PAGE.sub(lambda m: m[0][:-3], page)
    shared.paths.page.write_bytes(cut)
    assert "index.html" in shared.wrong(accuracy=False)


def test_a_model_that_was_changed_is_found(shared):
    flip(shared.paths.artifact(shared.small) / "model.onnx")
    ((what, why),) = shared.wrong().items()
    assert shared.small in what and why.startswith("model.onnx was changed")


def test_another_model_with_a_manifest_that_fits_is_found(shared):
    """The artifact vouches for itself; results.h5 has what it was when it was measured."""
    base = shared.paths.artifact(shared.sweep.cells[0].id)
    mine = shared.paths.artifact(shared.small)
    shutil.rmtree(mine)
    shutil.copytree(base, mine)
    artifact.load(mine)
    ((_, why),) = shared.wrong().items()
    assert "manifest.json does not have its" in why


def test_files_added_to_an_artifact_and_strange_ones_are_found(shared):
    (shared.paths.artifact(shared.small) / "more.bin").write_bytes(b"x")
    (shared.paths.artifacts / ("0" * 16)).mkdir()
    (shared.paths.artifacts / "notes.txt").write_text("x")
    differences = shared.wrong()
    assert sorted(differences.values()) == [
        "more.bin is not part of it",
        "results.h5 has no such result",
        "results.h5 has no such result",
    ]


def test_what_is_missing_is_counted_whatever_else_is_there(shared):
    (shared.paths.artifacts / "notes.txt").write_text("x")
    shutil.rmtree(shared.paths.artifact(shared.small))
    [missing] = [c.why for c in shared.checks() if c.what == "artifacts"]
    assert missing.startswith("1 of 2 results have theirs not in this report")


def test_a_link_in_place_of_a_model_is_found(shared):
    model = shared.paths.artifact(shared.small) / "model.onnx"
    model.rename(shared.folder / "elsewhere")
    model.symlink_to(shared.folder / "elsewhere")
    assert len(shared.wrong()) == 1


def test_an_accuracy_that_was_improved_is_found(shared):
    shared.change(lambda cell: put(cell, "measure/accuracy", 0.999))
    differences = shared.wrong(accuracy=False)
    assert set(differences) == {f"{shared.small} accuracy"}
    assert differences[f"{shared.small} accuracy"].startswith(
        "0.999 recorded, its predictions give"
    )


def test_predictions_that_were_improved_with_it_are_found_by_measuring(shared):
    def improve(cell):
        labels, base = (
            measured(cell)[f"measure/{name}"][()] for name in ("labels", "base_predictions")
        )
        put(cell, "measure/predictions", labels)
        base_accuracy = float(numpy.mean(base == labels))
        put(cell, "measure/accuracy", 1.0)
        put(cell, "measure/accuracy_drop", base_accuracy - 1.0)
        put(cell, "measure/agreement", base_accuracy)

    shared.change(improve)
    del MADE[shared.paths.merged.read_bytes()]
    report.rebuild(shared.folder)  # whoever does that makes all files fit
    assert shared.wrong(accuracy=False) == {}
    ((what, why),) = shared.wrong().items()
    assert what.endswith("ptq-int8/0 accuracy") and "100.00% recorded" in why


def test_fewer_bytes_than_there_are_are_found(shared):
    shared.change(lambda cell: put(cell, "measure/stored_bytes", 10))
    differences = shared.wrong(accuracy=False)
    assert [why for what, why in differences.items() if what.endswith("stored_bytes")]


@pytest.mark.parametrize("name", ["parameters", "macs", "subnormals"])
def test_what_is_counted_on_the_network_is_counted_again(shared, name):
    shared.change(lambda cell: put(cell, f"measure/{name}", 10))
    ((what, why),) = shared.wrong(accuracy=False).items()
    assert what.endswith(f"ptq-int8/0 {name}") and why.endswith(" here, 10 recorded")


@pytest.mark.parametrize("name", ["stored_bytes", "runnable_bytes", "parameters", "macs"])
def test_a_larger_base_than_there_is_is_found(shared, name):
    shared.change(lambda cell: put(cell, f"measure/base_{name}", 10**9))
    ((what, why),) = shared.wrong(accuracy=False).items()
    assert what == f"{shared.small} base_{name}"
    assert why.startswith("1000000000 recorded, the base's own is ")


def test_a_base_whose_artifact_was_made_anew_since_may_have_other_bytes(shared):
    def other_base(cell):
        facts = json.loads(measured(cell).attrs["facts"])
        measured(cell).attrs["facts"] = json.dumps({**facts, "base_artifact": "0" * 64})
        put(cell, "measure/base_stored_bytes", 10**9)

    shared.change(other_base)
    [check] = [c for c in shared.checks(accuracy=False) if c.what.endswith("base_stored_bytes")]
    assert check.outcome == UNCHECKED and "another artifact" in check.why


def test_integer_kernels_that_did_not_run_are_found(shared):
    shared.change(lambda cell: put(cell, "measure/integer_share", 0.5))
    differences = shared.wrong(accuracy=False)
    assert list(differences.values()) == ["100.0% of the work here, 50.0% recorded"]


def test_labels_of_another_test_set_are_found(shared):
    def relabel(cell):
        labels = measured(cell)["measure/labels"][()]
        put(cell, "measure/labels", numpy.roll(labels, 1))

    shared.change(relabel)
    assert "its recorded labels are not those of the test set" in shared.wrong().values()


def test_a_model_that_is_slower_than_recorded_is_found(shared):
    """Recorded as faster than its base; here it is four times as large."""
    cell = shared.sweep.cells[1]
    from dataclasses import replace

    from pipeline.models import network

    mine = shared.paths.artifact(cell.id)
    manifest = artifact.load(shared.paths.artifact(cell.base_id)).manifest
    spec = NetworkSpec.from_json(manifest["network"])
    large = replace(spec, channels=tuple(4 * c for c in spec.channels))
    blank = numpy.zeros((1, *spec.shape), numpy.uint8)
    artifact.write(network.new(large, 0), mine, {}, blank, tuple(manifest["classes"]))
    files = {p.name: {"bytes": p.stat().st_size, "sha256": store.sha256(p)} for p in mine.iterdir()}

    def larger(group):
        group.attrs["artifact"] = json.dumps(files)
        for name in ("stored_bytes", "runnable_bytes"):
            put(group, f"measure/{name}", artifact.load(mine).stored_bytes)
        for name, number in zip(("parameters", "macs"), complexity.count(large), strict=True):
            put(group, f"measure/{name}", number)
        put(group, "measure/integer_share", 0.0)
        for threads in ("one", "all"):
            for batch in ("batch1", "batch64"):
                put(group, f"measure/latency/onnxruntime/base/{threads}/{batch}", [9.0] * 10)
                put(group, f"measure/latency/onnxruntime/artifact/{threads}/{batch}", [3.0] * 10)

    shared.change(larger)
    differences = shared.wrong(accuracy=False, speed=True)
    assert len(differences) == 4, differences
    assert all("3.00 recorded" in why for why in differences.values())

    def elsewhere(group):
        facts = json.loads(measured(group).attrs["facts"])
        facts["hardware"] |= {"flags": ["sve"], "cpu": "Other \x1b[31m"}
        measured(group).attrs["facts"] = json.dumps(facts)

    shared.change(elsewhere)
    checks = shared.checks(accuracy=False, speed=True)
    assert not [check for check in checks if check.outcome == DIFFERS]  # it may be slow there
    assert any(r"recorded on Other \x1b[31m" in check.line for check in checks)


# --- what cannot be checked ------------------------------------------------------------------


def test_other_images_than_those_that_were_measured_prove_nothing(shared):
    def other(cell):
        facts = json.loads(cell.attrs["facts"])
        cell.attrs["facts"] = json.dumps(facts | {"dataset_fingerprint": "0" * 64})

    shared.change(other)
    unchecked = [check for check in shared.checks() if check.outcome == UNCHECKED]
    assert len(unchecked) == 1 and "not those that were measured" in unchecked[0].why


def images(folder: Path, random) -> None:
    for part, count in (("train", 20), ("test", 8)):
        for name in ("dark", "light"):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 120, (8, 8)) + (120 if name == "light" else 0)
                Image.fromarray(pixels.astype(numpy.uint8)).save(folder / part / name / f"{i}.png")


def test_images_that_are_not_here_are_named_with_what_brings_them(tmp_path):
    images(tmp_path / "pictures", numpy.random.default_rng(0))
    by_technique = cells.cells(
        tmp_path,
        ["base"],
        datasets=[{"name": "leaves", "folder": "pictures"}],
        training={"epochs": 1, "batch_size": 16},
    )
    work = Work(tmp_path / "work")
    cells.run(by_technique["base"], work)
    sweep = plan.load_sweep(tmp_path / "test.yaml")
    paths, _ = report.build(sweep, work, tmp_path / "reports", 10_000_000)

    def accuracy(data_root):
        cache = tmp_path / "cache"
        return next(
            c
            for c in verify.checks(paths.folder, data_root, cache, speed=False)
            if c.what.endswith("accuracy")
        )

    check = accuracy(tmp_path / "elsewhere")
    assert check.outcome == UNCHECKED
    assert "netpress fetch test.yaml" in check.why and f"{tmp_path}/elsewhere/leaves" in check.why
    shutil.move(tmp_path / "pictures", tmp_path / "elsewhere" / "leaves")
    assert accuracy(tmp_path / "elsewhere").outcome == OK


def test_a_few_predictions_may_differ_on_other_hardware_and_none_on_the_same(shared):
    loaded = artifact.load(shared.paths.artifact(shared.small))
    judge = verify.artifacts._judged
    assert judge(0, 10_000, loaded, "", "") == (OK, "")
    assert judge(1, 10_000, loaded, "", "")[0] == DIFFERS
    assert judge(20, 10_000, loaded, "other flags", "")[0] == OK
    lent = SimpleNamespace(facts={"classified_on": "a board"})
    assert verify.artifacts._lent(lent) == "predicted on a board"  # the times are of another one
    assert verify.artifacts._lent(SimpleNamespace(facts={})) == ""
    same_kind = {"classified_on": "n1", "accuracy_of": "n1-1"}
    assert verify.artifacts._lent(SimpleNamespace(facts=same_kind)) == ""
    assert judge(21, 10_000, loaded, "other flags", "")[0] == DIFFERS
    saturating = SimpleNamespace(unfit=lambda: "8-bit products saturate")
    assert judge(21, 10_000, saturating, "other flags", "")[0] == UNCHECKED
    assert judge(21, 10_000, saturating, "", "")[0] == DIFFERS


# --- artifacts in a report -------------------------------------------------------------------


def there(paths) -> set[str]:
    return {p.name for p in artifacts.present(paths)}


def test_artifacts_up_to_a_size_are_put_there_and_stale_ones_go(shared, tmp_path):
    base, small = (cell.id for cell in shared.sweep.cells)
    size = artifact.load(shared.paths.artifact(small)).stored_bytes

    def built(most):
        return report.build(shared.sweep, shared.work, tmp_path / "r", most)[0]

    paths = built(None)
    assert there(paths) == set() and not paths.artifacts.exists()
    assert there(built(size)) == {small} and there(built(size - 1)) == set()
    assert there(built(10_000_000)) == {base, small}
    assert there(built(None)) == {base, small}  # not requested, but still what they were
    flip(paths.artifact(base) / "model.onnx")
    shutil.copytree(paths.artifact(small), paths.artifacts / ("0" * 16))
    (paths.artifacts / "notes").write_text("x")
    mine = {"0" * 16, "notes"}  # put there by hand: they are nobody else's to take away
    assert there(built(None)) == {small} | mine
    assert there(built(10_000_000)) == {base, small} | mine
    source = shared.work.cell(small).artifact
    for path in source.iterdir():
        assert (paths.artifact(small) / path.name).read_bytes() == path.read_bytes()


def test_the_option_is_in_megabytes(shared, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NETPRESS_WORK", str(shared.work.root))
    sweep = str(shared.work.root.parent / "test.yaml")
    assert main(["report", sweep, "--to", str(tmp_path), "--artifacts", "0.3"]) == 0
    assert there(ReportPaths(tmp_path / "test")) == {shared.small}
    assert main(["report", str(tmp_path / "test")]) == 0
    assert there(ReportPaths(tmp_path / "test")) == {shared.small}
    assert main(["report", str(tmp_path / "test"), "--json"]) == 0
    assert '"rows"' in capsys.readouterr().out
    for option in ("--to", "--artifacts"):
        assert main(["report", str(tmp_path / "test"), option, "1"]) == 2
        assert f"{option} is for a sweep" in capsys.readouterr().err


def test_an_artifact_that_was_changed_in_the_work_root_is_not_shared(shared, bench, tmp_path):
    work = Work(tmp_path / "work")
    shutil.copytree(bench.work.root, work.root)
    flip(work.cell(shared.small).artifact / "model.onnx")
    with pytest.raises(Corrupt, match="SHA-256 is not the one in its manifest"):
        report.build(shared.sweep, work, tmp_path / "r", 10_000_000)
    paths = ReportPaths(tmp_path / "r" / "test")
    assert there(paths) == {shared.sweep.cells[0].id} and paths.page.exists()


def test_what_an_artifact_is_comes_from_results(shared):
    published = merged.read(shared.paths.merged)
    files = published.artifact(shared.small)
    assert set(files) == {"model.onnx", "manifest.json"}
    assert artifacts.differs(shared.paths.artifact(shared.small), files) is None
    assert artifacts.differs(shared.folder / "gone", files) == "is missing"


def test_the_report_that_ships_is_what_this_version_makes_of_its_results():
    paths = ReportPaths(CODE / "reports" / "paper")
    checked = list(verify_files.files(merged.read(paths.merged), paths))
    assert len(checked) > 20
    assert [check.line for check in checked if check.outcome == DIFFERS] == []
