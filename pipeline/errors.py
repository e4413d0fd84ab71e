"""The errors that carry a meaning of their own through the layers."""


class UserError(ValueError):
    """Bad input: one clear sentence for the person at the keyboard; the command exits with 2, or
    with the `exit_code` of a kind that is nobody's input."""

    exit_code = 2


class NoGpu(UserError):
    """A GPU that should be there, and that PyTorch cannot use: another machine may have one."""


class Corrupt(Exception):
    """A published file is not what its manifest says, or unreadable: it is set aside and redone."""


def first_line(error: BaseException, most: int = 200) -> str:
    """Of what it says, at most so many characters; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]
