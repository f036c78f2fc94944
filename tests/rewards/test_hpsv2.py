"""HPSv2 through open_clip, against open_clip's own call; needs the extra test-scorers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.rewards import hpsv2, load, score_and_gradient

open_clip = pytest.importorskip("open_clip", reason="needs nablaflow[test-scorers]")

NAME = "tiny-of-these-tests"
PROMPTS = ["a red circle", "a blue star", "a square"]


@pytest.fixture
def spec(tmp_path, monkeypatch) -> dict[str, Any]:
    """A small architecture of open_clip, saved as the published checkpoint is."""
    sizes = {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 8,
            "layers": 2,
            "width": 64,
            "head_width": 32,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "layers": 2,
            "width": 32,
            "heads": 2,
        },
    }
    (tmp_path / f"{NAME}.json").write_text(json.dumps(sizes))
    open_clip.add_model_config(tmp_path)
    monkeypatch.setattr(hpsv2, "ARCHITECTURE", NAME)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(NAME)
    path = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": model.state_dict()}, path)
    return {"name": "hpsv2", "weights": str(path)}


def original(path: str, images: torch.Tensor) -> torch.Tensor:
    """As hpsv2/img_score.py: the diagonal of unit image times unit text features."""
    model, _, preprocess = open_clip.create_model_and_transforms(NAME, output_dict=True)
    model.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    normalise = preprocess.transforms[-1]
    found = model.eval()(normalise(images), open_clip.get_tokenizer(NAME)(PROMPTS))
    return torch.diagonal(found["image_features"] @ found["text_features"].T)


def test_score_and_gradient_are_the_originals(spec):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    score, gradient = score_and_gradient(load(spec), images, PROMPTS)
    leaf = images.clone().requires_grad_()
    wanted = original(spec["weights"], leaf)
    (slope,) = torch.autograd.grad(wanted.sum(), leaf)
    torch.testing.assert_close(score, wanted.detach())
    torch.testing.assert_close(gradient, slope, atol=1e-6, rtol=1e-3)


def test_a_checkpoint_of_something_else_is_named(spec, tmp_path):
    torch.save({"state_dict": {"visual.proj": torch.zeros(1)}}, spec["weights"])
    with pytest.raises(UserError, match=r"HPS_v2\.1_compressed\.pt does not fit, keys are \d+ mis"):
        load(spec)(torch.rand(1, 3, 32, 32), ["a"])


def test_the_published_weights_are_asked_for_at_a_commit(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"hf download xswu/HPSv2 .*--revision [0-9a-f]{40} "):
        load("hpsv2")(torch.rand(1, 3, 32, 32), ["a"])
