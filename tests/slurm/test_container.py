"""Jobs whose Python runs in a container: Apptainer itself, on the cluster."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.slurm.conftest import PATH, halt, wait_for

APPTAINER = shutil.which("apptainer", path=PATH)
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc/alternatives")

pytestmark = pytest.mark.skipif(APPTAINER is None, reason="no apptainer")


@pytest.fixture
def image(tmp_path):
    """An image that has nothing of its own: empty folders for what is bound from this machine."""
    made = tmp_path / "image"
    for folder in (*SYSTEM, "/proc", "/sys", "/dev", "/tmp", "/var/tmp", "/root", "/home"):
        (made / folder[1:]).mkdir(parents=True, exist_ok=True)
    for file in ("passwd", "group", "resolv.conf", "hosts", "localtime"):
        (made / "etc" / file).touch()
    return made


def in_container(image: Path, *bound: Path) -> tuple[str, ...]:
    """A profile's settings: of this machine, the container has its system, the environment, these
    folders, and what netpress binds by itself."""
    here = [f for f in dict.fromkeys((sys.prefix, sys.base_prefix)) if not f.startswith("/usr")]
    bind = [*(f for f in SYSTEM if Path(f).exists()), *here]
    settings = {
        "container": {
            "image": str(image),
            "bind": [*(f"{folder}:{folder}:ro" for folder in bind), *map(str, bound)],
        },
        "python": sys.executable,
        # Nothing is there by chance: these are what Apptainer binds unasked.
        "setup": ["export APPTAINER_NO_MOUNT=home,tmp,cwd"],
    }
    return tuple(
        word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")
    )


def test_a_sweep_and_its_report_are_made_in_a_container(desk, image):
    """With Slurm's commands inside, so that a job at its end goes into the queue again."""
    sweep = desk.sweep("boxed", seeds="[70]", images=1400)
    desk.submit(sweep, *in_container(image, desk.box.folder))
    [job, *_] = desk.jobs("boxed")
    base = desk.cell(sweep, "base/70")
    process = halt(base, epochs=0)
    inside = Path(f"/proc/{process.pid}/root/home")
    assert list(inside.iterdir()) == [] and Path(f"/proc/{process.pid}/root{base.folder}").is_dir()
    desk.box.ask("scancel", "--signal=USR2", f"{job}_0")
    process.go_on()
    wait_for(lambda: "Restarts=1" in desk.box.ask("scontrol", "show", "job", f"{job}_0"))
    assert {c["state"] for c in desk.settled(sweep).values()} == {"done"}
    page = desk.folder / "reports" / "boxed" / "index.html"
    wait_for(page.exists)
    assert "quick" in page.read_text()
