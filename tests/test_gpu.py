"""Speed on a GPU, as far as it goes without one: the same runtime on the CPU, without a graph; and
what a machine without a GPU makes of a sweep that asks for one. See tests/gpu for the rest."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
import torch._dynamo

from pipeline import catalog, done, hardware, nvml, runtimes, same_kind, sweep
from pipeline.errors import Corrupt, UserError
from pipeline.measure import cell as measuring
from pipeline.measure import energy, gpu, series
from pipeline.measure.series import ENERGY, THROUGHPUT, Series
from pipeline.models.network import fold, plain
from pipeline.paths import CODE, Work
from pipeline.report import content, json_rows, latex, provenance, views
from pipeline.report import gpu as reported
from pipeline.report.frames import Frames
from pipeline.report.measured import Measurement, _lent
from pipeline.report.row import _runtime_notes, identity, row
from pipeline.runtimes import onnxruntime as on_onnxruntime
from pipeline.runtimes import onnxruntime_gpu, tensorrt
from pipeline.runtimes.pytorch_cuda import Cuda
from pipeline.sweep import Measure
from pipeline.training import compiling
from tests import cells, results
from tests.test_techniques import deployed, made, split_of

SHORT = Measure(repeats=2, seconds=0.05, runtimes=("onnxruntime", "pytorch-cuda-fp16"))
ON_GPU = ("pytorch-cuda-bf16", "pytorch-cuda-fp16")
FP16 = "runtimes/pytorch-cuda-fp16"


@pytest.fixture
def on_cpu(monkeypatch):
    """The runtime of a GPU, on the CPU: the same networks and the same calls, but no graph."""
    row = Cuda("fp32", None, "cpu")  # CPUs are slow in half precision
    monkeypatch.setitem(runtimes.RUNTIMES, "pytorch-cuda-fp16", row)


def contenders(bench, technique: str) -> gpu.Contenders:
    return {
        model: gpu.Contender(deployed(bench, name), made(bench, name).state)
        for model, name in (("artifact", technique), ("base", "base"))
    }


# --- the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("precision, near", [("fp32", 1e-4), ("fp16", 0.01), ("bf16", 0.08)])
def test_it_runs_the_float_network_with_the_deployed_weights(bench, precision, near):
    state, pixels = made(bench, "ptq-int8").state, split_of(bench).test.pixels[:70].numpy()
    with torch.inference_mode():
        wanted = fold(plain(state)).network.eval()(torch.from_numpy(pixels)).numpy()
    loaded = Cuda(precision, None, "cpu").load(state, 1)
    every = np.arange(len(pixels))
    for some in (slice(1), slice(64), slice(None), slice(0, 70, 7)):
        logits = loaded.run(np.asfortranarray(pixels[some]))
        assert logits.dtype == np.float32 and logits.shape == (len(every[some]), 10)
        assert np.abs(logits - wanted[some]).max() <= near * np.abs(wanted).max()
    assert loaded.calls.of(2) is loaded.calls.of(64) and loaded.calls.of(1) is not loaded.calls.of(
        64
    )
    ran = Cuda(precision).kernels(state, (1, 8, 8))
    assert (ran.integer, ran.integer_share) == (0, 0.0) and ran.total == 9


def test_what_was_given_is_not_written_over_by_the_next_call(bench):
    pixels = split_of(bench).test.pixels[:128].numpy()
    loaded = Cuda("fp16", None, "cpu").load(made(bench, "base").state, 1)
    first = loaded.run(pixels[:64])
    kept = first.copy()
    assert not np.array_equal(loaded.run(pixels[64:]), kept)
    assert np.array_equal(first, kept)


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so(bench):
    state, pixels = made(bench, "base").state, split_of(bench).test.pixels[:1].numpy()

    def broken(graph, inputs):
        raise RuntimeError("no compiler\nat all")

    loaded = Cuda("fp32", broken, "cpu").load(state, 1)
    as_it_is = Cuda("fp32", None, "cpu").load(state, 1)
    assert np.array_equal(loaded.run(pixels), as_it_is.run(pixels))
    assert loaded.note == "not compiled: no compiler"


def test_any_number_of_networks_is_compiled(bench):
    """PyTorch would stop at eight variants of a function, and run the next ones as they are."""
    state, pixels = made(bench, "base").state, split_of(bench).test.pixels[:1].numpy()
    with torch._dynamo.config.patch(recompile_limit=1):
        loaded = [Cuda("fp32", "eager", "cpu").load(state, 1) for _ in range(3)]
        assert len({one.run(pixels).tobytes() for one in loaded}) == 1
    assert [one.note for one in loaded] == [None] * 3


# --- the other runtimes of a GPU -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["onnxruntime-gpu", "tensorrt"])
def test_what_is_not_installed_is_a_sentence_and_skipped(bench, name):
    told = Measure(repeats=2, seconds=0.05, runtimes=("onnxruntime", name))
    [(where, why)] = gpu.measured(contenders(bench, "base"), told, None).items()
    assert where == f"runtimes/{name}/skipped"
    assert why.startswith(f"runtime {name}: the Python package {name} is not installed")


def test_onnxruntime_gpu_is_the_runtime_of_the_cpu_with_another_provider(bench, monkeypatch):
    """Where there is no CUDA it cannot be had; with the CPU's provider it is the same session."""
    model = deployed(bench, "base")
    pixels = split_of(bench).test.pixels[:5].numpy()
    monkeypatch.setattr(onnxruntime_gpu, "providers", lambda: ["CPUExecutionProvider"])
    logits = onnxruntime_gpu.load(model.model, 1).run(pixels)
    assert np.array_equal(logits, runtimes.session(model, 1).run(pixels))
    assert onnxruntime_gpu.kernels(model.model, model.shape) == runtimes.kernels(model)
    monkeypatch.undo()  # this distribution has no CUDA: it runs the model on the CPU, and warns
    warned = pytest.warns(UserWarning, match="CUDAExecutionProvider")
    with warned, pytest.raises(RuntimeError, match="CUDAExecutionProvider could not be loaded"):
        onnxruntime_gpu.load(model.model, 1)
    where = "9 of its 9 products run on CPUExecutionProvider"
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match=where):
        onnxruntime_gpu.kernels(model.model, model.shape)


def test_tensorrt_is_given_the_artifacts_graph_in_half_precision(bench):
    model, pixels = deployed(bench, "base"), split_of(bench).test.pixels[:64].numpy()
    half = tensorrt.in_half(onnx.load_model_from_string(model.model))
    onnx.checker.check_model(half, full_check=True)
    kinds = {tensor.data_type for tensor in half.graph.initializer}
    assert onnx.TensorProto.FLOAT not in kinds and onnx.TensorProto.FLOAT16 in kinds
    wanted = runtimes.session(model, 1).run(pixels)
    logits = on_onnxruntime.load(half.SerializeToString(), 1).run(pixels)
    assert logits.dtype == np.float32
    assert 0 < np.abs(logits - wanted).max() <= 0.02 * np.abs(wanted).max()
    assert tensorrt._sizes(half) == (model.shape, 10)
    assert tensorrt.kernels(model.model, model.shape) == (0, 9, 0.0)


def test_tensorrt_is_given_what_is_quantized_with_symmetric_activations(bench, monkeypatch):
    """Its numbers are those of tests/test_symmetric.py; here, that they are what it is given."""
    model, pixels = deployed(bench, "ptq-int8"), split_of(bench).test.pixels.numpy()
    graph, note = tensorrt.given(model.model)
    assert note == "int8 with symmetric activations: 7 to 8 bits where the artifact has 8"
    onnx.checker.check_model(graph, full_check=True)
    wanted = runtimes.session(model, 1).run(pixels)
    logits = on_onnxruntime.load(graph.SerializeToString(), 1).run(pixels)
    assert 0 < np.abs(logits - wanted).max() <= 0.05 * np.ptp(wanted)
    kernels, whole = tensorrt.kernels(model.model, model.shape), runtimes.kernels(model)
    assert (kernels.integer, kernels.total) == (whole.total - 1, whole.total) == (8, 9)
    given = []
    monkeypatch.setattr(tensorrt, "_engine", lambda model, shape: given.append(model))
    loaded = tensorrt.load(model.model, 1)
    assert given == [graph.SerializeToString()]
    assert (loaded.note, loaded.shape, loaded.classes) == (note, model.shape, 10)
    assert tensorrt.load(deployed(bench, "base").model, 1).note is None
    other = onnx.load_model_from_string(model.model)
    other.graph.node[-1].op_type = "MatMulInteger"
    with pytest.raises(ValueError, match="it has integer operators that are not between"):
        tensorrt.load(other.SerializeToString(), 1)


# --- a measurement -------------------------------------------------------------------------------


def test_base_and_compressed_are_measured_in_turns(bench, on_cpu):
    mine, base = (
        measuring.Candidate(made(bench, n).state, deployed(bench, n)) for n in ("ptq-int8", "base")
    )
    ticks: list[str] = []
    with cells.one_core():
        measured = measuring.measure(
            mine, base, split_of(bench), SHORT, torch.device("cpu"), ticks.append
        )
    name = "pytorch-cuda-fp16"
    expected = {
        Series(name, model, "all", batch, "cuda")
        for model, batch in itertools.product(("artifact", "base"), (1, 64, 1024))
    }
    timed = set(filter(None, map(series.parse, measured)))
    assert {one for one in timed if one.runtime == name} == expected
    assert all(len(measured[one.name]) == 2 for one in expected)
    assert all(measured[one.named(THROUGHPUT)] > 0 for one in expected)
    assert measured[f"{FP16}/agreement"] >= 0.98 and measured[f"{FP16}/integer_share"] == 0.0
    assert abs(measured[f"{FP16}/accuracy"] - measured["accuracy"]) <= 0.02
    assert name in ticks and gpu.ran(SHORT.runtimes, measured) == list(SHORT.runtimes)
    assert not any(one.startswith("energy/") and "cuda" in one for one in measured)  # no card


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_without_a_gpu_it_costs_a_line_and_nothing_else(bench, tmp_path, monkeypatch):
    told = {"measure": cells.MEASURE | {"runtimes": ["onnxruntime", "pytorch-cuda"]}}
    training = cells.TRAINING | {"epochs": 1, "train_images": 64, "test_images": 64}
    cell = cells.cells(tmp_path, ["base"], training=training, **told)["base"]
    assert cell.measure.runtimes == ("onnxruntime", *ON_GPU)
    work, events = Work(tmp_path / "work"), []
    monkeypatch.setenv(compiling.CACHE, "")  # so that it is put back
    monkeypatch.delenv(compiling.CACHE)
    cells.run(cell, work, events.append)
    assert os.environ[compiling.CACHE] == str(work.compiled)  # not the folder in /tmp
    result = cells.result(work.cell(cell.id))
    for name in ON_GPU:
        why = f"runtime {name}: there is no GPU that CUDA can use"
        assert result.measured[f"runtimes/{name}/skipped"] == why
        assert f"{name}: skipped, {why}" in [event.get("what") for event in events]
    assert result.facts["runtimes"] == ["onnxruntime", "pytorch"]
    with cells.one_core():
        assert result.facts["machine"] == hardware.machine()["machine"]
    assert done.is_done(cell, work)


def test_a_batch_without_room_is_left_out_and_a_model_that_cannot_run_is_skipped(
    bench, monkeypatch
):
    class Small(Cuda):
        def load(self, model, threads):
            loaded = super().load(model, threads)
            return SimpleNamespace(run=lambda images: self.within(images, loaded))

        def within(self, images, loaded):
            if len(images) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
            return loaded.run(images)

    monkeypatch.setitem(runtimes.RUNTIMES, "pytorch-cuda-fp16", Small("fp32", None, "cpu"))
    most, both = 64, contenders(bench, "base")
    measured, why = gpu.measured(both, SHORT, None), "CUDA out of memory. Tried to allocate 2 GiB"
    assert measured[f"{FP16}/left_out"] == f"batches of 1024 and more: {why}"
    assert {one.batch for one in filter(None, map(series.parse, measured))} == {1, 64}
    most = 0
    assert gpu.measured(both, SHORT, None) == {f"{FP16}/skipped": why}


def test_where_there_is_no_network_it_is_skipped(bench, on_cpu):
    """As of a report, which has artifacts only."""
    both = contenders(bench, "base")
    only = {model: one._replace(state=None) for model, one in both.items()}
    [(name, why)] = gpu.measured(only, SHORT, None).items()
    assert name == f"{FP16}/skipped"
    assert why.startswith("runtime pytorch-cuda-fp16: runs networks of PyTorch, not artifacts")
    with pytest.raises(UserError, match="not artifacts"):
        runtimes.session(both["base"].artifact, 1, "pytorch-cuda-fp16")
    broken = replace(made(bench, "base").state, network=None)
    with pytest.raises(Corrupt, match="cannot load it"):
        runtimes.session(both["base"].artifact, 1, "pytorch-cuda-fp16", broken)


def test_a_series_has_three_names():
    one = Series("pytorch-cuda-bf16", "base", "all", 1024, "cuda")
    assert one.name == "latency/pytorch-cuda-bf16@cuda/base/all/batch1024"
    assert one.named(ENERGY) == "energy/pytorch-cuda-bf16@cuda/base/all/batch1024"
    assert series.parse(one.named(ENERGY)) is None and series.parse(one.name, ENERGY) is None
    assert series.parse(one.named(ENERGY), ENERGY) == series.parse(one.name) == one


# --- energy --------------------------------------------------------------------------------------


def test_energy_is_counted_from_step_to_step_of_the_counter():
    """A card's counter moves every few runs: what is counted is whole steps, and the runs in them.
    Here each run costs 6 J, and the counter shows every third."""
    runs = 0

    def run() -> None:
        nonlocal runs
        runs += 1

    reading = energy.steady(run, 4, 0.01, lambda: runs // 3 * 18.0)
    assert reading.joules_per_image == pytest.approx(1.5) and reading.images_per_s > 0
    assert energy.steady(run, 4, 0.0, None).joules_per_image is None
    assert energy.steady(run, 4, 0.0, lambda: 7.0).joules_per_image is None  # it stands still
    assert energy.steady(run, 4, 0.0, lambda: None).joules_per_image is None


def powercap(folder, **domains: tuple[str, str, str]):
    for place, texts in domains.items():
        of = folder / place.replace("_", ":")
        of.mkdir(parents=True)
        for name, text in zip(("name", "energy_uj", "max_energy_range_uj"), texts, strict=True):
            (of / name).write_text(f"{text}\n")
    return folder


def test_a_cpus_energy_is_that_of_its_packages_and_memory(tmp_path, monkeypatch):
    named = {
        "intel-rapl_0": ("package-0", "900000", "1000000"),
        "intel-rapl_0_0": ("core", "800000", "1000000"),  # a part of the package
        "intel-rapl_0_1": ("dram", "100000", "1000000"),
        "intel-rapl_1": ("package-1", "500000", "1000000"),
        "intel-rapl_2": ("psys", "5000000", "9000000"),  # all of the others once more
    }
    folder = powercap(tmp_path, **named)
    monkeypatch.setattr(hardware, "cores", lambda: 8)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    meter = energy.of_cpu(folder)
    assert meter is not None and meter() == pytest.approx(1.5)
    (folder / "intel-rapl:0" / "energy_uj").write_text("100000\n")  # began again from zero
    assert meter() == pytest.approx(1.7)
    (folder / "intel-rapl:1" / "energy_uj").write_text("600000\n")
    assert meter() == pytest.approx(1.8)
    monkeypatch.setattr("os.cpu_count", lambda: 16)  # others use the rest of it
    assert energy.of_cpu(folder) is None
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    (folder / "intel-rapl:1" / "energy_uj").unlink()  # as for those who may not read it
    assert meter() is None and energy.of_cpu(folder) is None
    assert energy.of_cpu(tmp_path / "nothing") is None


DRIVER = r"""
#include <string.h>
static unsigned long long used = 0;
int nvmlInit_v2(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    if (length < 80) return 7;
    strcpy(text, "580.65.06");
    return 0;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **card) {
    if (strcmp(uuid, "GPU-1234") && strcmp(uuid, "GPU-old")) return 6;
    *card = (void *)(uuid[4] == 'o' ? 0x100000002 : 0x100000001);
    return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *card, unsigned long long *energy) {
    if (card != (void *)0x100000001) return 3;
    *energy = (6000000000ULL + (used += 250));
    return 0;
}
"""


def test_the_driver_is_called_as_its_library_asks_for(tmp_path, monkeypatch):
    """By a library with the same functions: handles of 64 bits, counters beyond 32."""
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "driver.c"], check=True)
    monkeypatch.setattr(nvml, "LIBRARY", str(library))
    nvml._library.cache_clear()
    try:
        assert nvml.driver() == "580.65.06"
        meter = nvml.energy("1234")
        assert meter is not None and nvml.energy("GPU-1234") is not None
        first, second = meter(), meter()
        assert first > 6_000_000 and second - first == pytest.approx(0.25)
        assert nvml.energy("5678") is None  # no such card
        assert nvml.energy("old") is None  # one that does not count
    finally:
        nvml._library.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_without_a_driver_nothing_is_told():
    assert nvml.driver() is None and nvml.energy("1234") is None and energy.of_gpu() is None


# --- tests/gpu -----------------------------------------------------------------------------------


SLOW = """
import time

def test_that_fails():
    assert "this" == "that"

def test_that_takes_its_time():
    open("begun", "w").close()
    time.sleep(600)
"""


def test_tests_whose_time_is_over_tell_what_they_found(tmp_path):
    (tmp_path / "test_slow.py").write_text(SLOW)
    command = [sys.executable, "-m", "pytest", "-n", "0", "-v", "--tb=short", "-c", "/dev/null"]
    process = subprocess.Popen(
        [*command, "--rootdir", ".", "-p", "tests.gpu.conftest", "test_slow.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CODE)},
        stdout=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    told = process.communicate(timeout=60)[0]
    assert "FAILED test_slow.py::test_that_fails - AssertionError" in told
    assert "test_slow.py:5: in test_that_fails" in told


def test_what_only_a_gpu_can_show_is_eight_files_at_most(tmp_path):
    """With a Python that says what it is called with."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "CALLED $*"\n')
    python.chmod(0o755)
    (tmp_path / "tmp").mkdir()
    environment = {"PYTHON": str(python), "PARTS": "3", "TMPDIR": str(tmp_path / "tmp")}
    ran = subprocess.run(
        [CODE / "tests/gpu/all", tmp_path / "made"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    made = {file.name: file.read_text() for file in (tmp_path / "made").iterdir()}
    logs = {f"{part}.log" for part in ("training", "deployed", "sweep", "recipe", "tests")}
    assert made.keys() == {"gpu.yaml", *logs} and not any((tmp_path / "tmp").iterdir())
    calls = {name: text.count("CALLED") for name, text in made.items()}
    assert [calls[name] for name in sorted(logs)] == [1, 1, 3, 4, 2]
    assert len(sweep.load(tmp_path / "made/gpu.yaml", catalog.built_in()).cells) == 4


# --- a report ------------------------------------------------------------------------------------


def measured_on(card: str, cell, ms: float):
    """A row of a cell that was measured on this card as well."""
    name = "pytorch-cuda-bf16"
    measured = {"accuracy": 0.9, "stored_bytes": 10, f"runtimes/{name}/note": "not compiled: <x>"}
    for batch, model in itertools.product((1, 64, 1024), ("artifact", "base")):
        one = Series(name, model, "all", batch, "cuda")
        measured[one.name] = np.array([ms * batch * (2 if model == "base" else 1)] * 3)
        measured[one.named(THROUGHPUT)] = 1e3 / ms
        measured[one.named(ENERGY)] = 0.0015
    here = {"cpu": "A CPU", "flags": [], "cores": 2, "gpu": card, "gpu_driver": "580.65"}
    machine = hardware.machine_name("A CPU", 2, card)
    facts = results.FACTS | {"hardware": here, "machine": machine}
    return row(identity(cell), results.store.Result(cell.id, {}, facts, [], measured))


def test_a_report_shows_what_a_gpu_made_of_it():
    sweep = results.sweep(techniques=("half",))
    rows = [measured_on("NVIDIA H200", cell, 0.5) for cell in sweep.cells]
    section = reported.section(Frames.of(rows, ()))
    [table] = section.tables
    shown = [[value.text for value in line] for line in table.lines]
    where = ["pytorch-cuda-bf16", "NVIDIA H200", "1"]
    speeds = ["0.500", "32.0", "512"]
    assert shown == [
        ["base", *where, *speeds, "1.00", "1.00", "1.00", "2,000", "1.50"],
        ["half", *where, *speeds, "2.00", "2.00", "2.00", "2,000", "1.50"],
    ]
    assert section.notes[-1] == (f"{where[0]}: not compiled: <x> (base, half).",)
    assert latex.tables([section])  # its names are fit for files
    assert json_rows.row_json(rows[1])["gpu"]["pytorch-cuda-bf16"]["batch1024"] == {
        "p50": 512.0,
        "p90": 512.0,
        "p99": 512.0,
        "speedup": 2.0,
        "images_per_s": 2000.0,
        "joules_per_image": 0.0015,
    }
    assert views.machine_of(rows[0]) == "A CPU, 2 cores, NVIDIA H200"
    assert ("GPU", "NVIDIA H200, driver 580.65") in provenance._machines(Frames.of(rows, ()))


def test_a_report_shows_the_energy_of_a_cpu_where_it_is_told():
    cells = results.sweep(techniques=("half",)).cells
    joules = {"base": 0.0123, "half": 0.006}
    rows = []
    for cell in cells:
        measured = results.measured(cell)
        for batch, factor in ((1, 2.0), (64, 1.0)):
            series_of = Series("onnxruntime", "artifact", "all", batch)
            measured[series_of.named(ENERGY)] = factor * joules[cell.technique]
        rows.append(
            row(identity(cell), results.store.Result(cell.id, {}, results.FACTS, [], measured))
        )
    section = content.results(Frames.of(rows, ()))
    [table] = section.tables
    energy = [i for i, column in enumerate(table.columns) if column.group == "energy"]
    assert [table.columns[i].heading for i in energy] == [
        "energy an image, batch 1, mJ",
        "energy an image, batch 64, mJ",
    ]
    shown = [[line[i].text for i in energy] for line in table.lines]
    assert shown == [["24.6", "12.3"], ["12.0", "6.00"]]
    assert content.ABOUT_ENERGY in section.notes
    assert json_rows.row_json(rows[1])["joules_per_image"] == {"batch1": 0.012, "batch64": 0.006}
    none = content.results(Frames.of([replace(one, joules_per_image={}) for one in rows], ()))
    assert content.ABOUT_ENERGY not in none.notes
    assert not any(column.group == "energy" for column in none.tables[0].columns)


def test_a_report_without_a_gpu_has_no_such_section():
    sweep = results.sweep(techniques=("half",))
    ran = {"latencies": {}, "runtime_notes": ()}
    rows = [replace(measured_on("x", cell, 1.0), **ran) for cell in sweep.cells]
    assert reported.section(Frames.of(rows, ())) is None
    assert json_rows.row_json(rows[0])["gpu"] == {}


def test_a_report_names_a_runtime_of_a_gpu_that_was_skipped():
    measured = {"runtimes/pytorch-cuda-bf16/skipped": "this machine has no GPU that CUDA can use"}
    [note] = _runtime_notes(measured)
    assert note == "pytorch-cuda-bf16: skipped, this machine has no GPU that CUDA can use"
    [cell, *_] = results.sweep(techniques=("half",)).cells
    skipped = replace(measured_on("x", cell, 1.0), latencies={}, runtime_notes=(note,))
    section = reported.section(Frames.of([skipped], ()))
    assert section.tables == () and "".join(section.about[0]).startswith(note)


def test_speed_and_energy_are_lent_to_no_other_machine():
    one = Series("pytorch-cuda-bf16", "artifact", "all", 64, "cuda")
    values = {one.name: 1, one.named(ENERGY): 2, one.named(THROUGHPUT): 3, "accuracy": 0.9}
    classified = Measurement("board-1", {"machine": "board"}, values)
    assert _lent(classified, "other") == _lent(classified, "board") == {"accuracy": 0.9}
    assert [n for n in values if same_kind._is_taken(n, ["onnxruntime"])] == ["accuracy"]


def test_a_machine_is_named_after_its_gpu_where_that_was_measured():
    named = hardware.machine_name
    assert named("AMD EPYC", 2) == "AMD-EPYC-2c"
    assert named("AMD EPYC", 2, "NVIDIA H200") == "AMD-EPYC-2c-NVIDIA-H200"
    longest = named("x" * 99, 1024, "NVIDIA " + "y" * 99, "avx512_vnni avx_vnni")
    assert len(longest) <= 64
