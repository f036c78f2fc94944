"""Pipelines of random weights: the published sizes, the real classes, and a run of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import nablaflow as nf
from nablaflow.config.recipe import parse_config
from nablaflow.errors import UserError
from nablaflow.models import fingerprint, load_pipeline
from nablaflow.models.architectures import ARCHITECTURES
from nablaflow.runs.setup import prepare

PUBLISHED = {
    "sd15": ("unet", 859_520_964),
    "sdxl": ("unet", 2_567_463_684),
    "sd35": ("transformer", 2_243_171_520),
    "flux": ("transformer", 11_901_408_320),
}
"""Parameters of the denoisers, as their model cards and files count them."""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_denoiser_has_the_published_size(name: str):
    pipeline = nf.models.random(name, device="meta", dtype=torch.bfloat16)
    part, published = PUBLISHED[name]
    parameters = list(getattr(pipeline, part).parameters())
    assert sum(p.numel() for p in parameters) == pytest.approx(published, rel=1e-3)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in parameters)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_small_form_trains(name: str, settings: dict[str, Any]):
    own = {
        "model": f"random:{name}-small",
        "method": {"name": "residual-nabla-db", "beta": 1.0},
        "adapter": {"rank": 2},
        "sampler": {"steps": 4, "height": 16, "width": 16},
    }
    config = parse_config({**settings, **own})
    assert prepare(config, config.output_dir).trainer.step()["update"] == 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_saved_one_is_the_same_in_diffusers_format(name: str, tmp_path: Path):
    made = nf.models.random(name, tmp_path / "model", small=True, seed=3)
    assert fingerprint(load_pipeline(str(tmp_path / "model"))) == fingerprint(made)


def test_the_weights_follow_from_the_seed_and_nothing_else():
    before = torch.get_rng_state()
    first, again = (nf.models.random("sd15", small=True, seed=1) for _ in range(2))
    assert fingerprint(first) == fingerprint(again)
    assert fingerprint(first) != fingerprint(nf.models.random("sd15", small=True, seed=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_mistakes_are_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"models.random: 'sd1' is no architecture.*sd15"):
        nf.models.random("sd1")
    with pytest.raises(UserError, match=r"model: 'sdx' is no architecture"):
        load_pipeline("random:sdx")
    with pytest.raises(UserError, match="is there already"):
        nf.models.random("sd15", tmp_path, small=True)
    with pytest.raises(UserError, match="cannot be saved"):
        nf.models.random("sd15", tmp_path / "x", device="meta")
