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


def test_the_chain_on_a_line_has_its_closed_form():
    """A normal prior and a linear reward, 0.8 x: grad V_k is 0.8 times where x_k's mean ends."""
    script = benchmark("kernel_shape")
    chain = script.Chain.of(script.PRIORS["one mode"], 10, "posterior", 0.8 * script.LATTICE)
    signal = chain.process.alpha_bar.double().sqrt()
    middle = slice(500, 700)  # of the lattice, far from its ends
    for k in chain.levels:
        before, here = (0.8 * signal[j].item() for j in (k - 1, k))
        assert script.slope(chain.values[k])[middle] == pytest.approx(here, rel=2e-3)
        shift = chain.variance(k) * before
        tilted = chain.tilted(chain.values, k) @ script.LATTICE - chain.mean(k)
        assert tilted[middle] == pytest.approx(shift, rel=3e-3)
        controlled = chain.controlled[k - 1] - chain.mean(k)
        assert controlled[middle] == pytest.approx(shift, abs=script.GAP)
