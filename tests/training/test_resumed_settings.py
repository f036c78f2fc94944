"""Settings of a run that is resumed: what may change, and what it chose itself stands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nablaflow.config.overrides import load_config
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.runs import align, evaluate
from nablaflow.runs.saved_config import load_run_config
from nablaflow.runs.setup import Parts
from nablaflow.storage.checkpoint import load_checkpoint, save_checkpoint
from nablaflow.storage.manifest import list_checkpoints, read_manifest
from nablaflow.storage.records import read_records
from nablaflow.training import beginning

pytestmark = pytest.mark.usefixtures("train_only")

MakeConfig = Callable[..., Config]


def test_a_changed_setting_is_refused_and_nothing_changes(make_config: MakeConfig, tmp_path: Path):
    run = tmp_path / "run"
    align.run(make_config("training.updates=1"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"^method\.beta: .*--overwrite"):
        align.run(make_config("method.beta=7.0"), resume=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_decoders_precision_is_kept(make_config: MakeConfig):
    half = "training.decoder_precision=bf16"
    align.run(make_config("training.updates=1", half))
    with pytest.raises(UserError, match=r"^training\.decoder_precision: .*--overwrite"):
        align.run(make_config("training.updates=2"), resume=True)
    run = align.run(make_config("training.updates=2", half), resume=True)
    assert run.config.training.decoder_precision == "bf16"


def test_settings_that_leave_the_figures_alone_may_change(make_config: MakeConfig, tmp_path: Path):
    align.run(make_config("training.updates=1"))
    changed = ("training.updates=2", "training.micro_batch=3", "training.checkpoint_every=1")
    align.run(make_config(*changed, "evaluation.batch=2"), resume=True)
    assert len(read_records(tmp_path / "run")) == 2


def test_a_run_of_before_a_setting_came_goes_on(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    config = make_config("training.updates=1")
    align.run(config)
    copy = yaml.safe_load(read_manifest(list_checkpoints(config.output_dir)[-1])["config"])
    del copy["training"]["decoder"], copy["optimizer"]["name"], copy["sampler"]["clip_skip"]
    older = {"config": yaml.safe_dump(copy)}
    monkeypatch.setattr("nablaflow.runs.saved_config.read_manifest", lambda path: older)
    capsys.readouterr()
    load_run_config(config.output_dir)
    assert capsys.readouterr().err == ""
    align.run(make_config("training.updates=2"), resume=True)
    assert load_checkpoint(list_checkpoints(config.output_dir)[-1]).update == 2
    with pytest.raises(UserError, match=r"optimizer\.name: the run to resume has another value"):
        align.run(make_config("optimizer.name=adamw8bit"), resume=True)


def test_a_batch_split_given_anew_comes_before_the_saved_one(make_parts: Callable[..., Parts]):
    saved = make_parts("training.micro_batch=8").trainer.checkpoint()
    trainer = make_parts("training.micro_batch=2").trainer
    parts: list[int] = []
    trainer.stepper.objective.register_forward_pre_hook(
        lambda _, given: parts.append(len(given[0]))
    )
    trainer.restore(saved)
    trainer.step()
    assert set(parts) == {2}


def test_a_run_with_a_pending_rollout_is_measured_by_any_number_of_processes(
    make_config: MakeConfig, tmp_path: Path
):
    align.run(make_config("training.data=previous-rollout", "training.updates=1"))
    expected = evaluate.evaluate_run(tmp_path / "run", None)["policy"]["reward_mean"]
    (folder,) = list_checkpoints(tmp_path / "run")
    checkpoint = load_checkpoint(folder)
    pending = checkpoint.state["pending"]
    checkpoint.state["pending"] = [*pending, *pending]  # as two processes leave it
    save_checkpoint(tmp_path / "run", checkpoint, keep=1)
    found = evaluate.evaluate_run(tmp_path / "run", None)["policy"]["reward_mean"]
    assert found == expected


def test_what_a_run_chose_is_saved_and_stands_when_it_is_resumed(make_config: MakeConfig):
    auto = ("flow.channels=auto", "adapter.targets=auto")
    config = make_config("training.updates=1", *auto)
    assert config.adapter.targets == "auto"
    align.run(config)
    saved = load_config(config.output_dir / "config.yaml", [], {})
    assert saved.adapter.targets[:5] == ["to_q", "to_k", "to_v", "to_out.0", "conv1"]
    assert saved.flow is not None
    assert saved.flow.channels == [8]
    for again in (make_config("training.updates=2", *auto), saved):
        align.run(again, resume=True)
    with pytest.raises(UserError, match=r"adapter\.targets: the run to resume has another value"):
        align.run(make_config("adapter.targets=[to_q]", "flow.channels=[8]"), resume=True)


def test_a_measured_gamma_is_kept(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    measured = "method.gamma=measured"
    config = make_config(measured, "training.updates=1")
    align.run(config)
    before = load_checkpoint(list_checkpoints(config.output_dir)[-1]).tensors["gamma"]["gamma"]
    assert before[0] == 1.0
    assert before.isfinite().all()

    def nobody(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("gamma is in the checkpoint")

    monkeypatch.setattr(beginning, "measure_gamma", nobody)
    align.run(make_config(measured, "training.updates=2"), resume=True)
    assert torch.equal(
        load_checkpoint(list_checkpoints(config.output_dir)[-1]).tensors["gamma"]["gamma"], before
    )
