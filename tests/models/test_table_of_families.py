"""The table in docs/models.md: each cell names tests, and they are there, for each family."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HEADING = "## What is tested of each family"
FLOW = ("sd3", "flux", "klein", "z-image", "qwen-image", "chroma")
TEST = re.compile(r"`([\w/]+)\.py::(\w+)`")


def cells() -> list[tuple[str, str, str]]:
    """(row, column, text) of each cell."""
    section = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").split(HEADING)[1]
    lines = [line for line in section.split("\n## ")[0].splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    columns, body = rows[0][1:], rows[2:]
    return [
        (row[0], column, text)
        for row in body
        for column, text in zip(columns, row[1:], strict=True)
    ]


def test_the_table_has_its_rows_and_columns() -> None:
    rows, columns, _ = map(set, zip(*cells(), strict=True))
    assert len(rows) == 10
    assert len(columns) == 4


@pytest.mark.parametrize(("row", "column", "text"), cells())
def test_a_cell_names_tests_that_are_there(row: str, column: str, text: str) -> None:
    named = TEST.findall(text)
    assert named, f"{row}, {column}: no test"
    for path, name in named:
        module = importlib.import_module("tests." + path.replace("/", "."))
        given = parameters(getattr(module, name))
        if column == "flow matching":
            missing = [kind for kind in FLOW if not any(kind in value for value in given)]
            assert not missing, f"{path}::{name} is not about {missing}"
        elif "test_families" in path:
            own = {"Stable Diffusion 1.x, 2.x": "sd", "Stable Diffusion XL": "sdxl", "DDPM": "ddpm"}
            assert own[column] in given


def parameters(test: Any) -> list[str]:
    """The texts among the values that a test is run with."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    return [value for mark in marks for value in mark.args[1] if isinstance(value, str)]
