"""Which files of a report's folder are its own: files.json, {"netpress_report": [name, ...]}.

A report replaces and removes what this list names, and nothing else: a file of the user may lie in
the same folder, and the folder may be a stranger's. A name is in the list before its file is
written and until it is removed, so that a report that was killed anywhere still knows its files.
A report of before there was a list is known by its sealed results.h5: the files of a new one take
the place of its own, but what is left over stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import store
from pipeline.errors import Corrupt, UserError
from pipeline.paths import CELL_ID, ReportPaths
from pipeline.store import typed

KEY = "netpress_report"
MOST_BYTES = 1 << 24  # of the list: 100,000 models have fewer
# The list may be a stranger's, too: whatever it says, no other names are the report's.
IN_FOLDERS = re.compile(
    r"figures/[A-Za-z0-9._-]+\.(svg|pdf)|tables/[A-Za-z0-9._-]+\.tex|artifacts/[0-9a-f]{16}/.+"
)


@dataclass
class Owned:
    """The names that are a report's own, in its folder and on disk."""

    paths: ReportPaths
    names: set[str]
    strict: bool  # whether only what is in `names` may be replaced
    removed: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, paths: ReportPaths) -> Owned:
        """Looks, and changes nothing. Raises UserError where the folder cannot be a report's: a
        link in place of one of its folders, another's file in place of one that each report has."""
        for folder in (*paths.own_folders, *_of_cells(paths)):
            if folder.is_symlink():
                raise UserError(
                    f"{folder}: is a link, expected a folder of the report's own; a link for the "
                    f"whole of {paths.folder} would do"
                )
            if folder.exists() and not folder.is_dir():
                raise UserError(f"{folder}: is a file, expected a folder; move it away")
        listed = read(paths)
        from_before = listed is None and _is_sealed(paths.merged)
        owned = cls(paths, listed or set(), strict=not from_before)
        owned._check(map(paths.name, paths.always))
        return owned

    def begin(self) -> None:
        """Before results.h5 is written; one of a report of before speaks for itself until all that
        it is to have is claimed. What a report that was killed was writing goes."""
        self.clear()
        if self.strict:
            self.claim(map(self.paths.name, self.paths.always))

    def clear(self) -> None:
        for folder in (self.paths.folder, *self.paths.own_folders):
            store.clear_abandoned(folder)

    def claim(self, names: Iterable[str]) -> None:
        """Make these the report's own, before they are written. Raises UserError, and claims none,
        where another's file has one of the names, or lies among the files of a model."""
        wanted = set(names)
        self._check(wanted)
        self._check_models(wanted)
        self.names |= wanted
        self.removed -= wanted
        self.publish()

    def remove(self, names: Iterable[str]) -> None:
        """Those that are the report's own; a folder of a model goes with its last file."""
        for name in sorted(self.names & set(names)):
            path = self.paths.folder / name
            if not self._leads_out(path) and not (path.is_dir() and not path.is_symlink()):
                path.unlink(missing_ok=True)
                self._remove_empty(path.parent)
            self.names.discard(name)
            self.removed.add(name)

    def publish(self) -> None:
        """The list; with what another process, which makes the same report, put there meanwhile."""
        now = read(self.paths)
        names = ((now or set()) - self.removed) | self.names
        if names != now:
            store.publish_json(self.paths.listing, {KEY: sorted(names)})

    def of_model(self, cell_id: str) -> set[str]:
        prefix = f"{self.paths.artifacts.name}/{cell_id}/"
        return {name for name in self.names if name.startswith(prefix)}

    def _check(self, names: Iterable[str]) -> None:
        for name in sorted(names):
            path = self.paths.folder / name
            if not _is_ours(self.paths, name):
                raise Corrupt(f"{self.paths.merged}: {name!r} cannot be a file of a report")
            if path.is_dir() and not path.is_symlink():
                raise UserError(f"{path}: is a folder, expected a file of the report's own")
            if self.strict and name not in self.names and os.path.lexists(path):
                self._read_again()
                if name not in self.names:
                    raise self._in_the_way(path)

    def _read_again(self) -> None:
        """The job of the report and a user may make it at the same time: what one of them claims,
        it claims before it is written, and for both."""
        self.names |= (read(self.paths) or set()) - self.removed

    def _check_models(self, names: set[str]) -> None:
        """A model's folder is replaced whole: nothing else may be in it."""
        for folder in _of_cells(self.paths):
            if any(name.startswith(f"{self.paths.name(folder)}/") for name in names):
                for path in _files_in(folder):
                    if self.paths.name(path) not in self.names | names:
                        self._read_again()
                    if self.paths.name(path) not in self.names | names:
                        raise self._in_the_way(path)

    def _in_the_way(self, path: Path) -> UserError:
        return UserError(
            f"{path}: is there already, and no file of this report ({self.paths.listing.name} "
            "lists them); move it away, or let --to name another folder for the report"
        )

    def _leads_out(self, path: Path) -> bool:
        """Whether a folder on the way to `path` is a link."""
        above = path.relative_to(self.paths.folder).parents
        return any((self.paths.folder / folder).is_symlink() for folder in above if folder.name)

    def _remove_empty(self, folder: Path) -> None:
        with contextlib.suppress(OSError):  # something is in it
            while folder not in (self.paths.folder, *self.paths.own_folders):
                folder.rmdir()
                folder = folder.parent


def read(paths: ReportPaths) -> set[str] | None:
    """The names in the list, None without one; UserError where it is no such list."""
    try:
        text = store.read_regular(paths.listing, MOST_BYTES).decode()
        typed.check_json("it", text)
        names = json.loads(text)[KEY]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(KEY)
    except FileNotFoundError:
        return None
    except (Corrupt, ValueError, LookupError, TypeError, RecursionError):
        raise UserError(
            f"{paths.listing}: is not the list of a report's files; move it away"
        ) from None
    return {name for name in names if _is_ours(paths, name)}


def _is_ours(paths: ReportPaths, name: str) -> bool:
    if name in map(paths.name, paths.always):
        return True
    inside = name.isprintable() and not {"", ".", ".."} & set(name.split("/"))
    return inside and IN_FOLDERS.fullmatch(name) is not None


def _of_cells(paths: ReportPaths) -> list[Path]:
    """Folders of models, and what has the name of one."""
    if paths.artifacts.is_symlink() or not paths.artifacts.is_dir():
        return []
    return sorted(p for p in paths.artifacts.iterdir() if CELL_ID.fullmatch(p.name))


def _files_in(folder: Path) -> Iterator[Path]:
    """All that is no folder, links to folders included."""
    for root, folders, names in os.walk(folder):
        yield from (Path(root) / name for name in names)
        yield from (p for name in folders if (p := Path(root) / name).is_symlink())


def _is_sealed(merged: Path) -> bool:
    try:
        store.check_seal(merged)
    except (FileNotFoundError, NotADirectoryError, Corrupt):
        return False
    return True
