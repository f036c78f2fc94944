"""The loop of docs/own_loop.md runs as it stands, and is training."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from nablaflow import nano
from nablaflow.models.export import save_policy

PAGE = Path(__file__).parents[1] / "docs" / "own_loop.md"


@pytest.fixture(scope="module")
def loop() -> dict[str, Any]:
    """What the page's block leaves behind after three updates."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert block.count("range(30)") == 1
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        exec(compile(block.replace("range(30)", "range(3)"), str(PAGE), "exec"), names)
    return names


def test_it_is_about_thirty_lines(loop: dict[str, Any]) -> None:
    lines = PAGE.read_text(encoding="utf-8").split("```")[1].splitlines()[1:]
    assert len([line for line in lines if line.strip()]) <= 33
    assert loop["number"] == 2


def test_it_moves_the_policy_toward_the_reward_and_leaves_the_reference(
    loop: dict[str, Any],
) -> None:
    model = loop["model"]
    prompts = ["a circle", "a star"] * 8

    @torch.no_grad()
    def warmth() -> torch.Tensor:
        noise = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        images = model.decode(model.sample(prompts, noise).x0)
        return (images[:, 0] - images[:, 2]).mean((1, 2))

    policy = warmth()
    with model.reference():
        reference = warmth()
    # By a sign test: of 16 coins, 13 or more fall on one side in 1 of 100 throws.
    assert int((policy > reference).sum()) >= 13
    averaged = loop["average"].values
    for name, weight in model.network.named_parameters():
        if weight.requires_grad and "lora_B" in name:  # which start at 0
            assert 0 < averaged[name].norm() < weight.norm()


def test_its_images_are_the_policys(loop: dict[str, Any]) -> None:
    images = loop["images"]
    assert images.shape == (len(loop["prompts"]), 3, 64, 64)
    assert images.min() >= 0.0
    assert images.max() <= 1.0


def test_its_policy_is_saved_to_a_folder_that_is_a_text(
    loop: dict[str, Any], tmp_path: Path
) -> None:
    folder = str(tmp_path)
    assert save_policy(loop["model"], str(nano.path()), folder) == tmp_path / "lora"
