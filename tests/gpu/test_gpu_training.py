"""What holds on a CPU holds on a GPU: `env/run pytest -m gpu tests/gpu`; skipped without one."""

from __future__ import annotations

import pytest
import torch

from pipeline import data, execute, failure_kinds, store
from pipeline.models import module_of, network
from pipeline.paths import Work
from pipeline.sweep import Recipe
from pipeline.techniques import TECHNIQUES
from pipeline.training import losses
from pipeline.training.checkpoint import Checkpointer, Snapshot
from pipeline.training.loop import Course, Hooks, Training, fit
from pipeline.training.recipe import machine
from tests import cells, seeded

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA can use"),
    pytest.mark.timeout(600),
]
SPEC = module_of("vgg11_bn").spec("vgg11_bn", 0.25, (3, 32, 32), 10, 128, 1 / 74)
RECIPE = Recipe(epochs=4, batch_size=128, learning_rate=0.05)


def images() -> data.Split:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2_000) % 10
    pixels = torch.randint(0, 128, (2_000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    pixels += (labels * 12).to(torch.uint8)[:, None, None, None]
    every = data.Images(pixels, labels)
    first = data.Images(pixels[:512], labels[:512])
    names, shape = tuple("0123456789"), (3, 32, 32)
    return data.Split("made", names, every, first, first, shape, 128, 1 / 74, True, "made")


def trained(folder, stop_at: int | None, how: str = "auto") -> dict[str, torch.Tensor]:
    """The weights after all epochs, with `compile: HOW`; stopped after some, written, read and gone
    on where `stop_at` says so."""
    recipe = RECIPE.model_copy(update={"compile": how})
    gpu, split = machine(recipe, "cuda"), images()
    kept = Checkpointer(folder / "checkpoint", folder / "metrics.h5")

    def keep(training: Training) -> None:
        kept.save(Snapshot(0, "train", training, ()), wait=True)
        if training.epoch == stop_at:
            raise KeyboardInterrupt

    def go(training: Training, hook) -> Training:
        objective = losses.labels_only(0.0)
        course = Course(recipe, recipe.epochs, objective, gpu, 7)
        return fit(training, split, course, Hooks(keep=hook))

    try:
        training = go(Training(network.new(SPEC, 0)), keep)
    except KeyboardInterrupt:
        training = go(kept.load().training, lambda training: None)
    kept.close()
    return {n: t.cpu() for n, t in training.state.network.state_dict().items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize("how", ["off", "auto", "on"])
def test_a_training_that_was_stopped_ends_with_the_same_bits(how, tmp_path, capsys):
    whole = trained(tmp_path / "whole", None, how)
    resumed = trained(tmp_path / "resumed", 2, how)
    assert not differing(whole, resumed)
    assert "captured" not in capsys.readouterr().err


def test_a_graph_gives_the_weights_of_the_eager_loop(tmp_path):
    assert not differing(
        trained(tmp_path / "a", None, "auto"), trained(tmp_path / "b", None, "off")
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {how: tmp_path_factory.mktemp(how) for how in ("off", "auto", "on")}


@pytest.mark.parametrize("chain", seeded.CHAINS)
def test_whatever_the_stage_a_graph_gives_the_weights_of_the_eager_loop(chain, folders, capsys):
    eager, graph = (
        seeded.figures(folders[how], [chain], "cuda", compile=how) for how in ("off", "auto")
    )
    assert "captured" not in capsys.readouterr().err
    assert graph == eager


COMPILED = ["distill-attention", "quantize-aware-pairs", "quantize-learned", "prune-by-gates"]


@pytest.mark.parametrize("chain", [*COMPILED, "rate-term"])
def test_compiled_it_learns_what_the_eager_loop_learns(chain, folders, capsys):
    eager, compiled = (
        seeded.figures(folders[how], [chain], "cuda", compile=how) for how in ("off", "on")
    )
    assert "captured" not in capsys.readouterr().err
    for name in eager:
        assert compiled[name]["loss"] == pytest.approx(eager[name]["loss"], rel=0.05), name
        assert compiled[name]["weights"] == pytest.approx(eager[name]["weights"], rel=0.02), name


def test_a_step_that_cannot_be_captured_runs_without_a_graph(capsys):
    """A line says so, and the weights are those of the eager loop."""

    def waits(network, pixels, labels):
        logits = network(pixels)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        return loss * (1.0 if loss.item() else 1.0), logits  # the host waits for the device

    def weights(how: str) -> dict[str, torch.Tensor]:
        recipe = RECIPE.model_copy(update={"compile": how, "epochs": 1})
        training = Training(network.new(SPEC, 0))
        fit(training, images(), Course(recipe, 1, waits, machine(recipe, "cuda"), 7))
        return {n: t.cpu() for n, t in training.state.network.state_dict().items()}

    graphed, eager = weights("auto"), weights("off")
    assert capsys.readouterr().err.count("the training step cannot be captured") == 1
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert not differing(graphed, eager)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return Work(tmp_path_factory.mktemp("gpu") / "work")


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_every_technique_gives_the_artifact_that_training_saw(technique, work, tmp_path):
    made = cells.cells(tmp_path, ["base", technique] if technique != "base" else ["base"])
    for cell in made.values():
        with store.lock_cell(work.cell(cell.id)):
            execute.run_cell(cell, work, work.root, device="cuda")
    measured = cells.result(work.cell(made[technique].id)).measured
    assert measured["simulated_agreement"] >= 0.99
    assert measured["accuracy"] > 0.3
    if "int8" in technique:
        assert measured["integer_share"] >= 0.99


def test_feature_maps_of_a_compiled_network_are_those_of_the_eager_one():
    made = network.new(SPEC, 0).network.cuda().eval()
    pixels = images().test.pixels[:64].cuda()
    with torch.no_grad():
        logits, maps = made(pixels, maps=True)
        compiled_logits, compiled_maps = torch.compile(made)(pixels, maps=True)
    assert len(maps) == len(compiled_maps) == 5
    for a, b in zip([logits, *maps], [compiled_logits, *compiled_maps], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_a_gpu_that_others_fill_up_is_a_failure_of_its_own():
    free, _ = torch.cuda.mem_get_info()
    others = torch.empty(max(0, free - 300 * 2**20), dtype=torch.uint8, device="cuda")
    recipe = RECIPE.model_copy(update={"batch_size": 1000})
    course = Course(recipe, 1, losses.labels_only(0.0), machine(recipe, "cuda"), 7)
    wide = module_of("vgg16_bn").spec("vgg16_bn", 1.0, (3, 32, 32), 10, 128, 1 / 74)
    try:
        with pytest.raises(RuntimeError) as raised:
            fit(Training(network.new(wide, 0)), images(), course)
        kind, line = failure_kinds.failure_of(raised.value)  # asks how much is free
    finally:
        del others
        torch.cuda.empty_cache()
    assert kind == "gpu_out_of_memory", line


def test_a_full_gpu_is_a_failure_of_its_own():
    free, _ = torch.cuda.mem_get_info()
    with pytest.raises(torch.OutOfMemoryError) as raised:
        torch.empty(2 * free, dtype=torch.uint8, device="cuda")
    kind, line = failure_kinds.failure_of(raised.value)
    assert kind == "gpu_out_of_memory" and "CUDA out of memory" in line


def test_the_same_seed_gives_the_same_weights(tmp_path):
    first, second = trained(tmp_path / "a", None), trained(tmp_path / "b", None)
    assert all(torch.equal(first[name], second[name]) for name in first)
    started = network.new(SPEC, 0).network.state_dict()
    assert not torch.equal(first["module.head.weight"], started["module.head.weight"])
