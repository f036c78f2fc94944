"""Flow matching on a Gaussian, in its own units: x_s = (1 - s) x_0 + s epsilon, v by hand."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nablaflow.diffusion import FlowSchedule, ReverseProcess, build_process
from tests.support.gaussian import GaussianModel

MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
IDENTITY = torch.eye(2, dtype=torch.float64)
SCHEDULE = FlowSchedule({"num_train_timesteps": 1000, "shift": 3.0}, grid="even")


def process_of(sampler: str, steps: int) -> ReverseProcess:
    return build_process(SCHEDULE, sampler, steps, 1.0, sigma_floor=0.01)


def times(steps: int) -> Tensor:
    """S by k, of the shifted even row, as the stock scheduler has it."""
    row = torch.arange(steps + 1, dtype=torch.float64) / steps
    return 3.0 * row / (1.0 + 2.0 * row)


def norm_of(s: Tensor) -> Tensor:
    """What x_s is divided by to be a state."""
    return ((1 - s).square() + s.square()).sqrt()


class VelocityChange(nn.Module):
    """A policy whose velocity is the reference's plus ``function(x_s, k)``, as a change of noise.

    epsilon = x_s + (1 - s) v, in the units where x_s has the noise s.
    """

    def __init__(self, steps: int, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.s, self.function = times(steps), function

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        s = self.s[k][:, None]
        return (1 - s) * self.function(norm_of(s) * x, k)


def model_of(
    process: ReverseProcess,
    policy: nn.Module,
    mean: Tensor = MEAN,
    covariance: Tensor = COVARIANCE,
) -> GaussianModel:
    return GaussianModel(process, mean, covariance, policy)


def reference_velocity(x_s: Tensor, s: Tensor) -> Tensor:
    """E[epsilon - x_0 | x_s], row by row."""
    rows = [jacobian(t) @ (x - (1 - t) * MEAN) - MEAN for x, t in zip(x_s, s, strict=True)]
    return torch.stack(rows)


def jacobian(s: Tensor, covariance: Tensor = COVARIANCE) -> Tensor:
    """Of the reference's velocity by x_s."""
    identity = torch.eye(len(covariance), dtype=torch.float64)
    total = (1 - s).square() * covariance + s.square() * identity
    return (s * identity - (1 - s) * covariance) @ total.inverse()
