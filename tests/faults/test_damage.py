"""What a disk does to a run: it is named, and what is whole is used."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.runs.run import Run
from nablaflow.runs.saved_config import load_run_config
from nablaflow.storage.checkpoint import load_checkpoint
from nablaflow.storage.manifest import list_checkpoints
from nablaflow.storage.records import read_records
from nablaflow.storage.whole import last_whole
from tests.faults.conftest import SHORT, one_line

pytestmark = pytest.mark.usefixtures("lean_runs")

Cli = Callable[..., Result]
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: b"",
    "zeros": lambda text: bytes(len(text)),
    "not UTF-8": lambda text: b"\xff\xfe" + text,
    "a list": lambda text: b"[1, 2]\n",
    "nested": lambda text: b"[" * 100_000,
    "an alias in itself": lambda text: b"prompts: &a [*a]\n" + text,
}


@pytest.mark.usefixtures("train_only")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_configuration_is_read_from_the_checkpoint(
    cli: Cli, recipe: Path, run: Path, damage: str, capsys: pytest.CaptureFixture[str]
):
    before = load_run_config(run).model_copy(update={"output_dir": run})
    whole = (run / "config.yaml").read_bytes()
    (run / "config.yaml").write_bytes(DAMAGE[damage](whole))
    assert load_run_config(run) == before
    assert "the copy in the last checkpoint is used" in capsys.readouterr().err
    resumed = cli("train", recipe, *SHORT, "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert (run / "config.yaml").read_bytes() == whole


@pytest.mark.usefixtures("train_only")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_metrics_file_costs_lines_and_not_the_run(
    cli: Cli, recipe: Path, run: Path, damage: str
):
    path = run / "metrics.jsonl"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    resumed = cli("train", recipe, *SHORT, "training.updates=3", "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert "damaged" in resumed.stderr
    assert [record["update"] for record in read_records(run)][-1] == 3


def test_without_a_checkpoint_a_damaged_configuration_is_one_line(
    cli: Cli, recipe: Path, here: Path
):
    for damaged in DAMAGE.values():
        (here / "run").mkdir(exist_ok=True)
        (here / "run" / "config.yaml").write_bytes(damaged(b"model: nano\nreward: warmth\n"))
        told = one_line(cli("train", recipe, *SHORT, "--resume"))
        assert "config.yaml" in told
        assert "--resume" in told


def test_a_run_with_a_damaged_configuration_is_sampled(cli: Cli, run: Path):
    (run / "config.yaml").write_bytes(b"")
    sampled = cli("sample", run, "--n", "1", "--out", "seen")
    assert sampled.exit_code == 0, sampled.stderr
    assert "the copy in the last checkpoint is used" in sampled.stderr


def test_the_checkpoint_before_is_sampled_and_resumed(cli: Cli, recipe: Path, run: Path):
    path = run / "checkpoints" / "step-000002" / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    sampled = cli("sample", run, "--n", "1", "--out", "seen")
    assert sampled.exit_code == 0
    for word in ("step-000002", "step-000001 is used"):
        assert word in sampled.stderr
    resumed = cli("train", recipe, *SHORT, "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert load_checkpoint(list_checkpoints(run)[-1]).update == 2


def test_a_damaged_adapter_is_not_loaded(run: Path):
    file = run / "lora" / "pytorch_lora_weights.safetensors"
    whole = file.read_bytes()
    for damage in (whole[:-1] + b"!", whole[:100], b""):
        file.write_bytes(damage)
        with pytest.raises(UserError, match=r"weights\.safetensors is damaged; .*resume=True"):
            Run.open(run, trusted=True).pipeline()
    file.unlink()
    with pytest.raises(UserError, match="is damaged"):
        Run.open(run, trusted=True).pipeline()


def test_a_summary_that_is_none_is_one_line(run: Path):
    for content in (b"[1, 2]", b"[" * 100_000, b"\xff", b""):
        (run / "summary.json").write_bytes(content)
        with pytest.raises(UserError, match=r"summary\.json is damaged"):
            Run.open(run, trusted=True)


def test_runs_without_lines_are_compared(cli: Cli, run: Path):
    (run / "metrics.jsonl").write_bytes(b'{"update": 1}\n')
    result = cli("compare", run, "--n", "2", "--out", "compared", "--json")
    assert result.exit_code == 0, result.stderr
    tilt = Path("compared", "tilt.json")
    tilt.write_text(tilt.read_text().replace("beta", "bela", 1))
    again = cli("compare", run, "--n", "2", "--out", "compared", "--json")
    assert again.exit_code == 0, again.stderr
    assert "tilt.json is damaged; what it holds is made anew" in again.stderr
    assert again.stdout == result.stdout


def flips(run: Path, count: int) -> list[str]:
    """Files, by a flip in which something was read otherwise and not a word was said."""
    files = [path for path in run.rglob("*") if path.is_file() and "checkpoints" in str(path)]
    files.append(run / "config.yaml")
    wanted = {path: _read(run, path) for path in files}
    draw, silent = random.Random(0), []
    for number in range(count):
        path = files[number % len(files)]
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        if not _noticed(run, path, wanted[path]):
            silent.append(f"{path.name} {number}")
        path.write_bytes(whole)
    return silent


def _read(run: Path, path: Path) -> tuple[Config | None, int]:
    """What a command would go by; a folder may be moved, so where it is does not count.

    Args:
        path: of the damaged file, which says whether the configuration has to be read again.
    """
    config = None
    if path.suffix in (".yaml", ".json"):
        config = load_run_config(run).model_copy(update={"output_dir": Path()})
    return config, last_whole(run, load_checkpoint).update


def _noticed(run: Path, path: Path, wanted: tuple[Config | None, int]) -> bool:
    """Whether what is read is the same, or refused, or something was said."""
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: told.append(str(words)))
        try:
            found = _read(run, path)
        except UserError:
            return True
    return bool(told) or found == wanted


def test_no_flipped_bit_goes_unnoticed(run: Path):
    assert flips(run, 60) == []


@pytest.mark.slow
def test_no_flipped_bit_of_a_thousand_goes_unnoticed(run: Path):
    assert flips(run, 1000) == []


@pytest.mark.parametrize("line", ["model_lora_hash: null", "  start_hash: null"])
def test_a_checksum_of_no_file_is_told(run: Path, line: str):
    path = run / "config.yaml"
    wanted = _read(run, path)
    whole = path.read_text()
    assert f"\n{line}\n" in whole
    path.write_text(whole.replace(f"\n{line}\n", f"\n{line[:-1]}m\n"))
    assert _noticed(run, path, wanted)
