"""Fingerprints stand still over precisions and move with the weights."""

import math

import pytest
import torch
from diffusers import AutoencoderKL

from nablaflow import features, nano
from nablaflow.features.fingerprint import TOLERANCE, fingerprint, fixed_images, same_features


def changed(folder, change):
    """The embedded autoencoder with every weight changed, as a folder of weights."""
    vae = AutoencoderKL.from_pretrained(nano.path(), subfolder="vae", torch_dtype=torch.float32)
    for weight in vae.parameters():
        weight.data = change(weight.data)
    vae.save_pretrained(folder / "vae")
    return str(folder)


def noise(scale, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: x * (1 + scale * torch.randn(x.shape, generator=generator))


def of(weights=None):
    return fingerprint(features.load("nano", weights=weights))


def apart(one, other):
    first, second = (torch.tensor(values).reshape(6, 16) for values in (one, other))
    return float((first - second).norm() / (first - first.mean(0)).norm())


def test_half_precision_of_the_weights_is_let_pass_with_room(tmp_path):
    found = of(changed(tmp_path, lambda x: x.bfloat16().float()))
    assert same_features(of(), found)
    assert 0 < apart(of(), found) < TOLERANCE / 4


@pytest.mark.parametrize("seed", [0, 1])
def test_weights_five_percent_off_are_told_with_room(tmp_path, seed):
    found = of(changed(tmp_path, noise(0.05, seed)))
    assert not same_features(of(), found)
    assert apart(of(), found) > 3 * TOLERANCE


def test_another_preprocessing_is_told(monkeypatch):
    before = of()
    darker = features.nano.Preprocess(64, mean=(0.45,) * 3, std=(0.5,) * 3)
    monkeypatch.setattr("nablaflow.features.nano.PREPROCESS", darker)
    assert not same_features(before, of())


def test_every_extractor_has_one_of_its_own():
    pixels = fingerprint(features.load("pixels"))
    assert len(pixels) == len(of()) == 96
    assert all(map(math.isfinite, pixels))
    assert same_features(pixels, pixels)
    assert not same_features(pixels, of())


@pytest.mark.parametrize("other", [[], [1.0] * 80, [math.nan] * 96])
def test_what_is_no_fingerprint_is_another(other):
    assert not same_features(of(), other)
    assert not same_features(other, of())


def test_the_fixed_images_are_eight_bit_and_differ():
    images = fixed_images()
    assert images.shape == (6, 3, 64, 64)
    assert (images * 255 - (images * 255).round()).abs().max() < 1e-4
    assert images.min() == 0
    assert images.max() == 1
    apart = torch.pdist(images.flatten(1))
    assert apart.min() > 10
