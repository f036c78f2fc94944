"""CLIP and DINOv2 on tiny random weights, against transformers' own processors and models."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from nablaflow import features
from nablaflow.errors import UserError
from nablaflow.features import clip, dinov2
from tests.support.slopes import assert_slope

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    network = {
        "clip": lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**SHAPE, projection_dim=12)),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**{**SHAPE, "image_size": 224})),
    }

    def make(name):
        network[name]().save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return make


def seen_by_pil(image, shorter, size, mean, std):
    """An image as the models' own processors make it: PIL's bicubic, a crop, shift, scale."""
    picture = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
    scale = shorter / min(picture.size)
    picture = picture.resize([int(side * scale) for side in picture.size], Image.Resampling.BICUBIC)
    left, top = ((side - size) // 2 for side in picture.size)
    pixels = np.asarray(picture.crop((left, top, left + size, top + size))) / 255
    return torch.from_numpy((pixels - mean) / std).permute(2, 0, 1).float()[None]


def test_clip_is_the_normalised_embedding_of_the_processed_picture(folder, images):
    where = folder("clip")
    found = features.load("clip", weights=where)
    network = CLIPVisionModelWithProjection.from_pretrained(where)
    seen = seen_by_pil(images[0], 28, 28, clip.MEAN, clip.STD)
    with torch.no_grad():
        expected = network(pixel_values=seen).image_embeds[0]
    assert found.dim == 12
    torch.testing.assert_close(found(images)[0], expected / expected.norm(), atol=0.02, rtol=0)


def test_dinov2_is_the_class_token_of_the_processed_picture(folder, images):
    where = folder("dinov2")
    found = features.load("dinov2", weights=where)
    network = Dinov2Model.from_pretrained(where)
    seen = seen_by_pil(images[0], 256, 224, dinov2.MEAN, dinov2.STD)
    with torch.no_grad():
        expected = network(pixel_values=seen).last_hidden_state[0, 0]
    assert found.dim == 16
    torch.testing.assert_close(found(images)[0], expected, atol=0.05, rtol=0)


def test_gradient_of_clip_is_the_finite_difference(folder, images):
    found = features.load("clip", weights=folder("clip"))
    weights = torch.randn(found.dim, generator=torch.Generator().manual_seed(1))
    assert_slope(lambda x: (found(x) @ weights).sum(), images)


@pytest.mark.parametrize("name", ["clip", "dinov2"])
def test_a_folder_without_weights_is_named(name, tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json, model\.safetensors"):
        features.load(name, weights=str(tmp_path))


def test_offline_without_a_cache_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="hf download facebook/dinov2-base"):
        features.load("dinov2")


def test_dreamsim_names_its_extra():
    pytest.importorskip("transformers")
    try:
        import dreamsim  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"nablaflow\[dreamsim\]"):
            features.load("dreamsim")
