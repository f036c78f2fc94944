"""What `tests/support/annotations.py` refuses, against wrong shapes and types written by hand."""

# ruff: noqa: F821, one dimension is a shape and no name
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import beartype
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float
from torch import Tensor

from nablaflow.diffusion.process import at
from tests.support.annotations import checked

check = checked(typechecker=beartype.beartype)


@check
def weighed(x: Float[Tensor, "batch pixel"], by: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    return (x * by[:, None]).sum(dim=len(x) % 2)


@check
def each(parts: list[Float[Tensor, "batch"]], x: Float[Tensor, "batch 2"]) -> None: ...


@check
def repeated(word: str, times: int = 2) -> list[str]:
    return [word] * times if times else word  # pyright: ignore


@check
@dataclass(frozen=True)
class Pair:
    x: Float[Tensor, "batch 2"]
    y: Float[Tensor, "batch"]

    @check
    def of(self, other: Later) -> Later:
        return other


@check
@dataclass(frozen=True)
class Named(Pair):
    name: str


Later = int  # known only after the class that speaks of it


def test_what_fits_goes_through():
    x, y = torch.ones(3, 2), torch.ones(3)
    assert weighed(x, y).tolist() == [2, 2, 2]
    assert repeated("a") == ["a", "a"]
    assert Named(x, y, "both").y is y
    assert Pair(x, y).of(2) == 2
    each([y, y], x)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, y: weighed(x, torch.ones(4)),
        lambda x, y: weighed(x, y.to(torch.int64)),
        lambda x, y: weighed(x[None], y),
        lambda x, y: weighed(torch.ones(4, 3), torch.ones(4)),  # its result is of 3 pixels
        lambda x, y: each([torch.ones(4)], x),
        lambda x, y: repeated(1),
        lambda x, y: repeated("a", "b"),
        lambda x, y: repeated("a", 0),  # a word and no list of words
        lambda x, y: Pair(x, torch.ones(4)),
        lambda x, y: Named(x, torch.ones(4), "both"),
        lambda x, y: Named(x, y, 1),
    ],
)
def test_what_does_not_is_refused(call: Callable[[Tensor, Tensor], Any]):
    with pytest.raises(BeartypeCallHintViolation):
        call(torch.ones(3, 2), torch.ones(3))


def test_each_call_has_its_own_sizes_and_a_call_inside_it_too():
    @check
    def outer(x: Float[Tensor, "batch 2"]) -> Float[Tensor, "batch"]:
        weighed(torch.ones(5, 2), torch.ones(5))
        return x.sum(1)

    assert len(outer(torch.ones(3, 2))) == 3
    assert len(outer(torch.ones(4, 2))) == 4


def test_decorated_functions_are_as_before():
    @contextmanager
    @check
    def opened(x: Float[Tensor, "batch 2"]) -> Iterator[int]:
        yield len(x)

    with opened(torch.ones(3, 2)) as found:
        assert found == 3
    assert all(isinstance(written, str) for written in weighed.__annotations__.values())


def test_the_package_is_checked():
    with pytest.raises(BeartypeCallHintViolation):
        at([1.0], torch.ones(2, dtype=torch.int64), torch.ones(2, 3))  # pyright: ignore
