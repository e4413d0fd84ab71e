"""One failure costs one cell: a technique that raises, memory that runs out, a kill, a full disk,
damage. Through the command line, with real causes."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from pipeline import store
from tests.lab import Lab, check_whole

pytestmark = pytest.mark.timeout(900)  # processes on a machine that others use, too

DEFINE = """\
define:
  raises: [{trouble: {kind: raises}}]
  memory: [{trouble: {kind: memory}}]
  killed: [{trouble: {kind: killed}}]
"""
REASONS = {
    "raises": "exception: ValueError: no such filter: 7",
    "memory": "out of memory: RuntimeError:",
    "killed": "killed: its process was ended from outside (SIGKILL)",
}


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def test_one_failure_costs_one_cell(lab, smoke):
    lab.have(smoke.lab, without=[smoke.ids["ptq-int8"]])
    sweep_file = lab.sweep(*REASONS, "ptq-int8", more=DEFINE)
    ran = lab.run(sweep_file, "--workers", 2, TROUBLE="on")
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    ids = lab.ids(sweep_file, TROUBLE="on")
    cells = {c["technique"]: c for c in lab.json("status", sweep_file, TROUBLE="on")["cells"]}
    assert {t: c["state"] for t, c in cells.items()} == {
        "base": "done",
        "ptq-int8": "done",
        **dict.fromkeys(REASONS, "failed"),
    }
    gaps = {g["id"]: g["reason"] for g in lab.json("report", sweep_file, TROUBLE="on")["gaps"]}
    report = (lab.folder / "reports/tiny/report.md").read_text()
    for technique, reason in REASONS.items():
        assert gaps[ids[technique]].startswith(reason)
        assert cells[technique]["reason"] == gaps[ids[technique]]
        assert reason in " ".join(report.split()) and reason in " ".join(ran.stdout.split())
        [line] = [x for x in ran.stderr.splitlines() if f"/{technique}/0: failed after" in x]
        assert reason in line
    log = lab.work.cell(ids["raises"]).attempt(1).log.read_text()
    assert "and a second line" in log and "trouble.py" in log

    again = lab.run(sweep_file, "--workers", 2, TROUBLE="gone")
    assert again.returncode == 0, again.stderr
    assert "2 of 5 cells are already done" in again.stderr
    assert lab.json("report", sweep_file, TROUBLE="gone")["gaps"] == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of some MB; `resize` makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "netpress-test", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted only by root")

    def resize(free: int) -> None:
        used = os.statvfs(folder)
        size = (used.f_blocks - used.f_bfree) * used.f_frsize + free
        options = f"remount,size={size}"
        subprocess.run(["mount", "-o", options, str(folder)], check=True, capture_output=True)

    yield folder, resize
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_costs_the_cells_that_need_more(small_disk, smoke):
    """There is room for one state of a training (weights and momentum), not for the second that
    is written before the first is given up, and then for all that `ptq-int8` needs."""
    folder, resize = small_disk
    lab = Lab(folder / "lab")
    (folder.parent / "reports").mkdir()  # what a report needs is not what is looked at
    (lab.folder / "reports").symlink_to(folder.parent / "reports")
    lab.have(smoke.lab, without=set(smoke.ids.values()) - {smoke.ids["base"]})
    sweep_file = lab.sweep("base-longer", "ptq-int8")
    weights = lab.work.cell(smoke.ids["base"]).model.stat().st_size
    resize(int(3.7 * weights))
    ran = lab.run(sweep_file)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    cells = {c["technique"]: c for c in lab.json("status", sweep_file)["cells"]}
    assert {t: c["state"] for t, c in cells.items()} == {
        "base": "done",
        "base-longer": "failed",
        "ptq-int8": "done",
    }
    full = str(lab.work.cell(cells["base-longer"]["id"]).folder)
    assert cells["base-longer"]["reason"].startswith(
        f"disk full: No space left on device in {full}"
    )
    assert "disk full" in (lab.folder / "reports/tiny/report.md").read_text()
    check_whole(lab.work.cell(cells["base-longer"]["id"]))

    resize(32 << 20)
    again = lab.run(sweep_file)
    assert again.returncode == 0, again.stderr
    assert "2 of 3 cells are already done" in again.stderr


# --- damage --------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_set_aside_and_redone(lab, smoke):
    """All that it trained is in one file, as after a kill while its artifact was written."""
    cell_id = smoke.ids["qat-int8"]
    lab.have(smoke.lab)
    sweep_file, cell = lab.sweep("qat-int8"), lab.work.cell(cell_id)
    for left in (cell.manifest, cell.result):
        left.unlink()
    shutil.rmtree(cell.artifact)
    damage(cell.model)
    ran = lab.run(sweep_file)
    assert ran.returncode == 0 and "Traceback" not in ran.stderr
    assert cell.model.with_name("model.safetensors.corrupt-1").exists()
    log = store.last_attempt(cell).log.read_text()
    assert "model.safetensors: its SHA-256 is not the one in index.json; set aside" in log
    assert lab.products(cell_id) == smoke.lab.products(cell_id)
    assert lab.history(cell_id) == smoke.lab.history(cell_id)


def test_damaged_results_are_named_set_aside_and_redone(lab, smoke):
    """One cell each: its numbers, its model, its manifest."""
    damaged = {"ptq-int8": "result.h5", "kd": "artifact/model.onnx", "qat-int8": "manifest.json"}
    lab.have(smoke.lab)
    sweep_file = lab.sweep("base", *damaged)
    cells = {technique: lab.work.cell(smoke.ids[technique]) for technique in damaged}
    for technique, name in damaged.items():
        damage(cells[technique].folder / name)
    gaps = {gap["id"]: gap["reason"] for gap in lab.json("report", sweep_file)["gaps"]}
    assert gaps[smoke.ids["ptq-int8"]].startswith("damaged: result.h5")
    assert gaps[smoke.ids["qat-int8"]].startswith("damaged: manifest.json")
    ran = lab.run(sweep_file, "--workers", 2)
    assert ran.returncode == 0 and "Traceback" not in ran.stderr
    assert "1 of 4 cells are already done" in ran.stderr
    assert " epoch " not in ran.stderr  # nothing is trained for it
    for technique, name in damaged.items():
        part = cells[technique].folder / name.split("/")[0]
        assert part.with_name(f"{part.name}.corrupt-1").exists()
        store.verify(cells[technique])
        assert lab.products(smoke.ids[technique]) == smoke.lab.products(smoke.ids[technique])


def damage(path) -> None:
    """One bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
