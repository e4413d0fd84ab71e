"""Bases that start from the weights of another base, or of a file: which, when, what comes out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import save_file

from pipeline import catalog, cli, gaps, sweep, trained
from pipeline.errors import UserError
from pipeline.models import network, weights
from pipeline.orchestrate import batch, graph, plan, profile, rehearse, resume, state, submit
from pipeline.paths import Work
from pipeline.report import controls, figures, starts, tuned
from pipeline.report.figures import look
from pipeline.sweep import Cell
from pipeline.sweep.settings import Start
from tests import cells as small_cells
from tests import results, stages, test_folders, tiny_worker

FROM = {**small_cells.MODEL, "weights_from": "digits/vgg11_bn-w0.125/base"}
FROM_ANEW = "vgg11_bn-w0.125"
LABEL = f"{FROM_ANEW}-from-digits"


def load(folder, models, **more) -> sweep.Sweep:
    settings = {
        "name": "test",
        "models": models,
        "datasets": ["digits"],
        "techniques": ["base", "prune-filters"],
        "training": small_cells.TRAINING,
        "measure": small_cells.MEASURE,
    }
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump(settings | more))
    return sweep.load(path, catalog.built_in())


def by_name(loaded: sweep.Sweep) -> dict[str, Cell]:
    return {cell.name: cell for cell in loaded.cells}


# --- which ------------------------------------------------------------------------------------


def test_a_base_starts_from_that_of_its_own_seed_and_comes_after_it(tmp_path):
    """Its id has the other one's in it; what the other one is called decides nothing."""
    loaded = load(tmp_path, [FROM, small_cells.MODEL], datasets=["mnist", "digits"], seeds=[0, 1])
    cells, places = by_name(loaded), [cell.id for cell in loaded.cells]
    for seed in (0, 1):
        base, other = (
            cells[f"mnist/{LABEL}/base/{seed}"],
            cells[f"digits/{FROM['name']}-w0.125/base/{seed}"],
        )
        pruned = cells[f"mnist/{LABEL}/prune-filters/{seed}"]
        assert base.stands_on == other.id and pruned.stands_on == base.id and not other.stands_on
        assert places.index(other.id) < places.index(base.id) < places.index(pruned.id)
        again = Cell.from_json(json.loads(json.dumps(base.to_json())), catalog.built_in())
        assert again == base and again.stands_on == other.id
    plain = load(tmp_path, [small_cells.MODEL], datasets=["mnist", "digits"], seeds=[0, 1])
    assert set(plain.by_id) < set(loaded.by_id) and len(loaded.cells) == 2 * len(plain.cells)


def test_a_base_may_start_from_one_of_a_certain_seed(tmp_path):
    both = {"datasets": ["mnist", "digits"], "seeds": [0, 1]}
    cells = by_name(load(tmp_path, [small_cells.MODEL, FROM], **both))
    other = cells["digits/vgg11_bn-w0.125/base/1"]
    none = [{"dataset": "digits", "model": LABEL}]  # of other images that it would be tested on
    for text, label in ((f"{FROM['weights_from']}/1", LABEL), (other.id, None)):
        models = [small_cells.MODEL, {**FROM, "weights_from": text}]
        apart = none if label else [{**none[0], "model": f"vgg11_bn-w0.125-from-{text}"}]
        loaded = load(tmp_path, models, exclude=apart, **both)
        started = [c for c in loaded.cells if c.is_base and c.stands_on]
        assert {cell.stands_on for cell in started} == {other.id} and len(started) == 2
        assert cells[f"mnist/{LABEL}/base/1"].id in loaded.by_id
        assert label in (None, started[0].model.label)
    fewer = [{"dataset": "mnist", "model": "vgg11_bn-w0.125"}, {"seed": 0, "dataset": "mnist"}]
    by_id = [small_cells.MODEL, {**FROM, "weights_from": other.id}]
    fewer.append({"dataset": "digits", "model": f"vgg11_bn-w0.125-from-{other.id}"})
    kept = load(tmp_path, by_id, exclude=fewer, **both)
    assert not [
        c for c in kept.cells if c.dataset.name == "mnist" and (c.seed == 0 or not c.stands_on)
    ]
    assert other.id in kept.by_id
    twice = {**FROM, "weights_from": f"digits/{LABEL}/base"}
    with pytest.raises(UserError, match="starts from itself"):
        load(tmp_path, [small_cells.MODEL, twice])


def test_a_base_that_is_started_from_is_a_cell_though_nobody_listed_it(tmp_path):
    loaded = load(
        tmp_path,
        [small_cells.MODEL, FROM],
        datasets=["mnist", "digits"],
        techniques=["prune-filters"],
        exclude=[{"dataset": "digits", "technique": "prune-filters"}],
    )
    assert "digits/vgg11_bn-w0.125/base/0" in by_name(loaded)


def test_a_file_is_known_by_its_bytes(tmp_path):
    for name, value in (("a", 1.0), ("b", 2.0), ("c", 1.0)):
        save_file({"x": torch.tensor(value)}, tmp_path / f"{name}.safetensors")
    ids = {
        name: load(tmp_path, [{**FROM, "weights_from": f"{name}.safetensors"}]).cells[0].id
        for name in "abc"
    }
    assert ids["a"] == ids["c"] != ids["b"]
    text = (tmp_path / "test.yaml").read_text()
    [base, _] = load(tmp_path, [{**FROM, "weights_from": "a.safetensors"}]).cells
    assert base.model.label == "vgg11_bn-w0.125-from-a" and base.stands_on is None
    (tmp_path / "c.safetensors").unlink()  # as a job reads it, days later
    known = {str(tmp_path / "c.safetensors"): "0" * 64}
    again = plan.load_again(tmp_path / "test.yaml", text, Work(tmp_path), known)
    assert again.cells[0].model.start.sha256 == "0" * 64


@pytest.mark.parametrize(
    ("source", "more", "problem"),
    [
        ("digits/vgg11_bn-w0.125-from-digits/base", {}, "starts from itself"),
        ("digit/vgg11_bn-w0.125/base", {}, "is no base of this sweep; did you mean"),
        ("digits/vgg11_bn-w0.125/base/7", {}, "is no base of this sweep"),
        ("digits/vgg11_bn-w0.125/prune-filters", {}, "is no base; expected a base"),
        ("digits/vgg11_bn-w0.125/base/x", {}, "'x' is no seed"),
        (f"digits/vgg11_bn-w0.125/base/{'9' * 5000}", {}, "is no seed"),
        (
            "digits/vgg11_bn-w0.125/base/0",
            {"seeds": [0, 1]},
            "was trained on images that seed 1 holds out; expected a base of the same seed",
        ),
        ("digits/resnet20/base", {}, "is a resnet20, whose weights do not fit"),
        ("digits/vgg11_bn/base", {}, "is a vgg11_bn, whose weights do not fit"),
        ("mine", {}, "is neither a cell nor a file; expected"),
        ("0123456789abcdef", {}, "is no base of this sweep"),
        ("mine.safetensors", {}, "mine.safetensors: is not there; expected a file of weights"),
        (7, {}, "weights_from: expected text"),
        (
            "digits/vgg11_bn-w0.125/base",
            {"exclude": [{"dataset": "digits", "model": "vgg11_bn-w0.125"}]},
            "digits/vgg11_bn-w0.125/base/0 is excluded from this sweep",
        ),
    ],
)
def test_what_cannot_be_started_from_is_one_sentence(tmp_path, capsys, source, more, problem):
    models = [small_cells.MODEL, "vgg11_bn", "resnet20", {**FROM, "weights_from": source}]
    with pytest.raises(UserError) as error:
        load(tmp_path, models, datasets=["mnist", "digits"], **more)
    assert "models[3].weights_from: " in str(error.value) and problem in str(error.value)
    assert cli.main(["plan", str(tmp_path / "test.yaml")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_ids_are_of_bases_that_start_from_no_other(tmp_path):
    """Whatever their number, and whatever starts from them."""
    seeds = [*range(300)]
    data = {"datasets": ["mnist", "digits"], "seeds": seeds, "techniques": ["base"]}
    first = load(tmp_path, [small_cells.MODEL], **data).cells[0]
    apart = [{"dataset": "mnist", "model": f"vgg11_bn-w0.125-from-{first.id}"}]
    models = [small_cells.MODEL, {**FROM, "weights_from": first.id}]
    loaded = load(tmp_path, models, exclude=apart, **data)
    assert {c.stands_on for c in loaded.cells if c.stands_on} == {first.id}
    started = next(c for c in loaded.cells if c.stands_on)
    models.append({**FROM, "weights_from": started.id})
    with pytest.raises(UserError, match="is no base of this sweep; expected .* no other, its id"):
        load(tmp_path, models, exclude=apart, **data)


# --- when -------------------------------------------------------------------------------------


@pytest.fixture
def chain(tmp_path) -> tuple[sweep.Sweep, Work]:
    """A base, one that starts from it, and what stands on that, all missing."""
    loaded = load(
        tmp_path,
        [small_cells.MODEL, FROM],
        techniques=["base", "prune-filters"],
        exclude=[{"model": "vgg11_bn-w0.125", "technique": "prune-filters"}],
    )
    return loaded, Work(tmp_path / "work")


def test_jobs_wait_for_the_base_that_theirs_starts_from(chain):
    loaded, work = chain
    first, second, pruned = loaded.cells
    jobs = {job.name: job.depends_on for job in plan.plan(loaded, work, work.root).jobs}
    assert jobs[second.id] == (first.id,) and jobs[pruned.id] == (second.id,)
    request = graph.Request(1, 1)
    for limit, where in ((1001, ["base-0_0", "base-1_0"]), (0, ["base-0", "base-1"])):
        made = graph.arrays(loaded.cells, lambda cell: request, limit)
        assert [array.cells for array in made] == [(first.id,), (second.id,), (pruned.id,)]
        waits = [on for array in made for on in array.after]
        assert [array.kind for array in made] == [None, "aftercorr", "aftercorr"] or waits == where
        assert [array.shares for array in made] == [True, True, False]
    queued = {first.id: graph.Queued(7, 3)}
    made = graph.arrays([second, pruned], lambda cell: request, 1001, queued=queued)
    assert made[0].after[0].startswith("7") and 3 in made[0].tasks
    planned = submit.planned(submit.Target(loaded, work, work.root, profile.load("generic", ())))
    trains = [job for job in planned.jobs if not job.measures][:3]
    assert [job.cells for job in trains] == [(first.id,), (second.id,), (pruned.id,)]
    assert [job.depends_on for job in trains] == [(), (trains[0].name,), (trains[1].name,)]
    assert "--dependency=after" in trains[1].script


def test_states_name_what_a_base_waits_for(chain):
    loaded, work = chain
    first, second, pruned = loaded.cells
    state_reasons = [(s.state, s.reason) for s in state.states(loaded, work)]
    assert state_reasons[1:] == [
        ("waiting", f"its starting base {first.id} is missing"),
        ("waiting", f"its base {second.id} is waiting"),
    ]
    results.fail(first, work, "exception", "ValueError: no")
    state_reasons = [(s.state, s.reason) for s in state.states(loaded, work)]
    assert state_reasons[1][0] == state_reasons[2][0] == "failed"
    assert state_reasons[1][1] == "its starting base failed: exception: ValueError: no"
    assert gaps.reason(second, work) == "its starting base is missing: exception: ValueError: no"
    states = state.find(loaded, work)
    chosen = batch.choose(loaded, states, lambda one: one.cell.id in (second.id, pruned.id))
    assert chosen == []  # nothing makes what they need
    named = resume.Choice(frozenset({pruned.id}), exceptions=False)
    assert [resume._is_base_of(cell, named, states) for cell in loaded.cells] == [True, True, False]
    assert not resume._has_base(second, named, states)


def test_why_is_told_of_what_lies_two_below(chain):
    loaded, work = chain
    results.fail(loaded.cells[0], work, "exception", "ValueError: no")
    line = "its base's start is missing: exception: ValueError: no"
    assert gaps.reason(loaded.cells[2], work) == line


def test_a_trained_base_that_lacks_its_measurement_needs_its_start_no_more(chain):
    loaded, work = chain
    first, second, _ = loaded.cells
    states = state.find(loaded, work)
    kept = tuple(
        replace(s, state="trained", reason=None, trained=True) if s.cell.id == second.id else s
        for s in states.cells
    )
    states = state.SweepState(kept)
    chosen = batch.choose(loaded, states, lambda one: one.cell.id == second.id)
    assert chosen == [second]
    named = resume.Choice(frozenset({loaded.cells[2].id}), exceptions=False)
    assert resume._has_base(second, named, states)
    assert [resume._is_base_of(c, named, states) for c in loaded.cells] == [False, True, False]


def test_images_of_other_channels_are_refused_before_anything_runs(chain, tmp_path):
    from pipeline.orchestrate import local

    loaded, work = chain
    local.require_channels(loaded, loaded.cells, work.root)
    first, second, _ = loaded.cells
    colour = test_folders.own(test_folders.fill(tmp_path / "colour"), size=32)
    loaded = replace(loaded, cells=(first, replace(second, dataset=colour)))
    with pytest.raises(UserError, match="digits/.*/base/0, whose images have 1 channels and its"):
        local.require_channels(loaded, loaded.cells, work.root)


def test_a_rehearsal_starts_from_rehearsed_bases(chain):
    first, second, pruned = rehearse.sliver(chain[0]).cells
    assert second.stands_on == first.id != chain[0].cells[0].id and pruned.stands_on == second.id


def test_local_workers_make_what_a_base_starts_from_before_it(tmp_path, monkeypatch):
    from pipeline.orchestrate import local

    monkeypatch.chdir(tmp_path)
    sweep = results.sweep(techniques=("half",))
    base, half = sweep.cells
    start = Start(source="digits/vgg16_bn/base", label="digits", cell=base.id)
    model = base.model.model_copy(update={"start": start})
    second, third = (replace(cell, model=model) for cell in (base, half))
    sweep = replace(sweep, cells=(third, second, base))  # in whatever order
    for action, code, count in (("fail", 1, 1), ("", 0, 3)):
        work = Work(tmp_path / f"work{code}")
        (tmp_path / "actions").write_text(json.dumps({"base": action} if action else {}))
        (tmp_path / "trace").write_text("")
        command = tiny_worker.command(work, tmp_path / "actions", tmp_path / "trace")
        assert local.run(sweep, work, work.root, device="cpu", workers=2, command=command) == code
        lines = map(json.loads, (tmp_path / "trace").read_text().splitlines())
        begun = [line["cell"] for line in lines if line["what"] == "start"]
        assert begun == [cell.name for cell in (base, second, third)][:count]


# --- what comes out ---------------------------------------------------------------------------


def test_a_base_goes_on_from_the_weights_that_it_is_given(bench, tmp_path):
    """From another base and from a file of the same weights: the same network comes out; what was
    trained so is better than what began anew, and says what it came from."""
    work = bench.work
    loaded = load(tmp_path, [small_cells.MODEL, FROM], techniques=["base"])
    first, second = loaded.cells
    assert first.id == bench.base.id
    small_cells.run(second, work)
    facts = small_cells.result(work.cell(second.id)).facts
    assert facts["weights_from"] == {"source": FROM["weights_from"], "head_anew": False}
    losses = [small_cells.result(work.cell(c.id)).history[0].columns["loss"] for c in loaded.cells]
    assert losses[1][0] < 0.5 * losses[0][0]

    state = stages.base_of(bench)
    save_file(state.network.state_dict(), tmp_path / "mine.safetensors")
    by_file = load(tmp_path, [{**FROM, "weights_from": "mine.safetensors"}], techniques=["base"])
    for cell in (second, by_file.cells[0]):
        parameters = trained.started(network.new(state.spec, 5), cell, work).network.state_dict()
        assert all(torch.equal(parameters[n], t) for n, t in state.network.state_dict().items())
    gone = trained.start_facts(second, Work(tmp_path / "none"), state)
    assert gone == {"weights_from": {"source": FROM["weights_from"]}}  # and the base is kept
    with pytest.raises(trained.NoBase, match=r"its starting base \(digits/.*\) is not there"):
        trained.started(network.new(state.spec, 5), second, Work(tmp_path / "none"))
    save_file({"x": torch.ones(1)}, tmp_path / "mine.safetensors")
    with pytest.raises(UserError, match="changed since the sweep was loaded"):
        trained.started(network.new(state.spec, 5), by_file.cells[0], work)


def test_the_last_layer_is_made_anew_for_other_classes_and_nothing_else_is(bench, tmp_path):
    state = stages.base_of(bench)
    tensors = dict(state.network.module.state_dict())
    fresh = network.new(replace(state.spec, classes=4), 1)
    head = weights.other_head(fresh, tensors)
    assert head and {name.rpartition(".")[0] for name in head} == {head[0].rpartition(".")[0]}
    before = {n: t.clone() for n, t in fresh.network.module.state_dict().items()}
    weights.fill(fresh.network.module, tensors, "mine", "a vgg11_bn", head)
    for name, tensor in fresh.network.module.state_dict().items():
        assert torch.equal(tensor, (before if name in head else tensors)[name])
    wider = network.new(replace(state.spec, shape=(3, 32, 32)), 1)
    assert weights.other_head(wider, tensors) == ()
    with pytest.raises(UserError, match=r"mine: is not of a vgg11_bn: .*weight is \["):
        weights.fill(wider.network.module, tensors, "mine", "a vgg11_bn")
    lacking = {n: t for n, t in tensors.items() if n != next(iter(tensors))}
    with pytest.raises(UserError, match="lacks"):
        weights.fill(network.new(state.spec, 1).network.module, lacking, "mine", "a vgg11_bn")
    assert weights.other_head(fresh, lacking | {head[0]: torch.ones(10)}) == ()


# --- the report -------------------------------------------------------------------------------


def test_a_report_compares_both_kinds_of_base_seed_by_seed(tmp_path):
    """A curve for each, through the base; the table's difference is of the same seeds."""
    fresh = results.sweep(techniques=("half-0.5", "half-0.25"), seeds=(0, 1))
    start = Start(source="mnist/vgg16_bn/base", label="mnist", cell="0" * 16)
    model = fresh.cells[0].model.model_copy(update={"start": start})
    others = tuple(replace(cell, model=model) for cell in fresh.cells if cell.seed < 2)
    compared = replace(fresh, cells=(*fresh.cells, *others))

    def values(cell):
        kept = float(cell.technique.rpartition("-")[2]) if "-" in cell.technique else 1.0
        gain = 0.02 * (2 - kept) + 0.001 * cell.seed if cell.model.start else 0.0
        measured = results.recorded(cell, 1 / kept, channels=1)
        return measured | {"accuracy": 0.9 + 0.05 * kept + gain}

    rows, evidence = results.in_memory(compared, values)
    section = starts.section(compared, rows)
    [table] = section.tables
    assert table.caption == "digits, vgg16_bn-from-mnist"
    shown = {line[0].text: [value.text for value in line[1:]] for line in table.lines}
    assert shown["base"][2:4] == ["95.00", "97.05 \u00b1 0.07"]
    assert shown["half-0.25"][4] == "3.55 \u00b1 0.07"
    assert shown["half-0.25"][5] == "2.91 to 4.19"  # 3.55 -+ 12.706 x 0.0707 / sqrt(2)
    with look.style():
        figure = dict(figures.drawn(rows, evidence, sweep=compared))["pre-training"]
    [axis] = figure.canvas.axes
    drawn = {
        (line.get_linestyle(), tuple(line.get_xdata())): list(line.get_ydata())
        for line in axis.lines
        if len(line.get_xdata()) == 3 and line.get_linestyle() != "None"
    }
    every = sorted(row.parameters for row in rows if row.seed == 0 and not row.anew)
    assert drawn["--", tuple(every)] == pytest.approx([91.25, 92.5, 95])
    assert drawn["-", tuple(every)] == pytest.approx([94.8, 95.55, 97.05])
    assert "half-0.25 91.25 % and 94.80 %" in figure.alt and "n = 2" in figure.caption
    assert "trained and compressed in the same way; means" in figure.caption
    fresh_rows = [row for row in rows if not row.anew]
    assert starts.section(compared, fresh_rows) is None
    assert "pre-training" not in dict(figures.draw(fresh_rows, evidence, sweep=compared))


def test_a_report_says_what_else_differs_between_both_kinds_of_base(tmp_path):
    """Held-out images may choose other settings for each, the recipe has what is for fresh weights
    alone, and all seeds may go back to the same ones; what ignores the base is no comparison."""
    anew = ["base-anew", "scratch-e", "pruned-from-scratch", "student-alone"]
    loaded = load(
        tmp_path,
        [small_cells.MODEL, {**FROM, "weights_from": "digits/vgg11_bn-w0.125/base/0"}],
        datasets=["digits", "mnist"],
        seeds=[0, 1],
        techniques=["base", "prune-filters", "kd", *anew],
        training={"recipe": "fast", "epochs": 2, "mixup": 0.2},
        tune={"all": {"learning_rate_factor": [0.1, 0.5]}},
        exclude=[{"dataset": "digits", "model": LABEL}],
    )

    def values(cell):
        better = "0.1" if cell.model.start else "0.5"
        held_out = 0.95 if cell.technique.endswith(better) else 0.9
        return results.recorded(cell, channels=1) | {"held_out_accuracy": held_out}

    rows, evidence = results.in_memory(loaded, values)
    apart = tuned.set_apart(loaded, rows)
    rows = [row for row in rows if row.id not in apart]
    section = starts.section(loaded, rows)
    [table] = section.tables
    chosen = "prune-filters-0.1 (from fresh weights: prune-filters-0.5)"
    assert [line[0].text for line in table.lines] == ["base", chosen, "kd"]
    about_text = "\n".join(text for [text] in section.about[1:])
    assert "for fresh weights alone (whitening, dirac, bias_rate, mixup) is not part" in about_text
    assert "held-out images chose the settings for each kind of base" in about_text
    assert f"On mnist, {LABEL}, all seeds share one training before" in about_text
    with look.style():
        figure = dict(figures.drawn(rows, evidence, sweep=loaded))["pre-training"]
    assert "other weights without the recipe's whitening, dirac, bias_rate, mixup" in figure.caption
    assert "with settings that held-out images chose for each" in figure.caption


def test_each_seed_may_have_a_training_before_of_its_own(tmp_path):
    """There is no note then. A file is the same for all of them, and so is what two bases that
    differ go back to."""
    save_file({"x": torch.ones(1)}, tmp_path / "mine.safetensors")
    with_file = {**FROM, "weights_from": "mine.safetensors"}
    second = {**FROM, "weights_from": "digits/vgg11_bn-w0.125-from-mine/base"}
    for models, shared in (([FROM], False), ([with_file], True), ([with_file, second], True)):
        loaded = load(tmp_path, [small_cells.MODEL, *models], seeds=[0, 1])
        rows, _ = results.in_memory(loaded, results.measured)
        label = loaded.cells[-1].model.label
        section = starts.section(loaded, [r for r in rows if r.model in (label, FROM_ANEW)])
        notes = [text for [text] in section.about if text.startswith(f"On digits, {label}")]
        assert ["all seeds share one training before" in text for text in notes] == [True] * shared


def test_epochs_before_a_base_count_where_weights_go_on_from_them(tmp_path):
    """What begins anew has none of them, and those before a file are not known."""
    names = ["prune-filters", "scratch-e", "base-longer"]
    both = {"digits": {"name": "digits", "training": {"epochs": 3}}, "mnist": "mnist"}
    loaded = load(
        tmp_path,
        [small_cells.MODEL, FROM],
        datasets=[*both.values()],
        techniques=names,
        training={**small_cells.TRAINING, "epochs": 10},
        exclude=[{"dataset": "digits", "model": LABEL}],
    )
    section = controls.section(loaded, results.in_memory(loaded, results.measured)[0])
    tables = {table.caption: table for table in section.tables}
    for caption, before in ((f"mnist, {LABEL}", 3), (f"mnist, {FROM_ANEW}", 0)):
        shown = {line[1].text: [v.text for v in line[-2:]] for line in tables[caption].lines}
        pruned = str(20 + before)
        assert shown == {"scratch-e": [pruned, "10"], "base-longer": [pruned, pruned]}
    [note] = [text for [text] in section.notes if text.startswith("On ")]
    assert note.startswith(f"On mnist, {LABEL}, bases start") and "3 epochs on digits" in note
    save_file({"x": torch.ones(1)}, tmp_path / "mine.safetensors")
    loaded = load(tmp_path, [{**FROM, "weights_from": "mine.safetensors"}], techniques=names)
    section = controls.section(loaded, results.in_memory(loaded, results.measured)[0])
    assert "lack those before their first weights, which are not known" in section.notes[-1][0]
