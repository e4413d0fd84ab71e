"""Data sets: decoding, checksums, cache, split, augmentation, image files.

Real MNIST and CIFAR-10 are used where they lie under the data root; everything else is made here.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import textwrap
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import data, paths, registry
from pipeline.data import cache, cifar10, downloads, folder, mnist, pictures
from pipeline.data.split import normalization, ranking, shares, sliver, train_and_held_out
from pipeline.errors import UserError
from pipeline.sweep import Dataset, Recipe

CODE = Path(__file__).resolve().parents[1]
RECIPE = Recipe()
DIGITS = Dataset(name="digits")


def load(dataset, root, recipe=RECIPE, seed=0):
    return data.load(dataset, recipe, seed, Path(root), Path(root) / "cache")


def sentence(caught) -> str:
    """The message of a caught UserError, which must be one line."""
    text = str(caught.value)
    assert "\n" not in text and text
    return text


def picture(seed: int, size=(8, 8), mode="RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


def image_folder(top: Path, classes=("cat", "dog"), train=4, test=2, suffix="png", **kw) -> Path:
    """An ImageFolder data set of noise; every image differs."""
    for part, count in (("train", train), ("test", test)):
        for k, name in enumerate(classes):
            (top / part / name).mkdir(parents=True)
            for i in range(count):
                seed = 1000 * k + i + (500 if part == "test" else 0)
                picture(seed, **kw).save(top / part / name / f"{i:04}.{suffix}")
    return top


def own(top: Path, **settings) -> Dataset:
    return Dataset(name="own", folder=str(top), **settings)


# --- the registry ----------------------------------------------------------------------------


def test_planning_imports_neither_torch_nor_numpy():
    code = """
        import sys
        from pathlib import Path
        from pipeline import data
        from pipeline.sweep import Dataset
        for name in ("digits", "mnist", "cifar10"):
            assert len(data.DATASETS[name].description) < 100
        classes, shape = data.facts(Dataset(name="digits"), Path("/none"))
        assert (len(classes), shape) == (10, (1, 32, 32))
        print(sorted({"torch", "numpy", "PIL", "sklearn"} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=CODE, capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr


def test_every_row_of_the_registry_keeps_the_contract():
    for name, entry in data.DATASETS.items():
        module = data._module(Dataset(name=name))
        assert module.__name__ == entry.module
        assert isinstance(module.FLIP, bool)
        assert all(callable(getattr(module, f)) for f in ("facts", "key", "decode", "fetch"))
    assert set(data.DATASETS) >= data.FOLDERS


def test_an_unknown_data_set_is_named_with_the_known_ones(tmp_path):
    with pytest.raises(UserError) as caught:
        load(Dataset(name="mnits"), tmp_path)
    assert "mnits" in sentence(caught) and "mnist" in sentence(caught)


# --- of a plug-in ----------------------------------------------------------------------------


class Foreign:
    """A plug-in's data set of two classes, as its author means it."""

    FLIP = False
    arrays = {
        "train_pixels": np.arange(96, dtype=np.uint8).reshape(6, 1, 4, 4),
        "train_labels": np.arange(6) % 2,
        "test_pixels": np.arange(64, dtype=np.uint8).reshape(4, 1, 4, 4),
        "test_labels": np.arange(4) % 2,
    }

    def __init__(self, **arrays):
        self.arrays = self.arrays | arrays

    def facts(self, dataset, root):
        return ("a", "b"), (1, 4, 4)

    def key(self, dataset, root) -> str:
        return "foreign-1"

    def verify(self, dataset, root) -> bool:
        return True

    def fetch(self, dataset, root, say) -> None:
        pass

    def decode(self, dataset, root):
        return cache.Decoded(("a", "b"), **self.arrays)


@pytest.fixture
def foreign():
    """Makes a data set that of a plug-in."""

    def made(module) -> Dataset:
        added = registry.Added(lambda: (module, "a line"), "mine.py", "stamp")
        registry.fill({"datasets": {"own": added}})
        return Dataset(name="own")

    yield made
    registry.fill({})


IMAGES = Foreign.arrays["train_pixels"]
WRONG = {
    "labels from 1": ("test_labels", np.arange(4) % 2 + 1, "expected test_labels of 0..1"),
    "negative": ("train_labels", -(np.arange(6) % 2), "expected train_labels of 0..1"),
    "few labels": ("train_labels", np.arange(5) % 2, "as many train_labels as train_pixels"),
    "few test labels": ("test_labels", np.arange(3) % 2, "got 3 and 4"),
    "int32": ("train_labels", np.arange(6, dtype=np.int32) % 2, "array of int64 [N], got int32"),
    "float": ("train_pixels", IMAGES / 255, "array of uint8 [N, C, H, W], got float64"),
    "no channels": ("train_pixels", IMAGES[:, 0], "got uint8 [6, 4, 4]"),
    "a tensor": ("test_labels", torch.arange(4) % 2, "array of int64 [N], got Tensor"),
    "another shape": ("test_pixels", IMAGES[:4, :, :3], "one shape, got [1, 4, 4] and [1, 3, 4]"),
    "one class": ("train_labels", np.zeros(6, np.int64), "class 'b' has no training image"),
    "no test": ("test_labels", np.zeros(0, np.int64), "at least 1, got 0 and 4"),
}


@pytest.mark.parametrize("part, array, expected", WRONG.values(), ids=WRONG)
def test_a_plug_in_whose_images_are_no_data_set_is_refused(
    tmp_path, foreign, part, array, expected
):
    assert len(load(foreign(Foreign()), tmp_path / "right").test) == 4
    with pytest.raises(UserError) as caught:
        load(foreign(Foreign(**{part: array})), tmp_path / "wrong")
    assert sentence(caught).startswith("data set own of plug-in mine.py: ")
    assert expected in sentence(caught)
    assert not list((tmp_path / "wrong").rglob("*.npy"))
    key = data._key(Dataset(name="own"), tmp_path)  # one that an earlier version kept
    kept = Foreign.arrays | {part: array}
    if isinstance(array, np.ndarray):
        cache.load(tmp_path / "kept/cache", "own", key, lambda: cache.Decoded(("a", "b"), **kept))
        with pytest.raises(UserError, match="data set own of plug-in mine.py: "):
            load(Dataset(name="own"), tmp_path / "kept")


def test_a_plug_in_decodes_what_its_facts_say(tmp_path, foreign):
    module = Foreign(train_pixels=IMAGES[:, :, :2], test_pixels=IMAGES[:4, :, :2])
    with pytest.raises(UserError) as caught:
        load(foreign(module), tmp_path)
    assert "expected images of shape [1, 4, 4], as in facts, got [1, 2, 4]" in sentence(caught)
    module = Foreign()
    module.facts = lambda dataset, root: (("a", "c"), (1, 4, 4))
    with pytest.raises(UserError) as caught:
        load(foreign(module), tmp_path)
    assert "expected classes ['a', 'c'], as in facts, got ['a', 'b']" in sentence(caught)


# --- digits ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load(DIGITS, tmp_path_factory.mktemp("digits"))


def test_digits_are_the_same_everywhere(digits):
    """What is trained on them is compared across machines: their pixels and split are fixed."""
    assert digits.fingerprint.startswith("61cf70b3742d134c1dffd34369f98854")
    assert (len(digits.train), len(digits.held_out), len(digits.test)) == (1212, 135, 450)
    assert (digits.shape, digits.zero_point, digits.flip) == ((1, 32, 32), 78, False)
    assert digits.classes == tuple("0123456789")
    assert digits.scale == pytest.approx(0.0104428, rel=1e-4)


@pytest.mark.parametrize("gone", ["sklearn.datasets", "the file"])
def test_digits_are_read_from_their_file_or_else_by_scikit_learn(
    tmp_path, digits, monkeypatch, gone
):
    if gone == "the file":
        monkeypatch.setattr("pipeline.data.digits.FILE", "moved.csv.gz")
    else:
        monkeypatch.setitem(sys.modules, gone, None)  # an import of it raises
    assert load(DIGITS, tmp_path).fingerprint == digits.fingerprint


def test_digits_are_enlarged_to_four_by_four_blocks(digits):
    pixels = digits.train.pixels
    assert pixels.dtype == torch.uint8 and digits.train.labels.dtype == torch.int64
    assert pixels.max() == 255 and pixels.min() == 0
    blocks = pixels[:, :, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(blocks, pixels)


def test_digits_of_another_size(tmp_path, digits):
    small = load(Dataset(name="digits", size=8), tmp_path)
    assert small.shape == (1, 8, 8)
    assert torch.equal(small.test.pixels, digits.test.pixels[:, :, ::4, ::4])
    assert data.facts(Dataset(name="digits", size=8), tmp_path)[1] == (1, 8, 8)


def test_digits_need_no_fetching(tmp_path):
    messages = []
    data.fetch(DIGITS, tmp_path, say=messages.append)
    assert "scikit-learn" in messages[0]


# --- what came from the internet -------------------------------------------------------------

REAL = paths.data_root()
has_mnist = pytest.mark.skipif(
    not (REAL / "MNIST/raw/train-images-idx3-ubyte").is_file(), reason=f"no MNIST in {REAL}"
)
has_cifar10_jpeg = pytest.mark.skipif(
    not (REAL / "cifar10-jpeg/train").is_dir(), reason=f"no cifar10-jpeg in {REAL}"
)


@has_mnist
def test_real_mnist(tmp_path):
    split = data.load(Dataset(name="mnist"), RECIPE, 0, REAL, tmp_path)
    assert (len(split.train), len(split.held_out), len(split.test)) == (54000, 6000, 10000)
    assert (split.shape, split.zero_point, split.flip) == ((1, 28, 28), 33, False)
    assert split.fingerprint.startswith("ce415c0238013a9b11fb9631115cd71a")
    assert split.scale == pytest.approx(1 / (0.3081 * 255), rel=2e-3)
    assert split.test.labels[:5].tolist() == [7, 2, 1, 0, 4]  # in the files' order
    again = data.load(Dataset(name="mnist"), RECIPE, 0, REAL, tmp_path)
    assert torch.equal(again.train.pixels, split.train.pixels)
    messages = []
    data.fetch(Dataset(name="mnist"), REAL, say=messages.append)
    assert len(messages) == 1 and "verified" in messages[0]


@has_cifar10_jpeg
def test_a_part_of_real_cifar10_jpeg(tmp_path):
    for part, count in (("train", 30), ("test", 10)):
        for source in sorted((REAL / "cifar10-jpeg" / part).iterdir()):
            (tmp_path / "cifar10-jpeg" / part / source.name).mkdir(parents=True)
            for file in sorted(source.iterdir())[:count]:
                (tmp_path / "cifar10-jpeg" / part / source.name / file.name).symlink_to(file)
    dataset = Dataset(name="cifar10-jpeg")
    split = load(dataset, tmp_path)
    assert split.classes == cifar10.CLASSES
    assert data.facts(dataset, tmp_path) == (cifar10.CLASSES, (3, 32, 32))
    assert (len(split.train), len(split.held_out), len(split.test)) == (270, 30, 100)
    assert split.flip
    assert 105 < split.zero_point < 135 and 0.014 < split.scale < 0.018


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_missing_data_is_one_sentence_with_the_command(tmp_path, name):
    with pytest.raises(UserError) as caught:
        load(Dataset(name=name), tmp_path)
    assert "netpress fetch" in sentence(caught) and "NETPRESS_DATA" in sentence(caught)
    assert str(tmp_path) in sentence(caught)


def idx(values: np.ndarray) -> bytes:
    head = struct.pack(">I", 0x0800 + values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + values.tobytes()


def small_mnist() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    files = {}
    for part, count in (("train", 60), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        files[f"{part}-images-idx3-ubyte"] = idx(images)
        files[f"{part}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8) % 10)
    return files


def small_cifar10() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    batch = {"labels": list(range(10)) * 2}
    files = {
        name: pickle.dumps(batch | {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8)})
        for name in cifar10.MD5
        if name != "batches.meta"
    }
    return files | {"batches.meta": pickle.dumps({"label_names": list(cifar10.CLASSES)})}


def checksums(files: dict[str, bytes], kind: str) -> dict[str, str]:
    return {name: hashlib.new(kind, content).hexdigest() for name, content in files.items()}


def put(top: Path, files: dict[str, bytes]) -> None:
    top.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (top / name).write_bytes(content)


@pytest.fixture
def server(tmp_path_factory):
    """(folder, address): what lies in the folder can be downloaded from the address."""
    top = tmp_path_factory.mktemp("server")
    handler = functools.partial(Quiet, directory=str(top))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True).start()
        yield top, f"http://127.0.0.1:{serving.server_port}/"
        serving.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def mnist_server(server, monkeypatch):
    """A small MNIST on a server of this machine; torchvision's downloader is the real one."""
    from torchvision.datasets import MNIST

    top, address = server
    files = small_mnist()
    packed = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    put(top, packed)
    monkeypatch.setattr(MNIST, "mirrors", [address])
    monkeypatch.setattr(MNIST, "resources", list(checksums(packed, "md5").items()))
    monkeypatch.setattr(mnist, "SHA256", checksums(files, "sha256"))
    return top


@pytest.fixture
def cifar10_server(server, monkeypatch):
    from torchvision.datasets import CIFAR10

    top, address = server
    files = small_cifar10()
    with tarfile.open(top / CIFAR10.filename, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    sums = checksums(files, "md5")
    packed = hashlib.md5((top / CIFAR10.filename).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "url", address + CIFAR10.filename)
    monkeypatch.setattr(CIFAR10, "tgz_md5", packed)
    monkeypatch.setattr(CIFAR10, "train_list", [[n, sums[n]] for n in sorted(sums) if "data" in n])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    monkeypatch.setattr(cifar10, "MD5", sums)
    return top


def test_mnist_is_fetched_verified_and_parsed(tmp_path, mnist_server):
    messages = []
    data.fetch(Dataset(name="mnist"), tmp_path, tmp_path / "cache", messages.append)
    assert "downloading" in messages[0] and "verified" in messages[-1]
    split = load(Dataset(name="mnist"), tmp_path)
    assert (len(split.train), len(split.held_out), len(split.test)) == (50, 10, 20)
    raw = small_mnist()["t10k-images-idx3-ubyte"][16:]
    assert split.test.pixels.numpy().tobytes() == raw
    assert split.test.labels.tolist() == [i % 10 for i in range(20)]


def test_a_damaged_mnist_file_is_refused_and_fetched_anew(tmp_path, mnist_server):
    data.fetch(Dataset(name="mnist"), tmp_path, say=lambda line: None)
    damaged = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:-7])  # truncated
    with pytest.raises(UserError) as caught:
        load(Dataset(name="mnist"), tmp_path)
    assert damaged.name in sentence(caught) and "netpress fetch" in sentence(caught)
    messages = []
    data.fetch(Dataset(name="mnist"), tmp_path, say=messages.append)
    assert "damaged" in messages[0]
    assert damaged.with_name(f"{damaged.name}.corrupt-1").is_file()
    assert len(load(Dataset(name="mnist"), tmp_path).train) == 50


def test_mnist_resized(tmp_path, mnist_server):
    data.fetch(Dataset(name="mnist"), tmp_path, say=lambda line: None)
    split = load(Dataset(name="mnist", size=32), tmp_path)
    assert split.shape == (1, 32, 32) and split.test.pixels.dtype == torch.uint8
    assert data.facts(Dataset(name="mnist", size=32), tmp_path)[1] == (1, 32, 32)


def test_a_download_that_differs_from_its_checksum_is_refused(tmp_path, mnist_server):
    (mnist_server / "train-labels-idx1-ubyte.gz").write_bytes(b"changed on the way")
    with pytest.raises(UserError) as caught:
        data.fetch(Dataset(name="mnist"), tmp_path, say=lambda line: None)
    assert "download failed" in sentence(caught)


def test_no_network_is_one_sentence(tmp_path, cifar10_server):
    (cifar10_server / "cifar-10-python.tar.gz").unlink()
    with pytest.raises(UserError) as caught:
        data.fetch(Dataset(name="cifar10"), tmp_path, say=lambda line: None)
    assert "404" in sentence(caught) and "internet" in sentence(caught)


def test_cifar10_is_fetched_verified_and_parsed(tmp_path, cifar10_server):
    data.fetch(Dataset(name="cifar10"), tmp_path, say=lambda line: None)
    split = load(Dataset(name="cifar10"), tmp_path)
    assert (len(split.train), len(split.held_out), len(split.test)) == (90, 10, 20)
    assert split.classes == cifar10.CLASSES and split.flip
    raw = pickle.loads(small_cifar10()["test_batch"])["data"]
    assert np.array_equal(split.test.pixels.numpy().reshape(20, 3072), raw)
    messages = []
    data.fetch(Dataset(name="cifar10"), tmp_path, say=messages.append)
    assert len(messages) == 1 and "verified" in messages[0]


class Intruder:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_foreign_pickle_is_never_run(tmp_path):
    put(tmp_path / "cifar-10-batches-py", small_cifar10())
    mark = tmp_path / "was-run"
    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(pickle.dumps(Intruder(mark)))
    with pytest.raises(UserError) as caught:
        load(Dataset(name="cifar10"), tmp_path)
    assert "MD5" in sentence(caught)
    assert not mark.exists()


def test_a_file_that_may_not_be_read_is_one_sentence(tmp_path):
    put(tmp_path, {"a": b"x"})
    (tmp_path / "a").chmod(0)
    if os.access(tmp_path / "a", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(UserError) as caught:
        downloads.verify("mnist", tmp_path, {"a": "0"}, "sha256")
    assert "cannot be read" in sentence(caught)


# --- folders of images -----------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_a_folder_of_images(tmp_path, mode, channels):
    top = image_folder(tmp_path / "own", mode=mode)
    split = load(own(top), tmp_path, Recipe(holdout=0.25))
    assert split.classes == ("cat", "dog") and split.shape == (channels, 8, 8)
    assert data.facts(own(top), tmp_path) == (("cat", "dog"), (channels, 8, 8))
    assert (len(split.train), len(split.held_out), len(split.test)) == (6, 2, 4)
    assert split.test.labels.tolist() == [0, 0, 1, 1]
    first = np.asarray(Image.open(top / "test/cat/0000.png"))
    assert np.array_equal(
        split.test.pixels[0].squeeze(0).numpy().reshape(channels, 8, 8),
        first.reshape(8, 8, channels).transpose(2, 0, 1),
    )
    assert not split.flip and load(own(top, flip=True), tmp_path).flip


def test_a_folder_with_what_lies_about_in_folders(tmp_path):
    top = image_folder(tmp_path / "own")
    (top / "train/.DS_Store").write_bytes(b"x")
    (top / "train/cat/.hidden.png").write_bytes(b"x")
    (top / "train/cat/notes.txt").write_text("x")
    (top / "train/cat/deeper").mkdir()
    picture(99).save(top / "train/cat/deeper/UPPER.JPG")
    (top / "train/cat/deeper/loop").symlink_to(top / "train")
    assert len(load(own(top), tmp_path).train) == 7  # of 4 + 1 + 4, one of each class held out


def test_linked_folders_are_read_and_each_once(tmp_path):
    top, apart = image_folder(tmp_path / "own"), tmp_path / "apart"
    for place, start in ((apart, 70), (tmp_path / "eels", 80), (tmp_path / "test-eels", 90)):
        place.mkdir()
        for i in range(5):
            picture(start + i).save(place / f"{i}.png")
    (apart / "back").symlink_to(apart)
    (top / "train/cat/more").symlink_to(apart)
    (top / "train/cat/same").symlink_to(apart)
    (top / "train/eel").symlink_to(tmp_path / "eels")
    (top / "test/eel").symlink_to(tmp_path / "test-eels")
    split = load(own(top), tmp_path, Recipe(holdout=0.25))
    counts = {name: 0 for name in split.classes}
    for part in (split.train, split.held_out):
        for label in part.labels.tolist():
            counts[split.classes[label]] += 1
    assert counts == {"cat": 4 + 5, "dog": 4, "eel": 5}
    unread = data.unread(own(top), tmp_path)
    assert any("train/cat" in line and "not followed: back, same" in line for line in unread)


def test_a_link_to_itself_is_one_sentence(tmp_path):
    top = image_folder(tmp_path / "own")
    (top / "train/cat/loop").symlink_to(top / "train/cat/loop")
    with pytest.raises(UserError) as caught:
        load(own(top), tmp_path)
    assert "train/cat/loop" in sentence(caught)


def test_every_name_that_a_jpeg_or_png_may_have_is_read(tmp_path):
    top = image_folder(tmp_path / "own")
    for i, extension in enumerate(("jfif", "JPE", "apng", "pnm")):
        kind = {"apng": "png", "pnm": "ppm"}.get(extension, "jpeg")
        picture(50 + i).save(top / f"train/cat/other.{extension}", kind)
    split = load(own(top), tmp_path, Recipe(holdout=0.25))
    assert len(split.train) + len(split.held_out) == 8 + 4
    assert data.unread(own(top), tmp_path) == []


def test_what_is_not_read_is_counted_and_named(tmp_path):
    top = image_folder(tmp_path / "own")
    for i in range(8):
        (top / f"train/dog/{i}.heic").write_bytes(b"x")
    (top / "test/cat/deeper").mkdir()
    (top / "test/cat/deeper/a.JXL").write_bytes(b"x")
    (top / "test/cat/b.heic").write_bytes(b"x")
    (top / "test/cat/none").write_bytes(b"x")
    (top / "train/cat/a.\x1b[2Jx").write_bytes(b"x")
    picture(0).save(top / "train/loose.png")
    lines = [
        "own: 1 file in train, outside of the class folders, was not read: .png",
        r"own: 1 file in train/cat was not read: .\x1b[2jx",
        "own: 8 files in train/dog were not read: .heic",
        "own: 3 files in test/cat were not read: .heic (1), .jxl (1), no extension (1)",
    ]
    assert data.unread(own(top), tmp_path) == lines
    messages: list[str] = []
    data.fetch(own(top), tmp_path, say=messages.append)
    assert messages[1:] == lines
    for tell in (
        lambda say: data.require(own(top), tmp_path, say),
        lambda say: data.prepare(own(top), tmp_path, tmp_path / "cache", say),
    ):
        messages.clear()
        tell(messages.append)
        assert messages[: len(lines)] == lines


def test_a_thousand_folders_are_not_a_thousand_lines(tmp_path):
    top = image_folder(tmp_path / "own")
    for i in range(30):
        for part in ("train", "test"):
            (top / part / f"k{i:02}").mkdir()
            picture(i).save(top / part / f"k{i:02}/0.png")
            (top / part / f"k{i:02}/0.heic").write_bytes(b"x")
    lines = data.unread(own(top), tmp_path)
    assert len(lines) == 11 and lines[-1] == "own: and so in 50 more folders"


def test_a_class_without_one_readable_image_says_what_it_has(tmp_path):
    top = image_folder(tmp_path / "own")
    for file in (top / "train/dog").iterdir():
        file.rename(file.with_suffix(".heic"))
    with pytest.raises(UserError) as caught:
        load(own(top), tmp_path)
    assert "has no images; 4 files in train/dog were not read: .heic" in sentence(caught)


def test_images_of_several_sizes_need_a_size(tmp_path):
    top = image_folder(tmp_path / "own")
    picture(5, size=(10, 8)).save(top / "test/dog/0001.png")
    with pytest.raises(UserError) as caught:
        load(own(top), tmp_path)
    assert "test/dog/0001.png" in sentence(caught) and "10x8" in sentence(caught)
    assert "`size:`" in sentence(caught)
    assert load(own(top, size=6), tmp_path).shape == (3, 6, 6)


def test_a_truncated_jpeg_is_named(tmp_path):
    top = image_folder(tmp_path / "own", suffix="jpg", size=(32, 32))
    bad = top / "train/dog/0002.jpg"
    bad.write_bytes(bad.read_bytes()[:-200])
    with pytest.raises(UserError) as caught:
        load(own(top), tmp_path)
    assert str(bad) in sentence(caught) and "truncated" in sentence(caught)


def empty_class(top):
    (top / "train/eel").mkdir()
    (top / "test/eel").mkdir()


def one_class(top):
    (top / "train/dog").rename(top / "dog")


def unprintable_class(top):
    for part in ("train", "test"):
        (top / part / "dog").rename(top / part / "d\nog")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda top: (top / "test").rename(top / "validation"), "train/CLASS/*.jpg"),
        (lambda top: (top / "test/dog").rename(top / "test/eel"), "'dog' is in"),
        (lambda top: picture(0).save(top / "train/eel.png"), None),
        (empty_class, "train/eel has no images"),
        (one_class, "at least 2"),
        (unprintable_class, "not printable"),
        (lambda top: (top / "train/cat/0000.png").write_bytes(b""), "train/cat/0000.png"),
        (lambda top: (top / "train/cat/gone.png").symlink_to(top / "no"), "train/cat/gone.png"),
    ],
)
def test_a_folder_in_disorder_is_one_sentence(tmp_path, damage, expected):
    top = image_folder(tmp_path / "own")
    damage(top)
    if expected is None:  # a file beside the class folders belongs to no class
        assert load(own(top), tmp_path).classes == ("cat", "dog")
        return
    with pytest.raises(UserError) as caught:
        load(own(top), tmp_path)
    assert expected in sentence(caught)


def test_a_class_with_one_training_image_cannot_be_held_out(tmp_path):
    top = image_folder(tmp_path / "own", train=1)
    with pytest.raises(UserError) as caught:
        load(own(top), tmp_path)
    assert "'cat'" in sentence(caught)


def test_a_set_that_no_memory_holds_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    top = image_folder(tmp_path / "own")
    monkeypatch.setattr(folder.os, "sysconf", lambda name: 30)
    with pytest.raises(UserError) as caught:
        load(own(top), tmp_path)
    assert "`size:`" in sentence(caught)


# --- the cache -------------------------------------------------------------------------------


def entry_of(home: Path) -> Path:
    (entry,) = (home / "data").iterdir()
    return entry


def test_a_second_load_decodes_nothing(tmp_path):
    top = image_folder(tmp_path / "own")
    first = load(own(top), tmp_path)
    for file in top.rglob("*.png"):  # the same names, sizes and times, but no images any more
        stat = file.stat()
        file.write_bytes(bytes(stat.st_size))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = load(own(top), tmp_path)
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.train.pixels, first.train.pixels)


def test_a_changed_file_is_decoded_anew(tmp_path):
    top = image_folder(tmp_path / "own")
    first = load(own(top), tmp_path)
    picture(77).save(top / "test/cat/0000.png")
    assert load(own(top), tmp_path).fingerprint != first.fingerprint


def test_a_set_that_moved_is_not_decoded_anew(tmp_path):
    top = image_folder(tmp_path / "own")
    first = load(own(top), tmp_path)
    top.rename(tmp_path / "elsewhere")
    assert load(own(tmp_path / "elsewhere"), tmp_path).fingerprint == first.fingerprint
    assert len(list((tmp_path / "cache/data").iterdir())) == 1


@pytest.mark.parametrize("name", [*(f"{a}.npy" for a in cache.ARRAYS), "manifest.json"])
@pytest.mark.parametrize("damage", ["flip a bit", "truncate", "empty", "remove"])
def test_a_damaged_cache_is_set_aside_and_made_again(tmp_path, name, damage):
    top = image_folder(tmp_path / "own")
    first = load(own(top), tmp_path)
    entry = entry_of(tmp_path / "cache")
    path = entry / "arrays" / name
    content = bytearray(path.read_bytes())
    content[-3 if name.endswith(".npy") else len(content) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        kept = {"flip a bit": content, "truncate": content[:-9], "empty": b""}[damage]
        path.write_bytes(bytes(kept))
    again = load(own(top), tmp_path)
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.train.pixels, first.train.pixels)
    assert (entry / "arrays.corrupt-1").is_dir()
    assert torch.equal(load(own(top), tmp_path).test.pixels, first.test.pixels)


tiny = cache.Decoded(
    ("a", "b"),
    np.arange(16, dtype=np.uint8).reshape(4, 1, 2, 2),
    np.array([0, 1, 0, 1]),
    np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2),
    np.array([0, 1]),
)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([*(f"{a}.npy" for a in cache.ARRAYS), "manifest.json"]), st.data())
def test_no_flipped_bit_ever_changes_what_is_loaded(tmp_path_factory, name, drawn):
    home = tmp_path_factory.mktemp("flip")
    whole = cache.load(home, "tiny", "0" * 64, lambda: tiny)
    path = entry_of(home) / "arrays" / name
    content = bytearray(path.read_bytes())
    at = drawn.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << drawn.draw(st.integers(0, 7))
    path.write_bytes(bytes(content))
    again = cache.load(home, "tiny", "0" * 64, lambda: tiny)
    assert again.fingerprint == whole.fingerprint and again.data.classes == tiny.classes
    assert all(np.array_equal(getattr(again.data, a), getattr(tiny, a)) for a in cache.ARRAYS)


def test_a_full_memory_does_not_condemn_the_cache(tmp_path, monkeypatch):
    cache.load(tmp_path, "tiny", "0" * 64, lambda: tiny)

    def no_memory(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(np, "load", no_memory)
    with pytest.raises(MemoryError):
        cache.load(tmp_path, "tiny", "0" * 64, lambda: tiny)
    assert sorted(p.name for p in entry_of(tmp_path).iterdir()) == ["arrays", "lock"]


def test_a_decoder_that_fails_leaves_nothing_behind(tmp_path):
    def fails():
        raise UserError("no such image")

    with pytest.raises(UserError):
        cache.load(tmp_path, "tiny", "0" * 64, fails)
    assert [p.name for p in entry_of(tmp_path).iterdir()] == ["lock"]


BUILDER = """
import sys, time
from pathlib import Path
import numpy as np
from pipeline.data import cache

home = Path(sys.argv[1])

def decode():
    with open(home / "decoded", "a") as file:
        file.write("x")
    time.sleep(float(sys.argv[2]))
    return cache.Decoded(("a",), *(np.zeros((2, 1, 2, 2), np.uint8), np.zeros(2, np.int64)) * 2)

print("ready", flush=True)
print(cache.load(home, "slow", "1" * 64, decode).fingerprint)
"""


@contextlib.contextmanager
def builder(home: Path, seconds: float):
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(home), str(seconds)],
        cwd=CODE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_two_processes_that_need_the_same_set_decode_it_once(tmp_path):
    with builder(tmp_path, 0.5) as one, builder(tmp_path, 0.5) as two:
        fingerprints = [process.communicate(timeout=30)[0].split()[-1] for process in (one, two)]
    assert fingerprints[0] == fingerprints[1]
    assert (tmp_path / "decoded").read_text() == "x"
    assert (one.returncode, two.returncode) == (0, 0)


def test_a_killed_builder_blocks_nobody(tmp_path):
    with builder(tmp_path, 60) as one:
        while not (tmp_path / "decoded").exists():
            assert one.poll() is None
        one.kill()
        one.wait()
    left = entry_of(tmp_path) / ".arrays.tmp-1-0123abcd"  # what it leaves when killed later
    left.mkdir()
    with builder(tmp_path, 0) as two:
        assert two.communicate(timeout=30)[0].startswith("ready")
    assert two.returncode == 0 and not left.exists()


# --- the split -------------------------------------------------------------------------------

labels_of = st.lists(st.integers(2, 60), min_size=2, max_size=8).flatmap(
    lambda sizes: st.permutations([k for k, n in enumerate(sizes) for _ in range(n)])
)


def decoded(labels) -> cache.Decoded:
    labels = np.array(labels, np.int64)
    pixels = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return cache.Decoded(tuple("abcdefgh")[: labels.max() + 1], pixels, labels, pixels, labels)


@settings(max_examples=60, deadline=None)
@given(labels_of, st.floats(0.02, 0.9), st.integers(0, 2**31), st.none() | st.integers(1, 200))
def test_train_and_held_out(labels, holdout, seed, images):
    decoded_data = decoded(labels)
    train, held_out = train_and_held_out(decoded_data, images, holdout, seed)
    kept = np.concatenate([train, held_out])
    assert len(set(kept)) == len(kept)
    if images is None:
        assert len(kept) == len(labels)
    sizes = np.bincount(decoded_data.train_labels[kept])
    held = np.bincount(decoded_data.train_labels[held_out], minlength=len(sizes))
    assert (held >= 1).all() and (held < sizes).all() and len(sizes) == len(decoded_data.classes)
    # in proportion, but for rounding and for the one image that each
    # part must have of every class, and which other classes then lack
    wanted = holdout * sizes
    forced = np.maximum(0, 1 - wanted).sum() + np.maximum(0, 1 - (sizes - wanted)).sum()
    assert (np.abs(held - wanted) <= 1.0 + forced).all()
    again = train_and_held_out(decoded_data, images, holdout, seed)
    assert np.array_equal(again[0], train) and np.array_equal(again[1], held_out)


def test_another_seed_holds_out_other_images():
    decoded_data = decoded([0, 1] * 100)
    held_out = [tuple(train_and_held_out(decoded_data, None, 0.2, seed)[1]) for seed in range(5)]
    assert len(set(held_out)) == 5


@given(st.lists(st.integers(0, 40), min_size=1, max_size=9), st.integers(0, 200), st.integers(0, 2))
def test_shares(sizes, total, least):
    sizes = np.array(sizes)
    if not sizes.sum():
        return
    counts = shares(total, sizes, least, sizes)
    assert (counts <= sizes).all() and (counts >= np.minimum(least, sizes)).all()
    if least == 0 and total <= sizes.sum():
        assert counts.sum() == total
        assert (np.abs(counts - sizes * total / sizes.sum()) < 1).all()


@given(st.integers(0, 3000), st.integers())
def test_ranking_is_a_permutation(count, seed):
    assert np.array_equal(np.sort(ranking(count, "x", seed)), np.arange(count))


def test_ranking_never_changes():
    """Else the images of a split would be others under the same cell id."""
    assert ranking(10, "train", 0).tolist() == [9, 4, 1, 7, 6, 2, 8, 3, 5, 0]


def test_a_smaller_sliver_is_part_of_a_larger_one():
    labels = np.arange(1000) % 7
    order = ranking(1000, "test")
    small, large = sliver(labels, 50, order), sliver(labels, 300, order)
    assert set(small) < set(large) and len(small) == 50
    assert np.bincount(labels[small]).tolist() == [8, 7, 7, 7, 7, 7, 7]


def test_slivers(tmp_path, digits):
    recipe = Recipe(train_images=100, test_images=30)
    one, two = load(DIGITS, tmp_path, recipe, seed=1), load(DIGITS, tmp_path, recipe, seed=2)
    assert (len(one.train), len(one.held_out), len(one.test)) == (90, 10, 30)
    assert torch.equal(one.test.pixels, two.test.pixels)
    assert not torch.equal(one.train.pixels, two.train.pixels)
    assert one.fingerprint == two.fingerprint == digits.fingerprint
    few = load(DIGITS, tmp_path, Recipe(train_images=1, test_images=1))
    assert len(few.train) == len(few.held_out) == len(few.test) == 10  # one of each class


def test_the_parts_together_are_the_whole(tmp_path, digits):
    other = load(DIGITS, tmp_path, seed=7)
    rows = [
        sorted(bytes(image) for image in torch.cat([s.train.pixels, s.held_out.pixels]).numpy())
        for s in (digits, other)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 1347
    assert not torch.equal(digits.held_out.pixels, other.held_out.pixels)
    assert torch.equal(digits.test.pixels, other.test.pixels)


def test_normalization_is_that_of_the_training_part(digits):
    pixels = digits.train.pixels.double()
    assert digits.zero_point == round(pixels.mean().item())
    assert digits.scale == pytest.approx(1 / pixels.std(correction=0).item(), rel=1e-12)
    normalized = (pixels - digits.zero_point) * digits.scale
    assert abs(normalized.mean()) < 0.01 and normalized.std() == pytest.approx(1, abs=1e-3)


def test_images_that_are_all_the_same_are_refused():
    with pytest.raises(UserError) as caught:
        normalization(data.Images(torch.full((4, 1, 2, 2), 9).byte(), torch.zeros(4)), "flat")
    assert "flat" in sentence(caught)


# --- augmentation ----------------------------------------------------------------------------


def images_of(count: int, shape=(2, 6, 5), seed=0) -> data.Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    return data.Images(pixels, torch.arange(count))  # each image has a label of its own


def epoch(images, size=4, seed=0, **settings):
    return list(data.batches(images, size, torch.Generator().manual_seed(seed), **settings))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(0, 4),
    st.booleans(),
    st.integers(0, 255),
    st.integers(0, 2**40),
)
def test_an_augmented_image_is_a_window_of_the_padded_one(c, h, w, crop, flip, fill, seed):
    images = images_of(6, (c, h, w))
    padded = torch.nn.functional.pad(images.pixels, (crop,) * 4, value=fill)
    for pixels, labels in epoch(images, 3, seed, crop=crop, flip=flip, fill=fill):
        assert pixels.dtype == torch.uint8 and pixels.shape == (3, c, h, w)
        for image, label in zip(pixels, labels, strict=True):
            windows = padded[label].unfold(1, h, 1).unfold(2, w, 1)  # [C, shifts, shifts, H, W]
            same = (windows == image[:, None, None]).all(0).all(-1).all(-1)
            mirrored = (windows == image.flip(-1)[:, None, None]).all(0).all(-1).all(-1)
            assert same.any() or (flip and mirrored.any())


def test_every_shift_and_both_sides_occur_about_equally_often():
    pixels = torch.zeros((4000, 1, 3, 4), dtype=torch.uint8)
    pixels[:, 0, 1, 1] = 1  # one bright pixel: where it goes is what was drawn
    images = data.Images(pixels, torch.zeros(4000, dtype=torch.int64))
    moved = torch.cat([p for p, _ in epoch(images, 100, crop=1, flip=True)])
    share = moved.float().mean(0)[0]
    # shifts -1, 0, 1 from row 1; from column 1, and from column 2 when mirrored
    assert share.sum() == 1
    assert torch.allclose(share, torch.tensor([1, 2, 2, 1]).expand(3, 4) / 18, atol=0.02)


def test_without_augmentation_images_are_only_shuffled():
    images = images_of(12)
    batches = epoch(images)
    labels = torch.cat([label for _, label in batches])
    assert sorted(labels.tolist()) == list(range(12)) and labels.tolist() != list(range(12))
    assert torch.equal(torch.cat([p for p, _ in batches]), images.pixels[labels])


@pytest.mark.parametrize(
    ("count", "size", "sizes"), [(12, 4, [4] * 3), (11, 4, [4] * 2), (3, 4, [3]), (1, 1, [1])]
)
def test_a_last_short_batch_is_dropped_unless_it_is_the_only_one(count, size, sizes):
    batches = epoch(images_of(count), size, crop=1)
    assert [len(labels) for _, labels in batches] == sizes
    assert data.batch_count(count, size) == len(sizes)


def test_the_same_seed_gives_the_same_epoch_however_far_it_is_read():
    images = images_of(20)
    one, two = (torch.Generator().manual_seed(3) for _ in range(2))
    first = list(data.batches(images, 4, one, crop=2, flip=True))
    next(data.batches(images, 4, two, crop=2, flip=True))  # abandoned after one batch
    assert torch.equal(one.get_state(), two.get_state())
    again = epoch(images, 4, 3, crop=2, flip=True)
    for (a, b), (c, d) in zip(first, again, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)
    assert not torch.equal(first[0][0], epoch(images, 4, 4, crop=2, flip=True)[0][0])


def test_ordered_gives_everything_as_it_lies():
    images = images_of(10)
    batches = list(data.ordered(images, 4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([p for p, _ in batches]), images.pixels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_no_batch_makes_the_host_wait():
    images = images_of(64, (3, 32, 32)).to("cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    list(data.batches(images, 16, generator, crop=4, flip=True, fill=100))  # warm up
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(data.batches(images, 16, generator, crop=4, flip=True, fill=100))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(batches) == 4 and batches[0][0].is_cuda


# --- image files -----------------------------------------------------------------------------


def test_read_image_gives_what_is_in_the_file(tmp_path):
    picture(1, (7, 5)).save(tmp_path / "a.png")
    pixels = data.read_image(tmp_path / "a.png", (3, 5, 7))
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert np.array_equal(pixels, np.asarray(picture(1, (7, 5))).transpose(2, 0, 1))
    assert data.read_image(str(tmp_path / "a.png"), (1, 5, 7)).shape == (1, 5, 7)
    assert data.read_image(tmp_path / "a.png", (3, 32, 16)).shape == (3, 32, 16)
    both = data.images_from([tmp_path / "a.png"] * 2, (3, 5, 7))
    assert both.shape == (2, 3, 5, 7) and np.array_equal(both[1], pixels)
    assert data.images_from([], (3, 5, 7)).shape == (0, 3, 5, 7)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"])
def test_read_image_takes_every_usual_mode(tmp_path, mode):
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    picture(1).convert("RGB" if mode == "RGB" else mode).save(path)
    for channels in (1, 3):
        pixels = data.read_image(path, (channels, 8, 8))
        assert pixels.shape == (channels, 8, 8) and pixels.std() > 10


def drawn_on_nothing(mode: str) -> Image.Image:
    """Left half transparent above black, right half opaque dark grey."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((60, 60, 60, 255), (4, 0, 8, 8))
    return image if mode == "RGBA" else image.convert(mode)


def palette(mode: str = "P") -> Image.Image:
    image = Image.new(mode, (8, 8), 0)
    if mode == "P":
        image.putpalette([0, 0, 0, 60, 60, 60])
    image.paste(1 if mode == "P" else 60, (4, 0, 8, 8))
    return image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        ("rgba.png", drawn_on_nothing("RGBA"), {}),
        ("grey.png", drawn_on_nothing("LA"), {}),
        ("rgba.webp", drawn_on_nothing("RGBA"), {"lossless": True, "exact": True}),
        ("rgba.tiff", drawn_on_nothing("RGBA"), {}),
        ("palette.png", palette(), {"transparency": 0}),
        ("palette.gif", palette(), {"transparency": 0}),
        ("one-grey.png", palette("L"), {"transparency": 0}),
        ("one-colour.png", palette("L").convert("RGB"), {"transparency": (0, 0, 0)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_transparent_is_white(tmp_path, name, image, options, channels):
    image.save(tmp_path / name, **options)
    pixels = data.read_image(tmp_path / name, (channels, 8, 8))
    assert (pixels[:, :, :4] == 255).all() and (pixels[:, :, 4:] == 60).all()


def test_what_is_half_transparent_is_half_white(tmp_path):
    Image.new("RGBA", (4, 4), (100, 0, 200, 51)).save(tmp_path / "a.png")
    pixel = data.read_image(tmp_path / "a.png", (3, 4, 4))[:, 0, 0]
    assert np.abs(pixel.astype(int) - [224, 204, 244]).max() <= 1


def test_read_image_turns_a_photograph_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side: turn by a quarter clockwise
    picture(1, (6, 4)).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(np.asarray(picture(1, (6, 4))), -1)
    assert np.array_equal(
        data.read_image(tmp_path / "a.png", (3, 6, 4)).transpose(1, 2, 0), upright
    )


def bomb() -> bytes:
    """A PNG of 45 bytes that claims 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IEND", b"")


def deep() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(file, "png")
    return file.getvalue()


def large() -> bytes:
    """90 million pixels, which Pillow only warns of, in a few kilobytes."""
    file = io.BytesIO()
    Image.new("1", (9500, 9500)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "cannot be read as an image"),
        (b"hello", "cannot be read as an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read as an image"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read as an image"),
        (bomb(), "a.png"),
        (large(), "9500x9500"),
        (deep(), "8"),
    ],
)
def test_what_is_no_image_is_one_sentence(tmp_path, recwarn, content, expected):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError) as caught:
        data.read_image(tmp_path / "a.png", (3, 8, 8))
    assert expected in sentence(caught) and str(tmp_path / "a.png") in sentence(caught)
    assert not [w for w in recwarn if "Decompression" in str(w.category)]


def test_a_path_that_is_no_file_is_one_sentence(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, expected in (("", "folder"), ("gone.png", "no such"), ("pipe", "regular")):
        with pytest.raises(UserError) as caught:
            data.images_from([tmp_path / name], (3, 8, 8))
        assert expected in sentence(caught)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["png", "jpeg", "gif", "bmp", "webp", "tiff", "ppm"]), st.data())
def test_no_damage_to_a_file_ends_in_a_traceback(tmp_path_factory, kind, drawn):
    file = io.BytesIO()
    picture(1, (16, 16)).save(file, kind)
    content = bytearray(file.getvalue())
    for _ in range(drawn.draw(st.integers(0, 4))):
        content[drawn.draw(st.integers(0, len(content) - 1))] = drawn.draw(st.integers(0, 255))
    content = content[: drawn.draw(st.integers(0, len(content)))]
    path = tmp_path_factory.mktemp("damage") / "a"
    path.write_bytes(bytes(content))
    try:
        assert data.read_image(path, (3, 16, 16)).shape == (3, 16, 16)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def test_formats_that_start_other_programs_are_left_out():
    assert not {"EPS", "WMF", "FPX", "MIC"} & set(pictures.FORMATS)
    assert set(folder.EXTENSIONS) <= {
        extension
        for extension, kind in Image.registered_extensions().items()
        if kind in pictures.FORMATS
    }


def test_the_manifest_of_the_cache_names_what_it_checks(tmp_path):
    cache.load(tmp_path, "tiny", "0" * 64, lambda: tiny)
    manifest = json.loads((entry_of(tmp_path) / "arrays/manifest.json").read_text())
    assert manifest["sha256"] == tiny.digests() and manifest["classes"] == ["a", "b"]
    assert (entry_of(tmp_path) / "arrays").stat().st_mode & 0o077 == 0
