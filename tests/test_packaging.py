"""The pins, the ranges and the package's metadata say the same thing."""

from __future__ import annotations

import configparser
import importlib
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pipeline

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]


@pytest.fixture(scope="module")
def config():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def pinned(name: str, python: str) -> dict[str, str]:
    """The versions that a file under env/ pins for `python`, by package."""
    lines = (ROOT / "env" / name).read_text().splitlines()
    versions = {}
    for line in lines:
        if line and not line.startswith(("#", "-c ")):
            requirement = Requirement(line)
            if not requirement.marker or requirement.marker.evaluate({"python_version": python}):
                package = canonicalize_name(requirement.name)
                assert package not in versions, f"{name}: two pins of {package} for Python {python}"
                versions[package] = re.fullmatch(r"==([^*,]+)", str(requirement.specifier))[1]
    return versions


def ranges(config) -> dict[str, Requirement]:
    text = config["options"]["install_requires"] + config["options.extras_require"]["test"]
    # configparser keeps the comments between the lines of a value out of it.
    requirements = [Requirement(line) for line in text.split("\n") if line]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


@pytest.mark.parametrize("python", PYTHONS)
def test_every_pin_is_in_its_range_and_every_range_has_a_pin(config, python):
    pins, wanted = pinned("requirements.txt", python), ranges(config)
    assert pins.keys() == wanted.keys()
    outside = [n for n in pins if not wanted[n].specifier.contains(pins[n])]
    assert outside == []


@pytest.mark.parametrize("python", PYTHONS)
def test_nothing_is_pinned_twice(python):
    direct, indirect = pinned("requirements.txt", python), pinned("constraints.txt", python)
    assert direct.keys() & indirect.keys() == set()


def test_releases_with_known_holes_are_out_of_range(config):
    wanted = ranges(config)
    assert not wanted["torch"].specifier.contains("2.9.1")  # CVE-2026-24747
    assert not wanted["onnx"].specifier.contains("1.20.0")  # external data leaves its folder


def test_this_environment_is_the_pinned_one():
    """Tests of other versions than the pinned ones would show nothing about these."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    different = {}
    for package, version in pinned("requirements.txt", python).items():
        installed = importlib.metadata.version(package)
        if installed.split("+")[0] != version:  # 2.14.1+cpu is as good as 2.14.1
            different[package] = (installed, version)
    assert different == {}


def test_the_command_and_the_version_are_the_packages(config):
    assert config["metadata"]["version"] == "attr: pipeline.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", pipeline.__version__)
    name, _, target = config["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, function = target.partition(":")
    assert name == "netpress"
    assert callable(getattr(importlib.import_module(module), function))


def test_all_ways_to_an_environment_use_the_same_pins():
    for recipe in ["environment.yml", "Containerfile"]:
        assert "requirements.txt" in (ROOT / "env" / recipe).read_text()
    assert "-c constraints.txt" in (ROOT / "env" / "requirements.txt").read_text()


def test_no_two_files_of_tests_have_one_name():
    """pytest could not collect the second: tests are in no package."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert len(names) > 80 and len(names) == len(set(names))
