"""What `nablaflow eval` reads of a run: the last checkpoint once, and none that it need not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from nablaflow.storage import checksums

pytestmark = pytest.mark.usefixtures("lean_runs")

Cli = Callable[..., Result]
TRAINING = ("training.updates=2", "training.checkpoint_every=1", "training.keep_checkpoints=2")
LAST, BEFORE = "step-000002", "step-000001"


@pytest.fixture
def trained(recipe: Path, cli: Cli) -> None:
    assert cli("train", recipe, *TRAINING).exit_code == 0


@pytest.fixture
def read(trained: None, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file of a checkpoint is read; all that is read is checked."""
    found: Counter[str] = Counter()
    checked = checksums.of_file

    def watch(path: Path) -> str:
        found[f"{path.parent.name}/{path.name}"] += 1
        return checked(path)

    monkeypatch.setattr(checksums, "of_file", watch)
    return found


def test_the_last_checkpoint_is_read_once(read: Counter[str], cli: Cli):
    result = cli("eval", "run", "--metrics", "reward", "--json")
    assert result.exit_code == 0, result.stderr
    last = {name: times for name, times in read.items() if name.startswith(LAST)}
    assert {f"{LAST}/policy.safetensors", f"{LAST}/state.pt"} <= last.keys()
    assert set(last.values()) == {1}


def test_of_the_last_alone_no_other_is_read(read: Counter[str], cli: Cli):
    result = cli("eval", "run", "--checkpoints", "last", "--metrics", "reward", "--json")
    assert result.exit_code == 0, result.stderr
    assert not [name for name in read if name.startswith(BEFORE)]
