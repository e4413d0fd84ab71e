"""Images of a folder that change after a run: named by run, status and report, averaged by none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import catalog, data, measuring, report, store, sweep
from pipeline.errors import UserError
from pipeline.orchestrate import images
from pipeline.paths import Work
from pipeline.sweep import Cell
from tests import cells, results
from tests.lab import Lab

OLD, NEW = "a" * 64, "b" * 64


def draw(folder: Path, count: int = 12, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    for part in ("train", "test"):
        for name in ("dark", "bright"):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = random.integers(0, 100, (16, 16)) + 100 * (name == "bright")
                path = folder / part / name / f"{i}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Cell]:
    """A folder with images, a sweep, and a work root in which its only cell is done."""
    home = tmp_path_factory.mktemp("trained")
    draw(home / "images")
    cell = cells.cells(home, ["base"], **asked())["base"]
    cells.run(cell, Work(home / "runs"))
    return home, cell


def asked() -> dict:
    return {
        "datasets": [{"name": "mine", "folder": "images"}],
        "training": {"epochs": 1, "batch_size": 4, "crop": 0},
    }


@pytest.fixture
def lab(trained, tmp_path) -> Lab:
    shutil.copytree(trained[0], tmp_path / "lab")  # with the times of the files
    return Lab(tmp_path / "lab")


def looked(lab: Lab) -> tuple[list[Cell], Work, Path]:
    sweep_ = sweep.load(lab.folder / "test.yaml", catalog.built_in())
    return list(sweep_.cells), lab.work, lab.folder


def test_unchanged_images_are_not_mentioned(lab):
    assert images.notes(*looked(lab)) == []
    images.check(*looked(lab), pytest.fail)
    assert lab.ask("status", "test.yaml").stderr == ""


def test_changed_images_are_named_by_every_command(lab, trained):
    draw(lab.folder / "images", seed=1)
    place = lab.folder / "images"
    status = lab.ask("status", "test.yaml")
    assert status.returncode == 0 and "1 done" in status.stdout
    assert f"mine: the images in {place} may have changed" in status.stderr
    assert trained[1].id in status.stderr
    before = lab.times("mine")
    ran = lab.run("test.yaml")
    assert ran.returncode == 2 and ran.stdout == ""
    sentence = ran.stderr.splitlines()[-1]
    assert sentence.startswith(f"netpress: mine: the images in {place} changed since 1 cell was")
    assert sentence.endswith("or another name for this data set in the sweep file")
    after = lab.times("mine")
    assert {name for name in after if after[name] != before.get(name)} <= {
        name for name in after if name.startswith("runs/cache")
    }
    for command in ("status", "report"):  # which now know it by the pixels
        assert f"mine: the images in {place} changed since" in lab.ask(command, "test.yaml").stderr


def test_what_lacks_only_a_measurement_is_not_measured_on_other_images(lab):
    draw(lab.folder / "images", seed=1)
    asked = lab.folder / "test.yaml"
    measured = lab.ask("measure", "test.yaml")
    asked.write_text(asked.read_text().replace("repeats: 1", "repeats: 2"))
    status, ran = lab.ask("status", "test.yaml"), lab.run("test.yaml")
    assert "1 trained" in status.stdout
    assert f"mine: the images in {lab.folder / 'images'} changed since" in status.stderr
    for refused in (measured, ran):
        assert refused.returncode == 2 and refused.stdout == ""
        assert "changed since 1 cell was made" in refused.stderr.splitlines()[-1]
    (cell,), work, root = looked(lab)
    with store.lock_cell(work.cell(cell.id)), pytest.raises(UserError) as told:  # as a job does
        measuring.measure_again(cell, work, root, "cpu", 1, pytest.fail)
    assert f"changed since {cell.name} ({cell.id}) was trained" in str(told.value)
    assert len(store.measurements(work.cell(cell.id))[0]) == 1


def test_the_same_pixels_in_new_files_are_no_change(lab):
    for file in (lab.folder / "images").rglob("*.png"):
        os.utime(file, (1, 1))
    (note,) = images.notes(*looked(lab))
    assert "may have changed (names, sizes or times of files)" in note
    messages: list[str] = []
    images.check(*looked(lab), messages.append, decode=False)
    assert len(messages) == 1 and "netpress fetch" in messages[0]
    images.check(*looked(lab), messages.append)
    assert messages[1:] == ["mine: reading all images, once"]
    assert images.notes(*looked(lab)) == []  # they were compared


def test_a_folder_that_is_no_data_set_any_more_is_named(lab):
    shutil.rmtree(lab.folder / "images/train/dark")
    (note,) = images.notes(*looked(lab))
    assert "expected at least 2" in note and "other images" in note
    with pytest.raises(UserError, match="expected at least 2"):
        images.check(*looked(lab), pytest.fail)


def test_a_folder_that_is_elsewhere_is_no_change(lab):
    shutil.rmtree(lab.folder / "images/train")  # such as a disk that is not mounted
    assert images.notes(*looked(lab)) == []
    images.check(*looked(lab), pytest.fail)


def test_results_of_earlier_versions_are_compared_by_run(lab):
    """Their manifests do not record what they were made of; result.h5 always did."""
    (cell,), work, root = looked(lab)
    store.write_manifest(work.cell(cell.id), {"accuracy": 1.0})
    assert images.notes([cell], work, root) == []
    images.check([cell], work, root, pytest.fail)
    draw(lab.folder / "images", seed=1)
    with pytest.raises(UserError, match="changed since 1 cell"):
        images.check([cell], work, root, lambda line: None)


def test_looking_at_images_needs_no_numpy(lab):
    (lab.folder / "look.py").write_text(
        "import sys\nfrom pathlib import Path\nfrom pipeline import catalog, sweep\n"
        "from pipeline.orchestrate import images\nfrom pipeline.paths import Work\n"
        f"asked = sweep.load(Path({str(lab.folder / 'test.yaml')!r}), catalog.built_in())\n"
        f"print(images.notes(asked.cells, Work(Path({str(lab.work.root)!r})), Path('/none')))\n"
        "assert not {'numpy', 'torch', 'h5py', 'pandas'} & set(sys.modules)\n"
    )
    ran = cells.python(str(lab.folder / "look.py"))
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr


def test_images_that_change_while_they_are_read_are_not_kept(tmp_path, monkeypatch):
    from pipeline.data import folder
    from pipeline.sweep import Dataset, Recipe

    draw(tmp_path / "images", 4)
    decode = folder.decode

    def disturbed(*arguments):
        decoded = decode(*arguments)
        draw(tmp_path / "images", 4, seed=1)
        return decoded

    monkeypatch.setattr(folder, "decode", disturbed)
    mine = Dataset(name="mine", folder=str(tmp_path / "images"))
    with pytest.raises(UserError, match="changed while they were read"):
        data.load(mine, Recipe(), 0, tmp_path, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.npy"))


# --- the report --------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path):
    """Two seeds, of which the second was made after the images changed."""
    sweep_, work = results.sweep(techniques=(), seeds=(0, 1)), Work(tmp_path / "work")
    for cell in sweep_.cells:
        made_of = {
            "dataset_fingerprint": NEW if cell.seed else OLD,
            "started": f"2026-01-0{1 + cell.seed}T00:00:00Z",
        }
        results.publish(cell, work, facts=results.FACTS | made_of)
    return sweep_, work


def test_a_report_averages_no_cells_of_different_images(mixed, tmp_path, capsys):
    paths, listed = report.build(*mixed, tmp_path / "reports")
    rows = {(row.dataset, row.technique, row.seed) for row in listed.rows}
    apart = f"digits-{OLD[:8]}"
    assert rows == {(name, "base", seed) for name, seed in ((apart, 0), ("digits", 1))}
    text = paths.markdown.read_text()
    sentence = (
        "digits: its images changed between cells; cells made from other images than the newest "
        f"are listed separately and enter no common mean, as {apart} (1 cell)."
    )
    assert text.count(sentence) == 1 and sentence in paths.page.read_text()
    assert "n = 2" not in text and "±" not in text
    assert f"**{apart}, vgg16\\_bn**" in text or f"**{apart}, vgg16_bn**" in text
    report.print_summary(listed)
    assert sentence in capsys.readouterr().out


def test_a_report_tells_what_was_left_out_and_how_the_rest_was_read(tmp_path):
    sweep_, work = results.sweep(techniques=(), seeds=(0, 1)), Work(tmp_path / "work")
    line = "pets: 3 of 12 images cannot be read and are left out (`on_error: skip`): <b>.png"
    for cell in sweep_.cells:
        more = {"image_notes": [line]} if cell.seed else {}
        results.publish(cell, work, facts=results.FACTS | more)
    paths, _ = report.build(sweep_, work, tmp_path / "reports")
    assert "3 of 12 images cannot be read and are left out" in paths.markdown.read_text()
    page = paths.page.read_text()
    assert "3 of 12 images cannot be read" in page and "&lt;b&gt;.png" in page


def test_such_a_report_is_made_again_to_the_same_bytes(mixed, tmp_path):
    paths, listed = report.build(*mixed, tmp_path / "reports")
    before = {p: p.read_bytes() for p in paths.folder.rglob("*") if p.is_file()}
    assert report.rebuild(paths.folder)[1] == listed
    assert {p: p.read_bytes() for p in paths.folder.rglob("*") if p.is_file()} == before


def test_cells_of_the_same_images_are_averaged_as_ever(tmp_path):
    sweep_, work = results.sweep(techniques=(), seeds=(0, 1)), Work(tmp_path / "work")
    for cell in sweep_.cells:
        results.publish(cell, work, facts=results.FACTS | {"dataset_fingerprint": NEW})
    paths, listed = report.build(sweep_, work, tmp_path / "reports")
    assert {row.dataset for row in listed.rows} == {"digits"}
    assert {row.other_images_of for row in listed.rows} == {None}
    assert "n = 2" in paths.markdown.read_text()
