"""The value mixed from the forward-looking reward and a log flow, both fitted to the reference.

    V_k(x_k) = gamma_k beta r(x0_hat(x_k)) + delta_k h_phi(x_k, k),      grad V_0 = beta grad r(x_0)

Where a prediction is no image (high noise), and where the reward bends, r(x0_hat) is not the log of
E_ref[exp(beta r(x_0)) | x_k]. What is missing is learned from samples of the reference alone, x_0
with its reward, by contrasting those of one prompt at one level with each other,

    loss = - sum_i w_i log softmax_i V_k(x_k^i),    w = softmax(beta r(x_0)),   x_k ~ q(x_k | x_0),

whose minimum is that very log, up to a constant (contrastive energy prediction, arXiv 2304.12824,
theorem 3.2). First h_phi alone is fitted; then, on samples that were held out from it, the two
numbers of each level, for which the loss is convex. There is nothing to tune: a level where the
prediction's reward says all gets gamma_k = 1 and delta_k = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from nablaflow.diffusion import trajectory_noise
from nablaflow.errors import UserError
from nablaflow.estimators.measured_gamma import measured_levels
from nablaflow.models import Condition, DiffusionModel, LogFlow
from nablaflow.rewards import NamedReward
from nablaflow.typing import Batch, Latents, Steps

ITERATIONS = 800
GROUPS = 3  # contrasts in an iteration, each of one prompt and one level
CONTRASTED = 96  # samples in a contrast
RATE, DECAY = 2e-3, 1e-2
HELD_OUT = 1 / 4
FEWEST = 32  # samples of a prompt
MOST_TRUST = 4.0

Done = Callable[[int], None]


@dataclass(frozen=True)
class LogFlowFit:
    """A log flow with its place in the value, by k = 0, ..., K.

    Attributes:
        gamma: trust in the forward-looking reward; 1 at k = 0.
        delta: of h_phi; 0 at k = 0.
        explained: what of the tilt's information the value has on samples that were held out, in
            nats; of the forward-looking reward alone, and of the mix.
    """

    network: LogFlow
    gamma: Float[Tensor, "levels"]
    delta: Float[Tensor, "levels"]
    explained: Float[Tensor, "2 levels"]

    def score(self, model: DiffusionModel, x: Latents, k: Steps, condition: Condition) -> Latents:
        """delta_k grad h_phi(x_k, k), detached."""
        x = x.detach().float().requires_grad_()
        with torch.enable_grad():
            value = self.network(x, model.process.timestep.to(x.device)[k], condition)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return self.delta.to(x.device)[k].reshape(-1, *[1] * (x.ndim - 1)) * gradient

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint, on the CPU."""
        own = self.network.state_dict()
        weights = {f"network.{name}": value.cpu().clone() for name, value in own.items()}
        tables = {name: getattr(self, name).clone() for name in ("gamma", "delta", "explained")}
        return weights | tables

    def take(self, state: dict[str, Tensor]) -> None:
        """Become what `state` was made of, in place: whoever holds this one has it then."""
        own = {name.removeprefix("network."): v for name, v in state.items() if "." in name}
        self.network.load_state_dict(own)
        for name in ("gamma", "delta", "explained"):
            getattr(self, name).copy_(state[name])

    @staticmethod
    def unfitted(network: LogFlow, steps: int) -> LogFlowFit:
        """Before the fit: all NaN."""
        gamma, delta, *explained = torch.full((4, steps + 1), torch.nan)
        return LogFlowFit(network.requires_grad_(False), gamma, delta, torch.stack(explained))

    @property
    def fitted(self) -> bool:
        return bool(self.gamma.isfinite().all())


@dataclass(frozen=True)
class ReferenceSamples:
    """Clean states of the reference with their rewards, by prompt.

    Attributes:
        x0: states, (sample, ...), on the model's device.
        rewards: of their images, float64, on the CPU.
        condition: of each prompt, one row for each.
        rows: of each prompt, which samples are its own.
    """

    x0: Latents
    rewards: Batch
    prompts: list[str]
    condition: Condition
    rows: list[Tensor]

    @staticmethod
    @torch.no_grad()
    def draw(
        model: DiffusionModel,
        reward: NamedReward,
        prompts: list[str],
        seeds: list[int],
        batch: int,
        on_progress: Done = lambda done: None,
    ) -> ReferenceSamples:
        """Sample the reference.

        Args:
            prompts: one for each sample, each of them `FEWEST` times or more.
            seeds: of each sample's noise.
            batch: samples at once.
        """
        states, rewards = [], []
        for start in range(0, len(prompts), batch):
            rows = slice(start, start + batch)
            with model.reference():
                found = model.sample(prompts[rows], trajectory_noise(seeds[rows]))
            states.append(found.x0)
            rewards.append(reward(model.decode(found.x0), prompts[rows]).cpu().double())
            on_progress(len(found.x0))
        texts = list(dict.fromkeys(prompts))
        index = torch.tensor([texts.index(prompt) for prompt in prompts])
        rows = [(index == place).nonzero()[:, 0] for place in range(len(texts))]
        return ReferenceSamples(
            torch.cat(states), torch.cat(rewards), texts, model.condition(texts), rows
        )

    def split(self, share: float) -> tuple[list[Tensor], list[Tensor]]:
        """Rows of each prompt: the first, and a share of them at the end."""
        counts = [max(2, round(share * len(rows))) for rows in self.rows]
        pairs = zip(self.rows, counts, strict=True)
        first = [rows[: len(rows) - count] for rows, count in pairs]
        pairs = zip(self.rows, counts, strict=True)
        return first, [rows[len(rows) - count :] for rows, count in pairs]


@dataclass(frozen=True)
class _Contrast:
    """Samples of one prompt, noised to one level, with their weights in the tilt."""

    x: Latents
    k: Steps
    weights: Batch
    condition: Condition
    prompt: str

    def loss(self, value: Batch) -> Tensor:
        """Cross entropy of the tilt's weights against those by ``value``."""
        weights = self.weights.to(value)
        return -(weights * torch.log_softmax(value, 0)).sum()


def fit_log_flow(
    network: LogFlow,
    model: DiffusionModel,
    reward: NamedReward,
    beta: float,
    samples: ReferenceSamples,
    generator: torch.Generator,
    on_progress: Done = lambda done: None,
) -> LogFlowFit:
    """Fit ``network``, then gamma and delta on samples held out from it.

    Args:
        network: fresh; it is changed, and ends frozen.
        generator: of all noise and draws, on the CPU.
        on_progress: told how many more of `work` are done.

    Raises:
        UserError: the reward is the same for all samples of each prompt.
    """
    _check(samples, reward)
    first, held_out = samples.split(HELD_OUT)
    _train(network, model, beta, samples, first, generator, on_progress)
    levels = measured_levels(model.process.steps)
    found = []
    for k in levels:
        contrasts = [
            _contrast(model, beta, samples, place, rows, k, generator)
            for place, rows in enumerate(held_out)
        ]
        found.append(_mixed(network, model, reward, beta, contrasts))
        on_progress(1)
    table = torch.tensor(found)  # gamma, delta, explained, explained
    every = np.arange(model.process.steps + 1)
    at_image = (1.0, 0.0, table[0, 2].item(), table[0, 3].item())
    gamma, delta, ahead, mixed = (
        torch.from_numpy(np.interp(every, [0, *levels], [here, *column.tolist()])).float()
        for here, column in zip(at_image, table.T, strict=True)
    )
    return LogFlowFit(network, gamma, delta, torch.stack([ahead, mixed]))


def work(steps: int) -> int:
    """What `fit_log_flow` has to do, as its progress counts it."""
    return ITERATIONS + len(measured_levels(steps))


def _check(samples: ReferenceSamples, reward: NamedReward) -> None:
    spread = [samples.rewards[rows].std().item() for rows in samples.rows]
    if not any(value > 0 for value in spread):
        raise UserError(
            f"reward: {reward.name} gives all reference images of a prompt the same; "
            "there is nothing to align with"
        )


def _train(
    network: LogFlow,
    model: DiffusionModel,
    beta: float,
    samples: ReferenceSamples,
    rows: list[Tensor],
    generator: torch.Generator,
    on_progress: Done,
) -> None:
    optimizer = torch.optim.AdamW(network.requires_grad_(True).parameters(), weight_decay=DECAY)
    for iteration in range(ITERATIONS):
        warm = min(1.0, (iteration + 1) / 50)
        rate = RATE * warm * 0.5 * (1.0 + math.cos(math.pi * iteration / ITERATIONS))
        optimizer.param_groups[0]["lr"] = rate
        parts = list(_contrasts(model, beta, samples, rows, generator))
        values = network(
            torch.cat([part.x for part in parts]),
            model.process.timestep.to(model.device)[torch.cat([part.k for part in parts])],
            Condition.concatenate([part.condition for part in parts]),
        ).split([len(part.x) for part in parts])
        losses = [part.loss(value) for part, value in zip(parts, values, strict=True)]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).mean().backward()
        optimizer.step()
        on_progress(1)
    network.requires_grad_(False)


def _contrasts(
    model: DiffusionModel,
    beta: float,
    samples: ReferenceSamples,
    rows: list[Tensor],
    generator: torch.Generator,
) -> Iterator[_Contrast]:
    for _ in range(GROUPS):
        k = 1 + int(torch.randint(model.process.steps, (), generator=generator))
        place = int(torch.randint(len(rows), (), generator=generator))
        own = rows[place]
        drawn = own[torch.randint(len(own), (CONTRASTED,), generator=generator)]
        yield _contrast(model, beta, samples, place, drawn, k, generator)


def _contrast(
    model: DiffusionModel,
    beta: float,
    samples: ReferenceSamples,
    place: int,
    rows: Tensor,
    k: int,
    generator: torch.Generator,
) -> _Contrast:
    x0 = samples.x0[rows.to(samples.x0.device)]
    kept = model.process.alpha_bar[k] / model.process.alpha_bar[0]
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    return _Contrast(
        x=kept.sqrt() * x0 + (1.0 - kept).sqrt() * noise,
        k=torch.full((len(rows),), k, device=x0.device),
        weights=torch.softmax(beta * samples.rewards[rows], 0),
        condition=samples.condition[place : place + 1].expand(len(rows)),
        prompt=samples.prompts[place],
    )


@torch.no_grad()
def _mixed(
    network: LogFlow,
    model: DiffusionModel,
    reward: NamedReward,
    beta: float,
    contrasts: list[_Contrast],
) -> tuple[float, float, float, float]:
    """Of one level: gamma and delta, and the nats explained with gamma 1 alone and by the mix."""
    timestep = model.process.timestep.to(model.device)
    ahead, own = [], []
    for part in contrasts:
        with model.reference():
            x0_hat = model.predict(part.x, part.k, part.condition).x0_hat
        rewards = reward(model.decode(x0_hat), [part.prompt] * len(part.x))
        ahead.append(beta * rewards.cpu().double())
        own.append(network(part.x, timestep[part.k], part.condition).cpu().double())
    nothing = sum(math.log(len(part.x)) for part in contrasts) / len(contrasts)

    def loss(pair: Tensor) -> Tensor:
        parts = zip(contrasts, ahead, own, strict=True)
        return torch.stack([part.loss(pair[0] * a + pair[1] * h) for part, a, h in parts]).mean()

    def with_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
        pair = torch.from_numpy(values).requires_grad_()
        with torch.enable_grad():
            found = loss(pair)
            (gradient,) = torch.autograd.grad(found, pair)
        return found.item(), gradient.numpy()

    best = minimize(with_gradient, np.array([0.5, 0.5]), jac=True, bounds=[(0.0, MOST_TRUST)] * 2)
    gamma, delta = best.x.tolist()
    alone = loss(torch.tensor([1.0, 0.0], dtype=torch.float64)).item()
    return gamma, delta, nothing - alone, nothing - float(best.fun)
