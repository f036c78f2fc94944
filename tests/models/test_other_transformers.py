"""Configurations that differ from the published ones and mean the same."""

from typing import Any

import pytest
import torch
from diffusers import (
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    StableDiffusion3Pipeline,
)

from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings, SamplerSettings, load_model
from tests.support.flow_parts import SMALL
from tests.support.flow_pipelines import flux, flux2_klein, sd3
from tests.support.padded_pipelines import chroma, qwen_image


def with_transformer(pipeline: Any, kind: Any, **changed: Any) -> Any:
    own = {name: v for name, v in pipeline.transformer.config.items() if not name.startswith("_")}
    pipeline.register_modules(transformer=kind(**own | changed))
    return pipeline


def load(pipeline: Any) -> Any:
    settings = SamplerSettings(name="euler", steps=2, **SMALL)
    return load_model(pipeline, settings, AdapterSettings(rank=2), torch.device("cpu"))


@pytest.mark.parametrize(
    ("make", "kind"), [(flux, FluxTransformer2DModel), (chroma, ChromaTransformer2DModel)]
)
def test_a_token_that_is_returned_as_a_square_of_fewer_channels(make: Any, kind: Any) -> None:
    model = load(with_transformer(make(), kind, patch_size=2, out_channels=4))
    x = torch.randn(1, *model.state_shape)
    found = model.forward(x, torch.tensor([500.0]), model.condition(["a star"]))
    assert found.shape == x.shape


def test_one_that_returns_more_than_it_is_given_is_refused() -> None:
    """Without a number of its own it returns as many channels, of each place in a patch."""
    with pytest.raises(UserError, match="does not return what it is given"):
        load(with_transformer(qwen_image(), QwenImageTransformer2DModel, out_channels=None))


@torch.no_grad()
def test_the_clips_of_a_stable_diffusion_3_read_what_its_first_tokenizer_keeps() -> None:
    """The stock pipeline asks the second for as many, whatever its own length is."""

    def cut_at(first: int, second: int) -> Any:
        parts: Any = sd3(t5=False).components
        parts["tokenizer"].model_max_length = first
        parts["tokenizer_2"].model_max_length = second
        return load(StableDiffusion3Pipeline(**parts))

    model = cut_at(12, 77)
    ends = ["a " * 10 + end for end in ("circle", "square")]
    first, second = (model.condition([prompt]) for prompt in ends)
    assert first.hidden.equal(second.hidden)
    assert first.pooled.equal(second.pooled)
    assert "loses 'circle'" in model.note_on(ends)
    assert "longer than the 12 tokens" in model.note_on(ends)
    with pytest.raises(UserError, match="its tokenizer cuts prompts at 77 tokens and its text_enc"):
        cut_at(77, 12)


@torch.no_grad()
def test_a_klein_without_single_blocks_has_a_lora_on_the_others() -> None:
    model = load(with_transformer(flux2_klein(), Flux2Transformer2DModel, num_single_layers=0))
    assert "to_q" in model.adapter.config.target_modules
    assert "to_qkv_mlp_proj" not in model.adapter.config.target_modules
