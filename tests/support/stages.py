"""A stage of pretraining that is stopped and goes on, beside one that is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from nablaflow.nano.pretrain import stage


def check_it_resumes(
    room: ModuleType, loss: str, train: Callable[[Path], nn.Module], folder: Path
) -> None:
    """Fail unless a stage of three steps, stopped in its third, ends with the same weights.

    Args:
        room: where the stage is written; ``loss`` is the name in it of what a step calls once.
        train: the stage, in a folder.
    """
    for name in "ab":
        (folder / name).mkdir()
    straight = train(folder / "a")
    whole, asked, steps = stage.run_stage, getattr(room, loss), iter(range(2))

    def short(*arguments: Any, **options: Any) -> None:
        whole(*arguments, **{**options, "save_every": 1})

    def stop(*arguments: Any) -> Any:
        next(steps)  # the third step finds none
        return asked(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "run_stage", short)
        patch.setattr(room, loss, stop)
        with pytest.raises(StopIteration):
            train(folder / "b")
    resumed = train(folder / "b")
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
