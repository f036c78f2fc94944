"""benchmarks/as_published.py: what is timed are two ways to one loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nablaflow.config.parse import parse_config
from nablaflow.runs.setup import Parts, prepare
from tests.support.benchmarks import benchmark
from tests.support.pipelines import perturb

BOTH = benchmark("as_published")
TRAJECTORIES = 3


@pytest.fixture
def parts(settings: dict[str, Any]) -> Parts:
    """Of a policy and a flow network that are no longer what they began as."""
    sampler = {**settings["sampler"], "guidance_scale": BOTH.GUIDANCE}
    training = {**settings["training"], "data": "previous-rollout", "transition_fraction": 0.5}
    own = {"method": BOTH.PUBLISHED, "sampler": sampler, "training": training}
    config = parse_config({**settings, **own, "flow": {"channels": [8, 8]}})
    parts = prepare(config, config.output_dir)
    perturb(parts.model.network, scale=0.1)
    flow = parts.trainer.flow
    assert flow is not None
    perturb(flow, scale=0.05)
    return parts


def test_the_authors_loop_and_ours_have_one_loss_and_one_gradient(parts: Parts):
    batch = BOTH.rolled_out(parts, TRAJECTORIES)()
    perturb(parts.model.network, scale=0.1, seed=6)  # the rollout is of an earlier policy
    found = {
        name: BOTH.gradients_of(parts, work)[:2] for name, work in BOTH.both(parts, batch).items()
    }
    (theirs, their_gradients), (ours, our_gradients) = found["theirs"], found["ours"]
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert len(our_gradients) == len(their_gradients)
    first, second = (
        torch.cat([g.flatten() for g in g_s]) for g_s in (our_gradients, their_gradients)
    )
    assert float((first - second).norm()) <= 1e-3 * float(second.norm())
    assert float(second.norm()) > 0


def test_each_column_has_a_transition_of_every_trajectory(parts: Parts):
    batch = BOTH.rolled_out(parts, TRAJECTORIES)()
    columns = BOTH.columns_of(batch)
    assert sorted(torch.cat(columns).tolist()) == list(range(len(batch)))
    for rows in columns:
        assert batch.transitions.trajectory[rows].tolist() == list(range(TRAJECTORIES))
