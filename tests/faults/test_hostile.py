"""Run folders from somebody who means harm: refused in one line, and nothing of theirs happens."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import Result
from safetensors.torch import load_file, save_file

from nablaflow.storage import checksums
from tests.faults.conftest import SHORT, one_line
from tests.support.run_folders import contents

Cli = Callable[..., Result]
COMMANDS = {
    "eval": lambda run: ("eval", run),
    "compare": lambda run: ("compare", run),
    "train": lambda run: ("train", run / "config.yaml", "output_dir=other"),
}


def change(run: Path, **values: Any) -> None:
    """As who hands a run on could: the copy in each checkpoint agrees with config.yaml."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    if "evaluation" in values:
        values["evaluation"] = {**config["evaluation"], **values["evaluation"]}
    text = yaml.safe_dump({**config, **values})
    (run / "config.yaml").write_text(text)
    for folder in (run / "checkpoints").iterdir():
        manifest = checksums.unseal((folder / "progress.json").read_text())
        (folder / "progress.json").write_text(checksums.sealed({**manifest, "config": text}))


@pytest.fixture
def evil(run: Path, tmp_path: Path) -> Path:
    """Code in the run that leaves a trace when it is run."""
    trace = tmp_path / "pwned"
    (run / "score.py").write_text(
        f"open({str(trace)!r}, 'w')\ndef f(images, prompts): return -images[:, 2].mean((1, 2))\n"
    )
    return trace


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "reward",
    [
        "{}:f",
        "warmth + 0.1*{}:f",
        {"name": "cap", "of": "{}:f", "at": 1.0},
        {"warmth": 1, "{}:f": 1},
    ],
    ids=["alone", "in a sum", "in a reward", "as a key"],
)
def test_code_is_not_run(cli: Cli, run: Path, evil: Path, command: str, reward: Any):
    spec = yaml.safe_load(yaml.safe_dump(reward).replace("{}", str(run / "score.py")))
    change(run, reward=spec)
    one_line(cli(*COMMANDS[command](run)), "score.py", "--trust-run")
    assert not evil.exists()


def test_with_the_users_word_it_is(cli: Cli, run: Path, evil: Path):
    change(run, reward=f"{run}/score.py:f")
    result = cli("eval", run, "--trust-run", "--json")
    assert result.exit_code == 0, result.stderr
    assert "score.py" in result.stderr
    assert evil.exists()


def test_a_reward_of_the_users_own_is_used_instead(cli: Cli, run: Path, evil: Path):
    change(run, reward=f"{run}/score.py:f")
    result = cli("eval", run, "reward=warmth", "--json")
    assert result.exit_code == 0, result.stderr
    assert not evil.exists()


@pytest.mark.parametrize("command", ["eval", "sample"])
def test_a_file_outside_is_not_read_as_prompts(cli: Cli, run: Path, tmp_path: Path, command: str):
    (tmp_path / "id_rsa").write_text("-----BEGIN PRIVATE KEY-----")
    change(run, prompts=str(tmp_path / "id_rsa"))
    told = one_line(cli(command, run), "id_rsa", "--trust-run")
    assert "PRIVATE KEY" not in told


def test_a_variable_is_not_sent(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    judge = {"name": "remote", "url": "http://127.0.0.1:9/", "token_variable": "HF_TOKEN"}
    change(run, reward=judge, method={"name": "ddpo", "beta": 1.0})
    told = one_line(cli("eval", run), "HF_TOKEN", "http://127.0.0.1:9/", "--trust-run")
    assert "hf_secret" not in told


REACHES: dict[str, tuple[dict[str, Any], str]] = {
    "a function of prompts": ({"prompts": "trl:{}/score.py:f"}, "code"),
    "a function of other prompts": ({"evaluation": {"prompts": "trl:{}/score.py:f"}}, "code"),
    "a method": ({"method": {"name": "{}/score.py:M", "beta": 1.0}}, "code"),
    "a reward as TRL's": ({"reward": "trl:{}/score.py:f"}, "code"),
    "one of several": ({"reward": {"name": "minimum", "of": ["warmth", "{}/score.py:f"]}}, "code"),
    "prompts of a table": ({"prompts": {"source": "/etc/passwd", "column": "a"}}, "passwd"),
    "prompts above the run": ({"prompts": "{}/../../secret.txt"}, "secret.txt"),
    "a fitted reward": ({"reward": "/mnt/own.safetensors"}, "own.safetensors"),
    "weights": ({"reward": {"name": "pickscore", "weights": "/etc"}}, "/etc"),
    "a model": ({"model": "~/models/mine"}, "models/mine"),
}


@pytest.mark.parametrize("reach", REACHES)
def test_what_it_reaches_for_is_named_and_not_touched(cli: Cli, run: Path, evil: Path, reach: str):
    values, word = REACHES[reach]
    change(run, **yaml.safe_load(yaml.safe_dump(values).replace("{}", str(run))))
    told = one_line(cli("eval", run), word, "--trust-run")
    assert not evil.exists(), told


LINKS = ["checkpoints", "metrics.jsonl", "samples", "lora", "config.yaml", ".nablaflow-run", "logs"]


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
@pytest.mark.parametrize("name", LINKS)
def test_a_link_is_not_written_through(
    cli: Cli, recipe: Path, run: Path, tmp_path: Path, name: str, flag: str
):
    elsewhere = tmp_path / "elsewhere"
    if (run / name).exists():
        (run / name).rename(elsewhere)
    else:
        elsewhere.mkdir()
    (run / name).symlink_to(elsewhere)
    before = contents(tmp_path)
    one_line(cli("train", recipe, *SHORT, "training.updates=3", flag), name, "link")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
@pytest.mark.parametrize("name", ["samples", "lora", "checkpoints", "summary.json", "log.txt"])
def test_a_file_for_a_folder_and_the_other_way_is_found_before_the_work(
    cli: Cli, recipe: Path, run: Path, name: str, flag: str
):
    if (run / name).is_dir():
        shutil.rmtree(run / name)
        (run / name).write_text("years of work")
    else:
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()
    before = contents(run)
    one_line(cli("train", recipe, *SHORT, "training.updates=3", flag), name, "move it")
    assert contents(run) == before


def test_a_policy_of_nan_is_not_sampled(cli: Cli, run: Path):
    for folder in (run / "checkpoints").iterdir():
        policy = load_file(folder / "policy.safetensors")
        next(iter(policy.values())).fill_(math.nan)
        save_file(policy, folder / "policy.safetensors")
        manifest = checksums.unseal((folder / "progress.json").read_text())
        manifest["files"]["policy.safetensors"] = checksums.of_file(folder / "policy.safetensors")
        (folder / "progress.json").write_text(checksums.sealed(manifest))
    assert "not finite" in one_line(cli("sample", run, "--n", "1", "--out", "seen"))
    assert not Path("seen").exists()


def test_pickled_code_is_not_run(cli: Cli, recipe: Path, run: Path, tmp_path: Path):
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "pwned"),)

    for folder in (run / "checkpoints").iterdir():
        torch.save({"guard": Evil()}, folder / "state.pt")
        manifest = checksums.unseal((folder / "progress.json").read_text())
        manifest["files"]["state.pt"] = checksums.of_file(folder / "state.pt")
        (folder / "progress.json").write_text(checksums.sealed(manifest))
    one_line(cli("train", recipe, *SHORT, "training.updates=3", "--resume"), "UnpicklingError")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", [*LINKS, "log.txt", "summary.json", "report.html"])
def test_a_pipe_is_not_waited_for(cli: Cli, recipe: Path, run: Path, tmp_path: Path, name: str):
    if (run / name).exists():
        (run / name).rename(tmp_path / "elsewhere")
    os.mkfifo(run / name)
    for flag in ("--resume", "--overwrite"):
        assert name in one_line(cli("train", recipe, *SHORT, "training.updates=3", flag))
        assert (run / name).is_fifo()


def test_a_tracker_is_told_nothing_without_the_users_word(cli: Cli, run: Path):
    training = yaml.safe_load((run / "config.yaml").read_text())["training"]
    change(run, training={**training, "trackers": ["wandb"]})
    one_line(cli("train", run / "config.yaml", "output_dir=other"), "tracker wandb", "--trust-run")
    measured = cli("eval", run, "--json")
    assert measured.exit_code == 0, measured.stderr


@pytest.mark.parametrize(
    "values",
    [{"reward": "\x1b]0;mine\x07\x1b[31mx.py:f"}, {"\x1b[31munknown": 1}],
    ids=["asked", "key"],
)
def test_a_terminal_is_given_no_commands(cli: Cli, run: Path, values: dict[str, Any]):
    change(run, **values)
    done = cli("eval", run, "--trust-run")
    assert done.exit_code == 2
    assert "\x1b" not in done.output
