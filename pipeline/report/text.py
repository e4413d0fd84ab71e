"""report.md: the answer first, then the numbers it comes from, then how to repeat it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.errors import UserError
from pipeline.paths import sweep_file
from pipeline.report.answer import (
    ONE_POINT,
    Group,
    Row,
    deviation,
    fastest,
    mean,
    settings,
    smallest,
)
from pipeline.report.frames import Frames
from pipeline.report.metrics import BATCHES, METRIC, PERCENTILES, latency_key
from pipeline.report.tables import code, escape, fenced, markdown
from pipeline.report.usage import Used
from pipeline.report.usage import lines as usage_lines
from pipeline.sweep import Sweep

TABLE = ("accuracy", "accuracy_drop", "agreement", "stored_bytes", "stored_ratio",
         "runnable_bytes", "parameters", "macs", "macs_ratio", "speedup_all_batch1",
         "speedup_all_batch64", "test_set_seconds", "integer_share")  # fmt: skip
SIMULATED = (
    ("stored, MB", "stored_bytes"),
    ("simulated model in PyTorch, ms", "pytorch_simulated_all_batch1_p50_ms"),
    ("faster, ×", "simulated_speedup_all_batch1"),
    ("deployed artifact, ms", "onnxruntime_artifact_all_batch1_p50_ms"),
    ("faster than base artifact, ×", "speedup_all_batch1"),
    ("faster than base in PyTorch eager, ×", "speedup_over_pytorch_all_batch1"),
    ("predictions that agree, %", "simulated_agreement"),
)


def report(
    sweep: Sweep, frames: Frames, rows: list[Row], figure: str | None, used: Used | None = None
) -> str:
    """The whole of report.md; `figure`: the path of accuracy-bytes.svg from it, None without.
    `used`: what the jobs used of what they asked for, where they were SLURM's."""
    parts = [
        f"# {escape(sweep.name)}: how small and how fast before it gets worse\n",
        _counts(sweep, frames),
        "## The answer\n",
        *_answers(sweep, rows),
        "## Accuracy against size\n" if figure else "",
        _figure(figure) if figure else "",
        *_results(frames),
        *_latency(frames),
        *_simulated(frames),
        *_gaps(frames),
        *_usage(used),
        *_provenance(sweep, frames),
    ]
    return "\n".join(part for part in parts if part)


def _usage(used: Used | None) -> list[str]:
    if used is None:
        return []
    return ["## What the jobs used\n", *(f"{escape(line)}\n" for line in usage_lines(used))]


def _counts(sweep: Sweep, frames: Frames) -> str:
    done, missing = len(frames.cells), len(frames.gaps)
    seeds = sorted({cell.seed for cell in sweep.cells})
    listed = ", ".join(map(str, seeds)) if len(seeds) <= 10 else f"{seeds[0]} to {seeds[-1]}"
    gaps = f" {missing} are missing and are named below." if missing else ""
    return f"{done} of {done + missing} cells have a result (seeds: {listed}).{gaps}\n"


# --- the answer ------------------------------------------------------------------------------


def _answers(sweep: Sweep, rows: list[Row]) -> list[str]:
    if not rows:
        return ["There is no result yet.\n"]
    return [_answer(sweep, *setting, members) for setting, members in settings(rows).items()]


def _answer(sweep: Sweep, dataset: str, model: str, rows: list[Row]) -> str:
    lines = [
        _sentence(sweep, "Smallest at no loss", smallest(rows, 0.0), 0.0),
        _sentence(sweep, "Smallest within one point", smallest(rows), ONE_POINT),
        _sentence(sweep, "Fastest within one point", fastest(rows), ONE_POINT),
    ]
    points = "".join(f"- {line}\n" for line in lines)
    return f"**{escape(dataset)}, {escape(model)}**, each against its own base:\n\n{points}"


def _sentence(sweep: Sweep, question: str, group: Group | None, limit: float) -> str:
    if group is None:
        return f"{question}: no model that was measured."
    cell = group.cell(limit)
    if cell["is_base"]:
        return f"{question}: the base itself, {_numbers(group)}; no compressed model qualifies."
    command = code(f"netpress export {_name(sweep)} {cell['id']}")
    seed = f" (seed {cell['seed']})" if len(group.rows) > 1 else ""
    return (
        f"{question}: {code(cell['technique'])}, {_numbers(group)}, {_gains(group)}. "
        f"To take it away: {command}{seed}."
    )


def _numbers(group: Group) -> str:
    accuracies = [row["accuracy"] for row in group.rows]
    accuracy = METRIC["accuracy"].show(mean(accuracies), deviation(accuracies))
    stored = METRIC["stored_bytes"].say(group.stored_bytes)
    seeds = f" (n = {len(accuracies)})" if len(accuracies) > 1 else ""
    return f"{accuracy} %{seeds} in {stored}"


def _gains(group: Group) -> str:
    drop = METRIC["accuracy_drop"].show(abs(group.drop))
    side = "below" if group.drop > 0 else "above"
    change = "as accurate as" if float(drop) == 0 else f"{drop} points {side}"
    ratio = METRIC["stored_ratio"].show(mean(row["stored_ratio"] for row in group.rows))
    speed = METRIC["speedup_all_batch1"].show(group.speedup)
    faster = f", {speed} times as fast at batch 1" if speed else ""
    smaller = f", {ratio} times smaller" if ratio else ""
    return f"{change} its base{smaller}{faster}"


def _figure(path: str) -> str:
    return (
        f"![Accuracy against stored bytes on a log scale, one mark a technique, with the base and "
        f"a dashed line one point below it.]({path})\n"
    )


# --- tables ----------------------------------------------------------------------------------


def _results(frames: Frames) -> list[str]:
    if frames.cells.empty:
        return []
    about = (
        "Everything here is of the artifact that would be deployed: its bytes on disk, its own "
        "accuracy on the whole test set, its speed on ONNX Runtime with all threads, as the ratio "
        "of medians of the base artifact and of this one, interleaved in one process. "
        "With several seeds: mean ± sample standard deviation over n of them.\n"
    )
    return ["## Results\n", about, *_tables(frames, [(METRIC[k].heading, k) for k in TABLE])]


def _latency(frames: Frames) -> list[str]:
    if frames.cells.empty:
        return []
    columns = [
        (f"{threads} {'threads' if threads == 'all' else 'thread'}, batch {batch[5:]}, p{p}",
         latency_key("onnxruntime", "artifact", threads, batch, p))
        for threads in ("all", "one") for batch in BATCHES
        for p in (PERCENTILES if threads == "all" else (50,))
    ]  # fmt: skip
    return ["## Latency of the artifact, ms\n", *_tables(frames, columns)]


def _simulated(frames: Frames) -> list[str]:
    if frames.cells.empty or frames.cells["pytorch_simulated_all_batch1_p50_ms"].isna().all():
        return []
    about = (
        "The simulated model is what training works with: full-precision numbers in PyTorch that "
        "imitate the compressed network. Timing it says nothing about the network that would be "
        "deployed; it is here because it is often timed instead. Batch 1, all threads, medians. "
        "The first time and the speed-up next to it are simulated, the rest is deployed.\n"
    )
    return ["## Simulated beside deployed\n", about, *_tables(frames, SIMULATED)]


def _tables(frames: Frames, columns: Sequence[tuple[str, str]]) -> list[str]:
    """One table a (data set, model); a line a technique, a column each that has any number."""
    parts = []
    for (dataset, model), cells in frames.cells.groupby(["dataset", "model"], sort=False):
        present = [(head, key) for head, key in columns if cells[key].notna().any()]
        lines = [
            [str(technique), str(len(seeds)), *(_spread(seeds[key], key) for _, key in present)]
            for technique, seeds in cells.groupby("technique", sort=False)
        ]
        table = markdown(["technique", "n", *(head for head, _ in present)], lines)
        parts.append(f"**{escape(dataset)}, {escape(model)}**\n\n{table}")
    return parts


def _spread(values: Any, key: str) -> str:
    numbers = [float(v) for v in values]
    return METRIC[key].show(mean(numbers), deviation(numbers))


def _gaps(frames: Frames) -> list[str]:
    if not frames.gaps:
        return []
    lines = [[gap.cell.name, gap.cell.id, gap.reason] for gap in frames.gaps]
    return ["## Gaps\n", markdown(["cell", "id", "reason"], lines, text_columns=3)]


# --- where it comes from ---------------------------------------------------------------------


def _provenance(sweep: Sweep, frames: Frames) -> list[str]:
    repeat = f"To repeat it: {code(f'netpress run {_name(sweep)}')}. The sweep file:\n"
    return ["## How it was made\n", *_facts(frames), repeat, fenced(sweep.text, "yaml")]


def _facts(frames: Frames) -> list[str]:
    facts = [json.loads(text) for text in frames.cells["facts"]]
    hardware = [fact.get("hardware") or {} for fact in facts]
    lines = [
        _fact("CPU", (_cpu(h) for h in hardware)),
        _fact("CPU flags", (_listed(h.get("flags")) for h in hardware)),
        _fact("GPU", (h.get("gpu") for h in hardware)),
        _fact("Trained on", (fact.get("device") for fact in facts)),
        _fact("Precision of training", (fact.get("precision") for fact in facts)),
        _fact("Versions", (_versions(fact.get("versions") or {}) for fact in facts)),
        _fact("Commit", (fact.get("commit") for fact in facts)),
        _time(frames),
    ]
    return ["".join(line for line in lines if line)] if any(lines) else []


def _fact(label: str, values: Iterable[Any]) -> str:
    """One line: the value, or each of several with the number of cells that it holds for."""
    counts = Counter(str(value) for value in values if value)
    if not counts:
        return ""
    if len(counts) == 1:
        return f"- {label}: {escape(next(iter(counts)))}\n"
    said = (f"{escape(v)} ({n} {'cell' if n == 1 else 'cells'})" for v, n in sorted(counts.items()))
    return f"- {label}: {'; '.join(said)}\n"


def _cpu(hardware: dict[str, Any]) -> str:
    cores = hardware.get("cores")
    return f"{hardware.get('cpu', '')}{f', {cores} cores' if cores else ''}".strip(", ")


def _listed(flags: Any) -> str:
    return flags if isinstance(flags, str) else " ".join(map(str, flags or ()))


def _versions(versions: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def _time(frames: Frames) -> str:
    seconds = frames.cells["seconds"].dropna()
    if seconds.empty:
        return ""
    return f"- Time of all cells together: {seconds.sum() / 60:.1f} minutes\n"


def _name(sweep: Sweep) -> str:
    """How the user names this sweep: the shipped name, else its file's."""
    try:
        shipped = sweep_file(sweep.name).samefile(sweep.path)
    except (UserError, OSError):
        shipped = False
    return sweep.name if shipped else sweep.path.name
