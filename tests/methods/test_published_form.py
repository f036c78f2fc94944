"""The published form against a rendering of its formulas: one transition at a time, plain torch.

arXiv 2412.07775, section 3.2, as the authors' code (github.com/lzzcd001/nabla-gfn) computes it,
with DDIM of eta 1 and guidance: nothing but the networks themselves is shared with the package.
The noise schedule is Stable Diffusion's, written out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nablaflow.diffusion import Transitions, sample_trajectories, trajectory_noise
from nablaflow.methods import Networks, ResidualNablaDB, TrainingBatch
from nablaflow.models import (
    AdapterSettings,
    Condition,
    FlowSettings,
    SamplerSettings,
    UNetFlowScore,
    load_model,
)
from nablaflow.models.pipelines import PipelineModel
from nablaflow.rewards import NamedReward
from tests.support.pipelines import WIDTH, perturb, stable_diffusion

STEPS, GUIDANCE, BETA, REGULARIZATION = 10, 5.0, 40.0, 7.0
PROMPTS = ["a red circle", "a blue square"]
STRIDE = 1000 // STEPS
TOLERANCE = 2e-4

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
KEPT = (1.0 - BETAS).cumprod(0)
"""alpha_bar by timestep."""


def redness(images: Tensor, prompts: list[str]) -> Tensor:
    sign = torch.tensor([-1.0 if "blue" in prompt else 1.0 for prompt in prompts])
    return sign * (images[:, 0] - images[:, 2] ** 2).mean((1, 2))


@dataclass(frozen=True)
class Parts:
    """A tiny Stable Diffusion whose policy and flow network are no longer what they began as."""

    model: PipelineModel
    pretrained: nn.Module
    flow: UNetFlowScore
    batch: TrainingBatch

    @property
    def networks(self) -> Networks:
        return Networks(self.model, NamedReward("redness", redness), self.flow, self.flow)

    def trained(self) -> list[Tensor]:
        policy = [p for p in self.model.network.parameters() if p.requires_grad]
        return [*policy, *self.flow.parameters()]


@pytest.fixture(scope="module")
def parts() -> Parts:
    model = load_model(
        stable_diffusion(),
        SamplerSettings(steps=STEPS, guidance_scale=GUIDANCE),
        AdapterSettings(rank=2),
        torch.device("cpu"),
    )
    perturb(model.network, scale=0.1)
    condition = model.condition(PROMPTS)
    transitions = sample_trajectories(
        lambda x, k: model.predict(x, k, condition),
        model.process,
        model.state_shape,
        trajectory_noise([1, 2]),
        model.device,
        torch.tensor([[1, 2, 5, 9], [1, 3, 7, 10]]),
    ).transitions
    perturb(model.network, scale=0.1, seed=6)  # the rollout is of an earlier policy
    with torch.random.fork_rng():
        torch.manual_seed(3)
        flow = UNetFlowScore(FlowSettings(channels=[8, 16]), model.state_shape[0], 8, WIDTH)
    perturb(flow, scale=0.05)
    rows = transitions.trajectory
    prompts = [PROMPTS[row] for row in rows.tolist()]
    bare: Any = stable_diffusion()
    return Parts(
        model,
        bare.unet.requires_grad_(False),
        flow,
        TrainingBatch(transitions, condition, prompts),
    )


class Rendering:
    """The four terms of one transition (1, 4, h, w), as published."""

    def __init__(self, parts: Parts, row: int) -> None:
        self.parts, t = parts, parts.batch.transitions
        self.x, self.following = t.x[row : row + 1], t.x_next[row : row + 1]
        self.rolled_out = t.epsilon[row : row + 1]
        # Leading spacing, one step off zero; the last state is that of timestep 0.
        self.timestep = (int(t.k[row]) - 1) * STRIDE + 1
        self.then = max(self.timestep - STRIDE, 0)
        self.last = self.timestep == 1
        self.prompt = parts.batch.prompts[row]
        embedded = parts.model.condition(["", self.prompt]).hidden
        assert embedded is not None
        self.embedded = embedded

    def noise(self, x: Tensor, timestep: int, *, pretrained: bool) -> Tensor:
        """Of the guided network: the policy's, or the pretrained one's as it was loaded."""
        network: Any = self.parts.pretrained if pretrained else self.parts.model.network
        both = network(torch.cat([x, x]), torch.tensor([timestep, timestep]), self.embedded).sample
        plain, prompted = both.chunk(2)
        return plain + GUIDANCE * (prompted - plain)

    def mean(self, x: Tensor, noise: Tensor) -> Tensor:
        """Of x_{k-1}."""
        before, after = KEPT[self.timestep], KEPT[self.then]
        clean = (x - (1 - before).sqrt() * noise) / before.sqrt()
        return after.sqrt() * clean + (1 - after - self.variance()).sqrt() * noise

    def variance(self) -> Tensor:
        before, after = KEPT[self.timestep], KEPT[self.then]
        return (1 - after) / (1 - before) * (1 - before / after)

    def by_state(self, x: Tensor, mean: Tensor) -> Tensor:
        """d/dx_k of the log density of x_{k-1}."""
        square = (self.following - mean).square().sum()
        (slope,) = torch.autograd.grad(square, x, retain_graph=True)
        return -slope / (2 * self.variance())

    def looked_ahead(self, x: Tensor, noise: Tensor, timestep: int, gamma: Tensor) -> Tensor:
        """beta gamma grad r of the one-step prediction; at timestep 0 of the state itself."""
        kept = KEPT[timestep] if timestep > 0 else torch.ones((), dtype=torch.float64)
        clean = (x - (1 - kept).sqrt() * noise) / kept.sqrt()
        vae: Any = self.parts.model.pipeline.vae
        image = vae.decode(clean.float() / vae.config.scaling_factor).sample / 2 + 0.5
        score = redness(image.clamp(0, 1), [self.prompt]).sum()
        (slope,) = torch.autograd.grad(score, x, retain_graph=True)
        return BETA * gamma * slope.detach()

    def flow(self, x: Tensor, timestep: int) -> Tensor:
        prompted = Condition(self.embedded[1:])
        return self.parts.flow(x, torch.tensor([timestep]), prompted)

    def terms(self, gamma_end: float | None = None) -> dict[str, Tensor]:
        """Means over the state's values.

        Args:
            gamma_end: in place of alpha_bar of timestep 0, which is the published gamma_0.
        """
        x = self.x.clone().requires_grad_()
        following = self.following.clone().requires_grad_()
        reference = self.mean(x, self.noise(x, self.timestep, pretrained=True))
        noise = self.noise(x, self.timestep, pretrained=False)
        policy = self.mean(x, noise)
        ahead = self.noise(following, self.then, pretrained=False)
        gamma = KEPT[self.then]
        if self.last and gamma_end is not None:
            gamma = torch.tensor(gamma_end, dtype=torch.float64)
        value_then = self.looked_ahead(following, ahead, self.then, gamma)
        value_here = self.looked_ahead(x, noise, self.timestep, KEPT[self.timestep])
        flow_here = self.flow(self.x, self.timestep)
        flow_then = self.flow(self.following, self.then)

        variance = self.variance()
        score, score_of_reference = (
            (mean - self.following) / variance for mean in (policy, reference.detach())
        )
        target = score_of_reference + value_then + (0.0 if self.last else flow_then)
        # No graph: the policy's part trains nothing.
        reverse = self.by_state(x, policy) - self.by_state(x, reference) + value_here + flow_here
        terms = {
            "forward": (score - target).square().mean(),
            "reverse": torch.zeros(()) if self.last else reverse.square().mean(),
            "terminal": flow_then.square().mean() if self.last else torch.zeros(()),
            "output_regularization": REGULARIZATION * (noise - self.rolled_out).square().mean(),
        }
        return {name: value.float() for name, value in terms.items()}


METHOD = ResidualNablaDB.published(BETA, REGULARIZATION)


def slopes(loss: Tensor, parts: Parts) -> Tensor:
    found = torch.autograd.grad(loss, parts.trained(), allow_unused=True)
    filled = zip(found, parts.trained(), strict=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in filled]
    )


def rows_of(transitions: Transitions, *, last: bool) -> list[int]:
    return [row for row, k in enumerate(transitions.k.tolist()) if (k == 1) == last]


def near(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


def test_every_term_and_every_gradient_is_the_published_one(parts: Parts) -> None:
    for row in rows_of(parts.batch.transitions, last=False):
        rendered = Rendering(parts, row).terms()
        losses = METHOD.losses(parts.batch[row : row + 1], parts.networks)
        for name, value in losses.terms.items():
            torch.testing.assert_close(value[0], rendered[name], rtol=TOLERANCE, atol=1e-7)
            assert name == "terminal" or value[0] > 1e-6, name
        total = torch.stack(list(rendered.values())).sum()
        near(slopes(losses.total.sum(), parts), slopes(total, parts))


def test_at_the_end_they_differ_by_gamma_0_alone(parts: Parts) -> None:
    """Published: alpha_bar of timestep 0, 0.99915; here 1, since x_0 is no prediction."""
    for row in rows_of(parts.batch.transitions, last=True):
        rendering = Rendering(parts, row)
        losses = METHOD.losses(parts.batch[row : row + 1], parts.networks)
        ours = rendering.terms(gamma_end=1.0)
        for name, value in losses.terms.items():
            torch.testing.assert_close(value[0], ours[name], rtol=TOLERANCE, atol=1e-7)
        total = torch.stack(list(ours.values())).sum()
        # Two near means over a variance of 0.0004: float32 has no more digits of that.
        near(slopes(losses.total.sum(), parts), slopes(total, parts), 1e-3)
        published = rendering.terms()
        for name in ("reverse", "terminal", "output_regularization"):
            assert torch.equal(published[name], ours[name])
        x0 = rendering.following.clone().requires_grad_()
        asked = rendering.looked_ahead(x0, torch.zeros_like(x0), 0, KEPT[0])
        gamma_0 = asked.norm() / losses.metrics["value_gradient_norm"][0]
        assert float(gamma_0) == pytest.approx(0.99915, abs=1e-5)
