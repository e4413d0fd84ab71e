"""Data sets that memory does not hold: mapped files, of which the same cells come."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import data
from pipeline.data import cache
from pipeline.errors import UserError
from pipeline.sweep import Recipe
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
        found = data.load(dataset, RECIPE, 0, tmp_path, tmp_path / "mapped")
        assert found.train.rows is not None and expected.train.rows is None
        assert (found.zero_point, found.scale) == (expected.zero_point, expected.scale)
        assert found.fingerprint == expected.fingerprint
        assert all(map(torch.equal, parts(found), parts(expected)))
    assert not [p for p in (tmp_path / "mapped").iterdir() if p.name != "data"]  # no leftovers
    some = data.sample(found.train, 4, 0), data.sample(expected.train, 4, 0)
    assert torch.equal(*(images.pixels for images in some))


def test_batches_of_a_mapped_data_set_are_those_of_one_in_memory(tmp_path, monkeypatch):
    dataset = own(fill(tmp_path / "own", train=12))
    memory = data.load(dataset, RECIPE, 0, tmp_path, tmp_path / "memory").train
    monkeypatch.setattr(cache, "MAPPED", 100)
    mapped = data.load(dataset, RECIPE, 0, tmp_path, tmp_path / "mapped").train
    settings = {"crop": 2, "flip": True, "fill": 7}
    found, expected = (
        list(data.batches(images, 2, torch.Generator().manual_seed(3), **settings))
        for images in (mapped, memory)
    )
    for one, other in zip(found, expected, strict=True):
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
