"""Runs a sweep on this machine: checks devices and data, makes missing cells, builds the report."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline import hardware, paths, plugins, streams, terminal, tracking
from pipeline.done import is_done
from pipeline.errors import UserError
from pipeline.orchestrate import images, plan, writable
from pipeline.orchestrate.display import display
from pipeline.orchestrate.launch import Command, Commands, Forks, Launcher
from pipeline.orchestrate.pool import Pool, Slot
from pipeline.sweep import Cell, Sweep


def run(
    sweep: Sweep,
    work: paths.Work,
    data_root: Path,
    *,
    device: str = "auto",
    workers: int | None = None,
    threads: int | None = None,
    command: Command | None = None,
    conclude: Callable[[Sweep, paths.Work], int] | None = None,
    remedy: str = images.OTHER_NAME,
) -> int:
    """Make the missing cells of the sweep, then the report; returns the exit code.

    0: every cell has its result. 1: some failed. 130: it was interrupted, and can be called again.
    Raises UserError, before anything runs, where a device or data is missing, an image is damaged,
    a folder cannot be written, or images changed since results were made (`remedy`: the alternative
    for the user).
    """
    tracking.require(sweep.tracking)
    if conclude is None:
        _check_report(sweep)
    done = [cell for cell in sweep.cells if is_done(cell, work, deep=True)]
    ids = {cell.id for cell in done}
    missing = [cell for cell in sweep.cells if cell.id not in ids]
    if missing:
        slots = _slots(device, workers, threads)
        writable.require_work(work)
    images.check(sweep.cells, work, data_root, say, remedy)
    if missing:
        with plan.naming(sweep):
            _prepare_data(missing, work, data_root)
        require_channels(sweep, missing, data_root)
        plugins.keep(sweep.plugins, work)
        plugins.keep_own([cell.model for cell in sweep.cells], work)
        with display(sweep.cells, done) as shown, _signals() as stopping:
            own = command or _worker_command(work, data_root, sweep)
            launcher = _launcher(own, missing, slots, work, may_fork=command is None)
            Pool(missing, done, work, launcher, slots, shown, stopping).run()
        if stopping:
            again = f"`netpress run {plan.quoted(sweep)}` goes on from the last finished epoch"
            terminal.tell(f"stopped; {again}")
            return 130
    return (conclude or _report)(sweep, work)


def _slots(device: str, workers: int | None, threads: int | None) -> list[Slot]:
    """One per GPU, else one; the cores are divided among them."""
    gpus = [] if device == "cpu" else visible_gpus()
    if device == "cuda" and not gpus:
        raise UserError("--device cuda: no NVIDIA GPU is visible here; expected cpu or auto")
    count = workers or max(1, len(gpus))
    cores = hardware.training_cores()
    # Where there is a GPU, `auto` is no way to the CPU: one that cannot be used is a failure.
    options = (
        *("--device", "cuda" if gpus else device),
        *("--threads", str(threads or max(1, cores // count))),
    )
    return [
        Slot(options, {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {})
        for i in range(count)
    ]


def visible_gpus() -> list[str]:
    """NVIDIA GPUs visible to a process started here, as CUDA_VISIBLE_DEVICES names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(i) for i in range(len(lines))] if listed.returncode == 0 else []


def _prepare_data(cells: Sequence[Cell], work: paths.Work, data_root: Path) -> None:
    """Raises UserError where images are missing or damaged. A plug-in that does not work costs the
    cells of its data set alone: each of them fails with the same sentence."""
    from pipeline import data

    for dataset in dict.fromkeys(cell.dataset for cell in cells):
        try:
            data.prepare(dataset, data_root, work.cache, say)
        except data.PluginError as error:
            say(f"{error}; its cells will fail")


def require_data(cells: Sequence[Cell], data_root: Path) -> None:
    from pipeline import data

    for dataset in dict.fromkeys(cell.dataset for cell in cells):
        data.require(dataset, data_root, say)


def require_channels(sweep: Sweep, cells: Sequence[Cell], data_root: Path) -> None:
    """Raises UserError where a base would start from one whose images have another number of
    channels, so that its first layer does not fit. `cells`: those that are to be made."""
    from pipeline import data

    ids = {cell.id for cell in cells}
    pairs = {
        (other.dataset, cell.dataset): (other, cell)
        for cell in cells
        if cell.is_base and cell.stands_on in ids and (other := sweep.by_id[cell.stands_on])
    }
    for other, cell in pairs.values():
        theirs, own = (data.facts(each.dataset, data_root)[1][0] for each in (other, cell))
        if theirs != own:
            raise UserError(
                f"{sweep.path}: {cell.name} starts from {other.name}, whose images have {theirs} "
                f"channels and its own {own}; expected as many"
            )


def say(line: str) -> None:
    terminal.tell(line, begin="")


def _launcher(
    command: Command,
    cells: Sequence[Cell],
    slots: Sequence[Slot],
    work: paths.Work,
    may_fork: bool,
) -> Launcher:
    """Forks where several cells gain from it; but not where workers have GPUs (what the server
    imports may have looked for one, and a driver does not survive a fork) or where the system's own
    libraries do not (macOS)."""
    on_gpus = any(slot.environment for slot in slots)
    if may_fork and sys.platform == "linux" and len(cells) > 1 and not on_gpus:
        return Forks(command, work)
    return Commands(command)


def _worker_command(work: paths.Work, data_root: Path, sweep: Sweep) -> Command:
    tracked = plan.track_options(sweep.name, sweep.tracking)

    def command(cell: Cell, options: Sequence[str]) -> list[str]:
        mortal = ("--die-with-parent", str(os.getpid()))
        return plan.cell_command(work, data_root, [cell.id], *options, *tracked, *mortal)

    return command


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects the signals that stop the run. A list instead of an exception, which could be raised
    between the start of a process and its registration."""
    received: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, lambda number, _: received.append(number)) for kind in kinds]
    try:
        yield received
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def _report(sweep: Sweep, work: paths.Work) -> int:
    """Prints the table, the report's path and the best model; 1 where a cell has no result."""
    from pipeline import report

    made, frames = report.build(sweep, work)
    with streams.at_best():
        report.print_summary(frames)
        terminal.show(f"Report: {made.page}")
        if best := report.best(frames.compared().rows):
            _print_best(sweep, work, sweep.by_id[best.id])
    return 0 if all(is_done(cell, work) for cell in sweep.cells) else 1


def _check_report(sweep: Sweep) -> None:
    """Checks before hours of work whether the report can be written."""
    from pipeline import report

    report.check_folder(sweep)
    writable.require_report(paths.reports_root(), sweep.name)


def _print_best(sweep: Sweep, work: paths.Work, cell: Cell) -> None:
    folder = work.cell(cell.id).artifact
    terminal.show(f"Smallest good model: {cell.name} in {folder}")
    terminal.show(f"  netpress export {plan.quoted(sweep)} {cell.id}")
    terminal.show(f"  netpress predict {paths.shell_word(folder)} IMAGE ...")
