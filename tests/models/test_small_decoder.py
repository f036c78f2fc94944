"""`training.decoder: tiny`: gradients are taken through it, images are the model's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor

from nablaflow import nano
from nablaflow.config.defaults import demo_settings
from nablaflow.config.overrides import apply_overrides, dump_config
from nablaflow.config.parse import parse_config
from nablaflow.diffusion import trajectory_noise
from nablaflow.errors import UserError
from nablaflow.estimators.reference import reward_gradient
from nablaflow.hub import fetch
from nablaflow.models import decoding
from nablaflow.models.load import family_of, load_pipeline
from nablaflow.models.random_weights import random_by_name
from nablaflow.models.small_decoder import embedded_decoder, load_small_decoder
from nablaflow.models.stable_diffusion import StableDiffusion
from nablaflow.runs import setup
from nablaflow.runs.doctor_recipe import plan_of_recipe
from nablaflow.runs.setup import Parts
from nablaflow.shapes import META

MakeParts = Callable[..., Parts]
TINY, PROMPTS = "training.decoder=tiny", ["a circle", "a square"]


def _decoder(**options: Any) -> AutoencoderTiny:
    """Random weights, for latents of four channels, two pixels each."""
    sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderTiny(**{**sizes, **blocks, **options})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the family's small decoder is taken from."""
    folder = tmp_path / "tiny"
    monkeypatch.setattr(StableDiffusion, "small_decoder", str(folder))
    return folder


def _states() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_gradient_is_taken_through_the_small_decoder(place: Path, make_parts: MakeParts):
    small = _decoder(scaling_factor=2.0)
    small.save_pretrained(place)
    parts = make_parts(TINY, "training.decode_batch=1")
    found = reward_gradient(parts.trainer.networks, _states(), PROMPTS)
    leaf = _states().requires_grad_()
    images: Any = small.decoder(leaf / 2.0)  # in [-1, 1]
    images = (images / 2 + 0.5).clamp(0, 1)
    parts.reward(images, PROMPTS).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(found, leaf.grad)
    assert found.norm() > 0


def test_images_and_their_scores_are_the_models_own(place: Path, make_parts: MakeParts):
    _decoder().save_pretrained(place)
    own, small = make_parts(), make_parts(TINY)
    assert torch.equal(own.model.decode(_states()), small.model.decode(_states()))
    rollouts = [
        parts.trainer.core.rollout(PROMPTS, trajectory_noise([0, 1]), torch.tensor([[1], [2]]))
        for parts in (own, small)
    ]
    assert torch.equal(rollouts[0].scores, rollouts[1].scores)


def test_a_whole_update_trains_by_it(place: Path, make_parts: MakeParts):
    _decoder().save_pretrained(place)
    assert make_parts(TINY).trainer.step()["loss_forward"] > 0


def test_what_is_not_there_is_one_line(place: Path, make_parts: MakeParts):
    with pytest.raises(UserError, match=r"training\.decoder: tiny: there is no folder"):
        make_parts(TINY)


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch):
    def no_network(repo: str, **options: Any) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(fetch, "snapshot_download", no_network)
    with pytest.raises(UserError) as told:
        load_small_decoder("somebody/tiny", 4, 8)
    for words in ("training.decoder: tiny", "hub cannot be reached", "hf download somebody/tiny"):
        assert words in str(told.value)


def test_a_damaged_file_is_one_line(place: Path, make_parts: MakeParts):
    _decoder().save_pretrained(place)
    (place / "diffusion_pytorch_model.safetensors").write_bytes(b"0")
    with pytest.raises(UserError, match=r"training\.decoder: tiny: .* cannot be loaded"):
        make_parts(TINY)


def test_an_autoencoder_of_another_kind_is_refused(place: Path, make_parts: MakeParts):
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(place)
    with pytest.raises(UserError, match=r"training\.decoder: tiny"):
        make_parts(TINY)


@pytest.mark.parametrize(
    "options",
    [
        {"latent_channels": 16},
        {
            "decoder_block_out_channels": (8, 8, 8),
            "num_decoder_blocks": (1, 1, 1),
        },
    ],
)
def test_one_for_other_latents_is_refused(
    options: dict[str, Any], place: Path, make_parts: MakeParts
):
    _decoder(**options).save_pretrained(place)
    with pytest.raises(UserError, match=r"pixels of a latent .* training\.decoder=full"):
        make_parts(TINY)


def test_a_family_without_one_is_refused(monkeypatch: pytest.MonkeyPatch, make_parts: MakeParts):
    monkeypatch.setattr(StableDiffusion, "small_decoder", None)
    with pytest.raises(UserError, match=r"no tiny decoder is known for a StableDiffusionPipeline"):
        make_parts(TINY)


OTHER = r"^training\.decoder: \S+ is for latents scaled by .* by 1; .* training\.decoder=full$"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", ["nano", "flow"])
def test_the_embedded_models_have_the_one_that_ships(model: str, dtype: torch.dtype):
    """Their latents have the shape of Stable Diffusion's, whose decoder would be taken for it."""
    autoencoder = _embedded(model, dtype)
    assert embedded_decoder(autoencoder) == nano.decoder_path()


def test_an_autoencoder_that_was_trained_further_has_none():
    """Another one of the same form: its images are others."""
    autoencoder: Any = _embedded("nano", torch.float32)
    autoencoder.decoder.conv_in.weight.data[0, 0] += 0.1
    assert embedded_decoder(autoencoder) is None


def test_of_other_latents_than_the_familys_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(decoding, "load_small_decoder", _not_asked_for)
    monkeypatch.setattr(setup, "settle", _not_asked_for)
    pipeline: Any = load_pipeline(str(nano.path()))
    pipeline.vae.decoder.conv_in.weight.data[0, 0] += 0.1
    pipeline.save_pretrained(tmp_path / "other")
    config = parse_config(apply_overrides(demo_settings(), [f"model={tmp_path / 'other'}", TINY]))
    with pytest.raises(UserError, match=OTHER):
        setup.prepare(config, config.output_dir)


def test_a_plan_is_by_the_one_that_ships(tmp_path: Path):
    recipe = tmp_path / "demo.yaml"
    recipe.write_text(dump_config(parse_config(demo_settings())))
    full, tiny = (plan_of_recipe(recipe, more, trusted=True) for more in ([], [TINY]))
    saved = [plan["saved_per_transition"]["decoder"] for plan in (full, tiny)]
    assert 0 < saved[1] < saved[0] / 2


def _embedded(model: str, dtype: torch.dtype) -> AutoencoderKL:
    folder = nano.path(model)
    return AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype).float()


def _not_asked_for(*_: object, **__: object) -> None:
    raise AssertionError("work, before the refusal")


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd35", "flux"])
def test_the_latents_of_a_published_architecture_are_its_small_decoders(name: str):
    pipeline = random_by_name(f"random:{name}", torch.float32, META)
    kind: Any = family_of(pipeline)
    assert pipeline.vae.config["scaling_factor"] == kind.small_decoder_scale


def test_a_method_without_a_rewards_gradient_is_refused(make_parts: MakeParts):
    ddpo = ("method={name: ddpo, beta: 1.0}", "flow=null")
    with pytest.raises(UserError, match=r"training\.decoder: ddpo takes no gradient"):
        make_parts(TINY, *ddpo)
