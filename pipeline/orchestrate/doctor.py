"""Checks whether this machine, cluster and profile can run netpress: one line per check.

On the login node: Python and packages, data, the work root and its file system, Slurm and the
profile's request (`sbatch --test-only`). On a compute node, through one small job: whether Python
starts and sees the work root, the data and the GPU.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import paths, store
from pipeline.errors import UserError
from pipeline.orchestrate import room, slurm
from pipeline.orchestrate.profile import Cluster

PACKAGES = ("torch", "onnx", "onnxruntime", "h5py", "pandas", "submitit", "safetensors")
LEAST_FREE_BYTES = 20 * 1024**3
LIMITS = (
    "State",
    "MaxTime",
    "MaxNodes",
    "PreemptMode",
    "GraceTime",
    "QoS",
    "AllowQos",
    "AllowAccounts",
)
REMEDIES = {
    "Invalid partition": "`sinfo` lists them: --set partition=NAME",
    "Invalid qos": "`you may use` below lists yours: --set qos=NAME",
    "Invalid account": "`you may use` below lists yours: --set account=NAME",
    "time limit": "--set minutes=N, as the partition allows",
    "node configuration": "no node has that much: reduce --set cores=N, memory_gib=N, gpu=KIND:N",
    "generic resource": "`sinfo -o '%N %G'` lists the GPUs there are: --set gpu=KIND:N",
}
NO_FLOCK = (
    "this file system has no flock (a Lustre mounted without `-o flock`, NFS without its lock "
    "daemon); netpress uses files that name their owner, and a process on another machine that was "
    "killed outside of a job keeps its lock until you remove the file that the message names"
)
LATE_S = 3.0
PROBE_S = 180.0  # the most time that the small job may take to start and end
LOOK_S = 12.0  # between two calls of squeue: others use the controller, too
FILE_S = 1.0  # between two looks for the job's file


@dataclass(frozen=True)
class Check:
    """`ok` None: information, not a pass or a failure."""

    what: str
    ok: bool | None
    message: str

    @property
    def line(self) -> str:
        mark = {True: "ok  ", False: "BAD ", None: "note"}[self.ok]
        return f"{mark}  {self.what}: {self.message}"


def checks(cluster: Cluster | None, jobs: bool = True) -> Iterator[Check]:
    """All checks; removes whatever it creates."""
    profile = cluster.profile if cluster else None
    work = paths.work_root(profile.work if profile else None)
    data = paths.data_root(profile.data if profile else None)
    yield from _python()
    yield from _work_root(work)
    yield _data(data)
    if cluster is None:
        yield from _gpu_here()
        return
    for note in (*cluster.profile.notes(), *cluster.profile.ignored()):
        yield Check("request", None, note)
    if not slurm.available():
        yield Check("slurm", False, "sbatch is not on PATH: run this on the cluster's login node")
        return
    answered = yield from _controller()
    if not answered:
        return
    yield from _partition(cluster)
    accepted = yield from _request(cluster, work)
    yield from _accounting(cluster)
    if not jobs:
        return
    if accepted and work.parent.is_dir():
        yield from _compute_node(cluster, work, data)
        return
    why = "Slurm would not accept a job" if not accepted else f"{work.parent} does not exist"
    yield Check("compute node", None, f"not checked, since {why}")


# --- this machine ----------------------------------------------------------------------------


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Check("python", sys.version_info >= (3, 10), f"{version} in {sys.executable}")
    missing: list[str] = []
    versions: list[str] = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    message = f"{', '.join(missing)} not installed: use env/run, or `source env/sol.sh` on Sol"
    yield Check("packages", not missing, message if missing else ", ".join(versions))


def _work_root(work: Path) -> Iterator[Check]:
    """Whether it is writable, rename and fsync work, and there is enough space."""
    nearest = next(p for p in (work, *work.parents) if p.is_dir())
    try:
        with tempfile.TemporaryDirectory(prefix=".netpress-doctor-", dir=nearest) as folder:
            probe = Path(folder) / "probe"
            store.publish_bytes(probe, b"first")
            store.publish_bytes(probe, b"second")
            ok = probe.read_bytes() == b"second"
            has_flock = store.has_flock(Path(folder))
    except OSError as error:
        yield Check("work root", False, f"{work}: {error.strerror or error}, in {nearest}")
        return
    made = "" if nearest == work else f", to be created in {nearest}"
    shared = ", shared with its group" if store.enter(paths.Work(work)) else ""
    yield Check("work root", ok, f"{work}{made}: writable, rename and fsync work{shared}")
    yield Check("locks", True if has_flock else None, "flock works" if has_flock else NO_FLOCK)
    free = shutil.disk_usage(nearest).free
    yield Check("space", free >= LEAST_FREE_BYTES, f"{free / 1024**3:.0f} GiB free on it")
    odd = re.search(r"[%\\]|[^\x20-\x7e]", str(work))
    if odd:
        yield Check("work root", False, f"{odd[0]!r} in its name: Slurm cannot write logs there")


def _data(data: Path) -> Check:
    there = sorted(p.name for p in data.iterdir() if p.is_dir()) if data.is_dir() else []
    message = ", ".join(there) or "nothing yet; `netpress fetch SWEEP` downloads what a sweep needs"
    return Check("data", True if there else None, f"{data}: {message}")


def _gpu_here() -> Iterator[Check]:
    from pipeline.orchestrate.local import visible_gpus

    gpus = visible_gpus()
    yield Check("gpu", None, f"{len(gpus)} visible" if gpus else "none: `run` uses the CPU")


# --- the cluster -----------------------------------------------------------------------------


def _controller() -> Generator[Check, None, bool]:
    """Slurm's version and limits; returns whether the controller answered."""
    try:
        settings = slurm.config()
    except UserError as error:
        yield Check("slurm", False, str(error))
        return False
    yield Check("slurm", True, f"version {settings.get('SLURM_VERSION', 'unknown')}")
    for key in ("MaxArraySize", "MaxJobCount", "MinJobAge", "PreemptMode", "PreemptType"):
        yield Check(key, None, settings.get(key, "not reported"))
    requeue = settings.get("JobRequeue", "1")
    yield Check(
        "requeue",
        None,
        "on by default" if requeue == "1" else "off by default; netpress requests it for each job",
    )
    return True


def _partition(cluster: Cluster) -> Iterator[Check]:
    """Its time limit, and whether jobs there can be preempted."""
    for name in (cluster.profile.partition or "").split(","):
        try:
            settings = slurm.partition(name or None)
        except UserError as error:
            yield Check("partition", False, f"{error}; choose with --set partition=NAME (`sinfo`)")
            continue
        message = ", ".join(f"{key} {settings[key]}" for key in LIMITS if key in settings)
        up = settings.get("State", "UP") == "UP"
        yield Check(
            f"partition {settings.get('PartitionName', name)}", None if up else False, message
        )


def _request(cluster: Cluster, work: Path) -> Generator[Check, None, bool]:
    """Whether Slurm accepts the profile's request from this user, for each kind of job."""
    good = True
    kinds = {"jobs": "cells", "report": "report"}
    if cluster.profile.measure_job is not None:
        kinds["measure jobs"] = "measure"
    for what, text in ((what, _script(cluster, work, kind)) for what, kind in kinds.items()):
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "test.sh"
            script.write_text(text)
            ok: bool | None = True
            try:
                message = slurm.check(script)
            except slurm.NoRoom as full:
                message, ok = f"{full}; not checked, there is no room for a job now", None
            except UserError as error:
                message, ok = f"{error}; {_remedy(str(error))}", False
        good = good and bool(ok)
        yield Check(f"{what} as profile {cluster.name} requests", ok, message)
    return good


def _remedy(message: str) -> str:
    """What to do when Slurm refuses a request."""
    for words, remedy in REMEDIES.items():
        if words in message:
            return remedy
    return "correct the profile, or --set KEY=VALUE"


def _script(cluster: Cluster, work: Path, kind: str = "cells") -> str:
    """The real script of a job of cells, or of one that measures, or of the report, in a folder
    that does not have to exist."""
    from pipeline.orchestrate.executor import script
    from pipeline.orchestrate.graph import Array, Request
    from pipeline.orchestrate.job_request import slurm_request

    profile = cluster.profile
    own = {"report": profile.report, "measure": profile.measure_job}.get(kind)
    request = Request((own or profile).memory_gib, (own or profile).minutes)
    array = Array(kind, {0: ()}, request, measures=kind == "measure")
    job = paths.Work(work).sweep("doctor").job("test")
    return script(slurm_request(array, cluster, "netpress-doctor", job, None))


def _accounting(cluster: Cluster) -> Iterator[Check]:
    try:
        slurm.sacct([1])
        yield Check("accounting", True, "sacct answers")
        for line in slurm.associations():
            yield Check("you may use", None, line)
        for line in slurm.qualities([cluster.profile.qos] if cluster.profile.qos else []):
            yield Check("qos", None, line)
    except UserError as error:
        yield Check("accounting", None, f"{error}; status takes from logs how jobs ended")
    limit = room.tightest(cluster.profile)
    yield Check("submit limit", None, room.consequence(limit, cluster.profile))


# --- a compute node --------------------------------------------------------------------------

PROBE = """
import json, os, socket, subprocess, sys
folder, data = sys.argv[1:]
result = {"host": socket.gethostname(), "python": sys.version.split()[0]}
try:
    import onnxruntime, torch
    result["torch"] = torch.__version__
    result["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
except Exception as error:
    result["broken"] = f"{type(error).__name__}: {error}"
result["devices"] = os.environ.get("CUDA_VISIBLE_DEVICES", "")
result["data"] = sorted(os.listdir(data)) if os.path.isdir(data) else None
with open(os.path.join(folder, "result.tmp"), "w") as file:
    json.dump(result, file)
    file.flush()
    os.fsync(file.fileno())
os.rename(os.path.join(folder, "result.tmp"), os.path.join(folder, "result.json"))
"""


def _compute_node(cluster: Cluster, work: Path, data: Path) -> Iterator[Check]:
    """Checks by one short job with the profile's request and set-up."""
    made = [path for path in (work / "doctor", work) if not path.exists()]
    folder = work / "doctor" / secrets.token_hex(4)
    store.make_folder(folder)
    (folder / "probe.py").write_text(PROBE)
    (folder / "probe.sh").write_text(_probe_script(cluster, folder, data))
    job = None
    try:
        job = slurm.sbatch(folder / "probe.sh")
        result, waiting = _awaited(folder, job)
        if waiting is not None:
            yield Check("compute node", None, _busy(waiting, cluster))
        else:
            yield from _probed(result, cluster, data, folder)
    except UserError as error:
        yield Check("compute node", False, str(error))
    finally:
        if job is not None:
            slurm.scancel([str(job)])
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # they are no longer empty
            for path in made:
                path.rmdir()


def _probe_script(cluster: Cluster, folder: Path, data: Path) -> str:
    """The real script with another command, so that the set-up is the real one."""
    from pipeline.orchestrate.executor import probe

    # Two minutes before the signal of the time limit, which would end the probe and which Slurm may
    # send a minute early.
    minutes = 3 + math.ceil(cluster.profile.signal_s / 60)
    short = cluster.profile.model_copy(update={"minutes": minutes})
    arguments = [str(folder / "probe.py"), str(folder), str(data)]
    return probe(replace(cluster, profile=short), folder, arguments)


def _awaited(folder: Path, job: int) -> tuple[dict[str, Any] | None, slurm.Row | None]:
    """(the job's result, None), or (None, its row in the queue where it has not started in time);
    neither where it ended without a result, or did not end."""
    began = last_poll = time.monotonic()
    deadline, row = began + PROBE_S, None
    while time.monotonic() < deadline:
        time.sleep(FILE_S)
        if (folder / "result.json").exists():
            return json.loads((folder / "result.json").read_text()), None
        if time.monotonic() - last_poll >= LOOK_S:
            last_poll = time.monotonic()
            row = next((row for row in slurm.squeue() if row.job == job), None)
            if row is None or row.state in slurm.FINAL:  # its files may show late
                deadline = min(deadline, time.monotonic() + LATE_S)
    return None, row if row and slurm.IN_QUEUE.get(row.state) == "queued" else None


def _busy(row: slurm.Row, cluster: Cluster) -> str:
    """What a job that waits shows about the cluster: nothing is wrong with the profile."""
    from pipeline.orchestrate.cluster import pending

    why = pending(row) or "Slurm gives no reason yet"
    return (
        f"not checked, the cluster is busy: its job waited for {PROBE_S:.0f} s ({why}); profile "
        f"{cluster.name} is accepted, so jobs start when it is their turn"
    )


def _probed(
    result: dict[str, Any] | None, cluster: Cluster, data: Path, folder: Path
) -> Iterator[Check]:
    if result is None:
        log = folder / "log.txt"
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        message = (
            lines[-1][:300]
            if lines
            else (
                f"its job did not end within {PROBE_S:.0f} s, or could not write to "
                f"{folder.parent}; `--no-jobs` skips it"
            )
        )
        remedy = "; correct the profile's `setup`" if "set-up failed" in message else ""
        yield Check("compute node", False, message.removeprefix("netpress: ") + remedy)
        return
    more = result.get("broken") or f"torch {result['torch']}"
    message = f"{result['host']}, Python {result['python']}, {more}"
    yield Check("compute node", "broken" not in result, message)
    listed = result["data"]
    yield Check(
        "data there",
        True if listed else None,
        f"{data}: {', '.join(listed) if listed else 'nothing'}",
    )
    if cluster.profile.gpus:
        gpus = result.get("gpus") or []
        yield Check(
            "gpu there",
            len(gpus) >= cluster.profile.gpus,
            ", ".join(gpus)
            or f"Slurm gave device {result['devices'] or 'none'}, torch "
            "sees none: the node's driver, or a torch without CUDA in this environment",
        )
