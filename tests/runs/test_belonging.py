"""Files of another run in a run's folder: each is whole, and none is taken for the run's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import nablaflow as nf
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.runs import align
from nablaflow.runs.evaluate import evaluate_run
from nablaflow.runs.export_card import summary_of
from nablaflow.runs.policy import load_policy
from nablaflow.storage.checkpoint import load_checkpoint, save_checkpoint
from nablaflow.storage.manifest import read_manifest
from nablaflow.storage.naming import name_of
from nablaflow.storage.records import read_records
from nablaflow.storage.run_folder import LORA_FILE, NAME
from nablaflow.storage.whole import last_whole

pytestmark = pytest.mark.usefixtures("lean_runs")
OWN = ("files", "sha256")
MakeConfig = Callable[..., Config]


@pytest.fixture
def two(make_config: MakeConfig, tmp_path: Path) -> tuple[Path, Path]:
    """A run, and one of another seed."""
    for seed in (0, 1):
        more = (f"seed={seed}", f"output_dir={tmp_path}/{seed}", "training.updates=1")
        align.run(make_config(*more, "evaluation.bank=0", "evaluation.n=6"))
    return tmp_path / "0", tmp_path / "1"


def test_a_digit_of_the_figures(two: tuple[Path, Path]) -> None:
    run, _ = two
    summary = json.loads((run / "summary.json").read_text())
    summary["policy"]["reward_mean"] += 1e-9
    (run / "summary.json").write_text(json.dumps(summary))
    for read in (nf.Run.open, lambda run: summary_of(run, run / "checkpoints/step-000001")):
        with pytest.raises(UserError, match=r"summary.json is damaged .its checksum is of other"):
            read(run)


def test_a_gpus_peak_is_among_the_figures_and_has_no_checksum(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is another on another day, as the process's own is; of a processor there is none."""
    config = make_config("training.updates=1", "evaluation.bank=0", "evaluation.n=6")
    monkeypatch.setattr("nablaflow.runs.finish.peak_device_mb", lambda device: 2048.0)
    run = align.run(config)
    assert run.summary["peak_device_mb"] == 2048.0
    assert "2.0 GB of the GPU's in training" in (run.folder / "report.html").read_text()
    summary = json.loads((run.folder / "summary.json").read_text())
    summary["peak_device_mb"] = 1024.0
    (run.folder / "summary.json").write_text(json.dumps(summary))
    assert nf.Run.open(run.folder).summary["peak_device_mb"] == 1024.0


def test_of_another_run(two: tuple[Path, Path]) -> None:
    run, other = two
    nf.Run.open(run).pipeline()
    own = (run / "summary.json").read_text()
    shutil.copyfile(other / "lora" / LORA_FILE, run / "lora" / LORA_FILE)
    with pytest.raises(UserError, match=r"safetensors is not the policy that summary.json is of"):
        nf.Run.open(run).pipeline()
    shutil.copyfile(other / "summary.json", run / "summary.json")
    told = r"summary.json is of another policy than the checkpoint after update 1; train "
    with pytest.raises(UserError, match=told):
        nf.Run.open(run)
    with pytest.raises(UserError, match=told):
        summary_of(run, run / "checkpoints/step-000001")
    earlier = {name: value for name, value in json.loads(own).items() if name not in OWN}
    (run / "summary.json").write_text(json.dumps(earlier))  # of an earlier version
    nf.Run.open(run).pipeline()
    assert summary_of(run, run / "checkpoints/step-000001") == earlier


@pytest.fixture
def twins(make_config: MakeConfig, tmp_path: Path) -> tuple[Path, Config, Path]:
    """A run of two updates, with what it goes on by, and another of the same recipe and seed."""

    def config(place: str, updates: int) -> Config:
        more = (f"output_dir={tmp_path}/{place}", f"training.updates={updates}")
        more += ("training.checkpoint_every=1", "training.keep_checkpoints=3")
        return make_config(*more, "evaluation.bank=0", "evaluation.n=6", "sampler.steps=2")

    align.run(config("own", 2))
    align.run(config("other", 3))
    return tmp_path / "own", config("own", 3), tmp_path / "other"


def test_a_checkpoint_of_another_run_is_not_used(
    twins: tuple[Path, Config, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe and the seed are the same, so nothing in it but the run's name tells."""
    run, longer, other = twins
    for name in ("step-000001", "step-000003"):
        shutil.rmtree(run / "checkpoints" / name, ignore_errors=True)
        shutil.copytree(other / "checkpoints" / name, run / "checkpoints" / name)
    assert load_policy(run)[2].name == "step-000002"
    told = "step-000003 cannot be used (it is of another run); step-000002 is used"
    assert told in capsys.readouterr().err
    with pytest.raises(UserError, match=r"step-000001 cannot be used \(it is of another run\)"):
        load_policy(run, checkpoint="step-1")
    protocol = evaluate_run(run, 6, trusted=True)["protocol"]["rows"]
    assert [found["update"] for found in protocol if found["update"]] == [2]
    assert (
        "step-000001 cannot be used (it is of another run); it is left" in capsys.readouterr().err
    )
    align.run(longer, resume=True)
    assert told in capsys.readouterr().err
    assert last_whole(run, load_checkpoint).update == 3
    assert read_manifest(run / "checkpoints" / "step-000003")["run"] == name_of(run)


def test_a_run_whose_name_is_gone_has_its_checkpoints(twins: tuple[Path, Config, Path]) -> None:
    run, longer, _ = twins
    name = name_of(run)
    for damage in (b"", b"{}", b"\xff"):
        (run / NAME).write_bytes(damage)
        assert load_policy(run)[2].name == "step-000002"
    (run / NAME).unlink()
    align.run(longer, resume=True)
    assert name_of(run) == name


def test_lines_of_another_run_are_left_out(
    twins: tuple[Path, Config, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, longer, other = twins
    own = read_records(run)
    shutil.copyfile(other / "metrics.jsonl", run / "metrics.jsonl")
    assert [record["update"] for record in read_records(run)] == [3]  # which no checkpoint knows
    told = "metrics.jsonl is damaged: lines of 2 updates are missing, 2 that are there are not what"
    assert told in capsys.readouterr().err
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in own)
    assert read_records(run)[:2] == own
    shutil.copyfile(other / "metrics.jsonl", run / "metrics.jsonl")
    align.run(longer, resume=True)
    assert told in capsys.readouterr().err
    assert [record["update"] for record in read_records(run)] == [3]


def test_a_line_that_was_changed_stays_known_after_the_next_checkpoint(
    twins: tuple[Path, Config, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its mark is the one of when it was written."""
    run, _, _ = twins
    changed, *_ = read_records(run)
    known = read_manifest(run / "checkpoints" / "step-000002")["lines"]
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines()
    file.write_text(json.dumps(changed | {"loss": 5.0}) + "\n" + "\n".join(lines[1:]) + "\n")
    end = load_checkpoint(run / "checkpoints" / "step-000002")
    save_checkpoint(run, replace(end, update=3), keep=3)
    assert read_manifest(run / "checkpoints" / "step-000003")["lines"].startswith(known)
    assert [record["update"] for record in read_records(run)] == [2]
    assert "1 that are there are not what this run wrote" in capsys.readouterr().err
