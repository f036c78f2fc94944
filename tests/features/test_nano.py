"""The embedded encoder's channel statistics, against diffusers' own pass and the scenes' truth."""

import pytest
import torch
from diffusers import AutoencoderKL

from nablaflow import features, nano
from nablaflow.errors import UserError
from nablaflow.nano.scenes import render, sample_scenes


def _statistics(x):
    return x.mean((2, 3)), x.std((2, 3), correction=0), x.amax((2, 3))


def test_the_stages_are_those_of_the_encoders_own_pass():
    images = render(sample_scenes(2, torch.Generator().manual_seed(0)))
    vae = AutoencoderKL.from_pretrained(nano.path(), subfolder="vae", torch_dtype=torch.float32)
    seen = []
    stages = (vae.encoder.conv_in, *vae.encoder.down_blocks[:2])
    for stage in stages:
        stage.register_forward_hook(lambda module, given, out: seen.append(out))
    with torch.no_grad():
        vae.encode(images * 2 - 1)
    active = [torch.nn.functional.silu(stage) for stage in seen]
    expected = [part for x in active for part in _statistics(x)]
    torch.testing.assert_close(
        features.load("nano")(images), torch.cat(expected, 1), rtol=1e-3, atol=1e-3
    )


def test_a_line_through_them_tells_hue_size_and_background():
    scenes = sample_scenes(240, torch.Generator().manual_seed(2))
    found = features.load("nano")(render(scenes)).double()
    turns = 2 * torch.pi * scenes.hue
    wanted = torch.stack(
        [turns.cos(), turns.sin(), scenes.radius / 4, scenes.shade * 4], 1
    ).double()
    mean, std = found[:160].mean(0), found[:160].std(0).clamp_min(1e-6)
    found = (found - mean) / std
    centre = wanted[:160].mean(0)
    gram = found[:160].T @ found[:160] + 10 * torch.eye(found.shape[1])
    fit = torch.linalg.solve(gram, found[:160].T @ (wanted[:160] - centre))
    left = (wanted[160:] - centre - found[160:] @ fit).var(0) / wanted[160:].var(0)
    assert left.max() < 0.15


def test_a_picture_of_one_colour_has_a_finite_gradient():
    images = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
    features.load("nano")(images).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_a_folder_without_an_autoencoder_is_named(tmp_path):
    with pytest.raises(UserError, match="has no AutoencoderKL in its folder vae"):
        features.load("nano", weights=str(tmp_path))
