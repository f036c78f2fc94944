"""Best of n: against order statistics, and against choosing by hand."""

import math

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import build_process, sample_trajectories, trajectory_noise
from nablaflow.estimators import Networks
from nablaflow.methods import BestOfN
from tests.support.gaussian import GaussianModel, MeanShift, linear_reward
from tests.support.paths import Bent, bent_problem
from tests.support.schedules import STABLE_DIFFUSION

DIRECTION = torch.tensor([0.7, -1.1], dtype=torch.float64)
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
# Means of the largest of n standard normal numbers (n = 4: numerically).
LARGEST = {1: 0.0, 2: math.pi**-0.5, 3: 1.5 * math.pi**-0.5, 4: 1.02938}


def gaussian() -> Networks:
    process = build_process(STABLE_DIFFUSION, "ddim", 4, 1.0, sigma_floor=0.01)
    model = GaussianModel(process, MEAN, COVARIANCE, MeanShift(process, 2))
    model.network.shift.data += 3.0  # the policy's; the reference is what is drawn from
    return Networks(model, linear_reward(DIRECTION))


def rewards(networks: Networks, n: int, images: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x0 = BestOfN(n=n).sample(networks, [""] * images, generator)
    return networks.reward(networks.model.decode(x0), [""] * images)


def reference_samples(bent: Bent, prompts: list[str], generators: list) -> Tensor:
    condition = bent.model.condition(prompts)
    with bent.model.reference():
        return sample_trajectories(
            lambda x, k: bent.model.predict(x, k, condition),
            bent.model.process,
            bent.model.state_shape,
            generators,
            bent.model.device,
        ).x0


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_mean_reward_is_that_of_the_largest_of_n(n: int) -> None:
    images, networks = 10_000, gaussian()
    plain = rewards(networks, 1, images, seed=0)
    found = rewards(networks, n, images, seed=1)
    wanted = plain.mean() + LARGEST[n] * plain.std()
    assert float(found.mean()) == pytest.approx(float(wanted), abs=5 * float(plain.std()) / 100)


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_the_divergence_is_that_of_the_largest_of_n(n: int) -> None:
    """KL of n F^(n-1) p from p by quadrature; by the rank F of a draw it is the same for any p."""
    rank = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    density = n * rank ** (n - 1)
    by_quadrature = float((density * density.log()).mean())
    assert BestOfN(n=n).most_kl == pytest.approx(by_quadrature, abs=1e-4)


def test_each_prompt_keeps_its_own_best() -> None:
    bent = bent_problem()
    prompts = ["one", "two", "three", "two"]
    found = BestOfN(n=3).sample(bent.networks, prompts, trajectory_noise([5, 6, 7, 8]))
    generators = trajectory_noise([5, 6, 7, 8])
    drawn = torch.stack([reference_samples(bent, prompts, generators) for _ in range(3)])
    chosen = set()
    for row, prompt in enumerate(prompts):
        scores = [float(bent.reward(x[row].flatten().double(), prompt)) for x in drawn]
        best = max(range(3), key=scores.__getitem__)
        assert torch.equal(found[row], drawn[best, row])
        chosen.add(best)
    assert len(chosen) > 1


def test_the_best_of_one_is_the_reference() -> None:
    bent = bent_problem()
    prompts = ["one", "two"]
    found = BestOfN(n=1).sample(bent.networks, prompts, trajectory_noise([1, 2]))
    assert torch.equal(found, reference_samples(bent, prompts, trajectory_noise([1, 2])))
    assert not found.requires_grad
