"""The code that the jobs of a submission run: a snapshot under the work root, or the checkout.

Jobs may start days after they were submitted, and a `git checkout` meanwhile would change what they
run. So a submission copies the code once, to WORK/code/ID, where ID is a hash of the files and of
the commit; all submissions of the same code share one copy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import checkout, paths, store

FOLDERS = ("pipeline", "jobs")  # of any installation
OF_CHECKOUT = ("sbatch", "env", "setup.cfg", "pyproject.toml")


@dataclass(frozen=True)
class Code:
    """The folder that jobs run their code from. `source`: what it is, or will be, a copy of; None
    for a `folder` that is used as it is."""

    folder: Path = paths.CODE
    commit: str | None = None
    source: Path | None = None
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def is_live(self) -> bool:
        """Whether a change of the checkout changes what jobs run."""
        return self.source is None

    @cached_property
    def id(self) -> str | None:
        return None if self.is_live else self.folder.name

    def to_json(self) -> dict[str, Any]:
        """For the ledger."""
        source = self.folder if self.source is None else self.source
        return {
            "folder": str(self.folder),
            "commit": self.commit,
            "checkout": str(source),
            "live": self.is_live,
        }


def of(work: paths.Work, live: bool = False, code: Path = paths.CODE) -> Code:
    """The snapshot of `code` in this work root; writes nothing. `live`: the code where it is."""
    commit = checkout.commit(code)
    if live:
        return Code(code, commit)
    if own := checkout.record(code):  # a job that submits others
        return Code(code, commit, Path(own["checkout"]))
    files = dict(_files(code))
    digest = hashlib.sha256(f"{commit}\n".encode())
    for name, content in files.items():
        is_program = os.access(f"{code}/{name}", os.X_OK)
        digest.update(f"{name} {is_program} {hashlib.sha256(content).hexdigest()}\n".encode())
    name = digest.hexdigest()[:16]
    if store.umask_of(work.code(name)) != store.PRIVATE:  # jobs run no other member's files
        name = f"{name}-{os.geteuid()}"
    return Code(work.code(name), commit, code, files)


def make(code: Code) -> None:
    """Write the snapshot, completely or not at all, where it is not there in whole. What a killed
    submission left of this one or of another goes."""
    if code.is_live or not code.files:
        return
    store.clear_abandoned(code.folder.parent)
    if _is_whole(code.folder):
        return
    if checkout.record(code.folder) is None:
        try:
            store.publish_new_folder(code.folder, lambda new: _copy(code, new))
            return
        except FileExistsError:  # another submission has just made it, or it is damaged
            if _is_whole(code.folder):
                return
    store.publish_folder(code.folder, lambda new: _copy(code, new))


def _copy(code: Code, new: Path) -> None:
    assert code.source is not None
    for name, content in code.files.items():
        target = new / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        if os.access(code.source / name, os.X_OK):
            target.chmod(0o700)
    record = {
        "id": code.id,
        "commit": code.commit,
        "checkout": str(code.source),
        "files": {name: len(content) for name, content in code.files.items()},
    }
    paths.snapshot_record(new).write_bytes(store.json_bytes(record))


def _is_whole(folder: Path) -> bool:
    """Whether each file is there with its size: scratch file systems remove what was not used for
    long."""
    record = checkout.record(folder)
    try:
        return record is not None and all(
            (folder / name).stat().st_size == size for name, size in record["files"].items()
        )
    except OSError:
        return False


def _files(code: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of what jobs need, in a fixed order. What lies beside the packages of an
    installation is not ours."""
    of_checkout = OF_CHECKOUT if (code / "setup.cfg").is_file() else ()
    for top in (*FOLDERS, *of_checkout):
        for name in _plain(str(code), top):
            with open(f"{code}/{name}", "rb", buffering=0) as file:
                yield name, file.read()


def _plain(code: str, top: str) -> Iterator[str]:
    """Names of the plain files in a folder, or of the file itself; with strings, since a plan may
    take half a second."""
    if os.path.isfile(f"{code}/{top}"):
        yield top
    if not os.path.isdir(f"{code}/{top}"):
        return
    for entry in sorted(os.scandir(f"{code}/{top}"), key=lambda entry: entry.name):
        name = entry.name
        if name.startswith(".") or name == "__pycache__" or name.endswith(".pyc"):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _plain(code, f"{top}/{name}")
        elif entry.is_file(follow_symlinks=False):
            yield f"{top}/{name}"


def lines(codes: Iterable[Mapping[str, Any] | None]) -> Iterator[str]:
    """What the jobs of a sweep run, newest first, and where the checkout is now."""
    seen: set[tuple[Any, ...]] = set()
    for code in codes:
        if code is None or (key := (code["folder"], code["commit"])) in seen:
            continue
        seen.add(key)
        yield f"Code: {_described(code)}"


def _described(code: Mapping[str, Any]) -> str:
    at = f"commit {_short(code['commit'])}" if code["commit"] else "no commit"
    if code["live"]:
        what = f"{code['checkout']} itself, at {at} when it was submitted"
    else:
        what = f"{at} of {code['checkout']}, snapshot {Path(code['folder']).name}"
    here = code["checkout"] == str(paths.CODE)
    now = checkout.commit() if here else code["commit"]
    return what if now == code["commit"] else f"{what}; the checkout is at {_short(now)} now"


def _short(commit: str | None) -> str:
    """`0123456789+`: the + of changed files stays."""
    return f"{commit[:10]}{'+' * commit.endswith('+')}" if commit else "no commit"
