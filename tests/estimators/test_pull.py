"""What a target asks for without a reward: by hand on a normal, on the embedded model, in the lab.

On a standard normal every level is one, and E[x_0 | x_k] = sqrt(a) x_k. Ends of standard
deviation s make E T_k . x_k = c_k / sigma_k a (s^2 - 1) for each value, |x_k|^2 a s^2 + 1 - a.
"""

import pytest
import torch
from torch import Tensor

from nablaflow import nano
from nablaflow.diffusion import Transitions, build_process, sample_trajectories
from nablaflow.errors import UserError
from nablaflow.estimators import DenoisingAdjoint, Path
from nablaflow.estimators.pull import Pull, pull_samples
from nablaflow.exact.catalog import PROBLEMS
from nablaflow.exact.counter import PassCounter
from nablaflow.exact.model import MixtureModel
from nablaflow.exact.process import exact_process
from nablaflow.models import (
    AdapterSettings,
    Condition,
    DiffusionModel,
    SamplerSettings,
    load_model,
    load_pipeline,
)
from tests.support.gaussian import GaussianModel
from tests.support.paths import Nothing
from tests.support.schedules import STABLE_DIFFUSION

SHAPES = ["a circle", "a square", "a triangle", "a star"]


def pull_of(model: DiffusionModel, x0: Tensor, condition: Condition) -> Pull:
    none = torch.zeros(0, dtype=torch.long)
    transitions = Transitions(x0[:0], x0[:0], none, x0[:0], none)
    path = Path(x0, None, condition, [""] * len(x0), transitions)
    levels = DenoisingAdjoint(adjoint_above=0.9).rewardless_levels(model.process)
    return Pull.of(pull_samples(path, model, levels, torch.Generator().manual_seed(1)))


def own_pull(model: DiffusionModel, prompts: list[str]) -> Pull:
    """By what the reference itself samples."""
    condition = model.condition(prompts)
    x0 = sample_trajectories(
        lambda x, k: model.predict(x, k, condition),
        model.process,
        model.state_shape,
        torch.Generator().manual_seed(2),
        model.device,
        n=len(prompts),
    ).x0
    return pull_of(model, x0, condition)


@pytest.mark.parametrize("deviation", [1.0, 0.6])
def test_ends_of_another_contrast_pull_as_far_as_by_hand(deviation: float) -> None:
    process = build_process(STABLE_DIFFUSION, "ddim", 6, 1.0, sigma_floor=0.01)
    identity = torch.eye(2, dtype=torch.float64)
    model = GaussianModel(process, torch.zeros(2, dtype=torch.float64), identity, Nothing())
    generator = torch.Generator().manual_seed(0)
    x0 = deviation * torch.randn(20_000, 1, 1, 2, generator=generator, dtype=torch.float64)
    found = pull_of(model, x0, Condition())
    a = process.alpha_bar.double() / process.alpha_bar[0].double()
    before = torch.cat([a[:1], a[:-1]])
    # DDIM's mean is sqrt(a') x0_hat + sqrt(1 - a' - sigma^2) noise, which both follow the score.
    sigma = process.sigma.double()
    bar, bar_before = process.alpha_bar.double(), before * process.alpha_bar[0].double()
    per_x0 = bar_before.sqrt() - (1 - bar_before - sigma**2).sqrt() * (bar / (1 - bar)).sqrt()
    per_score = per_x0 * (1 - bar) / bar.sqrt()
    variance = deviation**2
    along = per_score / sigma * a * (variance - 1)
    expected = (along.square() / (a * variance + 1 - a))[1:]
    asked = a[1:] <= 0.9
    assert 0 < asked.sum() < len(asked)
    close = torch.testing.assert_close
    close(found.nats[1:][asked], expected[asked], rtol=0.1, atol=2e-3)
    assert not found.nats[1:][~asked].any()
    assert (found.beyond_doubt <= found.nats.clamp_min(0.0) + 1e-9).all()


def embedded(guidance_scale: float) -> DiffusionModel:
    sampler = SamplerSettings(steps=10, guidance_scale=guidance_scale)
    pipeline = load_pipeline(str(nano.path()))
    return load_model(pipeline, sampler, AdapterSettings(rank=1), torch.device("cpu"))


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_on_the_embedded_model_denoising_is_refused(guidance_scale: float) -> None:
    """Ten steps have ends of less contrast than the network foresees, guided or not."""
    found = own_pull(embedded(guidance_scale), SHAPES * 4)
    assert found.nats.argmax() == 2
    with pytest.raises(UserError, match=r"^method: .* at k = 2: .* set adjoint_above=0 "):
        found.check("path-weighted-matching")


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("name", PROBLEMS)
def test_in_the_laboratory_it_is_not(name: str, steps: int) -> None:
    prior = PROBLEMS[name]().prior
    process = exact_process(prior.standardized(), steps)
    model = MixtureModel(prior, process, Nothing(), PassCounter())
    with model.reference():
        found = own_pull(model, [""] * 256)
    found.check("path-weighted-matching")
    assert 0 < found.nats.abs().sum() < 0.05  # on the embedded model it is above 10


def test_the_adjoint_alone_has_no_level_without_a_reward() -> None:
    process = build_process(STABLE_DIFFUSION, "ddim", 6, 1.0, sigma_floor=0.01)
    assert not DenoisingAdjoint(adjoint_above=0.0).rewardless_levels(process).any()
