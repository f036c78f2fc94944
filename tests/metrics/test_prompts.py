"""Splitting a sample by its prompts."""

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.metrics.prompts import by_prompt, check_prompts


def test_rows_keep_their_order_and_prompts_ascend():
    index = torch.tensor([7, 2, 7, 2, 7])
    values = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    groups = by_prompt(index, values, values + 10)
    assert list(groups) == [2, 7]
    assert [column.tolist() for column in groups[7]] == [[0.0, 2.0, 4.0], [10.0, 12.0, 14.0]]


def test_a_single_image_is_refused():
    with pytest.raises(UserError, match="prompt 3 has one image"):
        by_prompt(torch.tensor([1, 1, 3]), torch.zeros(3))


def test_columns_of_another_length_are_refused():
    with pytest.raises(ValueError, match="3 prompt indices"):
        by_prompt(torch.tensor([1, 1, 1]), torch.zeros(2))


def test_missing_prompts_are_named():
    check_prompts([1, 2], [2, 1, 0])
    with pytest.raises(UserError, match=r"\[4, 5\]"):
        check_prompts([5, 1, 4], [1])
