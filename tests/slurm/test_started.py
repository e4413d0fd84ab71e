"""Bases that start from other ones, on a real SLURM: one job waits for the other's task."""

from __future__ import annotations

import json

FIRST = "{name: vgg16_bn, width: 0.125}"
SECOND = "{name: vgg16_bn, width: 0.125, weights_from: digits/vgg16_bn-w0.125/base}"
ENDED = ("done", "failed", "cancelled", "missing")


def test_a_base_waits_for_the_task_of_the_one_that_it_starts_from(desk):
    sweep = desk.sweep("started", "[base]")
    path = desk.folder / sweep
    text = path.read_text()
    line = next(line for line in text.splitlines() if line.startswith("models:"))
    path.write_text(text.replace(line, f"models:\n- {FIRST}\n- {SECOND}"))

    def ended() -> list[dict]:
        def look() -> list[dict]:
            return json.loads(desk.netpress("status", sweep, "--json")[0])["cells"]

        return desk.looking(look, lambda cells: all(c["state"] in ENDED for c in cells), 150)

    desk.submit(sweep, "--set", 'setup=["false"]', "--set", "measure=in-job")
    first, second = ended()
    assert first["reason"].startswith("set-up failed")
    assert second["reason"].startswith("its starting base is failed: set-up failed")
    named = desk.resume(sweep, second["id"], "--set", "setup=[]", "--set", "measure=in-job")
    assert named.count(": again") == 2  # with the base that it starts from
    assert [cell["state"] for cell in ended()] == ["done", "done"]
