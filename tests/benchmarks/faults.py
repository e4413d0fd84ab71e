"""How often netpress stands what goes wrong: faults of the disk, flipped bits, files of strangers.

    env/run python -m tests.benchmarks.faults [--minutes 30] [--seed 0] [--part 0 --of 1]
                                              [faults flips hostile]

*faults*: every write, fsync, rename, unlink, mkdir and open of small runs fails, is cut short or is
the last one, each in turn, and the run is repeated: it must then be done, with the same products,
nothing of before lost, no temporary file left; and at no time may half a file have a live name, or
a traceback be the answer. Then two faults, one while the run is repeated after the other. *flips*:
bits and ends of every published file; each must be detected, or make no difference. *hostile*:
files with a right checksum and contents of others; each must be read in full or be one sentence,
within 1 GB and 30 s. Counts are printed as they are, with whatever was not held; the exit code is 1
where that is anything.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import pickle
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline import store
from pipeline.errors import Corrupt, UserError
from pipeline.orchestrate import ledger
from pipeline.paths import Work
from tests import injected, scenarios
from tests.scenarios import QUICK, REPORT, Scenario, cell_scenario

FLIPS, HOSTILE = 100_000, 1_000
SHOWN = 100  # faults from one line of progress to the next
REMOVALS = ("unlink", "rmdir")
ONLY_OF_WRITES = ("short", "torn")


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
        kinds: Counter[str] = Counter()
        for what, n in self.tried.items():
            kinds[what.partition(" ")[2] or what] += n
        parts = ", ".join(f"{n:,} {what}" for what, n in sorted(kinds.items()))
        total = sum(self.tried.values())
        return f"{name}: {total:,} tried, {len(self.wrong)} not held, {seconds:.0f} s ({parts})"


# --- faults of the disk ----------------------------------------------------------------------


@dataclass(frozen=True)
class Sound:
    """What a run of a scenario does without a fault."""

    operations: list[str]
    products: object

    @classmethod
    def of(cls, scenario: Scenario) -> Sound:
        with _folder() as folder:
            scenario.before(folder)
            code, operations, trace = injected.run(lambda: scenario.act(folder), folder)
            assert code == injected.DONE, trace
            return cls(operations, scenario.products(folder))


@dataclass(frozen=True)
class Fault:
    """Of kind `kind` at operation `at`, and where `then` is there, another in the repetition."""

    at: int
    kind: str
    then: Fault | None = None


def each(sound: Sound, costly: bool) -> Iterator[Fault]:
    """One fault at every operation, of every kind that means something there; where a run takes
    seconds, of one kind in turn, and of all where such a call comes first."""
    seen: set[str] = set()
    for at, what in enumerate(sound.operations):
        kinds = [k for k in injected.KINDS if what.startswith("write") or k not in ONLY_OF_WRITES]
        call = what.split()[0]
        if costly and call in seen:
            kinds = [kinds[at % len(kinds)]]
        seen.add(call)
        for kind in kinds:
            yield Fault(at, kind)


def pairs(sound: Sound, tries: int, every: random.Random) -> Iterator[Fault]:
    """Two faults, the second while the run is repeated after the first."""
    first = list(each(sound, costly=False))
    for _ in range(tries):
        yield replace(every.choice(first), then=every.choice(first))


def of_each_kind(sound: Sound, every: random.Random) -> list[Fault]:
    """One fault of every kind, each where it means something."""
    once = list(each(sound, costly=False))
    return [every.choice([f for f in once if f.kind == kind]) for kind in injected.KINDS]


def faults(
    scenario: Scenario, some: Iterable[Fault], sound: Sound, count: Count, until: float
) -> None:
    for fault in some:
        if time.monotonic() > until:
            print(f"{scenario.name}: time is over at {fault}", flush=True)
            return
        what = sound.operations[fault.at].split()[0]
        problem, met = _fault(scenario, sound, fault)
        twice = " twice" if fault.then else ""
        if problem or met:
            count.note(f"{scenario.name} {what} {fault.kind}{twice}", problem)
            if not (total := sum(count.tried.values())) % SHOWN:
                print(f"{scenario.name}: {total} tried, {len(count.wrong)} not held", flush=True)


def _fault(scenario: Scenario, sound: Sound, fault: Fault) -> tuple[str, bool]:
    """(what was not held, "" where all was; whether the last fault was met)."""
    with _folder() as folder:
        scenario.before(folder)
        ran = _run(scenario, folder, fault)
        refused = ran.refused
        if fault.then and not ran.problem:
            ran = _run(scenario, folder, fault.then)
            refused += ran.refused
        problem = ran.problem or _repeated(scenario, folder, sound.products, refused)
        return f"{fault} ({sound.operations[fault.at]}): {problem}" if problem else "", ran.met


@dataclass(frozen=True)
class _Ran:
    """`met`: whether the fault came to pass; `refused`: what could not be removed, if it was that,
    and may stay where a scenario says so."""

    problem: str
    met: bool
    refused: tuple[str, ...] = ()


def _run(scenario: Scenario, folder: Path, fault: Fault) -> _Ran:
    code, operations, trace = injected.run(
        lambda: scenario.act(folder), folder, fault.at, fault.kind
    )
    met = code == injected.KILLED or len(operations) > fault.at
    refused: tuple[str, ...] = ()
    if scenario.keeps and fault.kind == "fails" and len(operations) > fault.at:
        what, _, path = operations[fault.at].partition(" ")
        refused = (path,) if what in REMOVALS else ()
    if code not in (injected.DONE, injected.KILLED, injected.SENTENCE):
        return _Ran(f"exit code {code}: {trace[-1500:]}", met)
    try:
        scenario.sound(folder)
    except (Corrupt, UserError, OSError, ValueError, AssertionError) as error:
        return _Ran(f"half there: {error!r}", met)
    return _Ran("", met, refused)


def _repeated(scenario: Scenario, folder: Path, expected: object, refused: tuple[str, ...]) -> str:
    code, _, trace = injected.run(lambda: scenario.act(folder), folder)
    if code != injected.DONE:
        return f"the run was repeated in vain: {code} {trace[-1500:]}"
    if left := _left(folder, refused):
        return f"left behind {left}"
    return "" if scenario.products(folder) == expected else "other products than without a fault"


def _left(folder: Path, refused: tuple[str, ...]) -> list[str]:
    """The temporary files and folders that are there, but for one in which each refusal was."""
    there = sorted(p for p in folder.rglob("*") if store.TEMPORARY.fullmatch(p.name))
    kinds = {str(path): injected.kind_of_file(str(path), str(folder)) for path in there}
    for lost in refused:
        of_it = [path for path, kind in kinds.items() if f"{lost}/".startswith(f"{kind}/")]
        for path in of_it[:1]:
            del kinds[path]
    return list(kinds)


@contextmanager
def _folder() -> Iterator[Path]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where fsync costs nothing
    folder = Path(tempfile.mkdtemp(prefix="netpress-faults-", dir=memory))
    try:
        (folder / "root").mkdir(mode=0o700)
        yield folder / "root"
    finally:
        shutil.rmtree(folder)


def import_all(scenario: Scenario) -> None:
    """What its runs import, into this process: it is forked for each, and imports nothing then.
    The modules alone: a run may start threads, which a fork does not have."""
    with _folder() as folder, tempfile.NamedTemporaryFile() as names:

        def loaded() -> None:
            scenario.act(folder)
            Path(names.name).write_text("\n".join(sys.modules))

        scenario.before(folder)
        injected.run(loaded, folder)
        for name in Path(names.name).read_text().splitlines():
            with suppress(Exception):  # what a library tries to import, too
                importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else a collection in a fork would copy every page


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
    from pipeline.artifact.format import MANIFEST, MODEL
    from pipeline.report import merged
    from tests import hostile

    cell = scenarios.some_sweep().cells[1]
    scenarios.base_done(folder)
    scenarios.publish(folder)
    scenarios.submit(folder)
    paths, place = Work(folder).cell(cell.id), Work(folder).sweep("s")
    own = hostile.exported(folder / "exported")
    many = merged.write(scenarios.some_sweep(), Work(folder), folder / "results.h5").path
    looks: dict[Path, Callable[[], object]] = {
        path: lambda: store.verify(paths, deep=True)
        for path in sorted(paths.folder.rglob("*"))
        if path.is_file() and path.name != "lock" and "attempts" not in path.parts
    }
    looks[place.ledger] = looks[place.ledger_count] = lambda: ledger.read(place)
    looks[own / MODEL] = looks[own / MANIFEST] = lambda: hostile.identity(own)
    looks[many] = lambda: merged.read(many).frames.rows
    return {str(path.relative_to(folder)): (path, look, look()) for path, look in looks.items()}


# --- everything ------------------------------------------------------------------------------


def all_faults(
    count: Count, until: float, seed: int, only: Sequence[str], part: int, parts: int
) -> None:
    """Each fault of each scenario; and two, where a run takes no seconds. Of all these, those that
    are this `part` of so many."""
    every = (*QUICK, REPORT, cell_scenario())
    for scenario in [s for s in every if not only or s.name in only]:
        began = time.monotonic()
        one = _in_a_process(lambda s=scenario: _of_scenario(s, until, seed, part, parts))
        print(one.line(scenario.name, time.monotonic() - began), flush=True)
        count.tried += one.tried
        count.wrong += one.wrong


def _of_scenario(scenario: Scenario, until: float, seed: int, part: int, parts: int) -> Count:
    import_all(scenario)
    count, sound = Count(), Sound.of(scenario)
    once = list(each(sound, costly=not scenario.pairs))[part::parts]
    faults(scenario, once, sound, count, until)
    every = random.Random(f"{seed} {part}")
    faults(scenario, pairs(sound, scenario.pairs // parts, every), sound, count, until)
    return count


def _in_a_process(count: Callable[[], Count]) -> Count:
    """In one that imports what this scenario needs and no more: forks of a small one cost less."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, pickle.dumps(count()))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        counted = pickle.loads(file.read())
    os.waitpid(child, 0)
    return counted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["faults", "flips", "hostile"])
    parser.add_argument("--minutes", type=float, default=30.0, help="for each part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=int, default=0, help="which process this is, of --of")
    parser.add_argument("--of", type=int, default=1, help="processes that share the faults")
    parser.add_argument("--only", nargs="*", default=[], help="faults of these scenarios alone")
    options = parser.parse_args()
    wrong = 0
    for part in options.parts:
        count, began = Count(), time.monotonic()
        until = began + 60 * options.minutes
        if part == "faults":
            chosen = (options.only, options.part, options.of)
            all_faults(count, until, options.seed, *chosen)
        elif part == "flips":
            flips(count, FLIPS, until, options.seed)
        else:
            from tests import hostile

            hostile.attack(count.note, HOSTILE, until, options.seed)
        print(count.line(part, time.monotonic() - began), flush=True)
        wrong += len(count.wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
