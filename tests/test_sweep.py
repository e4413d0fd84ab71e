"""Sweep files: what they become, and the one sentence for everything that is wrong with them."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from pipeline import strict_yaml, sweep
from pipeline.catalog import Catalog
from pipeline.errors import UserError
from pipeline.sweep import Cell, Core, Dataset, Frozen, Measure, Model, Recipe, Stage
from pipeline.sweep.file import SweepFile
from tests import cost


class Prune(Frozen):
    criterion: Literal["l1", "l2"] = "l1"
    parameters_kept: float = Field(0.25, gt=0, le=1)
    steps: int = Field(1, ge=1)


class Finetune(Frozen):
    epochs: int | None = Field(None, ge=1)
    teacher: Literal["base"] | None = None


class Quantize(Frozen):
    aware: bool = False
    bits: tuple[int, ...] = (8, 8)


def in_steps(settings: Prune) -> list:
    once = settings.model_copy(update={"steps": 1})
    return [("prune", once), ("finetune", {"epochs": 1})] * (settings.steps - 1) + [("prune", once)]


CATALOG = Catalog(
    models={"vgg16_bn": "", "vgg11": ""},
    datasets={"mnist": "", "cifar10": "", "cifar10-jpeg": ""},
    stages={"prune": Prune, "finetune": Finetune, "quantize": Quantize},
    techniques={
        "base": (),
        "ptq-int8": ({"quantize": {}},),
        "prune-filters": ({"prune": {}}, {"finetune": {}}),
    },
    expanders={"prune": in_steps},
    folders=frozenset({"cifar10-jpeg"}),
)
HEAD = """\
name: mine
models: [vgg16_bn]
datasets: [mnist]
techniques: [base, ptq-int8, prune-filters]
"""
GRID = "grid: {prune-filters: "


@pytest.fixture
def load(tmp_path):
    def load(text: str | bytes) -> sweep.Sweep:
        path = tmp_path / "sweep.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return sweep.load(path, CATALOG)

    return load


def names(loaded: sweep.Sweep) -> list[str]:
    return [cell.name for cell in loaded.cells]


# --- what a sweep file becomes ---------------------------------------------------------------


def test_the_matrix_has_bases_first_and_every_default(load):
    loaded = load(HEAD + "seeds: [0, 1]\n")
    assert names(loaded) == [
        "mnist/vgg16_bn/base/0",
        "mnist/vgg16_bn/base/1",
        "mnist/vgg16_bn/ptq-int8/0",
        "mnist/vgg16_bn/prune-filters/0",
        "mnist/vgg16_bn/ptq-int8/1",
        "mnist/vgg16_bn/prune-filters/1",
    ]
    assert loaded.name == "mine" and loaded.notes == () and loaded.profile is None
    pruned = loaded.cells[3]
    assert pruned.stages == (Stage("prune", Prune()), Stage("finetune", Finetune()))
    assert pruned.recipe == Recipe() and pruned.measure == Measure()
    assert pruned.base_id == loaded.cells[0].id == loaded.cells[0].base_id != pruned.id
    assert loaded.by_id[pruned.id] is pruned


def test_seeds_default_to_one(load):
    assert {cell.seed for cell in load(HEAD).cells} == {0}


def test_a_data_set_may_be_trained_on_differently(load):
    ours = "[{name: mnist, training: {epochs: 3, crop: 2}}, cifar10]"
    loaded = load(HEAD.replace("[mnist]", ours) + "training: {epochs: 9, batch_size: 64}\n")
    recipes = {cell.dataset.name: cell.recipe for cell in loaded.cells}
    assert recipes == {
        "mnist": Recipe(epochs=3, crop=2, batch_size=64),
        "cifar10": Recipe(epochs=9, batch_size=64),
    }
    same = load(HEAD + "training: {epochs: 3, crop: 2, batch_size: 64}\n")
    assert loaded.by_id.keys() > same.by_id.keys()  # it is no part of the data set, nor of the id


@pytest.mark.parametrize(
    ("training", "problem"),
    [
        ("{epoch: 3}", "datasets[0].training.epoch: unknown key; did you mean 'epochs'?"),
        ("{epochs: 0}", "datasets[0].training.epochs: 0 is out of range"),
        ("3", "datasets[0].training: expected a mapping"),
    ],
)
def test_what_is_wrong_with_the_training_on_a_data_set_is_told(load, training, problem):
    with pytest.raises(UserError) as error:
        load(HEAD.replace("[mnist]", f"[{{name: mnist, training: {training}}}]"))
    assert ":3: " in str(error.value) and problem in str(error.value)


def test_settings_reach_the_cells(load):
    loaded = load(
        HEAD.replace("[vgg16_bn]", "[{name: vgg16_bn, width: 0.25}, vgg11]")
        + "training: {epochs: 3, learning_rate: 1e-3, compile: on, flip: false}\n"
        + "measure: {repeats: 7}\nprofile: sol\npack: {minutes: 60}\n"
    )
    assert {cell.model.label for cell in loaded.cells} == {"vgg16_bn-w0.25", "vgg11"}
    recipe = loaded.cells[0].recipe
    assert (recipe.epochs, recipe.learning_rate, recipe.compile) == (3, 0.001, "on")
    assert recipe.flip is False and loaded.cells[0].measure.repeats == 7
    assert loaded.profile == "sol" and loaded.pack.minutes == 60


def test_a_base_that_nobody_listed_is_still_a_cell(load):
    loaded = load(HEAD.replace("base, ", ""))
    assert names(loaded)[0] == "mnist/vgg16_bn/base/0" and len(loaded.cells) == 3


def test_exclude_leaves_cells_out(load):
    text = HEAD.replace("[mnist]", "[mnist, cifar10]") + "seeds: [0, 1]\n"
    loaded = load(text + "exclude: [{dataset: mnist, technique: ptq-int8}, {seed: 1}]\n")
    assert names(loaded) == [
        "mnist/vgg16_bn/base/0",
        "cifar10/vgg16_bn/base/0",
        "mnist/vgg16_bn/prune-filters/0",
        "cifar10/vgg16_bn/ptq-int8/0",
        "cifar10/vgg16_bn/prune-filters/0",
    ]


def test_excluding_all_techniques_of_a_base_that_is_not_asked_for_drops_it(load):
    text = HEAD.replace("base, ", "").replace("[mnist]", "[mnist, cifar10]")
    loaded = load(text + "exclude: [{dataset: mnist}]\n")
    assert {cell.dataset.name for cell in loaded.cells} == {"cifar10"}


def test_define_makes_a_technique(load):
    loaded = load(
        HEAD.replace("base,", "tiny,")
        + "define:\n  tiny:\n  - prune: {parameters_kept: 0.18}\n  - finetune\n  - quantize:\n"
    )
    tiny = loaded.cells[1]
    assert [stage.name for stage in tiny.stages] == ["prune", "finetune", "quantize"]
    assert tiny.stages[0].settings.parameters_kept == 0.18 and tiny.family == "tiny"


def test_a_definition_that_no_cell_uses_is_noted(load):
    [note] = load(HEAD + "define: {tiny: [finetune]}\n").notes
    assert note.endswith(
        "sweep.yaml:5: define.tiny: defined, but no cell uses it; name it in `techniques` as well"
    )


def test_a_stage_that_stands_for_several_becomes_them(load):
    text = HEAD.replace("base,", "slow,") + "define: {slow: [prune: {steps: 3}]}\n"
    stages = load(text).cells[1].stages
    assert [s.name for s in stages] == ["prune", "finetune", "prune", "finetune", "prune"]
    assert stages[1].settings == Finetune(epochs=1)


def test_tune_makes_candidates_of_each_operating_point(load):
    grid = "grid: {prune-filters: {prune.parameters_kept: [0.5, 0.25]}}\n"
    tune = "tune: {prune-filters: {finetune.epochs: [1, 2]}}\n"
    loaded = load(HEAD + grid + tune)
    mine = [c for c in loaded.cells if c.family == "prune-filters"]
    assert {c.technique for c in mine} == set(loaded.tuned)
    assert list(loaded.tuned.items())[:2] == [
        ("prune-filters-0.5-1", "prune-filters-0.5"),
        ("prune-filters-0.5-2", "prune-filters-0.5"),
    ]
    assert [c.stages[1].settings.epochs for c in mine[:2]] == [1, 2]
    same = "grid: {prune-filters: {finetune.epochs: [1, 2]}}\n"
    assert {c.id for c in load(HEAD + same).cells} == {
        c.id for c in load(HEAD + same.replace("grid", "tune")).cells
    }
    with pytest.raises(UserError, match=r"tune\.prune-filters\.finetune.*: is in `grid`, too"):
        load(HEAD + same + tune)
    with pytest.raises(UserError, match=r"tune\.prune-filters: expected `stage\.setting"):
        load(HEAD + "tune: {prune-filters: {}}\n")


def test_grid_makes_operating_points(load):
    loaded = load(HEAD + GRID + "{prune.parameters_kept: [0.5, 0.25], finetune.epochs: [1, 2]}}")
    points = [cell for cell in loaded.cells if cell.family == "prune-filters"]
    assert [cell.technique for cell in points] == [
        "prune-filters-0.5-1",
        "prune-filters-0.5-2",
        "prune-filters-0.25-1",
        "prune-filters-0.25-2",
    ]
    assert points[1].stages[0].settings.parameters_kept == 0.5
    assert points[1].stages[1].settings.epochs == 2
    assert len({cell.id for cell in points}) == 4


def test_what_exclude_costs_grows_with_its_entries_not_with_their_square(load):
    def cpu_s(entries):
        text = f"{HEAD}seeds: {list(range(2 * entries))}\nexclude:\n"
        text += "".join(f"- {{seed: {i}, technique: ptq-int8}}\n" for i in range(entries))
        return cost.cpu_s(lambda: load(text))

    assert cost.growth(cpu_s, 500, rounds=2) < cost.MOST_GROWTH


def test_the_first_entry_that_excludes_a_base_is_named(load):
    some = "exclude: [{seed: 1}, {technique: base, seed: 0}, {technique: base}]\n"
    with pytest.raises(UserError, match=r"exclude\[1\]: excludes the base"):
        load(HEAD + "seeds: [0, 1]\n" + some)


def test_a_page_of_unknown_keys_is_one_sentence_with_the_first_three(load):
    with pytest.raises(UserError) as error:
        load(HEAD + "".join(f"key{i}: 1\n" for i in range(50)))
    sentence = str(error.value)
    assert "key0: as well as 'key1', 'key2' and 47 more: unknown key; " in sentence
    assert len(sentence) < 400 and len(sentence.splitlines()) == 1


def test_overrides_change_the_training_of_a_model_on_a_data_set(load):
    text = """name: sweep
models: [vgg16_bn, {name: vgg16_bn, width: 0.5}, vgg11]
datasets: [mnist, {name: cifar10-jpeg, training: {epochs: 9, crop: 2}}]
techniques: [base, ptq-int8]
training: {epochs: 3, learning_rate: 0.2}
"""
    overrides = """overrides:
  - {model: vgg16_bn, training: {learning_rate: 0.1, momentum: 0.8}}
  - {dataset: cifar10-jpeg, model: [vgg16_bn-w1, vgg11], training: {recipe: fast, batch_size: 32}}
"""
    plain, loaded = load(text), load(text + overrides)
    trained = {
        (cell.dataset.name, cell.model.label, cell.technique): cell.recipe for cell in loaded.cells
    }
    full = trained["mnist", "vgg16_bn", "base"]
    assert (full.epochs, full.learning_rate, full.momentum, full.crop) == (3, 0.1, 0.8, 4)
    half = trained["cifar10-jpeg", "vgg16_bn-w0.5", "ptq-int8"]
    assert (half.epochs, half.learning_rate, half.momentum, half.crop) == (9, 0.1, 0.8, 2)
    fast = trained["cifar10-jpeg", "vgg16_bn", "ptq-int8"]
    assert (fast.epochs, fast.learning_rate, fast.momentum, fast.crop) == (8, 0.2, 0.8, 2)
    assert (fast.batch_size, fast.dirac) == (32, True)
    assert trained["cifar10-jpeg", "vgg11", "base"].momentum == 0.9
    same = {cell.id for cell in plain.cells} & {cell.id for cell in loaded.cells}
    assert same == {
        cell.id
        for cell in loaded.cells
        if (cell.dataset.name, cell.model.label) == ("mnist", "vgg11")
    }


def test_overrides_give_the_ids_of_a_sweep_that_says_the_same_of_all(load):
    text = "name: sweep\nmodels: [vgg16_bn]\ndatasets: [mnist]\ntechniques: [ptq-int8]\n"
    recipe = "{recipe: fast, learning_rate: 0.1}"
    everywhere = load(f"{text}training: {recipe}\n")
    there = load(f"{text}overrides: [{{dataset: mnist, training: {recipe}}}]\n")
    assert [cell.id for cell in there.cells] == [cell.id for cell in everywhere.cells]


def test_exclude_matches_a_family_and_a_point(load):
    grid = "grid: {prune-filters: {prune.parameters_kept: [0.5, 0.25]}}\n"
    one = load(HEAD + grid + "exclude: [{technique: prune-filters-0.5}]\n")
    assert names(one)[1:] == ["mnist/vgg16_bn/ptq-int8/0", "mnist/vgg16_bn/prune-filters-0.25/0"]
    all_of_them = load(HEAD + grid + "exclude: [{technique: prune-filters}]\n")
    assert names(all_of_them)[1:] == ["mnist/vgg16_bn/ptq-int8/0"]


def test_exclude_matches_each_of_a_list(load):
    grid = "grid: {prune-filters: {prune.parameters_kept: [0.5, 0.25, 0.125]}}\n"
    every = load(HEAD + grid + "seeds: [0, 1]\n").cells
    left = load(
        HEAD + grid + "seeds: [0, 1]\n"
        "exclude: [{technique: [prune-filters-0.5, prune-filters-0.125], seed: [1]}]\n"
    ).cells
    gone = {(cell.technique, cell.seed) for cell in every} - {(c.technique, c.seed) for c in left}
    assert gone == {("prune-filters-0.5", 1), ("prune-filters-0.125", 1)}


def test_exclude_matches_all_widths_of_a_model_and_each_alone(load):
    models = HEAD.replace("models: [vgg16_bn]", "models: [vgg16_bn, {name: vgg16_bn, width: 0.5}]")
    assert models != HEAD
    half = load(models + "exclude: [{model: vgg16_bn-w1}]\n")
    assert {cell.model.label for cell in half.cells} == {"vgg16_bn-w0.5"}
    full = load(models + "exclude: [{model: vgg16_bn-w0.5}]\n")
    assert {cell.model.label for cell in full.cells} == {"vgg16_bn"}
    with pytest.raises(UserError, match="excludes every cell"):
        load(models + "exclude: [{model: vgg16_bn}]\n")


def test_a_folder_is_relative_to_the_sweep_file(load, tmp_path):
    (tmp_path / "photos").mkdir()
    loaded = load(HEAD.replace("[mnist]", "[{name: photos, folder: photos, size: 32, flip: true}]"))
    dataset = loaded.cells[0].dataset
    assert dataset == Dataset(name="photos", folder=str(tmp_path / "photos"), size=32, flip=True)


def test_a_data_set_that_is_a_folder_may_lie_elsewhere(load, tmp_path):
    loaded = load(HEAD.replace("[mnist]", f"[{{name: cifar10-jpeg, folder: {tmp_path}}}]"))
    assert loaded.cells[0].dataset.folder == str(tmp_path)


def test_merge_keys_and_aliases_work_as_in_safe_load(load):
    loaded = load(
        HEAD.replace("base,", "a, b,")
        + "define:\n  a: [prune: &p {criterion: l2, parameters_kept: 0.5}]\n"
        + "  b: [prune: {<<: *p, parameters_kept: 0.1}]\n"
    )
    settings = [cell.stages[0].settings for cell in loaded.cells if cell.technique == "b"]
    assert settings == [Prune(criterion="l2", parameters_kept=0.1)]


def test_anchors_stand_under_keys_of_their_own_and_merge_in_order(load):
    loaded = load(
        "x-short: &short {epochs: 7, batch_size: 16}\nx-long: &long {epochs: 70, crop: 2}\n"
        + HEAD
        + "training: {<<: [*short, *long], batch_size: 32}\n"
    )
    recipe = loaded.cells[0].recipe
    assert (recipe.epochs, recipe.batch_size, recipe.crop) == (7, 32, 2)
    assert [cell.id for cell in loaded.cells] == [
        cell.id for cell in load(HEAD + "training: {epochs: 7, batch_size: 32, crop: 2}\n").cells
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training: {<<: [*short, 3]}\n", "6: training: `<<` takes mappings, such as"),
        ("training: {<<: 3}\n", "6: training: `<<` takes mappings, such as"),
        ("training: {<<: *short, x-note: 1}\n", "6: training.x-note: unknown key"),
        ("training: {<<: [*short, *wrong]}\n", "6: training.epoch: unknown key; did you mean"),
        ("X-short: 1\n", "6: X-short: unknown key"),
    ],
)
def test_what_anchors_bring_is_checked(load, text, expected):
    head = "x-a: [&short {epochs: 7}, &wrong {epoch: 3}]\n" + HEAD
    with pytest.raises(UserError, match=re.escape(expected)):
        load(head + text)


def test_what_the_sweep_gives_cannot_be_changed(load):
    cell = load(HEAD).cells[0]
    with pytest.raises(ValidationError):
        cell.recipe.epochs = 3
    with pytest.raises(AttributeError):
        cell.seed = 3


# --- what is wrong, in a sentence ------------------------------------------------------------

WRONG = [
    # added at line 5; location and text of the message
    ("seeds: 3", "5: seeds: expected a list, got 3"),
    ('seeds: "0"', "5: seeds: expected a list, got the text '0'"),
    ('seeds: ["0"]', "5: seeds[0]: expected a whole number, got the text '0'"),
    ("seeds:\n- 0\n- 1.0", "7: seeds[1]: expected a whole number, got 1.0"),
    ("seeds: [-1]", "5: seeds[0]: -1 is out of range; expected at least 0"),
    ("seeds: [2147483648]", "5: seeds[0]: 2147483648 is out of range; expected less than"),
    ("seeds: [1, 2, 1]", "5: seeds[2]: 1 stands here twice; name it once"),
    ("seeds: []", "5: seeds: names nothing, so the matrix is empty"),
    ("seeds:", "5: seeds: names nothing, so the matrix is empty"),
    ("seeds: [" + "9" * 5000 + "]", "5: seeds[0]: '999"),
    ("seeds: [0x10]", "5: seeds[0]: expected a whole number, got the text '0x10'"),
    ("training: 3", "5: training: expected a mapping (`key: value`), got 3"),
    ("training: {epochs: true}", "5: training.epochs: expected a whole number, got true"),
    ("training: {epochs: 2.5}", "5: training.epochs: expected a whole number, got 2.5"),
    ("training: {epochs: '3'}", "5: training.epochs: expected a whole number, got the text '3'"),
    ("training: {epochs: }", "5: training.epochs: expected a whole number, got nothing"),
    ("training: {epochs: 0}", "5: training.epochs: 0 is out of range; expected at least 1 and at"),
    ("training: {epochs: 100001}", "5: training.epochs: 100001 is out of range"),
    ("training:\n  batch_size: 0", "6: training.batch_size: 0 is out of range"),
    ("training: {batch_size: -4}", "5: training.batch_size: -4 is out of range"),
    ("training: {epoch: 3}", "5: training.epoch: unknown key; did you mean 'epochs'?"),
    ("training: {learning_rate: .nan}", "5: training.learning_rate: '.nan' is not a number that"),
    ("training: {learning_rate: .inf}", "5: training.learning_rate: '.inf' is not a number that"),
    ("training: {learning_rate: 1e999}", "5: training.learning_rate: '1e999' is not a number"),
    ("training: {learning_rate: -0.1}", "5: training.learning_rate: -0.1 is out of range"),
    ("training: {learning_rate: true}", "5: training.learning_rate: expected a number, got true"),
    ("training: {holdout: 1}", "5: training.holdout: 1 is out of range; expected more than 0"),
    ("training: {flip: 1}", "5: training.flip: expected true or false, got 1"),
    ("training: {precision: bf6}", "5: training.precision: the text 'bf6' is not valid; expected"),
    ("measure: {seconds: 0}", "5: measure.seconds: 0 is out of range; expected more than 0"),
    ("measure: {repeats: []}", "5: measure.repeats: expected a whole number, got a list"),
    ("pack: {}", "5: pack: the key 'minutes' is missing; add it"),
    ("profile: ../secret", "5: profile: '../secret' cannot be used as a name; expected 1 to 64"),
    ("trainin: {epochs: 3}", "5: trainin: unknown key; did you mean 'training'?"),
    ("colour: red", "5: colour: unknown key; valid: datasets, define, exclude, grid, measure"),
    ("name: other", "5: the key 'name' stands here twice; keep one"),
    ("training: {epochs: 1, epochs: 2}", "5: training: the key 'epochs' stands here twice"),
    ("overrides: 3", "5: overrides: expected a list, got 3"),
    ("overrides: [{}]", "5: overrides[0]: the key 'training' is missing; add it"),
    (
        "overrides: [{dataset: mnist, training: {}}]",
        "5: overrides[0].training: says nothing",
    ),
    (
        "overrides: [{training: {epochs: 3}}]",
        "5: overrides[0]: is for no data set and no model; give",
    ),
    (
        "overrides: [{model: vgg16, training: {epochs: 3}}]",
        "5: overrides[0].model: 'vgg16' is not in this sweep; did you mean 'vgg16_bn'?",
    ),
    (
        "overrides: [{dataset: mnist, training: {epoch: 3}}]",
        "5: overrides[0].training.epoch: unknown key; did you mean 'epochs'?",
    ),
    (
        "overrides: [{dataset: mnist, training: {recipe: quick}}]",
        "5: overrides[0].training: unknown recipe 'quick'",
    ),
    (
        "overrides: [{dataset: [], training: {epochs: 3}}]",
        "5: overrides[0].dataset: names nothing; expected a dataset, or a list of them",
    ),
    ("exclude: 3", "5: exclude: expected a list, got 3"),
    ("exclude: [{}]", "5: exclude[0]: names nothing; expected dataset, model, technique or seed"),
    ("exclude: [{data: mnist}]", "5: exclude[0].data: unknown key; did you mean 'dataset'?"),
    ("exclude: [{dataset: mnst}]", "5: exclude[0].dataset: 'mnst' is not in this sweep; did you"),
    (
        "exclude: [{seed: []}]",
        "5: exclude[0].seed: names nothing; expected a seed, or a list of them",
    ),
    ("exclude: [{model: [1]}]", "5: exclude[0].model[0]: expected text, got 1"),
    ("exclude: [{seed: 7}]", "5: exclude[0].seed: 7 is not in this sweep; valid: 0"),
    ("exclude: [{seed: '0'}]", "5: exclude[0].seed: expected a whole number, got the text '0'"),
    ("exclude: [{dataset: mnist}]", "5: exclude: excludes every cell; leave at least one"),
    ("exclude: [{technique: base}]", "5: exclude[0]: excludes the base that mnist/vgg16_bn/ptq-"),
    ("exclude: [{seed: 0}, {seed: 0}]", '5: exclude[1]: {"seed": 0} stands here twice'),
    ("grid: {nothing: {}}", "5: grid.nothing: 'nothing' is not in `techniques`; valid: base"),
    ("grid: {ptq: {}}", "5: grid.ptq: 'ptq' is not in `techniques`; did you mean 'ptq-int8'?"),
    (GRID + "{}}", "5: grid.prune-filters: expected `stage.setting: [values]`"),
    (GRID + "{prune.kept: [1]}}", "prune.kept: no stage of 'prune-filters' has it; did you mean"),
    (GRID + "{quantize.aware: [true]}}", "aware: no stage of 'prune-filters' has it; valid:"),
    (GRID + "{prune.parameters_kept: 0.5}}", "parameters_kept: expected a list of values, at"),
    (GRID + "{prune.parameters_kept: []}}", "parameters_kept: expected a list of values, at"),
    (GRID + "{prune.parameters_kept: [0.5, 1.5]}}", "parameters_kept[1]: 1.5 is out of range; exp"),
    (GRID + "{prune.parameters_kept: ['a']}}", "parameters_kept[0]: expected a number, got the te"),
    (GRID + "{prune.parameters_kept: [1, 1]}}", "parameters_kept[1]: 1 stands here twice"),
    (GRID + "{prune.parameters_kept: [1, 1.0]}}", "'prune-filters-1.0' does the same as"),
    ("define: {ptq-int8: [finetune]}", "5: define.ptq-int8: is a technique that netpress has; def"),
    ("define: {x: []}", "5: define.x: expected a list of stages, such as"),
    ("define: {x: {prune: {}}}", "5: define.x: expected a list of stages, such as"),
    ("define: {x: [3]}", "5: define.x[0]: expected one stage and its settings, such as"),
    ("define: {x: [{prune: {}, finetune: {}}]}", "5: define.x[0]: expected one stage and its sett"),
    ("define: {x: [prun: {}]}", "5: define.x[0].prun: unknown stage 'prun'; did you mean 'prune'?"),
    ("define: {x: [prune: 3]}", "5: define.x[0].prune: expected a mapping (`key: value`), got 3"),
    ("define: {x: [prune: {kept: 1}]}", "5: define.x[0].prune.kept: unknown key; "),
    ("define: {x: [prune: {parameters_kept: 0}]}", "parameters_kept: 0 is out of range; expected"),
    ("define: {x: [finetune: {teacher: bas}]}", "teacher: the text 'bas' is not valid; expected"),
    ("define: {x y: [finetune]}", "5: define.x y: 'x y' cannot be used as a name; expected 1"),
    ("? [a, b]\n: c", "5: a key must be text, not a list or a mapping"),
    ("a: &a [*a]", "5: stands for more than 200,000 values, or nests more than 32 deep"),
    ("a: !!python/object/apply:os.system [ls]", "5: a: tag 'tag:yaml.org,2002:python/object/app"),
    ("a: !!timestamp 2001-01-01", "5: a: '2001-01-01' with tag 'tag:yaml.org,2002:timestamp' is"),
    ("a: !mine {}", "5: a: tag '!mine' is not allowed; plain data only"),
    ("a: *nothing", "5: not valid YAML: "),
    ("\tseeds: [0]", "5: not valid YAML: "),
    ("seeds: [0", "not valid YAML: "),
    ("a: " + "[" * 40 + "]" * 40, "5: nested more than 32 levels deep"),
    ("---\nname: b", "not valid YAML: "),
]


@pytest.mark.parametrize("added, said", WRONG, ids=[said[:60] for _, said in WRONG])
def test_an_addition_that_is_wrong(load, added, said):
    with pytest.raises(UserError) as raised:
        load(f"{HEAD}{added}\n")
    sentence = str(raised.value)
    assert said in sentence and "sweep.yaml:" in sentence
    assert "\n" not in sentence and len(sentence) < 400


REPLACED = [
    ("name: mine\n", "", "1: the key 'name' is missing; add it"),
    ("models: [vgg16_bn]", "model: [vgg16_bn]", "2: model: unknown key; did you mean 'models'?"),
    ("name: mine", "name: 3", "1: name: expected text, got 3"),
    ("name: mine", "name: ..", "1: name: '..' cannot be used as a name"),
    ("name: mine", "name: a/b", "1: name: 'a/b' cannot be used as a name"),
    ("name: mine", 'name: "a\\nb"', r"1: name: 'a\nb' cannot be used as a name"),
    ("name: mine", f"name: {'a' * 65}", "1: name: 'aaa"),
    ("[vgg16_bn]", "[]", "2: models: names nothing, so the matrix is empty; name at least one"),
    ("[vgg16_bn]", "vgg16_bn", "2: models: expected a list, got the text 'vgg16_bn'"),
    ("[vgg16_bn]", "[vgg16-bn]", "2: models[0]: unknown model 'vgg16-bn'; did you mean 'vgg16_"),
    ("[vgg16_bn]", "[vgg16_bn, vgg16_bn]", "2: models[1]: 'vgg16_bn' stands here twice"),
    ("[vgg16_bn]", "[vgg11, {name: vgg11, width: 1}]", "2: models[1]: vgg11 stands here twice"),
    ("[vgg16_bn]", "[3]", "2: models[0]: expected a name, or a mapping with it, got 3"),
    ("[vgg16_bn]", "[{width: 1}]", "2: models[0]: the key 'name' is missing; add it"),
    (
        "[vgg16_bn]",
        "[{name: vgg11, width: 0}]",
        "2: models[0].width: 0 is out of range; expected more than 0 and at most 4",
    ),
    ("[vgg16_bn]", "[{name: vgg11, width: 5}]", "2: models[0].width: 5 is out of range"),
    ("[vgg16_bn]", "[{name: vgg11, wide: 1}]", "2: models[0].wide: unknown key; did you mean"),
    (
        "[mnist]",
        "[imagenet]",
        "3: datasets[0]: unknown data set 'imagenet'; valid: cifar10, cifar10"
        "-jpeg, mnist (`netpress datasets` lists them)",
    ),
    ("[mnist]", "[mnist, {name: mnist, size: 32}]", "3: datasets[1]: 'mnist' stands here al"),
    ("[mnist]", "[{name: x, folder: /not/there}]", "3: datasets[0].folder: '/not/there' is not "),
    ("[mnist]", "[{name: mnist, folder: /}]", "3: datasets[0].name: 'mnist' is a data set that "),
    ("[mnist]", "[{name: x}]", "3: datasets[0]: unknown data set 'x'"),
    ("[mnist]", "[{name: mnist, size: 0}]", "3: datasets[0].size: 0 is out of range"),
    ("base, ", "base, base, ", "4: techniques[1]: 'base' stands here twice; name it once"),
    (
        "ptq-int8",
        "ptq-int4",
        "4: techniques[1]: unknown technique 'ptq-int4'; did you mean "
        "'ptq-int8'? (`netpress techniques` lists them)",
    ),
    ("ptq-int8", "8", "4: techniques[1]: expected text, got 8"),
    ("base, ", "same, ", "4: techniques[0]: unknown technique 'same'"),
]


@pytest.mark.parametrize("old, new, said", REPLACED, ids=[said[:60] for _, _, said in REPLACED])
def test_a_replacement_that_is_wrong(load, old, new, said):
    with pytest.raises(UserError) as raised:
        load(HEAD.replace(old, new))
    assert f"sweep.yaml:{said}" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content, said",
    [
        ("", "1: the file is empty"),
        ("# only a comment\n", "1: the file is empty"),
        ("[a]", "1: expected a mapping (`key: value` lines), got a list"),
        ("a", "1: expected a mapping (`key: value` lines), got 'a'"),
        ("[" * 100_000, "1: n"),
        ("a: b: c", "1: not valid YAML"),
        (b"a: \x01", "not valid YAML"),
        (b"a: b\nc: \xff", "2: not text in UTF-8"),
        (b"a: " + b"x" * 1_000_001, "larger than 1,000,000 bytes"),
    ],
)
def test_what_is_no_sweep_file_at_all(load, content, said):
    with pytest.raises(UserError) as raised:
        load(content)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        sweep.load(tmp_path / "none.yaml", CATALOG)


def test_two_techniques_that_do_the_same(load):
    with pytest.raises(UserError, match=r"4: techniques\[2\]: 'ptq-int8' does the same as 'x'"):
        load(HEAD.replace("base, ", "base, x, ") + "define: {x: [quantize]}\n")


def test_two_techniques_of_one_label(load):
    with pytest.raises(UserError, match="two techniques would be called 'prune-filters-0.5'"):
        load(
            HEAD.replace("base, ", "prune-filters-0.5, ")
            + GRID
            + "{prune.parameters_kept: [0.5]}}\ndefine: {prune-filters-0.5: [finetune]}\n"
        )


def test_a_label_that_gets_too_long(load):
    name = "x" * 62
    with pytest.raises(UserError, match=f"grid.{name}: '{name[:20]}"):
        load(
            HEAD.replace("base, ", f"{name}, ")
            + f"define: {{{name}: [prune]}}\ngrid: {{{name}: {{prune.parameters_kept: [0.5]}}}}\n"
        )


def test_a_bomb_of_aliases_is_refused_at_once(load):
    pairs = zip("abcdefgh", "bcdefghi", strict=True)
    lines = [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in pairs]

    def refused() -> None:
        with pytest.raises(UserError, match="stands for more than 200,000 values"):
            load("a: &a [x]\n" + "\n".join(lines))

    assert cost.calls(refused)["value"] == strict_yaml.MAX_VALUES + 1


def test_a_matrix_that_is_too_large(load):
    widths = ", ".join(f"{{name: vgg11, width: 0.{i}}}" for i in range(1, 10))
    seeds = ", ".join(map(str, range(50_000)))
    with pytest.raises(UserError, match="1: asks for 1,500,000 cells, at most 500,000 can be"):
        load(HEAD.replace("[vgg16_bn]", f"[vgg16_bn, {widths}]") + f"seeds: [{seeds}]")


@pytest.mark.alone
def test_cells_are_built_and_named_in_proportion_to_their_number(load):
    def named(count: int) -> None:
        seeds = ", ".join(map(str, range(count)))
        loaded = load(f"{HEAD}seeds: [{seeds}]\n")
        ids = {cell.id for cell in loaded.cells} | {cell.base_id for cell in loaded.cells}
        assert len(ids) == len(loaded.cells) == 3 * count

    few, many = (cost.calls(lambda n=n: named(n)) for n in (100, 200))
    assert many["openssl_sha256"] - few["openssl_sha256"] == 600  # its id and its base's
    assert many["dumps"] <= few["dumps"] + 100  # a seed; what cells share is spelled once
    assert cost.growth(lambda n: cost.cpu_s(lambda: named(n)), 833) < cost.MOST_GROWTH


# --- ids -------------------------------------------------------------------------------------

CELL = Cell(
    dataset=Dataset(name="mnist"),
    model=Model(name="vgg16_bn"),
    technique="prune-filters",
    family="prune-filters",
    seed=0,
    stages=(Stage("prune", Prune()), Stage("finetune", Finetune())),
    recipe=Recipe(),
    measure=Measure(),
)


def test_an_id_is_the_same_on_every_machine():
    """If this fails, every result that anybody has is orphaned: find what changed by accident (a
    default, a renamed setting, the canonical form), or write down here what it is from now on."""
    fixed = replace(CELL, core=Core(2, 2))
    assert (fixed.id, fixed.base_id) == ("c56cf22f5a785325", "2a6b2c522e5f9b17")


def test_an_id_is_the_hash_of_one_canonical_json():
    import hashlib

    data = CELL.to_json()
    keys = ("format", "core", "dataset", "model", "seed", "stages", "recipe")
    decides = {key: data[key] for key in keys}
    del decides["dataset"]["folder"], decides["recipe"]["test_images"]
    text = json.dumps(decides, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == CELL.id


names_ = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", fullmatch=True)
datasets = st.builds(
    Dataset,
    name=names_,
    folder=st.none() | st.text(max_size=20),
    size=st.none() | st.integers(4, 1024),
    flip=st.none() | st.booleans(),
)
models = st.builds(Model, name=names_, width=st.floats(0.001, 4))
recipes = st.builds(
    Recipe,
    epochs=st.integers(1, 100_000),
    batch_size=st.integers(1, 65_536),
    learning_rate=st.floats(1e-9, 100),
    momentum=st.floats(0, 0.999),
    schedule=st.sampled_from(["linear", "cosine"]),
    crop=st.integers(0, 64),
    train_images=st.none() | st.integers(1, 10**6),
)
stages = st.lists(
    st.builds(
        Prune, criterion=st.sampled_from(["l1", "l2"]), parameters_kept=st.floats(0.001, 1)
    ).map(lambda settings: Stage("prune", settings))
    | st.builds(Finetune, epochs=st.none() | st.integers(1, 99)).map(lambda s: Stage("finetune", s))
    | st.builds(Quantize, aware=st.booleans()).map(lambda s: Stage("quantize", s)),
    max_size=4,
).map(tuple)
cells = st.builds(
    Cell,
    dataset=datasets,
    model=models,
    technique=names_,
    family=names_,
    seed=st.integers(0, 2**31 - 1),
    stages=stages,
    recipe=recipes,
    measure=st.builds(Measure, repeats=st.integers(1, 1000), seconds=st.floats(0.01, 60)),
    core=st.builds(Core, data=st.integers(1, 9), training=st.integers(1, 9)),
)


@given(cells)
def test_a_cell_survives_its_json(cell):
    again = Cell.from_json(json.loads(json.dumps(cell.to_json())), CATALOG)
    assert again == cell and again.id == cell.id and again.base_id == cell.base_id


@given(cells, names_, names_, st.text(max_size=9))
def test_an_id_ignores_labels_places_and_how_it_is_measured(cell, technique, family, folder):
    moved = cell.dataset.model_copy(update={"folder": folder})
    measured = Measure(repeats=cell.measure.repeats + 1, runtimes=("onnxruntime", "openvino"))
    other = replace(cell, technique=technique, family=family, dataset=moved, measure=measured)
    assert (other.id, other.base_id) == (cell.id, cell.base_id)


@given(cells, cells)
def test_an_id_depends_on_all_that_decides(one, other):
    for part in ("dataset", "model", "seed", "stages", "recipe", "core"):
        mixed = replace(one, **{part: getattr(other, part)})
        decides = (getattr(one, part), getattr(other, part))
        if part == "dataset":
            decides = tuple(dataset.decides() for dataset in decides)
        assert (mixed.id == one.id) == (decides[0] == decides[1]), part
        if part != "stages":
            assert (mixed.base_id == one.base_id) == (decides[0] == decides[1]), part


@given(cells)
def test_only_a_base_is_its_own_base(cell):
    assert cell.is_base == (cell.id == cell.base_id) == (cell.stages == ())


def test_an_id_does_not_depend_on_the_test_set():
    other = replace(CELL, recipe=Recipe(test_images=7))
    assert (other.id, other.base_id) == (CELL.id, CELL.base_id)


@pytest.mark.parametrize("field", sorted({*Recipe.model_fields} - {"test_images"}))
def test_an_id_depends_on_every_key_of_the_recipe(field):
    changed = {
        "schedule": "cosine",
        "precision": "fp32",
        "compile": "off",
        "flip": True,
        "warmup": 0.5,
        "epochs": 7,
        "batch_size": 7,
        "crop": 7,
        "train_images": 7,
        "flips": "alternating",
        "cutout": 7,
        "dirac": True,
        "lookahead": True,
    }.get(field, 0.51)
    other = replace(CELL, recipe=Recipe(**{field: changed}))
    assert other.id != CELL.id and other.base_id != CELL.base_id


def test_the_order_of_keys_and_the_name_of_the_sweep_change_no_id(load):
    text = HEAD + "seeds: [0, 1]\ntraining: {epochs: 3, batch_size: 9}\nprofile: sol\n"
    before = {cell.id for cell in load(text).cells}
    data = yaml.safe_load(text)
    data["name"] = "other"
    for seed in range(5):
        mixed = dict(random.Random(seed).sample([*data.items()], len(data)))
        mixed["training"] = dict(reversed(mixed["training"].items()))
        assert {c.id for c in load(yaml.safe_dump(mixed, sort_keys=False)).cells} == before


@pytest.mark.parametrize(
    "change, said",
    [
        ({"seed": 1}, "made by another version"),
        ({"id": "0" * 16}, "made by another version"),
        ({"stages": [{"name": "shrink", "settings": {}}]}, "not a cell of this version"),
        ({"stages": [{"name": "prune", "settings": {"kept": 1}}]}, "kept"),
        ({"stages": [{"name": "prune", "settings": {}, "version": 0}]}, "a version is a number"),
        ({"stages": [{"name": "prune", "settings": {}, "version": 2}]}, "made by another version"),
        ({"core": {"data": 1, "training": "2"}}, "a version is a number"),
        ({"format": 1}, "format 1, expected 2 or 3"),
        ({"format": 2}, "made by another version"),
        ({"recipe": {"epochs": "3"}}, "epochs"),
        ({"stages": None}, "not a cell of this version"),
    ],
)
def test_a_cell_json_that_does_not_mean_what_it_says_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        Cell.from_json({**CELL.to_json(), **change}, CATALOG)


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda b: b.decode("latin-1")))
def test_no_text_gives_anything_but_a_sentence(text):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.yaml")
        path.write_text(HEAD + text, encoding="utf-8")
        try:
            assert sweep.load(path, CATALOG).cells
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) < 1000


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["name", "width", "prune", "epochs", "seed", "x"]),
                inner,
                max_size=3,
            )
        ),
        max_leaves=6,
    ),
    st.sampled_from([*SweepFile.model_fields]),
)
def test_no_value_of_any_key_gives_anything_but_a_sentence(value, key):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.yaml")
        path.write_text(json.dumps({**yaml.safe_load(HEAD), key: value}), encoding="utf-8")
        try:
            assert sweep.load(path, CATALOG).cells
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
