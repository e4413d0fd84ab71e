"""What is on disk: a result is either absent or complete.

files: atomic publication. locks: one process a cell. manifest: what is done. results: HDF5.
attempts: one run of a job for a cell, how it failed and what it used. Other layers use the names
here and know no module below.
"""

from pipeline.store.attempts import last_attempt, new_attempt
from pipeline.store.files import (
    TEMPORARY,
    json_bytes,
    make_folder,
    private,
    publish_bytes,
    publish_folder,
    publish_json,
    set_aside,
    sha256,
    sync_folder,
)
from pipeline.store.locks import HOLDER, Busy, lock_cell
from pipeline.store.manifest import (
    damaged_parts,
    is_done,
    manifest_bytes,
    read_manifest,
    verify,
    verify_files,
    withdraw,
    write_manifest,
)
from pipeline.store.results import (
    SEAL_BYTES,
    Result,
    StageHistory,
    cell_text,
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
    "HOLDER",
    "SEAL_BYTES",
    "TEMPORARY",
    "Busy",
    "Result",
    "StageHistory",
    "cell_text",
    "check_seal",
    "damaged_parts",
    "history_bytes",
    "is_done",
    "json_bytes",
    "last_attempt",
    "lock_cell",
    "make_folder",
    "manifest_bytes",
    "new_attempt",
    "open_hdf5",
    "private",
    "publish_bytes",
    "publish_folder",
    "publish_hdf5",
    "publish_json",
    "read_history",
    "read_manifest",
    "read_result",
    "result_bytes",
    "result_in",
    "sealed",
    "set_aside",
    "sha256",
    "sync_folder",
    "verify",
    "verify_files",
    "withdraw",
    "write_manifest",
]
