"""Data sets that memory does not hold: mapped files, of which the same cells come."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import resized_crop

from pipeline import data, execute
from pipeline.data import cache
from pipeline.errors import UserError
from pipeline.paths import Work
from pipeline.sweep import Recipe
from pipeline.training.checkpoint import read_model
from tests import cells
from tests.test_folders import fill, own

RECIPE = Recipe(holdout=0.25, train_images=8)


def parts(split: data.Split) -> list[torch.Tensor]:
    every = (split.train, split.held_out, split.test)
    return [t for images in every for batch in images.batches(3) for t in batch]


def test_a_mapped_data_set_is_the_same_data_set(tmp_path, monkeypatch):
    top = fill(tmp_path / "own", train=12)
    (top / "train" / "cat" / "1.png").write_bytes(b"no image")
    dataset = own(top, on_error="skip")
    expected = data.load(dataset, RECIPE, 0, tmp_path, tmp_path / "memory")
    monkeypatch.setattr(cache, "MAPPED", 100)
    for _ in range(2):  # decoded, and from the cache
        mapped = data.load(dataset, RECIPE, 0, tmp_path, tmp_path / "mapped")
        assert mapped.train.rows is not None and expected.train.rows is None
        assert (mapped.zero_point, mapped.scale) == (expected.zero_point, expected.scale)
        assert mapped.fingerprint == expected.fingerprint
        assert all(map(torch.equal, parts(mapped), parts(expected)))
    assert not [p for p in (tmp_path / "mapped").iterdir() if p.name != "data"]  # no leftovers
    some = data.sample(mapped.train, 4, 0), data.sample(expected.train, 4, 0)
    assert torch.equal(*(images.pixels for images in some))


def test_batches_of_a_mapped_data_set_are_those_of_one_in_memory(tmp_path, monkeypatch):
    dataset = own(fill(tmp_path / "own", train=12))
    memory = data.load(dataset, RECIPE, 0, tmp_path, tmp_path / "memory").train
    monkeypatch.setattr(cache, "MAPPED", 100)
    mapped = data.load(dataset, RECIPE, 0, tmp_path, tmp_path / "mapped").train
    settings = {"crop": 2, "flip": True, "fill": 7}
    actual, expected = (
        list(data.batches(images, 2, torch.Generator().manual_seed(3), **settings))
        for images in (mapped, memory)
    )
    for one, other in zip(actual, expected, strict=True):
        assert all(map(torch.equal, one, other))


def test_what_is_decoded_into_is_a_file_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MAPPED", 100)
    with cache.scratch(tmp_path):
        array = cache.empty((1000, 3, 32, 32))
    assert isinstance(array, np.memmap) and not list(tmp_path.iterdir())
    array[5] = 7
    assert array[5].min() == 7 and array[6].max() == 0


def test_where_the_disk_has_no_room_it_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MAPPED", 100)
    dataset = own(fill(tmp_path / "own", train=40), size=64)
    with cells.small_disk(tmp_path / "disk", "600k") as disk:
        with pytest.raises(UserError, match="the cache's disk has .* give a smaller `size:`"):
            data.load(dataset, RECIPE, 0, tmp_path, disk)
        assert not list(disk.rglob("*.npy"))


# --- parts of an image, enlarged -------------------------------------------------------------


def photographs(count: int) -> data.Images:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((count, 3, 6, 5), generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, (24, 20), mode="bicubic")
    return data.Images(pixels.clamp(0, 1).mul(255).byte(), torch.arange(count))


@pytest.mark.parametrize("flip", [False, True])
def test_an_enlarged_part_is_what_torchvision_makes_of_the_same_box(flip):
    images = photographs(12)
    how = data.Augmentation(flip=flip, resized_crop=0.2)
    draws = data.draw(images, torch.Generator().manual_seed(1), how)
    pixels, labels = data.augmented(images, draws, how)
    for i, label in enumerate(labels.tolist()):
        top, left, rows, columns = draws.boxes[:, i].int().tolist()
        expected = resized_crop(
            images.pixels[label].float(), top, left, rows, columns, [24, 20], antialias=False
        )
        expected = expected.flip(2) if draws.mirrored[i] else expected
        assert (pixels[i].float() - expected).abs().max() <= 0.51
    assert draws.mirrored.any() == flip


def test_boxes_lie_in_the_image_and_have_the_areas_and_shapes_that_are_told():
    images = photographs(1).pixels.expand(4000, 3, 24, 20)
    how = data.Augmentation(resized_crop=0.25)
    everything = data.Images(images, torch.zeros(4000, dtype=torch.int64))
    top, left, rows, columns = data.draw(everything, torch.Generator().manual_seed(2), how).boxes
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + rows <= 24).all() and (left + columns <= 20).all()
    assert ((top + rows == 24) & (top > 0)).any() and ((left + columns == 20) & (left > 0)).any()
    part, ratio = rows * columns / 480, columns / rows
    assert 0.2 < part.min() < 0.3 and part.max() > 0.9 and 0.55 < part.mean() < 0.65
    # Sides are whole pixels, so shapes are a little beyond.
    assert 0.65 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.5


def test_a_network_trains_on_parts_of_large_images_that_lie_in_a_mapped_file(tmp_path, monkeypatch):
    """Through a sweep file, resumed, and in the steps of a CUDA graph: the same weights."""
    monkeypatch.setattr(cache, "MAPPED", 100)
    fill(tmp_path / "own", train=12)
    training = cells.TRAINING | {"epochs": 2, "batch_size": 4, "train_images": 16}
    sets = [{"name": "own", "folder": str(tmp_path / "own"), "size": 32}]
    resolve, weights = execute.machine, {}
    for how in ("eager", "graphed"):
        made = cells.cells(
            tmp_path, ["base"], datasets=sets, training=training | {"resized_crop": 0.3}
        )
        work = Work(tmp_path / how)
        with monkeypatch.context() as patch:
            graphed = how == "graphed"
            patch.setattr(
                execute,
                "machine",
                lambda *given, g=graphed: dataclasses.replace(resolve(*given), graphed=g),
            )
            cells.run(made["base"], work)
        weights[how] = read_model(work.cell(made["base"].id).model).network.state_dict()
    assert all(torch.equal(t, weights["graphed"][name]) for name, t in weights["eager"].items())


def test_a_part_of_a_mapped_test_set_is_measured(tmp_path, monkeypatch):
    """As many images as the sweep names, and those: the figures of one in memory."""
    fill(tmp_path / "own", train=12)
    training = cells.TRAINING | {"epochs": 1, "batch_size": 4, "train_images": 16, "test_images": 2}
    sets = [{"name": "own", "folder": str(tmp_path / "own"), "size": 32}]
    base = cells.cells(tmp_path, ["base"], datasets=sets, training=training)["base"]
    measured = {}
    for how, limit in (("memory", 2**30), ("mapped", 100)):
        monkeypatch.setattr(cache, "MAPPED", limit)
        split = data.load(base.dataset, base.recipe, 0, tmp_path, tmp_path / how / "cache")
        assert (split.test.rows is not None) == (how == "mapped") and len(split.test) == 2
        work = Work(tmp_path / how)
        cells.run(base, work)
        measured[how] = cells.result(work.cell(base.id)).measured
    for name in ("labels", "predictions", "accuracy", "simulated_accuracy"):
        assert np.array_equal(measured["mapped"][name], measured["memory"][name])
