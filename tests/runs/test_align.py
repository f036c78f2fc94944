"""`nablaflow.align`, as a notebook calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

import nablaflow as nf
from nablaflow.errors import UserError
from nablaflow.runs.evaluate import evaluate_run


def redness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images[:, 0].mean((1, 2))


@pytest.fixture
def arguments(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_model),
        "reward": "brightness",
        "prompts": ["a circle", "a star"],
        "method": nf.ResidualNablaDB(beta=10.0, reverse_weight=0.0),
        "flow": None,
        "sampler": {"steps": 4},
        "adapter": {"rank": 2},
        "evaluation": {"n": 4, "batch": 4},
        "output_dir": tmp_path / "run",
    }


SMALL = {
    "prompts_per_update": 1,
    "images_per_prompt": 2,
    "transition_fraction": 0.5,
    "trackers": [],
    "device": "cpu",
}


def test_the_number_of_updates_is_said_once(arguments: dict[str, Any]):
    run = nf.align(**arguments, training={**SMALL, "updates": 2})
    assert run.summary["updates"] == 2
    with pytest.raises(UserError, match="steps: training has updates as well"):
        nf.align(**arguments, steps=3, training={**SMALL, "updates": 2})


def test_runs_of_other_precision_follow_each_other(arguments: dict[str, Any]):
    """Each has its own, although accelerate keeps the first one's for the process."""
    for precision in ("bf16", "float32"):
        run = nf.align(
            **arguments, steps=1, overwrite=True, training={**SMALL, "precision": precision}
        )
        saved = yaml.safe_load((run.folder / "config.yaml").read_text())
        assert saved["training"]["precision"] == precision
        assert AcceleratorState._shared_state == {}


def test_a_function_of_ones_own_is_not_taken_for_a_built_in_one(
    arguments: dict[str, Any], tmp_path: Path
):
    redness.__name__ = "brightness"
    nf.align(**{**arguments, "reward": redness}, steps=1, training=SMALL)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["reward"] == "python:brightness"
    with pytest.raises(UserError, match="put it in a file"):
        evaluate_run(tmp_path / "run", None)


def test_prompts_from_a_file_are_found_from_anywhere(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "prompts.txt").write_text("a circle\na star\n")
    monkeypatch.chdir(tmp_path)
    nf.align(**{**arguments, "prompts": "prompts.txt"}, steps=1, training=SMALL)
    monkeypatch.chdir("/")
    assert evaluate_run(tmp_path / "run", 6)["policy"]["n"] == 6
