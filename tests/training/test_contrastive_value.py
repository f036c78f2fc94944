"""A value that is fitted to the reference before the first update, in a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.estimators import contrastive
from nablaflow.methods.nabla_db import NablaDB
from nablaflow.methods.residual_nabla_db import ResidualNablaDB
from nablaflow.runs import align
from nablaflow.runs.choices import as_chosen
from nablaflow.runs.setup import Parts, prepare
from nablaflow.storage.checkpoint import load_checkpoint
from nablaflow.storage.manifest import list_checkpoints
from nablaflow.training import beginning
from nablaflow.training.update import Update

MakeParts = Callable[..., Parts]
MakeConfig = Callable[..., Config]

FITTED = (
    *(
        "method.gamma=one",
        "method.step=exact",
        "method.reverse_weight=0",
        "method.value=contrastive",
        "flow=null",
    ),
    *("method.beta=4.0", "training.value_samples=96"),
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "MOST", 8)
    monkeypatch.setattr(contrastive, "CONTRASTED", 16)


@pytest.mark.usefixtures("train_only")
@pytest.mark.parametrize("at", [1, 2])
def test_a_resumed_run_has_the_fit_that_it_began_with(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
):
    straight, halves = tmp_path / "straight", tmp_path / "halves"
    align.run(make_config(f"output_dir={straight}", *FITTED))
    align.run(make_config(f"output_dir={halves}", *FITTED, f"training.updates={at}"))

    def again(*given: object) -> None:
        raise AssertionError("fitted a second time")

    monkeypatch.setattr(beginning, "fit_log_flow", again)
    align.run(make_config(f"output_dir={halves}", *FITTED), resume=True)
    ours, theirs = (load_checkpoint(list_checkpoints(run)[-1]) for run in (halves, straight))
    for group in ("policy", "log_flow"):
        for name, value in theirs.tensors[group].items():
            assert torch.equal(ours.tensors[group][name], value), (group, name)
    assert theirs.tensors["log_flow"]["gamma"].isfinite().all()


@pytest.mark.usefixtures("train_only")
def test_the_log_says_what_each_step_is_told(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
):
    align.run(make_config(*FITTED, "training.updates=1"))
    told = capsys.readouterr().err
    assert "nats of the tilt that the predicted reward tells, k = 1 ... K:" in told
    assert "the same with the log flow, on samples held out from its fit:" in told


def test_the_target_is_the_mix(make_parts: MakeParts):
    """By hand: c_k (gamma_k beta grad r(x0_hat) + delta_k grad h) moves the untrained policy."""
    trainer = make_parts(*FITTED, "training.transition_fraction=1.0").trainer
    trainer.begin()
    fit, model = trainer.networks.log_flow, trainer.model
    assert fit is not None
    fit.delta[1:] = 0.7
    fit.gamma[1:] = torch.linspace(0.9, 0.3, model.process.steps)
    for parameter in fit.network.parameters():  # so that its gradient is none of a fit's
        parameter.data = torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
        ).mul(0.2)
    batch = trainer.batches.training_batch(trainer.batches.rollouts(0)[0], 0)
    asked = trainer.method.losses(batch, trainer.networks).metrics["asked_nats"]
    t = batch.transitions
    x = t.x.clone().requires_grad_()
    with model.reference():
        x0_hat = model.predict(x, t.k, batch.condition).x0_hat
    rewards = trainer.reward(model.decode(x0_hat), batch.prompts)
    own = fit.network(x, model.process.timestep[t.k], batch.condition)
    value = fit.gamma[t.k] * 4.0 * rewards + 0.7 * own
    (gradient,) = torch.autograd.grad(value.sum(), x)
    alpha_bar = model.process.alpha_bar
    ratio = alpha_bar[t.k - 1] / alpha_bar[t.k]
    step = ratio.sqrt() * (1.0 - 1.0 / ratio)
    wanted = 0.5 * step * gradient.square().flatten(1).sum(1)
    assert torch.allclose(asked, wanted, rtol=1e-3)


@pytest.mark.usefixtures("train_only")
@pytest.mark.parametrize(
    ("own", "more"),
    [
        (FITTED, r", or use method\.value=forward-looking"),
        (("method.gamma=measured", "method.beta=4.0"), ""),
    ],
)
def test_a_time_that_the_fit_alone_takes_is_refused(
    make_config: MakeConfig, tmp_path: Path, own: tuple[str, ...], more: str
):
    """Before there is a folder: no update would be made."""
    run = tmp_path / "run"
    words = "^training.minutes: all of 1e-06 went into what the method finds .* give it more"
    with pytest.raises(UserError, match=f"{words}{more}$"):
        align.run(make_config(f"output_dir={run}", *own, "training.minutes=1e-6"))
    assert not run.exists()


def prepared(config: Config) -> Parts:
    """As a run has it that is begun now."""
    return prepare(config, config.output_dir, ends=True)


TO_A_TILT = (*FITTED, "method.value=auto", "training.value_samples=384", "evaluation.bank=32")


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ((), "contrastive"),
        (("training.calibrate=false",), "forward-looking"),
        (("training.value_samples=383",), "forward-looking"),
        (("evaluation.bank=0",), "forward-looking"),
        (("method.gamma=measured",), "forward-looking"),
        (("method.step=published",), "forward-looking"),
        (("method.value=forward-looking",), "forward-looking"),
        (("evaluation.bank=0", "method.value=contrastive"), "contrastive"),
    ],
)
def test_a_run_that_ends_at_the_tilt_has_a_fitted_value(
    make_config: MakeConfig, given: tuple[str, ...], value: str
):
    parts = prepared(make_config(*TO_A_TILT, *given))
    assert parts.config.method.model_dump()["value"] == value
    told = [line for line in parts.choices if line.startswith("method.value: ")]
    if value == "contrastive" and "method.value=contrastive" not in given:
        assert "contrastive, that is fitted to 384 samples" in told[0]
    elif "training.value_samples=383" in given:
        assert "forward-looking, since a fitted one takes 128 samples of each prompt" in told[0]
        assert "training.value_samples=384 has it" in told[0]
    else:
        assert not told


@pytest.mark.usefixtures("train_only")
def test_a_run_that_goes_on_has_the_value_that_it_began_with(
    make_config: MakeConfig, tmp_path: Path
):
    """Also one that is older than the choice, which has left it open."""
    run = tmp_path / "run"
    own = (f"output_dir={run}", *TO_A_TILT)
    align.run(make_config(*own, "training.updates=1"))
    assert as_chosen(make_config(*own)).method.model_dump()["value"] == "contrastive"
    without = make_config(*own, "training.calibrate=false")
    assert as_chosen(without).method.model_dump()["value"] == "contrastive"
    now = ResidualNablaDB(beta=1.0)
    assert now.settled_as(now).value == "forward-looking"
    assert now.settled_as(NablaDB(beta=1.0)) is now
    chosen = ResidualNablaDB(beta=1.0, value="contrastive")
    assert chosen.settled_as(now) is chosen


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("method.step=published", "method.step: method.value=contrastive needs exact"),
        ("method.gamma=measured", "method.gamma: method.value=contrastive needs one"),
        ("method.forward_looking_predictor=policy", "method.forward_looking_predictor: "),
        ("method.forward_flow=attached", "method.forward_flow: method.value=contrastive needs"),
        ("method.reverse_weight=1.0", "method.reverse_weight: method.value=contrastive needs 0"),
    ],
)
def test_what_has_the_same_place_is_refused(make_parts: MakeParts, change: str, words: str):
    with pytest.raises(UserError, match=f"^{words}"):
        make_parts(*FITTED, change)


def test_a_mistyped_value_names_those_that_there_are(make_config: MakeConfig):
    with pytest.raises(UserError, match=r"^method\.value: "):
        make_config("method.value=contrastiv")


def test_its_memory_is_planned(make_parts: MakeParts):
    parts = make_parts(*FITTED, "training.memory_budget_gb=4.0")
    assert parts.config.training.micro_batch is not None


def test_in_a_loop_of_ones_own_it_has_to_be_given(make_parts: MakeParts):
    trainer = make_parts(*FITTED).trainer
    rollout = trainer.batches.rollouts(0)[0]
    bare = Update(trainer.method, replace(trainer.networks, log_flow=None))
    with pytest.raises(UserError, match=r"^method\.value: .*fit_log_flow"):
        bare.objective(bare.batch(rollout))


def test_a_later_run_takes_the_samples_of_an_earlier_one(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whatever its reward or beta, where model, prompts, sampler and seed are the same."""
    monkeypatch.setenv("NABLAFLOW_CACHE", str(tmp_path / "cache"))
    made = prepared(make_config(*TO_A_TILT)).trainer.beginning.reference_samples(lambda done: None)
    asked = []

    def none(*given: Any, **named: Any) -> torch.Tensor:
        asked.append(named["seed"])
        raise AssertionError("sampled a second time")

    monkeypatch.setattr("nablaflow.evaluation.reference_states.sample_states", none)
    later = prepared(
        make_config(*TO_A_TILT, "reward=brightness", "method.beta=1.0")
    ).trainer.beginning
    found = later.reference_samples(lambda done: None)
    assert torch.equal(found.x0, made.x0)
    assert found.prompts == made.prompts
    images = later.networks.model.decode(found.x0).mean((1, 2, 3)).double()
    torch.testing.assert_close(found.rewards, images.detach(), atol=0.05, rtol=0.0)
    assert not torch.allclose(found.rewards, made.rewards, atol=0.01)
    with pytest.raises(AssertionError, match="a second time"):
        prepared(make_config(*TO_A_TILT, "seed=5")).trainer.beginning.reference_samples(
            lambda done: None
        )
    assert asked == [5]


def test_what_does_not_come_to_its_end_has_the_value_that_needs_none(make_parts: MakeParts):
    """Such as a measurement of a run that is older than the choice."""
    parts = make_parts(*TO_A_TILT)
    assert parts.config.method.model_dump()["value"] == "forward-looking"
    assert parts.trainer.networks.log_flow is None


def test_the_samples_are_as_many_of_each_prompt(make_config: MakeConfig):
    begun = prepared(make_config(*TO_A_TILT)).trainer.beginning
    done: list[int] = []
    found = begun.reference_samples(done.append)
    assert [len(rows) for rows in found.rows] == [128, 128, 128]
    assert sum(done) == 2 * 384  # sampled, and scored
    assert begun.log_flow_work == contrastive.work(4, 384)
