"""Every family as a run sees it: all methods, half precision, resuming, from end to end."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from nablaflow.config.recipe import Config
from nablaflow.methods import METHODS
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.adapters import trainable_state
from nablaflow.runs import align
from nablaflow.runs.sample import sample_to_folder
from nablaflow.runs.setup import Parts
from nablaflow.storage.checkpoint import load_checkpoint
from nablaflow.storage.manifest import list_checkpoints
from tests.support.pipelines import render
from tests.support.run_folders import records

pytestmark = pytest.mark.usefixtures("lean_runs")

MakeParts = Callable[..., Parts]
MakeConfig = Callable[..., Config]
FAMILIES = ["sdxl", "ddpm"]
ATTENTION = "adapter.targets=[to_q, to_k, to_v, to_out.0]"
NAMES = sorted(set(METHODS) - {"value-matching"})


def of_model(folder: Path) -> list[str]:
    """With guidance where there are prompts."""
    unguided = [f"model={folder}", "training.transition_fraction=1.0", "adapter.targets=auto"]
    return unguided if folder.name == "ddpm" else [*unguided, "sampler.guidance_scale=3.0"]


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_trains(
    make_parts: MakeParts, folders: dict[str, Path], family: str, method: str
) -> None:
    sampler = "euler" if METHODS[method].sampler_noise == "none" else "ddim"
    chosen = (f"method={{name: {method}, beta: 5.0}}", f"sampler.name={sampler}", ATTENTION)
    parts = make_parts(*of_model(folders[family]), *chosen)
    before = trainable_state(parts.model.network)
    record = parts.trainer.step()
    assert all(math.isfinite(value) for value in record.values()), record
    after = trainable_state(parts.model.network)
    assert all(value.isfinite().all() for value in after.values())
    assert any((after[name] != before[name]).any() for name in before)


ESTIMATORS = ["n-step", "adjoint", "forward-looking-flow", "denoising-adjoint"]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_matched_by_every_estimator(
    make_parts: MakeParts, folders: dict[str, Path], family: str, estimator: str
) -> None:
    more = ", adjoint_above: 0.5" if estimator == "denoising-adjoint" else ""
    method = f"{{name: value-matching, beta: 5.0, estimator: {{name: {estimator}{more}}}}}"
    chosen = (f"method={method}", "sampler.name=ddim", ATTENTION)
    record = make_parts(*of_model(folders[family]), *chosen).trainer.step()
    assert all(math.isfinite(value) for value in record.values()), record
    assert record["policy_gradient_norm"] > 0


@torch.no_grad()
@pytest.mark.parametrize("family", ["sd", *FAMILIES])
def test_in_fp16_kernels_and_images_are_float32(folders: dict[str, Path], family: str) -> None:
    pipeline = load_pipeline(str(folders[family]), torch.float16)
    settings, adapter = SamplerSettings(steps=4), AdapterSettings()
    model = load_model(pipeline, settings, adapter, torch.device("cpu"))
    x = torch.randn(1, *model.state_shape, generator=torch.Generator().manual_seed(0))
    found = model.predict(x, torch.tensor([2]), model.condition(["a red circle"]))
    images = model.decode(found.x0_hat)
    assert {t.dtype for t in (found.x0_hat, found.epsilon, images)} == {torch.float32}
    assert all(t.isfinite().all() for t in (found.x0_hat, found.epsilon, images))


@pytest.mark.parametrize("family", FAMILIES)
def test_it_trains_in_bf16_with_its_encoders_off(
    make_parts: MakeParts, folders: dict[str, Path], family: str, other_precision: None
) -> None:
    off = [] if family == "ddpm" else ["training.offload_encoders=true"]
    parts = make_parts(*of_model(folders[family]), "training.precision=bf16", *off)
    record = parts.trainer.step()
    assert all(math.isfinite(value) for value in record.values()), record
    assert record["policy_gradient_norm"] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_it_resumes_bit_for_bit(
    make_config: MakeConfig,
    folders: dict[str, Path],
    tmp_path: Path,
    train_only: None,
    family: str,
) -> None:
    common = of_model(folders[family])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    align.run(make_config(*common, "training.updates=2", f"output_dir={whole}"))
    align.run(make_config(*common, "training.updates=1", f"output_dir={parts}"))
    align.run(make_config(*common, "training.updates=2", f"output_dir={parts}"), resume=True)
    assert records(parts) == records(whole)
    found, wanted = (load_checkpoint(list_checkpoints(run)[-1]).tensors for run in (parts, whole))
    assert found.keys() == wanted.keys()
    for group in wanted:
        for name, value in wanted[group].items():
            assert value.equal(found[group][name]), (group, name)


def test_sdxl_from_end_to_end(
    make_config: MakeConfig, folders: dict[str, Path], tmp_path: Path
) -> None:
    config = make_config(*of_model(folders["sdxl"]), "training.updates=1")
    result = align.run(config)
    report = (result.folder / "report.html").read_text()
    assert "StableDiffusionXLPipeline.from_pretrained" in report
    assert "guidance_scale=3.0" in report
    pipeline = StableDiffusionXLPipeline.from_pretrained(folders["sdxl"])
    reference = render(pipeline)
    pipeline.load_lora_weights(result.lora)
    assert (render(pipeline) - reference).abs().max() > 1e-4
    written = sample_to_folder(
        str(folders["sdxl"]), ["a star"], 2, tmp_path / "i", 0, overwrite=True
    )
    assert len(written.images) == 2


def test_the_lines_load_a_model_without_its_t5(
    make_config: MakeConfig,
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which diffusers does only where it is told that there is none: report's and card's lines."""
    folder = folders["sd3-without-t5"]
    few = ["sampler.name=memoryless", "training.updates=1", "sampler.max_sequence_length=4"]
    run = align.run(make_config(*of_model(folder), *few))
    page = unescape((run.folder / "report.html").read_text())
    (report,) = re.findall("<pre><code>(import torch.*?)</code>", page, re.DOTALL)
    monkeypatch.chdir(run.folder)
    made: dict[str, Any] = {}
    exec(report.replace(f"…/{folder.name}", str(folder)), made)
    assert made["pipeline"].text_encoder_3 is None
    whole = run.export("merged", tmp_path / "whole")
    card = (whole / "README.md").read_text().split("```python")[1].split("```")[0]
    exec(card.replace("this/folder", str(whole)), made)
    assert made["pipeline"].tokenizer_3 is None
