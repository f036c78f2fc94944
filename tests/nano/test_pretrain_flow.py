"""Pretraining of the flow-matching model: what stands for many tokens, and what is exported."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from nablaflow import nano
from nablaflow.errors import UserError
from nablaflow.nano.pretrain import velocity
from nablaflow.nano.pretrain.__main__ import Embedded, check_start, shipped_autoencoder
from nablaflow.nano.pretrain.card import FLOW, further
from nablaflow.nano.pretrain.export import export_flow
from nablaflow.nano.pretrain.text import build_tokenizer
from nablaflow.nano.pretrain.velocity import (
    TextToVelocity,
    load_networks,
    sample_levels,
    train_flow,
)

CPU = torch.device("cpu")
CAPTIONS = ["a red circle", "", "a zebra on the left"]


@pytest.fixture(scope="module")
def networks() -> TextToVelocity:
    """With weights that half precision holds."""
    torch.manual_seed(0)
    return TextToVelocity(build_tokenizer()).half().float().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, networks: TextToVelocity) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export_flow(shipped_autoencoder(CPU), build_tokenizer(), copy.deepcopy(networks), folder)
    return folder


def words() -> Tensor:
    return build_tokenizer()(CAPTIONS, padding="max_length", return_tensors="pt").input_ids


@pytest.mark.parametrize("empty", [1, 7, 256])
def test_one_token_stands_for_many_equal_ones(
    exported: Path, networks: TextToVelocity, empty: int
) -> None:
    """The stock pipeline's prompt has all of them, and the stock network no word of how many."""
    pipeline: Any = StableDiffusion3Pipeline.from_pretrained(exported, torch_dtype=torch.float32)
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([10.0, 500.0, 1000.0])
    with torch.no_grad():
        hidden, _, pooled, _ = pipeline.encode_prompt(
            CAPTIONS, None, None, do_classifier_free_guidance=False, max_sequence_length=empty
        )
        wanted = pipeline.transformer(x, hidden, pooled, timestep).sample
        found = networks(x, timestep, words(), empty)
    assert hidden.shape[1] == 16 + empty
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_a_silent_t5_is_as_none(exported: Path) -> None:
    """Which the stock class makes zeros for."""
    call: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    states = []
    for options in ({}, absent):
        pipeline: Any = StableDiffusion3Pipeline.from_pretrained(exported, **options)
        generator = torch.Generator().manual_seed(0)
        states.append(pipeline("a red circle", generator=generator, **call).images)
    assert torch.equal(states[0], states[1])


def test_how_many_they_are_matters(networks: TextToVelocity) -> None:
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    few, many = (networks(x, torch.full((3,), 500.0), words(), empty) for empty in (1, 256))
    assert (few - many).abs().max() > 0.01


def test_the_export_has_the_embedded_autoencoder_and_half_precision(exported: Path) -> None:
    file = "vae/diffusion_pytorch_model.safetensors"
    own, first = load_file(exported / file), load_file(nano.path() / file)
    assert own.keys() == first.keys()
    assert all(torch.equal(own[name], first[name]) for name in own)
    for path in exported.rglob("*.safetensors"):
        assert {part.dtype for part in load_file(path).values()} <= {torch.float16, torch.int64}
    assert sum(path.stat().st_size for path in exported.rglob("*")) <= 15e6


def test_levels_are_logit_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(velocity, "BATCH", 50_000)
    logits = sample_levels(torch.Generator().manual_seed(0)).double().logit()
    assert (float(logits.mean()), float(logits.std())) == pytest.approx((0.5, 1.2), abs=0.02)


def test_training_goes_on_from_what_was_exported(exported: Path, networks: TextToVelocity) -> None:
    torch.manual_seed(1)
    begun = TextToVelocity(build_tokenizer()).eval()
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    call = (x, torch.full((3,), 500.0), words(), 7)
    wanted = networks(*call)
    assert not torch.allclose(begun(*call), wanted, atol=1e-2)
    load_networks(begun, exported)
    torch.testing.assert_close(begun(*call), wanted)


def test_a_start_that_cannot_be_one_is_refused(exported: Path) -> None:
    check_start(Embedded.flow, exported)
    with pytest.raises(UserError, match="nano is trained from scratch"):
        check_start(Embedded.nano, exported)
    with pytest.raises(UserError, match=r"No such file .*; name what --model flow wrote"):
        check_start(Embedded.flow, nano.path())


def test_a_start_of_another_architecture_is_refused(exported: Path, tmp_path: Path) -> None:
    for path in exported.rglob("*.safetensors"):
        copied = tmp_path / path.relative_to(exported)
        copied.parent.mkdir(parents=True, exist_ok=True)
        weights = load_file(path)
        save_file({name: weights[name] for name in list(weights)[1:]}, copied)
    with pytest.raises(UserError, match=r"Error.* in loading state_dict .*; name what"):
        check_start(Embedded.flow, tmp_path)


def test_the_card_tells_of_a_start() -> None:
    told = further(FLOW, 24_000)
    assert told.arguments == " --model flow --start EARLIER --flow-steps 24000"
    assert FLOW.notes in told.notes


def test_it_learns_the_velocity_from_the_image_to_the_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of scenes that are all the same, x_0: it is (x_s - x_0) / s, and no state is off the line."""
    monkeypatch.setattr(velocity, "SCENES", 4)
    monkeypatch.setattr(velocity, "EMA_DECAY", 0.9)
    monkeypatch.setattr(velocity, "BATCH", 4)
    monkeypatch.setattr(velocity, "warmup_cosine", lambda *_: 0.5)
    clean = torch.full((4, 4, 8, 8), 0.7)
    save_file({"latents": clean}, tmp_path / "flow-latents.safetensors")
    trained = train_flow(
        shipped_autoencoder(CPU), build_tokenizer(), tmp_path, 40, 0, CPU, autocast=False
    )
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    s = torch.tensor([0.3, 0.6, 0.9])[:, None, None, None]
    x = (1 - s) * clean[:3] + s * noise
    found = trained(x, 1000 * s.flatten(), words(), 1)
    truth = (x - clean[:3]) / s
    assert F.mse_loss(found, truth) < 0.3 * truth.square().mean()
