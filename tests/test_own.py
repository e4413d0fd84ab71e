"""A user's own network: taken apart, cut together, quantized, with weights that were brought."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
import yaml
from safetensors.torch import save_file

from pipeline import catalog, hardware, plugins, registry, sweep
from pipeline.artifact import bounds
from pipeline.artifact.float import refuse_unexportable
from pipeline.artifact.format import INPUT
from pipeline.artifact.int8 import int8_model
from pipeline.data import Images
from pipeline.errors import UserError
from pipeline.measure import complexity, similarity
from pipeline.models import module_of, network, own, weights
from pipeline.models.transforms import calibration, fakequant, gated
from pipeline.models.transforms.binary import Binary
from pipeline.models.transforms.factored import Factored
from pipeline.models.transforms.fakequant import FakeQuantized
from pipeline.models.transforms.masked import Masked
from pipeline.orchestrate import estimate, plan
from pipeline.paths import Work
from pipeline.sweep import Cell, Model
from pipeline.sweep import own as entries
from pipeline.techniques import (
    distill_few,
    filters,
    low_rank,
    prune,
    prune_clusters,
    prune_learned,
    sparsify,
    train,
)
from pipeline.versions import SHARED
from tests import cells as small_cells
from tests.benchmarks import bench_groups
from tests.lab import Lab
from tests.test_models import images, lively
from tests.test_similarity import svcca as svcca_of_numpy
from tests.test_techniques import Given

TINY = [{"prune": {"parameters_kept": 0.5}}, {"finetune": {}}, {"quantize": {"aware": True}}]
NETS = Path(__file__).with_name("own_network") / "nets.py"


@pytest.fixture(autouse=True)
def only_built_in():
    yield
    registry.fill({})


def cells_of(folder: Path, techniques=("base",), **entry) -> dict[str, Cell]:
    """Technique -> cell, of a sweep file beside the source of the network."""
    if not (folder / "nets.py").exists():
        shutil.copy(NETS, folder)
    content = {
        "name": "own",
        "models": [{"name": "mine", "factory": "nets.py:build", **entry}],
        "datasets": ["digits"],
        "techniques": list(techniques),
        "define": {"tiny": TINY} if "tiny" in techniques else {},
        "training": {"epochs": 1, "batch_size": 32, "train_images": 200, "test_images": 100},
        "measure": {"repeats": 1, "seconds": 0.05},
    }
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    return {cell.technique: cell for cell in sweep.load(path, catalog.built_in()).cells}


def known(folder: Path, function: str = "build", **arguments):
    """The spec of an own network, once its cell is known to this process."""
    cell = cells_of(folder, factory=f"nets.py:{function}", arguments=arguments)["base"]
    work = Work(folder / "runs")
    plugins.keep_own([cell.model], work)
    catalog.built_in().of_cell(json.loads(json.dumps(cell.to_json())), work.cell(cell.id))
    return module_of("mine").spec("mine", 1.0, (1, 32, 32), 10, 120, 1 / 64)


def deployed(state: network.ModelState, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the network in int8: as it is simulated, and as its artifact gives them."""
    made = network.with_transform(state, FakeQuantized(pairs=hardware.saturates()))
    batches = [made.network.normalize(pixels)]
    calibration.calibrate(made.network.module, batches, "minmax", (120, 1 / 64))
    model = int8_model(made, network.integers(made), pixels.numpy())
    bounds.cost(model, state.spec.shape)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    simulated = made.network.eval()(pixels).detach()
    return simulated, torch.from_numpy(session.run(None, {INPUT: pixels.numpy()})[0])


@pytest.mark.parametrize("solve", ["outputs", "weights"])
def test_few_images_fit_layers_called_twice_and_before_work_in_place(tmp_path, solve):
    """And linear layers on every pixel, whose channels stand last."""
    pixels, found = images((1, 32, 32), 64), {}
    for inplace in (False, True):
        whole = lively(known(tmp_path, "mixer", inplace=inplace))
        groups = network.graph_of(whole.spec).groups
        assert [group.producers for group in groups if not group.whole] == [("widen",)]
        kept = [
            torch.arange(0, count, 1 if group.whole else 2)
            for group, count in zip(groups, whole.spec.channels, strict=True)
        ]
        cut, right = (network.shrink(whole, kept) for _ in range(2))
        distill_few._align(whole, right, kept, lambda: iter(pixels.split(16)), solve)
        with torch.inference_mode():
            found[inplace] = [s.network.eval()(pixels) for s in (whole, right, cut)]
    for plain, in_place in zip(*found.values(), strict=True):
        torch.testing.assert_close(plain, in_place)
    if solve == "weights":
        wanted, *others = found[True]
        gaps = [float((each - wanted).square().mean()) for each in others]
        assert gaps[0] < 0.2 * gaps[1]


def test_filters_of_one_direction_and_depthwise_ones_behind_them_are_merged_without_loss(tmp_path):
    """Half of the channels are 3 times the others before a depthwise convolution, whose bias grows
    with that, and half as large as these behind it."""
    whole = lively(known(tmp_path, "separable"))
    module = whole.network.module
    with torch.no_grad():
        for layer, times, bias_times in ((module.stem, 3.0, 3.0), (module.depthwise, 0.5, 1.5)):
            layer.weight[4:] = times * layer.weight[:4]
            layer.bias[4:] = bias_times * layer.bias[:4]
    few = replace(whole.spec, channels=(4, 8))
    kept = network.parameter_count(few) / network.parameter_count(whole.spec)
    settings = prune_clusters.Settings(parameters_kept=kept + 1e-9, multiple=1)
    pixels = images(whole.spec.shape)
    with torch.inference_mode():
        before = whole.network.eval()(pixels)
        merged = prune_clusters.apply(whole, settings, Given(whole, 1))
        assert merged.spec.channels[0] == 4
        torch.testing.assert_close(merged.network.eval()(pixels), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding_mode", ["reflect", "circular"])
def test_factors_pad_as_the_convolution_does(tmp_path, padding_mode):
    whole = lively(known(tmp_path, "separable", padding_mode=padding_mode))
    parts = low_rank._decomposed(whole, "tucker")["last"]
    tensors = dict(whole.network.state_dict()) | low_rank._factors("module.last", parts, 8, 8)
    tensors["module.last.2.bias"] = tensors.pop("module.last.bias")
    del tensors["module.last.weight"]
    spec = whole.spec.with_transform(Factored(("last",), (8,), (8,)))
    parted = network.restore(spec, tensors)
    pixels = images(whole.spec.shape)
    logits = (state.network.eval()(pixels) for state in (parted, whole))
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


def test_gates_are_where_closed_channels_are_zero_for_those_that_read_them(tmp_path, capsys):
    """What a sigmoid makes of zero would be lost with the filter."""
    settings = prune_learned.Settings(parameters_kept=0.5, multiple=1)

    def gated_groups(act: str) -> list[int]:
        state = lively(known(tmp_path, "separable", act=act))
        graph = network.graph_of(state.spec)
        sizes = filters.Sizes.of(state.spec, state.spec, settings)
        gates = gated.gates(prune_learned._gated(state, sizes, settings).network.module)
        assert all(gate.open.all() for gate in gates.values())
        return [graph.groups[i].producers[0] for i in gates]

    assert gated_groups("ReLU") == gated_groups("Hardswish") == ["stem", "last"]
    capsys.readouterr()
    assert gated_groups("Sigmoid") == ["last"]
    assert "left whole: stem: what is behind it makes something else" in capsys.readouterr().err


@pytest.mark.parametrize(("function", "size"), [("mixer", (8, 8)), ("tokens", (64,))])
def test_layers_on_every_pixel_or_token_are_compared(tmp_path, function, size):
    """Their channels stand last: they are pooled over pixels, and cut layers stay comparable."""
    mine, base = (network.new(known(tmp_path, function), seed) for seed in (0, 1))
    assert similarity._sizes(base)["widen"] == size and similarity._sizes(base)["stem"] == (8, 8)
    pixels = images((1, 32, 32), 40)
    alike = similarity.of_networks(
        mine, base, Images(pixels, torch.zeros(40, dtype=torch.long)), torch.device("cpu")
    )
    layers = similarity._common(mine, base)
    flat = []
    for state in (mine, base):
        state.network.module.widen.register_forward_hook(
            lambda _, inputs, output: flat.append(output.flatten(0, -2))
        )
        with torch.no_grad():
            state.network.eval()(pixels)
    expected = svcca_of_numpy(*(each.double().numpy() for each in flat))
    assert alike[similarity.SVCCA][layers.index("widen")] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("traced", [True, False])
def test_the_first_and_the_last_layer_are_those_that_run_first_and_last(tmp_path, traced):
    """Not those that read the image itself, where the network normalizes it, nor as registered."""
    spec = known(tmp_path, "disordered", branches=not traced)
    graph = network.graph_of(spec)
    assert graph.image == () and bool(graph.groups) == traced
    assert graph.first_and_last(["head", "middle", "stem"]) == ({"stem"}, "head")
    state = network.with_transform(network.new(spec, 0), Masked())
    assert sparsify._cut(state, sparsify.Settings(sparsity=0.5)) == ["middle"]
    quantized = network.with_transform(network.new(spec, 0), FakeQuantized(learned=True))
    assert [*Binary().layers(quantized.network.module, graph)] == ["middle"]


# --- what is cut together ----------------------------------------------------------------------


def test_sums_gates_concatenations_and_depthwise_filters_are_cut_together(tmp_path):
    spec = known(tmp_path)
    graph = network.graph_of(spec)
    by_first = {g.producers[0]: g for g in graph.groups}
    assert by_first["stem"].producers == ("stem", "narrow") and by_first["stem"].summed
    assert by_first["stem"].norms == ("stem_norm",)
    assert by_first["widen.0"].producers == ("widen.0", "depthwise", "excite")
    assert not by_first["widen.0"].summed and by_first["widen.0"].norms == ("widen.1", "norm")
    assert by_first["right"].consumers == ("head",)  # both of its halves, which are added
    left, right = (graph.groups.index(by_first[name]) for name in ("left", "right"))
    assert graph.outputs == {"right": (right, right)} and graph.inputs == {"head": (left, right)}
    assert graph.left == () and graph.image == ("stem",) and len(graph.maps) == 2
    assert dict(graph.norms) == {"stem": "stem_norm", "widen.0": "widen.1", "depthwise": "norm"}
    assert bench_groups.difference(spec) < 1e-5


def test_a_smaller_own_network_is_what_the_factory_builds_cut_to_size(tmp_path):
    base = lively(known(tmp_path))
    pruned = prune.apply(base, prune.Settings(parameters_kept=0.5), Given(base, 1))
    again = network.restore(pruned.spec, pruned.network.state_dict())
    assert network.parameter_count(pruned.spec) == sum(
        p.numel() for p in again.network.parameters()
    )
    assert network.parameter_count(pruned.spec) <= 0.5 * network.parameter_count(base.spec)
    pixels = images((1, 32, 32))
    with torch.inference_mode():
        logits, maps = again.network.eval()(pixels, maps=True)
        assert torch.equal(logits, pruned.network.eval()(pixels)) and len(maps) == 2
    student = module_of("mine").spec("mine", 0.5, (1, 32, 32), 10, 120, 1 / 64)
    assert [c for c in student.channels] == [
        max(8, count // 2) if count > 8 else 8 for count in base.spec.channels
    ]
    assert network.parameter_count(student) == sum(
        p.numel() for p in network.new(student, 0).network.parameters()
    )


def test_what_is_not_followed_stays_whole_and_is_named(tmp_path, capsys):
    base = lively(known(tmp_path, "attention"))
    graph = network.graph_of(base.spec)
    assert [g.producers for g in graph.groups] == [("free",), ("last",)]
    assert {line.split(": ")[0] for line in graph.left} == {"stem", "seen", "grouped"}
    why = "grouped has 4 groups of channels, and what it reads is not followed"
    assert f"grouped: {why}" in graph.left
    pruned = prune.apply(base, prune.Settings(parameters_kept=0.8), Given(base, 1))
    assert sum(pruned.spec.channels) < sum(base.spec.channels) == 40
    assert f"prune: left whole: {graph.left[0]}\n" in capsys.readouterr().err
    split = SimpleNamespace(shape=(1, 32, 32), classes=range(10), zero_point=120, scale=1 / 64)
    cell = SimpleNamespace(model=Model(name="mine"))
    student = train.student_spec(SimpleNamespace(cell=cell, split=split), None, 0.5)
    assert sum(student.channels) < 40
    assert f"width 0.5: left whole: {graph.left[0]}\n" in capsys.readouterr().err


def test_what_cannot_be_traced_trains_but_is_not_pruned(tmp_path):
    base = lively(known(tmp_path, "branching"))
    assert base.spec.channels == ()
    with torch.inference_mode():
        assert base.network(images((1, 32, 32))).shape == (4, 10)
    with pytest.raises(UserError, match=r"^prune: no filters .* can be removed \(all of it: "):
        prune.apply(base, prune.Settings(), Given(base, 1))
    with pytest.raises(UserError, match=r"mine: width 0\.5: it cannot be made narrower, since it"):
        module_of("mine").spec("mine", 0.5, (1, 32, 32), 10, 120, 1 / 64)
    with pytest.raises(UserError, match=r"gives \[2, 7\] for two images of \[1, 32, 32\]"):
        known(tmp_path, "branching", classes=7)


def test_what_cannot_be_deployed_is_refused_before_it_is_trained(tmp_path):
    """Control flow on values; where it is on sizes, it is trained, quantized and deployed."""
    work, events = Work(tmp_path / "runs"), []

    def run(technique: str, **arguments):
        cell = cells_of(
            tmp_path, ["base", "ptq-int8"], factory="nets.py:branching", arguments=arguments
        )[technique]
        plugins.keep_own([cell.model], work)
        catalog.built_in().of_cell(json.loads(json.dumps(cell.to_json())), work.cell(cell.id))
        small_cells.run(cell, work, events.append)
        return small_cells.result(work.cell(cell.id)).measured

    with pytest.raises(UserError, match=r"^model mine: PyTorch's exporter cannot make an ONNX"):
        run("base")
    assert not [event for event in events if "epoch" in event]
    run("base", values=False)
    measured = run("ptq-int8", values=False)
    assert measured["integer_share"] >= 0.9 and measured["simulated_agreement"] >= 0.97


@pytest.mark.parametrize(
    ("pool", "average"),
    [
        *((pool, True) for pool in ("whole", "sides", "side", "beyond")),
        *((pool, False) for pool in ("corner", "rows", "padded", "sum")),
    ],
)
def test_a_pool_is_the_average_of_a_map_only_where_it_averages_all_of_it(tmp_path, pool, average):
    state = network.new(known(tmp_path, "pooled", pool=pool), 0)
    written = module_of("mine").made().eval()
    written.load_state_dict(state.network.module.state_dict())
    x = state.network.normalize(images((1, 32, 32)))
    with torch.no_grad():
        torch.testing.assert_close(state.network.module.eval()(x), written(x))
    averages = [m for m in state.network.modules() if type(m) is torch.nn.AdaptiveAvgPool2d]
    assert len(averages) == average


@pytest.mark.parametrize("pool", ["overlapping", "several", "repeated"])
def test_adaptive_averages_of_uneven_windows_are_deployed(tmp_path, pool):
    """Of maps that are no multiple of what they become, or smaller, as VGG's for small images."""
    state = lively(known(tmp_path, "pooled", pool=pool, side=7))
    assert [group.whole for group in network.graph_of(state.spec).groups].count(False) == 1
    written = module_of("mine").made().eval()
    written.load_state_dict(state.network.module.state_dict())
    pixels = images((1, 32, 32))
    with torch.no_grad():
        logits = state.network.eval()(pixels)
        torch.testing.assert_close(logits, written(state.network.normalize(pixels)))
    refuse_unexportable(state, "mine")
    simulated, given = deployed(state, pixels)
    assert (simulated - logits).abs().max() < 0.1 * logits.std()
    assert (simulated - given).abs().max() < 0.05 * logits.std()


def test_what_takes_no_single_image_is_refused_before_it_is_trained(tmp_path):
    state = network.new(known(tmp_path, "pooled", pool="squeezed"), 0)
    words = r"^model mine: the graph .* could not be run: its shapes do not fit together"
    with pytest.raises(UserError, match=words):
        refuse_unexportable(state, "mine")


@pytest.mark.parametrize("small_first", [True, False])
def test_one_range_holds_a_concatenation_and_its_parts(tmp_path, small_first):
    state = lively(known(tmp_path, "joined", small_first=small_first))
    made = network.with_transform(state, FakeQuantized())
    batch = made.network.normalize(images((1, 32, 32), 16))
    calibration.calibrate(made.network.module, [batch], "minmax", (120, 1 / 64))
    points = fakequant.points(made.network.module)
    assert points["small"] is points["wide"]
    read = []
    made.network.module.wide.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    made.network.module.eval()(batch)
    most = (255 - points["wide"].zero_point) * points["wide"].scale
    torch.testing.assert_close(most, read[0].max(), rtol=0.02, atol=0)


def test_weights_that_layers_share_are_folded_apart(tmp_path):
    """Shared until then; stored, restored, quantized and deployed as two."""
    state = lively(known(tmp_path, "shared"))
    assert state.network.module.second.weight is state.network.module.first.weight
    again = network.restore(state.spec, state.network.state_dict()).network.module
    assert again.second.weight is again.first.weight
    pixels = images((1, 32, 32), 32)
    logits = state.network.eval()(pixels)
    folded = network.fold(state)
    restored = network.restore(folded.spec, folded.network.state_dict())
    for each in (folded, restored):
        torch.testing.assert_close(each.network.eval()(pixels), logits, rtol=1e-4, atol=1e-4)
    simulated, given = deployed(restored, pixels)
    assert (simulated - logits).abs().max() < 0.1 * logits.std()
    assert (simulated - given).abs().max() < 0.05 * logits.std()


def test_layers_that_the_graph_of_the_logits_lacks_do_not_keep_it_from_int8(tmp_path):
    """They stay in the network, whose checkpoints have their weights."""
    state = lively(known(tmp_path, "unread"))
    assert {"beside.weight", "of_query.weight"} <= set(state.network.module.state_dict())
    pixels = images((1, 32, 32))
    logits = state.network.eval()(pixels)
    simulated, given = deployed(state, pixels)
    assert (simulated - logits).abs().max() < 0.1 * logits.std()
    assert (simulated - given).abs().max() < 0.05 * logits.std()


def test_functional_dropouts_drop_in_training(tmp_path):
    state = network.new(known(tmp_path, "dropping"), 0)
    kinds = {type(module) for module in state.network.module.modules()}
    assert {torch.nn.Dropout2d, torch.nn.AlphaDropout} <= kinds
    pixels = images((1, 32, 32))
    dropping, steady = state.network.train(), copy.deepcopy(state.network).eval()
    with torch.no_grad():
        assert not torch.equal(dropping(pixels), dropping(pixels))
        assert torch.equal(steady(pixels), steady(pixels))


@pytest.mark.parametrize(
    ("how", "cut"),
    [
        ("columns", {"next", "other"}),  # parts of the maps, not of the channels
        ("unbind", {"next", "other"}),
        ("topk", {"next", "other"}),
        ("chunks", {"next", "other"}),  # several parts at once
        ("norm", {"next"}),  # called twice; what it learns is in buffers alone
        ("clamp", {"next"}),
        ("conv", {"next", "stem", "other"}),
        ("add", {"next", "stem", "other"}),
        ("mul", {"next", "stem", "other"}),
        ("cat", {"next", "stem", "other"}),
    ],
)
def test_what_a_call_does_with_channels_is_followed_or_leaves_them_whole(tmp_path, how, cut):
    spec = known(tmp_path, "entangled", how=how)
    graph = network.graph_of(spec)
    groups = [set(g.producers) for g in graph.groups if not g.whole]
    assert set().union(*groups) == cut
    if how in ("conv", "add", "mul"):
        assert {"stem", "other"} in groups
    assert bool(graph.left) is ("stem" not in cut)
    assert bench_groups.difference(spec) < 1e-9


@pytest.mark.parametrize(("blocks", "step"), [(8, 1), (4, 2), (3, 8)])
def test_blocks_are_cut_so_that_their_layer_has_a_multiple_of_filters(tmp_path, blocks, step):
    base = lively(known(tmp_path, "blocks", blocks=blocks))
    assert base.spec.channels == (8, 16, 24)  # of a block, of a block, of all
    settings = prune.Settings(macs_kept=0.6, scope="layer")
    sizes = filters.Sizes.of(base.spec, base.spec, settings)
    assert sizes.steps == (step, step, 8)
    channels = prune.apply(base, settings, Given(base, 1)).spec.channels
    assert (channels[0] < 8) is (step < 8) and channels[1] < 16
    assert channels[0] * blocks % 8 == channels[1] * blocks % 8 == 0
    few = prune.Settings(macs_kept=0.15)
    more = filters.filled(sizes, {0: torch.rand(8)}, few, [step, step, 8])
    assert more[0] % step == 0 and (step < more[0] < 8 or step == 8)
    half = module_of("mine").spec("mine", 0.5, (1, 32, 32), 10, 120, 1 / 64).channels
    assert half == (max(step, 4), 8, 16)


@pytest.mark.parametrize("timm", [False, True])
def test_parts_of_channels_and_blocks_are_as_large_as_their_groups(tmp_path, timm):
    """Whatever each of them loses: the numbers in the network's own code are those of the whole."""
    spec = known(tmp_path, "parted", timm=timm)
    graph = network.graph_of(spec)
    cut = {name for g in graph.groups if not g.whole for name in g.producers}
    assert cut == {"stem", "first", "second", "inner"}
    assert "grouped: permute" in graph.left
    counts = dict(zip(("few", "many"), graph.outputs["norm"], strict=True))
    assert graph.outputs["stem"] == (counts["few"], counts["many"])
    kept = [
        torch.arange(count)[torch.arange(count) % (2 + i) > 0] if not group.whole else None
        for i, (group, count) in enumerate(zip(graph.groups, spec.channels, strict=True))
    ]
    kept = [torch.arange(c) if k is None else k for k, c in zip(kept, spec.channels, strict=True)]
    assert bench_groups.difference(spec, kept) < 1e-9
    by_count = complexity.by_channels(spec)([len(k) for k in kept])
    assert by_count == complexity.count(replace(spec, channels=tuple(len(k) for k in kept)))


def test_a_normalization_with_an_activation_learns_and_is_folded(tmp_path):
    """timm's own code, traced, would keep the statistics that it began with."""
    spec = known(tmp_path, "parted", timm=True)
    state = network.new(spec, 0)
    assert network.graph_of(spec).norms == (("stem", "norm"),)
    before = state.network.module.norm.running_mean.clone()
    state.network.train()(images((1, 32, 32)))
    assert not torch.equal(state.network.module.norm.running_mean, before)
    state.network.eval()
    folded = network.fold(state)
    with torch.inference_mode():
        actual, expected = (n.network.eval()(images((1, 32, 32))) for n in (folded, state))
    assert torch.allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("squeezenet1_1", ""),  # concatenations
        ("regnet_y_400mf", ""),  # grouped convolutions, gates
        ("timm:mobilenetv3_small_050", ""),  # depthwise, normalization with an activation
        ("timm:convnext_atto", "permute"),  # the mean of LayerNorm is over all channels
    ],
)
def test_classifiers_of_others_come_out_as_torch_pruning_makes_them(name, left):
    line, agrees = bench_groups.compared(name, 32)
    assert agrees, line
    whole = network.graph_of(bench_groups.spec_of(name, 32)).left
    assert bool(whole) is bool(left) and left in " ".join(whole)


def test_a_network_that_torch_pruning_cannot_cut_does_not_count_as_agreeing(monkeypatch):
    def fails(spec):
        raise ZeroDivisionError("by what it does not know")

    monkeypatch.setattr(bench_groups, "theirs", fails)
    line, agrees = bench_groups.compared("squeezenet1_1", 32)
    assert agrees is None and "torch-pruning raises ZeroDivisionError: by what it does" in line
    assert bench_groups.summary([True, None]) == "1 agree, 1 not comparable"
    assert bench_groups.summary([False, True]) == "1 agree, 0 not comparable, 1 WRONG"


@pytest.mark.parametrize(
    ("name", "width"), [("vgg11_bn", 0.125), ("resnet20", 0.5), ("mobilenetv2", 0.25)]
)
def test_shipped_models_come_out_as_torch_pruning_makes_them(name, width):
    spec = module_of(name).spec(name, width, (3, 32, 32), 10, 120, 1 / 64)
    assert bench_groups.ours(spec) == bench_groups.theirs(spec)


# --- identity ------------------------------------------------------------------------------------


def test_an_id_has_the_bytes_and_the_arguments_but_not_the_place(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    first = cells_of(here)["base"]
    assert cells_of(there)["base"].id == first.id
    assert cells_of(here, arguments={"width": 24})["base"].id != first.id
    assert cells_of(here, factory="nets.py:attention")["base"].id != first.id
    (there / "nets.py").write_text((there / "nets.py").read_text() + "\n")
    assert cells_of(there)["base"].id != first.id
    read = Cell.from_json(json.loads(json.dumps(first.to_json())), catalog.reading())
    assert read.id == first.id and read.to_json() == first.to_json()


def test_how_it_is_taken_apart_is_in_the_ids(tmp_path, monkeypatch):
    """Cells of the first way, and bases before the sixth, do not say it, and are read as they
    were."""
    latest = SHARED["tracing"]
    now = cells_of(tmp_path, ("base", "prune-filters"))
    assert all(cell.versions["tracing"] == SHARED["tracing"] for cell in now.values())
    monkeypatch.setitem(SHARED, "tracing", 1)
    before = cells_of(tmp_path, ("base", "prune-filters"))
    monkeypatch.setitem(SHARED, "tracing", 5)
    lately = cells_of(tmp_path, ("base", "prune-filters"))
    monkeypatch.setitem(SHARED, "tracing", latest)
    assert before["base"].id == lately["base"].id == lately["prune-filters"].base_id
    assert now["base"].id == now["prune-filters"].base_id != before["base"].id
    assert before["base"].id in {cell.id for cell in now["base"].older()}
    assert "tracing" not in lately["base"].versions
    assert before["prune-filters"].id != now["prune-filters"].id
    assert lately["prune-filters"].id in {cell.id for cell in now["prune-filters"].older()}
    for cell in (*before.values(), *lately.values(), *now.values()):
        data = json.loads(json.dumps(cell.to_json()))
        again = Cell.from_json(data, catalog.built_in())
        assert again.id == cell.id and again.versions == cell.versions
    assert "tracing" not in before["prune-filters"].to_json()["core"]
    assert before["prune-filters"].differs_from(now["prune-filters"]) == ""
    assert (
        now["prune-filters"].differs_from(before["prune-filters"]) == f"tracing {SHARED['tracing']}"
    )


def test_a_module_counts_by_the_version_of_its_distribution(tmp_path):
    cell = cells_of(tmp_path, factory="torchvision.models:squeezenet1_1")["base"]
    assert cell.model.own.version and cell.model.own.sha256 is None
    shutil.copytree(tmp_path, tmp_path / "lib" / "house")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path / "lib"))
        origin = cells_of(tmp_path, factory="house.nets:build")["base"].model.own
        assert origin.sha256 and origin.source == "house.nets"
        about = tmp_path / "lib" / "house-1.5.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: house\nVersion: 1.5\n")
        ours = cells_of(tmp_path, factory="house.nets:build")["base"].model.own
        assert ours.version == "1.5" and ours.sha256 is None
        (about / "direct_url.json").write_text(
            '{"url": "file:///h", "dir_info": {"editable": true}}'
        )
        assert cells_of(tmp_path, factory="house.nets:build")["base"].model.own == origin


def test_a_sweep_is_loaded_again_where_its_files_are_gone(tmp_path):
    """As the job that builds a report does."""
    (tmp_path / "ours.pt").write_bytes(b"weights")
    first = cells_of(tmp_path, weights="ours.pt")["base"]
    text = (tmp_path / "own.yaml").read_text()
    for name in ("nets.py", "ours.pt", "own.yaml"):
        (tmp_path / name).unlink()
    files, work = entries.files(first.model), Work(tmp_path / "runs")
    [again] = plan.load_again(tmp_path / "own.yaml", text, work, files).cells
    assert again.id == first.id and len(files) == 2


def test_a_plan_does_not_run_the_file(tmp_path):
    (tmp_path / "nets.py").write_text("raise SystemExit('it ran')\ndef build(): ...\n")
    cell = cells_of(tmp_path)["base"]
    assert estimate.notes([cell]) == [
        "the cost of mine is not known, it counts as a VGG-16 until a cell of it is finished"
    ]


def test_a_network_of_which_nothing_is_known_is_estimated_from_its_own_cells(tmp_path):
    mine = cells_of(tmp_path)["base"]
    other = replace(mine, model=Model(name="vgg11_bn"))
    rows = [(mine, 4.0, 3.0, 30.0), (other, 6.0, None, 1.0)]
    measured = [estimate.Measured(*row) for row in rows]
    guess = estimate._from_cells(measured, "from {} cells")
    assert guess.seconds(mine) == pytest.approx(5 + 30) and guess.source == "from 2 cells"
    assert guess.seconds(other) == pytest.approx(5 + 1) and guess.measure_s == 3.0
    unseen = replace(mine, model=Model(name="vgg16_bn"))
    assert guess.seconds(unseen) > 5 + 1


# --- by the command line -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A network with weights of its own, and what is made of it; run once."""
    lab = Lab(tmp_path_factory.mktemp("own"))
    spec = known(lab.folder)
    state = network.new(spec, 3)
    save_file(
        {n: t.contiguous() for n, t in state.network.module.state_dict().items()},
        lab.folder / "mine.safetensors",
    )
    registry.fill({})
    cells = cells_of(lab.folder, ["base", "tiny"], weights="mine.safetensors")
    done = lab.run("own.yaml")
    assert done.returncode == 0, done.stderr
    return lab, cells, state


def test_weights_that_were_brought_are_measured_and_compressed(ran):
    lab, cells, state = ran
    rows = {row["technique"]: row for row in lab.json("report", "own.yaml")["rows"]}
    assert lab.history(cells["base"].id) == {} and estimate.epochs(cells["base"]) == 0
    assert rows["tiny"]["stored_bytes"] < 0.5 * rows["base"]["stored_bytes"]
    from safetensors.torch import load_file

    kept = load_file(lab.work.cell(cells["base"].id).model)
    brought = state.network.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in brought.items())
    small = small_cells.result(lab.work.cell(cells["tiny"].id)).measured
    assert small["simulated_agreement"] >= 0.99 and small["integer_share"] == 1.0  # of 100 images
    assert list(lab.history(cells["tiny"].id)) == ["1-finetune", "2-quantize"]


@pytest.mark.parametrize(
    ("keep", "sentence"),
    [
        (
            lambda n, t: {"model": t},
            "is not of what nets.py:build builds: stem.weight is [16, 1, 3",
        ),
        (
            lambda n, t: {f"module.{n[i]}": t[n[i]] for i in range(1, 9)},
            "builds: lacks stem.weight",
        ),
        (lambda n, t: [*t.values()], "expected a state dict, names and tensors"),
        (lambda n, t: {n[0]: Path}, "cannot be read as weights (UnpicklingError)"),
    ],
)
def test_weights_of_another_network_are_a_sentence(tmp_path, keep, sentence):
    """Among them a pickle that would run something."""
    spec = known(tmp_path)
    tensors = network.new(spec, 0).network.module.state_dict()
    torch.save(keep([*tensors], tensors), tmp_path / "other.pt")
    cell = cells_of(tmp_path, arguments={"width": 24}, weights="other.pt")["base"]
    with pytest.raises(UserError) as error:
        own.fill(network.build(known(tmp_path, width=24)).module, cell.model.own)
    assert sentence in str(error.value)
    (tmp_path / "other.pt").write_bytes(b"")
    with pytest.raises(UserError, match="changed since the sweep was loaded"):
        own.brought(cell.model.own)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_weights_are_taken_by_their_names_in_the_network(prefix, inside):
    """Without what PyTorch put before all of them; a network may have a part of that name."""
    made, other = (torch.nn.ModuleDict({"stem": torch.nn.Conv2d(1, 8, 3)}) for _ in range(2))
    if inside:
        made, other = (torch.nn.ModuleDict({"module": net}) for net in (made, other))
    tensors = {f"{prefix}{name}": tensor for name, tensor in other.state_dict().items()}
    weights.fill(made, tensors, "other.pt", "what nets.py:build builds")
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


# --- at the edge ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (
            {"factory": "gone.py:build"},
            r"models\[0\]\.factory: /.*gone\.py: is not there; expected a Py",
        ),
        (
            {"factory": "no_such.place:build"},
            r"models\[0\]\.factory: 'no_such\.place' cannot be imported here",
        ),
        (
            {"factory": "nets.py:biuld"},
            r"own\.yaml:\d+: models\[0\]\.factory: /.*nets\.py: has no 'biuld' at its top level; "
            r"did you mean 'build'\?$",
        ),
        ({"factory": "nets.py"}, r"models\[0\]\.factory: expected FILE\.py:FUNCTION or"),
        ({"name": "vgg16_bn"}, r"models\[0\]\.name: 'vgg16_bn' is a model that netpress has"),
        (
            {"weights": "gone.pt"},
            r"models\[0\]\.weights: .*gone\.pt: is not there; expected a file",
        ),
        ({"width": 2.0}, r"models\[0\]\.width: "),
        ({"argument": {}}, r"models\[0\]\.argument: "),
    ],
)
def test_what_is_wrong_with_an_entry_is_a_sentence_with_its_place(tmp_path, entry, sentence):
    with pytest.raises(UserError, match=sentence):
        cells_of(tmp_path, **entry)


@pytest.mark.parametrize(
    "source",
    [
        "def build(): ...",
        "class build: ...",
        "build = 1",
        "from functools import partial as build",
        "import build.parts",
        "if 1 > 2:\n    pass\nelse:\n    (other, build) = 1, 2",
        "try:\n    import nothing\nexcept ImportError:\n    def build(): ...",
        "with open('x') as build: ...",
        "for build in (): ...",
        "def set_up():\n    global build\n    build = 1\nset_up()",
        "from nets import *",
        "def __getattr__(name): ...",
        "globals()['build'] = 1",
        "import sys\nsetattr(sys.modules[__name__], 'build', 1)",
        "other = " + "1 + " * 20_000 + "1",  # nested too deeply to be looked into
        "#" * 1_000_000,
    ],
)
def test_a_file_that_may_have_the_factory_is_taken_without_running_it(tmp_path, source):
    (tmp_path / "nets.py").write_text("raise SystemExit\n" + source)
    assert cells_of(tmp_path)["base"].model.own.function == "build"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("class Net:\n    def build(self): ...", "has no 'build' at its top level; valid: Net$"),
        ("def other():\n    build = '\\d'", "has no 'build' at its top level; valid: other$"),
        ("other = lambda: (build := 1)", "has no 'build' at its top level; valid: none$"),
        ("\ndef build(:\n", "nets.py:2: cannot be imported: SyntaxError: invalid syntax$"),
        ("build = 1\nreturn", "nets.py:2: cannot be imported: SyntaxError: 'return' outside"),
        ("build = '\0'", "nets.py:1: cannot be imported: [A-Za-z]+: .*null bytes"),
    ],
)
def test_a_file_without_the_factory_is_refused_when_the_sweep_is_loaded(tmp_path, source, sentence):
    (tmp_path / "nets.py").write_text(source)
    with pytest.raises(UserError, match=sentence):
        cells_of(tmp_path)


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ("built", "raises SystemExit: no such option"),
        ("called", "raises SystemExit when called: no such image"),
    ],
)
def test_a_network_that_ends_the_process_is_a_sentence(tmp_path, when, words):
    with pytest.raises(UserError, match=rf"^factory nets\.py:leaving: {words}$"):
        known(tmp_path, "leaving", when=when)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")  # which users still have
@pytest.mark.parametrize(
    ("function", "arguments", "sentence"),
    [
        ("number", {}, r"factory nets\.py:number: gives int; expected a torch\.nn\.Module"),
        ("POOLS", {}, r"factory nets\.py:POOLS: is not there; expected a function"),
        (
            "build",
            {"classes": 7},
            r"gives \[2, 7\] for two images of \[1, 32, 32\], expected logits",
        ),
        ("build", {"depth": 7}, r"nets\.py:build: raises TypeError: .*'depth'"),
        ("normalized", {"new": True}, r"nets\.py:normalized: free: computes its weight anew"),
        ("normalized", {"new": False}, r"nets\.py:normalized: free: computes its weight anew"),
    ],
)
def test_a_factory_that_builds_something_else_is_a_sentence(
    tmp_path, function, arguments, sentence
):
    with pytest.raises(UserError, match=sentence):
        known(tmp_path, function, **arguments)
