"""How the images of a folder are read: grey or colour, transparency, depth, what cannot be read,
classes that are too small. What is not the default is part of a cell's id."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from pipeline import catalog, data, sweep
from pipeline.errors import UserError
from pipeline.sweep import Cell, Dataset, Recipe
from tests.lab import Lab


def noise(seed: int, mode: str = "RGB", size: int = 8) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def fill(top: Path, mode: str = "RGB", train: int = 4, suffix: str = "png") -> Path:
    for part, count in (("train", train), ("test", 2)):
        for name in ("cat", "dog"):
            (top / part / name).mkdir(parents=True)
            for i in range(count):
                noise(len(part) * 100 + len(name) + i, mode).save(
                    top / part / name / f"{i}.{suffix}"
                )
    return top


def own(top: Path, **settings) -> Dataset:
    return Dataset(name="own", folder=str(top), **settings)


def load(dataset: Dataset, root: Path) -> data.Split:
    return data.load(dataset, Recipe(holdout=0.25), 0, root, root / "cache")


def told(dataset: Dataset, root: Path) -> list[str]:
    """The notes that a run reports before it starts."""
    lines: list[str] = []
    data.prepare(dataset, root, root / "cache", lines.append)
    return [line for line in lines if "reading all images" not in line]


def linked_part(top: Path) -> None:
    shutil.rmtree(top / "test")
    (top / "test").symlink_to("train")


def linked_class(top: Path) -> None:
    shutil.rmtree(top / "train" / "dog")
    (top / "train" / "dog").symlink_to("cat")


def linked_file(top: Path) -> None:
    (top / "test" / "dog" / "1.png").unlink()
    os.link(top / "train" / "dog" / "3.png", top / "test" / "dog" / "1.png")


@pytest.mark.parametrize(
    ("link", "words"),
    [
        (linked_part, r"test/cat/0\.png and /.*/train/cat/0\.png are the same file, expected "),
        (linked_class, r"train/dog/0\.png and .* expected other images in train/dog than in tr"),
        (linked_file, r"test/dog/1\.png and .*train/dog/3\.png are the same file"),
    ],
)
def test_one_file_is_no_image_of_two_parts_or_classes(tmp_path, link, words):
    link(fill(tmp_path / "own"))
    with pytest.raises(UserError, match=words):
        load(own(tmp_path / "own"), tmp_path)


# --- grey or colour --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "odd", "channels", "words"),
    [
        ("L", "RGB", 1, "1 of 12 images is in colour; all are read as grey, as most of them are; "),
        ("RGB", "L", 3, "1 of 12 images is grey; all are read as colour, as most of them are; "),
    ],
)
def test_most_images_decide_and_the_odd_one_is_told_of(tmp_path, mode, odd, channels, words):
    top = fill(tmp_path / "own", mode)
    noise(5, odd).save(top / "train/cat/0.png")  # the first of all
    split = load(own(top), tmp_path)
    assert split.shape == (channels, 8, 8) == data.facts(own(top), tmp_path)[1]
    (line,) = told(own(top), tmp_path)
    other = 4 - channels
    assert line == f"own: {words}`channels: {other}` with the data set reads all as " + (
        "grey" if other == 1 else "colour"
    )
    assert told(own(top), tmp_path) == [line] == list(split.notes)  # of what is in the cache, too
    assert load(own(top, channels=other), tmp_path).shape == (other, 8, 8)
    assert told(own(top, channels=other), tmp_path) == []


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_palette_of_greys_is_grey(tmp_path, suffix):
    top = fill(tmp_path / "own", "L")
    for path in sorted(top.rglob("*.png")):
        image = Image.open(path).convert("P")  # in these files it stays a palette
        image.putpalette([255 - i // 3 for i in range(768)])
        path.unlink()
        image.save(path.with_suffix(f".{suffix}"))
    split = load(own(top), tmp_path)
    assert split.shape == (1, 8, 8) and told(own(top), tmp_path) == []
    first = 255 - np.asarray(noise(len("test") * 100 + len("cat"), "L"))
    assert np.array_equal(split.test.pixels[0, 0].numpy(), first)


# --- transparency ----------------------------------------------------------------------------


def icons(top: Path, colour: tuple[int, int, int]) -> Path:
    """Shapes that only transparency draws: all of them of one colour."""
    fill(top)
    for i, path in enumerate(sorted(top.rglob("*.png"))):
        image = Image.new("RGBA", (8, 8), (*colour, 0))
        image.paste((*colour, 255), (0, 0, 2 + i % 5, 8))
        image.save(path)
    noise(1).convert("RGBA").save(top / "train/cat/0.png")  # and a photograph
    return top


def test_what_transparent_parts_are_laid_on_is_a_setting(tmp_path):
    top = icons(tmp_path / "own", (0, 0, 0))
    white, grey = load(own(top), tmp_path), load(own(top, background="#c0c0c0"), tmp_path)
    assert set(np.unique(white.test.pixels)) == {0, 255}
    assert set(np.unique(grey.test.pixels)) == {0, 192}
    assert white.fingerprint != grey.fingerprint
    (line,) = told(own(top, background="#c0c0c0"), tmp_path)
    assert line == (
        "own: in 11 of 12 images transparency alone makes the picture; they are laid on #c0c0c0; "
        "`background:` with the data set chooses another colour"
    )
    (line,) = told(own(top, background="black"), tmp_path)
    assert "laid on black, and 11 of them show nothing then; `background:`" in line


def test_opaque_and_evenly_transparent_images_are_not_told_of(tmp_path):
    top = fill(tmp_path / "own", "RGBA")
    Image.new("RGBA", (8, 8), (9, 9, 9, 128)).save(top / "train/cat/0.png")
    assert told(own(top), tmp_path) == []


# --- formats ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "feature"), [("jp2", "jpg_2000"), ("avif", "avif")])
def test_formats_are_read_where_pillow_reads_them(tmp_path, suffix, feature):
    if not features.check(feature):
        pytest.skip(f"this Pillow does not read {suffix}")
    top = fill(tmp_path / "own", suffix=suffix)
    (top / "train/dog/a.heic").write_bytes(b"x")
    split = load(own(top), tmp_path)
    assert len(split.train) + len(split.held_out) == 8
    assert told(own(top), tmp_path) == ["own: 1 file in train/dog was not read: .heic"]


def save_16_bits(path: Path, colour: bool) -> None:
    """A PNG; Pillow writes none in colour."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    rows = np.arange(64 * (3 if colour else 1), dtype=">u2").reshape(8, -1) * 300
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2 if colour else 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_sixteen_bits_are_read_as_told_or_refused_by_name(tmp_path):
    top = fill(tmp_path / "own")
    save_16_bits(top / "test/cat/0.png", colour=True)
    expected = (np.arange(192) * 300 >> 8).astype(np.uint8).reshape(8, 8, 3).transpose(2, 0, 1)
    assert np.array_equal(load(own(top), tmp_path).test.pixels[0].numpy(), expected)
    assert told(own(top), tmp_path) == [
        "own: 1 of 12 images has 16 bits a channel, of which the upper 8 are read"
    ]
    save_16_bits(top / "train/dog/1.png", colour=False)
    with pytest.raises(UserError, match=r"dog/1\.png: has one channel of 16 or 32 bits, whose ran"):
        load(own(top), tmp_path)
    Image.fromarray(np.ones((8, 8), np.float32)).save(top / "train/dog/1.tiff")
    (top / "train/dog/1.png").unlink()
    with pytest.raises(UserError, match=r"dog/1\.tiff: has one channel of 16 or 32 bits"):
        load(own(top), tmp_path)


# --- what cannot be read ---------------------------------------------------------------------


def test_images_that_cannot_be_read_are_left_out_where_that_is_asked_for(tmp_path):
    top = fill(tmp_path / "own")
    whole = load(own(top), tmp_path)
    for name in ("train/cat/0.png", "train/dog/3.png", "test/dog/1.png"):
        (top / name).write_bytes((top / name).read_bytes()[:60])
    with pytest.raises(UserError, match="train/cat/0.png: cannot be read as an image"):
        data.prepare(own(top), tmp_path, tmp_path / "cache", lambda line: None)
    skipping = own(top, on_error="skip")
    (line,) = told(skipping, tmp_path)
    assert line.startswith(
        "own: 3 of 12 images cannot be read and are left out (`on_error: skip`): "
        f"{top}/train/cat/0.png, {top}/train/dog/3.png, {top}/test/dog/1.png"
    )
    split = load(skipping, tmp_path)
    assert len(split.train) + len(split.held_out) == 6 and split.notes == (line,)
    assert np.array_equal(split.test.pixels, whole.test.pixels[:3])
    assert split.test.labels.tolist() == [0, 0, 1]
    for i in range(2):
        (top / f"test/cat/{i}.png").write_bytes(b"")
    with pytest.raises(UserError, match="own: none of the images in test/cat can be read"):
        told(skipping, tmp_path)


def test_images_of_another_size_are_never_left_out(tmp_path):
    top = fill(tmp_path / "own")
    noise(1, size=9).save(top / "test/dog/1.png")
    with pytest.raises(UserError, match="has 9x9 pixels"):
        load(own(top, on_error="skip"), tmp_path)


# --- classes that are too small --------------------------------------------------------------


def test_a_class_that_cannot_be_divided_is_refused_before_a_worker_starts(tmp_path):
    lab = Lab(tmp_path)
    fill(tmp_path / "pets", train=1)
    name = lab.sweep("base", dataset="{name: pets, folder: pets, size: 32}")
    ran = lab.run(name)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == (
        "netpress: pets: class 'cat' has 1 training image, too few to hold one out: expected at "
        "least 2\n"
    )
    assert not (tmp_path / "runs/cells").exists() and not (tmp_path / "reports").exists()
    pets = Dataset(name="pets", folder=str(tmp_path / "pets"))
    with pytest.raises(UserError, match="class 'cat' has 1 training image"):
        data.require(pets, tmp_path, pytest.fail)  # as before a submission; nothing is decoded


def test_so_is_one_that_is_left_with_one_image_or_shows_nothing(tmp_path):
    top = fill(tmp_path / "own", train=2)
    with pytest.raises(UserError, match="class 'cat' has 1 training image, too few"):
        (top / "train/cat/0.png").write_bytes(b"x")
        told(own(top, on_error="skip"), tmp_path)
    for path in top.rglob("*.png"):
        Image.new("RGB", (8, 8), "red").convert("L").save(path)
    with pytest.raises(UserError, match="every pixel of every training image is the same$"):
        told(own(top), tmp_path)
    for path in top.rglob("*.png"):
        picture = Image.new("RGBA", (8, 8), "white")
        picture.putalpha(Image.linear_gradient("L").resize((8, 8)))
        picture.save(path)
    with pytest.raises(UserError, match="is the same, laid on white where it .*`background:`"):
        told(own(top), tmp_path)


# --- in the sweep file -----------------------------------------------------------------------

SWEEP = "name: mine\nmodels: [vgg16_bn]\ntechniques: [base]\ndatasets: [{%s}]\n"


def cell_of(folder: Path, dataset: str) -> Cell:
    (folder / "photos").mkdir(exist_ok=True)
    (folder / "mine.yaml").write_text(SWEEP % dataset)
    return sweep.load(folder / "mine.yaml", catalog.built_in()).cells[0]


def test_settings_are_part_of_the_id_where_they_are_not_the_defaults(tmp_path):
    plain = cell_of(tmp_path, "name: a, folder: photos")
    # As it was before there were these settings.
    assert plain.dataset.canonical == '{"flip":null,"name":"a","size":null}'
    dataset = {"name": "a", "folder": str(tmp_path / "photos"), "size": None, "flip": None}
    assert plain.to_json()["dataset"] == dataset
    defaults = "name: a, folder: photos, background: white, on_error: refuse, channels: null"
    assert cell_of(tmp_path, defaults).id == plain.id
    ids = {plain.id}
    for name, value in (("channels", 3), ("background", "#00ff00"), ("on_error", "skip")):
        cell = cell_of(tmp_path, f"name: a, folder: photos, {name}: {json.dumps(value)}")
        assert cell.to_json()["dataset"] == {**dataset, name: value}
        assert Cell.from_json(cell.to_json(), catalog.built_in()) == cell
        ids.add(cell.id)
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (
            "name: a, folder: photos, channels: 2",
            "4: datasets[0].channels: 2 is not valid; expected",
        ),
        ("name: a, folder: photos, background: teal", "background: expected white, black or a col"),
        ("name: a, folder: photos, on_error: go", "'refuse' or 'skip'"),
        (
            "name: mnist, channels: 3",
            "4: datasets[0].channels: is for folders of images; remove it",
        ),
    ],
)
def test_wrong_settings_are_one_sentence(tmp_path, dataset, words):
    with pytest.raises(UserError) as caught:
        cell_of(tmp_path, dataset)
    assert words in str(caught.value)
