"""The reference bank: whose samples it holds, when it is made, and when it is only read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nablaflow import nano
from nablaflow.config.defaults import BETAS, demo_settings
from nablaflow.config.overrides import load_config
from nablaflow.diffusion import build_process
from nablaflow.evaluation import bank, kept
from nablaflow.evaluation.bank import reference_bank, sample_states, states_key
from nablaflow.models import (
    SamplerSettings,
    fingerprint,
    load_model,
    load_pipeline,
    model_source,
)
from nablaflow.runs.setup import Parts
from nablaflow.storage.cached import cache_folder, key_of, write_cached
from tests.support.schedules import STABLE_DIFFUSION

pytestmark = pytest.mark.usefixtures("cache")

PROMPTS = ["a circle", "a square", "a star"]
TRAILING = {**STABLE_DIFFUSION, "timestep_spacing": "trailing"}
BASE: dict[str, Any] = {
    "fingerprint": "abc",
    "prompts": PROMPTS,
    "sampler": SamplerSettings(),
    "process": build_process(STABLE_DIFFUSION, "ddim", 20, 1.0, 0.01),
    "n": 60,
    "seed": 0,
}
CHANGES: list[dict[str, Any]] = [
    {"fingerprint": "abd"},
    {"prompts": PROMPTS[:2]},
    {"prompts": PROMPTS[::-1]},
    {"n": 61},
    {"seed": 1},
    {"sampler": SamplerSettings(name="ddpm")},
    {"sampler": SamplerSettings(steps=21)},
    {"sampler": SamplerSettings(eta=0.9)},
    {"sampler": SamplerSettings(guidance_scale=2.0)},
    {"sampler": SamplerSettings(negative_prompt="a star")},
    {"sampler": SamplerSettings(sigma_floor=0.02)},
    {"process": build_process(TRAILING, "ddim", 20, 1.0, 0.01)},
    {"process": build_process(STABLE_DIFFUSION, "ddim", 20, 1.0, 0.01, torch.full((21,), 0.1))},
]


def sample(parts: Parts, n: int, batch: int, purpose: str = "bank", seed: int = 0) -> Tensor:
    return sample_states(
        parts.model,
        PROMPTS,
        n,
        seed=seed,
        batch=batch,
        purpose=purpose,
        on_progress=lambda done: None,
    )


def make_bank(parts: Parts, n: int, told: list[int] | None = None) -> Tensor:
    sampler = parts.config.sampler
    told = [] if told is None else told
    return reference_bank(
        parts.model, "mark", PROMPTS, sampler, n, batch=4, on_progress=told.append
    )


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_the_key_depends_on_all_that_the_samples_depend_on(change: dict[str, Any]):
    assert states_key(**{**BASE, **change}) != states_key(**BASE)


def test_the_key_is_the_same_tomorrow():
    # A bank that ships with the package is found by its key.
    assert states_key(**BASE) == states_key(**{**BASE, "sampler": SamplerSettings(), "seed": 0})
    assert len({states_key(**{**BASE, **change}) for change in CHANGES}) == len(CHANGES)


def test_the_fingerprint_follows_every_weight(parts: Parts):
    pipeline = parts.model.pipeline
    before = fingerprint(pipeline)
    assert fingerprint(pipeline) == before
    for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        weight = list(network.parameters())[-1]
        with torch.no_grad():
            weight.view(-1)[-1] += 1.0
        assert fingerprint(pipeline) != before
        with torch.no_grad():
            weight.view(-1)[-1] -= 1.0


def test_samples_do_not_depend_on_the_batch(parts: Parts):
    whole = sample(parts, 7, batch=7)
    for batch in (1, 3):
        torch.testing.assert_close(sample(parts, 7, batch=batch), whole, rtol=1e-4, atol=1e-4)


def test_more_samples_begin_with_the_fewer(parts: Parts):
    torch.testing.assert_close(sample(parts, 8, 8)[:4], sample(parts, 4, 8), rtol=1e-4, atol=1e-4)


def test_each_purpose_and_seed_has_its_own_noise(parts: Parts):
    sets = [sample(parts, 3, 3), sample(parts, 3, 3, "evaluation"), sample(parts, 3, 3, seed=1)]
    rows = torch.cat(sets).flatten(1)
    distance = torch.cdist(rows, rows) + torch.eye(len(rows)) * 1e3
    assert distance.min() > 1.0, "no two samples share their noise"


def test_prompts_take_turns(parts: Parts, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    condition = parts.model.condition

    def spy(prompts: list[str]) -> Any:
        asked.extend(prompts)
        return condition(prompts)

    monkeypatch.setattr(parts.model, "condition", spy)
    sample(parts, 7, batch=2)
    assert Counter(asked) == {"a circle": 3, "a square": 2, "a star": 2}
    assert asked == [PROMPTS[i % 3] for i in range(7)]


def test_the_bank_is_the_references_however_the_policy_has_moved(parts: Parts):
    before = make_bank(parts, 6)
    policy = sample(parts, 6, batch=4)
    for _ in range(2):
        parts.trainer.step()
    moved = sample(parts, 6, batch=4)
    assert not torch.allclose(moved, policy, atol=1e-3)
    for path in cache_folder().iterdir():
        path.unlink()
    assert torch.equal(make_bank(parts, 6), before)


def test_a_bank_is_made_once_then_read(parts: Parts, monkeypatch: pytest.MonkeyPatch, cache: Path):
    told: list[int] = []
    made = make_bank(parts, 6, told)
    assert made.dtype == torch.float16
    assert sum(told) == 6
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]

    def refuse(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("sampled again")

    monkeypatch.setattr(bank, "sample_states", refuse)
    told.clear()
    assert torch.equal(make_bank(parts, 6, told), made)
    assert sum(told) == 6, "the progress bar ends full"
    with pytest.raises(AssertionError, match="sampled again"):
        make_bank(parts, 7)


def test_the_first_of_a_bank_are_taken_from_the_whole_where_it_is_there(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
):
    whole = make_bank(parts, 8)
    monkeypatch.setattr(bank, "sample_states", None)  # whoever samples fails
    sampler = parts.config.sampler
    told: list[int] = []
    found = reference_bank(
        parts.model, "mark", PROMPTS, sampler, 4, batch=4, on_progress=told.append, whole=8
    )
    assert torch.equal(found, whole[:4])
    assert sum(told) == 4


def test_a_bank_that_grows_samples_only_what_is_new(parts: Parts, cache: Path):
    sampler, told = parts.config.sampler, list[int]()
    known = torch.full((6, *parts.model.state_shape), 7.0).half()
    found = reference_bank(
        parts.model,
        "mark",
        PROMPTS,
        sampler,
        9,
        batch=3,
        on_progress=told.append,
        whole=12,
        known=known,
    )
    assert torch.equal(found[:6], known)
    for path in cache.iterdir():
        path.unlink()
    torch.testing.assert_close(found[6:], make_bank(parts, 9)[6:], rtol=1e-3, atol=1e-3)
    assert sum(told) == 9


def test_the_shipped_bank_is_taken_only_under_its_own_key(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
):
    shipped = tmp_path / "shipped.safetensors"
    monkeypatch.setattr(kept.nano, "bank_path", lambda _model: shipped)
    states = torch.ones(6, *parts.model.state_shape).half()
    key = states_key("mark", PROMPTS, parts.config.sampler, parts.model.process, 6, 0)
    write_cached(shipped, {"states": states}, key)
    assert torch.equal(make_bank(parts, 6), states)
    assert not cache.exists()
    write_cached(shipped, {"states": states}, "another")
    assert not torch.equal(make_bank(parts, 6), states)


@pytest.mark.parametrize("reward", BETAS)
def test_the_demo_finds_the_bank_that_is_shipped(reward: str):
    config = load_config(None, [], demo_settings(reward))
    pipeline = load_pipeline(model_source(config.model))
    mark = fingerprint(pipeline)
    model = load_model(pipeline, config.sampler, config.adapter, torch.device("cpu"))
    assert isinstance(config.prompts, list)
    told = (config.prompts, config.sampler, model.process, config.evaluation.bank, 0)
    assert states_key(mark, *told) == key_of(nano.bank_path())


def test_a_full_disk_costs_the_cache_and_not_the_run(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, cache: Path
):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "write_cached", full)
    assert len(make_bank(parts, 6)) == 6
    assert not cache.exists()
