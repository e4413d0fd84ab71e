"""The state of a cell between two epochs, on disk: written aside, checked, never half there.

``checkpoint/`` holds the last two states as ``state-N.safetensors`` and ``index.json``, which names
them with their SHA-256; replacing the index is the moment at which a new state begins to exist. A
state that does not match its checksum is set aside and the one before it is used. In the end only
``model.safetensors`` is left, the final weights, always the same bytes for the same weights: with
what the index says of them they are a state as well, so that a cell whose artifact or result was
damaged makes that anew without training.

There is no pickle: tensors are safetensors, the rest is JSON in their header. The random state is
not among them, since it follows from (seed, stage, epoch).
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of

from pipeline import clock, store, terminal
from pipeline.errors import Corrupt, first_line
from pipeline.models.network import ModelState, restore
from pipeline.models.spec import NetworkSpec
from pipeline.store import StageHistory, typed
from pipeline.training import bits
from pipeline.training.lookahead import Tensors
from pipeline.training.loop import Buffers, Training

KEPT = 2
GRACE, SHARE = 0.3, 0.03  # see Checkpointer
IMAGES = "images"  # in a header
LAYOUT = "channels_last"  # in a header: names of the tensors that lie so in memory; absent: none
BITS = "bits"  # in a file's text: name -> shape of each tensor of truth values
NAME = re.compile(r"(state-[0-9]+|model)\.safetensors")
SHA256 = re.compile(r"[0-9a-f]{64}")
# What a file that is no checkpoint of ours makes the code below raise.
UNREADABLE = (SafetensorError, RuntimeError, ValueError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True)
class Snapshot:
    """Where a cell stands: ``training.epoch`` epochs are done (0: not begun) of training number
    ``part`` (from 0) of the stage. ``facts``: of the training, for the result, once all of it is
    done; earlier versions kept none."""

    index: int
    stage: str
    training: Training
    history: tuple[StageHistory, ...]  # of the trainings before this one
    part: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    on_gpu: bool = False  # where the network was


def model_bytes(state: ModelState) -> bytes:
    """Weights and specification of a network, as one safetensors file."""
    tensors = {n: _plain(t) for n, t in state.network.state_dict().items()}
    return _file(tensors, "spec", state.spec.to_json())


def read_model(path: Path) -> ModelState:
    """The network in a file that ``model_bytes`` made; Corrupt when it is not one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Corrupt(f"{path}: cannot be read ({error.strerror})") from error
    try:
        described, tensors = _content(data, "spec")
        return restore(NetworkSpec.from_json(described), tensors)
    except UNREADABLE as error:
        raise Corrupt(f"{path}: not a readable model ({_told(error)})") from error


class Checkpointer:
    """Keeps snapshots of one cell. Writing happens in a thread of its own, one at a time, while the
    next epoch runs: the loop waits only for a copy of the tensors, on the device that has them.

    Where epochs are shorter than a writing, some are not kept: of all the time, the loop spends
    GRACE seconds and the part SHARE waiting for the snapshot before.

    ``images``: the fingerprint of those that the cell is trained on, since a folder's are in no
    cell's id. States of others are as good as damaged; those of earlier versions do not say.
    """

    def __init__(self, folder: Path, metrics: Path, images: str | None = None):
        self.folder, self.metrics, self.images = folder, metrics, images
        self._began, self._waited = clock.now(), 0.0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._index = self._read_index()

    def save(self, snapshot: Snapshot, wait: bool = False) -> None:
        """Raises OSError (a full disk) from this writing if ``wait``, else from the one before."""
        if not wait and not self._written():
            return
        self.wait()
        # All three are copies: the loop goes on changing what they were made from.
        work = _Copies(_tensors(snapshot)), self._header(snapshot), full_history(snapshot)
        self._thread = threading.Thread(target=self._write, args=work)
        self._thread.start()
        if wait:
            self.wait()

    def _written(self) -> bool:
        """Whether the snapshot before is on disk, waited for as long as the loop may."""
        if self._thread is None:
            return True
        began = clock.now()
        self._thread.join(max(0.0, GRACE + SHARE * (began - self._began) - self._waited))
        self._waited += clock.now() - began
        return not self._thread.is_alive()

    def finish(self, snapshot: Snapshot, path: Path) -> None:
        """Puts the final weights at ``path`` in place of all states; raises OSError."""
        self.wait()
        data = model_bytes(snapshot.training.state)
        self._publish(path.name, data, kept=1, state=self._header(snapshot))

    def close(self) -> None:
        """Until nothing is written any more, whatever became of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Until what was saved is on disk."""
        self.close()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def load(self) -> Snapshot | None:
        """The newest state that is whole; None when there is none.

        Damaged ones are set aside, and the attempt's log tells it: training that is repeated must
        not go unnoticed.
        """
        for entry in reversed(list(self._index)):
            path = self.folder / entry["file"]
            try:
                data = _checked(path, entry["sha256"])
                return _snapshot(data, path, entry.get("state"), self.images)
            except Corrupt as error:
                terminal.tell(f"{error}; set aside", begin="")
                self._index.remove(entry)  # else it would take the place of one that is whole
                if path.exists():
                    store.set_aside(path)
        return None

    def _write(self, copies: _Copies, header: dict[str, Any], history: list[StageHistory]) -> None:
        try:
            data = _file(copies.in_memory(), "netpress", header)
            self._publish(f"state-{self._next()}.safetensors", data, KEPT)
            store.publish_bytes(self.metrics, store.history_bytes(history))
        except BaseException as error:  # handed to the loop, which raises it
            self._error = error

    def _header(self, snapshot: Snapshot) -> dict[str, Any]:
        return {**_header(snapshot), IMAGES: self.images}

    def _next(self) -> int:
        return self._index[-1]["number"] + 1 if self._index else 1

    def _publish(self, name: str, data: bytes, kept: int, **more: Any) -> None:
        store.publish_bytes(self.folder / name, data)
        sha256 = hashlib.sha256(data).hexdigest()
        entry = {"number": self._next(), "file": name, "sha256": sha256, **more}
        index = [*self._index, entry][-kept:]
        store.publish_json(self.folder / "index.json", index)
        self._index = index
        self._remove_unnamed()

    def _remove_unnamed(self) -> None:
        named = {entry["file"] for entry in self._index}
        for path in self.folder.glob("state-*.safetensors"):
            if path.name not in named:
                path.unlink(missing_ok=True)

    def _read_index(self) -> list[dict[str, Any]]:
        path = self.folder / "index.json"
        try:
            return [_entry(e) for e in json.loads(path.read_bytes())]
        except FileNotFoundError:
            return []
        except UNREADABLE:
            store.set_aside(path)
            return []


def full_history(snapshot: Snapshot) -> list[StageHistory]:
    """The stages that are done, and the one that runs."""
    if not snapshot.training.epoch:
        return list(snapshot.history)
    columns = {k: list(v) for k, v in snapshot.training.columns.items()}
    return [*snapshot.history, StageHistory(snapshot.index, snapshot.stage, columns)]


class _Copies:
    """Of tensors, as they are now. Those on a GPU are copied there, which takes microseconds, and
    brought to the CPU by whoever writes them, while the GPU goes on training."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self.made: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in self.tensors.values()):
            self.made = torch.cuda.Event()
            self.made.record()

    def in_memory(self) -> dict[str, torch.Tensor]:
        """On the CPU, in the layout that files have; in any thread."""
        if self.made is None:
            return {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        self.made.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):  # else each would wait for the training
            return {name: tensor.cpu().contiguous() for name, tensor in self.tensors.items()}


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that training does not touch, on the CPU, in the layout that files have."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _tensors(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    training = snapshot.training
    tensors = {f"model.{n}": t for n, t in training.state.network.state_dict().items()}
    for name, kept in training.buffers.items():
        tensors |= {f"optimizer.{key}.{name}": t for key, t in kept.items()}
    return tensors | {f"average.{n}": t for n, t in training.averages.items()}


def _file(tensors: dict[str, torch.Tensor], name: str, described: dict[str, Any]) -> bytes:
    """A safetensors file, in which truth values (masks) take one bit each, with one text `name`:
    of several, safetensors writes now one first and now another, and equal states would differ."""
    stored, shapes = bits.packed(tensors)
    text = json.dumps(described | ({BITS: shapes} if shapes else {}))
    return bytes_of(stored, {name: text})


def _content(data: bytes, name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(the text `name`, the tensors) that ``_file`` was given; raises as UNREADABLE says."""
    described = json.loads(_metadata(data)[name])
    return described, bits.unpacked(tensors_of(data), described.pop(BITS, {}))


def _header(snapshot: Snapshot) -> dict[str, Any]:
    state = snapshot.training.state
    return {
        "index": snapshot.index,
        "stage": snapshot.stage,
        "part": snapshot.part,
        "epoch": snapshot.training.epoch,
        "spec": state.spec.to_json(),
        "columns": {k: list(v) for k, v in snapshot.training.columns.items()},
        "history": [[h.index, h.stage, h.columns] for h in snapshot.history],
        "facts": snapshot.facts,
        "on_gpu": any(t.is_cuda for t in state.network.parameters()),
        LAYOUT: [n for n, t in state.network.state_dict().items() if _channels_last(t)],
    }


def _channels_last(tensor: torch.Tensor) -> bool:
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return channels_last and not tensor.is_contiguous()


def _lay_out(state: ModelState, names: Collection[str]) -> None:
    """Brings tensors into the layout that they had when a snapshot was taken. Files have one layout
    for all, but sums over a tensor, and so what a stage chooses by them, depend on it."""
    for name, tensor in (*state.network.named_parameters(), *state.network.named_buffers()):
        if name in names:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)


def _checked(path: Path, expected: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Corrupt(f"{path}: cannot be read ({error})") from error
    if hashlib.sha256(data).hexdigest() != expected:
        raise Corrupt(f"{path}: its SHA-256 is not the one in index.json")
    return data


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of the index; what it raises means that the index is damaged."""
    sound = type(entry["number"]) is int and NAME.fullmatch(entry["file"])
    if not sound or not SHA256.fullmatch(entry["sha256"]):
        raise ValueError("not an entry of an index")
    return entry


def _snapshot(
    data: bytes, path: Path, header: dict[str, Any] | None = None, images: str | None = None
) -> Snapshot:
    """The state in a file; ``header`` where it holds plain weights, and is described elsewhere.
    Corrupt where it is none, or says that it is of other ``images``."""
    try:
        buffers, averages = Buffers(), dict[str, torch.Tensor]()
        if header is None:
            header, tensors = _content(data, "netpress")
            tensors, buffers, averages = _parts(tensors)
        else:
            _, tensors = _content(data, "spec")
        if None not in (images, header.get(IMAGES)) and header[IMAGES] != images:
            raise Corrupt(f"{path}: was trained on other images than those that are there now")
        state = restore(NetworkSpec.from_json(header["spec"]), tensors)
        _check_fit(buffers, averages, state)
        _lay_out(state, frozenset(header.get(LAYOUT, ())))
        training = Training(
            state, _count(header["epoch"]), buffers, averages, _columns(header["columns"])
        )
        history = tuple(
            StageHistory(_count(index), str(stage), _columns(columns))
            for index, stage, columns in header["history"]
        )
        index, part = _count(header["index"]), _count(header["part"])
        facts = typed.parsed("facts", json.dumps(header.get("facts", {})))
        on_gpu = header.get("on_gpu") is True
        return Snapshot(index, str(header["stage"]), training, history, part, facts, on_gpu)
    except UNREADABLE as error:
        raise Corrupt(f"{path}: not a readable checkpoint ({_told(error)})") from error


def _parts(tensors: Tensors) -> tuple[Tensors, Buffers, Tensors]:
    """(weights by name, what the optimizer remembers by parameter name, averages by name)."""
    weights: Tensors = {}
    buffers: Buffers = {}
    averages: Tensors = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            key, _, parameter = rest.partition(".")
            buffers.setdefault(parameter, {})[key] = tensor
        elif kind == "average":
            averages[rest] = tensor
        else:
            weights[rest] = tensor
    return weights, buffers, averages


def _check_fit(buffers: Buffers, averages: Tensors, state: ModelState) -> None:
    own = state.network.state_dict()
    for name, average in averages.items():
        if average.shape != own[name].shape:
            raise ValueError(f"the average of {name} has another shape")
    parameters = dict(state.network.named_parameters())
    for name, kept in buffers.items():
        if any(t.dim() and t.shape != parameters[name].shape for t in kept.values()):
            raise ValueError(f"what the optimizer keeps of {name} has another shape")


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"expected a count, got {str(value)[:50]}")
    return value


def _columns(columns: dict[Any, Any]) -> dict[str, list[float]]:
    return {str(name): [float(v) for v in values] for name, values in columns.items()}


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _metadata(data: bytes) -> dict[str, str]:
    """The header's text part: 8 bytes of length, then JSON (the safetensors format)."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])["__metadata__"]
