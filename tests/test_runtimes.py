"""Runtimes: the same classes on each, integers where the model has them, else one sentence."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline import artifact, catalog, done, execute, runtimes, store
from pipeline.errors import Corrupt, UserError
from pipeline.measure import cell as measuring
from pipeline.measure import series
from pipeline.measure.series import Series
from pipeline.models import network
from pipeline.orchestrate import rehearse
from pipeline.paths import CODE, Work
from pipeline.report import frames
from pipeline.report.row import identity, row
from pipeline.runtimes import openvino
from pipeline.sweep import Cell, Measure
from pipeline.sweep.settings import GROUPS, RUNTIMES
from pipeline.verify import artifacts as verified
from tests import cells, strangers
from tests.test_techniques import deployed, made, split_of

OF_ARTIFACTS = ["onnxruntime", "openvino"]
BOTH = Measure(repeats=2, seconds=0.1, runtimes=("onnxruntime", "openvino"))


@pytest.fixture
def tiny(tmp_path):
    return artifact.load(strangers.write(tmp_path / "tiny", strangers.model()))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, *strangers.SHAPE), np.uint8)


# --- the same model ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["base", "ptq-int8"])
def test_all_runtimes_name_the_same_classes(bench, name):
    pixels, deployed_artifact = split_of(bench).test.pixels.numpy(), deployed(bench, name)
    sessions = {r: runtimes.session(deployed_artifact, 1, r) for r in OF_ARTIFACTS}
    sessions["pytorch"] = runtimes.reference(made(bench, name).state, 1)
    predicted = {}
    for runtime, session in sessions.items():
        scores = np.concatenate(list(runtimes.logits(session, pixels)))
        assert scores.shape == (len(pixels), 10) and scores.dtype == np.float32
        predicted[runtime] = scores.argmax(1)
    for runtime, classes in predicted.items():
        assert np.mean(classes == predicted["onnxruntime"]) >= 0.998, runtime


@pytest.mark.parametrize("name, share", [("base", 0.0), ("ptq-int8", 1.0)])
@pytest.mark.parametrize("runtime", OF_ARTIFACTS)
def test_integers_are_computed_where_the_model_has_them(bench, runtime, name, share):
    ran = runtimes.kernels(deployed(bench, name), runtime)
    assert (ran.integer, ran.total, ran.integer_share) == (9 * share, 9, share)


@pytest.mark.parametrize("runtime", OF_ARTIFACTS)
def test_a_float_model_is_computed_in_float32(bench, runtime):
    """Not in bfloat16, whatever this CPU could do faster."""
    state, pixels = made(bench, "base").state, split_of(bench).test.pixels[:64]
    with torch.inference_mode():
        expected = network.fold(state).network.eval()(pixels).numpy()
    logits = runtimes.session(deployed(bench, "base"), 1, runtime).run(pixels.numpy())
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("runtime", OF_ARTIFACTS)
def test_any_number_of_images_of_any_layout_in_memory(tiny, images, runtime):
    session = runtimes.session(tiny, 2, runtime)
    whole = session.run(images)
    assert np.allclose(session.run(images[:1]), whole[:1], rtol=1e-5)
    assert np.allclose(session.run(images[::2]), whole[::2], rtol=1e-5)
    turned = np.asfortranarray(images)
    assert np.allclose(session.run(turned), whole, rtol=1e-5)
    assert np.array_equal(whole, session.run(images))  # what was given is not written over later


def test_openvino_has_the_threads_that_it_is_told_and_pins_none(tiny):
    compiled = runtimes.session(tiny, 1, "openvino").inner.model
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("ENABLE_CPU_PINNING") is False
    assert str(compiled.get_property("PERFORMANCE_HINT")).endswith("LATENCY")


def test_the_reference_gives_pytorch_its_threads_back(bench):
    before = torch.get_num_threads()
    session = runtimes.reference(made(bench, "base").state, before + 1)
    session.run(split_of(bench).test.pixels[:2].numpy())
    assert torch.get_num_threads() == before


# --- sentences ---------------------------------------------------------------------------------

WITHOUT = """
import sys
sys.modules["openvino"] = None
from pipeline import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_runtime_that_is_not_installed_is_a_sentence(tiny, tmp_path):
    image = strangers.image(tmp_path / "image.png")
    arguments = ("-c", WITHOUT, "predict", str(tiny.folder), str(image))
    assert cells.python(*arguments).returncode == 0
    ran = cells.python(*arguments, "--runtime", "openvino")
    assert (ran.returncode, ran.stdout) == (2, "")
    [line] = ran.stderr.splitlines()
    assert "runtime openvino: the Python package openvino is not installed" in line
    assert "`pip install openvino`" in line


def test_a_name_that_is_no_runtime_of_artifacts_is_a_sentence(tiny):
    with pytest.raises(UserError, match="unknown runtime 'openvin', did you mean 'openvino'"):
        runtimes.session(tiny, 1, "openvin")
    with pytest.raises(UserError, match="not artifacts; expected one of: onnxruntime, openvino"):
        runtimes.session(tiny, 1, "pytorch")


@pytest.mark.parametrize("runtime", OF_ARTIFACTS)
@pytest.mark.parametrize("spoil", ["operator", "input", "bytes"])
def test_a_hostile_model_is_one_sentence(tiny, images, runtime, spoil, capfd):
    model = strangers.model()
    if spoil == "operator":
        model.graph.node[-1].op_type = "Nonsense"
    elif spoil == "input":
        model.graph.node[-1].input[0] = "nothing"
    data = b"\x08\x0aIR" if spoil == "bytes" else model.SerializeToString()
    with pytest.raises(Corrupt, match=r"model\.onnx: \w.* cannot load it \(.+\)") as told:
        runtimes.session(replace(tiny, model=data), 1, runtime)
    assert "\n" not in str(told.value) and "core.cpp" not in str(told.value)
    with pytest.raises(Corrupt, match="cannot run it"):
        runtimes.kernels(replace(tiny, model=data), runtime)
    assert capfd.readouterr() == ("", "")


def test_a_network_that_cannot_run_is_one_sentence(bench):
    state = made(bench, "base").state
    broken = network.restore(state.spec, state.network.state_dict())
    broken.network.module.head = torch.nn.Linear(3, 10)
    with pytest.raises(Corrupt, match="PyTorch cannot run it"):
        runtimes.reference(broken, 1).run(split_of(bench).test.pixels[:2].numpy())


def test_no_other_module_makes_a_session():
    named = re.compile(r"InferenceSession|import openvino|compile_model|import onnxruntime\b")
    files = [p for p in (CODE / "pipeline").rglob("*.py") if p.parent.name != "runtimes"]
    file_names = {p.name for p in files if named.search(p.read_text())}
    # These look whether a compute node has it, and run where there is no netpress.
    assert file_names == {"doctor.py", "bench.py"}


# --- measured ----------------------------------------------------------------------------------


def test_what_a_sweep_may_name_is_all_but_the_reference():
    others = [name for name in runtimes.names() if name != runtimes.REFERENCE]
    assert sorted(others) == sorted(RUNTIMES) and RUNTIMES[0] == runtimes.DEFAULT
    assert {name for group in GROUPS.values() for name in group} <= set(RUNTIMES)


def test_another_runtime_is_measured_where_the_sweep_names_it(bench):
    mine = measuring.Candidate(made(bench, "ptq-int8").state, deployed(bench, "ptq-int8"))
    base = measuring.Candidate(made(bench, "base").state, deployed(bench, "base"))
    split = split_of(bench)
    with cells.one_core():
        measured = measuring.measure(
            mine, base, split, BOTH, torch.device("cpu"), lambda what: None
        )
    who = [(name, model) for name in ("onnxruntime", "openvino") for model in ("artifact", "base")]
    assert set(filter(None, map(series.parse, measured))) == {
        series.Series(runtime, model, threads, batch)
        for runtime, model in (*who, ("pytorch", "simulated"), ("pytorch", "base"))
        for threads in ("one", "all")
        for batch in (1, 64)
    }
    assert measured["runtimes/openvino/agreement"] >= 0.998
    assert abs(measured["runtimes/openvino/accuracy"] - measured["accuracy"]) <= 0.002
    assert measured["runtimes/openvino/integer_share"] == 1.0
    assert measured["runtimes/openvino/test_set_seconds"] > 0


def test_a_cell_that_names_it_has_it_in_its_result_and_the_report_still_reads_it(bench, tmp_path):

    told = {"measure": cells.MEASURE | {"runtimes": ["openvino", "onnxruntime"]}}
    training = cells.TRAINING | {"epochs": 1, "train_images": 64, "test_images": 64}
    cell = cells.cells(tmp_path, ["base"], training=training, **told)["base"]
    work = Work(tmp_path / "work")
    cells.run(cell, work)
    result = cells.result(work.cell(cell.id))
    assert result.measured["runtimes/openvino/agreement"] >= 0.98
    assert result.measured["latency/openvino/artifact/all/batch1"].shape == (1,)
    assert {"torch", "onnxruntime", "openvino", "onnx"} <= result.facts["versions"].keys()
    report_row = row(identity(cell), result)
    assert report_row.latencies[Series("onnxruntime", "artifact", "all", 1)].p50 > 0
    assert report_row.latencies[Series("openvino", "artifact", "all", 1)].p50 > 0
    assert not any("openvino" in column for column in frames.COLUMNS)


@pytest.mark.parametrize(
    "recorded, outcome", [(0.5, "differs"), (None, "differs"), ("x", "differs"), ("own", "ok")]
)
def test_verify_classifies_on_the_other_runtime_as_well(tmp_path, tiny, recorded, outcome):
    pixels = np.random.default_rng(2).integers(0, 256, (100, *strangers.SHAPE), np.uint8)
    labels = runtimes.session(tiny, 1).run(pixels).argmax(1)
    measured = {"runtimes/openvino/accuracy": 1.0 if recorded == "own" else recorded}
    result = store.Result("x", {}, {}, [], measured)
    bench = SimpleNamespace(images_of=lambda cell, result: (pixels, labels))
    cell = of(tmp_path, ["onnxruntime", "openvino"])
    [check] = verified._elsewhere(bench, "m", cell, tiny, result)
    assert check.outcome == outcome and check.what == "m accuracy on openvino"
    assert check.why.startswith("100.00% here")
    assert list(verified._elsewhere(bench, "m", of(tmp_path, None), tiny, result)) == []


def test_a_runtime_that_is_missing_costs_no_training(bench, tmp_path, monkeypatch):

    monkeypatch.setattr(openvino, "PACKAGE", "openvino_that_nobody_has")
    told = {"measure": cells.MEASURE | {"runtimes": ["onnxruntime", "openvino"]}}
    cell = cells.cells(tmp_path, ["base"], **told)["base"]
    with pytest.raises(UserError, match="runtime openvino: .* is not installed"):
        execute.run_cell(cell, Work(tmp_path / "work"), tmp_path, device="cpu")
    assert not Work(tmp_path / "work").cell(cell.id).folder.exists()


def of(tmp_path, names):
    told = {} if names is None else {"measure": cells.MEASURE | {"runtimes": names}}
    return cells.cells(tmp_path, ["base"], **told)["base"]


def test_runtimes_are_no_part_of_a_cells_id_but_of_its_measurement(tmp_path):
    plain = of(tmp_path, None)
    assert of(tmp_path, ["onnxruntime"]).id == plain.id
    assert Measure().canonical == '{"repeats":100,"seconds":3.0}'
    assert "runtimes" not in plain.to_json()["measure"]
    more = of(tmp_path, ["onnxruntime", "openvino"])
    assert more.id == plain.id and more == of(tmp_path, ["openvino", "onnxruntime"])
    assert done.record(more) != done.record(plain)
    assert Cell.from_json(more.to_json(), catalog.built_in()) == more
    assert Cell.from_json(plain.to_json(), catalog.built_in()) == plain


@pytest.mark.parametrize(
    "names", [[], ["openvino"], ["onnxruntime", "openvin"], ["onnxruntime", "onnxruntime"], [1]]
)
def test_other_runtimes_are_a_sentence_with_the_line(tmp_path, names):
    with pytest.raises(UserError, match=r"test\.yaml:\d+: measure\.runtimes") as told:
        of(tmp_path, names)
    assert "\n" not in str(told.value)


def test_a_rehearsal_measures_on_the_same_runtimes(tmp_path):
    cell = of(tmp_path, ["onnxruntime", "openvino"])
    assert rehearse._small(cell, {}).measure.runtimes == ("onnxruntime", "openvino")
