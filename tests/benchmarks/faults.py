"""How often netpress stands what goes wrong: faults of the disk, flipped bits, files of strangers.

    env/run python -m tests.benchmarks.faults [--minutes 30] [--seed 0] [faults flips hostile]

*faults*: every write, fsync, rename, unlink, mkdir and open of small runs fails, is cut short or is
the last one, each in turn, and the run is repeated: it must then be done, with the same products,
nothing of before lost, no temporary file left; and at no time may half a file have a live name, or
a traceback be the answer. *flips*: bits and ends of every published file; each must be detected, or
make no difference. *hostile*: files with a right checksum and contents of others; each must be read
in full or be one sentence, within 1 GB and 30 s. Counts are printed as they are, with whatever was
not held; the exit code is 1 where that is anything.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import report, store
from pipeline.artifact.format import MODEL
from pipeline.errors import Corrupt, UserError
from pipeline.orchestrate import ledger
from pipeline.paths import ReportPaths, Work
from pipeline.report import merged
from tests import cells, hostile, injected, results

FLIPS, HOSTILE = 100_000, 1_000


@dataclass
class Count:
    """What was tried, and what was not held."""

    tried: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def note(self, what: str, problem: str = "") -> None:
        self.tried[what] += 1
        if problem:
            self.wrong.append(f"{what}: {problem}")
            print(f"NOT HELD {what}: {problem}", flush=True)

    def line(self, name: str, seconds: float) -> str:
        parts = ", ".join(f"{n:,} {what}" for what, n in sorted(self.tried.items()))
        total = sum(self.tried.values())
        return f"{name}: {total:,} tried, {len(self.wrong)} not held, {seconds:.0f} s ({parts})"


# --- faults of the disk ----------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """`before` makes the folder, `act` is the run, `products` is what has to be there at the end,
    `sound` raises where half of something has a live name."""

    name: str
    before: Callable[[Path], None]
    act: Callable[[Path], None]
    products: Callable[[Path], object]
    sound: Callable[[Path], None]


def _publish(folder: Path) -> None:
    """What a cell publishes, under its lock; its numbers are made up."""
    cell, work = hostile.some_sweep().cells[1], Work(folder)
    with store.lock_cell(work.cell(cell.id)):
        if store.is_done(work.cell(cell.id), deep=True):
            return
        attempt = store.new_attempt(work.cell(cell.id), "1_0")
        store.write_usage(attempt, store.Usage("1_0"))
        results.publish(cell, work)


def _cells_are_sound(folder: Path) -> None:
    for cell in hostile.some_sweep().cells:
        paths = Work(folder).cell(cell.id)
        if paths.manifest.exists():
            store.verify(paths, deep=True)
        if paths.result.exists():
            store.read_result(paths.result)
        if paths.metrics.exists():
            store.read_history(paths.metrics)
        if paths.cell_json.exists():
            json.loads(paths.cell_json.read_bytes())


def _published(folder: Path) -> object:
    _cells_are_sound(folder)
    done = [
        store.is_done(Work(folder).cell(cell.id), deep=True) for cell in hostile.some_sweep().cells
    ]
    return done


def _submit(folder: Path) -> None:
    """Five submissions in a ledger, each once."""
    place = Work(folder).sweep("s")
    with ledger.locked(place) as known:
        for i in range(5):
            intent = f"intent{i}"
            if intent not in known.entries:
                facts = dict(tasks={"0": [f"cell{i}"]}, request={}, after=[], user="me")
                known.append("intent", intent=intent, name=f"n{i}", kind="cells", **facts)
            if known.entries[intent].open:
                known.append("submitted", intent=intent, job=100 + i)


def _ledger_is_sound(folder: Path) -> None:
    known = ledger.read(Work(folder).sweep("s"))
    assert list(known.entries) == [f"intent{i}" for i in range(len(known.entries))]


def _submitted(folder: Path) -> object:
    return ledger.read(Work(folder).sweep("s")).jobs


def _report(folder: Path) -> None:
    report.build(hostile.some_sweep(), Work(folder / "work"), folder / "reports", 10**9)


def _work_of_report(folder: Path) -> None:
    for cell in hostile.some_sweep().cells:
        results.publish(cell, Work(folder / "work"))


def _report_is_sound(folder: Path) -> None:
    _cells_are_sound(folder / "work")
    paths = ReportPaths(folder / "reports" / "test")
    if paths.merged.exists():
        store.check_seal(paths.merged)


def _reported(folder: Path) -> object:
    """The bytes of a report, all but results.h5, which has times of its groups in it."""
    reports = folder / "reports"
    return {
        p.relative_to(reports): store.sha256(p) for p in sorted(reports.rglob("*")) if p.is_file()
    }


def _nothing(folder: Path) -> None:
    pass


def _base_done(folder: Path) -> None:
    results.publish(hostile.some_sweep().cells[0], Work(folder))


QUICK = (
    Scenario("publish", _base_done, _publish, _published, _cells_are_sound),
    Scenario("ledger", _nothing, _submit, _submitted, _ledger_is_sound),
)
REPORT = Scenario("report", _work_of_report, _report, _reported, _report_is_sound)


def cell_scenario() -> Scenario:
    """A real cell: trained on 32 digits, exported, measured."""
    training = {"epochs": 1, "batch_size": 32, "train_images": 32, "test_images": 16}
    with tempfile.TemporaryDirectory() as folder:
        base = cells.cells(Path(folder), ["base"], training=training)["base"]

    def act(folder: Path) -> None:
        cells.run(base, Work(folder))

    def products(folder: Path) -> object:
        paths = Work(folder).cell(base.id)
        store.verify(paths, deep=True)
        return {name: store.sha256(paths.folder / name) for name in ("artifact/model.onnx",)}

    def sound(folder: Path) -> None:
        paths = Work(folder).cell(base.id)
        if paths.manifest.exists():
            store.verify(paths, deep=True)
        if paths.metrics.exists():
            store.read_history(paths.metrics)

    return Scenario("cell", _nothing, act, products, sound)


def faults(scenario: Scenario, count: Count, until: float, step: int = 1, first: int = 0) -> None:
    """Every `step`-th operation, with every kind of fault; then the run is repeated."""
    with _folder() as folder:
        scenario.before(folder)
        code, operations, trace = injected.run(lambda: scenario.act(folder), folder)
        assert code == injected.DONE, trace
        expected = scenario.products(folder)
    for at in range(first, len(operations), step):
        for kind in injected.KINDS:
            if time.monotonic() > until:
                print(f"{scenario.name}: time is over at operation {at} of {len(operations)}")
                return
            what = f"{scenario.name} {operations[at]} {kind}"
            count.note(what, _fault(scenario, expected, at, kind))


def _fault(scenario: Scenario, expected: object, at: int, kind: str) -> str:
    """What was not held; "" where all was."""
    with _folder() as folder:
        scenario.before(folder)
        code, _, trace = injected.run(lambda: scenario.act(folder), folder, at, kind)
        if code not in (injected.DONE, injected.KILLED, injected.SENTENCE):
            return f"operation {at}: exit code {code}: {trace[-1500:]}"
        try:
            scenario.sound(folder)
        except (Corrupt, UserError, OSError, ValueError, AssertionError) as error:
            return f"operation {at}: half there: {error!r}"
        code, _, trace = injected.run(lambda: scenario.act(folder), folder)
        if code != injected.DONE:
            return f"operation {at}: the run was repeated in vain: {code} {trace[-1500:]}"
        if scenario.products(folder) != expected:
            return f"operation {at}: other products than without a fault"
        left = [p.name for p in folder.rglob("*") if store.TEMPORARY.fullmatch(p.name)]
        return f"operation {at}: left behind {left}" if left else ""


@contextmanager
def _folder() -> Iterator[Path]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where fsync costs nothing
    folder = Path(tempfile.mkdtemp(prefix="netpress-faults-", dir=memory))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


# --- bits ------------------------------------------------------------------------------------


def flips(count: Count, tries: int, until: float, seed: int = 0) -> None:
    """Bits, and ends, of all files of a cell, of a ledger and of a report's results.h5."""
    with _folder() as folder:
        looks = _published_files(folder)
        every = random.Random(seed)
        names = sorted(looks)
        for i in range(tries):
            if time.monotonic() > until:
                return
            name = names[i % len(names)]
            path, look, expected = looks[name]
            whole = path.read_bytes()
            path.write_bytes(_damaged(whole, every))
            try:
                same = look() == expected
            except (Corrupt, UserError):
                same = True  # detected
            except Exception as error:
                count.note(name, f"a traceback: {error!r}")
                same = True
            count.note(name, "" if same else "read as something else")
            path.write_bytes(whole)


def _damaged(whole: bytes, every: random.Random) -> bytes:
    if every.random() < 0.1:
        return whole[: every.randrange(len(whole))]
    changed = bytearray(whole)
    changed[every.randrange(len(changed))] ^= 1 << every.randrange(8)
    return bytes(changed)


Look = tuple[Path, Callable[[], object], object]


def _published_files(folder: Path) -> dict[str, Look]:
    """Name -> (path, what reads it, what that gives)."""
    cell = hostile.some_sweep().cells[1]
    _base_done(folder)
    _publish(folder)
    _submit(folder)
    paths, place = Work(folder).cell(cell.id), Work(folder).sweep("s")
    own = hostile.exported(folder / "exported")
    many = merged.write(hostile.some_sweep(), Work(folder), folder / "results.h5").path
    looks: dict[Path, Callable[[], object]] = {
        path: lambda: store.verify(paths, deep=True)
        for path in sorted(paths.folder.rglob("*"))
        if path.is_file() and path.name != "lock" and "attempts" not in path.parts
    }
    looks[place.ledger] = looks[place.ledger_count] = lambda: ledger.read(place)
    # Its manifest has no checksum of its own: a class of another name is not seen.
    looks[own / MODEL] = lambda: hostile.identity(own)
    looks[many] = lambda: merged.read(many).frames.rows
    return {str(path.relative_to(folder)): (path, look, look()) for path, look in looks.items()}


# --- everything ------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["faults", "flips", "hostile"])
    parser.add_argument("--minutes", type=float, default=30.0, help="for each part")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    wrong = 0
    for part in options.parts:
        count, began = Count(), time.monotonic()
        until = began + 60 * options.minutes
        if part == "faults":
            for scenario in (*QUICK, REPORT, cell_scenario()):
                faults(scenario, count, until)
        elif part == "flips":
            flips(count, FLIPS, until, options.seed)
        else:
            hostile.attack(count.note, HOSTILE, until, options.seed)
        print(count.line(part, time.monotonic() - began), flush=True)
        wrong += len(count.wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
