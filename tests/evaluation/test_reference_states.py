"""Samples of the reference that are kept: whose they are, and when they are only read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nablaflow import nano
from nablaflow.config.defaults import demo_settings
from nablaflow.config.overrides import load_config
from nablaflow.errors import UserError
from nablaflow.evaluation import measure, reference_states
from nablaflow.evaluation.bank import sample_states
from nablaflow.evaluation.reference_states import ReferenceStates
from nablaflow.models import SamplerSettings
from nablaflow.progress import unseen
from nablaflow.runs.setup import Parts, prepare
from nablaflow.storage.cached import read_cached

pytestmark = pytest.mark.usefixtures("cache")

PROMPTS = ["a circle", "a square", "a star"]


def sample(parts: Parts, mark: str = "mark", **changes: Any) -> Tensor:
    sampler = changes.pop("sampler", parts.config.sampler)
    told: list[int] = []
    given = {"prompts": PROMPTS, "n": 6, "seed": 0, "purpose": "guard", "batch": 4} | changes
    states = ReferenceStates(parts.model, sampler, mark).sample(**given, on_progress=told.append)
    assert sum(told) == len(states), "the progress bar ends full"
    return states


@pytest.fixture
def no_sampling(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def refuse(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("sampled again")

    return lambda: monkeypatch.setattr(reference_states, "sample_states", refuse)


def test_they_are_made_once_then_read_to_the_last_digit(
    parts: Parts, no_sampling: Callable[[], None]
):
    made = sample(parts)
    assert made.dtype == torch.float32
    no_sampling()
    assert torch.equal(sample(parts), made)


@pytest.mark.parametrize(
    "change",
    [
        {"mark": "another"},
        {"prompts": PROMPTS[::-1]},
        {"n": 7},
        {"seed": 1},
        {"purpose": "yardstick"},
        {"sampler": SamplerSettings(guidance_scale=2.0)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_others_are_not_taken_for_them(
    parts: Parts, no_sampling: Callable[[], None], change: dict[str, Any]
):
    sample(parts)
    no_sampling()
    with pytest.raises(AssertionError, match="sampled again"):
        sample(parts, **change)


def test_they_are_the_references_however_the_policy_has_moved(parts: Parts, cache: Path):
    before = sample(parts)
    for _ in range(2):
        parts.trainer.step()
    for path in cache.iterdir():
        path.unlink()
    assert torch.equal(sample(parts), before)


def test_nothing_is_kept_of_weights_without_a_fingerprint(parts: Parts, cache: Path):
    sample(parts, "")
    assert not cache.exists()


def test_a_state_that_is_not_finite_is_refused_and_not_kept(parts: Parts, cache: Path):
    with torch.no_grad():
        for part in parts.model.network.parameters():
            part.fill_(torch.nan)
    with pytest.raises(UserError, match="a state that the reference samples is not"):
        sample(parts)
    assert not cache.exists()


def shipped(path: Path, parts: Parts, prompts: list[str], purpose: str, seed: int) -> None:
    """That a file has what the reference samples, the first of it made again."""
    states = (read_cached(path) or {})["states"]
    assert len(states) >= len(prompts)
    with parts.model.reference():
        made = sample_states(
            parts.model,
            prompts,
            2,
            seed=seed,
            batch=2,
            purpose=purpose,
            on_progress=lambda done: None,
        )
    torch.testing.assert_close(states[:2], made, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("model", nano.MODELS)
def test_the_demos_guard_finds_what_is_shipped_and_it_is_the_references(model: str, cache: Path):
    config = load_config(None, [], demo_settings(model=model))
    parts = prepare(config, config.output_dir)
    guard = parts.trainer.guard
    assert guard is not None
    guard.begin(lambda done: None)
    assert not cache.exists(), "sampled, though they ship"
    shipped(nano.guard_path(model), parts, guard.prompts, "guard", guard.settings.seed)


@pytest.mark.parametrize("model", nano.MODELS)
def test_the_demos_value_is_fitted_to_what_is_shipped(
    model: str, cache: Path, no_sampling: Callable[[], None]
):
    config = load_config(None, [], demo_settings(model=model))
    parts = prepare(config, config.output_dir, ends=True)
    beginning = parts.trainer.beginning
    no_sampling()
    samples = beginning.reference_samples(lambda done: None)
    assert len(samples.x0) == config.training.value_samples
    assert not cache.exists()
    prompts = [samples.prompts[0]] * 2
    shipped(nano.value_path(model), parts, prompts, "value", config.seed)


@pytest.mark.parametrize("model", nano.MODELS)
def test_the_demos_figures_are_of_what_is_shipped(
    model: str, cache: Path, no_sampling: Callable[[], None], monkeypatch: pytest.MonkeyPatch
):
    config = load_config(None, [], demo_settings(model=model))
    parts = prepare(config, config.output_dir)
    settings, seen = config.evaluation, []
    monkeypatch.setattr(measure, "measure_states", lambda *given, **_: seen.append(given[2]))
    no_sampling()
    measure.measure_reference(parts.subject, None, unseen, "reference")
    assert [len(states) for states in seen] == [settings.n]
    assert not cache.exists()
    shipped(nano.evaluation_path(model), parts, parts.evaluated, "evaluation", settings.seed)
