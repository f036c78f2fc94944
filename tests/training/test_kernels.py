"""Analytic kernels: found once from the reference, and kept wherever the run is gone on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nablaflow import nano
from nablaflow.config.defaults import demo_settings
from nablaflow.config.overrides import load_config
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.models import SamplerSettings
from nablaflow.runs import align, evaluate, policy, setup
from nablaflow.runs.setup import Parts
from nablaflow.storage import checksums
from nablaflow.storage.manifest import list_checkpoints
from nablaflow.training import kernels

pytestmark = pytest.mark.usefixtures("lean_runs")

ANALYTIC = "sampler.variance=analytic"
MakeParts = Callable[..., Parts]
MakeConfig = Callable[..., Config]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SAMPLES", 8)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("NABLAFLOW_CACHE", str(folder))
    return folder


@pytest.fixture
def no_sampling(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def refuse(*_: Any, **__: Any) -> torch.Tensor:
        raise AssertionError("sampled again")

    return lambda: monkeypatch.setattr(kernels, "sample_states", refuse)


def sigma(parts: Parts) -> torch.Tensor:
    return parts.model.process.sigma


def stored(run: Path) -> torch.Tensor:
    return load_file(list_checkpoints(run)[-1] / "kernels.safetensors")["left_open"]


@pytest.fixture
def finished(make_config: MakeConfig, train_only: None) -> Config:
    """A run of one update."""
    config = make_config(ANALYTIC, "training.updates=1")
    align.run(config)
    return config


def test_they_are_wider_and_the_same_each_time(make_parts: MakeParts) -> None:
    own = sigma(make_parts())
    found = sigma(make_parts(ANALYTIC))
    assert (found[1:] > own[1:]).all()
    assert torch.equal(sigma(make_parts(ANALYTIC)), found)
    other = make_parts(ANALYTIC, "seed=3", "method.beta=1.0")
    assert torch.equal(sigma(other), found)
    split = make_parts(ANALYTIC, "evaluation.batch=3")
    torch.testing.assert_close(sigma(split), found)


def test_they_are_of_the_reference(make_parts: MakeParts) -> None:
    parts = make_parts(ANALYTIC)
    found = sigma(parts)
    with torch.no_grad():
        for parameter in parts.model.network.parameters():
            if parameter.requires_grad:
                parameter += 0.5
    kernels.find_kernels(parts.model, parts.prompts, parts.config.sampler, 6)
    assert torch.equal(sigma(parts), found)


def kept_by(parts: Parts, mark: str = "mark", **changes: Any) -> torch.Tensor:
    """What a model is given whose reference has the fingerprint ``mark``."""
    given = {"prompts": parts.prompts, "sampler": parts.config.sampler, "batch": 6} | changes
    kernels.find_kernels(parts.model, fingerprint=mark, **given)
    assert parts.model.left_open is not None
    return parts.model.left_open


def test_they_are_found_once_then_read_to_the_last_digit(
    make_parts: MakeParts, no_sampling: Callable[[], None]
) -> None:
    found = kept_by(make_parts())
    no_sampling()
    told: list[str] = []

    def start(name: str, work: int) -> Callable[[int], None]:
        told.append(name)
        return lambda more: None

    again = kept_by(make_parts("seed=3", "method.beta=1.0"), start=start)
    assert torch.equal(again, found)
    assert not told, "no bar is shown where there is nothing to do"


@pytest.mark.parametrize(
    "change",
    [{"mark": "another"}, {"prompts": ["a star"]}, {"sampler": SamplerSettings(guidance_scale=2)}],
    ids=lambda change: next(iter(change)),
)
def test_those_of_another_reference_are_not_taken(
    make_parts: MakeParts, no_sampling: Callable[[], None], change: dict[str, Any]
) -> None:
    kept_by(make_parts())
    no_sampling()
    with pytest.raises(AssertionError, match="sampled again"):
        kept_by(make_parts(), **change)


def test_those_of_other_steps_are_not_taken(
    make_parts: MakeParts, no_sampling: Callable[[], None]
) -> None:
    kept_by(make_parts())
    no_sampling()
    with pytest.raises(AssertionError, match="sampled again"):
        kept_by(make_parts("sampler.steps=5"))


def test_none_are_kept_of_weights_without_a_fingerprint(make_parts: MakeParts, cache: Path) -> None:
    kept_by(make_parts(), "")
    assert not cache.exists()


@pytest.mark.parametrize("model", nano.MODELS)
def test_the_demo_finds_those_that_are_shipped_and_they_are_the_references(
    model: str, cache: Path
) -> None:
    config = load_config(None, [ANALYTIC], demo_settings(model=model))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "SAMPLES", 64)
        patch.setattr(kernels, "estimate", lambda *_: pytest.fail("estimated, though they ship"))
        parts = setup.prepare(config, config.output_dir)
    assert not cache.exists()
    found = parts.model.left_open
    assert found is not None
    parts.model.widen_kernels(torch.zeros_like(found))  # its own kernels, by which it is sampled
    few = kernels.estimate(parts.model, parts.prompts, 8)  # eight images, for 64
    torch.testing.assert_close(few[2:], found[2:], rtol=0.4, atol=0.0)


def test_no_checkpoint_has_any_where_the_kernels_are_the_samplers_own(
    make_config: MakeConfig, train_only: None
) -> None:
    config = make_config("training.updates=1")
    align.run(config)
    assert not (list_checkpoints(config.output_dir)[-1] / "kernels.safetensors").exists()


def test_all_that_reads_a_run_takes_its_kernels(
    finished: Config, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the checkpoint: nobody finds them anew."""
    kept = stored(finished.output_dir)
    seen: list[Any] = []

    def nobody(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("the kernels are in the checkpoint")

    monkeypatch.setattr(setup, "find_kernels", nobody)

    def spy(*arguments: Any, **settings: Any) -> Parts:
        seen.append(setup.prepare(*arguments, **settings))
        return seen[-1]

    monkeypatch.setattr(align, "prepare", spy)
    monkeypatch.setattr(evaluate, "prepare", spy)
    align.run(make_config(ANALYTIC, "training.updates=2"), resume=True)
    evaluate.evaluate_run(finished.output_dir, 6, metrics=["reward"], only_last=True)
    model, *_ = policy.load_policy(finished.output_dir)
    for found in (seen[0].model, seen[1].model, model):
        assert torch.equal(found.left_open, kept)
    assert torch.equal(stored(finished.output_dir), kept)


def test_a_checkpoint_without_them_is_named(finished: Config) -> None:
    path = list_checkpoints(finished.output_dir)[-1] / "kernels.safetensors"
    path.unlink()
    told = r"step-000001 cannot be used \(it has no kernels\.safetensors\)"
    with pytest.raises(UserError, match=told):
        policy.load_policy(finished.output_dir)


def test_damaged_ones_are_named_and_the_checkpoint_before_is_used(
    finished: Config, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = stored(finished.output_dir)
    align.run(make_config(ANALYTIC, "training.updates=2"), resume=True)
    path = list_checkpoints(finished.output_dir)[-1] / "kernels.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    capsys.readouterr()
    model, *_ = policy.load_policy(finished.output_dir)
    assert "kernels.safetensors is not what was written" in (told := capsys.readouterr().err)
    assert "step-000001 is used" in told
    assert torch.equal(model.left_open, kept)
    align.run(make_config(ANALYTIC, "training.updates=2"), resume=True)
    assert torch.equal(stored(finished.output_dir), kept)


def test_those_of_another_number_of_steps_are_refused(finished: Config) -> None:
    path = list_checkpoints(finished.output_dir)[-1] / "kernels.safetensors"
    save_file({"left_open": torch.zeros(9)}, path)
    manifest = checksums.unseal((path.parent / "progress.json").read_text())
    manifest["files"][path.name] = checksums.of_file(path)
    (path.parent / "progress.json").write_text(checksums.sealed(manifest))
    with pytest.raises(UserError, match=r"is of 8 steps, sampler\.steps of 4; use the run's own"):
        policy.load_policy(finished.output_dir)
