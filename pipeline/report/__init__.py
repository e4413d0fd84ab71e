"""From published results to what people read. Works on partial results and names each gap.

Never imports torch. pandas and matplotlib are loaded when a report is made, so that
`pipeline.gaps` stays cheap for status.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline import store, terminal
from pipeline.errors import Corrupt
from pipeline.paths import ReportPaths, Work, references, report
from pipeline.report.answer import best

if TYPE_CHECKING:
    from pipeline.report.frames import Frames
    from pipeline.report.merged import Published
    from pipeline.report.owned import Owned
    from pipeline.sweep import Sweep

__all__ = [
    "as_json",
    "best",
    "build",
    "check_folder",
    "made",
    "print_summary",
    "read",
    "read_folder",
    "rebuild",
    "sweep_of",
]


@store.shared()
def build(
    sweep: Sweep,
    work: Work,
    out: Path | None = None,
    artifact_bytes: int | None = None,
    earlier: Path | None = None,
    machine: str | None = None,
    similarity_of: str | None = None,
) -> tuple[ReportPaths, Frames]:
    """Write OUT/SWEEP/ (out: ./reports) from what is there; the same results give the same bytes.
    Gives back what `read` would as well, each result having been read once.

    Each file appears whole or not at all; what an earlier report left and this one does not have
    goes; the page, which points to the others, comes last. Raises OSError where they cannot be
    written, and UserError where somebody else's file is in the way: none is replaced or removed.

    `artifact_bytes`: artifacts of at most so many bytes are copied into the report; None: none is,
    but one that is there and still the cell's own stays. Raises Corrupt, when all else is done,
    where one in the work root is damaged.

    `earlier`: the folder of a report whose results stand in for those that the work root does not
    have (any more), and whose measurements of the same artifacts are added. Raises as `rebuild`
    where it is none. After it, the report that lies there already counts in the same way: what was
    added to it, or was removed from the work root since, exists nowhere else.

    `machine`: whose measurements are shown; UserError where it measured none. None or "": of the
    machine that measured most.

    `similarity_of`: the id of the cell whose layers are compared, each with each of its base's;
    UserError where it has no such result. None or "": of the technique that loses most.
    """
    from pipeline.report import artifacts, frames, merged, versions
    from pipeline.report.owned import Owned

    machine, similarity_of = machine or None, similarity_of or None
    named, paths = _named(earlier), report(sweep.name, out)
    with store.lock_folder(paths.lock):
        owned = Owned.of(paths)
        mine = _own(paths)
        sources = Sources.of(named, mine)
        sweep = versions.with_older(sweep, work, sources.ids)
        if machine is not None:  # before anything is written
            machine = frames.read(sweep, work, sources.paths).named(machine)
        owned.begin()
        published = merged.write(sweep, work, paths.merged, sources.paths, machine, similarity_of)
        files = made(published, paths)
        models = artifacts.wanted(published, work, paths, artifact_bytes)
        owned.claim([*_names(paths, files), *artifacts.names(paths, models)])
        _publish(files, owned)
        artifacts.publish(models, published, work, owned, only=artifact_bytes is not None)
        owned.publish()
    _tell_kept(published.frames, work, paths, mine.ids - named.ids)
    return paths, published.frames


def check_folder(sweep: Sweep, out: Path | None = None) -> None:
    """Raises UserError where `build` would, as far as it is known before there are results."""
    from pipeline.report.owned import Owned

    paths = report(sweep.name, out)
    Owned.of(paths)
    _own(paths)


@store.shared()
def rebuild(
    folder: Path, machine: str | None = None, similarity_of: str | None = None
) -> tuple[ReportPaths, Frames]:
    """Write the report in `folder` anew from its results.h5 alone, to the same bytes. `machine`,
    `similarity_of`: as in `build`; results.h5 remembers them until they are "".

    Raises FileNotFoundError where there is none, Corrupt, and UserError where another version of
    netpress wrote it or somebody else's file is in the way.
    """
    from pipeline.report import merged
    from pipeline.report.owned import Owned

    paths = ReportPaths(folder)
    with store.lock_folder(paths.lock):
        owned = Owned.of(paths)
        published = merged.read(paths.merged)
        if machine is not None or similarity_of is not None:
            published = merged.show(published, machine, similarity_of)
        owned.clear()
        files = made(published, paths)
        owned.claim(_names(paths, files))
        _publish(files, owned)
        owned.publish()
    return paths, published.frames


def made(published: Published, paths: ReportPaths) -> dict[Path, bytes]:
    """Every file of the report that is made from results.h5, the page last."""
    from pipeline.report import figures, latex, page, paper, sections, tables, text

    sweep, frames, usages = published.sweep, published.frames, published.usages
    rows = frames.compared().rows
    drawn = figures.draw(rows, published.evidence, published.similarity_of, sweep)
    files = {paths.csv: tables.csv_text(frames.cells).encode(), paths.yaml: sweep.text.encode()}
    files |= {paths.svg(name): figure.svg for name, figure in drawn.items()}
    files |= {paths.pdf(name): figure.pdf for name, figure in drawn.items()}
    measured = sections.measured(sweep, frames)
    set_in_latex = latex.tables(measured)
    files |= {paths.latex(name): table.encode() for name, table in set_in_latex.items()}
    shown = {paths.name(paths.svg(name)): figure for name, figure in drawn.items()}
    in_latex = {path.removesuffix(".svg"): figure for path, figure in shown.items()}
    files[paths.paper] = paper.paper(sweep, frames, in_latex).encode()
    files[paths.references] = references().read_bytes()
    files[paths.markdown] = text.report(sweep, frames, shown, usages, measured).encode()
    beside = [paths.name(path) for path in (paths.merged, *files)]
    files[paths.page] = page.html(sweep, frames, drawn, usages, measured, beside)
    return files


def _names(paths: ReportPaths, files: Iterable[Path]) -> list[str]:
    return [paths.name(path) for path in (*paths.always, *files)]


def _publish(files: dict[Path, bytes], owned: Owned) -> None:
    """All but the last of `files`, away with what an earlier report drew and set that is not among
    them, then the last."""
    *first, last = files
    for path in first:
        store.publish_bytes(path, files[path])
    left = [path for path in owned.paths.drawn_or_set() if path not in files]
    owned.remove(map(owned.paths.name, left))
    store.publish_bytes(last, files[last])


def read(
    sweep: Sweep,
    work: Work,
    earlier: Path | None = None,
    machine: str | None = None,
    out: Path | None = None,
) -> Frames:
    """The rows and gaps of a sweep, those that `build` shows; `earlier`, `machine`, `out` as
    there."""
    from pipeline.report import frames, versions

    sources = Sources.of(_named(earlier), _own(report(sweep.name, out)))
    sweep = versions.with_older(sweep, work, sources.ids)
    return frames.read(sweep, work, sources.paths).on(machine or None, sweep)


def read_folder(folder: Path, machine: str | None = None) -> Frames:
    """The same, of the results.h5 in a report's folder; raises as `rebuild`."""
    from pipeline.report import merged

    return merged.read(ReportPaths(folder).merged, machine).frames


def sweep_of(folder: Path) -> Sweep:
    """The sweep whose report lies in a folder; raises as `rebuild`."""
    from pipeline.report import merged

    return merged.read(ReportPaths(folder).merged).sweep


@dataclass(frozen=True)
class Sources:
    """Each a results.h5 whose seal was checked, in the order in which they are searched for a cell;
    and the ids of the results in them."""

    paths: tuple[Path, ...] = ()
    ids: frozenset[str] = frozenset()

    @classmethod
    def of(cls, *each: Sources) -> Sources:
        paths = dict.fromkeys(path for one in each for path in one.paths)
        return cls(tuple(paths), frozenset[str]().union(*(one.ids for one in each)))


def _named(folder: Path | None) -> Sources:
    """The results.h5 of a report that the user names. Read once whole: whoever takes a cell from it
    later trusts it."""
    from pipeline.report import merged

    if folder is None:
        return Sources()
    published = merged.read(ReportPaths(folder).merged)
    return Sources((published.path,), frozenset(row.id for row in published.frames.rows))


def _own(paths: ReportPaths) -> Sources:
    """That of the report which a new one replaces. One that is damaged has nothing to keep;
    raises UserError where another version of netpress wrote it, and Corrupt."""
    from pipeline.report import merged

    try:
        store.check_seal(paths.merged)
    except (FileNotFoundError, NotADirectoryError, Corrupt):
        return Sources()
    return Sources((paths.merged,), merged.ids_in(paths.merged))


def _tell_kept(frames: Frames, work: Work, paths: ReportPaths, ids: frozenset[str]) -> None:
    """That results are as the report had them before: the work root may be another than meant."""
    kept = [i for i in frames.ids if i in ids and not work.cell(i).manifest.exists()]
    if kept:
        terminal.tell(
            f"note: {len(kept)} of {len(frames.rows)} results are not in {work.root} and are kept "
            f"as {paths.folder} had them; NETPRESS_WORK names another work root, and without that "
            "folder the report has only what the work root has"
        )


def as_json(frames: Frames) -> dict[str, Any]:
    """What `netpress report --json` prints."""
    from pipeline.report import json_rows

    return json_rows.as_json(frames)


def print_summary(frames: Frames, file: IO[str] | None = None) -> None:
    """The table for the terminal."""
    from pipeline.report import tables

    tables.print_summary(frames, file)
