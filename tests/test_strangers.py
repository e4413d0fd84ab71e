"""A stranger's artifact, through the command line and every other reader: no hang, no gigabytes,
no traceback, no wrong answer, and nothing that reaches the terminal as it is."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import resource
import shutil

import numpy as np
import pytest
from onnx import TensorProto

from pipeline import artifact, cli, runtimes, store
from pipeline.artifact import bounds, int8
from pipeline.errors import Corrupt
from pipeline.orchestrate import export
from pipeline.predict import predict
from pipeline.report import artifacts as report_artifacts
from pipeline.verify import files as verify_files
from tests import cells, strangers

pytestmark = pytest.mark.timeout(60)  # what hangs is a failure

EVIL = "\x1b]0;owned\x07\u202egnp.tac\n\x9b2J"
ESCAPED = r"\x1b]0;owned\x07\u202egnp.tac\n\x9b2J"


@pytest.fixture
def found(tmp_path):
    return strangers.write(tmp_path / "model", strangers.model())


@pytest.fixture
def image(tmp_path):
    return strangers.image(tmp_path / "image.png")


def answer(capfd, *arguments) -> tuple[int, str, str]:
    """(exit code, standard output, standard error), as somebody at a terminal has them."""
    code = cli.main([str(a) for a in arguments])
    return (code, *capfd.readouterr())


def refused(capfd, *arguments) -> str:
    code, out, err = answer(capfd, *arguments)
    assert (code, out) == (2, ""), (code, out, err)
    [line] = err.splitlines()
    assert line.isprintable() and len(line) <= len("netpress: ") + 500
    return line


def test_a_sound_one_is_run(found, image, capfd):
    code, out, err = answer(capfd, "predict", found, image)
    assert (code, err) == (0, "")
    assert out.split()[:2] == [str(image), next(predict(found, [image])).top[0][0]]


# --- files that are none -----------------------------------------------------------------------


def pipe(path):
    os.mkfifo(path)


def endless(path):
    path.symlink_to("/dev/zero")


def sparse(path):
    with open(path, "wb") as file:
        file.truncate(1 << 40)


def folder(path):
    path.mkdir()


def dangling(path):
    path.symlink_to("nowhere")


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
@pytest.mark.parametrize("put", [pipe, endless, sparse, folder, dangling])
def test_what_is_no_regular_file_of_bounded_size_is_a_sentence(found, image, capfd, name, put):
    (found / name).unlink()
    put(found / name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sentence = refused(capfd, "predict", found, image)
    assert name in sentence and "take it anew with `netpress export`" in sentence
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    with pytest.raises(Corrupt):
        artifact.load(found)


def test_a_file_that_is_not_the_one_of_its_manifest_costs_no_memory(found):
    """Of the size that the manifest records, one gigabyte of nothing."""
    entry = {"bytes": 1 << 30, "sha256": "0" * 64}
    strangers.write(found, strangers.model(), files={"model.onnx": entry})
    with open(found / "model.onnx", "wb") as file:
        file.truncate(1 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Corrupt, match="changed since it was written"):
        artifact.load(found)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("size", [None, -1, 1.5, "9", True, 2**31, 10**30])
def test_a_size_that_no_model_has_is_no_manifest_of_ours(found, size):
    entry = {"bytes": size, "sha256": "0" * 64}
    strangers.write(found, strangers.model(), files={"model.onnx": entry})
    with pytest.raises(Corrupt, match="not a manifest that netpress wrote"):
        artifact.load(found)


@pytest.mark.parametrize("put", [pipe, endless])
def test_export_and_report_copy_no_such_file(bench, tmp_path, put):
    work = cells.Work(tmp_path / "work")
    shutil.copytree(bench.work.root, work.root)
    copied = work.cell(bench.base.id)
    model = copied.artifact / "model.onnx"
    size, digest = model.stat().st_size, store.sha256(model)
    model.unlink()
    put(model)
    with pytest.raises(Corrupt, match=r"model\.onnx: is not a regular file"):
        store.copy_checked(model, tmp_path / "copy", size, digest)
    files = {"model.onnx": {"bytes": size, "sha256": digest}}
    with pytest.raises(Corrupt, match=r"model\.onnx: is not a regular file"):
        report_artifacts._copy(copied.artifact, files, tmp_path / "new")
    with pytest.raises(Corrupt, match=r"model\.onnx: is not a regular file"):
        export._copy(export._Model(copied.artifact, files), tmp_path / "exported")


def test_a_copy_stops_where_the_manifest_says_that_the_file_ends(found, tmp_path):
    entry = json.loads((found / "manifest.json").read_bytes())["files"]["model.onnx"]
    with open(found / "model.onnx", "ab") as file:
        file.write(b"more")
    with pytest.raises(Corrupt, match="expected at most"):
        store.copy_checked(found / "model.onnx", tmp_path / "copy", entry["bytes"], entry["sha256"])


@pytest.mark.parametrize("size", [0, 1 << 40])
def test_verify_opens_no_pipe_and_reads_no_terabyte_in_a_report(found, size):
    files = {"model.onnx": {"bytes": size, "sha256": "0" * 64}, "manifest.json": {}}
    (found / "model.onnx").unlink()
    (pipe if size == 0 else sparse)(found / "model.onnx")
    wrong = report_artifacts.differs(found, files)
    assert "is not a regular file" in wrong or "expected at most" in wrong


def test_verify_follows_no_link_out_of_a_report(found, tmp_path):
    (tmp_path / "link").symlink_to("/")
    assert report_artifacts.differs(tmp_path / "link", {}) == "is missing"


@pytest.mark.parametrize("put", [pipe, endless, sparse])
def test_verify_reads_the_other_files_of_a_report_as_carefully(tmp_path, put):
    put(tmp_path / "report.md")
    outcome, why = verify_files._compared(tmp_path / "report.md", b"what it should be")
    assert outcome == "differs" and ("not a regular file" in why or "expected at most" in why)


# --- models that do not do what they say -------------------------------------------------------


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "content, words",
    [
        (strangers.model(outputs=500), "it gives [1, 500] numbers an image, and says [1, 10]"),
        (strangers.one_image_alone(), "it gives [1, 10] numbers for 2 images, and says [2, 10]"),
        (strangers.not_a_number(), "no finite number"),
    ],
)
def test_what_goes_wrong_while_running_is_a_sentence(
    tmp_path, image, capfd, runtime, content, words
):
    model_folder = strangers.write(tmp_path / "m", content)
    sentence = refused(capfd, "predict", model_folder, image, image, "--runtime", runtime)
    assert any(w in sentence for w in (*words.split("|"), "cannot load it"))
    assert "take it anew" in sentence


@pytest.mark.parametrize(
    "content, words",
    [
        (strangers.endless(), "the operator 'Loop' is none that netpress writes"),
        (strangers.with_operator("If"), "the operator 'If'"),
        (strangers.with_operator("Inverse", "com.microsoft"), "not ONNX's own"),
        (strangers.with_operator("RandomNormalLike"), "the operator 'RandomNormalLike'"),
        (strangers.function(), "it has functions"),
        (strangers.doubling(40), "bytes of memory an image, at most"),
        (strangers.growing(5), "2 images at a time need more than 2 times what one does"),
        (strangers.huge_constant(), "fewer numbers than its shape"),
        (strangers.convolution(strides=[0, 0]), "Conv has strides of a size beyond use"),
        (strangers.convolution(pads=[10**6] * 4), "do not fit together"),
        (strangers.convolution(group=-1), "Conv has group of a size beyond use"),
        (strangers.with_operator("Transpose", perm=[5, 6]), "do not fit together"),
    ],
)
def test_what_netpress_does_not_write_is_refused_before_a_runtime_sees_it(
    tmp_path, image, capfd, content, words
):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sentence = refused(capfd, "predict", strangers.write(tmp_path / "m", content), image)
    assert words in sentence
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_small_file_is_not_decoded_to_gigabytes(tmp_path):
    stored = lzma.compress(bytes(1 << 20), preset=1, check=lzma.CHECK_NONE)
    entry = {"bytes": len(stored), "sha256": hashlib.sha256(stored).hexdigest()}
    runnable = {"bytes": 2**31 - 1, "sha256": "0" * 64}
    files = {"model.onnx.xz": entry}
    model_folder = strangers.write(tmp_path / "m", b"", codec="xz", runnable=runnable, files=files)
    (model_folder / "model.onnx.xz").write_bytes(stored)
    with pytest.raises(Corrupt, match="bytes that are to become 2,147,483,647"):
        artifact.load(model_folder)


def test_images_are_run_as_many_at_a_time_as_memory_allows(tmp_path):
    loaded = artifact.load(strangers.write(tmp_path / "m", strangers.doubling(18)))
    assert 1 <= loaded.cost.images < 100 and loaded.cost.image_bytes >= 2**16 * 10 * 4
    session = runtimes.session(loaded, threads=1)
    images = np.zeros((2 * loaded.cost.images + 1, *strangers.SHAPE), np.uint8)
    sizes = [len(scores) for scores in runtimes.logits(session, images, batch=10**6)]
    assert sizes == [loaded.cost.images] * 2 + [1]


def test_what_grows_with_some_numbers_of_images_alone_is_refused_before_it_runs(tmp_path):
    """It takes what each image takes for one and for two."""
    content = strangers.growing(1, beyond=10**9)
    session = runtimes.session(artifact.load(strangers.write(tmp_path / "m", content)), threads=1)
    images = np.zeros((5, *strangers.SHAPE), np.uint8)
    assert [len(session.run(images[:count])) for count in (1, 2)] == [1, 2]
    with pytest.raises(Corrupt, match="is no model that netpress runs: 5 images at a time need"):
        session.run(images)


def test_more_images_than_a_product_has_inputs_are_run(tmp_path):
    content = strangers.model()
    product = content.graph.node[2]
    product.op_type = "Gemm"
    loaded = artifact.load(strangers.write(tmp_path / "m", content))
    images = np.zeros((65, *strangers.SHAPE), np.uint8)
    assert runtimes.session(loaded, threads=1).run(images).shape == (65, 10)


def test_a_tensor_with_one_side_for_each_image_is_run(tmp_path):
    loaded = artifact.load(strangers.write(tmp_path / "m", strangers.growing(1)))
    images = np.zeros((7, *strangers.SHAPE), np.uint8)
    assert runtimes.session(loaded, threads=1).run(images).shape == (7, 10)


def test_all_that_is_quantized_may_be_in_an_artifact():
    assert set(int8.QUANTIZED) <= bounds.OPERATORS


def test_a_model_without_classes_is_refused(tmp_path, image, capfd):
    content = strangers.model(outputs=0, declared=0)
    sentence = refused(capfd, "predict", strangers.write(tmp_path / "m", content, ()), image)
    assert "not a manifest that netpress wrote" in sentence


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64])
def test_logits_of_another_type_are_refused_before_anything_runs(tmp_path, kind):
    strangers.write(tmp_path / "m", strangers.model(kind=kind))
    with pytest.raises(Corrupt, match="takes or gives another shape or type"):
        artifact.load(tmp_path / "m")


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 10**6, 10**6), (3, 1, 1 << 25)])
def test_images_that_nobody_has_are_refused(tmp_path, shape):
    made = strangers.model()
    dims = made.graph.input[0].type.tensor_type.shape.dim
    for dim, size in zip(list(dims)[1:], shape, strict=True):
        dim.dim_value = size
    strangers.write(tmp_path / "m", made, shape=list(shape))
    with pytest.raises(Corrupt, match="expected 1 or 3 channels and at most"):
        artifact.load(tmp_path / "m")


# --- names on a terminal -----------------------------------------------------------------------


def test_names_are_shown_with_what_is_not_printable_escaped(tmp_path, capfd):
    classes = [f"{c}{EVIL}" for c in strangers.CLASSES]
    model_folder = strangers.write(tmp_path / "m", strangers.model(), classes=classes)
    image = strangers.image(tmp_path / "a\x1b[31m\u2066.png")
    code, out, err = answer(capfd, "predict", model_folder, image)
    assert (code, err) == (0, "")
    [line] = out.splitlines()
    assert line.isprintable() and ESCAPED in line and r"a\x1b[31m\u2066.png" in line
    code, out, _ = answer(capfd, "predict", model_folder, image, "--json")
    [row] = json.loads(out)["predictions"]
    assert row["class"] in classes and row["image"] == str(image)


def test_a_file_name_that_is_no_text_is_shown_too(tmp_path, found, capfd):
    image = strangers.image(tmp_path / os.fsdecode(b"\xff.png"))
    code, out, _ = answer(capfd, "predict", found, image)
    assert code == 0 and r"\udcff.png" in out


def test_a_sentence_about_a_hostile_name_is_one_line_of_bounded_length(tmp_path, image, capfd):
    name = EVIL + "x" * 200
    sentence = refused(capfd, "predict", tmp_path / name / name / name / name, image)
    assert ESCAPED in sentence and "expected a folder with manifest.json" in sentence


def test_a_model_cannot_speak_through_the_runtimes_error(tmp_path, image, capfd):
    unknown = strangers.model()
    unknown.graph.node[-1].op_type = EVIL  # refused before a runtime sees it
    for runtime in ("onnxruntime", "openvino"):
        model_folder = strangers.write(tmp_path / runtime, unknown)
        assert ESCAPED in refused(capfd, "predict", model_folder, image, "--runtime", runtime)
    named = strangers.fails_while_running()
    named.graph.node[-1].name = EVIL
    line = refused(capfd, "predict", strangers.write(tmp_path / "b", named), image, image)
    assert "ONNX Runtime" in line and r"owned\x07\u202egnp.tac" in line


def test_a_report_that_is_verified_cannot_speak_either():
    from pipeline.verify.check import Check

    line = Check(f"artifacts/{EVIL}", "differs", EVIL).line
    assert line.isprintable() and line.count(ESCAPED) == 2
