"""Prompts from the hub: a column of any data set, and the papers' sets by name."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from nablaflow.errors import UserError, installing, nearest
from nablaflow.prompts.files import COLUMN, FoundPrompts, read_file, text_of

ANIMALS = "simple-animals"
BENCHMARK = ("ymhao/HPDv2", "fd163b223b6faf112eccafeabe2e31a0e950f177")
"""The benchmark of HPSv2 (arXiv 2306.09341), which has DrawBench beside its own: lists of texts."""
FILES = {
    "drawbench": "benchmark/drawbench.json",
    "hpdv2-photo": "benchmark/photo.json",
    "hpdv2-paintings": "benchmark/paintings.json",
}


def named_set(name: str) -> FoundPrompts:
    """A set that the papers train on; the animals ship with the package.

    Raises:
        UserError: the hub cannot be reached.
    """
    if name == ANIMALS:
        source = resources.files("nablaflow.prompts") / "texts" / "simple_animals.txt"
        with resources.as_file(source) as path:
            found = read_file(path, None)
        return FoundPrompts(name, found.texts, found.lines)
    repo, revision = BENCHMARK
    try:
        file = hf_hub_download(repo, FILES[name], repo_type="dataset", revision=revision)
    except Exception as error:  # requests, httpx and the hub have many kinds for one cause
        raise UserError(
            f"prompts: {name} is {FILES[name]} of {repo}, which could not be downloaded "
            f"({type(error).__name__}); give a file of your own"
        ) from error
    texts: list[str] = json.loads(Path(file).read_text(encoding="utf-8"))
    return FoundPrompts.of(name, ((row, str(text), {}) for row, text in enumerate(texts, start=1)))


def data_set(repo: str, column: str | None, split: str | None) -> FoundPrompts:
    """A column of a data set.

    Args:
        repo: id on the hub, ``owner/name``.
        column: None is ``prompt``.
        split: None is ``train``.

    Raises:
        UserError: the package is missing, the hub cannot be reached, there is no such column, or
            it holds no texts.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"prompts: data sets of the hub need a package; {installing('datasets')}"
        ) from None
    column, split = column or COLUMN, split or "train"
    try:
        rows: Any = datasets.load_dataset(repo, split=split)
    except Exception as error:  # as above
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise UserError(
            f"prompts: {repo}, split {split}, could not be downloaded ({reason}); check both, or "
            "give a file"
        ) from error
    if column not in rows.column_names:
        hint = nearest(column, rows.column_names)
        raise UserError(f"prompts.column: {repo} has no column {column!r}; {hint}")
    cells = enumerate(rows[column], start=1)
    texts = ((row, text_of(cell, column, f"{repo}, row {row}"), {}) for row, cell in cells)
    return FoundPrompts.of(repo, texts)
