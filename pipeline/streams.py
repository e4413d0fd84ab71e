"""Standard input, output and error, made fit for use before anything is opened or printed.

What cannot be shown is no failure of the work: a character that the terminal's encoding does not
have is shown as its escape, and what a closed stream is given goes nowhere.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

STANDARD_OUTPUT = "standard output"


def ready() -> None:
    """For the start of a process. A file that is opened while descriptor 1 is free would get its
    number, and with it whatever a library prints."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, _nowhere(number))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # one that a caller put there may not have it
            stream.reconfigure(errors="backslashreplace")


def _nowhere(number: int) -> TextIO:
    """/dev/null as a stream; as the descriptor `number`, too, unless something else has it now."""
    try:
        os.fstat(number)
    except OSError:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor != number:
            os.dup2(descriptor, number)
            os.close(descriptor)
        return open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)
    return open(os.devnull, "r" if number == 0 else "w", encoding="utf-8")


@contextlib.contextmanager
def naming() -> Iterator[None]:
    """What fails in it is the writing of standard output."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or STANDARD_OUTPUT
        raise


@contextlib.contextmanager
def at_best() -> Iterator[None]:
    """For printing what was done, when it is done: if nobody can read it, it is done all the same.

    Nothing but printing belongs in the `with`: an OSError in it is taken for the stream's.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError:
        abandon()


def abandon() -> None:
    """Standard output cannot be written: what is still to come, at exit too, goes nowhere."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, sys.stdout.fileno())
    os.close(descriptor)
