"""Makes netpress's virtual environment; env/run calls it and it needs the standard library only.

usage: create.py LINK REQUIREMENTS

Each attempt builds in a folder of its own, and LINK, which is what env/run looks for, points to it
only when everything is installed. What an interrupted attempt left is removed by the next one.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

INSTALL = [
    "-I",
    "-m",
    "pip",
    "install",
    "--no-input",
    "--disable-pip-version-check",
    "--only-binary=:all:",
]


class Failed(Exception):
    """One sentence for the person at the keyboard."""


def main(link: Path, requirements: Path) -> int:
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        with locked(beside(link, ".lock")) as lock:
            # Another process may have made it while this one waited for the lock.
            if not is_ready(link):
                make(link, requirements, lock)
    except Failed as failure:
        say(str(failure))
        return 1
    except OSError as error:
        say(f"the environment could not be made in {link.parent}: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; the next env/run makes the environment")
        return 130
    return 0


def is_ready(link: Path) -> bool:
    return link.is_symlink() and os.access(link / "bin" / "python", os.X_OK)


def make(link: Path, requirements: Path, lock: int) -> None:
    """Build in a new folder, then let `link` point to it: it is either absent or complete."""
    remove_attempts(link)
    started = time.monotonic()
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    say(f"making the environment with {python} in {link.parent}: once, 1 to 10 minutes, about 6 GB")
    folder = Path(tempfile.mkdtemp(prefix=f"{link.name}.", dir=link.parent))
    try:
        folder.chmod(0o777 & ~umask() | folder.stat().st_mode & stat.S_ISGID)  # others may share it
        with beside(link, ".log").open("w+b") as log:
            run([sys.executable, "-I", "-m", "venv", str(folder)], log, lock)
            # Isolated (-I), or packages on the user's PYTHONPATH would count as installed.
            run([str(folder / "bin" / "python"), *INSTALL, "-r", str(requirements)], log, lock)
        link.symlink_to(folder.name)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # gigabytes, maybe on a full disk
        raise
    say(f"the environment is ready after {time.monotonic() - started:.0f} s")


def umask() -> int:
    now = os.umask(0o077)
    os.umask(now)
    return now


def remove_attempts(link: Path) -> None:
    """Remove what earlier attempts left, and a link to an environment whose Python is gone."""
    link.unlink(missing_ok=True)
    for folder in link.parent.glob(f"{link.name}.*"):
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)


def run(command: list[str], log, lock: int) -> None:
    """Run `command` to its end with its output in `log`; its failure is one sentence."""
    # The child holds the lock too: where it can outlive this process, the next one waits for it.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environ_for_pip(),
        pass_fds=[lock],
        preexec_fn=dies_with_parent(),
    )
    try:
        while (status := wait(process)) is None:
            show(last_line(log.name))
    finally:
        process.kill()
        process.wait()
        show("")
    if status:
        for line in errors(log.name):
            print(line, file=sys.stderr)
        raise Failed(f"the environment could not be made{cause(log.name)}; its log is {log.name}")


def wait(process: subprocess.Popen) -> int | None:
    try:
        return process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return None


def environ_for_pip() -> dict[str, str]:
    """The user's, without the settings that would install elsewhere than in the environment."""
    elsewhere = {"PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "PYTHONHOME"}
    return {k: v for k, v in os.environ.items() if k not in elsewhere} | {"PIP_USER": "0"}


def dies_with_parent() -> Callable[[], object] | None:
    """What lets a child be killed with this process, where the system can do that."""
    if sys.platform != "linux":
        return None
    libc, set_parent_death_signal = ctypes.CDLL(None), 1
    return lambda: libc.prctl(set_parent_death_signal, signal.SIGKILL)


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the lock on `path` and give its descriptor; however the holder ends, it is freed."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another env/run is making the environment; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            say("this file system has no locks: start no second env/run before this one ends")
        yield file.fileno()


def errors(log: str) -> list[str]:
    """The lines that say what went wrong, or else the last ones."""
    lines = Path(log).read_text(errors="replace").splitlines()
    return [line for line in lines if line.startswith("ERROR")][-5:] or lines[-5:]


def cause(log: str) -> str:
    """A full disk, which need not have left room for an error in the log."""
    free_mb = shutil.disk_usage(Path(log).parent).free / 1e6
    empty = Path(log).stat().st_size == 0
    return ": the disk, or a quota on it, is full" if empty or free_mb < 100 else ""


def last_line(log: str) -> str:
    lines = Path(log).read_text(errors="replace").splitlines()
    return lines[-1] if lines else "..."


def show(text: str) -> None:
    """Keep one line of the terminal up to date; say nothing where there is no terminal."""
    if sys.stderr.isatty():
        columns = shutil.get_terminal_size().columns
        print(f"\r\x1b[K{text.strip()[: columns - 1]}", end="", file=sys.stderr, flush=True)


def beside(link: Path, suffix: str) -> Path:
    return link.with_name(link.name + suffix)


def say(sentence: str) -> None:
    print(f"netpress: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
