"""A model without text: the recipe from end to end, in Python, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline

import nablaflow as nf
from nablaflow.config.overrides import load_config
from nablaflow.errors import UserError
from nablaflow.runs.align import run
from nablaflow.runs.evaluate import evaluate_run
from nablaflow.runs.sample import sample_to_folder
from nablaflow.storage.records import read_records
from tests.support.pipelines import render

pytestmark = pytest.mark.usefixtures("lean_runs")

RECIPE = Path(__file__).parents[2] / "recipes" / "ddpm_unconditional.yaml"
SMALL = [
    "sampler.steps=5",
    "training.updates=2",
    "training.images_per_prompt=2",
    "training.value_samples=128",
    "training.trackers=[]",
    "training.device=cpu",
    "evaluation.n=4",
    "evaluation.bank=400",
    "evaluation.batch=200",
    "method.beta=0.5",
]


@pytest.fixture
def ddpm(folders: dict[str, Path]) -> Path:
    return folders["ddpm"]


def test_the_recipe_from_end_to_end(ddpm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = load_config(RECIPE, [f"model={ddpm}", f"output_dir={folder}", *SMALL], {})
    assert config.prompts is None
    result = run(config)
    assert result.summary["exact_tilt"]["effective_sample_size"] >= 200
    assert len(read_records(folder)) == 2
    report = (folder / "report.html").read_text()
    assert "DDPMPipeline.from_pretrained(&#x27;model&#x27;, torch_dtype=torch.float32)" in report
    assert "StableDiffusion" not in report
    saved = render(DDPMPipeline.from_pretrained(folder / "model"))
    assert (saved - render(DDPMPipeline.from_pretrained(ddpm))).abs().max() > 0
    measured = evaluate_run(folder, 4, metrics=["reward"])
    assert measured["policy"]["reward_mean"] == pytest.approx(
        result.summary["policy"]["reward_mean"], abs=1e-5
    )
    assert measured["protocol"]["prompts"] == 1
    images = sample_to_folder(str(folder), [], 2, tmp_path / "images", 0, overwrite=False).images
    assert [path.name for path in images] == ["0000-image.png", "0001-image.png"]


def labelled(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """Refuses a text that it was not promised."""
    assert set(prompts) <= {"", "red", "blue"}
    return images[:, 0].mean((1, 2))


@pytest.mark.parametrize("prompts", [None, ["red", "blue"]])
def test_in_python_there_are_no_prompts_or_they_are_labels(
    ddpm: Path, tmp_path: Path, prompts: Any
) -> None:
    training = {"prompts_per_update": 1, "images_per_prompt": 2, "trackers": [], "device": "cpu"}
    found = nf.align(
        model=str(ddpm),
        reward=labelled,
        prompts=prompts,
        method=nf.ResidualNablaDB(beta=10.0, reverse_weight=0.0),
        flow=None,
        steps=1,
        sampler={"steps": 5},
        training=training,
        evaluation={"n": 4, "batch": 4},
        guard={"n": 4, "max_kl": 1e6},
        output_dir=tmp_path / "run",
    )
    assert found.summary["guard"]["last"]["update"] == 1


def test_a_text_model_needs_prompts(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prompts: null is for unconditional.*StableDiffusion"):
        nf.align(
            model=str(tiny_model),
            reward="warmth",
            prompts=None,
            method={"name": "draft", "beta": 1.0},
            output_dir=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()
