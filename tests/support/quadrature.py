"""All trajectories of two steps on a line, with weights: expectations that hold to many digits."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nablaflow.diffusion import Transitions, build_process
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.models import Condition
from nablaflow.rewards import NamedReward
from tests.support.gaussian import GaussianModel, SmallNetwork
from tests.support.numeric import normal_nodes
from tests.support.schedules import STABLE_DIFFUSION

NODES = 16


def wave(images: Tensor, prompts: list[str]) -> Tensor:
    x = images[:, 0].flatten(1)[:, 0]
    return torch.sin(1.3 * x) + 0.3 * x


def line(strength: float) -> Networks:
    """A bent reference and a bent reward; ``strength`` is how far the policy is away."""
    process = build_process(STABLE_DIFFUSION, "ddim", 2, 1.0, sigma_floor=0.01)
    mean = torch.tensor([0.3], dtype=torch.float64)
    covariance = torch.tensor([[0.8]], dtype=torch.float64)
    policy = SmallNetwork(2, 1, seed=1)
    policy.second.data.mul_(strength)
    model = GaussianModel(process, mean, covariance, policy, bend=0.2)
    return Networks(model, NamedReward("wave", wave))


@dataclass(frozen=True)
class Trajectories:
    """Of the policy or of the reference, with their graphs from the policy's parameters.

    Attributes:
        states: x_k by k, (3, n, 1, 1, 1).
        shifts: mu_theta - mu_ref at each, over sigma_k; entry 0 is 0.
        weights: of the quadrature, they add up to 1.
    """

    states: Tensor
    shifts: Tensor
    weights: Tensor

    @staticmethod
    def of(networks: Networks, *, policy: bool) -> "Trajectories":
        nodes, weights = normal_nodes(NODES)
        noise = torch.cartesian_prod(nodes, nodes, nodes).T[..., None, None, None]
        states, shifts = [noise[2]], []
        for k in (2, 1):
            mean, reference = means(networks, states[-1], k)
            sigma = networks.model.process.sigma[k].double()
            states.append((mean if policy else reference) + sigma * noise[k - 1])
            shifts.append((mean - reference) / sigma)
        product = torch.einsum("i,j,k->ijk", weights, weights, weights).flatten()
        shifts.append(torch.zeros_like(noise[0]))
        return Trajectories(torch.stack(states[::-1]), torch.stack(shifts[::-1]), product)

    def batch(self, networks: Networks, credit: Tensor) -> TrainingBatch:
        """Both transitions of each, k = 1 first."""
        n, states = len(self.weights), self.states.detach()
        k = torch.tensor([1, 2]).repeat_interleave(n)
        x, x_next = torch.cat([states[1], states[2]]), torch.cat([states[0], states[1]])
        with torch.no_grad():
            epsilon = networks.model.predict(x, k, Condition()).epsilon
            mean = torch.cat([means(networks, states[step], step)[0] for step in (1, 2)])
        rows = torch.arange(n).repeat(2)
        transitions = Transitions(x, x_next, k, epsilon, rows, mean)
        batch = TrainingBatch(transitions, Condition(), [""] * 2 * n)
        return replace(batch, credit=credit.repeat(2), states=states[:, rows])


def means(networks: Networks, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Of the policy's kernel and of the reference's, written out."""
    model, process = networks.model, networks.model.process
    assert isinstance(model, GaussianModel)
    alpha_bar, timestep = process.alpha_bar[k].double(), process.timestep[k].repeat(len(x))

    def mean(epsilon: Tensor) -> Tensor:
        x0_hat = (x - (1 - alpha_bar).sqrt() * epsilon) / alpha_bar.sqrt()
        return process.from_x0[k] * x0_hat + process.from_epsilon[k] * epsilon

    policy = mean(model.forward(x, timestep, Condition()))
    with model.reference():
        return policy, mean(model.forward(x, timestep, Condition()))
