"""Files whose checksums are right and whose contents are somebody else's: results.h5, artifacts,
sweep files. Each is made from a sound one by a random change, and read in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx

from pipeline import artifact, catalog, report, runtimes, store, sweep, terminal
from pipeline.errors import Corrupt, UserError
from pipeline.paths import ReportPaths, Work
from pipeline.report import merged
from tests import results, strangers
from tests.scenarios import some_sweep

MOST_KIB, MOST_S = 1 << 20, 30
BARE_KIB = 256 << 10  # of these, what `netpress report` takes before it reads anything
TEXTS = ("", "\x1b]0;x\x07", "\u202e", "x" * 100_000, "../../etc", "NaN", "\x00", "$(id)", "猫")
VALUES: tuple[Any, ...] = (
    *TEXTS,
    None,
    True,
    -1,
    0,
    2**31,
    2**63 - 1,
    10**400,
    1e308,
    -1e308,
    0.5,
    float("nan"),
    float("inf"),
    [],
    {},
    [[[]]],
    [1] * 1000,
    {"a": {"b": {}}},
)
ARRAYS: tuple[Any, ...] = (
    np.zeros(0),
    np.full(3, np.nan),
    np.full(3, np.inf),
    np.full(3, -1e308),
    np.zeros((2, 2)),
    np.arange(1000, dtype=np.uint64) + 2**63,
    np.array([b"x"]),
    np.float64(np.nan),
    np.int64(-1),
    np.zeros((2, 3, 4, 5), np.uint8),
    np.full(100_000, 65_535, np.uint16),
)
SWEEP = """\
name: mine
models: [vgg16_bn, {name: vgg11_bn, width: 0.5}]
datasets: [mnist, {name: digits, training: {epochs: 3}}]
techniques: [base, ptq-int8, small]
seeds: [0, 1]
training: {epochs: 2, batch_size: 64}
measure: {repeats: 2, seconds: 0.1}
exclude: [{dataset: mnist, technique: small}]
define: {small: [{prune: {parameters_kept: 0.5}}, {finetune: {epochs: 1}}]}
grid: {small: {prune.parameters_kept: [0.5, 0.25]}}
"""


def exported(folder: Path) -> Path:
    return strangers.write(folder, strangers.model())


def identity(folder: Path) -> object:
    loaded = artifact.load(folder)
    return loaded.classes, loaded.shape, hashlib.sha256(loaded.model).hexdigest()


# --- changes ---------------------------------------------------------------------------------


def json_value(value: Any, every: random.Random) -> Any:
    """The value with one part of it replaced, renamed or taken away."""
    if isinstance(value, dict) and value and every.random() < 0.9:
        key = every.choice(sorted(value))
        if every.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: json_value(value[key], every)}
    if isinstance(value, list) and value and every.random() < 0.8:
        place = every.randrange(len(value))
        return [*value[:place], json_value(value[place], every), *value[place + 1 :]]
    return every.choice(VALUES)


def _text(value: Any, every: random.Random, indent: int | None = None) -> str:
    text = json.dumps(value, indent=indent)
    if every.random() < 0.1:
        return text.replace('"', '"\\ud800', 1)
    return text[: every.randrange(len(text))] if every.random() < 0.1 else text


def change_results(path: Path, every: random.Random) -> None:
    with h5py.File(path, "r+") as file:
        places: list[str] = []
        file.visit(places.append)
        place = every.choice(places)
        owner = (
            file[place]
            if every.random() < 0.5
            else file["cells"][every.choice(sorted(file["cells"]))]
        )
        if len(owner.attrs) and every.random() < 0.7:
            _change_attribute(owner, every)
        elif place in ("gaps", "usage", "order", "text"):
            value = json.loads(file[place][()]) if place != "text" else "x"
            del file[place]
            file[place] = np.bytes_(_text(json_value(value, every), every).encode() or b"x")
        else:
            _change_member(file, place, every)
    path.write_bytes(store.sealed(path.read_bytes()))


def _change_attribute(owner: h5py.Group, every: random.Random) -> None:
    name = every.choice(sorted(owner.attrs))
    value = owner.attrs[name]
    if isinstance(value, str) and value.startswith("{") and every.random() < 0.8:
        owner.attrs[name] = _text(json_value(json.loads(value), every), every).replace("\x00", "")
    elif every.random() < 0.2:
        del owner.attrs[name]
    else:
        new = every.choice([np.int64(-1), np.ones((2, 2)), np.bytes_(b"\xff\xfe"), "x", 1.5])
        owner.attrs[name] = new


def _change_member(file: h5py.File, place: str, every: random.Random) -> None:
    parent, name = file[place].parent, place.rpartition("/")[2]
    kind = every.randrange(6)
    if kind < 3:
        del file[place]
        parent[name] = every.choice(ARRAYS)
    elif kind == 3:
        del file[place]
    elif kind == 4:
        parent[every.choice(TEXTS).replace("\x00", "").replace("/", "") or "x"] = file[place]
    else:
        del file[place]
        parent[name] = h5py.SoftLink("/") if every.random() < 0.5 else file["/"]


def change_model(data: bytes, every: random.Random) -> bytes:
    model = onnx.load_model_from_string(data)
    node = every.choice(model.graph.node)
    kind = every.randrange(8)
    if kind == 0:
        node.op_type = every.choice(("Loop", "If", "Concat", "Expand", "Conv", "Resize", "Range"))
    elif kind == 1:
        node.input[0] = every.choice([i.name for i in model.graph.initializer] + ["", "logits"])
    elif kind == 2:
        tensor = every.choice(model.graph.initializer)
        tensor.dims[0] = every.choice((0, -1, 2**40, 1))
    elif kind == 3:
        name = every.choice(("axis", "to", "perm", "strides", "pads", "group"))
        number = every.choice((-1, 0, 2**40, 7))
        ints = every.random() < 0.5
        node.attribute.append(onnx.helper.make_attribute(name, [number] * 4 if ints else number))
    elif kind == 4:
        model.graph.node.extend([node] * every.choice((1, 30_000)))
    elif kind == 5:
        model.opset_import[0].version = every.choice((0, 1, 7, 99, 2**40))
    else:
        changed = bytearray(data)
        for _ in range(every.choice((1, 5, 50))):
            changed[every.randrange(min(len(changed), 400))] = every.randrange(256)
        return bytes(changed)
    return model.SerializeToString()


# --- reading ---------------------------------------------------------------------------------


def _read_results(path: Path, draw: bool) -> None:
    published = merged.read(path)
    for cell_id in published.frames.ids:
        published.result(cell_id)
        published.evidence(cell_id)
        published.artifact(cell_id)
    json.dumps(report.as_json(published.frames))
    published.frames.cells.to_csv()
    if draw:
        report.made(published, ReportPaths(path.parent))


def _run_model(folder: Path) -> None:
    loaded = artifact.load(folder)
    loaded.unfit()
    session = runtimes.session(loaded, threads=1)
    for _ in runtimes.logits(session, np.zeros((3, *loaded.shape), np.uint8)):
        pass


def cpu_s() -> int:
    return int(time.process_time()) + 1


def _attempt(act: Callable[[], object]) -> str:
    """What was not held, in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        problem = "ended by itself"
        inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # what a run of pytest has
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_s() + MOST_S, cpu_s() + MOST_S + 5))
            signal.alarm(20 * MOST_S)  # of a clock that others use as well
            act()
            problem = ""
        except (Corrupt, UserError) as error:
            line = terminal.sentence(error)
            problem = "" if line.isprintable() and len(line) <= 500 else f"no sentence: {line}"
        except BaseException:
            problem = traceback.format_exc()[-1500:]
        finally:
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - inherited + BARE_KIB
            problem = problem or (f"{used >> 10} MiB" if used > MOST_KIB else "")
            os.write(writer, problem.encode(errors="replace"))
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        problem = file.read().decode()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return problem or (f"ended by signal {-code}" if code else "")


def attack(
    note: Callable[[str, str], None], tries: int, until: float, seed: int = 0, draw: int = 20
) -> None:
    """`note` gets what was tried, and what was not held. Every `draw`-th report is made whole."""
    every = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = _sound_results(folder)
        model = strangers.model().SerializeToString()
        manifest = json.loads((exported(folder / "exported") / "manifest.json").read_bytes())
        del manifest["seal"]
        for i in range(tries):
            if time.monotonic() > until:
                return
            path = folder / "results.h5"
            if i % 2:
                path.write_bytes(whole)
                change_results(path, every)
                drawn = i % draw == 1
                note("results.h5", _attempt(lambda p=path, d=drawn: _read_results(p, d)))
            elif i % 4 == 0:
                model_folder = strangers.write(folder / "a", change_model(model, every))
                note("model.onnx", _attempt(lambda f=model_folder: _run_model(f)))
            elif i % 8 == 2:
                model_folder = strangers.write(folder / "a", model)
                text = _text(json_value(manifest, every), every, indent=1) + "\n"
                (model_folder / "manifest.json").write_bytes(store.with_seal(text.encode()))
                note("manifest.json", _attempt(lambda f=model_folder: _run_model(f)))
            else:
                yaml = folder / "mine.yaml"
                yaml.write_text(_changed_sweep(every))
                note("sweep.yaml", _attempt(lambda y=yaml: sweep.load(y, catalog.built_in())))


def _sound_results(folder: Path) -> bytes:
    some, work = some_sweep(), Work(folder / "work")
    for cell in some.cells:
        results.publish(cell, work, results.recorded(cell))
        results.ran_as_job(cell, work)
    return merged.write(
        some_sweep("base, ptq-int8, kd"), work, folder / "sound.h5"
    ).path.read_bytes()


def _changed_sweep(every: random.Random) -> str:
    lines = SWEEP.splitlines()
    place = every.randrange(len(lines))
    key, _, value = lines[place].partition(": ")
    new = every.choice(VALUES)
    shown = json.dumps(new) if not isinstance(new, str) else f'"{new}"'.replace("\x00", "")
    lines[place] = every.choice(
        (f"{key}: {shown}", f"{value}", f"{key}: [{shown}, {value}]", f"{key}: &a [*a]", "")
    )
    return "\n".join(lines)
