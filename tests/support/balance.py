"""The linear problem in closed form, constants included: log flows as detailed balance has them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nablaflow.diffusion import ReverseProcess
from nablaflow.estimators import Networks
from nablaflow.models import Condition
from tests.support.chain import Quadratic, solve, x0_hat_of
from tests.support.gaussian import AffineFlow, GaussianModel, MeanShift, linear_reward

MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
DIRECTION = torch.tensor([0.7, -1.1], dtype=torch.float64)


@dataclass(frozen=True)
class Linear:
    """A Gaussian, r(x) = a . x and the exact policy: V_k(x) = slope[k] . x + constant[k]."""

    model: GaussianModel
    beta: float
    slope: Tensor
    constant: Tensor

    def value(self, x: Tensor, k: int) -> Tensor:
        return x.flatten(1) @ self.slope[k] + self.constant[k]

    def networks(self, gamma: list[float], *, by_reference: bool) -> Networks:
        """With the flow network whose mean over a state's values is V_k less beta gamma r(x0_hat).

        What it says at x_0, where it is not asked, is wrong.
        """
        slope = torch.zeros(len(gamma), 2, 2, dtype=torch.float64)
        offset = torch.zeros(len(gamma), 2, dtype=torch.float64)
        for k in range(1, len(gamma)):
            strength = self.beta * gamma[k]
            pull = x0_hat_of(self.model, k).slope.T @ DIRECTION
            slope[k, :, 0] = 2 * (self.slope[k] - strength * pull)
            at_zero = self._x0_hat_at_zero(k, by_reference=by_reference) @ DIRECTION
            offset[k, 0] = 2 * (self.constant[k] - strength * at_zero)
        offset[0] = 99.0
        flow = AffineFlow(self.model.process, offset, slope)
        return Networks(self.model, linear_reward(DIRECTION), flow, flow)

    def _x0_hat_at_zero(self, k: int, *, by_reference: bool) -> Tensor:
        if by_reference:
            return x0_hat_of(self.model, k).offset
        zero = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
        with torch.no_grad():
            return self.model.predict(zero, torch.tensor([k]), Condition()).x0_hat.flatten()


def linear(process: ReverseProcess, beta: float) -> Linear:
    model = GaussianModel(process, MEAN, COVARIANCE, MeanShift(process, 2))
    chain = solve(model, Quadratic(torch.zeros(2, 2, dtype=torch.float64), DIRECTION), beta)
    slopes = torch.stack([value.offset for value in chain.values])
    constants = [torch.zeros((), dtype=torch.float64)]
    for k in range(1, process.steps + 1):
        variance, after = process.sigma[k].double().square(), slopes[k - 1]
        model.network.shift.data[k] = variance * after
        mean = chain.kernels[k].offset @ after
        constants.append(constants[-1] + mean + 0.5 * variance * after @ after)
    return Linear(model, beta, slopes, torch.stack(constants))
