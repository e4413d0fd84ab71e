"""`netpress predict`: folders, the most likely classes, bad images, many images."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import artifact, cli, cli_predict, predict, runtimes
from pipeline.errors import Corrupt
from tests import strangers
from tests.test_artifact import deployed, split_of


@pytest.fixture
def ask(capfd):
    def ask(*arguments: object) -> tuple[int, str, str]:
        code = cli.main(["predict", *map(str, arguments)])
        return code, *capfd.readouterr()

    return ask


@pytest.fixture
def photos(bench, tmp_path) -> tuple[Path, list[Path]]:
    """A folder with six images, and what else lies in such folders."""
    top = tmp_path / "photos"
    (top / "more").mkdir(parents=True)
    paths = [top / f"{i}.png" for i in range(4)] + [top / "more" / f"{i}.PNG" for i in range(2)]
    for path, pixels in zip(paths, split_of(bench).test.pixels[:, 0].numpy(), strict=False):
        Image.fromarray(pixels).save(path, "png")
    (top / "more/notes.txt").write_text("x")
    (top / ".hidden.png").write_text("x")
    (top / "more/loop").symlink_to(top)
    return top, paths


def test_folders_are_searched_and_told_what_is_passed_over(bench, ask, photos):
    top, paths = photos
    code, out, err = ask(deployed(bench, "base").folder, top, paths[0])
    assert code == 0
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        str(p) for p in [*paths, paths[0]]
    ]
    assert err.splitlines() == [
        f"netpress: 1 file in {top} was not read: .txt",
        f"netpress: links in {top} to folders above, or to such as were read already, were not "
        "followed: loop",
    ]


def test_the_most_likely_classes_of_each(bench, ask, photos):
    folder = deployed(bench, "base").folder
    split, (top, paths) = split_of(bench), photos
    [scores] = runtimes.logits(
        runtimes.session(artifact.load(folder), 1), split.test.pixels[:6].numpy()
    )
    best = torch.softmax(torch.from_numpy(scores), 1).topk(5)
    code, out, _ = ask(folder, top, "--top", 5, "--json")
    listed = json.loads(out)
    assert code == 0 and listed["failures"] == []
    for row, path, values, index in zip(listed["predictions"], paths, *best, strict=True):
        assert row["image"] == str(path) and len(row["top"]) == 5
        assert [one["class"] for one in row["top"]] == [split.classes[k] for k in index]
        assert [one["confidence"] for one in row["top"]] == pytest.approx(values.tolist(), rel=1e-4)
        assert {"class": row["class"], "confidence": row["confidence"]} == row["top"][0]
    lines = ask(folder, paths[0], "--top", 5)[1].splitlines()
    assert len(lines) == 1 and len(lines[0].split("  ")) == 11
    many = json.loads(ask(folder, paths[0], "--top", 100, "--json")[1])["predictions"]
    assert len(many[0]["top"]) == 10  # all there are
    assert "top" not in json.loads(ask(folder, paths[0], "--json")[1])["predictions"][0]


def test_one_bad_image_is_listed_and_the_others_are_classified(bench, ask, photos):
    folder, (top, paths) = deployed(bench, "base").folder, photos
    sound = ask(folder, top)[1].splitlines()
    paths[1].write_bytes(paths[1].read_bytes()[:50])
    os.mkfifo(top / "pipe.png")
    code, out, err = ask(folder, top)
    assert code == 1 and out.splitlines() == [sound[0], *sound[2:]]
    told = [line for line in err.splitlines() if "not read" not in line and "links" not in line]
    assert told[0].startswith(f"netpress: {paths[1]}: cannot be read as an image (")
    assert told[1:] == [
        f"netpress: {top}/pipe.png: is not a regular file, expected an image file",
        "netpress: 2 of 7 images could not be classified",
    ]
    code, out, _ = ask(folder, top, "--json")
    listed = json.loads(out)
    assert code == 1 and len(listed["predictions"]) == 5
    assert [one["image"] for one in listed["failures"]] == [str(paths[1]), f"{top}/pipe.png"]
    assert ask(folder, paths[1])[:2] == (1, "")  # not one that could be


def test_what_is_not_there_is_refused_before_anything_is_classified(bench, ask, photos):
    code, out, err = ask(deployed(bench, "base").folder, photos[1][0], "nothing.png")
    assert (code, out, err) == (2, "", "netpress: nothing.png: no such image file or folder\n")


def test_many_images_are_classified_in_batches_with_progress(bench, ask, photos, monkeypatch):
    """Whatever their number, two batches are in memory, and each is shown when it is done."""
    folder, (_, paths) = deployed(bench, "base").folder, photos
    monkeypatch.setattr(cli_predict, "ELSEWHERE_S", 0.0)
    read: list[Path] = []
    real = predict.data.read_image

    def counted(path, *arguments):
        read.append(path)
        return real(path, *arguments)

    monkeypatch.setattr(predict.data, "read_image", counted, raising=False)
    many = [paths[i % 6] for i in range(10_000)]
    ahead = []
    for i, one in enumerate(predict.predict(folder, many)):
        assert one.image == many[i]
        ahead.append(len(read) - i)
        if i == 1000:
            break
    assert max(ahead) <= 2 * runtimes.BATCH
    code, out, err = ask(folder, *many[:200])
    assert code == 0 and len(out.splitlines()) == 200
    assert len(set(out.splitlines())) == 6  # the same image, the same line
    assert "netpress: 100 of 200 images" in err.splitlines()


def test_the_background_of_its_training_is_that_of_its_images(bench, ask, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(deployed(bench, "base").folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "background" not in manifest and artifact.load(folder).background == "white"
    image = Image.new("LA", (32, 32), (0, 0))
    image.paste((0, 255), (8, 8, 20, 24))
    image.save(tmp_path / "a.png")
    seen = []
    for colour in ("black", "white"):
        (folder / "manifest.json").write_bytes(strangers.sealed(manifest | {"background": colour}))
        [prediction] = predict.predict(folder, [tmp_path / "a.png"], top=10)
        drawn = np.full((1, 1, 32, 32), 255 if colour == "white" else 0, np.uint8)
        drawn[0, 0, 8:24, 8:20] = 0
        [scores] = runtimes.logits(runtimes.session(artifact.load(folder), 1), drawn)
        assert prediction.top[0][1] == pytest.approx(artifact.softmax(scores).max(), rel=1e-5)
        seen.append(prediction.top)
    assert seen[0] != seen[1]
    (folder / "manifest.json").write_bytes(strangers.sealed(manifest | {"background": "no colour"}))
    with pytest.raises(Corrupt, match="not a manifest"):
        artifact.load(folder)
