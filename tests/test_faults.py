"""A fixed part of tests/benchmarks/faults.py: what goes wrong on a disk, and files of strangers."""

from __future__ import annotations

import random
import time

import pytest

from tests import hostile, injected
from tests.benchmarks import faults

LONG = time.monotonic() + 10**6


@pytest.mark.parametrize("scenario", faults.QUICK, ids=lambda scenario: scenario.name)
def test_no_fault_of_the_disk_loses_or_halves_anything(scenario):
    count, sound = faults.Count(), faults.Sound.of(scenario)
    once, twice = list(faults.each(sound, costly=False)), random.Random(0)
    some = [*once[:: max(1, len(once) // 7)], *faults.pairs(sound, 2, twice)]
    faults.faults(scenario, some, sound, count, LONG)
    assert not count.wrong and sum(count.tried.values()) >= 8


def test_an_injected_fault_is_a_real_one(tmp_path):
    """The harness sees a writer that does not sync, and one that writes under the live name."""

    def careless(path):
        with open(path, "wb") as file:
            file.write(b"0123456789")

    code, operations, _ = injected.run(lambda: careless(tmp_path / "a"), tmp_path)
    assert (code, operations) == (injected.DONE, ["open /a", "write /a"])
    for kind, left in (("fails", b""), ("killed", b""), ("torn", b"01234"), ("short", None)):
        path = tmp_path / kind
        code, _, _ = injected.run(lambda p=path: careless(p), tmp_path, 1, kind)
        assert left is None or path.read_bytes() == left
        assert (code == injected.KILLED) == (kind in ("killed", "torn"))


def test_flipped_bits_and_lost_ends_of_every_published_file_are_seen():
    count = faults.Count()
    faults.flips(count, 300, LONG)
    assert not count.wrong and len(count.tried) >= 10 and sum(count.tried.values()) == 300


def test_a_hostile_file_is_one_sentence():
    count = faults.Count()
    hostile.attack(count.note, 32, LONG, seed=1, draw=10**9)
    assert not count.wrong and len(count.tried) == 4
