"""Bases that start from other ones, on a real SLURM: one job waits for the other's task."""

from __future__ import annotations

import json

STARTED = "- {name: vgg16_bn, width: 0.125, weights_from: digits/vgg16_bn-w0.125/base}"


def by_model(desk, sweep: str) -> dict[str, dict]:
    found = json.loads(desk.netpress("status", sweep, "--json")[0])
    return {f"{cell['model']}/{cell['technique']}": cell for cell in found["cells"]}


def test_a_base_waits_for_the_task_of_the_one_that_it_starts_from(desk):
    sweep = desk.sweep("started")
    path = desk.folder / sweep
    text = path.read_text()
    line = next(line for line in text.splitlines() if line.startswith("models:"))
    path.write_text(text.replace(line, f"models:\n- {{name: vgg16_bn, width: 0.125}}\n{STARTED}"))
    desk.submit(sweep, "--set", 'setup=["false"]')
    ended = ("done", "failed", "cancelled", "missing")

    def is_over(cells: dict[str, dict]) -> bool:
        return all(cell["state"] in ended for cell in cells.values())

    found = desk.looking(lambda: by_model(desk, sweep), is_over, 150)
    first, second = "vgg16_bn-w0.125/base", "vgg16_bn-w0.125-from-digits/base"
    assert found[first]["reason"].startswith("set-up failed")
    assert found[second]["reason"].startswith("its starting base is failed: set-up failed")
    assert found[second.replace("base", "quick")]["state"] == "failed"
    named = desk.resume(sweep, found[second.replace("base", "quick")]["id"], "--set", "setup=[]")
    assert named.count(": again") == 3  # with all that it stands on
    found = desk.looking(lambda: by_model(desk, sweep), is_over, 300)
    assert found[first]["state"] == found[second]["state"] == "done"
    assert found[second.replace("base", "quick")]["state"] == "done"
    assert found["vgg16_bn-w0.125/quick"]["state"] == "missing"  # nobody named it
