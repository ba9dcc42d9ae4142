"""The settings from which `pip install .` makes the package `rhel`. `make wheel-test` installs and uses it."""

import re
import tomllib
from pathlib import Path

import pytest
from installed import PUBLIC

import models

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(name):
    """{package: version} of a requirements file."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def bounds(names):
    """{package: lowest version} of a list in pyproject.toml."""
    return dict(re.fullmatch(r"([\w-]+)(?:>=([\d.]+))?", name).groups() for name in names)


def test_every_folder_of_models_is_a_package_of_rhel():
    folders = [path.parent.relative_to(ROOT / "models").parts for path in (ROOT / "models").rglob("__init__.py")]
    assert sorted(".".join(("rhel", *parts)) for parts in folders) == SETTINGS["tool"]["setuptools"]["packages"]


def test_the_package_has_its_public_names():
    assert PUBLIC <= set(models.__all__) == {name for name in models.__all__ if hasattr(models, name)}


def test_the_lowest_versions_are_those_that_the_wheel_is_tried_with():
    assert bounds(SETTINGS["project"]["dependencies"]).items() <= requirements("requirements-lowest.txt").items()


@pytest.mark.parametrize("extra", ["continuous", "scripts"])
def test_the_extras_are_pinned_in_the_requirements(extra):
    names = [name for name in SETTINGS["project"]["optional-dependencies"][extra] if not name.startswith("rhel[")]
    assert bounds(names).keys() <= requirements("requirements.txt").keys()


def test_the_citation_names_this_version():
    assert f"version: {SETTINGS['project']['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{SETTINGS['project']['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
