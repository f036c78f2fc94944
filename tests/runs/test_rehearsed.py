"""What is tried before the first update is tried where the run will be written, and as large."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.runs import align
from nablaflow.runs.setup import Parts
from nablaflow.storage.scratch import PREFIX
from nablaflow.training.held import saved_held

MakeConfig = Callable[..., Config]
ONE = ("training.updates=1", "training.checkpoint_every=1")
EXACT = ("flow=null", "method.step=exact", "method.reverse_weight=0")


def test_a_checkpoint_that_there_is_no_room_for_ends_a_run_before_it_begins(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    config = make_config(*ONE)
    with pytest.raises(UserError, match=r"^output_dir: a checkpoint of .*No space left on device"):
        align.run(config)
    assert not config.output_dir.exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ("training.data=previous-rollout",),
        ("training.data=on-policy",),
        (*EXACT, "training.updates_per_rollout=4"),
        ("method=diffusion-nft", "flow=null"),
    ],
    ids=["previous", "flow", "shared", "old-policy"],
)
def test_as_large_as_a_checkpoint_becomes(
    make_parts: Callable[..., Parts], overrides: tuple[str, ...]
):
    parts = make_parts(*ONE, *overrides)
    flow, core = parts.trainer.flow, parts.trainer.core
    *files, rest = saved_held(parts.config, parts.model, flow, core)
    parts.trainer.step()
    checkpoint = parts.trainer.checkpoint()
    networks = {"policy", "policy_average", "old_policy", "flow", "flow_target"}
    found = [bytes_of(own) for name, own in checkpoint.tensors.items() if name in networks]
    assert sorted(files) == sorted(found)
    assert rest <= bytes_of(checkpoint.state) < 1.1 * rest


def bytes_of(tree: Any) -> int:
    """Of the tensors in it."""
    return sum(leaf.nbytes for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


@pytest.mark.usefixtures("train_only")
def test_in_the_folder_of_the_run_where_that_is_there(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
):
    """Which may be a disk of its own, or all that its user may write to."""
    places: list[Path] = []
    monkeypatch.setattr(align, "rehearse", lambda model, source, place: places.append(place))
    config = make_config(*ONE)
    left = config.output_dir / f"{PREFIX}left"  # by one that was killed
    left.mkdir(parents=True)
    (left / "weights").write_bytes(b"0")
    align.run(config)
    assert places == [config.output_dir]
    assert not left.exists()
