"""Only what a run wrote is moved or removed, and a run that was set aside can always come back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nablaflow.errors import UserError
from nablaflow.storage import run_folder
from nablaflow.storage.lock import MARKER
from nablaflow.storage.run_folder import (
    check_no_links,
    check_replaceable,
    forget_replaced,
    is_begun,
    own_files,
    put_back,
    remove_partial,
    set_aside,
    undo_move,
    undo_set_aside,
)

WRITTEN = [
    "config.yaml",
    "metrics.jsonl",
    "log.txt",
    "summary.json",
    "report.html",
    "evaluation.png",
    "checkpoints/step-000004/policy.safetensors",
    "checkpoints/step-000004/state.pt",
    "checkpoints/step-000004/progress.json",
    "checkpoints/best-000002/policy.safetensors",
    "samples/step-000004.png",
    "samples/before_after.png",
    "lora/pytorch_lora_weights.safetensors",
    "ema/lora/pytorch_lora_weights.safetensors",
    "model/model_index.json",
    "model/nablaflow-checksums.json",
    "model/unet/config.json",
    "model/unet/diffusion_pytorch_model.safetensors",
    "logs/nablaflow/events.out.tfevents.1",
]
LEFT = [
    ".partial-config.yaml",
    ".partial-lora/pytorch_lora_weights.safetensors",
    ".partial-old-lora/pytorch_lora_weights.safetensors",
    ".partial-model/.partial-nablaflow-checksums.json",
    "ema/.partial-lora/.partial-pytorch_lora_weights.safetensors",
    "checkpoints/.partial-step-000003/state.pt",
    "checkpoints/.partial-step-000005/policy.safetensors",
    "checkpoints/.partial-step-000005/.partial-progress.json",
    "checkpoints/.partial-old-best-000002/progress.json",
    "samples/.partial-step-000004.png",
]
"""Of a process that died while it wrote or removed them."""
FOREIGN = [
    "prompts.txt",
    "thesis/data.txt",
    "checkpoints/notes.txt",
    "checkpoints/step-000004/notes.txt",
    "samples/mine.png",
    "lora/other.safetensors",
    "logs/diary.txt",
]


def fill(run: Path, names: list[str], text: str = "old") -> None:
    for name in names:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in found}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    fill(folder, [MARKER, *WRITTEN, *FOREIGN])
    return folder


def test_what_a_run_wrote_and_nothing_else_is_its_own(run: Path):
    assert {str(path.relative_to(run)) for path in own_files(run)} == set(WRITTEN)


def test_a_replaced_run_is_gone_and_foreign_files_are_where_they_were(run: Path):
    set_aside(run)
    assert {name for name in contents(run) if not name.startswith(".replaced")} == {
        MARKER,
        *FOREIGN,
    }
    assert contents(run / ".replaced") == dict.fromkeys(WRITTEN, "old")
    forget_replaced(run)
    assert contents(run) == dict.fromkeys([MARKER, *FOREIGN], "old")


def test_without_a_checkpoint_of_the_new_run_the_old_one_comes_back(run: Path):
    before = contents(run)
    set_aside(run)
    fill(run, ["config.yaml", "metrics.jsonl", "checkpoints/best-000000/state.pt"], "new")
    assert put_back(run)
    assert contents(run) == before


def test_with_a_checkpoint_of_the_new_run_the_old_one_does_not_come_back(run: Path):
    set_aside(run)
    fill(run, ["config.yaml", "checkpoints/step-000001/progress.json"], "new")
    assert not put_back(run)
    assert (run / "config.yaml").read_text() == "new"


def test_a_run_in_between_that_came_to_nothing_does_not_cost_the_one_before(run: Path):
    before = contents(run)
    set_aside(run)
    fill(run, ["config.yaml"], "in between")
    set_aside(run)
    fill(run, ["config.yaml"], "new")
    assert put_back(run)
    assert contents(run) == before


@pytest.mark.parametrize("moves", range(len(WRITTEN)))
def test_a_crash_in_the_middle_of_a_move_is_undone(
    run: Path, monkeypatch: pytest.MonkeyPatch, moves: int
):
    before, replace, left = contents(run), os.replace, [moves]

    def crash(source: Path, target: Path) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            set_aside(run)
    undo_move(run)
    assert contents(run) == before


def test_a_link_in_place_of_a_folder_leads_to_no_removal(run: Path, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    fill(elsewhere, ["step-000001/state.pt"])
    (run / "checkpoints").rename(tmp_path / "away")
    (run / "checkpoints").symlink_to(elsewhere)
    set_aside(run)
    forget_replaced(run)
    assert contents(elsewhere) == {"step-000001/state.pt": "old"}


@pytest.mark.parametrize(
    "name", ["checkpoints", "metrics.jsonl", "samples/step-000004.png", MARKER]
)
def test_nothing_is_written_through_a_link(run: Path, tmp_path: Path, name: str):
    (run / name).rename(tmp_path / "away")
    (run / name).symlink_to(tmp_path / "away")
    with pytest.raises(UserError, match="symbolic link"):
        check_no_links(run)


def test_a_folder_without_the_marker_is_somebody_elses(tmp_path: Path):
    fill(tmp_path, ["config.yaml", "checkpoints/step-000001/state.pt"])
    with pytest.raises(UserError, match="by hand"):
        check_replaceable(tmp_path)


def test_the_traces_of_a_run_that_wrote_nothing_are_no_run(tmp_path: Path):
    fill(tmp_path, [MARKER])
    assert not is_begun(tmp_path)
    fill(tmp_path, ["config.yaml"])
    assert is_begun(tmp_path)


def test_a_checkpoint_that_was_being_replaced_has_its_name_again(tmp_path: Path):
    last, best = "checkpoints/.partial-old-step-000003", "checkpoints/.partial-old-best-000002"
    fill(tmp_path, [*WRITTEN, f"{last}/state.pt", f"{best}/state.pt"])
    undo_set_aside(tmp_path)
    assert (tmp_path / "checkpoints/step-000003/state.pt").is_file()
    assert not (tmp_path / last).exists()
    assert (tmp_path / best).is_dir()  # its successor is there
    undo_set_aside(tmp_path / "none")


def test_what_a_killed_process_left_half_done_is_removed(tmp_path: Path):
    foreign = [*FOREIGN, "checkpoints/.partial-step-000003/notes.txt", ".partial-thesis.txt"]
    fill(tmp_path, [*WRITTEN, *LEFT, *foreign])
    remove_partial(tmp_path)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert found >= {*WRITTEN, *foreign}
    assert {name for name in found if ".partial" in name} == {
        "checkpoints/.partial-step-000003",
        "checkpoints/.partial-step-000003/notes.txt",
        ".partial-thesis.txt",
    }
