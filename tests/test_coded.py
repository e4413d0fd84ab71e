"""The stored form of an artifact: coded without loss, decoded to the bytes that run."""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pipeline import artifact, runtimes
from pipeline.artifact import coded
from pipeline.errors import Corrupt
from pipeline.orchestrate import export
from tests import cells, strangers
from tests.test_techniques import split_of


@pytest.fixture(scope="module")
def both(bench):
    """The same int8 network, as it runs and coded: (cell, its paths) by technique."""
    chains = {
        "plain": [{"quantize": {}}],
        "coded": [{"quantize": {}}, {"encode": {}}],
        "xz": [{"quantize": {}}, {"encode": {"codec": "xz"}}],
    }
    made = bench.cells(list(chains), define=chains)
    for cell in made.values():
        if not cell.is_base:
            cells.run(cell, bench.work)
    return {name: (made[name], bench.work.cell(made[name].id)) for name in chains}


def loaded(both, name):
    return artifact.load(both[name][1].artifact)


@pytest.mark.parametrize("coded, share", [("coded", 0.85), ("xz", 0.9)])
def test_what_is_decoded_is_what_runs_byte_for_byte(both, coded, share):
    plain, small = loaded(both, "plain"), loaded(both, coded)
    assert small.model == plain.model
    assert small.stored_bytes < share * plain.stored_bytes
    recorded = small.manifest["runnable"]
    assert recorded["sha256"] == hashlib.sha256(small.model).hexdigest()
    assert recorded["bytes"] == len(small.model)
    suffix = {"coded": "npk", "xz": "xz"}[coded]
    names = sorted(p.name for p in small.folder.iterdir())
    assert names == ["manifest.json", f"model.onnx.{suffix}"]


def test_weights_are_coded_in_fewer_bytes_than_by_a_general_coder(both):
    assert loaded(both, "coded").stored_bytes < 0.98 * loaded(both, "xz").stored_bytes


def test_both_sizes_are_measured(both):
    measured = cells.result(both["coded"][1]).measured
    small = loaded(both, "coded")
    on_disk = sum(p.stat().st_size for p in small.folder.iterdir())
    assert measured["stored_bytes"] == on_disk
    manifest = (small.folder / "manifest.json").stat().st_size
    assert measured["runnable_bytes"] == len(small.model) + manifest
    assert measured["integer_share"] == 1.0 and measured["simulated_agreement"] >= 0.998


def test_export_gives_the_model_that_runs_or_what_is_stored(bench, both, tmp_path):
    import types

    cell, _ = both["coded"]
    sweep = types.SimpleNamespace(path=tmp_path / "x.yaml")
    runs = export.export(sweep, cell, bench.work, tmp_path / "runs")
    kept = export.export(sweep, cell, bench.work, tmp_path / "kept", encoded=True)
    assert sorted(p.name for p in runs.iterdir()) == ["manifest.json", "model.onnx"]
    names = sorted(p.name for p in kept.iterdir())
    assert names == ["decode.py", "manifest.json", "model.onnx.npk"]
    pixels = split_of(bench).test.pixels.numpy()[:64]
    scores = [
        np.concatenate(list(runtimes.logits(runtimes.session(artifact.load(folder), 1), pixels)))
        for folder in (runs, kept)
    ]
    assert np.array_equal(*scores)
    assert json.loads((runs / "manifest.json").read_text())["codec"] is None
    assert decoded_alone(kept) == (runs / "model.onnx").read_bytes()


def decoded_alone(folder) -> bytes:
    """By the program that comes with the coded model, isolated from this checkout."""
    to = folder / "decoded.onnx"
    command = [sys.executable, "-I", "decode.py", "model.onnx.npk", to.name]
    subprocess.run(command, cwd=folder, check=True, env={"PYTHONPATH": ""})
    return to.read_bytes()


def rewritten(folder, change) -> None:
    """The manifest changed, and its fingerprint of the stored file made to fit."""
    stored = next(folder.glob("model.onnx.*"))
    manifest = json.loads((folder / "manifest.json").read_text())
    content = stored.read_bytes()
    manifest["files"] = {
        stored.name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    }
    change(manifest)
    (folder / "manifest.json").write_bytes(strangers.sealed(manifest))


def bomb(path):
    path.write_bytes(lzma.compress(bytes(200 << 20), preset=0))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def followed(path):
    path.write_bytes(path.read_bytes() + b"more")


def other(path):
    path.write_bytes(lzma.compress(b"x" * 5000))


@pytest.mark.parametrize("codec", ["coded", "xz"])
@pytest.mark.parametrize("damage", [bomb, cut, flipped, followed, other])
def test_a_damaged_or_hostile_file_is_one_sentence(both, tmp_path, damage, codec):
    folder = tmp_path / "x"
    shutil.copytree(loaded(both, codec).folder, folder)
    damage(next(folder.glob("model.onnx.*")))
    rewritten(folder, lambda manifest: None)
    with pytest.raises(Corrupt) as told:
        artifact.load(folder)
    assert "\n" not in str(told.value) and str(folder) in str(told.value)


def test_a_codec_that_is_not_known_is_refused(both, tmp_path):
    folder = tmp_path / "x"
    shutil.copytree(loaded(both, "coded").folder, folder)
    rewritten(folder, lambda manifest: manifest.update(codec="zip"))
    with pytest.raises(Corrupt, match="not a manifest that netpress wrote"):
        artifact.load(folder)


@pytest.mark.parametrize("codec", coded.CODECS)
def test_a_codec_gives_the_same_bytes_back_and_no_more_than_declared(codec):
    model = np.random.default_rng(0).integers(0, 4, 100_000, np.uint8).tobytes()
    stored = coded.CODECS[codec].encode(model)
    assert coded.CODECS[codec].encode(model) == stored and len(stored) < len(model) / 3
    assert coded.CODECS[codec].decode(stored, len(model)) == model
    for size in (0, 1, len(model) - 1, len(model) + 1):
        with pytest.raises(ValueError):
            coded.CODECS[codec].decode(stored, size)
