"""The sweep's append-only record of submissions: JSON lines, each fsynced before it counts.

    {"event": "intent", "intent": ID, "name": ..., "kind": ..., "tasks": {"0": [cell, ...]}, ...}
    {"event": "submitted", "intent": ID, "job": 4711}       sbatch returned this job id
    {"event": "refused", "intent": ID, "reason": ...}       Slurm refused it, finally
    {"event": "void", "intent": ID, "reason": ...}          no such job in the queue
    {"event": "put_off", "reason": ..., "by": ..., "requests": [[request, [cell, ...]], ...],
     "measures": [[request, [cell, ...]], ...]}             there is no room for these now; the
                                                            reason is that of all put off before
    {"event": "cancelled", "cells": [...], "reports": [...]}  by `netpress cancel`; what was put off
                                                            of these is not submitted any more

An intent contains the profile that it was made with, for later commands that name none.

Each line has a running number `n` and a checksum `sum`, and `ledger.count` says how many lines
there are at least, so that a line that was changed, lost or cut off at the end is an error, and
not another job. Lines of before there were checksums come first and have neither.

The intent is written before sbatch runs, and its id is in the job's name; so after a kill at any
time an open intent can be settled by looking for that name. A writer holds the lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from pipeline import store
from pipeline.errors import UserError
from pipeline.paths import SweepPaths
from pipeline.terminal import tell

WAIT_S = 600.0
# Kinds of jobs: cells are trained, and measured unless that is done `apart`; one submits what there
# was no room for.
CELLS, MEASURE, FOLLOW_UP = "cells", "measure", "follow-up"


@dataclass
class Entry:
    """One array that was, or was to be, submitted. `job` is None until its id is known."""

    intent: str
    name: str
    kind: str  # cells | measure | report | follow-up
    tasks: Mapping[int, tuple[str, ...]]
    at: str  # 2026-11-25T10:00:00+00:00; without the offset, of older ledgers, local time
    user: str
    request: Mapping[str, Any]
    after: tuple[str, ...] = ()
    sweep: str = ""  # identifies the contents of its file
    reports: str = ""  # the folder of reports; empty in older ledgers
    profile: Mapping[str, Any] | None = None  # see submitted.py; None in older ledgers
    code: Mapping[str, Any] | None = None  # what its jobs run; None in older ledgers
    cluster: str = ""  # that it was sent to; empty in older ledgers, and where Slurm does not tell
    single: bool = False  # a job without tasks, on a cluster without arrays
    apart: bool = False  # of cells: they are only trained
    number: int = 0  # in the order of submission
    job: int | None = None
    ended: str | None = None  # why there is no job: Slurm's message, or `void`

    def task(self, index: int) -> str:
        """As Slurm names task `index` of its job."""
        return str(self.job) if self.single else f"{self.job}_{index}"

    @property
    def open(self) -> bool:
        return self.job is None and self.ended is None


@dataclass(frozen=True)
class At:
    """The task in which a cell was last submitted."""

    entry: Entry
    index: int

    @property
    def task(self) -> str:
        return self.entry.task(self.index)


@dataclass
class Ledger:
    """The contents of the file; `append` adds a line to both."""

    paths: SweepPaths
    entries: dict[str, Entry] = field(default_factory=dict)
    cancelled: dict[str, str] = field(default_factory=dict)  # cell -> when, since its last intent
    cancelled_jobs: set[int] = field(default_factory=set)  # of reports, and follow-up jobs
    # Since the last intent of a cell: why it was not submitted, and what it was to request.
    not_submitted: dict[str, str] = field(default_factory=dict)
    put_off: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    # The same of what is to be measured by a job of its own.
    not_measured: dict[str, str] = field(default_factory=dict)
    measuring_put_off: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    put_off_by: Mapping[str, Any] | None = None  # the submission that last left something over
    checked: int = 0  # lines with a checksum

    @property
    def last(self) -> dict[str, At]:
        """The last submission of each cell to be trained, without refused and void intents."""
        return self._last(CELLS)

    @property
    def measuring(self) -> dict[str, At]:
        """The same to jobs that only measure."""
        return self._last(MEASURE)

    def _last(self, kind: str) -> dict[str, At]:
        last: dict[str, At] = {}
        for entry in self.entries.values():
            if entry.kind == kind and entry.ended is None:
                for index, ids in entry.tasks.items():
                    last.update(dict.fromkeys(ids, At(entry, index)))
        return last

    @property
    def jobs(self) -> list[int]:
        return [entry.job for entry in self.entries.values() if entry.job is not None]

    def append(self, event: str, **facts: Any) -> None:
        """Add a line, fsynced when this returns; call it only with the lock held."""
        line = {"event": event, "at": now(), **facts, "n": self.checked + 1}
        _write_line(self.paths, _with_sum(line))
        self.checked += 1
        store.publish_bytes(self.paths.ledger_count, _with_sum({"n": self.checked}).encode())
        self._take(line)

    def take_text(self, text: bytes) -> None:
        """A line as it is in the file; raises errors of many types where it is damaged."""
        line = json.loads(text)
        checksum = line.pop("sum", None)
        if checksum is None and not self.checked and "n" not in line:
            self._take(line)  # of before there were checksums
            return
        if line["n"] != self.checked + 1 or _with_sum(line).encode() != text:
            raise ValueError("n or sum")
        self.checked += 1
        self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        event, entry = line["event"], self.entries.get(line.get("intent", ""))
        if event == "intent":
            tasks = {int(index): tuple(ids) for index, ids in line["tasks"].items()}
            entry = Entry(
                line["intent"],
                line["name"],
                line["kind"],
                tasks,
                line["at"],
                line["user"],
                line["request"],
                tuple(line["after"]),
                line.get("sweep", ""),
                line.get("reports", ""),
                line.get("profile"),
                line.get("code"),
                line.get("cluster", ""),
                line.get("single", False),
                line.get("apart", False),
                len(self.entries),
            )
            self.entries[entry.intent] = entry
            self._submits(entry)
        elif event == "cancelled":
            for cell in line["cells"]:
                self._leaves_out(cell, training=True, measuring=True)
            self.cancelled.update(dict.fromkeys(line["cells"], line["at"]))
            self.cancelled_jobs.update(line.get("reports", ()))
        elif event == "put_off":
            self.put_off_by = line["by"]
            for request, cells in line["requests"]:
                self.put_off.update(dict.fromkeys(cells, request))
            for request, cells in line.get("measures", ()):
                self.measuring_put_off.update(dict.fromkeys(cells, request))
            self.not_submitted.update(dict.fromkeys(self.put_off, line["reason"]))
            self.not_measured.update(dict.fromkeys(self.measuring_put_off, line["reason"]))
        elif entry is not None and event == "submitted":
            entry.job, entry.ended = line["job"], None
        elif entry is not None and event in ("refused", "void"):
            entry.ended = line["reason"]
            if event == "refused":
                measures = entry.kind == MEASURE
                refused = self.not_measured if measures else self.not_submitted
                for ids in entry.tasks.values():
                    refused.update(dict.fromkeys(ids, line["reason"]))

    def _submits(self, entry: Entry) -> None:
        """Take what is no longer so of its cells."""
        for cell in (cell for ids in entry.tasks.values() for cell in ids):
            self.cancelled.pop(cell, None)
            self._leaves_out(cell, training=entry.kind != MEASURE, measuring=not entry.apart)

    def _leaves_out(self, cell: str, training: bool, measuring: bool) -> None:
        """Of what is not submitted."""
        if training:
            self.not_submitted.pop(cell, None)
            self.put_off.pop(cell, None)
        if measuring:
            self.not_measured.pop(cell, None)
            self.measuring_put_off.pop(cell, None)


def when(entry: Entry) -> float:
    """When an entry was made, as time.time() says it."""
    return datetime.fromisoformat(entry.at).timestamp()


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def others(paths: SweepPaths, cells: Iterable[str]) -> list[Ledger]:
    """The ledgers of the work root's other sweeps that have submitted some of these cells."""
    mine = set(cells)
    ledgers = []
    for other in paths.others:
        if os.access(other.ledger, os.R_OK):
            known = read(other)
            if mine & (known.last.keys() | known.measuring.keys()):
                ledgers.append(known)
    return ledgers


def read(paths: SweepPaths) -> Ledger:
    """The ledger of a sweep, empty where nothing was submitted.

    An incomplete last line is left by a kill during a write; any other damage is an error, since
    a lost line could cause a job to be submitted twice.
    """
    ledger = Ledger(paths)
    least = 0
    try:
        least = _count(paths)  # before the lines, since a writer may add some in between
        data = paths.ledger.read_bytes()
    except FileNotFoundError:
        if least:
            raise _damaged(paths, f"{paths.ledger}: is missing") from None
        return ledger
    except PermissionError:
        raise UserError(f"{_of_another(paths)}, and private: only they can read it") from None
    *lines, _torn = data.split(b"\n")
    for number, text in enumerate(lines, start=1):
        if not text.strip() and not ledger.checked:
            continue
        try:
            ledger.take_text(text)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _damaged(paths, f"{paths.ledger}:{number}: damaged") from None
    if ledger.checked < least:
        raise _damaged(paths, f"{paths.ledger}: {least - ledger.checked} lines are missing")
    return ledger


def _damaged(paths: SweepPaths, problem: str) -> UserError:
    return UserError(
        f"{problem}, so it is not known what was submitted; when `squeue` shows no job of this "
        f"sweep, move it and {paths.ledger_count.name} away and submit again"
    )


def _count(paths: SweepPaths) -> int:
    """Lines with a checksum that were written; there may be one more, after a kill."""
    try:
        text = paths.ledger_count.read_bytes()
    except FileNotFoundError:
        return 0
    try:
        line = json.loads(text)
        del line["sum"]
        if _with_sum(line).encode() == text:
            return int(line["n"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    raise _damaged(paths, f"{paths.ledger_count}: damaged")


def _with_sum(line: Mapping[str, Any]) -> str:
    checksum = hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()[:16]
    return json.dumps({**line, "sum": checksum}, sort_keys=True)


@contextlib.contextmanager
def locked(paths: SweepPaths) -> Iterator[Ledger]:
    """The ledger, for writing, by one process at a time in the whole work root: its sweeps share
    cells. A second process waits, and tells the user for whom."""
    try:
        store.make_folder(paths.folder)
        descriptor = store.open_own(paths.lock, os.O_RDWR)
    except PermissionError:
        raise UserError(
            f"{_of_another(paths)}: only they can submit, cancel or resume there; "
            "set NETPRESS_WORK to a folder of your own"
        ) from None
    try:
        lock = store.FileLock(paths.lock, descriptor, _me(paths))
        _take_lock(lock, paths)
        try:
            for folder in (paths.folder, paths.lock.parent):
                store.clear_abandoned(folder)
            yield read(paths)
        finally:
            lock.release()
    finally:
        os.close(descriptor)


def _take_lock(lock: store.FileLock, paths: SweepPaths) -> None:
    deadline, waiting = time.monotonic() + WAIT_S, False
    descriptor = lock.descriptor
    while not lock.take():
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        if not waiting:
            message = f"{holder} is changing the submitted jobs; waiting for it to finish"
            tell(message)
            waiting = True
        if time.monotonic() > deadline:
            raise UserError(f"{holder} has held {paths.lock} for {WAIT_S:.0f} s{lock.remedy}")
        time.sleep(0.2)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{_me(paths)}\n".encode(), 0)


def _of_another(paths: SweepPaths) -> str:
    """`WORK belongs to USER`, with the name where it can be read."""
    root = paths.lock.parent
    try:
        return f"work root {root} belongs to {root.owner()}"
    except (OSError, KeyError):
        return f"work root {root} belongs to another user"


def _me(paths: SweepPaths) -> str:
    return f"{store.this_process()} (sweep {paths.folder.name})"


def _write_line(paths: SweepPaths, text: str) -> None:
    """Append and fsync. Removes an incomplete last line, left by a kill, first."""
    store.make_folder(paths.folder)
    new = not paths.ledger.exists()
    descriptor = store.open_own(paths.ledger, os.O_RDWR | os.O_APPEND)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            _drop_torn(descriptor, size)
        left = memoryview(text.encode() + b"\n")
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if new:
        store.sync_folder(paths.folder)


def _drop_torn(descriptor: int, size: int) -> None:
    """Cut off an incomplete last line: it never counted, since its fsync had not returned."""
    whole = os.pread(descriptor, size, 0).rfind(b"\n") + 1
    os.ftruncate(descriptor, whole)
