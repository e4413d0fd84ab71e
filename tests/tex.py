"""Whether what is written for LaTeX can be compiled here."""

from __future__ import annotations

import shutil
import subprocess

import pytest

STYLES = ("booktabs.sty", "siunitx.sty")


def needed() -> None:
    """Skips the test where pdflatex or a style that reports load is missing."""
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex here: nothing is compiled")
    for style in STYLES:
        if not subprocess.run(["kpsewhich", style], capture_output=True).stdout:
            pytest.skip(f"no {style} here: nothing is compiled")
