"""Trajectories by hand, a bent problem that has prompts, and what its estimators should say."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nablaflow.diffusion import Transitions, build_process
from nablaflow.estimators import Estimator, Networks, Path, TrainingBatch
from nablaflow.models import Condition
from nablaflow.rewards import NamedReward
from tests.support.gaussian import GaussianModel, NetworkFlow, SmallNetwork, level_of
from tests.support.numeric import finite_difference
from tests.support.schedules import STABLE_DIFFUSION

WORDS = {"one": 1.0, "two": -0.6, "three": 0.4}


def numbers(prompts: Sequence[str]) -> Tensor:
    return torch.tensor([WORDS[prompt] for prompt in prompts], dtype=torch.float64)


class PromptedModel(GaussianModel):
    """Its noise prediction depends on the prompt, so that a wrong row's would be noticed."""

    def condition(self, prompts: list[str]) -> Condition:
        return Condition(numbers(prompts).reshape(-1, 1, 1))

    def forward(self, x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        assert condition.hidden is not None
        plain = super().forward(x, timestep, condition)
        return plain + self.bend * condition.hidden[..., None] * x.cos()


class PromptedFlow(NetworkFlow):
    def forward(self, x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        assert condition.hidden is not None
        return super().forward(x, timestep, condition) * (1.0 + condition.hidden[..., None])


def bent_reward(images: Tensor, prompts: list[str]) -> Tensor:
    x = images[:, 0].flatten(1)
    return numbers(prompts).to(x) * (torch.sin(1.4 * x) + 0.3 * x.square()).sum(1)


def bent_gradient(x: Tensor, prompts: Sequence[str]) -> Tensor:
    return numbers(prompts).reshape(-1, 1, 1, 1) * (1.4 * torch.cos(1.4 * x) + 0.6 * x)


def path_of(
    states: Tensor,
    keep: Sequence[Sequence[int]],
    condition: Condition | None = None,
    prompts: list[str] | None = None,
) -> Path:
    """``states`` by k as a path; transitions in no order of time or trajectory."""
    pairs = [(row, k) for row, steps in enumerate(keep) for k in steps]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(7)).tolist()
    trajectory = torch.tensor([pairs[index][0] for index in order], dtype=torch.long)
    k = torch.tensor([pairs[index][1] for index in order], dtype=torch.long)
    x, x_next = states[k, trajectory], states[k - 1, trajectory]
    transitions = Transitions(x, x_next, k, torch.zeros_like(x), trajectory, torch.zeros_like(x))
    if prompts is None:
        prompts = [""] * states.shape[1]
    return Path(states[0], states, condition or Condition(), prompts, transitions)


def random_states(steps: int, n: int, dimension: int, seed: int) -> Tensor:
    """States that no model needs to have sampled, (K + 1, n, 1, 1, d), float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps + 1, n, 1, 1, dimension, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Bent:
    """A nonlinear reference and policy, two flow networks and a nonlinear reward, all random."""

    model: PromptedModel
    networks: Networks
    beta: float = 1.25  # exact in float32

    @property
    def steps(self) -> int:
        return self.model.process.steps

    def gamma(self, k: int) -> float:
        """alpha_bar_k, but 1 at x_0."""
        return 1.0 if k == 0 else float(self.model.process.alpha_bar[k])

    def prediction(self, x: Tensor, k: int, prompt: str, *, policy: bool) -> tuple[Tensor, Tensor]:
        """x0_hat and the noise at one state (d,), written out."""
        model, timestep = self.model, self.model.process.timestep[k : k + 1]
        condition = model.condition([prompt])
        if policy:
            epsilon = model.forward(x.reshape(1, 1, 1, -1), timestep, condition)
        else:
            with model.reference():
                epsilon = model.forward(x.reshape(1, 1, 1, -1), timestep, condition)
        alpha_bar = float(model.process.alpha_bar[k])
        epsilon = epsilon.flatten()
        return (x - (1 - alpha_bar) ** 0.5 * epsilon) / alpha_bar**0.5, epsilon

    def mean(self, x: Tensor, k: int, prompt: str, *, policy: bool = False) -> Tensor:
        """Of the kernel at one state (d,), written out."""
        process = self.model.process
        x0_hat, epsilon = self.prediction(x, k, prompt, policy=policy)
        return (
            float(process.from_x[k]) * x
            + float(process.from_x0[k]) * x0_hat
            + float(process.from_epsilon[k]) * epsilon
        )

    def jacobian(self, x: Tensor, k: int, prompt: str) -> Tensor:
        """Of the reference kernel's mean at one state (d,)."""
        found = torch.autograd.functional.jacobian(lambda at: self.mean(at, k, prompt), x)
        assert isinstance(found, Tensor)
        return found

    def reward(self, x: Tensor, prompt: str) -> Tensor:
        """Of one state (d,)."""
        return WORDS[prompt] * (torch.sin(1.4 * x) + 0.3 * x.square()).sum()

    def looked(self, x: Tensor, k: int, prompt: str, *, policy: bool = False) -> Tensor:
        """beta alpha_bar_k grad r(x0_hat(x)) by finite differences; beta grad r at k = 0."""

        def ahead(at: Tensor) -> Tensor:
            x0_hat = self.prediction(at, k, prompt, policy=policy)[0] if k > 0 else at
            return self.beta * self.gamma(k) * self.reward(x0_hat, prompt)

        return finite_difference(ahead, x)

    def target_flow(self, x: Tensor, k: int, prompt: str) -> Tensor:
        """Of the average network; 0 at x_0."""
        if k == 0:
            return torch.zeros_like(x)
        flow = self.networks.flow_target
        assert isinstance(flow, PromptedFlow)
        with torch.no_grad():
            return flow.network(x[None], torch.tensor([k]))[0] * (1.0 + WORDS[prompt])

    def bootstrap(self, x: Tensor, k: int, prompt: str, *, policy: bool = False) -> Tensor:
        return self.looked(x, k, prompt, policy=policy) + self.target_flow(x, k, prompt)

    def random_path(self, keep: Sequence[Sequence[int]], seed: int = 0) -> Path:
        prompts = [list(WORDS)[row % 3] for row in range(len(keep))]
        states = random_states(self.steps, len(keep), len(self.model.mean), seed)
        return path_of(states, keep, self.model.condition(prompts), prompts)


def bent_problem(sampler: str = "ddim", eta: float = 1.0, steps: int = 5) -> Bent:
    process = build_process(STABLE_DIFFUSION, sampler, steps, eta, sigma_floor=0.01)
    mean = torch.tensor([0.3, -0.5], dtype=torch.float64)
    covariance = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
    model = PromptedModel(process, mean, covariance, SmallNetwork(steps, 2, seed=1), bend=0.3)
    flow, target = (PromptedFlow(process, SmallNetwork(steps, 2, seed=seed)) for seed in (2, 3))
    return Bent(model, Networks(model, NamedReward("bent", bent_reward), flow, target))


def training_batch(
    path: Path, estimator: Estimator | None, networks: Networks, beta: float
) -> TrainingBatch:
    """The path's transitions, with the estimator's value gradients where there is one."""
    estimate = None if estimator is None else estimator.estimate(path, networks, beta)
    return replace(path.batch(), estimate=estimate)


def rows_of(path: Path) -> list[tuple[int, int, int, str]]:
    """(index, trajectory, k, prompt) of each transition."""
    t = path.transitions
    pairs = zip(t.trajectory.tolist(), t.k.tolist(), strict=True)
    return [(index, row, k, path.prompts[row]) for index, (row, k) in enumerate(pairs)]


def state(path: Path, k: int, row: int) -> Tensor:
    """One x_k, (d,)."""
    assert path.states is not None
    return path.states[k, row].flatten()


class CountingModel(GaussianModel):
    """Remembers (k, how many states) of each forward pass."""

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)  # type: ignore[arg-type]
        self.calls: list[list[int]] = []

    def forward(self, x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        self.calls.append(level_of(self.process, timestep).tolist())
        return super().forward(x, timestep, condition)


class Nothing(nn.Module):
    """A policy that changes nothing."""

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        return torch.zeros_like(x)
