"""Flow-GRPO against its published formulas, in flow matching's own units."""

import math

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import Transitions
from nablaflow.errors import UserError
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods import FlowGRPO
from nablaflow.methods.contract import check_noise
from nablaflow.models import Condition
from tests.support.flow_gaussian import (
    VelocityChange,
    model_of,
    norm_of,
    process_of,
    reference_velocity,
    times,
)
from tests.support.gaussian import SmallNetwork, linear_reward
from tests.support.numeric import finite_difference

STEPS = 6
NOISE = 0.7
SCORES = torch.tensor([1.0, 5.0, 2.0, 9.0, 3.0, 4.0])
PROMPTS = ["a", "b", "a", "b", "a", "c"]


def networks_of(seed: int = 0) -> Networks:
    small = SmallNetwork(STEPS, 2, seed)
    model = model_of(process_of("flow-grpo", STEPS), VelocityChange(STEPS, small))
    model.network.add_module("small", small)
    return Networks(model, linear_reward(torch.tensor([1.0, 0.5])))


def velocity(networks: Networks, x_s: Tensor, k: Tensor) -> Tensor:
    return reference_velocity(x_s, times(STEPS)[k]) + networks.model.network.function(x_s, k)


def kernel(v: Tensor, x_s: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Equation 9: mean and standard deviation of the SDE's step, by x_s itself."""
    s, following = times(STEPS)[k][:, None], times(STEPS)[k - 1][:, None]
    noise, dt = NOISE * (s / (1 - s)).sqrt(), following - s
    drift = v + noise.square() / (2 * s) * (x_s + (1 - s) * v)
    return x_s + drift * dt, noise * (-dt).sqrt()


def sampled(networks: Networks) -> TrainingBatch:
    """Three of each step but the first, from an older policy, with advantages of both signs."""
    k, generator = torch.arange(1, STEPS).repeat_interleave(3), torch.Generator().manual_seed(1)
    s, draw = times(STEPS), {"generator": generator, "dtype": torch.float64}
    x_s, noise = torch.randn(2, len(k), 2, **draw)
    with torch.no_grad():
        mean, deviation = kernel(velocity(networks, x_s, k), x_s, k)
    x, x_next, mean = (
        (part / norm_of(s[level])[:, None])[:, None, None]
        for part, level in ((x_s, k), (mean + deviation * noise, k - 1), (mean, k - 1))
    )
    none, rows = torch.zeros_like(x), torch.arange(len(k))
    credit = 2.0 * torch.randn(len(k), **draw)
    return TrainingBatch(
        Transitions(x, x_next, k, none, rows, mean), Condition(), [""] * len(k), credit=credit
    )


def published(networks: Networks, batch: TrainingBatch, old: Networks, clip: float) -> Tensor:
    """Equation 5 with the closed form of its KL (section 4.2): means over a state's values."""
    t, s = batch.transitions, times(STEPS)
    x_s = t.x[:, 0, 0] * norm_of(s[t.k])[:, None]
    next_s = t.x_next[:, 0, 0] * norm_of(s[t.k - 1])[:, None]

    def log_density(each: Networks) -> Tensor:
        mean, deviation = kernel(velocity(each, x_s, t.k), x_s, t.k)
        return torch.distributions.Normal(mean, deviation).log_prob(next_s).mean(1)

    ratio = (log_density(networks) - log_density(old).detach()).exp()
    assert batch.credit is not None
    gain = torch.minimum(batch.credit * ratio, batch.credit * ratio.clamp(1 - clip, 1 + clip))
    time, dt = s[t.k][:, None], (s[t.k] - s[t.k - 1])[:, None]
    noise = NOISE * (time / (1 - time)).sqrt()
    change = velocity(networks, x_s, t.k) - reference_velocity(x_s, s[t.k])
    per_velocity = dt / 2 * (noise * (1 - time) / (2 * time) + 1 / noise).square()
    return torch.stack([-gain, (per_velocity * change.square()).mean(1)])


@pytest.mark.parametrize("clip", [0.02, 0.5])
def test_loss_and_gradient_are_the_published_ones(clip: float) -> None:
    old, now = networks_of(), networks_of()
    batch = sampled(old)
    parameter = now.model.network.small.first
    generator = torch.Generator().manual_seed(5)
    parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    start, weights = parameter.detach().clone(), torch.tensor([1.0, 0.3])
    method = FlowGRPO(beta=1.0, clip_range=clip, kl_weight=0.3)
    terms = method.losses(batch, now).terms
    expected = published(now, batch, old, clip)
    torch.testing.assert_close(terms["policy"], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["kl"], 0.3 * expected[1], rtol=1e-4, atol=1e-6)

    @torch.no_grad()
    def loss(values: Tensor) -> Tensor:
        parameter.data.copy_(values)
        return (weights.double() @ published(now, batch, old, clip)).sum()

    wanted = finite_difference(loss, start)
    parameter.data.copy_(start)
    (found,) = torch.autograd.grad(method.losses(batch, now).total.sum(), parameter)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_without_a_weight_the_reference_is_not_asked() -> None:
    networks = networks_of()
    found = FlowGRPO(beta=1.0, kl_weight=0.0).losses(sampled(networks), networks)
    assert list(found.terms) == ["policy"]
    assert "kl" not in found.metrics


def test_advantages_are_of_the_group_or_by_the_rollouts_deviation() -> None:
    found = FlowGRPO(beta=7.0).credits(SCORES, PROMPTS)
    deviation = math.sqrt(2 / 3)
    expected = [-1 / deviation, -1.0, 0.0, 1.0, 1 / deviation, 0.0]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    whole = math.sqrt(sum((x - 4.0) ** 2 for x in SCORES.tolist()) / 6)
    batch = FlowGRPO(beta=7.0, deviation="batch", max_advantage=0.7).credits(SCORES, PROMPTS)
    centred = [-1.0, -2.0, 0.0, 2.0, 1.0, 0.0]
    expected = [max(-0.7, min(0.7, each / whole)) for each in centred]
    assert batch.tolist() == pytest.approx(expected, abs=1e-5)


def test_steps_without_noise_are_refused_in_one_line() -> None:
    check_noise(FlowGRPO(beta=1.0), noisy=True)
    with pytest.raises(UserError, match=r"^sampler\.name: euler adds no noise[^\n]*$"):
        check_noise(FlowGRPO(beta=1.0), noisy=False)
