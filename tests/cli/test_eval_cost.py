"""What `nablaflow eval` and `compare` read and look at: each thing once, no more than is asked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from nablaflow.storage import checksums
from tests.cli.conftest import Ready

pytestmark = pytest.mark.usefixtures("lean_runs")

Cli = Callable[..., Result]
TRAINING = ("training.updates=2", "training.checkpoint_every=1", "training.keep_checkpoints=2")
LAST, BEFORE = "step-000002", "step-000001"


@pytest.fixture
def trained(ready: Ready) -> None:
    ready("run", *TRAINING)


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


def test_of_an_older_one_the_policy_is_read_once_and_nothing_else(read: Counter[str], cli: Cli):
    result = cli("eval", "run", "--metrics", "reward", "--json")
    assert result.exit_code == 0, result.stderr
    older = {name: times for name, times in read.items() if name.startswith(BEFORE)}
    assert older == {f"{BEFORE}/policy.safetensors": 1}


def test_a_comparison_reads_each_policy_once(read: Counter[str], cli: Cli):
    result = cli("compare", "run", "--out", "figures", "--json")
    assert result.exit_code == 0, result.stderr
    assert read == {f"{name}/policy.safetensors": 1 for name in (BEFORE, LAST)}


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("command", ["eval", "compare"])
def test_an_older_one_that_is_damaged_is_named_and_left_out(here: Path, cli: Cli, command: str):
    policy = here / "run" / "checkpoints" / BEFORE / "policy.safetensors"
    policy.write_bytes(policy.read_bytes()[:-1] + b"!")
    result = cli(command, "run", "--json")
    assert result.exit_code == 0, result.stderr
    assert f"{BEFORE} cannot be used" in result.stderr
    if command == "eval":
        rows = json.loads(result.stdout)["protocol"]["rows"]
        assert [row["name"] for row in rows] == ["reference", "policy"]


BANK = ("evaluation.n=20", "evaluation.bank=1200", "method.beta=0.01", "evaluation.batch=100")


@pytest.fixture
def trained_with_bank(ready: Ready) -> None:
    ready("run", "training.updates=1", *BANK)


@pytest.mark.usefixtures("trained_with_bank")
@pytest.mark.parametrize(
    ("n", "bank"),
    [
        (None, 1200),
        (
            10,
            600,
        ),  # as many fewer as there are images: 300 of each prompt, of which nearly all count
        (4, 480),  # 120 of each prompt do not tell the tilt, for which 200 have to count; 240 do
    ],
)
def test_fewer_images_look_at_less_of_the_bank(cli: Cli, n: int | None, bank: int):
    asked = () if n is None else ("--n", n)
    evaluated = cli("eval", "run", "--metrics", "reward", *asked, "--json")
    compared = cli("compare", "run", "--out", "figures", *asked, "--json")
    assert evaluated.exit_code == compared.exit_code == 0, evaluated.stderr + compared.stderr
    found = json.loads(evaluated.stdout)
    assert (found["bank"], found["exact_tilt"]["n"]) == (bank, bank)
    assert found["exact_tilt"]["effective_sample_size"] == pytest.approx(bank / 2, rel=0.01)
    tilt = json.loads(compared.stdout)["rows"][1]
    assert (tilt["method"], tilt["n"]) == ("exact tilt", bank)
    assert json.loads(Path("figures/warmth.json").read_text())["bank"] == bank
    for result in (evaluated, compared):
        said = f"{bank} of its 1,200 images" in result.stderr
        assert said == (n is not None), result.stderr
