"""The scripts of benchmarks/ name what there is: they are run by hand, and seldom."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator

import pytest

from nablaflow.config.defaults import demo_settings
from nablaflow.config.overrides import load_config
from nablaflow.runs import align
from tests.support.benchmarks import FOLDER, benchmark

SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))
DOCS = FOLDER.parent / "docs"


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_benchmark_imports_is_there(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(FOLDER)  # where a script's own folder is
    benchmark(name)
    for module, part in imported_within(name):
        found = importlib.import_module(module)
        assert hasattr(found, part) or importlib.util.find_spec(f"{module}.{part}"), part


def imported_within(name: str) -> Iterator[tuple[str, str]]:
    """What a script imports of this package where it is needed."""
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text())):
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        if isinstance(node, ast.ImportFrom) and module.split(".")[0] == "nablaflow":
            yield from ((module, part.name) for part in node.names)


def test_the_stages_of_a_start_are_those_of_a_run():
    assert all(callable(getattr(align, name)) for name in benchmark("start").WORK)


@pytest.mark.parametrize("name", benchmark("scaling").RECIPES)
def test_the_settings_whose_scaling_is_measured_are_settings(name: str):
    settings = benchmark("scaling").RECIPES[name]
    assert load_config(None, settings, demo_settings()).training.images_per_prompt == 8


def test_the_benchmarks_that_the_documentation_names_are_there():
    pages = "\n".join(page.read_text() for page in DOCS.rglob("*.md"))
    named = set(re.findall(r"benchmarks/(\w+)\.py", pages))
    assert named, "the pages name some"
    assert named <= set(SCRIPTS)
