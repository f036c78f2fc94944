"""`clip_skip` and `guidance_rescale`: the stock pipeline's image, by reference and policy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nablaflow.diffusion import trajectory_noise
from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.conditioning import check_clip_skip
from nablaflow.models.export import save_policy
from nablaflow.models.pipelines import PipelineModel
from tests.support.flow_parts import SMALL
from tests.support.flow_pipelines import FLOW_FAMILIES
from tests.support.pipelines import (
    PROMPT,
    perturb,
    render,
    stable_diffusion,
    stable_diffusion_xl,
    with_ddim,
)

CPU = torch.device("cpu")
SAME = 1e-4
ASKED = {
    "clip": {"clip_skip": 1, "guidance_scale": 5.0},
    "rescale": {"guidance_rescale": 0.7, "guidance_scale": 5.0},
    "both": {"clip_skip": 1, "guidance_rescale": 1.0, "guidance_scale": 3.0},
    "alone": {"clip_skip": 1},
}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The families whose stock pipelines have both, with more than one layer to skip."""
    root = tmp_path_factory.mktemp("deep")
    made = {
        "sd": stable_diffusion(),
        "sd2": stable_diffusion("v_prediction"),
        "sdxl": stable_diffusion_xl(),
    }
    for name, pipeline in made.items():
        with_ddim(deepened(pipeline)).save_pretrained(root / name)
    return {name: root / name for name in made}


def deepened(pipeline: Any) -> Any:
    """With three layers in each CLIP, of other random weights."""
    for name in ("text_encoder", "text_encoder_2"):
        encoder = getattr(pipeline, name, None)
        if encoder is not None:
            encoder.config.num_hidden_layers = 3
            pipeline.register_modules(**{name: type(encoder)(encoder.config)})
    return pipeline


def readable(stock: Any) -> Any:
    """diffusers 0.42 looks for the last norm in a part that transformers 5 has not any more."""
    if not hasattr(stock.text_encoder, "text_model"):
        object.__setattr__(stock.text_encoder, "text_model", stock.text_encoder)
    return stock


def model_of(folder: Path, **sampler: Any) -> PipelineModel:
    torch.manual_seed(0)
    settings = SamplerSettings(**{"steps": 4, "sigma_floor": 1e-9, **sampler})
    return load_model(with_ddim(load_pipeline(str(folder))), settings, AdapterSettings(rank=2), CPU)


@torch.no_grad()
def sample(model: PipelineModel) -> torch.Tensor:
    return model.decode(model.sample([PROMPT], trajectory_noise([7])).x0)


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("family", ["sd", "sd2", "sdxl"])
def test_reference_and_policy_are_the_stock_pipelines(
    deep: dict[str, Path], tmp_path: Path, family: str, asked: str
) -> None:
    given = {"guidance_scale": 1.0, **ASKED[asked]}
    model = model_of(deep[family], **given)
    assert given.items() <= model.stock_call(PROMPT).items()
    stock = readable(load_pipeline(str(deep[family])))
    with model.reference():
        found = sample(model)
    expected = render(stock, steps=4, eta=1.0, **given)
    torch.testing.assert_close(found, expected, rtol=0, atol=SAME)
    plain = {"guidance_scale": given["guidance_scale"]}
    assert (render(stock, steps=4, eta=1.0, **plain) - expected).abs().max() > 5 * SAME
    perturb(model.network)
    stock.load_lora_weights(save_policy(model, str(deep[family]), tmp_path))
    expected = render(stock, steps=4, eta=1.0, **given)
    with model.as_in_stock():
        torch.testing.assert_close(sample(model), expected, rtol=0, atol=SAME)


def test_pieces_of_a_prompt_skip_the_same_layers(deep: dict[str, Path]) -> None:
    for family in ("sd", "sdxl"):
        whole = model_of(deep[family], clip_skip=1).condition([PROMPT]).hidden
        first = model_of(deep[family], clip_skip=1, prompt_chunks=2).condition([PROMPT]).hidden
        assert whole is not None
        assert first is not None
        torch.testing.assert_close(first[:, : whole.shape[1]], whole)


def test_stable_diffusion_3_skips_layers_of_its_clips(tmp_path: Path) -> None:
    deepened(FLOW_FAMILIES["sd3"]()).save_pretrained(tmp_path)
    settings = SamplerSettings(name="euler", steps=2, guidance_scale=4.0, clip_skip=1, **SMALL)
    pipeline = load_pipeline(str(tmp_path))
    model = load_model(pipeline, settings, AdapterSettings(rank=2), CPU)
    stock: Any = load_pipeline(str(tmp_path))
    stock.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    expected = model.stock_image(stock, PROMPT, **call)
    drawn = torch.Generator().manual_seed(0)
    with model.reference(), torch.no_grad():
        found = model.decode(model.sample([PROMPT], [drawn]).x0)
    torch.testing.assert_close(found, expected, rtol=0, atol=SAME)


@pytest.mark.parametrize(
    ("family", "asked", "said"),
    [
        ("ddpm", {"clip_skip": 1}, "sampler.clip_skip: a DDPMPipeline has no use for it"),
        ("sd", {"clip_skip": 3}, "sampler.clip_skip: a CLIP of this model has 3 layers"),
        ("flux-dev", {"clip_skip": 1}, "sampler.clip_skip: a FluxPipeline has no use for it"),
        (
            "sd3",
            {"guidance_rescale": 0.5, "guidance_scale": 3.0},
            "sampler.guidance_rescale: a StableDiffusion3Pipeline has no use for it",
        ),
    ],
)
def test_where_the_stock_pipeline_has_none_they_are_refused(
    folders: dict[str, Path],
    deep: dict[str, Path],
    family: str,
    asked: dict[str, Any],
    said: str,
) -> None:
    place = deep[family] if family in deep else folders[family]
    with pytest.raises(UserError, match=said):
        load_model(load_pipeline(str(place)), SamplerSettings(**asked), AdapterSettings(), CPU)


def test_without_a_clip_there_is_nothing_to_skip() -> None:
    other = SimpleNamespace(config=SimpleNamespace(model_type="t5", num_hidden_layers=3))
    with pytest.raises(UserError, match="has no CLIP to read prompts"):
        check_clip_skip([other, None], 1)


def test_without_guidance_there_is_nothing_to_rescale() -> None:
    with pytest.raises(UserError, match="there is no guidance at guidance_scale=1"):
        SamplerSettings(guidance_rescale=0.5)
