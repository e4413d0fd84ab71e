"""Compilation by torch.compile, and its cache on disk, which cells and jobs share.

What lies in the cache is code that is run. So it is the user's own folder: of nobody else, writable
for nobody else, or it is not used. In a work root that is shared with a group, others could put
another folder in its place: then it lies in the user's own cache.
"""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import tempfile
from pathlib import Path

import torch

from pipeline import paths
from pipeline.errors import UserError, first_line
from pipeline.terminal import tell
from pipeline.training.losses import Objective

CACHE = "TORCHINDUCTOR_CACHE_DIR"  # Triton's kernels lie there, too
STRUCTURES = 64  # networks of a process that are compiled; later ones would quietly run uncompiled


def compiled(objective: Objective) -> Objective:
    """With the network and its teacher in it. Networks of one structure are compiled once a
    process. The same seed gives the same weights: no kernel whose sums depend on its configuration
    is chosen by a race between several of them."""
    import torch._dynamo as dynamo

    dynamo.config.skip_nnmodule_hook_guards = False  # gates and feature maps are hooks
    dynamo.config.recompile_limit = STRUCTURES
    return torch.compile(objective, dynamic=False, options={"deterministic": True})


def use_cache(work: paths.Work) -> None:
    """What is compiled from now on is kept in the work root and taken from there; not where the
    user named another folder in the environment. Writers do not disturb each other: PyTorch renames
    files into their places. Where there is no folder of this user alone, this process has a new one
    for itself; raises OSError where that cannot be made."""
    if not _is_chosen():
        os.environ[CACHE] = str(_kept(work) or _own())


def _is_chosen() -> bool:
    """Whether a folder was named. PyTorch names one itself where its compiler is imported: in /tmp,
    under a name that others can foresee."""
    if CACHE not in os.environ:
        return False
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    return os.environ[CACHE] != default_cache_dir()


def _kept(work: paths.Work) -> Path | None:
    """A folder that stays; None, and a line for the user, where others could write there."""
    folder = work.compiled
    try:
        work.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(work.cache):
            folder = paths.compiled_at_home()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        private = _is_private(folder)
    except (OSError, UserError) as error:  # UserError: no home folder
        told = getattr(error, "strerror", None) or first_line(error)
        tell(f"{folder}: cannot be used to keep what is compiled ({told})")
        return None
    if private:
        return folder
    tell(
        f"{folder}: others can write there, so nothing that is compiled is taken from it; "
        "expected a folder of your own with mode 700"
    )
    return None


def _own() -> Path:
    """A new folder, readable for this user alone, until the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="netpress-compiled-"))
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not in what it forked
        shutil.rmtree(folder, ignore_errors=True)


def _is_private(folder: Path) -> bool:
    """Whether it is a folder of this user, in which nobody else can write; raises OSError."""
    status = folder.lstat()
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not shared
