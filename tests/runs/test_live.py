"""`nablaflow.align` on a pipeline that is in memory, and the run that comes of it."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline

import nablaflow as nf
from nablaflow.errors import UserError
from nablaflow.models import hand_over

pytestmark = pytest.mark.usefixtures("lean_runs")

TRAINING = {
    "prompts_per_update": 1,
    "images_per_prompt": 2,
    "transition_fraction": 0.5,
    "trackers": [],
    "device": "cpu",
}


def nameless(folder: Path) -> Any:
    """A pipeline that was put together in memory: it has no folder to load it from."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    made = StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def image(pipeline: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    made = pipeline("a circle", num_inference_steps=2, generator=generator, output_type="np")
    return made.images


def state(pipeline: Any) -> dict[str, Any]:
    """All that training could have changed."""
    unet, scheduler = pipeline.unet, pipeline.scheduler
    return {
        "image": image(pipeline).tolist(),
        "layers": [name for name, _ in unet.named_modules()],
        "grad": [p.requires_grad for p in unet.parameters()],
        "form": [(p.dtype, p.device, p.stride()) for p in unet.parameters()],
        "mode": (unet.training, pipeline.vae.training, pipeline.text_encoder.training),
        "processors": {type(part).__name__ for part in unet.attn_processors.values()},
        "scheduler": (type(scheduler), dict(scheduler.config)),
    }


def arguments(pipeline: Any, folder: Path) -> dict[str, Any]:
    return {
        "model": pipeline,
        "reward": "brightness",
        "prompts": ["a circle", "a star"],
        "method": nf.ResidualNablaDB(beta=100.0),
        "updates": 1,
        "sampler": nf.SamplerSettings(steps=4),
        "adapter": {"rank": 2},
        "optimizer": {"learning_rate": 0.1, "warmup": 0, "schedule": "constant"},
        "guard": None,
        "training": TRAINING,
        "evaluation": nf.EvaluationSettings(n=4, batch=4),
        "output_dir": folder,
    }


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> Any:
    made = nameless(tiny_model)
    made.unet.train()
    return made


@pytest.fixture(scope="module")
def aligned(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[nf.Run, Any, Any]:
    """A run, and the pipeline's state before and after it."""
    before = state(pipeline)
    run = nf.align(**arguments(pipeline, tmp_path_factory.mktemp("live") / "run"))
    return run, before, state(pipeline)


def test_the_pipeline_is_as_it_was(aligned: tuple[nf.Run, Any, Any]):
    _, before, after = aligned
    assert before == after


def test_the_run_has_what_it_wrote(aligned: tuple[nf.Run, Any, Any]):
    run = aligned[0]
    assert run.summary["updates"] == 1
    assert [record["update"] for record in run.metrics] == [1]
    assert run.report.read_text().startswith("<!DOCTYPE html>")
    saved = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert saved["model"] == "python:StableDiffusionPipeline"
    assert "optimizer" not in repr(run)


def test_a_notebook_shows_its_report_in_a_frame_that_runs_nothing(
    aligned: tuple[nf.Run, Any, Any],
):
    tags: list[tuple[str, dict[str, str | None]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append((tag, dict(attrs)))
    parser.feed(aligned[0]._repr_html_() or "")
    ((tag, attributes),) = tags
    assert tag == "iframe"
    assert attributes["sandbox"] is None  # as strict as it can be: nothing is allowed
    assert attributes["srcdoc"] == aligned[0].report.read_text()


def test_its_pipeline_is_the_reference_with_the_lora(
    aligned: tuple[nf.Run, Any, Any], pipeline: Any, tiny_model: Path
):
    run, before, _ = aligned
    by_hand = StableDiffusionPipeline.from_pretrained(tiny_model)
    by_hand.load_lora_weights(run.lora)
    made = image(run.pipeline())
    assert np.abs(made - image(by_hand)).max() < 1e-6
    assert np.abs(made - np.array(before["image"])).max() > 1e-4
    assert state(pipeline) == before


def test_it_is_measured_and_sampled_without_asking_for_the_pipeline(
    aligned: tuple[nf.Run, Any, Any],
):
    run = aligned[0]
    assert nf.evaluate(run, n=4, only_last=True)["policy"]["n"] == 4
    assert [picture.size for picture in nf.sample(run, n=2)] == [(16, 16)] * 2


def test_what_its_owner_does_with_it_afterwards_does_not_reach_the_run(
    aligned: tuple[nf.Run, Any, Any], pipeline: Any, tiny_model: Path
):
    """A LoRA that is fused would count twice, and another scheduler has other noise levels."""
    own = pipeline.scheduler
    run = aligned[0]
    before = nf.evaluate(run, n=4, only_last=True)["policy"]
    changed: dict[str, Any] = {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    pipeline.scheduler = DDIMScheduler.from_config(own.config, **changed)
    try:
        assert nf.evaluate(run, n=4, only_last=True)["policy"] == before
        assert run.pipeline().scheduler.config == own.config
    finally:
        pipeline.scheduler = own
    other = nameless(tiny_model)
    with torch.no_grad():
        next(other.unet.parameters()).add_(1.0)
    with pytest.raises(UserError, match="undo what was done to it since"):
        replace(run, live=hand_over(other)).pipeline()


def test_by_its_folder_alone_the_pipeline_is_asked_for_and_checked(
    aligned: tuple[nf.Run, Any, Any], tiny_model: Path, pipeline: Any
):
    folder = aligned[0].folder
    with pytest.raises(UserError, match="give it again"):
        nf.evaluate(folder, n=4)
    found = nf.evaluate(folder, n=4, only_last=True, model=tiny_model)
    assert found["policy"]["n"] == 4
    other = nameless(tiny_model)
    with torch.no_grad():
        next(other.unet.parameters()).add_(1.0)
    with pytest.raises(UserError, match="has other weights than the pipeline"):
        nf.evaluate(folder, n=4, model=other)
    with pytest.raises(UserError, match="model_hash: the run to resume has another value"):
        nf.align(**arguments(other, folder), resume=True)


def test_a_folder_with_other_noise_levels_is_not_taken_for_the_pipeline(
    tiny_model: Path, tmp_path: Path
):
    """A pipeline may be given another scheduler before it is handed over."""
    given = StableDiffusionPipeline.from_pretrained(tiny_model)
    given.scheduler = DDIMScheduler.from_config(given.scheduler.config, timestep_spacing="trailing")
    run = nf.align(**arguments(given, tmp_path / "run"))
    assert run.config.model == "python:StableDiffusionPipeline"
    assert str(tiny_model) not in run.report.read_text()
    with pytest.raises(UserError, match=r"has other noise levels .*give it with the scheduler"):
        nf.evaluate(run.folder, n=4, only_last=True, model=tiny_model)
    again = nf.evaluate(run.folder, n=4, only_last=True, model=given)
    assert again["policy"]["reward_mean"] == run.summary["policy"]["reward_mean"]
    plain = StableDiffusionPipeline.from_pretrained(tiny_model)
    with pytest.raises(UserError, match="the run to resume has another value"):
        nf.align(**arguments(plain, run.folder), resume=True)


def test_a_scheduler_of_another_class_and_the_same_levels_is_the_folders(tiny_model: Path):
    """Another sampler is what it is set for, and a run has its own."""
    given = StableDiffusionPipeline.from_pretrained(tiny_model)
    given.scheduler = EulerDiscreteScheduler.from_config(given.scheduler.config)
    assert hand_over(given).name == str(tiny_model)
    for folder in (tiny_model / "scheduler", tiny_model / "nowhere"):
        given.register_to_config(_name_or_path=str(folder))
        assert hand_over(given).name == "python:StableDiffusionPipeline"


def test_it_is_resumed_with_the_pipeline_again(
    aligned: tuple[nf.Run, Any, Any], pipeline: Any, tmp_path: Path
):
    run = nf.align(**arguments(pipeline, tmp_path / "run"))
    again = nf.align(**{**arguments(pipeline, run.folder), "updates": 2}, resume=True)
    assert again.summary["updates"] == 2
    assert state(pipeline) == aligned[1]


def test_a_finished_run_is_opened_by_its_folder(aligned: tuple[nf.Run, Any, Any], tmp_path: Path):
    run = aligned[0]
    opened = nf.Run.open(run.folder)
    assert opened.summary == run.summary
    assert opened.lora == run.lora
    with pytest.raises(UserError, match="give it again"):
        opened.pipeline()
    with pytest.raises(UserError, match="holds no finished run"):
        nf.Run.open(tmp_path)


def test_with_a_folder_of_its_own_it_is_loaded_by_name(tiny_model: Path, tmp_path: Path):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model)
    run = nf.align(**arguments(pipeline, tmp_path / "run"))
    assert nf.evaluate(run.folder, n=4, only_last=True)["policy"]["n"] == 4
    assert np.abs(image(nf.Run.open(run.folder).pipeline()) - image(run.pipeline())).max() < 1e-6
