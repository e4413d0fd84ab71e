"""Loaded by every Python of a job that has this folder on PYTHONPATH: the two nodes of the test
cluster, which are one machine, look like two whose file system keeps locks to one of them; and a
cell's process has as much memory more as it is told to."""

from __future__ import annotations

import fcntl
import os
import socket
import sys

if os.environ.get("NETPRESS_TEST_NO_FLOCK"):
    fcntl.flock = lambda descriptor, operation: None
if node := os.environ.get("SLURMD_NODENAME"):
    socket.gethostname = lambda: node
if "jobs.compress" in sys.orig_argv:
    held = b"x" * int(os.environ.get("NETPRESS_TEST_HELD_BYTES", "0"))
