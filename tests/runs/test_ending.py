"""Where one process of a launch cannot go on, all of them end, each by one line that says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from accelerate import Accelerator
from torch.distributed import DistNetworkError, HashStore

from nablaflow.config.overrides import dump_config
from nablaflow.config.recipe import Config
from nablaflow.errors import ExportError, TrainingStopped, UserError
from nablaflow.runs import meeting
from nablaflow.runs.ending import ending_together
from nablaflow.runs.stopping import Interrupted
from nablaflow.training import processes
from nablaflow.training.processes import by_main
from tests.training.test_processes import launch

MakeConfig = Callable[..., Config]
GLOO = RuntimeError("[/pytorch/third_party/gloo/gloo/pair.cc:1] Connection closed by peer")


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> HashStore:
    """A place where the processes have met that outlives them all."""
    store = HashStore()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(meeting, "_met", [store])
    return store


ENDS = [
    (UserError("model: none"), UserError, "process 1 of this launch ended: model: none"),
    (TrainingStopped("NaN"), TrainingStopped, "process 1 of this launch ended: NaN"),
    (ExportError("another"), ExportError, "process 1 of this launch ended: another"),
    (Interrupted("stopped after 2"), Interrupted, "process 1 of this launch ended: stopped after"),
    (KeyboardInterrupt(), Interrupted, "process 1 of this launch ended: stopped"),
    (KeyError("a\nb"), TrainingStopped, r"process 1 of this launch ended by a fault \(KeyError: "),
    (SystemExit(0), TrainingStopped, "ended by a fault"),
]


@pytest.mark.parametrize(("raised", "kind", "line"), ENDS, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("lost", [GLOO, DistNetworkError("no answer")], ids=["gloo", "torch"])
def test_a_process_ends_by_what_ended_another(
    met: HashStore,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    kind: type[BaseException],
    line: str,
    lost: Exception,
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(type(raised)) as found, ending_together():
        raise raised
    assert found.value is raised
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(kind, match=line) as told, ending_together():
        raise lost
    assert "\n" not in str(told.value)


def test_the_first_to_end_says_why(met: HashStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (2, 1):
        monkeypatch.setenv("RANK", str(rank))
        with pytest.raises(UserError, match=f"^of {rank}$"), ending_together():
            raise UserError(f"of {rank}")
    with pytest.raises(UserError, match="process 2 of this launch ended: of 2"), ending_together():
        raise GLOO


def test_one_that_was_killed_says_nothing(met: HashStore) -> None:
    with pytest.raises(TrainingStopped, match="has ended, or was killed"), ending_together():
        raise GLOO


def test_alone_an_error_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_met", [])
    with pytest.raises(ValueError, match="gloomy"), ending_together():
        raise ValueError("gloomy")


def test_what_fails_on_the_main_process_alone_fails_on_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[Any] = []

    def exchange(value: Any) -> Any:
        sent.append(value)
        return sent[0]

    monkeypatch.setattr(processes, "from_main", exchange)

    def work() -> int:
        raise UserError("the disk is full")

    for main in (True, False):
        accelerator = Mock(spec=Accelerator, num_processes=2, is_main_process=main)
        with pytest.raises(UserError, match="the disk is full"):
            by_main(accelerator, work)
    sent.clear()
    for main in (True, False):
        accelerator = Mock(spec=Accelerator, num_processes=2, is_main_process=main)
        assert by_main(accelerator, lambda: 7) == 7
    assert sent[1] == (None, None)  # the others do nothing


REWARD = """
import os, signal

calls = 0

def flat(images, prompts):  # but for what it is tried on at first
    global calls
    calls += 1
    return images.mean((1, 2, 3)) * (calls < 5)

def stopped(images, prompts):
    global calls
    calls += 1
    begun = os.path.exists(os.environ["STOP_IN"])
    if os.environ.get("RANK") == "1" and begun and images.requires_grad and calls > 0:
        calls = -1000  # a second signal would stop it at once
        os.kill(os.getpid(), signal.SIGTERM)
    return images.mean((1, 2, 3))
"""


@pytest.mark.parametrize(
    ("reward", "status", "line"),
    [
        ("flat", 2, "gives all of 8 reference images of a prompt the same"),
        ("stopped", 130, "stopped after update 2; go on with --resume"),
    ],
)
def test_two_processes_end_alike(
    make_config: MakeConfig, tmp_path: Path, reward: str, status: int, line: str
) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    overrides = (f"output_dir={run}", f"reward={tmp_path}/reward.py:{reward}")
    recipe.write_text(dump_config(make_config(*overrides)))
    done = launch(recipe, 2, env={"STOP_IN": str(run / "metrics.jsonl")}, forked=True)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert sum(line in told for told in done.stderr.splitlines()) == 2, done.stderr
    assert run.exists() == (reward == "stopped")
    assert not (run / "summary.json").exists()
