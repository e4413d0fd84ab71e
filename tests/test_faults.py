"""A fixed part of tests/benchmarks/faults.py: what goes wrong on a disk, and files of strangers."""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress

import pytest

from pipeline import store
from tests import hostile, injected
from tests.benchmarks import faults
from tests.scenarios import Scenario

LONG = time.monotonic() + 10**6


@pytest.mark.parametrize("scenario", faults.QUICK, ids=lambda scenario: scenario.name)
def test_no_fault_of_the_disk_loses_or_halves_anything(scenario):
    count, sound, every = faults.Count(), faults.Sound.of(scenario), random.Random(scenario.name)
    faults.faults(scenario, faults.of_each_kind(sound, every), sound, count, LONG)
    assert {what.split()[2] for what in count.tried} == set(injected.KINDS)
    faults.faults(scenario, faults.pairs(sound, 2, every), sound, count, LONG)
    assert not count.wrong and sum(count.tried.values()) >= len(injected.KINDS)


@pytest.mark.parametrize(("keeps", "others", "held"), [(True, 0, 1), (True, 1, 0), (False, 0, 0)])
def test_only_what_was_refused_stays_and_only_where_it_may(keeps, others, held):
    """A run that removes what was left, if it can, and comes to an end; the next does nothing."""

    def before(folder):
        for i in range(1 + others):
            (folder / f".a.tmp-{i + 1}-00000000").write_text("half")

    def act(folder):
        if not (folder / "a").exists():
            with suppress(PermissionError):
                os.unlink(folder / ".a.tmp-1-00000000")
            store.publish_bytes(folder / "a", b"whole")

    def products(folder):
        return (folder / "a").read_bytes()

    scenario = Scenario("x", before, act, products, lambda folder: None, keeps=keeps)
    count, sound = faults.Count(), faults.Sound.of(scenario)
    at = sound.operations.index("unlink /a.tmp")
    faults.faults(scenario, [faults.Fault(at, "fails")], sound, count, LONG)
    assert sum(count.tried.values()) == 1 and len(count.wrong) == 1 - held


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
