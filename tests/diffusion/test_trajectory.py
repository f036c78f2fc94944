"""Sampling: what is kept is what happened, and a batch's split does not matter."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import (
    SAMPLERS,
    Prediction,
    ReverseProcess,
    Trajectories,
    Transitions,
    build_process,
    draw_transitions,
    predict_from,
    sample_trajectories,
    trajectory_noise,
)
from tests.support.schedules import STABLE_DIFFUSION

STEPS = 6
SHAPE = (2, 3, 3)
SEEDS = [5, 17, 23, 42, 99]


@pytest.fixture(params=list(SAMPLERS))
def process(request: pytest.FixtureRequest) -> ReverseProcess:
    return build_process(STABLE_DIFFUSION, request.param, STEPS, 1.0, sigma_floor=0.01)


def network(x: Tensor, k: Tensor) -> Tensor:
    return torch.sin(1.3 * x + 0.2 * k.reshape(-1, 1, 1, 1))


def sample(
    process: ReverseProcess, seeds: Sequence[int], keep: Tensor | None = None
) -> Trajectories:
    def predict(x: Tensor, k: Tensor) -> Prediction:
        alpha_bar = process.alpha_bar[k].reshape(-1, 1, 1, 1)
        return predict_from(network(x, k), x, alpha_bar, "epsilon")

    noise = trajectory_noise(seeds)
    return sample_trajectories(predict, process, SHAPE, noise, torch.device("cpu"), keep)


def simulate(process: ReverseProcess, seed: int) -> list[Tensor]:
    """x_K, ..., x_0 of one trajectory, written out in float64."""
    generator = torch.Generator().manual_seed(seed)
    states = [torch.randn(SHAPE, generator=generator).double()]
    for k in range(process.steps, 0, -1):
        x = states[-1]
        epsilon = torch.sin(1.3 * x + 0.2 * k)
        alpha_bar = float(process.alpha_bar[k])
        x0_hat = (x - (1 - alpha_bar) ** 0.5 * epsilon) / alpha_bar**0.5
        mean = (
            float(process.from_x[k]) * x
            + float(process.from_x0[k]) * x0_hat
            + float(process.from_epsilon[k]) * epsilon
        )
        noise = torch.randn(SHAPE, generator=generator).double()
        states.append(mean + float(process.sigma[k]) * noise)
    return states


def test_every_kept_transition_is_one_of_its_own_trajectory(process: ReverseProcess) -> None:
    keep = draw_transitions(len(SEEDS), STEPS, 3, torch.Generator().manual_seed(0))
    kept = sample(process, SEEDS, keep).transitions
    told = sorted(zip(kept.trajectory.tolist(), kept.k.tolist(), strict=True))
    asked = sorted((row, k) for row, steps in enumerate(keep.tolist()) for k in steps)
    assert told == asked
    for index, (row, k) in enumerate(zip(kept.trajectory.tolist(), kept.k.tolist(), strict=True)):
        states = simulate(process, SEEDS[row])
        here, following = states[STEPS - k], states[STEPS - k + 1]
        torch.testing.assert_close(kept.x[index].double(), here, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(kept.x_next[index].double(), following, rtol=1e-3, atol=1e-3)
        noise = torch.sin(1.3 * kept.x[index] + 0.2 * k)
        torch.testing.assert_close(kept.epsilon[index], noise)
        generator = torch.Generator().manual_seed(SEEDS[row])
        drawn = [torch.randn(SHAPE, generator=generator) for _ in range(STEPS + 1)][STEPS - k + 1]
        drawn *= float(process.sigma[k])
        assert kept.mean is not None
        torch.testing.assert_close(kept.mean[index] + drawn, kept.x_next[index])


def test_the_clean_states_are_the_ends_of_the_trajectories(process: ReverseProcess) -> None:
    expected = torch.stack([simulate(process, seed)[-1] for seed in SEEDS])
    found = sample(process, SEEDS).x0.double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_split_batch_gives_the_same_trajectories(process: ReverseProcess) -> None:
    keep = draw_transitions(len(SEEDS), STEPS, 2, torch.Generator().manual_seed(0))
    whole = sample(process, SEEDS, keep)
    parts = [sample(process, SEEDS[rows], keep[rows]) for rows in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(torch.cat([part.x0 for part in parts]), whole.x0)
    for row in range(len(SEEDS)):
        part, inside = (parts[0], row) if row < 2 else (parts[1], row - 2)
        mine = part.transitions[part.transitions.trajectory == inside]
        same = whole.transitions[whole.transitions.trajectory == row]
        assert torch.equal(mine.k, same.k)
        torch.testing.assert_close(mine.x_next, same.x_next)


def test_global_random_state_is_neither_read_nor_moved(process: ReverseProcess) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sample(process, SEEDS).x0
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(sample(process, SEEDS).x0, first)


def test_a_step_asked_for_twice_is_kept_twice(process: ReverseProcess) -> None:
    kept = sample(process, SEEDS[:2], torch.tensor([[1, 1], [1, 4]])).transitions
    assert sorted(zip(kept.trajectory.tolist(), kept.k.tolist(), strict=True)) == [
        (0, 1),
        (0, 1),
        (1, 1),
        (1, 4),
    ]


def test_nothing_is_kept_when_nothing_is_asked_for(process: ReverseProcess) -> None:
    kept = sample(process, SEEDS).transitions
    assert len(kept) == 0
    assert kept.x.shape == (0, *SHAPE)


def test_progress_counts_the_steps_down() -> None:
    process = build_process(STABLE_DIFFUSION, "ddim", STEPS, 1.0, sigma_floor=0.01)
    seen: list[int] = []
    sample_trajectories(
        lambda x, k: Prediction(x, x),
        process,
        SHAPE,
        trajectory_noise([1]),
        torch.device("cpu"),
        on_step=seen.append,
    )
    assert seen == [6, 5, 4, 3, 2, 1]


def test_transitions_are_put_together_and_taken_apart(process: ReverseProcess) -> None:
    keep = torch.tensor([[1, 3, 5]] * len(SEEDS))
    kept = sample(process, SEEDS, keep).transitions
    again = Transitions.concatenate([kept[:4], kept[4:]])
    for name in ("x", "x_next", "k", "epsilon", "trajectory"):
        assert torch.equal(getattr(again, name), getattr(kept, name))
    assert len(kept) == 15


def sample_at_once(
    process: ReverseProcess, seed: int, n: int, keep: Tensor | None = None, *, states: bool = True
) -> Trajectories:
    def predict(x: Tensor, k: Tensor) -> Prediction:
        alpha_bar = process.alpha_bar[k].reshape(-1, 1, 1, 1)
        return predict_from(network(x, k), x, alpha_bar, "epsilon")

    return sample_trajectories(
        predict,
        process,
        SHAPE,
        torch.Generator().manual_seed(seed),
        torch.device("cpu"),
        keep,
        n=n,
        keep_states=states,
    )


def test_kept_states_are_those_of_the_kept_transitions(process: ReverseProcess) -> None:
    keep = draw_transitions(4, STEPS, 3, torch.Generator().manual_seed(0), always_last=True)
    found = sample_at_once(process, 3, 4, keep)
    states, kept = found.states, found.transitions
    assert states is not None
    assert states.shape == (STEPS + 1, 4, *SHAPE)
    assert torch.equal(states[0], found.x0)
    assert torch.equal(states[kept.k, kept.trajectory], kept.x)
    assert torch.equal(states[kept.k - 1, kept.trajectory], kept.x_next)
    assert len(kept) == 16
    assert sample_at_once(process, 3, 4, keep, states=False).states is None


def test_kept_states_are_a_trajectory_by_hand(process: ReverseProcess) -> None:
    """With one generator for each trajectory, k = 0 first."""
    noise = trajectory_noise(SEEDS)
    found = sample_trajectories(
        lambda x, k: predict_from(
            network(x, k), x, process.alpha_bar[k].reshape(-1, 1, 1, 1), "epsilon"
        ),
        process,
        SHAPE,
        noise,
        torch.device("cpu"),
        keep_states=True,
    ).states
    assert found is not None
    for row, seed in enumerate(SEEDS):
        expected = torch.stack(simulate(process, seed)[::-1])
        torch.testing.assert_close(found[:, row].double(), expected, rtol=1e-3, atol=1e-3)


def test_one_generator_draws_the_noise_of_all_trajectories(process: ReverseProcess) -> None:
    """In one stream: first x_K of all, then each step's noise of all."""
    n, generator = 3, torch.Generator().manual_seed(8)
    x = torch.randn((n, *SHAPE), generator=generator).double()
    for k in range(STEPS, 0, -1):
        epsilon = torch.sin(1.3 * x + 0.2 * k)
        alpha_bar = float(process.alpha_bar[k])
        x0_hat = (x - (1 - alpha_bar) ** 0.5 * epsilon) / alpha_bar**0.5
        x = (
            float(process.from_x[k]) * x
            + float(process.from_x0[k]) * x0_hat
            + float(process.from_epsilon[k]) * epsilon
            + float(process.sigma[k]) * torch.randn((n, *SHAPE), generator=generator).double()
        )
    found = sample_at_once(process, 8, n)
    torch.testing.assert_close(found.x0.double(), x, rtol=1e-3, atol=1e-3)
    assert torch.equal(sample_at_once(process, 8, n).x0, found.x0)
    assert (sample_at_once(process, 9, n).x0 - found.x0).abs().max() > 0.1
    # No two trajectories of one stream are the same.
    assert (found.x0[0] - found.x0[1]).abs().max() > 0.1
