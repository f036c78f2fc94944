"""Running out of memory costs time, never a part of the work."""

from __future__ import annotations

import pytest
import torch

from nablaflow.errors import TrainingStopped
from nablaflow.memory import halving, in_parts


def fits(most: int, size: int) -> None:
    if size > most:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_the_size_is_halved_until_it_fits(capsys: pytest.CaptureFixture[str]):
    def work(size: int) -> str:
        fits(3, size)
        return f"done with {size}"

    assert halving(work, 13, "some.setting") == ("done with 3", 3)
    assert capsys.readouterr().err.count("some.setting is now") == 2


def test_at_size_one_there_is_nothing_left_to_halve():
    with pytest.raises(TrainingStopped, match=r"some\.setting: out of memory with 1"):
        halving(lambda size: fits(0, size), 4, "some.setting")


def test_another_error_goes_on_its_way():
    def work(size: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        halving(work, 4, "some.setting")


def test_the_processors_allocator_is_understood_too():
    def work(size: int) -> int:
        return len(torch.empty(size * 2**48))

    with pytest.raises(TrainingStopped):
        halving(work, 2, "some.setting")


def test_apples_gpu_is_understood_too():
    """Torch has no error of its own for it."""

    def work(size: int) -> int:
        if size > 1:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 8.90 GB, other: 80 MB)")
        return size

    assert halving(work, 4, "some.setting") == (1, 1)


@pytest.mark.parametrize("n", [1, 6, 7, 8, 20])
def test_parts_cover_every_row_once_though_memory_runs_out_on_the_way(n: int):
    most = iter([8, 8, 2, *[2] * 20])

    def work(rows: slice) -> list[int]:
        fits(next(most), rows.stop - rows.start)
        return list(range(n))[rows]

    assert [row for part in in_parts(work, n, 6, "some.setting") for row in part] == list(range(n))
