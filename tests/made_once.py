"""The files of a report, made once of the same results.h5: for tests of what becomes of files, not
of what is in them."""

from __future__ import annotations

from pipeline import report

MADE: dict[bytes, dict[str, bytes]] = {}  # a results.h5 -> the files that were made from it
_made = report.made


def made(published, paths):
    key = paths.merged.read_bytes()
    if key not in MADE:
        MADE[key] = {paths.name(path): data for path, data in _made(published, paths).items()}
    return {paths.folder / name: data for name, data in MADE[key].items()}
