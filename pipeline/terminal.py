"""Text on its way to a terminal: names and messages from files may hold anything.

A control character moves the cursor, an escape sequence recolours or retitles the terminal, and a
bidirectional one shows a name in another order than it has.
"""

from __future__ import annotations

import shutil
import sys

LONGEST = 500  # characters of a sentence
_ENDING = 200  # of them, those from its end, which says what would be right


def columns() -> int | None:
    """Of the terminal that standard output is; None for a file or a pipe, whose lines may be of any
    length."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def printable(text: object) -> str:
    r"""`text` in one line, with all that is not printable as its escape: \n, \x1b, \u202e."""
    line = str(text)
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else _escape(c) for c in line)


def sentence(text: object) -> str:
    """`printable`, and where it is longer than LONGEST, without its middle."""
    line = printable(text)
    if len(line) <= LONGEST:
        return line
    gap = " ... "
    return line[: LONGEST - _ENDING - len(gap)] + gap + line[-_ENDING:]


def tell(message: object, begin: str = "netpress: ") -> None:
    """A sentence for the user, on standard error."""
    print(f"{begin}{sentence(message)}", file=sys.stderr, flush=True)


def show(line: object) -> None:
    """A line of a result, on standard output."""
    print(printable(line), flush=True)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
