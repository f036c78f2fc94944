"""A schedule that ends at no signal at all, with v prediction: every method, every sampler."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from nablaflow.diffusion import has_posterior_means, kernel_mean, mean_per_x0
from nablaflow.methods import METHODS
from nablaflow.models.adapters import trainable_state
from nablaflow.runs.setup import Parts
from tests.support.pipelines import stable_diffusion

MakeParts = Callable[..., Parts]
NAMES = sorted(set(METHODS) - {"value-matching"})
ESTIMATORS = [
    "n-step",
    "denoising-adjoint, adjoint_above: 0.5",
    "forward-looking",
    "forward-looking-flow",
]
KINDS = [f"{{name: {name}, beta: 5.0}}" for name in NAMES] + [
    f"{{name: value-matching, beta: 5.0, estimator: {{name: {name}}}}}" for name in ESTIMATORS
]


@pytest.fixture(scope="session")
def zero_snr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pipeline = stable_diffusion("v_prediction")
    changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **changes)
    folder = tmp_path_factory.mktemp("zero") / "model"
    pipeline.save_pretrained(folder)
    return folder


def one_update(make_parts: MakeParts, folder: Path, *overrides: str) -> tuple[Parts, Any]:
    parts = make_parts(f"model={folder}", "training.transition_fraction=1.0", *overrides)
    return parts, parts.trainer.step()


@pytest.mark.parametrize("method", KINDS)
def test_a_method_makes_an_update(make_parts: MakeParts, zero_snr: Path, method: str) -> None:
    sampler = "euler" if "vgg-flow" in method else "ddim"
    chosen = (f"method={method}", f"sampler.name={sampler}")
    parts, record = one_update(make_parts, zero_snr, *chosen)
    assert parts.model.process.alpha_bar[-1] == 0
    assert all(math.isfinite(value) for value in record.values()), record
    assert all(value.isfinite().all() for value in trainable_state(parts.model.network).values())
    assert record["policy_gradient_norm"] > 0


def test_updates_that_share_a_rollout_begin_a_trajectory_where_no_image_is_left(
    make_parts: MakeParts, zero_snr: Path
) -> None:
    """There the exact step takes the value gradient of x_{K-1}, which is the policy's to make."""
    own = ("method=residual-nabla-db", "method.beta=5.0", "method.gamma=one")
    method = (*own, "method.step=exact", "method.reverse_weight=0", "flow=null")
    parts, _ = one_update(make_parts, zero_snr, *method, "training.images_per_prompt=16")
    trainer, model = parts.trainer, parts.model
    assert parts.config.updates_per_rollout > 1
    rollout, _ = trainer.batches.rollouts(1)
    t = rollout.transitions
    first = t.k == model.process.steps
    assert t.x_next[~first].isnan().all()
    assert t.trajectory[first].tolist() == list(range(len(rollout)))
    with torch.no_grad():
        condition = model.condition(rollout.prompts)
        prediction = model.predict(t.x[first], t.k[first], condition)
    mean = kernel_mean(model.process, t.x[first], prediction, t.k[first])
    unit = ((t.x_next[first] - mean) / model.process.sigma[-1]).flatten()
    assert abs(unit.mean()) < 4 / len(unit) ** 0.5
    assert abs(unit.var() - 1) < 4 * (2 / len(unit)) ** 0.5
    assert abs(torch.corrcoef(torch.stack([unit, t.x[first].flatten()]))[0, 1]) < 0.05
    record = trainer.step()
    assert all(math.isfinite(value) for value in record.values()), record
    assert record["policy_gradient_norm"] > 0


@pytest.mark.parametrize("sampler", ["ddpm", "sde-dpmsolver++"])
@pytest.mark.parametrize("method", ["ddpo", "path-weighted-matching", "adjoint-matching"])
def test_so_it_does_with_another_sampler(
    make_parts: MakeParts, zero_snr: Path, sampler: str, method: str
) -> None:
    method = f"method={{name: {method}, beta: 5.0}}"
    _, record = one_update(make_parts, zero_snr, method, f"sampler.name={sampler}")
    assert all(math.isfinite(value) for value in record.values()), record


def test_the_policy_that_sampled_is_at_a_distance_of_nothing(
    make_parts: MakeParts, zero_snr: Path
) -> None:
    """Importance ratios are 1 on-policy, at no signal too."""
    _, record = one_update(make_parts, zero_snr, "method={name: ddpo, beta: 5.0}")
    assert record["approximate_kl"] < 1e-10
    assert record["clip_fraction"] == 0


def test_from_no_signal_the_kernel_moves_with_x0_hat_as_the_posterior_does(
    make_parts: MakeParts, zero_snr: Path
) -> None:
    """q(x_{k-1} | x_k, x_0) at alpha_bar_k = 0 is q(x_{k-1} | x_0): its mean has slope sqrt."""
    process = make_parts(f"model={zero_snr}").model.process
    assert has_posterior_means(process)
    slope = process.alpha_bar[-2].double().sqrt()
    torch.testing.assert_close(mean_per_x0(process)[-1], slope, rtol=1e-6, atol=0)
