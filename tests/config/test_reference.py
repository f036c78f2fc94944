"""The settings reference is the one that the code writes, and it names everything."""

import re
from pathlib import Path

import yaml

from nablaflow.config.reference import page
from nablaflow.methods import METHODS
from nablaflow.rewards import CONFIGURABLE

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "settings.md"


def test_the_page_is_what_the_code_writes():
    assert PAGE.read_text(encoding="utf-8") == page(), "run make reference"


def test_every_method_and_reward_has_a_section():
    headings = set(re.findall(r"^### (\S+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert set(METHODS) | set(CONFIGURABLE) <= headings


def test_every_setting_of_every_recipe_is_on_it():
    """The recipes are read as plain YAML, without the classes that the page is made from."""
    known = set(re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert len(recipes) > 10
    for recipe in recipes:
        for key in _keys(yaml.safe_load(recipe.read_text(encoding="utf-8"))):
            assert key in known or key == "method.name", f"{recipe.name}: {key}"


def _keys(values: dict, prefix: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        if isinstance(value, dict) and key not in ("reward", "prompts", "beta"):
            found += _keys(value, f"{prefix}{key}.")
        else:
            found.append(prefix + key)
    return found


def test_defaults_and_bounds_are_told_as_they_are():
    text = PAGE.read_text(encoding="utf-8")
    for row in (
        "| `sampler.steps` | whole number (from 2 to 100000) | `20` | K,",
        '| `guard.action` | `warn`, `stop`, `roll-back` | `"stop"` |',
        "| `training.updates` | whole number (from 1) | `200` |",
        "| `output_dir` | path | required |",
        "| `adapter.alpha` | number, null (> 0) | `null` |",
        "| `seed` | whole number (from 0 < 4294967296) | `0` |",
    ):
        assert row in text, row
