"""Every family as a run sees it: all methods, half precision, resuming, from end to end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionXLPipeline

from nablaflow.config.recipe import Config
from nablaflow.methods import METHODS
from nablaflow.models.adapters import trainable_state
from nablaflow.runs import align
from nablaflow.runs.sample import sample_to_folder
from nablaflow.runs.setup import Parts
from nablaflow.storage.checkpoint import list_checkpoints, load_checkpoint
from tests.support.pipelines import render, stable_diffusion_xl, unconditional

MakeParts = Callable[..., Parts]
MakeConfig = Callable[..., Config]
BUILT: dict[str, Callable[[], Any]] = {
    "sdxl": stable_diffusion_xl,
    "ddpm": unconditional,
}
NAMES = sorted(set(METHODS) - {"value-matching"})


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each family, by its name; only read."""
    root = tmp_path_factory.mktemp("families")
    for name, build in BUILT.items():
        build().save_pretrained(root / name)
    return {name: root / name for name in BUILT}


def of_model(folder: Path) -> list[str]:
    """With guidance where there are prompts."""
    unguided = [f"model={folder}", "training.transition_fraction=1.0", "adapter.targets=auto"]
    return unguided if folder.name == "ddpm" else [*unguided, "sampler.guidance_scale=3.0"]


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("family", BUILT)
def test_every_method_trains(
    make_parts: MakeParts, places: dict[str, Path], family: str, method: str
) -> None:
    sampler = "euler" if METHODS[method].sampler_noise == "none" else "ddim"
    chosen = (f"method={{name: {method}, beta: 5.0}}", f"sampler.name={sampler}")
    parts = make_parts(*of_model(places[family]), *chosen)
    before = trainable_state(parts.model.network)
    record = parts.trainer.step()
    assert all(math.isfinite(value) for value in record.values()), record
    after = trainable_state(parts.model.network)
    assert all(value.isfinite().all() for value in after.values())
    assert any((after[name] != before[name]).any() for name in before)


@pytest.mark.parametrize("family", BUILT)
def test_it_trains_in_bf16_with_its_encoders_off(
    make_parts: MakeParts, places: dict[str, Path], family: str, other_precision: None
) -> None:
    off = [] if family == "ddpm" else ["training.offload_encoders=true"]
    parts = make_parts(*of_model(places[family]), "training.precision=bf16", *off)
    record = parts.trainer.step()
    assert all(math.isfinite(value) for value in record.values()), record
    assert record["policy_gradient_norm"] > 0


def records(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if not k.endswith("seconds")} for r in lines]


@pytest.mark.parametrize("family", BUILT)
def test_it_resumes_bit_for_bit(
    make_config: MakeConfig,
    places: dict[str, Path],
    tmp_path: Path,
    train_only: None,
    family: str,
) -> None:
    common = of_model(places[family])
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
    make_config: MakeConfig, places: dict[str, Path], tmp_path: Path
) -> None:
    config = make_config(*of_model(places["sdxl"]), "training.updates=1")
    result = align.run(config)
    report = (result.folder / "report.html").read_text()
    assert "StableDiffusionXLPipeline.from_pretrained" in report
    assert "guidance_scale=3.0" in report
    pipeline = StableDiffusionXLPipeline.from_pretrained(places["sdxl"])
    reference = render(pipeline)
    pipeline.load_lora_weights(result.lora)
    assert (render(pipeline) - reference).abs().max() > 1e-4
    written = sample_to_folder(
        str(places["sdxl"]), ["a star"], 2, tmp_path / "i", 0, overwrite=True
    )
    assert len(written.images) == 2
