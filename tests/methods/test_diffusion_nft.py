"""DiffusionNFT against its published formulas, its theorem by quadrature, and its old policy."""

import pytest
import torch
from torch import Tensor, nn

from nablaflow.config.defaults import demo_settings
from nablaflow.config.overrides import load_config
from nablaflow.diffusion import Transitions
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods import DiffusionNFT
from nablaflow.models import Condition, OldPolicy
from tests.support.flow_gaussian import (
    COVARIANCE,
    MEAN,
    VelocityChange,
    jacobian,
    model_of,
    norm_of,
    process_of,
    reference_velocity,
    times,
)
from tests.support.gaussian import SmallNetwork, linear_reward
from tests.support.numeric import finite_difference, normal_quadrature

STEPS = 5
SCORES = torch.tensor([1.0, 5.0, 2.0, 9.0, 3.0, 4.0])
PROMPTS = ["a", "b", "a", "b", "a", "c"]


class Shift(nn.Module):
    """A constant change of the velocity, for each step."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.table = nn.Parameter(
            torch.randn(STEPS + 1, 2, generator=generator, dtype=torch.float64)
        )

    def forward(self, x_s: Tensor, k: Tensor) -> Tensor:
        return self.table[k]


def networks_of(function: nn.Module) -> Networks:
    """Their old policy is the policy as it is now."""
    model = model_of(process_of("euler", STEPS), VelocityChange(STEPS, function.forward))
    model.network.add_module("inner", function)
    return Networks(
        model, linear_reward(torch.tensor([1.0, 0.5])), old_policy=OldPolicy(model.network)
    )


def batch_of(x_s: Tensor, clean: Tensor, k: Tensor, credit: Tensor) -> TrainingBatch:
    x = (x_s / norm_of(times(STEPS)[k])[:, None])[:, None, None]
    none = torch.full_like(x, torch.nan)  # nobody has predicted at noise that is drawn afresh
    transitions = Transitions(x, none, k, none, torch.arange(len(k)), none)
    return TrainingBatch(
        transitions, Condition(), [""] * len(k), credit=credit, x0=clean[:, None, None]
    )


def any_batch() -> TrainingBatch:
    k, generator = torch.arange(1, STEPS).repeat_interleave(2), torch.Generator().manual_seed(1)
    x_s, clean = torch.randn(2, len(k), 2, generator=generator, dtype=torch.float64)
    return batch_of(x_s, clean, k, torch.linspace(0, 1, len(k), dtype=torch.float64))


def published(networks: Networks, old: nn.Module, share: float, *, adaptive: bool) -> Tensor:
    """Both terms without their weights: equation 5, and section 4.2's weighting in x_0."""
    batch = any_batch()
    t, s = batch.transitions, times(STEPS)[batch.transitions.k][:, None]
    assert batch.x0 is not None
    assert batch.credit is not None
    x_s, clean = t.x[:, 0, 0] * norm_of(s), batch.x0[:, 0, 0]
    reference = reference_velocity(x_s, s[:, 0])
    policy = reference + networks.model.network.function(x_s, t.k)
    before = (reference + old(x_s, t.k)).detach()

    def error(v: Tensor) -> Tensor:
        if not adaptive:
            return (v - (x_s - clean) / s).square().mean(1)  # epsilon - x_0, as x_s has them
        off = x_s - s * v - clean
        return off.square().mean(1) / off.detach().abs().mean(1)

    good = error((1 - share) * before + share * policy)
    bad = error((1 + share) * before - share * policy)
    change = (policy - reference).square().mean(1)
    return torch.stack([batch.credit * good + (1 - batch.credit) * bad, change])


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("share", [1.0, 0.1])
def test_loss_and_gradient_are_the_published_ones(share: float, adaptive: bool) -> None:
    network, old = SmallNetwork(STEPS, 2, seed=0), SmallNetwork(STEPS, 2, seed=0)
    networks = networks_of(network)
    network.first.data += 0.1
    method = DiffusionNFT(beta=1.0, policy_share=share, adaptive_weighting=adaptive, kl_weight=0.2)
    found = method.losses(any_batch(), networks)
    expected = published(networks, old, share, adaptive=adaptive)
    torch.testing.assert_close(found.terms["policy"], expected[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.terms["kl"], 0.2 * expected[1], rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.total.sum(), network.first)
    weighted = expected[0].sum() + 0.2 * expected[1].sum()
    (wanted,) = torch.autograd.grad(weighted, network.first)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)
    assert all(value.isfinite().all() for value in found.metrics.values())


def test_the_gradient_is_that_of_finite_differences() -> None:
    network = SmallNetwork(STEPS, 2, seed=0)
    networks = networks_of(network)
    method = DiffusionNFT(beta=1.0, adaptive_weighting=False, policy_share=0.4, kl_weight=0.1)
    start = network.first.detach().clone() + 0.1

    def loss(values: Tensor) -> Tensor:
        network.first.data.copy_(values)
        return method.losses(any_batch(), networks).total.sum()

    wanted = finite_difference(loss, start)
    (found,) = torch.autograd.grad(loss(start), network.first)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("k", [1, 3])
def test_the_optimum_is_the_theorems(share: float, k: int) -> None:
    """v_old + (2 / b) E[r (v - v_old) | x_s], over x_0 given x_s by quadrature.

    The old policy is the reference, so that x_0 is from N(MEAN, COVARIANCE).
    """
    s, x_s = times(STEPS)[k], torch.tensor([0.4, -1.2], dtype=torch.float64)
    network = Shift()
    network.table.data.zero_()
    networks = networks_of(network)
    total = (1 - s).square() * COVARIANCE + s.square() * torch.eye(2, dtype=torch.float64)
    gain = (1 - s) * COVARIANCE @ total.inverse()
    spread = torch.linalg.cholesky(COVARIANCE - (1 - s) * gain @ COVARIANCE)
    nodes, weights = normal_quadrature(30)
    clean = MEAN + gain @ (x_s - (1 - s) * MEAN) + nodes @ spread.T
    good = torch.sigmoid(2.0 * clean[:, 0])
    velocity = (x_s - clean) / s
    old = jacobian(s) @ (x_s - (1 - s) * MEAN) - MEAN
    torch.testing.assert_close(weights @ velocity, old)
    network.table.data[k] = 2 / share * weights @ (good[:, None] * (velocity - old))
    levels = torch.full((len(nodes),), k)
    batch = batch_of(x_s.expand(len(nodes), 2), clean, levels, good)
    method = DiffusionNFT(beta=1.0, policy_share=share, adaptive_weighting=False, kl_weight=0.0)
    loss = method.losses(batch, networks).total @ weights
    (found,) = torch.autograd.grad(loss, network.table)
    assert found.abs().max() < 1e-5
    network.table.data[k] += 0.1
    loss = method.losses(batch, networks).total @ weights
    (found,) = torch.autograd.grad(loss, network.table)
    assert found.abs().max() > 1e-3 * share**2


# --- how good an image is -------------------------------------------------------------------------


def test_r_is_one_half_at_the_prompts_mean_and_ends_at_0_and_1() -> None:
    found = DiffusionNFT(beta=7.0, full_score=1.0).credits(SCORES, PROMPTS)
    deviation = (sum((x - 4.0) ** 2 for x in SCORES.tolist()) / 6) ** 0.5
    centred = [-1.0, -2.0, 0.0, 2.0, 1.0, 0.0]
    expected = [0.5 + 0.5 * max(-1.0, min(1.0, each / deviation)) for each in centred]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    prompt = DiffusionNFT(beta=7.0, deviation="prompt").credits(SCORES, PROMPTS)
    assert prompt.tolist() == pytest.approx(
        [0.5 - 0.1 * 1.5**0.5, 0.4, 0.5, 0.6, 0.5 + 0.1 * 1.5**0.5, 0.5], abs=1e-5
    )


# --- the old policy -------------------------------------------------------------------------------


def test_its_decay_is_either_of_the_authors_schedules() -> None:
    slow = DiffusionNFT(beta=1.0)
    assert [slow.old_policy_decay(n) for n in (1, 200, 500, 9000)] == [0.001, 0.2, 0.5, 0.5]
    late = DiffusionNFT(beta=1.0, decay_flat=75, decay_rise=0.0075, decay_most=0.999)
    found = [late.old_policy_decay(n) for n in (1, 75, 76, 175, 9000)]
    assert found == pytest.approx([0.0, 0.0, 0.0075, 0.75, 0.999])


def test_it_follows_the_policy_and_predicts_in_its_place() -> None:
    network = Shift()
    before = network.table.detach().clone()
    old = OldPolicy(network)
    network.table.data += 1.0
    now = network.table.detach().clone()
    with old.active():
        assert torch.equal(network.table, before)
    assert torch.equal(network.table, now)
    old.follow(0.25)
    torch.testing.assert_close(old.values["table"], before + 0.75)
    with pytest.raises(RuntimeError, match="in between"), old.active():
        raise RuntimeError("in between")
    assert torch.equal(network.table, now)


@pytest.mark.parametrize("name", ["ddim", "euler", "memoryless"])
def test_any_sampler_will_do(name: str) -> None:
    """With noise and without: a recipe of either is one."""
    settings = ["method=diffusion-nft", f"sampler.name={name}", "guard=null"]
    config = load_config(None, settings, demo_settings())
    assert isinstance(config.method, DiffusionNFT)
    assert config.sampler.name == name
