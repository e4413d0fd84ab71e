"""The loop, what it minimizes and by which steps; a kill between two epochs costs nothing."""

from __future__ import annotations

import errno
import gc
import json
import math
import os
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes

from pipeline import data, store
from pipeline.errors import Corrupt, UserError
from pipeline.measure.cell import predict
from pipeline.models import network, vgg
from pipeline.models.network import ModelState
from pipeline.models.transforms import calibration
from pipeline.models.transforms.fakequant import FakeQuantized
from pipeline.models.transforms.folded import Folded
from pipeline.store import StageHistory
from pipeline.sweep import Recipe
from pipeline.training import checkpoint, losses
from pipeline.training import recipe as training_recipe
from pipeline.training.checkpoint import Checkpointer, Snapshot
from pipeline.training.loop import Course, Diverged, Hooks, Training, evaluate, fit, seeded
from pipeline.training.recipe import LARGEST_GRADIENT, learning_rate, machine, optimizer
from pipeline.training.step import Step
from tests import cells

SHAPE = (1, 8, 8)
SPEC = vgg.spec("vgg11_bn", 0.125, SHAPE, 4, 128, 1 / 74)
BARE = replace(SPEC, model="vgg11")  # without normalization
RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=0.05, crop=1, precision="fp32")
CLOCKS = {"seconds", "images_per_second"}
HERE = machine(RECIPE, "cpu")


def some_images(count: int, seed: int = 0) -> data.Images:
    """Four classes that differ in which corner is bright."""
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 90, (count, *SHAPE), generator=random, dtype=torch.uint8)
    labels = torch.arange(count) % 4
    for i, label in enumerate(labels.tolist()):
        top, left = 4 * (label // 2), 4 * (label % 2)
        pixels[i, :, top : top + 4, left : left + 4] += 120
    return data.Images(pixels, labels)


def split(count: int = 64) -> data.Split:
    few = some_images(16, 1)
    return data.Split(
        "corners", ("a", "b", "c", "d"), some_images(count), few, few, SHAPE, 128, 1 / 74, False, ""
    )


PLAIN = losses.labels_only(0.0)


def trained(state: ModelState, epochs: int, recipe=RECIPE, objective=PLAIN, **more) -> Training:
    course = Course(recipe, epochs, objective, HERE, 0)
    return fit(Training(state), split(), course, Hooks(**more))


def simulated(folded: ModelState, learned: bool) -> ModelState:
    """A folded network, its layers fake-quantized and calibrated."""
    made = network.with_transform(folded, FakeQuantized(learned=learned))
    batches = map(made.network.normalize, some_images(32).pixels.split(16))
    image = made.spec.zero_point, made.spec.scale
    calibration.calibrate(made.network.module, batches, "mse", image)
    return made


# --- the schedule ----------------------------------------------------------------------------

SCHEDULES = st.builds(
    Recipe,
    learning_rate=st.floats(1e-4, 10),
    warmup=st.floats(0, 0.99),
    schedule=st.sampled_from(["linear", "cosine"]),
)


@given(SCHEDULES, st.integers(1, 400))
def test_the_learning_rate_rises_then_falls_and_stays_within_its_bounds(recipe, steps):
    rates = [learning_rate(recipe, step, steps) for step in range(steps)]
    assert all(0 < rate <= recipe.learning_rate for rate in rates)
    rising = max(1.0, recipe.warmup * steps)
    warm = [rate for step, rate in enumerate(rates) if step < rising]
    falling = rates[len(warm) :]
    assert warm == sorted(warm) and falling == sorted(falling, reverse=True)


@given(SCHEDULES, st.integers(20, 400))
def test_the_learning_rate_comes_near_its_peak_and_ends_near_zero(recipe, steps):
    recipe = recipe.model_copy(update={"warmup": min(recipe.warmup, 0.5)})
    rates = [learning_rate(recipe, step, steps) for step in range(steps)]
    assert max(rates) > 0.85 * recipe.learning_rate
    assert rates[-1] < 0.2 * recipe.learning_rate


def test_the_schedules_by_hand():
    linear = Recipe(learning_rate=1.0, warmup=0.2)
    rates = [learning_rate(linear, step, 10) for step in range(10)]
    assert rates == pytest.approx(
        [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    cosine = linear.model_copy(update={"schedule": "cosine"})
    assert learning_rate(cosine, 6, 10) == pytest.approx(0.5)
    assert learning_rate(cosine, 4, 10) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_weights_alone_decay_and_not_biases_normalization_or_ranges():
    state = network.new(replace(SPEC, transforms=(Folded(), FakeQuantized(learned=True))), 0)
    decayed, others = optimizer(state.network, Recipe()).param_groups
    names = {p: n for n, p in state.network.named_parameters()}
    assert all(names[p].endswith("weight") for p in decayed["params"])
    assert decayed["weight_decay"] == 5e-4 and others["weight_decay"] == 0
    ends = {".".join(names[p].split(".")[-2:]) for p in others["params"]}
    ranges = {"input_quantizer.scale", "weight_quantizer.scale"}
    assert ends == {"conv.bias", "head.bias"} | ranges


@pytest.mark.parametrize("factor, moved", [(0.25, 0.25), (50.0, LARGEST_GRADIENT)])
def test_a_clipped_step_is_as_long_as_its_gradients_but_no_longer_than_the_bound(factor, moved):
    recipe = Recipe(learning_rate=1.0, momentum=0.0, weight_decay=0.0)
    net = network.new(BARE, 0).network
    net = net.to(memory_format=torch.channels_last)
    before = [p.detach().clone() for p in net.parameters()]
    directions = [torch.randn_like(p) for p in net.parameters()]
    length = math.sqrt(sum(float(d.square().sum()) for d in directions))
    for p, direction in zip(net.parameters(), directions, strict=True):
        p.grad = direction * (factor / length)
    optimizer(net, recipe, clipped=True).step()
    for p, old, direction in zip(net.parameters(), before, directions, strict=True):
        assert torch.allclose(old - p, direction * (moved / length), rtol=1e-2, atol=1e-6)


# --- objectives ------------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """A network whose logits and maps are given."""

    def __init__(self, logits, maps=()):
        super().__init__()
        self.logits, self.maps = logits, list(maps)

    def forward(self, images, maps=False):
        return (self.logits, self.maps) if maps else self.logits


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


LOGITS, TEACHER = torch.randn(5, 7, generator=torch.manual_seed(0)), torch.randn(5, 7) * 3
LABELS = torch.tensor([0, 6, 3, 3, 1])


def naive_cross_entropy(smoothing=0.0):
    p = softmax(LOGITS.double().numpy())
    target = np.full((5, 7), smoothing / 7)
    target[np.arange(5), LABELS] += 1 - smoothing
    return float(-(target * np.log(p)).sum(1).mean())


def naive_distance(temperature):
    p = softmax(TEACHER.double().numpy() / temperature)
    q = softmax(LOGITS.double().numpy() / temperature)
    return float(temperature**2 * (p * np.log(p / q)).sum(1).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_alone(smoothing):
    loss, logits = losses.labels_only(smoothing)(Fixed(LOGITS), None, LABELS)
    assert logits is LOGITS and loss.item() == pytest.approx(naive_cross_entropy(smoothing))


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("weight", [0.0, 0.9, 1.0])
def test_soft_targets_are_hintons(temperature, weight):
    objective = losses.soft_targets(Fixed(TEACHER), temperature, weight, 0.1)
    loss, _ = objective(Fixed(LOGITS), None, LABELS)
    expected = weight * naive_distance(temperature) + (1 - weight) * naive_cross_entropy(0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_student_that_says_what_its_teacher_says_is_at_no_distance():
    assert losses.distance(LOGITS, LOGITS.clone(), 4.0).item() == pytest.approx(0, abs=1e-6)


def naive_attention(features):
    """Equation 1 (sum of squares over channels) and the normalization of equation 2."""
    squares = (features.double().numpy() ** 2).sum(1).reshape(len(features), -1)
    return squares / np.linalg.norm(squares, axis=1, keepdims=True)


@pytest.mark.parametrize("soft", [0.0, 0.7])
def test_attention_is_zagoruykos_and_channels_may_differ_in_number(soft):
    random = torch.Generator().manual_seed(1)
    mine = [torch.randn(5, c, s, s, generator=random) for c, s in ((8, 4), (16, 2))]
    theirs = [torch.randn(5, c, s, s, generator=random) for c, s in ((12, 4), (4, 2))]
    objective = losses.attention(Fixed(TEACHER, theirs), 1000.0, 4.0, soft, 0.0)
    loss, _ = objective(Fixed(LOGITS, mine), None, LABELS)
    gaps = [
        np.mean((naive_attention(a) - naive_attention(b)) ** 2)
        for a, b in zip(mine, theirs, strict=True)
    ]
    expected = soft * naive_distance(4.0) + (1 - soft) * naive_cross_entropy() + 1000 * sum(gaps)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_map_of_zeros_has_no_direction_and_no_nan():
    assert not losses.attention_map(torch.zeros(2, 3, 4, 4)).any()


def test_no_gradient_reaches_a_teacher():
    teacher = network.new(SPEC, 1).network.eval()
    objective = losses.attention(teacher, 10.0, 4.0, 0.5, 0.0)
    student = network.new(SPEC, 0).network
    objective(student, some_images(8).pixels, some_images(8).labels)[0].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


# --- the loop --------------------------------------------------------------------------------


def test_a_tiny_network_learns_its_images_by_heart():
    recipe = RECIPE.model_copy(update={"crop": 0, "learning_rate": 0.02})
    done = trained(network.new(SPEC, 0), 12, recipe)
    assert done.columns["loss"][-1] < 0.1 * done.columns["loss"][0]
    assert done.columns["accuracy"][-1] > 0.95 and done.columns["held_out_accuracy"][-1] == 1.0
    loss, accuracy = evaluate(done.state.network, split().train, HERE)
    assert accuracy == 1.0 and loss < 0.1
    predicted = predict(done.state.network, split().test, HERE.device)
    assert torch.equal(predicted, split().test.labels)


@pytest.mark.parametrize("graphed", [False, True])
def test_what_a_training_needed_is_freed_when_it_ends(graphed):
    """Without a collection of garbage, which is rare: the next stage trains on the same GPU."""
    here = replace(HERE, graphed=graphed)

    def alive() -> int:
        return sum(type(one) is Step for one in gc.get_objects())  # has the graph, and the network

    gc.collect()
    gc.disable()
    try:
        fit(Training(network.new(SPEC, 0)), split(), Course(RECIPE, 1, PLAIN, here, 0))
        assert alive() == 0
        hasty = RECIPE.model_copy(update={"learning_rate": 1e30})
        with pytest.raises(Diverged):
            fit(Training(network.new(SPEC, 0)), split(), Course(hasty, 2, PLAIN, here, 0))
        assert alive() == 0
    finally:
        gc.enable()


def test_large_images_are_evaluated_few_at_a_time():
    def batches(side: int, count: int = 1100) -> list[int]:
        pixels = torch.zeros(1, 3, side, side, dtype=torch.uint8).expand(count, -1, -1, -1)
        made = data.evaluated(data.Images(pixels, torch.zeros(count, dtype=torch.int64)))
        return [len(labels) for _, labels in made]

    assert batches(32) == batches(64) == [500, 500, 100]
    assert set(batches(224, 80)) == {40} and set(batches(4096, 3)) == {1}


def test_every_epoch_leaves_a_row_and_is_kept():
    kept = []
    done = trained(network.new(SPEC, 0), 3, keep=lambda now: kept.append(now.epoch))
    assert kept == [1, 2, 3] and done.epoch == 3
    assert {len(column) for column in done.columns.values()} == {3}
    assert done.columns["epoch"] == [1, 2, 3]
    steps = 64 // 16
    last = [learning_rate(RECIPE, (e + 1) * steps - 1, 3 * steps) for e in range(3)]
    assert done.columns["learning_rate"] == pytest.approx(last)
    assert all(s > 0 for s in done.columns["seconds"])


def test_what_is_done_already_is_not_done_again():
    done = trained(network.new(SPEC, 0), 2)
    before = {n: t.clone() for n, t in done.state.network.state_dict().items()}
    fit(done, split(), Course(RECIPE, 2, PLAIN, HERE, 0))
    assert all(torch.equal(done.state.network.state_dict()[n], t) for n, t in before.items())
    assert len(done.columns["loss"]) == 2


def test_another_seed_is_another_training():
    one, two = (
        fit(Training(network.new(SPEC, 0)), split(), Course(RECIPE, 1, PLAIN, HERE, seed))
        for seed in (0, 1)
    )
    assert one.columns["loss"] != two.columns["loss"]


def test_no_two_epochs_of_any_two_stages_share_a_generator():
    seeds = {
        seeded(torch.device("cpu"), seed, epoch).initial_seed()
        for seed in range(20)
        for epoch in range(50)
    }
    assert len(seeds) == 1000
    largest = seeded(torch.device("cpu"), (2**31 - 1) * 1009 + 50, 99_999).initial_seed()
    assert 0 <= largest < 2**63


@pytest.mark.parametrize("rate, bound", [(100.0, math.inf), (1e4, 1.0), (1e30, 1.0)])
def test_a_training_that_diverges_ends_with_a_sentence_and_keeps_what_was_whole(
    rate, bound, monkeypatch
):
    """Where nothing holds it, or far beyond what clipped gradients hold; the loss of the last batch
    may still be a number when the weights are none any more."""
    monkeypatch.setattr("pipeline.training.recipe.LARGEST_GRADIENT", bound)
    spec = vgg.spec("vgg11", 0.125, SHAPE, 4, 128, 1 / 74)
    kept = []
    recipe = Recipe(**{**RECIPE.model_dump(), "learning_rate": 50.0, "batch_size": 16})
    recipe = recipe.model_copy(update={"learning_rate": rate})
    with pytest.raises(Diverged, match=r"in epoch \d+; try a learning_rate below"):
        trained(network.new(spec, 0), 30, recipe, keep=lambda now: kept.append(copy(now)))
    for now in kept:
        assert all(math.isfinite(v) for v in now.columns["held_out_loss"])


def test_weights_that_the_very_last_step_ruined_are_no_result():
    state = network.new(SPEC, 0)
    recipe = RECIPE.model_copy(update={"batch_size": 64})  # one step an epoch

    def poisoned(net, images, labels):
        loss, logits = PLAIN(net, images, labels)
        return loss + (net.module.head.weight.sum() * float("nan")).nan_to_num(0.0), logits

    with pytest.raises(Diverged, match="the loss became nan in epoch 1"):
        trained(state, 1, recipe, poisoned)


@pytest.mark.parametrize("taught", [False, True])
def test_quantization_aware_training_holds_what_a_folded_network_could_lose(taught):
    """At this rate, without normalization to hold it, it ended at chance, with a finite loss."""
    float_one = trained(network.new(SPEC, 0), 6).state
    accurate = evaluate(float_one.network, split().held_out, HERE)[1]
    state = simulated(network.fold(float_one), learned=False)
    objective = losses.soft_targets(float_one.network, 4.0, 0.9, 0.0) if taught else PLAIN
    done = trained(state, 4, RECIPE, objective)
    assert accurate > 0.9 and done.columns["held_out_accuracy"][-1] >= accurate


def test_bf16_and_float32_are_settings_of_the_same_loop():
    recipe = RECIPE.model_copy(update={"precision": "bf16"})
    bf16 = machine(recipe, "cpu")
    assert bf16.precision == "bf16" and HERE.precision == "fp32"
    done = fit(Training(network.new(SPEC, 0)), split(), Course(recipe, 1, PLAIN, bf16, 0))
    exact = trained(network.new(SPEC, 0), 1)
    assert all(p.dtype == torch.float32 for p in done.state.network.parameters())
    assert done.columns["loss"][0] == pytest.approx(exact.columns["loss"][0], rel=0.1)
    assert done.columns["loss"] != exact.columns["loss"]


@pytest.mark.parametrize("capability, precision", [(7, "fp32"), (8, "bf16")])
def test_bf16_that_a_gpu_only_emulates_is_not_chosen(monkeypatch, capability, precision):
    """What PyTorch says of a T4 and of an A100: it can emulate bf16 on the first."""
    card = SimpleNamespace(major=capability)
    for name, answer in (
        ("is_available", True),
        ("current_device", 0),
        ("get_device_properties", card),
        ("_check_bf16_tensor_supported", True),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    for name in ("deterministic", "benchmark"):  # which `machine` sets: they are put back
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    monkeypatch.setattr(training_recipe, "_device", torch.device)
    assert machine(Recipe(), "cuda").precision == precision


def test_a_device_that_is_not_there_is_one_sentence():
    for name in ("tpu", "cuda:99", "nonsense"):
        with pytest.raises(UserError, match=re.escape(f"device: cannot use '{name}' here")) as told:
            machine(Recipe(), name)
        assert "\n" not in str(told.value) and "expected auto, cpu or cuda" in str(told.value)
    assert machine(Recipe(), "auto").device.type in ("cpu", "cuda")


def test_training_goes_on_where_nothing_is_held_out():
    bare = replace(split(), held_out=data.Images(torch.empty(0, *SHAPE), torch.empty(0)))
    done = fit(Training(network.new(SPEC, 0)), bare, Course(RECIPE, 1, PLAIN, HERE, 0))
    assert math.isnan(done.columns["held_out_accuracy"][0])


# --- resumed = uninterrupted -----------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill at the end of an epoch, after its checkpoint."""


KINDS = {
    "plain": lambda: network.new(SPEC, 0),
    "without normalization": lambda: network.new(BARE, 0),
    "observed": lambda: simulated(network.fold(network.new(SPEC, 0)), learned=False),
    "learned": lambda: simulated(network.fold(network.new(SPEC, 0)), learned=True),
}


def run(kind, folder, killed_after=(), precision="fp32") -> Training:
    """Three epochs, killed after those named and each time read back from disk."""
    rate = RECIPE.learning_rate * (0.1 if kind == "learned" else 1.0)  # ranges stay positive
    recipe = RECIPE.model_copy(update={"precision": precision, "learning_rate": rate})
    where = machine(recipe, "cpu")
    for end in (*killed_after, None):
        torch.manual_seed(12345)  # a new process has another global generator
        kept = Checkpointer(folder / "checkpoint", folder / "metrics.h5")
        snapshot = kept.load()
        training = snapshot.training if snapshot else Training(KINDS[kind]())
        assert snapshot is None or snapshot.history == (StageHistory(0, "before", {"loss": [2.0]}),)

        def keep(now, kept=kept, end=end):
            kept.save(Snapshot(1, "train", now, (StageHistory(0, "before", {"loss": [2.0]}),)))
            if now.epoch == end:
                raise Killed

        try:
            fit(training, split(), Course(recipe, 3, PLAIN, where, 7), Hooks(keep=keep))
        except Killed:
            kept.wait()
    kept.wait()
    return training


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("killed_after", [(1,), (2,), (1, 2)])
def test_resumed_ends_as_if_never_interrupted_bit_for_bit(kind, killed_after, tmp_path):
    precision = "bf16" if killed_after == (1, 2) else "fp32"
    whole = run(kind, tmp_path / "whole", (), precision)
    resumed = run(kind, tmp_path / "resumed", killed_after, precision)
    assert_same(resumed, whole)
    histories = [store.read_history(tmp_path / n / "metrics.h5") for n in ("whole", "resumed")]
    for one, two in zip(*histories, strict=True):
        assert (one.index, one.stage) == (two.index, two.stage)
        for name in set(one.columns) - CLOCKS:
            assert one.columns[name] == two.columns[name], name


def assert_same(one: Training, two: Training) -> None:
    assert one.state.spec == two.state.spec and one.epoch == two.epoch
    mine, theirs = one.state.network.state_dict(), two.state.network.state_dict()
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name
    assert one.buffers.keys() == two.buffers.keys() and one.buffers
    for name, kept in one.buffers.items():
        for key, tensor in kept.items():
            assert torch.equal(tensor, two.buffers[name][key]), (name, key)
    for name in set(one.columns) - CLOCKS:
        assert one.columns[name] == two.columns[name], name


# --- checkpoints -----------------------------------------------------------------------------


def copy(training: Training) -> Training:
    columns = {k: list(v) for k, v in training.columns.items()}
    return replace(training, columns=columns)


@pytest.fixture
def kept(tmp_path):
    """A folder with the checkpoints of three epochs."""
    run("plain", tmp_path)
    return tmp_path


def open_again(folder) -> Checkpointer:
    return Checkpointer(folder / "checkpoint", folder / "metrics.h5")


def states(folder) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoint").iterdir())


def flip_a_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_two_states_are_kept_and_nothing_else_lies_about(kept):
    assert states(kept) == ["index.json", "state-2.safetensors", "state-3.safetensors"]
    assert open_again(kept).load().training.epoch == 3
    assert {oct(p.stat().st_mode & 0o77) for p in (kept / "checkpoint").iterdir()} == {"0o0"}


def test_a_damaged_state_is_set_aside_and_the_one_before_is_used(kept):
    flip_a_bit(kept / "checkpoint" / "state-3.safetensors")
    again = open_again(kept)
    snapshot = again.load()
    assert snapshot.training.epoch == 2
    assert states(kept) == ["index.json", "state-2.safetensors", "state-3.safetensors.corrupt-1"]
    again.save(snapshot, wait=True)  # goes on: the whole one must not make room for the damaged one
    assert open_again(kept).load().training.epoch == 2
    whole = [name for name in states(kept) if name.endswith("safetensors")]
    assert whole == ["state-2.safetensors", "state-3.safetensors"]


def test_a_state_of_other_images_is_as_good_as_a_damaged_one(tmp_path, capsys):
    folder, start = tmp_path / "checkpoint", Training(network.new(SPEC, 0))

    def opened(images: str | None) -> Checkpointer:
        return Checkpointer(folder, tmp_path / "metrics.h5", images)

    opened(None).save(Snapshot(0, "train", start, ()), wait=True)  # as in earlier versions
    assert opened("a").load() is not None
    opened("a").save(Snapshot(0, "train", start, ()), wait=True)
    assert opened("a").load() is not None and capsys.readouterr().err == ""
    changed = opened("b")
    assert changed.load().stage == "train"  # the one that does not say
    assert states(tmp_path)[1:] == ["state-1.safetensors", "state-2.safetensors.corrupt-1"]
    told = "state-2.safetensors: was trained on other images than those that are there now; set"
    assert told in capsys.readouterr().err
    changed.finish(Snapshot(1, "done", start, ()), folder / "model.safetensors")
    assert opened("b").load() is not None and opened("a").load() is None


def test_a_missing_state_is_as_good_as_a_damaged_one(kept):
    (kept / "checkpoint" / "state-3.safetensors").unlink()
    assert open_again(kept).load().training.epoch == 2


def test_two_damaged_states_mean_a_new_beginning(kept):
    for number in (2, 3):
        flip_a_bit(kept / "checkpoint" / f"state-{number}.safetensors")
    again = open_again(kept)
    assert again.load() is None
    again.save(Snapshot(0, "train", Training(network.new(SPEC, 0)), ()), wait=True)
    assert open_again(kept).load().training.epoch == 0


HOSTILE = [
    b"",
    b"{",
    b"null",
    b"7",
    b'"text"',
    b"[7]",
    b"[[]]",
    b'{"file": "state-3.safetensors"}',
    b"[" * 100_000,
    b"\xff\xfe",
    b'[{"number": 3}]',
    b'[{"number": "3", "file": "state-3.safetensors", "sha256": "' + b"0" * 64 + b'"}]',
    b'[{"number": 3, "file": "../../precious.safetensors", "sha256": "' + b"0" * 64 + b'"}]',
    b'[{"number": 3, "file": 3, "sha256": "' + b"0" * 64 + b'"}]',
    b'[{"number": 3, "file": "state-3.safetensors", "sha256": null}]',
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_a_damaged_index_is_set_aside_and_touches_nothing_else(kept, content):
    precious = kept / "precious.safetensors"
    precious.write_bytes(b"of another")
    (kept / "checkpoint" / "index.json").write_bytes(content)
    again = open_again(kept)
    assert again.load() is None and precious.read_bytes() == b"of another"
    assert "index.json.corrupt-1" in states(kept)
    again.save(Snapshot(0, "train", Training(network.new(SPEC, 0)), ()), wait=True)
    assert open_again(kept).load() is not None


def test_a_full_disk_is_an_oserror_and_the_state_before_stays(tmp_path):
    with cells.small_disk(tmp_path / "disk", "1900k") as disk:
        kept = open_again(disk)
        training = trained(network.new(SPEC, 0), 1)
        kept.save(Snapshot(0, "train", training, ()), wait=True)
        before = states(disk)
        training.epoch = 2
        kept.save(Snapshot(0, "train", training, ()))  # in the background: reported at the next
        with pytest.raises(OSError) as caught:
            kept.save(Snapshot(0, "train", training, ()))
        assert caught.value.errno == errno.ENOSPC
        assert states(disk) == before and open_again(disk).load().training.epoch == 1
        (disk / "rest").write_bytes(bytes(600_000))
        with pytest.raises(OSError):
            kept.finish(Snapshot(1, "done", training, ()), disk / "checkpoint/model.safetensors")
        assert states(disk) == before
        assert open_again(disk).load().training.epoch == 1


def test_what_is_saved_is_a_copy_that_training_goes_on_beside(tmp_path):
    training, kept = trained(network.new(SPEC, 0), 1), open_again(tmp_path)
    live = [
        *training.state.network.state_dict().values(),
        *(t for buffers in training.buffers.values() for t in buffers.values()),
    ]
    snapshot = Snapshot(0, "train", training, ())
    handed = checkpoint._Copies(checkpoint._tensors(snapshot)).tensors.values()
    assert len(handed) == len(live)
    assert not {t.data_ptr() for t in handed} & {t.data_ptr() for t in live}
    expected = training.state.network.module.head.weight.detach().clone()
    kept.save(Snapshot(0, "train", training, ()))
    with torch.no_grad():
        training.state.network.module.head.weight.zero_()
    training.columns["loss"].append(0.0)
    kept.wait()
    restored = open_again(tmp_path).load().training
    assert torch.equal(restored.state.network.module.head.weight, expected)
    assert len(restored.columns["loss"]) == 1
    assert len(store.read_history(tmp_path / "metrics.h5")[0].columns["loss"]) == 1


def test_a_training_does_not_wait_for_a_disk_that_is_slower_than_its_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "GRACE", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 0.0)
    kept, training = open_again(tmp_path), Training(network.new(SPEC, 0))
    spare = torch.zeros(5_000_000)  # takes a while to write
    training.state.network.register_buffer("spare", spare)
    kept.save(Snapshot(0, "train", training, ()))
    training.epoch = 1
    kept.save(Snapshot(0, "train", training, ()))
    kept.wait()
    assert states(tmp_path) == ["index.json", "state-1.safetensors"]
    training.epoch = 2
    kept.save(Snapshot(0, "train", training, ()))
    training.epoch = 3
    kept.save(Snapshot(0, "train", training, ()), wait=True)  # is kept in any case
    assert states(tmp_path) == ["index.json", "state-2.safetensors", "state-3.safetensors"]


def test_in_the_end_the_final_weights_alone_are_left_and_are_a_state(tmp_path):
    training, kept = run("plain", tmp_path), open_again(tmp_path)
    past = (StageHistory(0, "train", training.columns),)
    path = tmp_path / "checkpoint" / "model.safetensors"
    kept.finish(Snapshot(1, "done", Training(training.state), past), path)
    assert states(tmp_path) == ["index.json", "model.safetensors"]
    snapshot = open_again(tmp_path).load()
    assert (snapshot.index, snapshot.stage, snapshot.history) == (1, "done", past)
    read = checkpoint.read_model(path)
    for name, tensor in training.state.network.state_dict().items():
        assert torch.equal(snapshot.training.state.network.state_dict()[name], tensor)
        assert torch.equal(read.network.state_dict()[name], tensor)


def test_closing_waits_for_the_writer_and_keeps_quiet(tmp_path):
    kept = open_again(tmp_path)
    kept.save(Snapshot(0, "train", Training(network.new(SPEC, 0)), ()))
    kept.close()
    assert "state-1.safetensors" in states(tmp_path)
    broken = Checkpointer(tmp_path / "file" / "checkpoint", tmp_path / "metrics.h5")
    (tmp_path / "file").write_text("in the way of a folder")
    broken.save(Snapshot(0, "train", Training(network.new(SPEC, 0)), ()))
    broken.close()
    with pytest.raises(OSError):
        broken.wait()


# --- files that were made to mislead ---------------------------------------------------------


def file_with(header: dict | bytes | None, tensors=None) -> bytes:
    """A safetensors file with this as its own header's metadata text."""
    tensors = tensors or {"model.x": torch.zeros(2)}
    if isinstance(header, bytes):
        return header
    texts = {} if header is None else {"netpress": json.dumps(header), "spec": json.dumps(header)}
    return safetensors_bytes(tensors, texts or None)


SOUND = {
    "part": 0,
    "index": 0,
    "stage": "train",
    "epoch": 1,
    "spec": SPEC.to_json(),
    "columns": {},
    "history": [],
}
SIZE = (10).to_bytes(8, "little")
MISLEADING = [
    b"",
    b"\0",
    SIZE,
    SIZE + b"{}",
    (2**63).to_bytes(8, "little") + b"{}",
    b"\xff" * 64,
    SIZE + b"[" * 10,
    (200_000).to_bytes(8, "little") + b"[" * 200_000,
    SIZE + b'{"a": [[]]',
    SIZE + b'"abcdefgh"',
    None,
    {},
    [],
    SOUND,
    {**SOUND, "spec": {}},
    {**SOUND, "spec": None},
    {**SOUND, "spec": {**SPEC.to_json(), "x": 1}},
    {**SPEC.to_json(), "model": "resnet"},
    {**SPEC.to_json(), "model": []},
    {**SPEC.to_json(), "channels": "abc"},
    {**SPEC.to_json(), "channels": [8]},
    {**SPEC.to_json(), "channels": [-1] * 8},
    {**SPEC.to_json(), "shape": []},
    {**SPEC.to_json(), "shape": [1, 2, "x"]},
    {**SPEC.to_json(), "classes": -3},
    {**SPEC.to_json(), "zero_point": {}},
    {**SPEC.to_json(), "transforms": "int8"},
    {**SPEC.to_json(), "transforms": [{"name": "halved"}]},
    {**SPEC.to_json(), "transforms": [{"name": "folded", "bits": 8}]},
    {**SPEC.to_json(), "transforms": [{"name": "fake-quantized", "weight_bits": 3}]},
    {**SPEC.to_json(), "transforms": [["folded"]]},
    {**SPEC.to_json(), "channels": [2**40] * 8},
]


@pytest.mark.parametrize("header", MISLEADING, ids=range(len(MISLEADING)))
def test_a_file_that_was_made_to_mislead_is_corrupt_and_no_more(tmp_path, header):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_with(header))
    with pytest.raises(Corrupt, match=r"model\.safetensors: not a readable model") as told:
        checkpoint.read_model(path)
    assert "\n" not in str(told.value)
    with pytest.raises(Corrupt, match=r"not a readable checkpoint"):
        checkpoint._snapshot(path.read_bytes(), path)


def good_tensors() -> dict[str, torch.Tensor]:
    tensors = network.new(SPEC, 0).network.state_dict()
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -1},
        {"epoch": "1"},
        {"epoch": 1.5},
        {"epoch": True},
        {"index": None},
        {"part": -1},
        {"columns": []},
        {"columns": {"loss": "abc"}},
        {"columns": {"loss": [None]}},
        {"history": 3},
        {"history": [[0]]},
        {"history": [[0, "train", []]]},
    ],
)
def test_a_state_whose_header_lies_about_types_is_corrupt(tmp_path, change):
    path = tmp_path / "state-1.safetensors"
    texts = {"netpress": json.dumps(SOUND)}
    assert checkpoint._snapshot(safetensors_bytes(good_tensors(), texts), path).training.epoch == 1
    texts = {"netpress": json.dumps({**SOUND, **change})}
    with pytest.raises(Corrupt, match="not a readable checkpoint"):
        checkpoint._snapshot(safetensors_bytes(good_tensors(), texts), path)


@pytest.mark.parametrize("name", ["optimizer.momentum_buffer.nobody", "optimizer.x.head.bias"])
def test_what_the_optimizer_keeps_must_fit_the_network(tmp_path, name):
    tensors = good_tensors() | {name: torch.zeros(3)}
    content = safetensors_bytes(tensors, {"netpress": json.dumps(SOUND)})
    with pytest.raises(Corrupt, match="not a readable checkpoint"):
        checkpoint._snapshot(content, tmp_path / "state-1.safetensors")


@given(st.data())
@settings(max_examples=150)
def test_no_flipped_byte_makes_more_of_a_model_than_corrupt(tmp_path_factory, draw):
    content = bytearray(_model_file())
    header = int.from_bytes(content[:8], "little") + 8
    at = draw.draw(st.integers(0, header - 1))
    content[at] ^= draw.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(content)
    try:
        state = checkpoint.read_model(path)
    except Corrupt as error:
        assert "\n" not in str(error)
    else:  # such as in a number of the specification; the manifest's checksum finds it
        assert isinstance(state, ModelState)


def _model_file() -> bytes:
    if not hasattr(_model_file, "content"):
        _model_file.content = checkpoint.model_bytes(network.new(SPEC, 0))
    return _model_file.content


def test_a_model_that_cannot_be_read_is_corrupt(tmp_path):
    with pytest.raises(Corrupt, match="cannot be read"):
        checkpoint.read_model(tmp_path / "nothing.safetensors")
    os.mkdir(tmp_path / "folder")
    with pytest.raises(Corrupt, match="cannot be read"):
        checkpoint.read_model(tmp_path / "folder")
