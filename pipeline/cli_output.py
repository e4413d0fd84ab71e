"""Output of the command line: results on standard output, errors on standard error."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from pipeline import streams, terminal
from pipeline.errors import UserError

LINES = 1000  # of JSON that are printed at a time
# A path of the wrong kind: the input is wrong, not the machine.
WRONG_PATH = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)  # the same in a folder of the user


def show(result: dict[str, Any] | Iterable[str]) -> None:
    """Print one JSON object, or lines of text, on standard output."""
    if isinstance(result, dict):
        _show_json(result)
        return
    for line in result:
        show_line(line)


def _show_json(result: dict[str, Any]) -> None:
    """In pieces: of a plan of 500,000 cells the whole text would take gigabytes."""
    lines = _lines_of(result)
    with streams.naming():
        while piece := "\n".join(itertools.islice(lines, LINES)):
            click.echo(piece)


def _lines_of(result: dict[str, Any]) -> Iterator[str]:
    """A key a line, and of a list an element a line. With `indent`, json encodes in Python alone,
    which takes longer than planning does."""
    yield "{"
    for number, (key, value) in enumerate(result.items(), 1):
        comma = "," if number < len(result) else ""
        if not isinstance(value, list) or not value:
            yield f"  {json.dumps(key)}: {json.dumps(value)}{comma}"
            continue
        yield f"  {json.dumps(key)}: ["
        for place, each in enumerate(value, 1):
            yield f"    {json.dumps(each)}{',' if place < len(value) else ''}"
        yield f"  ]{comma}"
    yield "}"


def show_line(line: object) -> None:
    """Print one line of text on standard output."""
    with streams.naming():
        click.echo(terminal.printable(str(line).expandtabs()))


def warn(message: str) -> None:
    """Print a sentence for the user on standard error."""
    terminal.tell(message)


def open_page(page: Path) -> None:
    """Show a page in the browser that BROWSER names, or in the desktop's."""
    import webbrowser

    if not webbrowser.open(page.absolute().as_uri()):
        warn(f"no browser could be started; open {page}")


def fail(sentence: str, code: int = 2) -> int:
    """Print an error as one sentence on standard error; returns the exit code."""
    with contextlib.suppress(OSError):  # the exit code shows it, too
        terminal.tell(sentence)
    return code


def fail_of_system(error: OSError) -> int:
    """Print an error of the system; returns the exit code."""
    return fail(_system_error(error), 2 if error.errno in WRONG_PATH else 1)


@contextlib.contextmanager
def user_folders(*folders: Path) -> Iterator[None]:
    """What the system refuses in folders that the user chose is an error of the input."""
    try:
        yield
    except OSError as error:
        named = _paths_of(error)
        if error.errno in REFUSED and named and _is_in(named[0], folders):
            raise UserError(_system_error(error)) from error
        raise


def _is_in(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) or folder.is_relative_to(path) for folder in folders)


def fail_of_usage(error: click.ClickException) -> int:
    """Print an error in the arguments; returns the exit code."""
    return fail(_usage_error(error))


def _system_error(error: OSError) -> str:
    """The path and the system's message; for a rename, the path is the new name."""
    named = _paths_of(error)
    problem = " ".join((error.strerror or str(error) or type(error).__name__).split())
    if error.filename == streams.STANDARD_OUTPUT:
        streams.abandon()
    if named:
        return f"{named[0]}: {problem}"
    return f"{problem} (the system does not name the file)"


def _paths_of(error: OSError) -> list[Path]:
    names = (error.filename2, error.filename)
    return [Path(os.fsdecode(name)) for name in names if isinstance(name, (str, bytes))]


def _usage_error(error: click.ClickException) -> str:
    """click's message as one sentence that names the command's help."""
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "netpress"
    return f"{message} (`{command} --help` shows the usage)"
