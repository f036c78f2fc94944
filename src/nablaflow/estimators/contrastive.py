"""The value mixed from the forward-looking reward and a log flow, both fitted to the reference.

    V_k(x_k) = gamma_k beta r(x0_hat(x_k)) + delta_k h_phi(x_k, k),      grad V_0 = beta grad r(x_0)

Where a prediction is no image (high noise), and where the reward bends, r(x0_hat) is not the log of
E_ref[exp(beta r(x_0)) | x_k]. What is missing is learned from samples of the reference alone, x_0
with its reward, by contrasting those of one prompt at one level with each other,

    loss = - sum_i w_i log softmax_i V_k(x_k^i),    w = softmax(beta r(x_0)),   x_k ~ q(x_k | x_0),

whose minimum is that very log, up to a constant (contrastive energy prediction, arXiv 2304.12824,
theorem 3.2). First h_phi alone is fitted; then, on samples that were held out from it, the two
numbers of each level, for which the loss is convex. There is nothing to tune: a level where the
prediction's reward says all, or nothing that noise would not, gets gamma_k = 1 and delta_k = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from nablaflow.diffusion.process import ReverseProcess
from nablaflow.errors import UserError
from nablaflow.estimators.contrasts import Contrast, ReferenceSamples
from nablaflow.estimators.measured_gamma import measured_levels
from nablaflow.memory import halving, in_parts
from nablaflow.models import Condition, DiffusionModel, LogFlow
from nablaflow.progress import Done
from nablaflow.rewards import NamedReward
from nablaflow.typing import Batch, Latents, Steps

PASSES = 150
"""How often each sample is seen: with more of a few hundred their noise is learned by heart."""
MOST = 800  # iterations
GROUPS = 3  # contrasts in an iteration, each of one prompt and one level
CONTRASTED = 96  # samples in a contrast
RATE, DECAY = 2e-3, 1e-2
HELD_OUT = 1 / 4
AT_ONCE = 32  # samples through the model
ROLLOUT, DECODE = "training.rollout_batch", "training.decode_batch"
MOST_TRUST = 4.0
LEVEL = 20  # iterations that a level of the fit's second part counts for, as progress goes


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
        """Become what `state` was made of, in place: whoever holds this one has it then.

        Raises:
            UserError: it is of a network of another size.
        """
        own = {name.removeprefix("network."): v for name, v in state.items() if "." in name}
        there = {name: value.shape for name, value in self.network.state_dict().items()}
        if there != {name: value.shape for name, value in own.items()}:
            raise UserError(
                "method.value: the checkpoint's log flow has another size than this version makes; "
                "begin the run anew, in another output_dir"
            )
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


def fit_log_flow(
    network: LogFlow,
    model: DiffusionModel,
    reward: NamedReward,
    beta: float,
    samples: ReferenceSamples,
    generator: torch.Generator,
    on_progress: Done = lambda done: None,
    *,
    batch: int = AT_ONCE,
    decode_batch: int | None = None,
) -> LogFlowFit:
    """Fit ``network``, then gamma and delta on samples held out from it.

    Args:
        network: fresh; it is changed, and ends frozen.
        generator: of all noise and draws, on the CPU.
        on_progress: told how many more of `work` are done.
        batch: samples through the model at once; fewer where memory runs out.
        decode_batch: images decoded and scored at once, likewise; None: as many as ``batch``.

    Raises:
        UserError: the reward is the same for all samples of each prompt.
    """
    sizes = batch, decode_batch or batch
    samples.check(reward)
    first, held_out = samples.split(HELD_OUT)
    _train(network, model, beta, samples, first, generator, on_progress)
    levels = measured_levels(model.process.steps)
    found = []
    for k in levels:
        contrasts = [
            samples.contrast(model.process, beta, place, rows, k, generator)
            for place, rows in enumerate(held_out)
        ]
        values = [_values(network, model, reward, beta, part, sizes) for part in contrasts]
        found.append(_mixed(values, contrasts))
        on_progress(LEVEL)
    table = torch.tensor(found)  # gamma, delta, explained, explained
    every = np.arange(model.process.steps + 1)
    at_image = (1.0, 0.0, table[0, 2].item(), table[0, 3].item())
    gamma, delta, ahead, mixed = (
        torch.from_numpy(np.interp(every, [0, *levels], [here, *column.tolist()])).float()
        for here, column in zip(at_image, table.T, strict=True)
    )
    return LogFlowFit(network, gamma, delta, torch.stack([ahead, mixed]))


def work(steps: int, samples: int) -> int:
    """What `fit_log_flow` has to do, as its progress counts it."""
    return iterations(samples) + LEVEL * len(measured_levels(steps))


def iterations(samples: int) -> int:
    """Of the fit's first part, for so many samples, those that are held out among them."""
    seen = PASSES * (1.0 - HELD_OUT) * samples
    return min(MOST, max(1, round(seen / (GROUPS * CONTRASTED))))


def _train(
    network: LogFlow,
    model: DiffusionModel,
    beta: float,
    samples: ReferenceSamples,
    rows: list[Tensor],
    generator: torch.Generator,
    on_progress: Done,
) -> None:
    parameters = list(network.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=DECAY)
    count, at_once = iterations(len(samples.x0)), CONTRASTED
    timestep = model.process.timestep.to(model.device)
    for iteration in range(count):
        warm = min(1.0, (iteration + 1) / 50)
        rate = RATE * warm * 0.5 * (1.0 + math.cos(math.pi * iteration / count))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        for _ in range(GROUPS):  # one at a time: states of large images are large
            part = _drawn(model.process, beta, samples, rows, generator)
            found, at_once = halving(
                partial(contrast_gradient, network, part, timestep), at_once, ROLLOUT
            )
            _add(found, parameters)
        optimizer.step()
        on_progress(1)
    network.requires_grad_(False)


def contrast_gradient(
    network: LogFlow, part: Contrast, timestep: Tensor, at_once: int
) -> list[Tensor | None]:
    """Of a contrast's share of the loss, by each parameter; None for one that has no part in it.

    It is the same whatever ``at_once``, how many samples pass the network together: where not all
    do, what their values ask for is found first, without a graph (arXiv 2101.06983).

    Args:
        timestep: of the sampler, by k.
    """
    parameters, n = list(network.parameters()), len(part.x)

    def value(rows: slice) -> Tensor:
        return network(part.x[rows], timestep[part.k[rows]], part.condition[rows])

    if at_once >= n:
        loss = part.loss(value(slice(n))) / GROUPS
        return list(torch.autograd.grad(loss, parameters, allow_unused=True))
    pieces = [slice(start, start + at_once) for start in range(0, n, at_once)]
    with torch.no_grad():
        values = torch.cat([value(rows) for rows in pieces])
    (asked,) = torch.autograd.grad(part.loss(values.requires_grad_()) / GROUPS, values)
    total: list[Tensor | None] = [None] * len(parameters)
    for rows in pieces:
        own = torch.autograd.grad(value(rows), parameters, asked[rows], allow_unused=True)
        total = [
            a if b is None else b if a is None else a + b for a, b in zip(total, own, strict=True)
        ]
    return total


def _add(found: list[Tensor | None], parameters: list[nn.Parameter]) -> None:
    for gradient, parameter in zip(found, parameters, strict=True):
        if gradient is not None:
            own = parameter.grad
            parameter.grad = gradient if own is None else own.add_(gradient)


def _drawn(
    process: ReverseProcess,
    beta: float,
    samples: ReferenceSamples,
    rows: list[Tensor],
    generator: torch.Generator,
) -> Contrast:
    """Of a level, a prompt and samples of it that are drawn."""
    k = 1 + int(torch.randint(process.steps, (), generator=generator))
    place = int(torch.randint(len(rows), (), generator=generator))
    own = rows[place]
    chosen = own[torch.randint(len(own), (CONTRASTED,), generator=generator)]
    return samples.contrast(process, beta, place, chosen, k, generator)


def _mixed(
    values: list[Float[Tensor, "2 sample"]], contrasts: list[Contrast]
) -> tuple[float, float, float, float]:
    """Of one level: gamma and delta, and the nats explained with gamma 1 alone and by the mix."""
    from scipy.optimize import minimize  # here, since it takes a while to import

    nothing = sum(math.log(len(part.x)) for part in contrasts) / len(contrasts)

    def loss(pair: Tensor) -> Tensor:
        parts = zip(contrasts, values, strict=True)
        return torch.stack([part.loss(pair @ both) for part, both in parts]).mean()

    def with_gradient(given: np.ndarray) -> tuple[float, np.ndarray]:
        pair = torch.from_numpy(given).requires_grad_()
        with torch.enable_grad():
            found = loss(pair)
            (gradient,) = torch.autograd.grad(found, pair)
        return found.item(), gradient.numpy()

    best = minimize(with_gradient, np.array([0.5, 0.5]), jac=True, bounds=[(0.0, MOST_TRUST)] * 2)
    alone, mixed = loss(torch.tensor([1.0, 0.0], dtype=torch.float64)).item(), float(best.fun)
    if not _tells(alone - mixed, contrasts):
        return 1.0, 0.0, nothing - alone, nothing - alone
    gamma, delta = best.x.tolist()
    return gamma, delta, nothing - alone, nothing - mixed


def _tells(gain: float, contrasts: list[Contrast]) -> bool:
    """Whether two fitted numbers gain more nats than they would of noise, by Schwarz's criterion.

    Where a level tells nothing of the tilt any multiple of what is there is as good on the samples,
    a large one too, which would move every trajectory by it.
    """
    effective = sum(1.0 / part.weights.square().sum().item() for part in contrasts)
    return gain * effective > math.log(effective)


@torch.no_grad()
def _values(
    network: LogFlow,
    model: DiffusionModel,
    reward: NamedReward,
    beta: float,
    part: Contrast,
    sizes: tuple[int, int],
) -> Float[Tensor, "2 sample"]:
    """Beta r(x0_hat) and h_phi, float64, some samples at a time.

    Args:
        sizes: samples through the networks at once, and images decoded and scored at once.
    """
    n, timestep = len(part.x), model.process.timestep.to(model.device)

    def predicted(rows: slice) -> tuple[Latents, Batch]:
        x, k, condition = part.x[rows], part.k[rows], part.condition[rows]
        with model.reference():
            x0_hat = model.predict(x, k, condition).x0_hat
        return x0_hat, network(x, timestep[k], condition)

    heads, own = zip(*in_parts(predicted, n, sizes[0], ROLLOUT), strict=True)
    x0_hat = torch.cat(heads)

    def scored(rows: slice) -> Batch:
        images = model.decode(x0_hat[rows])
        return beta * reward(images, [part.prompt] * len(images))

    ahead = torch.cat(list(in_parts(scored, n, sizes[1], DECODE)))
    return torch.stack([ahead.cpu().double(), torch.cat(own).cpu().double()])
