"""Steps that read all that changes from the device: on a CPU, where nothing is captured, the same
code gives the same weights as the loop that the host drives. tests/gpu captures it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import execute
from pipeline.models import network
from pipeline.models.transforms import fakequant
from pipeline.paths import Work
from pipeline.runtimes import graphs as deployed
from pipeline.training import compiling, graphs, losses, recipe
from pipeline.training.checkpoint import Checkpointer
from pipeline.training.loop import Course, Hooks, Training, fit
from pipeline.training.step import Step
from tests import cells, seeded
from tests.test_training import SPEC, split


def graphed(made):
    return dataclasses.replace(made, graphed=True)


def test_whatever_the_stage_the_weights_are_those_of_the_eager_loop(tmp_path, monkeypatch):
    chains = ["finetune-taught", "prune-by-gates", "quantize-learned", "sparsify", "rate-term"]
    for how in ("eager", "graphed"):
        (tmp_path / how).mkdir()
    eager = seeded.figures(tmp_path / "eager", chains)
    resolve = execute.machine
    monkeypatch.setattr(execute, "machine", lambda *given: graphed(resolve(*given)))
    assert seeded.figures(tmp_path / "graphed", chains) == eager


def test_no_snapshot_is_written_while_a_step_is_captured(tmp_path, monkeypatch):
    """The second training of a stage begins while the last state of the first is written."""
    captures, writing = [], threading.Lock()
    write, capture, resolve = Checkpointer._write, graphs.Steps.capture, execute.machine

    def slowly(self, *given):
        with writing:
            time.sleep(0.5)
            write(self, *given)

    def captured(self, draws):
        captures.append(writing.locked())
        return capture(self, draws)

    monkeypatch.setattr(Checkpointer, "_write", slowly)
    monkeypatch.setattr(graphs.Steps, "capture", captured)
    monkeypatch.setattr(execute, "machine", lambda *given: graphed(resolve(*given)))
    seeded.figures(tmp_path, ["lowbits"], epochs=1)
    assert len(captures) > 2 and not any(captures)


class Current:
    """As torch.cuda.stream and torch.cuda.graph of a step that makes the host wait: the graph's end
    raises, and its stream stays the current one."""

    stream = "the loop's"

    def __init__(self, stream: str, ends: bool = True):
        self.other, self.ends = stream, ends

    def __enter__(self):
        self.before, Current.stream = Current.stream, self.other

    def __exit__(self, *_):
        if not self.ends:
            raise RuntimeError("operation failed due to a previous error during capture")
        Current.stream = self.before


def test_after_a_capture_that_failed_the_stream_is_what_it_was(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Current.stream)
    monkeypatch.setattr(torch.cuda, "stream", Current)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **how: Current("the graph's", False))
    with pytest.raises(RuntimeError, match="previous error"), deployed.capturing(None):
        assert Current.stream == "the graph's"
    assert Current.stream == "the loop's"


class NothingWaits(TorchDispatchMode):
    """Fails where the host would wait for a GPU: a number is read, or a size depends on values."""

    waiting: ClassVar = {
        "_local_scalar_dense",
        "is_nonzero",
        "nonzero",
        "masked_select",
        "_unique2",
        "unique_dim",
        "bincount",
    }

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.waiting, f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


def test_no_step_makes_the_host_wait_whatever_the_stage(tmp_path, monkeypatch):
    step = Step.__call__

    def watched(self, images, labels):
        with NothingWaits():
            step(self, images, labels)

    monkeypatch.setattr(Step, "__call__", watched)
    short = {"epochs": 1, "train_images": 130}
    assert len(seeded.figures(tmp_path, **short)) == 1 + len(seeded.CHAINS)


def test_a_training_that_was_stopped_ends_with_the_same_bits():
    settings = recipe.Recipe(epochs=3, batch_size=32, learning_rate=0.05)
    here = graphed(recipe.machine(settings, "cpu"))
    course = Course(settings, 3, losses.labels_only(0.1), here, 5)

    def stop(training: Training) -> None:
        if training.epoch == 2:
            raise KeyboardInterrupt

    whole = fit(Training(network.new(SPEC, 0)), split(), course)
    stopped = Training(network.new(SPEC, 0))
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, split(), course, Hooks(keep=stop))
    fit(stopped, split(), course)
    assert stopped.columns["loss"] == whole.columns["loss"]
    ended, expected = (t.state.network.state_dict() for t in (stopped, whole))
    assert all(torch.equal(ended[name], expected[name]) for name in expected)


@pytest.mark.parametrize("limit", [127, 63])
def test_compiled_fake_quantization_is_that_of_pytorch_value_for_value(limit):
    torch.manual_seed(0)
    weight = torch.randn(16, 8, 3, 3, requires_grad=True)
    scale = fakequant.widest(weight, limit) * 0.8  # some are cut off
    zero = torch.zeros(16, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -limit, limit)
    mine = fakequant._fake_quantized(weight, scale.reshape(-1, 1, 1, 1), 0, -limit, limit)
    gradient = torch.randn_like(weight)
    assert torch.equal(mine, expected)
    assert torch.equal(*(torch.autograd.grad(out, weight, gradient)[0] for out in (mine, expected)))


@pytest.mark.parametrize("zero_point", [0, 100])
def test_compiled_fake_quantization_of_activations_too(zero_point):
    torch.manual_seed(0)
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    scale, zero = torch.tensor(0.0123), torch.tensor(zero_point, dtype=torch.int32)
    expected = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)
    mine = fakequant._fake_quantized(x, scale, zero, 0, 255)
    gradient = torch.randn_like(x)
    assert torch.equal(mine, expected)
    assert torch.equal(*(torch.autograd.grad(out, x, gradient)[0] for out in (mine, expected)))


def test_networks_that_differ_in_hooks_alone_are_compiled_apart(monkeypatch):
    """Gates are hooks: code of the network without them would leave them out."""
    from pipeline.models.transforms import gated

    built = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: built(f, backend="eager", **how))
    plain = network.new(SPEC, 0)
    channels = plain.spec.channels
    closed = network.with_transform(plain, gated.Gated(channels, (0,)))
    for gate in gated.gates(closed.network.module).values():
        gate.open.zero_()
    pixels, labels = split().train.pixels[:8], split().train.labels[:8]
    objective = losses.labels_only(0.0)
    compiled = compiling.compiled(objective)
    for state in (plain, closed):
        expected = objective(state.network.eval(), pixels, labels)[1]
        assert torch.equal(compiled(state.network.eval(), pixels, labels)[1], expected)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_what_is_compiled_is_not_chosen_by_a_race(tmp_path, monkeypatch):
    """Forward and backward; what else is compiled in the process stays as fast as it can be."""
    from torch._inductor import compile_fx, config

    modes, compile_one = [], compile_fx._InProcessFxCompile.codegen_and_compile

    def watched(self, *given, **more):
        modes.append(config.deterministic)
        return compile_one(self, *given, **more)

    monkeypatch.setenv(compiling.CACHE, str(tmp_path))  # nothing is there
    monkeypatch.setattr(compile_fx._InProcessFxCompile, "codegen_and_compile", watched)

    def squares(network, pixels, labels):
        logits = network(pixels)
        return (logits.sum(1) - labels).square().sum(), logits

    loss, _ = compiling.compiled(squares)(torch.nn.Linear(3, 2), torch.ones(4, 3), torch.ones(4))
    loss.backward()
    assert modes == [True, True] and not config.deterministic


def test_what_is_compiled_is_kept_in_a_folder_of_the_user_alone(tmp_path, monkeypatch, capsys):
    work = Work(tmp_path / "work")
    monkeypatch.delenv(compiling.CACHE, raising=False)
    compiling.use_cache(work)
    folder = work.cache / f"compiled-{os.getuid()}"
    assert os.environ[compiling.CACHE] == str(folder) and folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv(compiling.CACHE)
    folder.chmod(0o770)
    compiling.use_cache(work)
    assert is_new(os.environ[compiling.CACHE])
    assert "others can write there" in capsys.readouterr().err
    folder.chmod(0o700)
    monkeypatch.delenv(compiling.CACHE)
    work.cache.chmod(0o2770)  # a group's: any of it could put another folder in its place
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    compiling.use_cache(work)
    assert os.environ[compiling.CACHE] == str(tmp_path / "home/.cache/netpress/compiled")
    monkeypatch.delenv(compiling.CACHE)
    work.cache.chmod(0o700)
    folder.rmdir()
    folder.symlink_to(work.cache)
    compiling.use_cache(work)
    assert is_new(os.environ[compiling.CACHE])
    monkeypatch.setenv(compiling.CACHE, "/chosen")
    compiling.use_cache(work)
    assert os.environ[compiling.CACHE] == "/chosen"


def is_new(folder: str) -> bool:
    """Whether it is an empty folder of this user alone, under a name that nobody can foresee."""
    status = os.stat(folder)
    named = Path(folder).name.startswith("netpress-compiled-") and not os.listdir(folder)
    return named and status.st_uid == os.getuid() and status.st_mode & 0o777 == 0o700


USED = """
import os, sys, torch._dynamo
from pathlib import Path
from pipeline.paths import Work
from pipeline.training import compiling
before = os.environ[compiling.CACHE]
compiling.use_cache(Work(Path(sys.argv[1])))
print(before, os.environ[compiling.CACHE], sep="\\n")
"""


def test_the_folder_that_pytorch_names_by_itself_is_not_used(tmp_path, monkeypatch):
    """It does so as soon as its compiler is imported, as by the export of a model."""
    monkeypatch.delenv(compiling.CACHE, raising=False)
    root = tmp_path / "work"
    root.mkdir(mode=0o700)
    environment = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path / "home")}
    kept = cells.python("-c", USED, str(root), env=environment).stdout.splitlines()
    assert kept == [kept[0], str(Work(root).compiled)] and "torchinductor_" in kept[0]
    Work(root).compiled.chmod(0o777)
    _, own = cells.python("-c", USED, str(root), env=environment).stdout.splitlines()
    assert Path(own).parent == tmp_path and not Path(own).exists()  # gone with its process
