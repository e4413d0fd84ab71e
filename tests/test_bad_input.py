"""Bad input, through the command line: exit code 2, one sentence that says what is wrong and what
would be right, no traceback, nothing written."""

from __future__ import annotations

import shutil

import numpy
import pytest
from PIL import Image

from tests.lab import Lab

pytestmark = pytest.mark.timeout(900)  # processes on a machine that others use, too

GOOD = {
    "name": "mine",
    "models": "[vgg16_bn]",
    "datasets": "[digits]",
    "techniques": "[base, kd]",
    "training": "{epochs: 1}",
}


MNIST = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("lab"))


def refused(lab, *arguments: object) -> str:
    """The one sentence, without `netpress: `; checks all the rest."""
    before = lab.times()
    completed = lab.ask(*arguments)
    assert completed.returncode == 2 and completed.stdout == "", completed
    *progress, line = completed.stderr.splitlines()
    assert line.startswith("netpress: ")
    assert progress in ([], ["pets: reading all images, once"])
    assert lab.times() == before
    return line.removeprefix("netpress: ")


def put(lab, changes: dict[str, str] | str) -> str:
    text = changes
    if isinstance(changes, dict):
        text = "".join(f"{k}: {v}\n" for k, v in {**GOOD, **changes}.items() if v is not None)
    (lab.folder / "mine.yaml").write_text(text)
    return "mine.yaml"


@pytest.mark.parametrize(
    "changes, words",
    [
        ("models: [vgg16_bn\ndatasets: [digits]\n", ["mine.yaml:2", "not valid YAML"]),
        ("- a\n- list\n", ["mine.yaml:1", "expected"]),
        ("", ["mine.yaml", "empty"]),
        ({"modles": "[vgg16_bn]"}, ["mine.yaml:6", "modles", "did you mean 'models'?"]),
        ({"training": "{epoch: 1}"}, ["mine.yaml:5", "epoch", "did you mean 'epochs'?"]),
        ({"training": "{epochs: many}"}, ["mine.yaml:5: training.epochs", "'many'", "number"]),
        ({"training": "{epochs: -1}"}, ["training.epochs", "-1", "at least 1"]),
        ({"training": "{learning_rate: -0.1}"}, ["training.learning_rate", "-0.1"]),
        ({"training": "{learning_rate: .nan}"}, ["training.learning_rate", "nan"]),
        ({"training": "{batch_size: 100000000000}"}, ["training.batch_size", "at most"]),
        ({"seeds": "[0, 0]"}, ["seeds", "0", "twice"]),
        ({"techniques": "[kdd]"}, ["mine.yaml:4: techniques", "'kdd'", "did you mean 'kd'?"]),
        ({"techniques": "[]"}, ["techniques", "empty"]),
        ({"models": "[vgg16bn]"}, ["models", "did you mean 'vgg16_bn'?"]),
        ({"models": "[{name: vgg16_bn, width: 0}]"}, ["models", "width", "0"]),
        ({"datasets": "[digit]"}, ["datasets", "did you mean 'digits'?"]),
        ({"datasets": "[{name: leaves, folder: nowhere}]"}, ["mine.yaml:3", "nowhere"]),
        ({"exclude": "[{model: vgg16_bn}]"}, ["mine.yaml:6: exclude", "every cell"]),
        ({"define": "{kd: [finetune]}"}, ["define.kd", "kd"]),
        (
            {"define": "{mine: [{prune: {parameters_kept: 7}}]}", "techniques": "[mine]"},
            ["define.mine", "parameters_kept", "7"],
        ),
        (
            {"define": "{mine: [{prun: {}}]}", "techniques": "[mine]"},
            ["define.mine", "did you mean 'prune'?"],
        ),
        ({"grid": "{kd: {distill.temprature: [1, 2]}}"}, ["grid", "did you mean", "temperature"]),
    ],
)
def test_sweep_files(lab, changes, words):
    sentence = refused(lab, "run", put(lab, changes))
    assert [word for word in words if word not in sentence] == [], sentence


def test_names_that_are_twice(lab):
    text = "name: mine\nmodels: [vgg16_bn]\nmodels: [vgg11]\n"
    sentence = refused(lab, "run", put(lab, text))
    assert "mine.yaml:3" in sentence and "models" in sentence
    assert "twice" in refused(lab, "plan", put(lab, {"techniques": "[kd, kd]"}))


def test_missing_data_names_the_command_that_brings_it(lab):
    sentence = refused(lab, "run", put(lab, {"datasets": "[mnist]"}))
    assert "mnist" in sentence and "`netpress fetch" in sentence


def pictures(lab) -> None:
    shutil.rmtree(lab.folder / "pictures", ignore_errors=True)
    random = numpy.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = lab.folder / "pictures" / part / name
            folder.mkdir(parents=True)
            for i in range(12):
                pixels = random.integers(0, 256, (32, 32, 3), numpy.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.mark.parametrize(
    "break_it, words",
    [
        (lambda f: cut(f / "train/cat/3.png"), ["train/cat/3.png", "cannot be read as an image"]),
        (lambda f: (f / "test/dog/11.png").write_text("no"), ["test/dog/11.png", "cannot be read"]),
        (lambda f: Image.new("RGB", (9, 9)).save(f / "train/dog/0.png"), ["9x9", "size:"]),
        (lambda f: shutil.rmtree(f / "test/dog"), ["class 'dog'", "test"]),
        (lambda f: shutil.rmtree(f / "test"), ["pictures/test", "expected"]),
    ],
)
def test_folders_of_images(lab, break_it, words):
    """Found before anything is trained, even the last image of a large set."""
    pictures(lab)
    break_it(lab.folder / "pictures")
    sweep = put(lab, {"datasets": "[{name: pets, folder: pictures}]"})
    sentence = refused(lab, "run", sweep)
    assert [word for word in words if word not in sentence] == [], sentence


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def test_a_damaged_download_is_named_before_anything_runs(lab):
    raw = lab.folder / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in MNIST:
        (raw / f"{name}-ubyte").write_bytes(b"half of it")
    sweep = put(lab, {"datasets": "[mnist]"})
    before = lab.times()
    completed = lab.ask("run", sweep, NETPRESS_DATA=str(lab.folder / "data"))
    assert (completed.returncode, completed.stdout) == (2, "") and lab.times() == before
    [line] = completed.stderr.splitlines()
    assert line.startswith("netpress: ") and "train-images-idx3-ubyte: damaged" in line
    assert f"`netpress fetch {sweep}` brings it anew" in line


def test_images_and_models_for_predict(lab, smoke):
    model = lab.folder / "model"
    shutil.copytree(smoke.lab.work.cell(smoke.ids["ptq-int8"]).artifact, model)
    image = lab.folder / "image.png"
    Image.new("L", (32, 32)).save(image)
    assert lab.ask("predict", "model", image).returncode == 0
    assert "nothing.png: no such image" in refused(lab, "predict", "model", "nothing.png", image)
    assert refused(lab, "predict", "model", "model") == (
        "model: is a folder without images; 2 files in model were not read: .json (1), .onnx (1)"
    )
    assert "home: not an artifact; expected a folder" in refused(lab, "predict", "home", image)
    network = model / "model.onnx"
    content = bytearray(network.read_bytes())
    content[len(content) // 2] ^= 1
    network.write_bytes(content)
    sentence = refused(lab, "predict", "model", image)
    assert "model.onnx: changed since it was written" in sentence and "netpress export" in sentence
    cut(network)
    assert "model.onnx: changed" in refused(lab, "predict", "model", image)
    (model / "manifest.json").write_text("{}")
    assert "manifest.json: not a manifest" in refused(lab, "predict", "model", image)


def test_export_of_what_is_not_there_or_was_changed(lab, smoke):
    lab.have(smoke.lab)
    cell = lab.work.cell(smoke.ids["kd"])
    content = bytearray((cell.artifact / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (cell.artifact / "model.onnx").write_bytes(content)
    sentence = refused(lab, "export", "smoke", cell.id[:8])
    assert "kd/0" in sentence and "is damaged" in sentence and "`netpress run smoke`" in sentence
    assert "did you mean" in refused(lab, "export", "smoke", "digits/vgg16_bn-w0.125/kb/0")
    taken = put(lab, {})
    assert "exists already" in refused(lab, "export", "smoke", smoke.ids["base"], "--to", taken)
    shutil.rmtree(lab.work.root)
    assert "no model to export yet: not run yet" in refused(lab, "export", "smoke", cell.id)
