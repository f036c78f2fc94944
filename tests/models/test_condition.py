"""Rows of conditions, and the embeddings that are kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from nablaflow.models import Condition
from nablaflow.models.embeddings import Embeddings

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Masked(Condition):
    """What a family with a field of its own is given."""

    mask: Tensor | None = None


def masked(rows: int, seed: int) -> Masked:
    g = torch.Generator().manual_seed(seed)
    hidden, pooled = torch.randn(rows, 3, 2, generator=g), torch.randn(rows, 5, generator=g)
    mask = torch.rand(rows, 3, generator=g) > 0.5
    return Masked(hidden, pooled, Condition(-hidden), mask)


def parts(condition: Condition) -> list[Tensor]:
    assert isinstance(condition, Masked)
    assert condition.negative is not None
    found = [condition.hidden, condition.pooled, condition.negative.hidden, condition.mask]
    return [part for part in found if part is not None]


def test_rows_are_taken_of_every_part() -> None:
    condition = masked(4, 0)
    for index in (slice(1, 3), torch.tensor([2, 0, 2])):
        wanted = [part[index] for part in parts(condition)]
        assert all(map(torch.equal, parts(condition[index]), wanted))


def test_rows_are_joined_and_repeated_in_every_part() -> None:
    first, second = masked(2, 1), masked(3, 2)
    joined = Condition.concatenate([first, second])
    wanted = [torch.cat(pair) for pair in zip(parts(first), parts(second), strict=True)]
    assert all(map(torch.equal, parts(joined), wanted))
    wanted = [torch.cat([part] * 3) for part in parts(first[:1])]
    assert all(map(torch.equal, parts(first[:1].expand(3)), wanted))


def test_what_is_not_there_stays_so() -> None:
    assert Condition()[torch.tensor([0, 0])] == Condition()
    assert Condition.concatenate([Condition(), Condition()]) == Condition()
    assert Condition().bytes() == 0


class Counted:
    """An encoder of 40 bytes for each prompt, that says when it is at work."""

    def __init__(self) -> None:
        self.encoded: list[str] = []
        self.calls = 0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self.calls += 1
        yield

    def encode(self, prompt: str) -> Condition:
        self.encoded.append(prompt)
        return Condition(torch.full((1, 1, 10), float(len(prompt))))


def test_a_prompt_is_embedded_once_and_its_row_is_where_it_was_asked_for() -> None:
    encoder = Counted()
    embeddings = Embeddings(encoder.encode, encoder.at_work)
    found = embeddings(["bb", "a", "bb"], CPU)
    assert found.hidden is not None
    assert found.hidden[:, 0, 0].tolist() == [2, 1, 2]
    embeddings(["a", "bb"], CPU)
    assert (encoder.encoded, encoder.calls) == (["bb", "a"], 1)


def test_those_not_asked_for_longest_go_first() -> None:
    encoder = Counted()
    embeddings = Embeddings(encoder.encode, encoder.at_work, kept=80)
    for prompts in (["a", "bb"], ["a"], ["ccc"], ["a"], ["bb"]):
        embeddings(prompts, CPU)
    assert encoder.encoded == ["a", "bb", "ccc", "bb"]
    found = embeddings(["a", "bb", "ccc"], CPU)  # more than there is room for
    assert found.hidden is not None
    assert found.hidden[:, 0, 0].tolist() == [1, 2, 3]
