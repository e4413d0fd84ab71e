"""Controls: each is what it says, is never the answer, and stands beside what it controls."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import yaml

from pipeline import catalog, data, report, sweep
from pipeline.errors import UserError
from pipeline.models import module_of, network
from pipeline.orchestrate import plan
from pipeline.paths import Work
from pipeline.report import answer, controls, significance
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
        settings = {
            "name": "test",
            "models": ["vgg16_bn"],
            "datasets": ["mnist"],
            "seeds": [*seeds],
            "techniques": [*techniques],
            "training": {"epochs": 10},
        } | more
        path = tmp_path / "test.yaml"
        path.write_text(yaml.safe_dump(settings))
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
    described = {name for name, (line, _) in TECHNIQUES.items() if line.startswith("control: ")}
    assert described == CONTROLS


def test_budgets_are_those_that_they_control():
    """In epochs that the weights at the end have gone through, at every operating point."""
    epochs: dict[str, set[int]] = {}
    for cell in plan.load_sweep("paper").cells:
        if cell.dataset.name == "cifar10":
            epochs.setdefault(cell.family, set()).add(controls.epochs(cell))
    base, pruned, student = {60}, {120}, {60}
    assert epochs["base"] == base and epochs["ptq-int8"] == base
    assert epochs["prune-filters"] == pruned and epochs["prune-random"] == pruned
    assert epochs["pruned-from-scratch"] == epochs["base-longer"] == pruned
    assert epochs["kd"] == epochs["attention-transfer"] == epochs["student-alone"] == student
    assert epochs["qat-int8"] == {72} and epochs["small-and-int8"] == {132}


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
    """Of the study's network, within a few hundredths of what was requested."""
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
    compared = {(pair.technique.technique, pair.control.technique) for pair in pairs(cells, work)}
    assert compared == {
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
    summary, _, rest = text.partition("## Comparison with the study")
    assert "prune-random" not in summary and "base-longer" not in summary
    assert "| prune-random (control) |" in rest and "| base-longer (control) |" in rest
    assert "; the nearest, `ptq-int8`, is 0.40 percentage points below its base." in summary


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


def test_the_same_small_grid_is_for_all_that_fine_tune(asked):
    """The rate of the stage that fine-tunes, of techniques for which the file sets nothing else."""
    names = ["base", "ptq-int8", "qat-int8", "kd", "small-and-int8", "prune-learned", "low-rank"]
    names += ["prune-filters", "prune-random", "distill-few", "base-longer"]
    rates = {"learning_rate_factor": [0.1, 0.5]}
    sweep_ = asked(
        names, tune={"all": rates, "prune-filters": {"prune.parameters_kept": [0.5, 0.2]}}
    )
    tuned = {cell.family for cell in sweep_.cells if cell.technique in sweep_.tuned}
    assert tuned == {*names} - {"base", "ptq-int8", "kd", "distill-few"}
    cells = {cell.technique: cell for cell in sweep_.cells}
    stages = cells["small-and-int8-0.1"].stages
    assert [getattr(s.settings, "learning_rate_factor", None) for s in stages] == [None, 0.1, 0.02]
    assert cells["prune-learned-0.1"].stages[0].settings.learning_rate_factor == 0.1
    assert cells["prune-filters-0.2"].stages[1].settings.learning_rate_factor == 0.5
    own = "finetune.learning_rate_factor"
    by_grid = asked(
        ["prune-filters", "prune-random"], tune={"all": rates}, grid={"prune-filters": {own: [0.3]}}
    )
    assert set(by_grid.tuned.values()) == {"prune-random"}
    for wrong, problem in (
        ({own: [0.1]}, r"tune\.all: expected `learning_rate_factor: \[values\]`"),
        ({"learning_rate_factor": []}, "expected a list of values"),
        ({"learning_rate_factor": [0.1, -1]}, r"tune\.all\.learning_rate_factor\[1\]: -1 is out"),
        ({"learning_rate_factor": [0.1, 0.1]}, "stands here twice"),
    ):
        with pytest.raises(UserError, match=problem):
            asked(["prune-filters"], tune={"all": wrong})
    with pytest.raises(UserError, match="no technique here goes on training"):
        asked(["kd", "ptq-int8"], tune={"all": rates})


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
        recorded = results.measured(cell, 4.0, drop.get(cell.technique, 0.002))
        known = held_out.get(cell.technique)
        return recorded | ({} if known is None else {"held_out_accuracy": known - 0.01 * cell.seed})

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
    assert tuned.chosen(sweep_, unmeasured) == {} and not tuned.set_apart(sweep_, unmeasured)
    apart = {row.technique for row in rows if row.id in tuned.set_apart(sweep_, rows)}
    assert apart == {"prune-filters-0.5"}


def test_what_was_not_chosen_is_in_one_table_and_in_the_list_of_cells(tmp_path):
    """Also after the report was built again from its results alone."""
    file = tmp_path / "tuned.yaml"
    file.write_text(
        "name: tuned\nmodels: [vgg16_bn]\ndatasets: [digits]\nseeds: [0, 1]\n"
        "techniques: [base, prune-filters, prune-random]\n"
        "tune: {all: {learning_rate_factor: [0.1, 0.5]}}\n"
    )
    sweep_, work = plan.load_sweep(file), Work(tmp_path / "work")
    for cell in sweep_.cells:
        recorded = results.recorded(cell, 4.0, 0.001 if cell.technique.endswith("0.5") else 0.05)
        held_out = {"held_out_accuracy": 0.8 if cell.technique.endswith("0.5") else 0.9}
        results.publish(cell, work, recorded | held_out)
    paths, frames = report.build(sweep_, work, tmp_path / "reports")
    text = paths.markdown.read_text()
    parts = {part.partition("\n")[0]: part for part in text.split("\n## ")}
    own = "Settings chosen on held-out images"
    assert "| prune-filters-0.5 | prune-filters |  | 2 |" in parts[own]
    for name, part in parts.items():
        if name not in (own, "Provenance"):
            assert "prune-filters-0.5" not in part and "prune-random-0.5" not in part, name
    assert "prune-filters-0.1" in parts["Results"] and "10 of 10 cells have a result" in text
    assert "prune-filters-0.1, the one technique" in parts["Techniques and their controls"]
    page = paths.page.read_text()
    assert page.count("digits/vgg16_bn/prune-filters-0.5/0") == 1  # in the list of all cells
    assert len(report.as_json(frames)["rows"]) == paths.csv.read_text().count("\n") - 1 == 10
    before = {path: path.read_bytes() for path in paths.folder.rglob("*") if path.is_file()}
    report.rebuild(paths.folder)
    assert {path: path.read_bytes() for path in before} == before


# --- whether a difference is noise -----------------------------------------------------------


def test_intervals_are_those_of_students_t():
    from scipy import stats  # scikit-learn comes with it

    for degrees in (1, 2, 3, 4, 7, 30):
        for probability in (0.6, 0.975, 0.999):
            expected = stats.t.ppf(probability, degrees)
            assert significance.t_quantile(probability, degrees) == pytest.approx(expected)
    values = [0.012, -0.003, 0.008, 0.001]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    interval = significance.interval(values)
    assert (
        (interval.low, interval.high) == pytest.approx((low, high))
        and interval.is_noise
        and interval.n == 4
    )
    assert significance.interval([0.1]) is None and significance.interval([0.1, None]) is None


def test_a_sentence_says_whether_the_best_pruning_differs_from_chance(tmp_path):
    """Which one is best is what held-out images say, not the test set."""
    file = tmp_path / "chance.yaml"
    file.write_text(
        "name: chance\nmodels: [vgg16_bn]\ndatasets: [mnist]\nseeds: [0, 1, 2]\n"
        "techniques: [base, prune-filters, prune-taylor, prune-random, kd, dkd, distill-staged]\n"
    )
    sweep_ = plan.load_sweep(file)

    def said(taylor, dkd=(0.01, 0.01, 0.013), lost=None, seeds=(0, 1, 2)):
        gains = {"prune-taylor": taylor, "prune-filters": (0.03, 0.03, 0.03), "dkd": dkd}

        def values(cell):
            drop = 0.05 - gains.get(cell.technique, (0, 0, 0))[cell.seed]
            held_out = 0.95 if cell.technique == "prune-taylor" else 0.9
            measured = results.measured(cell, 4.0, drop) | {"held_out_accuracy": held_out}
            return measured | ({"accuracy": None} if (cell.technique, cell.seed) == lost else {})

        rows = [row for row in results.in_memory(sweep_, values)[0] if row.seed in seeds]
        return [sentence for [sentence] in controls.section(sweep_, rows).about[1:]]

    chance, dkd, staged = said((0.01, 0.011, 0.012))
    assert "prune-taylor, the best of 2 techniques at the operating point of prune-random" in chance
    # t of 1 - 0.05/2/2 at 2 degrees is 6.205, and the deviation 0.1: 1.1 -+ 0.358
    assert (
        " by held-out images, is 1.10 points (97.5 % interval 0.74 to 1.46 points, n = 3)" in chance
    )
    assert "so it is better than chance. The interval's level is 1 \u2212 0.05/2" in chance
    assert "dkd is 1.10 points" in dkd and "above kd: above it by more than one standard" in dkd
    assert "distill-staged is 0.00 points" in staged and "kd: not above it by more" in staged
    noise = said((0.01, -0.01, 0.012), dkd=(-0.01, 0.02, 0.0))
    assert "so it does not differ from chance by more than noise." in noise[0]
    assert "not above it by more" in noise[1]
    lost = said((0.01, 0.011, 0.012), lost=("prune-random", 1))[0]
    assert "has 3 seeds in common with it, of which 1 lacks an accuracy: whether" in lost
    assert "has one seed in common with it: whether" in said((0.01, 0, 0), seeds=(0,))[0]


def test_refined_distillation_is_compared_at_its_operating_point_and_says_its_epochs(asked):
    widths = [0.5, 0.25]
    sweep_ = asked(
        ["kd", "dkd", "kd-consistent", "prune-filters", "prune-random"],
        seeds=(0, 1),
        grid={"kd": {"distill.width": widths}, "dkd": {"dkd.width": widths}},
    )
    rows = results.in_memory(sweep_, results.measured)[0]
    pairs = [(p.technique.technique, p.plain.technique) for p in controls.refined(sweep_, rows)]
    assert pairs == [("dkd-0.5", "kd-0.5"), ("dkd-0.25", "kd-0.25"), ("kd-consistent", "kd-0.5")]
    sentences = [sentence for [sentence] in controls.section(sweep_, rows).about[-3:]]
    assert "epochs" not in sentences[0] + sentences[1]
    assert "kd-consistent, trained for 30 epochs, is 0.00 points" in sentences[2]
    assert ") above kd-0.5, trained for 10: not above it" in sentences[2]
