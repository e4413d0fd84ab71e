"""Settings of a recipe that need fewer epochs or regularize, and recipes with a name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from pipeline import data
from pipeline.errors import UserError
from pipeline.models import initial, module_of, network, vgg
from pipeline.sweep import Cell, Recipe, recipes
from pipeline.techniques import stage_module
from pipeline.training import lookahead, losses
from pipeline.training.checkpoint import Checkpointer, Snapshot
from pipeline.training.loop import Course, Hooks, Training, fit
from pipeline.training.recipe import group_rate, machine, optimizer
from tests import cells

SHAPE = (3, 8, 8)
SPEC = replace(vgg.spec("vgg11_bn", 0.125, SHAPE, 4, 128, 1 / 74), channels=(64,) + (16,) * 7)
PLAIN = Recipe(epochs=3, batch_size=16, learning_rate=0.05, crop=1, precision="fp32")
ALL = {
    "label_smoothing": 0.1,
    "flip": True,
    "flips": "alternating",
    "cutout": 3,
    "whitening": 0.5,
    "dirac": True,
    "bias_rate": 8.0,
    "mixup": 0.4,
    "lookahead": True,
}


def images(count: int = 64, seed: int = 0) -> data.Images:
    """Four classes that differ in which corner is bright; neighbouring pixels are alike."""
    random = torch.Generator().manual_seed(seed)
    pixels = F.interpolate(
        torch.randint(0, 160, (count, 3, 4, 4), generator=random).float(), (8, 8)
    )
    labels = torch.arange(count) % 4
    for i, label in enumerate(labels.tolist()):
        pixels[i, :, 4 * (label // 2) :, 4 * (label % 2) :][:, :4, :4] += 90
    return data.Images(pixels.to(torch.uint8), labels)


def split() -> data.Split:
    few = images(16, 1)
    classes = ("a", "b", "c", "d")
    return data.Split("corners", classes, images(), few, few, SHAPE, 128, 1 / 74, False, "")


def fitted(recipe: Recipe, training: Training | None = None, where=None, **hooks) -> Training:
    training = training or Training(initial.fresh(SPEC, 0, recipe, split().train))
    objective = losses.labels_only(recipe.label_smoothing, recipe.mixup)
    course = Course(recipe, recipe.epochs, objective, where or machine(recipe, "cpu"), 7)
    return fit(training, split(), course, Hooks(**hooks))


def recipe(**settings) -> Recipe:
    return Recipe(**{**PLAIN.model_dump(), **settings})


# --- the named recipe, and what a cell says --------------------------------------------------


def test_what_is_at_its_default_is_in_no_cell_and_what_is_not_is(tmp_path):
    base = cells.cells(tmp_path, ["base"])["base"]
    assert not {*ALL} - {"label_smoothing", "flip"} & {*base.to_json()["recipe"]}
    other = cells.cells(tmp_path, ["base"], training={**cells.TRAINING, **ALL})["base"]
    assert ALL.items() <= other.to_json()["recipe"].items() and other.id != base.id
    assert Cell.from_json(other.to_json(), cells.catalog.built_in()) == other


def test_a_recipe_by_name_is_its_settings_and_what_is_written_beside_it_counts_for_more(tmp_path):
    def made(training, datasets=("digits",)):
        return cells.cells(tmp_path, ["base"], training=training, datasets=[*datasets])["base"]

    fast = recipes.NAMED["fast"]
    assert made({"recipe": "fast"}) == made(fast) and made({"recipe": "standard"}) == made({})
    assert made({"recipe": "fast", "epochs": 3}) == made({**fast, "epochs": 3})
    assert "recipe" not in made({"recipe": "fast"}).to_json()["recipe"]
    here = {"name": "digits", "training": {"recipe": "fast", "crop": 2}}
    assert made({"epochs": 3, "crop": 1}, [here]) == made({**fast, "crop": 2})
    assert made(fast, [{"name": "digits", "training": {"epochs": 3}}]).recipe.dirac
    here = {"name": "digits", "training": {"recipe": "standard"}}
    assert made({**fast, "crop": 1}, [here]) == made({"crop": 1})


def test_the_standard_recipe_takes_back_all_that_another_one_sets():
    assert Recipe(**recipes.NAMED["standard"]) == Recipe()
    assert all({*named} <= {*recipes.NAMED["standard"]} for named in recipes.NAMED.values())


def test_pruning_by_weights_is_noted_where_the_base_was_initialized_as_identities(tmp_path):
    def notes(techniques, **training):
        path = tmp_path / "noted.yaml"
        define = {"steps": [{"prune": {"steps": 2, "criterion": "l2"}}]}
        content = {"name": "x", "models": ["vgg11_bn"], "datasets": ["digits"], "define": define}
        content |= {"techniques": techniques, "training": training, "seeds": [0, 1]}
        path.write_text(yaml.safe_dump(content))
        return cells.sweep.load(path, cells.catalog.built_in()).notes

    named = ["base", "prune-taylor", "pruned-from-scratch", "prune-random", "steps"]
    [note] = notes(named, recipe="fast")  # once, of two stages and two seeds
    assert note.endswith(
        "noted.yaml: steps on digits: prune.criterion l2 ranks filters by their weights, which "
        "says little where they were initialized as identities (training.dirac); expected taylor"
    )
    assert notes(named, recipe="fast", dirac=False) == notes(named) == ()
    [small, l1] = notes([*named[:3], "small-and-int8", "prune-filters", "steps"], dirac=True)[:2]
    assert "small-and-int8 on digits: prune.criterion l1" in small and "prune-filters on" in l1


@pytest.mark.parametrize("name, hint", [("fest", "did you mean 'fast'?"), (3, "valid: fast, st")])
def test_a_recipe_that_there_is_not_is_one_sentence(name, hint, tmp_path):
    with pytest.raises(UserError) as told:
        cells.cells(tmp_path, ["base"], training={"recipe": name})
    assert "training: unknown recipe" in str(told.value) and hint in str(told.value)
    assert "\n" not in str(told.value)


def test_what_is_for_fresh_weights_does_not_reach_a_training_that_goes_on():
    full_recipe = recipe(**ALL)
    assert stage_module("train").Settings().recipe_of(full_recipe) == full_recipe
    assert stage_module("distill").Settings().recipe_of(full_recipe) == full_recipe
    kept = {k: ALL[k] for k in ("label_smoothing", "flip", "flips", "cutout")}
    for name in ("finetune", "quantize", "sparsify"):
        continued = stage_module(name).Settings(learning_rate_factor=1.0).recipe_of(full_recipe)
        assert continued == recipe(**kept), name


# --- resumed = uninterrupted -----------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill at the end of an epoch, after its checkpoint."""


def test_resumed_ends_as_if_never_interrupted_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(lookahead, "EVERY", 3)  # no multiple of it ends an epoch of 4 steps
    full_recipe = recipe(**ALL)
    whole = fitted(full_recipe).state.network.state_dict()
    training = None
    for end in (1, 2, 3):
        torch.manual_seed(end)
        kept = Checkpointer(tmp_path / "checkpoint", tmp_path / "metrics.h5")

        def keep(now, kept=kept, end=end):
            kept.save(Snapshot(0, "train", now, ()), wait=True)
            if now.epoch == end:
                raise Killed

        with pytest.raises(Killed):
            fitted(full_recipe, training, keep=keep)
        training = kept.load().training
    assert training.epoch == 3
    assert all(torch.equal(t, whole[n]) for n, t in training.state.network.state_dict().items())


def test_steps_whose_rates_lie_on_the_device_give_the_same_bits():
    """As in a CUDA graph: see tests/test_graphs.py."""
    full_recipe = recipe(**ALL)
    eager, graphed = (
        fitted(
            full_recipe, where=replace(machine(full_recipe, "cpu"), graphed=graphed)
        ).state.network
        for graphed in (False, True)
    )
    expected = eager.state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in graphed.state_dict().items())


# --- fresh weights ---------------------------------------------------------------------------


def test_the_first_convolution_whitens_and_its_negatives_stand_beside():
    state = initial.fresh(SPEC, 0, recipe(whitening=1.0), split().train)
    plain = network.new(SPEC, 0)
    name = "features.0.conv.weight"
    first, before = (s.network.module.state_dict()[name] for s in (state, plain))
    assert torch.equal(first[:27], -first[27:54]) and torch.equal(first[54:], before[54:])
    x = state.network.normalize(split().train.pixels)
    seen = F.conv2d(x, first[:27]).transpose(0, 1).flatten(1).numpy()  # without padding
    covariance = np.cov(seen)
    variances = np.linalg.eigvalsh(np.cov(F.unfold(x, 3).transpose(0, 1).flatten(1).numpy()))
    expected = np.sort(variances / (variances + initial.SMALLEST))[::-1]
    assert np.allclose(covariance, np.diag(expected), atol=1e-2)
    others = {n: t for n, t in state.network.module.state_dict().items() if n != name}
    assert all(torch.equal(t, plain.network.module.state_dict()[n]) for n, t in others.items())


def test_whitening_sees_images_of_all_classes(monkeypatch):
    """They may lie class by class, as those of folders do."""
    monkeypatch.setattr(initial, "IMAGES", 16)
    whole, order = images(), torch.argsort(images().labels, stable=True)
    lying = data.Images(whole.pixels[order], whole.labels[order])
    seen = []
    monkeypatch.setattr(initial, "whiten", lambda state, pixels: seen.append(pixels))
    initial.fresh(SPEC, 0, recipe(whitening=1.0), lying)
    [pixels] = seen
    counts = [
        int((pixels[:, None] == lying.pixels[k * 16 :][:16]).flatten(2).all(2).sum())
        for k in range(4)
    ]
    assert counts == [4] * 4


def test_further_convolutions_hand_their_channels_on():
    state = initial.fresh(SPEC, 0, recipe(dirac=True), split().train)
    module, x = state.network.module, torch.randn(2, 16, 6, 6)
    assert torch.equal(module.features[4].conv(x), x)
    wide = module.features[1].conv.weight  # 64 channels in, 16 filters
    assert wide[:, :, 1, 1].sum() == 16 and wide.abs().sum() == 16
    plain = network.new(SPEC, 0).network.module
    assert torch.equal(module.features[0].conv.weight, plain.features[0].conv.weight)


@pytest.mark.parametrize("name", ["resnet20", "resnet20_a", "mobilenetv2", "vgg11"])
def test_every_family_has_a_first_convolution_to_whiten(name):
    spec = module_of(name).spec(name, 0.5, SHAPE, 4, 128, 1 / 74)
    state = initial.fresh(spec, 0, recipe(whitening=0.5, dirac=True), split().train)
    [layer] = initial.image_layers(state)
    half = len(layer.weight) // 2
    assert half and torch.equal(
        layer.weight[: min(half, 27)], -layer.weight[half:][: min(half, 27)]
    )


def test_a_network_that_reads_the_image_without_a_convolution_cannot_be_whitened(monkeypatch):
    state = network.new(SPEC, 0)
    monkeypatch.setattr(initial, "image_layers", lambda state: ())
    with pytest.raises(UserError, match="training.whitening: expected a convolution"):
        initial.whiten(state, split().train.pixels)


# --- steps -----------------------------------------------------------------------------------


def test_the_whitening_filters_stay_for_their_part_of_the_steps():
    seen = []
    conv = "features.0.conv.weight"

    def after_step(state, step, steps):
        seen.append(state.network.module.state_dict()[conv].clone())

    fitted(recipe(whitening=0.5), after_step=after_step)
    changed = [not torch.equal(a, b) for a, b in zip(seen, seen[1:], strict=False)]
    assert changed == [False] * 5 + [True] * 6


def test_the_biases_of_normalization_go_faster_by_their_factor_and_nothing_else_does():
    moved = []
    for factor in (1.0, 8.0):
        with_factor = recipe(bias_rate=factor, momentum=0.0, weight_decay=0.0)
        net = network.new(SPEC, 0).network
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        optim = optimizer(net, with_factor)
        for group in optim.param_groups:
            group["lr"] = group_rate(group, with_factor, 3, 10)
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        optim.step()
        moved.append({n: (before[n] - p).mean().item() for n, p in net.named_parameters()})
    ratios = {n: moved[1][n] / moved[0][n] for n in moved[0]}
    for name, ratio in ratios.items():
        assert ratio == pytest.approx(8 if name.endswith("norm.bias") else 1, rel=1e-3), name


def average(steps: int, seen: list[torch.Tensor]) -> torch.Tensor:
    """What the network ends as, of what it was after each step, the first before all of them."""
    slow = seen[0].double()
    for step in range(lookahead.EVERY, steps + 1, lookahead.EVERY):
        left = 0.95**lookahead.EVERY * (step / steps) ** 3
        slow = left * slow + (1 - left) * seen[step].double()
    return slow


def test_with_lookahead_the_network_ends_as_the_average_of_its_weights_and_statistics():
    with_lookahead = recipe(lookahead=True)
    start = initial.fresh(SPEC, 0, with_lookahead, split().train)
    names = ("module.features.3.conv.weight", "module.features.3.norm.running_var")
    seen = {n: [start.network.state_dict()[n].clone()] for n in names}

    def after_step(state, step, steps):
        for name, values in seen.items():
            values.append(state.network.state_dict()[name].clone())

    done = fitted(with_lookahead, Training(start), after_step=after_step).state.network.state_dict()
    for name, values in seen.items():
        assert torch.allclose(done[name].double(), average(12, values), atol=1e-6), name
        assert not torch.allclose(done[name], values[-1], atol=1e-6)


def test_a_training_too_short_for_an_average_keeps_what_it_learned(monkeypatch):
    monkeypatch.setattr(lookahead, "EVERY", 13)  # of 12 steps

    def ends(looks: bool):
        return fitted(recipe(lookahead=looks)).state.network.state_dict()

    plain = ends(False)
    assert all(torch.equal(plain[name], tensor) for name, tensor in ends(True).items())


def test_lookahead_goes_back_to_the_average_every_few_steps():
    with_lookahead = recipe(lookahead=True)
    net = network.new(SPEC, 0).network
    made = lookahead.Lookahead(net, with_lookahead, {})
    weight = net.module.head.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    for step in range(1, 5):
        made.after_step(step, 10)
    assert torch.allclose(weight, before + 1)
    made.after_step(5, 10)
    assert torch.allclose(weight, before + 1 - 0.95**5 * 0.5**3)


# (settings, loss of the last epoch, held-out loss); on other CPUs the fifth digit differs
FIGURES = {
    "none": ({}, 0.97661, 1.37948),
    "flips": ({"flip": True, "flips": "alternating"}, 1.28449, 1.38946),
    "cutout": ({"cutout": 3}, 1.01296, 1.38459),
    "whitening": ({"whitening": 0.5}, 1.40458, 1.38747),
    "dirac": ({"dirac": True}, 0.47042, 1.38734),
    "bias_rate": ({"bias_rate": 8.0}, 0.91972, 1.39001),
    "lookahead": ({"lookahead": True}, 1.04889, 1.38294),
    "mixup": ({"mixup": 0.4}, 1.10795, 1.37905),
}


@pytest.mark.parametrize("name", FIGURES)
def test_what_a_setting_does_stays(name):
    """If this fails and the change is meant, raise the version of the training core (`data` where
    pixels changed), and accept the figures."""
    settings, loss, held_out = FIGURES[name]
    columns = fitted(recipe(**settings)).columns
    assert columns["loss"][-1] == pytest.approx(loss, rel=1e-3)
    assert columns["held_out_loss"][-1] == pytest.approx(held_out, abs=2e-4)


# --- images ----------------------------------------------------------------------------------


def test_alternating_flips_mirror_each_image_in_every_other_epoch(monkeypatch):
    seen = []

    def objective(net, pixels, labels):
        seen.append(pixels.clone())
        return losses.labels_only(0.0)(net, pixels, labels)

    alternating = recipe(flip=True, flips="alternating", crop=0, epochs=4)
    course = Course(alternating, 4, objective, machine(alternating, "cpu"), 7)
    fit(Training(network.new(SPEC, 0)), split(), course)
    epochs = torch.cat(seen).view(4, 64, *SHAPE)
    own = split().train.pixels
    same = [[bool((image == own).flatten(1).all(1).any()) for image in epoch] for epoch in epochs]
    mirrored = torch.tensor(
        [[not any(torch.equal(image, seen) for seen in epoch) for image in own] for epoch in epochs]
    )
    assert 0.25 < mirrored[0].float().mean() < 0.75 and all(map(any, same))
    assert torch.equal(mirrored[0], mirrored[2]) and torch.equal(mirrored[0], ~mirrored[1])


def test_cutout_blanks_a_square_whose_middle_may_be_anywhere():
    pixels = torch.full((4000, 1, 5, 6), 9, dtype=torch.uint8)
    source = data.Images(pixels, torch.zeros(4000, dtype=torch.int64))
    made = data.batches(source, 100, torch.Generator().manual_seed(0), cutout=3, fill=77)
    holes = torch.cat([p for p, _ in made])[:, 0] == 77
    assert {int(h.sum()) for h in holes} == {4, 6, 9}  # in a corner, at an edge, inside
    rows, columns = holes.any(2).float().mean(0), holes.any(1).float().mean(0)
    assert torch.allclose(rows, torch.tensor([2, 3, 3, 3, 2]) / 5, atol=0.04)
    assert torch.allclose(columns, torch.tensor([2, 3, 3, 3, 3, 2]) / 6, atol=0.04)


def test_cutout_leaves_the_other_chances_as_they_are():
    source, plain, cut = images(), *(torch.Generator().manual_seed(3) for _ in range(2))
    one = list(data.batches(source, 16, plain, crop=2, flip=True))
    two = list(data.batches(source, 16, cut, crop=2, flip=True, cutout=2, fill=255))
    for (before, _), (after, _) in zip(one, two, strict=True):
        assert torch.equal(torch.where(after == 255, before, after), before)
        assert (after != before).any()


class Linear(torch.nn.Module):
    """Logits from the mean of each channel."""

    def forward(self, x):
        return x.float().mean((2, 3))


def test_mixup_blends_neighbours_and_their_labels_in_the_same_parts():
    pixels, labels = images(8).pixels, torch.tensor([0, 2, 1, 1, 0, 2, 2, 1])
    torch.manual_seed(5)
    loss, logits = losses.labels_only(0.1, 0.4)(Linear(), pixels, labels)
    torch.manual_seed(5)
    part = torch._sample_dirichlet(torch.full((8, 2), 0.4)).max(1).values.double().numpy()
    assert np.all((part >= 0.5) & (part <= 1))
    means, other = pixels.double().mean((2, 3)).numpy(), np.roll(np.arange(8), 1)
    mixed = part[:, None] * means + (1 - part)[:, None] * means[other]
    assert np.allclose(logits.numpy(), mixed, atol=1e-4)
    target = np.full((8, 3), 0.1 / 3)
    target[np.arange(8), labels] += 0.9 * part
    target[np.arange(8), labels[other]] += 0.9 * (1 - part)
    log_p = mixed - np.log(np.exp(mixed).sum(1, keepdims=True))
    assert loss.item() == pytest.approx(-(target * log_p).sum(1).mean(), rel=1e-4)
