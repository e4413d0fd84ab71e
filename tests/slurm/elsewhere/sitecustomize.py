"""Loaded by every Python of a job that has this folder on PYTHONPATH: the two nodes of the test
cluster, which are one machine, look like two whose file system keeps locks to one of them."""

from __future__ import annotations

import fcntl
import os
import socket

if os.environ.get("NETPRESS_TEST_NO_FLOCK"):
    fcntl.flock = lambda descriptor, operation: None
if node := os.environ.get("SLURMD_NODENAME"):
    socket.gethostname = lambda: node
