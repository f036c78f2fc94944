"""Splits a sample by its prompts: every figure is taken within a prompt, then averaged."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from nablaflow.errors import UserError


def by_prompt(prompt_index: Tensor, *columns: Tensor) -> dict[int, tuple[Tensor, ...]]:
    """The rows of each prompt, in float64 on the CPU, so that figures do not depend on the device.

    Args:
        prompt_index: (n,) integers; equal means the same prompt.
        columns: tensors of n rows each.

    Returns:
        For each prompt, in ascending order, its rows of every column, in the order they came.

    Raises:
        UserError: a prompt has a single row, from which no error can be estimated.
        ValueError: a column has a different number of rows.
    """
    if any(len(column) != len(prompt_index) for column in columns):
        lengths = [len(column) for column in columns]
        raise ValueError(f"{len(prompt_index)} prompt indices for columns of {lengths} rows")
    index = prompt_index.cpu()
    doubles = [column.detach().to("cpu", torch.float64) for column in columns]
    groups = {}
    for prompt in index.unique().tolist():
        rows = index == prompt
        if rows.sum() < 2:
            raise UserError(f"prompt {prompt} has one image: ask for at least two images a prompt")
        groups[prompt] = tuple(column[rows] for column in doubles)
    return groups


def check_prompts(wanted: Iterable[int], known: Iterable[int]) -> None:
    """Raise ``UserError`` unless every prompt of ``wanted`` is among those of ``known``."""
    missing = sorted(set(wanted) - set(known))
    if missing:
        raise UserError(f"no reference samples for prompts {missing}: compare the same prompts")
