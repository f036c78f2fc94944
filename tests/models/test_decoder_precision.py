"""`training.decoder_precision`: what an update is made of is decoded in it, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import trajectory_noise
from nablaflow.errors import UserError
from nablaflow.estimators.reference import reward_gradient
from nablaflow.models import AdapterSettings, SamplerSettings, load_model
from nablaflow.models.decoder_precision import images_by
from nablaflow.models.load import load_pipeline
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.rehearsal import rehearse
from nablaflow.runs.setup import Parts

MakeParts = Callable[..., Parts]
CPU = torch.device("cpu")
PROMPTS = ["a circle", "a square"]
STEP = {"bf16": 2.0**-8, "fp16": 2.0**-11}  # half of the distance to the next number, at 1


def _states() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def model_of(folder: Path) -> PipelineModel:
    sampler = SamplerSettings(name="ddim", steps=4)
    return load_model(load_pipeline(str(folder)), sampler, AdapterSettings(rank=2), CPU)


@pytest.fixture(params=list(STEP))
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


def test_images_are_those_of_float32_but_for_rounding(precision: str, make_parts: MakeParts):
    own, half = make_parts().model, make_parts(f"training.decoder_precision={precision}").model
    with torch.no_grad():
        wanted, found = own.decode(_states()), half.decode_in_training(_states())
    assert found.dtype == torch.float32
    assert not torch.equal(found, wanted)
    # Of some ten layers, each of which rounds.
    assert (found - wanted).abs().max() < 10 * STEP[precision]


def test_what_is_measured_is_decoded_in_float32(precision: str, make_parts: MakeParts):
    own, half = make_parts().model, make_parts(f"training.decoder_precision={precision}").model
    assert torch.equal(own.decode(_states()), half.decode(_states()))


def test_gradients_are_those_of_float32_but_for_rounding(precision: str, make_parts: MakeParts):
    parts = [make_parts(*extra) for extra in ((), (f"training.decoder_precision={precision}",))]
    wanted, found = (reward_gradient(p.trainer.networks, _states(), PROMPTS) for p in parts)
    assert found.dtype == torch.float32
    cosine = torch.cosine_similarity(found.flatten(1), wanted.flatten(1))
    assert cosine.min() > 1 - STEP[precision] / 2
    assert found.norm() == pytest.approx(float(wanted.norm()), rel=0.02)


def test_a_rollout_has_the_scores_of_the_rounded_images(make_parts: MakeParts):
    parts = make_parts("training.decoder_precision=bf16")
    path = parts.trainer.core.rollout(PROMPTS, trajectory_noise([0, 1]), torch.tensor([[1], [2]]))
    images = parts.model.decode_in_training(path.x0)
    torch.testing.assert_close(path.scores, parts.reward(images, PROMPTS), rtol=0, atol=1e-6)
    assert not torch.equal(path.scores, parts.reward(parts.model.decode(path.x0), PROMPTS))


def test_a_whole_update_trains_by_it(precision: str, make_parts: MakeParts):
    parts = make_parts(
        f"training.decoder_precision={precision}", "training.gradient_checkpointing=true"
    )
    assert parts.trainer.step()["loss_forward"] > 0


# --- gradients that fp16 has no numbers for -------------------------------------------------------


class Linear(torch.nn.Module):
    """A decoder whose gradient is known: twice the image's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float16))

    def decode(self, latents: Tensor) -> Tensor:
        return self.weight * latents


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1e6])
def test_a_gradient_of_any_size_passes_fp16(size: float):
    """Which ends at 65504, and below at 6e-8; each image's is of its own size."""
    latents = torch.ones(2, 3, 4, 4, requires_grad=True)
    images = images_by(Linear(), latents, lambda decoder, given: decoder.decode(given))
    weights = torch.tensor([size, 1.0])[:, None, None, None]
    (found,) = torch.autograd.grad((weights * images).sum(), latents)
    torch.testing.assert_close(found, (2 * weights).expand_as(found), rtol=1e-3, atol=0)


def test_images_without_a_gradient_pass_a_zero_through_fp16():
    latents = torch.ones(1, 3, 4, 4, requires_grad=True)
    images = images_by(Linear(), latents, lambda decoder, given: decoder.decode(given))
    (found,) = torch.autograd.grad((0.0 * images).sum(), latents)
    assert torch.equal(found, torch.zeros_like(found))


# --- what is refused ------------------------------------------------------------------------------


def test_an_autoencoder_that_says_fp16_is_too_narrow_is_taken_at_its_word(
    folders: dict[str, Path],
):
    model = model_of(folders["sdxl"])
    for precision in ("float32", "bf16"):
        model.check_decoder_in(precision)
    refusal = r"^training\.decoder_precision: .*\(force_upcast .*; use bf16 or float32$"
    with pytest.raises(UserError, match=refusal):
        model.use_decoder_in("fp16")
    model.pipeline.vae.register_to_config(force_upcast=False)
    model.check_decoder_in("fp16")


def test_a_model_without_a_decoder_has_no_use_for_it(folders: dict[str, Path]):
    model = model_of(folders["ddpm"])
    model.use_decoder_in("float32")
    with pytest.raises(UserError, match=r"^training\.decoder_precision: .* has no decoder"):
        model.check_decoder_in("bf16")


def test_a_decoder_that_overflows_is_found_before_any_training(
    folders: dict[str, Path], tmp_path: Path
):
    pipeline: Any = load_pipeline(str(folders["sd"]))
    pipeline.vae.decoder.conv_in.bias.data.fill_(6e4)
    pipeline.vae.decoder.conv_in.weight.data.fill_(3e3)  # sums of the two are beyond 65504
    pipeline.save_pretrained(tmp_path / "wide")
    model = model_of(tmp_path / "wide")
    model.use_decoder_in("fp16")
    with pytest.raises(UserError) as told:
        rehearse(model, str(tmp_path / "wide"), tmp_path)
    assert str(told.value) == (
        "training.decoder_precision: the model's decoder overflows in fp16, before any training; "
        "use bf16 or float32"
    )
    model.use_decoder_in("bf16")
    assert rehearse(model, str(tmp_path / "wide"), tmp_path) is None


def test_its_gradient_is_tried_too(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = model_of(folders["sd"])
    model.use_decoder_in("fp16")
    assert rehearse(model, str(folders["sd"]), tmp_path) is None
    decode = model.decode_in_training
    monkeypatch.setattr(model, "decode_in_training", lambda x0: decode(x0) * torch.inf)
    with pytest.raises(UserError, match=r"decoder overflows in fp16"):
        rehearse(model, str(folders["sd"]), tmp_path)
