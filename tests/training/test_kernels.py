"""Analytic kernels: found once from the reference, and kept wherever the run is gone on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.runs import align, evaluate, policy, setup
from nablaflow.runs.setup import Parts
from nablaflow.storage import checksums
from nablaflow.storage.checkpoint import list_checkpoints
from nablaflow.training import kernels

pytestmark = pytest.mark.usefixtures("lean_runs")

ANALYTIC = "sampler.variance=analytic"
MakeParts = Callable[..., Parts]
MakeConfig = Callable[..., Config]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SAMPLES", 8)


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
    kernels.find_kernels(parts.model, parts.prompts, 6)
    assert torch.equal(sigma(parts), found)


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
    with pytest.raises(UserError, match=r"step-000001 cannot be used \(kernels\.safetensors: "):
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
