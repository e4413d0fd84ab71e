"""Controls: each is what it says, is never the answer, and stands beside what it controls."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import yaml

from pipeline import catalog, data, report, sweep
from pipeline.models import module_of, network
from pipeline.orchestrate import plan
from pipeline.paths import Work
from pipeline.report import answer, controls
from pipeline.sweep import Dataset, Recipe
from pipeline.techniques import CONTROLS, TECHNIQUES, prune, stage_epochs
from pipeline.training import loop
from tests import results

SPEC = module_of("vgg11_bn").spec("vgg11_bn", 0.125, (1, 32, 32), 10, 128, 0.02)
KEPT = [0.5, 0.25, 0.125, 0.0625]


@pytest.fixture
def asked(tmp_path):
    """A sweep through a file as a user writes it."""

    def asked(techniques, seeds=(0,), **more):
        said = {
            "name": "test",
            "models": ["vgg16_bn"],
            "datasets": ["mnist"],
            "seeds": [*seeds],
            "techniques": [*techniques],
            "training": {"epochs": 10},
        } | more
        path = tmp_path / "test.yaml"
        path.write_text(yaml.safe_dump(said))
        return sweep.load(path, catalog.built_in())

    return asked


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path / "work")


def publish(cells, work, drops):
    """Every cell, `drops[family]` below its base and four times smaller."""
    for cell in cells:
        drop = drops.get(cell.family, 0.002)
        results.publish(cell, work, results.measured(cell, 4.0, drop + 0.001 * cell.seed))


# --- what they are ---------------------------------------------------------------------------


def test_one_place_says_what_controls_are_and_their_descriptions_agree():
    said = {name for name, (line, _) in TECHNIQUES.items() if line.startswith("control: ")}
    assert said == CONTROLS


def test_budgets_are_those_that_they_control():
    """In epochs that the weights at the end have gone through, at every operating point."""
    found: dict[str, set[int]] = {}
    for cell in plan.load_sweep("paper").cells:
        if cell.dataset.name == "cifar10":
            found.setdefault(cell.family, set()).add(controls.epochs(cell))
    base, pruned, student = {60}, {120}, {60}
    assert found["base"] == base and found["ptq-int8"] == base
    assert found["prune-filters"] == pruned and found["prune-random"] == pruned
    assert found["pruned-from-scratch"] == found["base-longer"] == pruned
    assert found["kd"] == found["attention-transfer"] == found["student-alone"] == student
    assert found["qat-int8"] == {72} and found["small-and-int8"] == {132}


def test_controls_are_trained_as_what_they_control(asked):
    """The same recipe in every cell; from fresh weights at the base's rate, as the student is."""
    cells = {cell.technique: cell for cell in asked(TECHNIQUES).cells}
    assert len({cell.recipe for cell in cells.values()}) == 1
    rates = {
        name: [
            stage.settings.learning_rate_factor
            for stage in cell.stages
            if stage_epochs(stage.settings, cell.recipe)
        ]
        for name, cell in cells.items()
    }
    assert rates["prune-random"] == rates["prune-filters"] == rates["base-longer"] == [0.5]
    assert rates["student-alone"] == rates["kd"] == rates["pruned-from-scratch"] == [1.0]


@pytest.mark.parametrize("kept", KEPT)
def test_random_pruning_keeps_as_much_as_pruning_by_weight(kept):
    """Of the study's network, within a few hundredths of what was asked for."""
    base = network.new(module_of("vgg16_bn").spec("vgg16_bn", 1.0, (3, 32, 32), 10, 128, 0.02), 0)
    counts = {}
    for criterion in ("l1", "random"):
        settings = prune.Settings(parameters_kept=kept, criterion=criterion)
        given = SimpleNamespace(base=lambda: base, seed=5)
        counts[criterion] = network.parameter_count(prune.apply(base, settings, given).spec)
    target = kept * network.parameter_count(base.spec)
    assert 0.96 * target < min(counts.values()) <= max(counts.values()) <= target


# --- what they are compared with -------------------------------------------------------------


def pairs(sweep_, work):
    rows = report.read(sweep_, work).rows
    return list(controls.compared(sweep_, rows))


def test_each_stands_beside_what_has_its_operating_point(asked, work):
    grid = {
        "prune-filters": {"prune.parameters_kept": [0.5, 0.25]},
        "prune-random": {"prune.parameters_kept": [0.25, 0.125]},
        "kd": {"distill.width": [0.5, 0.25]},
    }
    define = {"mine": [{"prune": {"parameters_kept": 0.25, "criterion": "random"}}, "finetune"]}
    define["mine"][0]["prune"]["scope"] = "layer"
    names = [
        "prune-filters",
        "prune-random",
        "kd",
        "student-alone",
        "base-longer",
        "ptq-int8",
        "qat-int8",
        "deep-compression",
        "sparse-random",
        "mine",
    ]
    cells = asked(names, grid=grid, define=define)
    publish(cells.cells, work, {})
    found = {(pair.technique.technique, pair.control.technique) for pair in pairs(cells, work)}
    assert found == {
        ("prune-filters-0.25", "prune-random-0.25"),
        ("mine", "prune-random-0.25"),
        ("kd-0.5", "student-alone"),
        ("prune-filters-0.5", "base-longer"),
        ("prune-filters-0.25", "base-longer"),
        ("mine", "base-longer"),
        ("qat-int8", "base-longer"),
        ("deep-compression", "sparse-random"),
        ("deep-compression", "base-longer"),
    }


def test_pruning_in_steps_has_the_operating_point_of_its_last(asked):
    define = {"steps": [{"prune": {"parameters_kept": 0.25, "steps": 3}}, "finetune"]}
    cells = {cell.technique: cell for cell in asked(["steps", "prune-random"], define=define).cells}
    assert controls.belong(cells["steps"], cells["prune-random"])
    assert controls.epochs(cells["steps"]) == 10 + 2 * 1 + 10


def test_differences_are_of_the_same_seed_and_others_are_left_out(asked, work):
    cells = asked(["kd", "student-alone"], seeds=(0, 1, 2, 3))
    accuracy = {
        ("kd", 0): 0.96,
        ("kd", 1): 0.95,
        ("kd", 3): 0.99,
        ("student-alone", 0): 0.95,
        ("student-alone", 1): 0.92,
        ("student-alone", 2): 0.5,
    }
    for cell in cells.cells:
        value = accuracy.get((cell.technique, cell.seed), 0.99)
        if cell.is_base or (cell.technique, cell.seed) in accuracy:
            results.publish(cell, work, results.measured(cell, accuracy=value))
    [pair] = pairs(cells, work)
    assert pair.differences == pytest.approx([0.01, 0.03])
    [table] = controls.section(cells, report.read(cells, work).rows).tables
    [line] = [[value.text for value in line] for line in table.lines]
    assert line[:6] == ["kd", "student-alone", "2", "95.50 ± 0.71", "93.50 ± 2.12", "2.00 ± 1.41"]
    assert line[-2:] == ["10", "10"]


def test_what_was_not_measured_is_no_difference(asked, work):
    cells = asked(["kd", "student-alone"])
    for cell in cells.cells:
        results.publish(cell, work, results.measured(cell, accuracy=float("nan")))
    [table] = controls.section(cells, report.read(cells, work).rows).tables
    assert [value.text for value in table.lines[0]][3:6] == ["", "", ""]


def test_without_controls_there_is_no_such_section(asked, work):
    cells = asked(["ptq-int8", "prune-filters"])
    publish(cells.cells, work, {})
    assert controls.section(cells, report.read(cells, work).rows) is None
    assert "control" not in results.markdown(cells, work).partition("## Provenance")[0]


# --- never the answer ------------------------------------------------------------------------


def test_a_control_is_never_the_answer(asked, work):
    cells = asked(["prune-random", "base-longer", "ptq-int8"])
    publish(cells.cells, work, {"prune-random": 0.0, "base-longer": -0.01, "ptq-int8": 0.004})
    rows = report.read(cells, work).rows
    assert answer.smallest(rows).technique == answer.fastest(rows).technique == "ptq-int8"
    assert answer.smallest(rows, 0.0).is_base and report.best(rows).technique == "ptq-int8"
    text = results.markdown(cells, work)
    said, _, rest = text.partition("## Comparison with the study")
    assert "prune-random" not in said and "base-longer" not in said
    assert "| prune-random (control) |" in rest and "| base-longer (control) |" in rest
    assert "; the nearest, `ptq-int8`, is 0.40 percentage points below its base." in said


def test_a_technique_of_ones_own_is_no_control(asked, work):
    mine = [{"prune": {"parameters_kept": 0.25, "criterion": "random"}}]
    cells = asked(["mine"], define={"mine": mine})
    publish(cells.cells, work, {"mine": 0.0})
    assert answer.smallest(report.read(cells, work).rows, 0.0).technique == "mine"


# --- seeds -----------------------------------------------------------------------------------


def test_a_seed_decides_everything_that_is_random(tmp_path):
    """First weights, held-out images, order and augmentation, sample for calibration, pruning."""
    split, base = {}, network.new(SPEC, 0)
    for seed in (1, 2):
        split[seed] = data.load(Dataset(name="digits"), Recipe(), seed, tmp_path, tmp_path / "c")

    def drawn(seed: int) -> dict[str, torch.Tensor]:
        settings = prune.Settings(parameters_kept=0.5, criterion="random")
        pruned = prune.apply(base, settings, SimpleNamespace(base=lambda: base, seed=seed))
        generator = loop.seeded(torch.device("cpu"), seed, 0)
        batches = data.batches(split[1].train, 64, generator, crop=2, flip=False, fill=0)
        return {
            "weights": next(iter(network.new(SPEC, seed).network.state_dict().values())),
            "held out": split[seed].held_out.pixels,
            "order": next(iter(batches))[0],
            "calibration": data.sample(split[1].train, 64, seed).pixels,
            "pruned": pruned.network.module.state_dict()["head.weight"],
        }

    first, again, other = drawn(1), drawn(1), drawn(2)
    for name, values in first.items():
        assert torch.equal(values, again[name]), name
        assert values.shape != other[name].shape or not torch.equal(values, other[name]), name


# --- settings chosen on held-out images ------------------------------------------------------


def test_held_out_images_choose_among_candidates_and_the_test_set_does_not(tmp_path):
    from pipeline.report import tuned

    file = tmp_path / "tuned.yaml"
    file.write_text(
        "name: tuned\nmodels: [vgg16_bn]\ndatasets: [mnist]\nseeds: [0, 1]\n"
        "techniques: [base, prune-filters, prune-random]\n"
        "tune: {prune-filters: {finetune.learning_rate_factor: [0.1, 0.5]}}\n"
    )
    sweep_ = plan.load_sweep(file)
    held_out = {"prune-filters-0.1": 0.9, "prune-filters-0.5": 0.8}
    drop = {"prune-filters-0.1": 0.05, "prune-filters-0.5": 0.01}

    def values(cell):
        found = results.measured(cell, 4.0, drop.get(cell.technique, 0.002))
        known = held_out.get(cell.technique)
        return found | ({} if known is None else {"held_out_accuracy": known - 0.01 * cell.seed})

    rows = results.in_memory(sweep_, values)[0]
    assert tuned.chosen(sweep_, rows) == {"prune-filters": "prune-filters-0.1"}
    section = tuned.section(sweep_, rows)
    lines = [[value.text for value in line] for line in section.tables[0].lines]
    assert [line[:4] for line in lines] == [
        ["prune-filters-0.1", "prune-filters", "chosen", "2"],
        ["prune-filters-0.5", "prune-filters", "", "2"],
    ]
    assert lines[0][4].startswith("89.50")
    unmeasured = results.in_memory(sweep_)[0]
    assert tuned.chosen(sweep_, unmeasured) == {}
