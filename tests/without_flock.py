"""Runs Python code where flock(2) fails with a number: python -m tests.without_flock ERRNO CODE ...

The kernel itself refuses the call, by a seccomp filter that this process puts on itself.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys

FLOCK = {"x86_64": 73, "aarch64": 32}  # its number among the system calls
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2  # of prctl(2)
LOAD, EQUAL, ANSWER = 0x20, 0x15, 0x06  # instructions of a filter
ERRNO, ALLOW = 0x00050000, 0x7FFF0000


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def refuse_flock(number: int) -> None:
    """From now on, in this process and its children."""
    steps = [
        (LOAD, 0, 0, 0),
        (EQUAL, 0, 1, FLOCK[platform.machine()]),
        (ANSWER, 0, 0, ERRNO | number),
        (ANSWER, 0, 0, ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = Program(len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(
        SECCOMP, FILTER, ctypes.byref(program)
    ):
        sys.exit("no seccomp here")


if __name__ == "__main__":
    refuse_flock(int(sys.argv[1]))
    code = sys.argv[2]
    del sys.argv[:2]
    exec(compile(code, "code", "exec"), {"__name__": "__main__"})
