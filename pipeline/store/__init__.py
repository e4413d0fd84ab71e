"""Files on disk: a result is either absent or complete.

files: atomic publication. modes: who may read it. regular: reading files of unknown origin. locks:
one process per cell. claims: locks, also without flock. manifest: which cells are trained.
measurement: of any number of machines. results: HDF5. attempts: one run of a job for a cell, its
failure and its usage. Other layers use the names here, not the modules below.
"""

from pipeline.store.attempts import (
    Failure,
    Peaks,
    Requested,
    Usage,
    last_attempt,
    new_attempt,
    read_failure,
    read_usage,
    write_failure,
    write_usage,
)
from pipeline.store.claims import (
    OWNER,
    FileLock,
    has_flock,
    is_taken,
    lives_here,
    this_process,
)
from pipeline.store.files import (
    TEMPORARY,
    clear_abandoned,
    json_bytes,
    make_folder,
    publish_bytes,
    publish_folder,
    publish_json,
    publish_new_folder,
    set_aside,
    sha256,
    sync_folder,
)
from pipeline.store.locks import Busy, lock_cell
from pipeline.store.manifest import (
    damaged_parts,
    fingerprint,
    is_done,
    manifest_bytes,
    read_manifest,
    retract,
    verify,
    verify_files,
    withdraw,
    write_manifest,
)
from pipeline.store.measurement import Entry as MeasurementEntry
from pipeline.store.measurement import artifact_sha256
from pipeline.store.measurement import look as measurements
from pipeline.store.measurement import publish as publish_measurement
from pipeline.store.modes import private, shared, users_umask
from pipeline.store.regular import copy_checked, open_regular, read_checked, read_regular
from pipeline.store.results import (
    SEAL_BYTES,
    Result,
    StageHistory,
    cell_text,
    change_hdf5,
    check_seal,
    history_bytes,
    open_hdf5,
    publish_hdf5,
    read_history,
    read_result,
    result_bytes,
    result_in,
    sealed,
)

__all__ = [
    "MeasurementEntry",
    "artifact_sha256",
    "measurements",
    "publish_measurement",
    "Failure",
    "Peaks",
    "Requested",
    "Usage",
    "read_failure",
    "read_usage",
    "write_failure",
    "write_usage",
    "OWNER",
    "FileLock",
    "has_flock",
    "is_taken",
    "lives_here",
    "this_process",
    "SEAL_BYTES",
    "TEMPORARY",
    "Busy",
    "Result",
    "StageHistory",
    "cell_text",
    "change_hdf5",
    "check_seal",
    "clear_abandoned",
    "copy_checked",
    "damaged_parts",
    "fingerprint",
    "history_bytes",
    "is_done",
    "json_bytes",
    "last_attempt",
    "lock_cell",
    "make_folder",
    "manifest_bytes",
    "new_attempt",
    "open_hdf5",
    "open_regular",
    "private",
    "publish_bytes",
    "publish_folder",
    "publish_hdf5",
    "publish_json",
    "publish_new_folder",
    "read_checked",
    "read_history",
    "read_manifest",
    "read_regular",
    "read_result",
    "result_bytes",
    "result_in",
    "retract",
    "sealed",
    "set_aside",
    "sha256",
    "shared",
    "sync_folder",
    "users_umask",
    "verify",
    "verify_files",
    "withdraw",
    "write_manifest",
]
