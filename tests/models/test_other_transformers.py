"""Transformers whose configurations differ from the published ones and mean the same."""

from typing import Any

import pytest
import torch
from diffusers import (
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
)

from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings, SamplerSettings, load_model
from tests.support.flow_parts import SMALL
from tests.support.flow_pipelines import flux, flux2_klein
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
def test_a_klein_without_single_blocks_has_a_lora_on_the_others() -> None:
    model = load(with_transformer(flux2_klein(), Flux2Transformer2DModel, num_single_layers=0))
    assert "to_q" in model.adapter.config.target_modules
    assert "to_qkv_mlp_proj" not in model.adapter.config.target_modules
