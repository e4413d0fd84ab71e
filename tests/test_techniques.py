"""One table for every technique and every stage: what all of them keep to, and what each promises.

A new technique is tested by being in the registry; a stage with settings of its own, by a line in
VARIANTS.
"""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from pipeline import artifact, catalog, data, execute, failure_kinds, hardware, runtimes, store
from pipeline.errors import UserError
from pipeline.measure import complexity, similarity
from pipeline.models import network
from pipeline.models.transforms import fakequant, pairs
from pipeline.models.transforms.fakequant import FakeQuantized
from pipeline.models.transforms.folded import Folded
from pipeline.paths import Work
from pipeline.sweep import Cell, Recipe
from pipeline.techniques import STAGES, TECHNIQUES, prune, quantize, stage_module
from pipeline.training import checkpoint
from pipeline.training.loop import Diverged
from tests import cells

VARIANTS = {
    "minmax": [{"quantize": {"calibration": "minmax", "calibration_images": 32}}],
    "seven-bits": [{"quantize": {"reduce_range": "on"}}],
    "eight-bits": [{"quantize": {"reduce_range": "off"}}],
    "learned": [{"quantize": {"aware": True, "ranges": "learned", "epochs": 2}}],
    "bn-scale": [{"prune": {"criterion": "bn-scale", "parameters_kept": 0.4}}],
    "l2-layer": [{"prune": {"criterion": "l2", "scope": "layer", "parameters_kept": 0.3}}],
    "in-steps": [{"prune": {"parameters_kept": 0.25, "steps": 2}}],
    "deeper": [{"distill": {"student": "vgg13_bn", "width": 0.25, "epochs": 1}}],
    "taught-afresh": [{"train": {"model": "vgg11", "teacher": "base", "epochs": 1}}],
    "small-student-int8": [{"distill": {"epochs": 1}}, {"quantize": {}}],
    "pruned-and-stored": [{"prune": {"parameters_kept": 0.5}}, {"encode": {}}],
    "rounded-and-stored": [{"quantize": {}}, {"encode": {"rounding": 0.02}}],
    "pruned-again": [{"prune": {"parameters_kept": 0.5}}, {"prune": {"parameters_kept": 0.3}}],
}
NAMES = [*TECHNIQUES, *VARIANTS]
NOT_SMALLER = {
    "base",
    "base-longer",
    "base-anew",
    "taught-afresh",
    "sparse-random",
}  # as many weights, all of them floats
# Those whose artifacts are written and run; all others have the shape of one of these, or are
# made of the same stages.
DEPLOYED = [
    "base",
    "ptq-int8",
    "qat-int8",
    "prune-filters",
    "kd",
    "small-and-int8",
    "qat-int4",
    "qat-int2",
    "ternary",
    "binary",
    "rate",
    "small-and-rate",
    "minmax",
    "seven-bits",
    "learned",
    "pruned-and-stored",
    "deep-compression",
    "inq-5",
    "low-rank",
    "distill-few",
]
# They differ from others in what is removed, or in a number, and in nothing that a resume meets.
RESUMED_LIKE_ANOTHER = {
    "prune-taylor",
    "prune-fpgm",
    "prune-random",
    "bn-scale",
    "l2-layer",
    "minmax",
    "seven-bits",
    "eight-bits",
    "scratch-e",
    "base-anew",
    "sparse-random",
    "attention-transfer-kd",
    "inq-3",
    "qat-int2",
}
CLOCKS = {"seconds", "images_per_second"}


# --- running stages --------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill at a moment of which the cell tells."""


@dataclass
class Made:
    """What the stages of a cell came to."""

    cell: Cell
    state: network.ModelState
    history: list[store.StageHistory]
    events: list[tuple]

    @property
    def content(self) -> bytes:
        return checkpoint.model_bytes(self.state)

    @property
    def curves(self) -> list:
        return [
            (h.index, h.stage, {k: v for k, v in h.columns.items() if k not in CLOCKS})
            for h in self.history
        ]


def cell_of(bench, name: str) -> Cell:
    chain = {"define": {name: VARIANTS[name]}} if name in VARIANTS else {}
    return bench.cells(["base", name] if name != "base" else ["base"], **chain)[name]


def staged(cell: Cell, work: Work, kill_at_what_is_new=None) -> Made:
    """All stages of the cell, in this process; with a set, a kill at each event that is not in it
    (a stage begins, an epoch ends), and from there again, until nothing new is heard."""
    seen, events = kill_at_what_is_new, []

    def listen(event):
        step = (event["stage"], event.get("epoch"))
        if isinstance(step[1], float):  # within an epoch: tells nothing new
            return
        events.append(step)
        if seen is not None and step not in seen:
            seen.add(step)
            raise Killed

    while True:
        torch.manual_seed(len(events))  # as in a new process: no stage may lean on it
        run = execute._Run(cell, work, work.cell(cell.id), work.root, "cpu", listen)
        try:
            state, history = run.staged()
            return Made(cell, state, history, events)
        except Killed:
            continue
        finally:
            run.checkpoints.close()


def beside(bench, name: str) -> Work:
    """A work root of its own, with the base and the decoded data in it."""
    work = Work(bench.folder / name)
    if not work.root.exists():
        work.root.mkdir()
        for part in ("cells/" + bench.base.id, "cache"):
            shutil.copytree(bench.work.root / part, work.root / part)
    return work


def made(bench, name: str) -> Made:
    """The technique's result, uninterrupted; made once for all tests."""
    if name not in bench.made:
        cell = cell_of(bench, name)
        work = beside(bench, "anew" if cell.is_base else "whole")
        shutil.rmtree(work.cell(cell.id).folder, ignore_errors=True)
        bench.made[name] = staged(cell, work)
    return bench.made[name]


def split_of(bench) -> data.Split:
    cell = bench.base
    return data.load(cell.dataset, cell.recipe, cell.seed, bench.work.root, bench.work.cache)


def deployed(bench, name: str) -> artifact.Artifact:
    """The artifact of a technique, written once."""
    folder = bench.folder / "artifacts" / name
    if not folder.exists():
        split = split_of(bench)
        sample = data.sample(split.train, 64, 0).pixels.numpy()
        artifact.write(made(bench, name).state, folder, {}, sample, split.classes)
    return artifact.load(folder)


# --- what all of them keep to ----------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_output_keeps_its_shape(bench, name):
    compressed = made(bench, name)
    images = split_of(bench).test.pixels[:3]
    with torch.inference_mode():
        logits = compressed.state.network.eval()(images)
    assert logits.shape == (3, 10) and torch.isfinite(logits).all()
    assert compressed.state.spec.shape == (1, 32, 32) and compressed.state.spec.classes == 10


@pytest.mark.parametrize("name", [name for name in NAMES if name not in RESUMED_LIKE_ANOTHER])
def test_killed_at_each_epoch_and_stage_it_ends_with_the_same_weights_and_history(bench, name):
    """Which is also: the same seed gives the same weights, whatever the process did before."""
    whole, cell = made(bench, name), cell_of(bench, name)
    work = beside(bench, f"killed-{name}")
    if cell.is_base:
        shutil.rmtree(work.cell(cell.id).folder)
    heard: set = set()
    resumed = staged(cell, work, heard)
    shutil.rmtree(work.root)
    assert heard == set(whole.events)  # it was killed at every one of them
    assert resumed.content == whole.content
    assert resumed.curves == whole.curves
    epochs = [e for e in resumed.events if e[1]]
    begun = sum(1 for h in whole.history if "." in h.stage)  # a stage's second training, or third
    assert (
        len(epochs) == 2 * len(set(epochs)) + begun
    )  # reported at each kill and resumption, made once


@pytest.mark.parametrize("name", NAMES)
def test_its_layers_are_compared_with_the_bases_and_its_work_is_counted(bench, name):
    """What is measured of the network itself, whatever its transforms are."""
    state, images = made(bench, name).state, split_of(bench).test
    alike = similarity.of_networks(state, made(bench, "base").state, images, torch.device("cpu"))
    assert alike["similarity/cka"].shape == alike["similarity/svcca"].shape
    assert np.isfinite(alike["similarity/cka"]).all() and alike["similarity/cka"].max() <= 1.001
    parameters, macs = complexity.count(state.spec)
    assert 0 < parameters == network.parameter_count(state.spec) and macs > 0


@pytest.mark.parametrize("name", NAMES)
def test_what_is_to_be_stored_is_smaller_than_the_base(bench, name):
    base, mine = weight_bytes(bench, "base"), weight_bytes(bench, name)
    if name in NOT_SMALLER:
        assert mine == pytest.approx(base, rel=0.05)
    else:
        assert mine < 0.6 * base


def weight_bytes(bench, name: str) -> int:
    spec = made(bench, name).state.spec
    return network.parameter_count(spec) * (1 if spec.has("fake-quantized") else 4)


@pytest.mark.parametrize("name", DEPLOYED)
def test_the_artifact_has_little_beside_its_weights(bench, name):
    deployed_artifact, weights = deployed(bench, name), weight_bytes(bench, name)
    if made(bench, name).state.spec.has("encoded"):
        assert deployed_artifact.stored_bytes < deployed_artifact.runnable_bytes
    else:
        assert deployed_artifact.stored_bytes == deployed_artifact.runnable_bytes
    assert 0.98 * weights < deployed_artifact.runnable_bytes < 1.05 * weights + 30_000


@pytest.mark.parametrize("name", DEPLOYED)
def test_the_artifact_says_what_the_network_says(bench, name):
    split, compressed = split_of(bench), made(bench, name)
    images = torch.cat((split.train.pixels, split.test.pixels))
    with torch.inference_mode():
        expected = compressed.state.network.eval()(images).argmax(1).numpy()
    session = runtimes.session(deployed(bench, name), 1)
    predicted = np.concatenate(
        [scores.argmax(1) for scores in runtimes.logits(session, images.numpy())]
    )
    assert np.mean(predicted == expected) >= 0.999


@pytest.mark.parametrize("name", DEPLOYED)
def test_integers_are_computed_where_the_technique_says_int8_and_nowhere_else(bench, name):
    whole = made(bench, name).state
    ran = runtimes.kernels(deployed(bench, name))
    if whole.spec.has("fake-quantized"):
        assert deployed(bench, name).quantized and ran.integer_share == 1.0
        assert ran.integer == ran.total == len(whole.spec.channels) + 1
    else:
        assert ran.integer == 0 and ran.integer_share == 0.0


def test_the_table_names_every_stage():
    chains = [*(chain for _, chain in TECHNIQUES.values()), *VARIANTS.values()]
    used = {stage for chain in chains for step in chain for stage in step}
    assert used == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_settings_are_frozen_described_and_whole_without_a_word(stage):
    settings = stage_module(stage).Settings()
    assert settings.model_config["frozen"] and settings.model_config["extra"] == "forbid"
    assert type(settings).model_validate_json(settings.model_dump_json()) == settings


def test_a_registry_is_read_without_torch():
    code = "import sys; from pipeline import catalog; catalog.built_in(); "
    code += "print([m for m in ('torch', 'numpy', 'onnx') if m in sys.modules])"
    assert cells.python("-c", code).stdout == "[]\n"


# --- pruning ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("criterion", ["l1", "l2", "bn-scale", "random"])
@pytest.mark.parametrize("kept", [0.7, 0.25, 0.06])
def test_pruning_reaches_its_target_in_multiples_of_eight(bench, scope, criterion, kept):
    pruned_state = pruned(bench, scope=scope, criterion=criterion, parameters_kept=kept)
    count = network.parameter_count(pruned_state.spec)
    target = kept * network.parameter_count(made(bench, "base").state.spec)
    assert (0.4 if scope == "layer" else 0.7) * target < count <= target
    assert all(channels % 8 == 0 and channels >= 8 for channels in pruned_state.spec.channels)
    assert count == sum(p.numel() for p in pruned_state.network.parameters())


def pruned(bench, seed=1, state=None, **settings):
    base = made(bench, "base").state
    settings = prune.Settings(**settings)
    return prune.apply(state or base, settings, Given(base, seed))


@dataclass
class Given:
    """As much of a stage's context as pruning asks for."""

    state: network.ModelState
    seed: int

    def base(self) -> network.ModelState:
        return self.state


def test_random_filters_differ_by_seed_and_others_do_not(bench):
    random = [pruned(bench, seed, criterion="random").network.state_dict() for seed in (1, 1, 2)]
    assert torch.equal(random[0]["module.head.weight"], random[1]["module.head.weight"])
    assert random[0]["module.head.weight"].shape != random[2][
        "module.head.weight"
    ].shape or not torch.equal(random[0]["module.head.weight"], random[2]["module.head.weight"])
    chosen = [pruned(bench, seed).network.state_dict()["module.head.weight"] for seed in (1, 2)]
    assert torch.equal(*chosen)


def test_the_filters_that_stay_are_those_that_matter_most(bench):
    base = made(bench, "base").state
    pruned_state = pruned(bench, criterion="l1", scope="layer", parameters_kept=0.4)
    norms = base.network.module.features[4].conv.weight.abs().sum((1, 2, 3))
    best = norms.topk(pruned_state.spec.channels[4]).indices.sort().values
    scale = base.network.module.features[4].norm.weight[best]
    assert torch.equal(pruned_state.network.module.features[4].norm.weight, scale)


def test_one_share_for_every_layer_keeps_the_proportions(bench):
    spec = pruned(bench, scope="layer", parameters_kept=0.3).spec
    base = made(bench, "base").state.spec
    shares = [k / c for k, c in zip(spec.channels, base.channels, strict=True) if c >= 32]
    assert max(shares) - min(shares) <= 8 / 32


def test_what_cannot_be_reached_is_a_sentence_that_says_what_can(bench):
    with pytest.raises(
        UserError, match=r"prune\.parameters_kept: 0\.001 cannot be reached"
    ) as told:
        pruned(bench, parameters_kept=0.001)
    least = float(str(told.value).rsplit(" ", 1)[1])
    assert network.parameter_count(pruned(bench, parameters_kept=least * 1.05).spec)


def test_the_scale_of_a_normalization_needs_one(bench):
    base = network.fold(made(bench, "base").state)
    with pytest.raises(UserError, match=r"prune\.criterion: bn-scale needs a model with batch"):
        pruned(bench, state=base, criterion="bn-scale")
    assert pruned(bench, state=base, criterion="l2").spec.transforms == (Folded(),)


def test_everything_may_be_kept(bench):
    base = made(bench, "base").state
    assert pruned(bench, parameters_kept=1.0).spec == base.spec


def test_steps_are_stages_that_each_keep_the_same_part(bench):
    settings = prune.Settings(parameters_kept=0.125, steps=3, epochs_between=2)
    chain = prune.expand(settings)
    assert [name for name, _ in chain] == ["prune", "finetune", "prune", "finetune", "prune"]
    kept = [settings["parameters_kept"] for name, settings in chain if name == "prune"]
    assert kept == [0.5, 0.25, 0.125] and chain[1][1] == {"epochs": 2}
    assert prune.expand(prune.Settings()) == [("prune", prune.Settings().model_dump())]
    stages = cell_of(bench, "in-steps").stages
    assert [stage.name for stage in stages] == ["prune", "finetune", "prune"]


def test_the_shares_of_steps_are_the_same_number_on_every_machine():
    """They are part of a cell's id; the last digits of a power are not the same everywhere."""
    for settings in (
        prune.Settings(parameters_kept=k, steps=n) for k in (0.3, 0.07) for n in (3, 7)
    ):
        kept = [s["parameters_kept"] for name, s in prune.expand(settings) if name == "prune"]
        assert kept[-1] == settings.parameters_kept
        assert all(float(f"{k:.6g}") == k for k in kept)


# --- students --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kd", "attention-transfer", "student-alone"])
def test_a_student_of_half_the_width_has_a_quarter_of_the_parameters(bench, name):
    base, student = (made(bench, n).state.spec for n in ("base", name))
    share = network.parameter_count(student) / network.parameter_count(base)
    assert 0.2 < share < 0.3


def test_a_student_may_be_of_another_depth_and_width(bench):
    spec = made(bench, "deeper").state.spec
    assert spec.model == "vgg13_bn" and len(spec.channels) == 10 and spec.channels[-1] == 16


def test_teachers_differ_so_students_do(bench):
    contents = {
        made(bench, n).content
        for n in ("kd", "attention-transfer", "attention-transfer-kd", "student-alone")
    }
    assert len(contents) == 4


def test_an_unknown_student_is_refused_at_the_edge(bench):
    with pytest.raises(UserError, match="unknown model 'vgg99'; expected one of vgg11_bn"):
        bench.cells(["x"], define={"x": [{"distill": {"student": "vgg99"}}]})


def test_another_teacher_of_a_student_is_refused_with_the_one_that_is_valid(bench):
    sentence = r"distill\.teacher: the text 'kd' is not valid; expected 'base'"
    with pytest.raises(UserError, match=sentence):
        bench.cells(["x"], define={"x": [{"distill": {"teacher": "kd"}}]})


# --- controls --------------------------------------------------------------------------------


def test_controls_have_the_shape_and_the_budget_of_what_they_control(bench):
    shape = {n: made(bench, n).state.spec.channels for n in NAMES}
    assert shape["pruned-from-scratch"] == shape["prune-filters"]
    assert shape["student-alone"] == shape["kd"]
    assert shape["base-longer"] == shape["base"]
    epochs = {n: [len(h.columns["loss"]) for h in made(bench, n).history] for n in NAMES}
    total = epochs["base"][0]
    assert epochs["base-longer"] == epochs["prune-filters"] == epochs["kd"] == [total]
    assert epochs["pruned-from-scratch"] == [2 * total]


# --- quantization ----------------------------------------------------------------------------


def test_training_that_sees_the_rounding_changes_the_weights_and_calibration_does_not(bench):
    folded = network.fold(made(bench, "base").state).network.state_dict()
    for name, same in (("ptq-int8", True), ("qat-int8", False), ("learned", False)):
        weights = made(bench, name).state.network.state_dict()
        assert (
            torch.equal(
                weights["module.features.3.conv.weight"], folded["module.features.3.conv.weight"]
            )
            is same
        )


def test_observed_scales_fit_the_weights_that_training_ended_with(bench):
    for layer in fakequant.layers(made(bench, "qat-int8").state.network).values():
        assert torch.equal(
            layer.weight_quantizer.scale, layer.weight_quantizer.widest(layer.weight)
        )


def test_learned_ranges_moved_and_stay_positive(bench):
    start = fakequant.layers(made(bench, "ptq-int8").state.network)
    moved = 0
    for name, layer in fakequant.layers(made(bench, "learned").state.network).items():
        assert (layer.weight_quantizer.scale > 0).all() and layer.input_quantizer.scale > 0
        if not layer.input_quantizer.exact:
            moved += layer.input_quantizer.scale.item() != start[name].input_quantizer.scale.item()
    assert moved == len(start) - 1


def test_a_learned_range_that_is_none_is_no_result(bench):
    state = made(bench, "learned").state
    settled = network.restore(state.spec, state.network.state_dict())
    assert quantize.settled(settled, "quantize") is settled
    with torch.no_grad():
        settled.network.module.features[2].conv.weight_quantizer.scale[1] = -1e-3
    with pytest.raises(Diverged, match=r"a learned range of features\.2\.conv is not positive"):
        quantize.settled(settled, "quantize")


INT8 = {  # technique -> how its weights are rounded
    "ptq-int8": FakeQuantized(pairs=True),
    "qat-int8": FakeQuantized(pairs=True),
    "learned": FakeQuantized(pairs=True, learned=True),
    "seven-bits": FakeQuantized(weight_bits=7),
    "eight-bits": FakeQuantized(),
}


@pytest.mark.parametrize("name", INT8)
def test_the_range_is_reduced_as_it_says(bench, name):
    """``auto`` keeps pairs of weights from overflowing, ``on`` all weights small, ``off`` none."""
    state = made(bench, name).state
    assert state.spec.transforms == (Folded(), INT8[name])
    largest, beyond = 0, 0
    for layer in fakequant.layers(state.network).values():
        scale = layer.weight_quantizer.scale.detach()
        q = layer.eval().quantized_weight().detach() / scale.reshape(
            -1, *[1] * (layer.weight.dim() - 1)
        )
        largest = max(largest, int(q.round().abs().max()))
        beyond += int((pairs.largest(q.round()) > 128).sum())
    assert largest == (63 if name == "seven-bits" else 127)
    assert (beyond > 0) is (name == "eight-bits")


@pytest.mark.parametrize("saturates", [False, True])
def test_the_range_depends_on_no_machine(monkeypatch, saturates):
    """Two machines that made other weights of one cell would give one id to two networks."""
    monkeypatch.setattr(hardware, "saturates", lambda: saturates)
    monkeypatch.setattr(hardware, "cpu_flags", lambda: () if saturates else ("avx512_vnni",))
    for reduce_range, expected in (
        ("auto", FakeQuantized(pairs=True)),
        ("on", FakeQuantized(weight_bits=7)),
        ("off", FakeQuantized()),
    ):
        settings = quantize.Settings(reduce_range=reduce_range)
        assert quantize._transform(settings) == expected
    assert quantize._transform(quantize.Settings()) == FakeQuantized(pairs=True)


@pytest.mark.parametrize(
    "chain, said",
    [
        ([{"quantize": {}}, {"quantize": {}}], "quantize: the network is quantized already"),
        ([{"quantize": {}}, {"train": {}}], "train: starts from fresh weights"),
    ],
)
def test_chains_that_make_no_sense_end_with_a_sentence(bench, chain, said):
    cell = bench.cells(["x"], define={"x": chain})["x"]
    with pytest.raises(UserError, match=said) as told:
        staged(cell, beside(bench, "senseless"))
    assert failure_kinds.failure_of(told.value) == ("exception", str(told.value))


def test_a_quantized_network_can_be_cut_and_tuned_further(bench):
    chain = [{"quantize": {}}, {"prune": {"parameters_kept": 0.6}}, {"finetune": {"epochs": 1}}]
    pruned_state = staged(bench.cells(["x"], define={"x": chain})["x"], beside(bench, "odd")).state
    assert (
        pruned_state.spec.has("fake-quantized") and complexity.count(pruned_state.spec)[0] < 100_000
    )


# --- settings that all training shares -------------------------------------------------------


@pytest.mark.parametrize(
    "settings, epochs, rate",
    [
        ({}, 60, 0.1),
        ({"share": 0.2}, 12, 0.1),
        ({"share": 0.001}, 1, 0.1),
        ({"epochs": 7, "share": 0.5}, 7, 0.1),
        ({"learning_rate_factor": 0.5}, 60, 0.05),
    ],
)
def test_how_long_and_how_fast_a_stage_trains(settings, epochs, rate):
    train = stage_module("train").Settings(**settings)
    assert train.epochs_of(Recipe()) == epochs
    assert train.recipe_of(Recipe()).learning_rate == pytest.approx(rate)
    assert train.recipe_of(Recipe()).momentum == Recipe().momentum


# --- an author's view ------------------------------------------------------------------------

STAGE = '''
    """Weights near zero become zero: a stage in one file."""

    from pydantic import Field

    from pipeline.sweep import Frozen


    class Settings(Frozen):
        part: float = Field(0.5, gt=0, lt=1)


    def apply(state, settings, context):
        import torch

        with torch.no_grad():
            for parameter in state.network.parameters():
                if parameter.dim() > 1:
                    cut = parameter.abs().flatten().quantile(settings.part)
                    parameter[parameter.abs() < cut] = 0
        return state
'''


@pytest.fixture
def own_stage(tmp_path, monkeypatch):
    """A stage of one's own, registered by its one line."""
    (tmp_path / "my_zeros.py").write_text(textwrap.dedent(STAGE))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(STAGES, "zeros", "my_zeros")
    catalog.built_in.cache_clear()
    yield
    catalog.built_in.cache_clear()


def test_a_stage_in_one_file_and_one_line_is_a_technique_like_any_other(bench, own_stage):
    chain = [{"zeros": {"part": 0.6}}, {"quantize": {}}]
    cell = bench.cells(["mine"], define={"mine": chain})["mine"]
    assert [stage.name for stage in cell.stages] == ["zeros", "quantize"]
    cells.run(cell, bench.work)
    paths = bench.work.cell(cell.id)
    result = cells.result(paths)
    assert store.is_done(paths, deep=True) and result.measured["integer_share"] == 1.0
    weight = checkpoint.read_model(paths.model).network.module.features[5].conv.weight
    assert float((weight == 0).float().mean()) == pytest.approx(0.6, abs=0.01)
    assert result.history == []  # nothing was trained


TWICE = """
    import torch

    from pipeline.techniques.settings import Trained


    class Settings(Trained):
        pass


    def shifted(state):
        with torch.no_grad():
            state.network.module.head.bias.add_(0.125)  # what only `start` may do
        return state


    def apply(state, settings, context):
        objective = settings.objective_of(context.cell.recipe, context)

        def after_step(state, step, steps):
            assert 0 < step <= steps
            state.network.module.head.bias.clamp_(-0.5, 0.5)

        for epochs in (2, 1, 2):
            before = state
            state = context.train(
                lambda: shifted(before), objective, epochs, context.cell.recipe,
                after_step=after_step,
            )
        return state
"""


def test_a_stage_may_train_several_times_and_is_resumed_in_each(bench, tmp_path, monkeypatch):
    (tmp_path / "my_twice.py").write_text(textwrap.dedent(TWICE))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(STAGES, "twice", "my_twice")
    catalog.built_in.cache_clear()
    try:
        cell = bench.cells(["mine"], define={"mine": [{"twice": {}}]})["mine"]
        whole = staged(cell, beside(bench, "twice"))
        killed = staged(cell, beside(bench, "twice-killed"), set())
    finally:
        catalog.built_in.cache_clear()
    trained = [(0, "twice", 2), (0, "twice.2", 1), (0, "twice.3", 2)]
    for made_once in (whole, killed):
        stage_epochs = [(h.index, h.stage, len(h.columns["loss"])) for h in made_once.history]
        assert stage_epochs == trained
    one, two = (m.state.network.state_dict() for m in (whole, killed))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [h.columns["loss"] for h in whole.history] == [h.columns["loss"] for h in killed.history]
    assert float(one["module.head.bias"].abs().max()) <= 0.5  # the hook, also after the last step
