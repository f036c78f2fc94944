"""A model in half precision has its autoencoder as its files have it, without its rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import nn

from nablaflow.config.recipe import Config
from nablaflow.models import (
    ModelSource,
    WithLora,
    hand_over,
    load_model,
    load_pipeline,
    single_file,
)
from nablaflow.runs.pretrained import load_pretrained
from tests.support.loras import FILE, stock_lora
from tests.support.pipelines import stable_diffusion

MakeConfig = Callable[..., Config]
HALF = torch.bfloat16


@pytest.fixture(params=["folder", "live", "lora"])
def source(request: pytest.FixtureRequest, folders: dict[str, Path], tmp_path: Path) -> ModelSource:
    folder = folders["sd"]
    if request.param == "live":
        return hand_over(StableDiffusionPipeline.from_pretrained(folder))
    if request.param == "lora":
        return WithLora(str(folder), stock_lora(folder, tmp_path / "lora") / FILE, 1.0)
    return str(folder)


def precisions(network: nn.Module) -> set[torch.dtype]:
    return {value.dtype for value in network.state_dict().values() if value.is_floating_point()}


def test_it_is_as_in_the_files_and_the_others_are_in_half_precision(
    source: ModelSource, folders: dict[str, Path]
) -> None:
    found = load_pipeline(source, HALF, exact_decoder=True)
    own = AutoencoderKL.from_pretrained(folders["sd"] / "vae").state_dict()
    for name, value in found.vae.state_dict().items():
        assert torch.equal(value, own[name]), name
    assert any(not torch.equal(value, value.to(HALF).float()) for value in own.values())
    assert precisions(found.unet) == precisions(found.text_encoder) == {HALF}
    assert precisions(load_pipeline(source, HALF).vae) == {HALF}


def test_a_run_in_half_precision_shows_what_a_float32_decoder_makes(
    make_config: MakeConfig, tiny_model: Path
) -> None:
    config = make_config("training.precision=bf16")
    made = load_pretrained(config, None)
    model = load_model(made, config.sampler, config.adapter, torch.device("cpu"))
    states = torch.randn(2, *model.state_shape, generator=torch.Generator().manual_seed(0))
    decoder: Any = AutoencoderKL.from_pretrained(tiny_model / "vae")
    with torch.no_grad():
        latents = states / decoder.config["scaling_factor"]
        wanted = (decoder.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(model.decode(states), wanted, rtol=0, atol=1e-5)


def test_of_a_single_file_it_is_read_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, given = tmp_path / "model.safetensors", {}
    names = "model.diffusion_model.out.weight", "cond_stage_model.transformer.x"
    save_file({name: torch.zeros(1) for name in names}, file)

    def read(kind: str, made: Any) -> Any:
        def from_single_file(path: str, **options: Any) -> Any:
            given[kind] = {"path": path, **options}
            return made

        return staticmethod(from_single_file)

    made = stable_diffusion()
    monkeypatch.setattr(single_file.AutoencoderKL, "from_single_file", read("vae", made.vae))
    whole = read("whole", made)
    monkeypatch.setattr(single_file.StableDiffusionPipeline, "from_single_file", whole)
    load_pipeline(str(file), HALF, exact_decoder=True)
    asked = {"path": str(file), "torch_dtype": torch.float32, "local_files_only": True}
    assert given["vae"] == asked
    assert given["whole"]["vae"] is made.vae
    assert given["whole"]["torch_dtype"] == HALF
    load_pipeline(str(file))
    assert "vae" not in given["whole"]
