"""The long options of sbatch, by their full names, for `options:` of a profile.

sbatch takes every unambiguous beginning of a name, so what is not in this list could be another
spelling of one that netpress sets. Names are those of Slurm 20.11 to 25.05 (sbatch's manual).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

ONE_CLUSTER = (
    "netpress submits to the cluster of this machine and looks for its jobs there alone; log in to "
    "another cluster to use that, with a work root of its own"
)
# Set by netpress itself, from a profile's own keys or to find its jobs again.
OURS = {
    "account": "account",
    "array": "at_once",
    "chdir": "",
    "clusters": "",
    "comment": "",
    "constraint": "constraint",
    "cpus-per-task": "cores",
    "dependency": "",
    "error": "",
    "export": "export",
    "export-file": "",
    "gres": "gpu",
    "help": "",
    "hold": "",
    "ignore-pbs": "",
    "input": "",
    "job-name": "",
    "kill-on-invalid-dep": "",
    "mail-type": "mail",
    "mail-user": "mail",
    "mem": "memory_gib",
    "mem-per-cpu": "memory_gib",
    "mem-per-gpu": "memory_gib",
    "no-kill": "",
    "no-requeue": "",
    "nodes": "",
    "ntasks": "",
    "ntasks-per-core": "",
    "ntasks-per-gpu": "",
    "ntasks-per-node": "",
    "ntasks-per-socket": "",
    "open-mode": "",
    "output": "",
    "parsable": "",
    "partition": "partition",
    "qos": "qos",
    "quiet": "",
    "requeue": "",
    "signal": "signal_s",
    "tasks-per-node": "",
    "test-only": "",
    "time": "minutes",
    "usage": "",
    "verbose": "",
    "version": "",
    "wait": "",
    "wrap": "",
}
OTHERS = frozenset(
    {
        "acctg-freq",
        "batch",
        "bb",
        "bbf",
        "begin",
        "cluster-constraint",
        "consolidate-segments",
        "container",
        "container-id",
        "contiguous",
        "core-spec",
        "cores-per-socket",
        "cpu-freq",
        "cpus-per-gpu",
        "exclude",
        "deadline",
        "delay-boot",
        "distribution",
        "exclusive",
        "extra",
        "extra-node-info",
        "get-user-env",
        "gid",
        "gpu-bind",
        "gpu-freq",
        "gpus",
        "gpus-per-node",
        "gpus-per-socket",
        "gpus-per-task",
        "gres-flags",
        "hint",
        "licenses",
        "mcs-label",
        "mem-bind",
        "mincpus",
        "network",
        "nice",
        "nodefile",
        "nodelist",
        "oom-kill-step",
        "overcommit",
        "oversubscribe",
        "power",
        "prefer",
        "priority",
        "profile",
        "propagate",
        "reboot",
        "reservation",
        "resv-ports",
        "segment",
        "sockets-per-node",
        "spread-job",
        "stepmgr",
        "switches",
        "thread-spec",
        "threads-per-core",
        "time-min",
        "tmp",
        "tres-bind",
        "tres-per-task",
        "uid",
        "use-min-nodes",
        "wait-all-nodes",
        "wckey",
        "x11",
    }
)


def checked(name: str) -> str:
    """The name of an option that a profile may set; ValueError says what would be right."""
    from pipeline.strict_yaml import nearest, shown

    if name == "clusters":
        raise ValueError(ONE_CLUSTER)
    if name in OURS:
        key = OURS[name]
        instead = f"the profile's key for it is {key!r}" if key else "expected another option"
        raise ValueError(f"{name!r} is set by netpress itself; {instead}")
    if name not in OTHERS:
        raise ValueError(
            f"{shown(name)} is not the full name of an option of sbatch; {nearest(name, OTHERS)}"
        )
    return name


# Variables that a user may count on, and how the same is requested here.
KEYS = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_RESERVATION": "options.reservation",
}


def ignored(given: Mapping[str, str | bool | None]) -> Iterator[str]:
    """A line for each variable that sbatch would follow and that is not passed on to it, unless
    the profile's key of this name has the same value."""
    for name, key in KEYS.items():
        value = os.environ.get(name)
        if value and given.get(key) != value:
            yield f"{name}={value} is set and ignored; `--set {key}={value}` requests it"
    for name in ("SLURM_CLUSTERS", "SBATCH_CLUSTERS"):
        if value := os.environ.get(name):
            yield f"{name}={value} is set and ignored: netpress submits to this machine's cluster"
