"""A diffusion model of a Gaussian: the noise prediction is exact, and so is all that follows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nablaflow.diffusion import ReverseProcess, Transitions, kernel_mean
from nablaflow.methods import TrainingBatch
from nablaflow.models import Condition, DiffusionModel, FlowScore
from nablaflow.rewards import NamedReward

Change = Callable[[Tensor, Tensor], Tensor]


def level_of(process: ReverseProcess, timestep: Tensor) -> Tensor:
    """k of each timestep; they must differ."""
    assert len(process.timestep.unique()) == len(process.timestep)
    return (timestep[:, None] == process.timestep[None]).long().argmax(1)


class GaussianModel(DiffusionModel):
    """The reference is exact for N(mean, covariance); ``policy`` is added to its noise.

    States are (1, 1, d) and float64; an image has the state in each of its three channels.

    Args:
        policy: ``(x, k) -> `` change of the noise prediction, both (batch, d).
        bend: strength of a nonlinear part of the reference, which then is not exact any more.
    """

    def __init__(
        self,
        process: ReverseProcess,
        mean: Tensor,
        covariance: Tensor,
        policy: nn.Module,
        bend: float = 0.0,
    ) -> None:
        self.process = process
        self.mean, self.covariance = mean, covariance
        self.network = policy
        self.bend = bend
        self.state_shape = (1, 1, len(mean))
        self.image_size = (1, len(mean))
        self.parameterization = "epsilon"
        self.guidance_scale = 1.0
        self.device = torch.device("cpu")
        self._policy_active = True

    def condition(self, prompts: list[str]) -> Condition:
        return Condition()

    def decode(self, x0: Tensor) -> Tensor:
        return x0.expand(-1, 3, -1, -1)

    def slope(self, k: int) -> Tensor:
        """d epsilon / d x_k of the reference, when it is not bent."""
        alpha_bar = self.process.alpha_bar[k].to(self.mean)
        identity = torch.eye(len(self.mean)).to(self.mean)
        total = alpha_bar * self.covariance + (1 - alpha_bar) * identity
        return (1 - alpha_bar).sqrt() * total.inverse()

    def forward(self, x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        k = level_of(self.process, timestep)
        flat = x.flatten(1)
        slopes = self.covariance.new_zeros(self.process.steps + 1, *self.covariance.shape)
        for level in k.unique().tolist():
            slopes[level] = self.slope(level)
        alpha_bar = self.process.alpha_bar.to(self.mean)[k, None]
        centred = flat.to(self.mean) - alpha_bar.sqrt() * self.mean
        epsilon = torch.einsum("nij,nj->ni", slopes[k], centred) + self.bend * flat.sin()
        if self._policy_active:
            epsilon = epsilon + self.network(flat, k)
        return epsilon.reshape(x.shape)

    def allow_second_derivatives(self) -> None:
        """There is nothing in it that has only one."""

    @contextmanager
    def reference(self) -> Iterator[None]:
        self._policy_active = False
        try:
            yield
        finally:
            self._policy_active = True


class MeanShift(nn.Module):
    """A policy whose kernels have the reference's mean plus ``shift[k]``."""

    def __init__(self, process: ReverseProcess, dimension: int) -> None:
        super().__init__()
        alpha_bar = process.alpha_bar.double()
        per_noise = process.from_epsilon - process.from_x0 * ((1 - alpha_bar) / alpha_bar).sqrt()
        per_noise[0] = 1.0
        self.register_buffer("mean_per_noise", per_noise.double()[:, None])
        self.shift = nn.Parameter(torch.zeros(process.steps + 1, dimension, dtype=torch.float64))

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        return (self.shift / self.mean_per_noise)[k]


class SmallNetwork(nn.Module):
    """A policy, or a flow score, that bends in the state and differs from step to step."""

    def __init__(self, steps: int, dimension: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.5 * torch.randn(shape, generator=generator, dtype=torch.float64))

        self.first, self.second = weight(dimension, 4), weight(4, dimension)
        self.bias = weight(steps + 1, 4)

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        return torch.tanh(x @ self.first + self.bias[k]) @ self.second


class AffineFlow(FlowScore):
    """The flow score ``offset[k] + x slope[k]``, written into a table of parameters."""

    def __init__(self, process: ReverseProcess, offset: Tensor, slope: Tensor | None = None):
        nn.Module.__init__(self)
        self.process = process
        zero = torch.zeros(*offset.shape, offset.shape[-1], dtype=offset.dtype)
        self.offset = nn.Parameter(offset.clone())
        self.slope = nn.Parameter(zero if slope is None else slope.clone())

    def forward(self, x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        k = level_of(self.process, timestep)
        flat = self.offset[k] + torch.einsum("ni,nij->nj", x.flatten(1), self.slope[k])
        return flat.reshape(x.shape)


class NetworkFlow(FlowScore):
    """Any network of (x, k) as a flow score."""

    def __init__(self, process: ReverseProcess, network: nn.Module) -> None:
        nn.Module.__init__(self)
        self.process, self.network = process, network

    def forward(self, x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        flat = self.network(x.flatten(1), level_of(self.process, timestep))
        return flat.reshape(x.shape)


def linear_reward(direction: Tensor) -> NamedReward:
    """r(x0) = direction . x0, read off the first channel of the image."""

    def reward(images: Tensor, prompts: list[str]) -> Tensor:
        return images[:, 0].flatten(1) @ direction.to(images)

    return NamedReward("linear", reward)


def any_transitions(model: DiffusionModel, each: int = 1, seed: int = 0) -> TrainingBatch:
    """Each step ``each`` times, between states that no policy needs to have sampled."""
    steps = model.process.steps
    k = torch.arange(1, steps + 1).repeat_interleave(each)
    generator = torch.Generator().manual_seed(seed)
    shape = (2, len(k), *model.state_shape)
    x, x_next = torch.randn(shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        prediction = model.predict(x, k, Condition())
        mean = kernel_mean(model.process, x, prediction, k)
    rows = torch.arange(len(k))
    transitions = Transitions(x, x_next, k, prediction.epsilon, rows, mean)
    return TrainingBatch(transitions, Condition(), [""] * len(k))


def rows(batch: TrainingBatch, index: Tensor) -> TrainingBatch:
    """Some rows of a batch, in the order asked for."""
    prompts = [batch.prompts[row] for row in index.tolist()]
    return TrainingBatch(batch.transitions[index], batch.conditions, prompts)
