"""`on_update`: what it is told, how it stops a run, and what becomes of a run when it fails."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.tracking import TensorBoardTracker

from nablaflow.errors import UserError
from nablaflow.runs import align
from nablaflow.runs.callback import Callback
from nablaflow.storage.manifest import list_checkpoints
from nablaflow.storage.records import read_records
from tests.support.tiny_run import MakeConfig

pytestmark = pytest.mark.usefixtures("train_only")

METHOD = "method={name: residual-nabla-db, beta: 10.0, reverse_weight: 0.0, gamma: one}"
PLAIN = (METHOD, "flow=null", "adapter.ema_decay=null")


def test_true_ends_training_and_the_run_is_finished_as_usual(make_config: MakeConfig):
    config, told = make_config(*PLAIN), []

    def stop_after_two(record: dict[str, Any]) -> bool:
        told.append(record)
        return record["update"] == 2

    run = align.run(config, on_update=stop_after_two)
    assert run.folder == config.output_dir  # `finish` was reached
    assert told == read_records(config.output_dir)
    assert [record["update"] for record in told] == [1, 2]
    assert [path.name for path in list_checkpoints(config.output_dir)] == ["step-000002"]


def test_a_callback_that_raises_is_one_line_and_leaves_a_run_to_resume(make_config: MakeConfig):
    config = make_config(*PLAIN)

    def watch(record: dict[str, Any]) -> None:
        if record["update"] == 2:
            raise KeyError("no such figure")

    with pytest.raises(UserError) as caught:
        align.run(config, on_update=watch)
    assert str(caught.value).startswith("on_update: watch failed after update 2 (KeyError: ")
    assert "resume=True" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.__cause__.__traceback__ is not None
    align.run(config, resume=True)
    assert [record["update"] for record in read_records(config.output_dir)] == [1, 2, 3, 4]


def test_one_that_ends_the_program_leaves_a_run_to_resume_too(make_config: MakeConfig):
    config = make_config(*PLAIN, "training.checkpoint_every=50")
    with pytest.raises(UserError, match=r"after update 1 \(SystemExit: 3\); all of it is sa"):
        align.run(config, on_update=lambda record: sys.exit(3))
    assert [path.name for path in list_checkpoints(config.output_dir)] == ["step-000001"]


def test_trackers_are_closed_after_an_error_too(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
):
    """Else the next run of the program would be written where this one was."""
    closed: list[Any] = []
    finish = TensorBoardTracker.finish
    monkeypatch.setattr(
        TensorBoardTracker, "finish", lambda self: closed.append(self.name) or finish(self)
    )

    def fail(record: dict[str, Any]) -> None:
        raise KeyError

    with pytest.raises(UserError, match="on_update: fail failed"):
        align.run(make_config(*PLAIN, "training.trackers=[tensorboard]"), on_update=fail)
    assert closed == ["tensorboard"]


@pytest.mark.parametrize("answer", [None, False, np.False_])
def test_anything_false_goes_on(answer: Any):
    assert Callback(lambda record: answer)({}) is False


@pytest.mark.parametrize("answer", [True, np.True_])
def test_true_stops(answer: Any):
    callback = Callback(lambda record: answer)
    assert callback({}) is True
    callback.settle(1, Path("run"))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda record: 0.7, "returned 0.7; return True to stop"),
        (lambda record: record["nothing"], "KeyError: 'nothing'"),
    ],
)
def test_what_is_no_answer_is_not_taken_for_one(function: Callable[..., Any], words: str):
    callback = Callback(function)
    assert callback({}) is True
    with pytest.raises(UserError, match=f"^on_update: .*{words}"):
        callback.settle(1, Path("run"))


def test_what_cannot_be_called_is_refused():
    with pytest.raises(UserError, match="on_update: must be a function of the record, not 3"):
        Callback(3)


def test_the_record_is_the_callbacks_own():
    record = {"update": 1}
    Callback(lambda given: given.clear())(record)
    assert record == {"update": 1}
