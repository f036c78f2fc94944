"""The configuration that a run has, and which of its settings may change when it goes on."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nablaflow.config.named_method import FindMethod, find_none, method_settings
from nablaflow.config.overrides import load_config, parse_override, plain_config, read_recipe
from nablaflow.config.parse import parse_config
from nablaflow.config.recipe import Config
from nablaflow.config.yaml_text import read_yaml
from nablaflow.errors import UserError, printable
from nablaflow.models.fused import SETTING as FUSED
from nablaflow.runs.begun_with import MARKED, check_lora_stays, elsewhere, newly_marked, value_at
from nablaflow.runs.trust import NeedsWord
from nablaflow.storage.manifest import DamagedCheckpoint, list_checkpoints, read_manifest
from nablaflow.storage.run_folder import CONFIG, MOVING, REPLACED

# What may change when a run is resumed; all of `evaluation` may as well, but for what is held out.
FREE = {
    "output_dir",
    "reward.batch",
    "reward.device",
    "reward.gradient_checkpointing",
    "reward.retries",
    "reward.timeout",
    "reward.url",
    "training.updates",
    "training.minutes",
    "training.memory_budget_gb",
    "training.micro_batch",
    "training.decode_batch",
    "training.rollout_batch",
    "training.estimate_batch",
    "training.gradient_checkpointing",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.reward_timeout",
    "training.sample_every",
    "training.calibrate",
    "training.trackers",
}


def load_run_config(
    run: Path, overrides: Sequence[str] = (), find: FindMethod = find_none
) -> Config:
    """The configuration of a run: its config.yaml, or what its last checkpoint has of it.

    The first is for people to change; where it is damaged, the second is used and that is said. So
    is a change of what the checkpoint was trained with.

    Args:
        overrides: ``key=value``; a ``model`` or ``model_lora`` among them is the run's own, whose
            place is another now.
        find: finds the class of a method of the user's own, see `nablaflow.runs.trust.methods_of`.

    Raises:
        UserError: the folder holds no run, or neither can be read.
    """
    copy = check_is_run(run)
    try:
        own = load_config(run / CONFIG, [], {}, find)  # so that no override is taken for damage
    except NeedsWord:
        raise
    except UserError as error:
        if copy is None:
            raise
        said = printable(f"{error}; the copy in the last checkpoint is used")
        print(said, file=sys.stderr)
        values = {**read_yaml(copy, "checkpoint"), "output_dir": str(run)}
        own = load_config(None, [], values, find)
        return elsewhere(load_config(None, overrides, values, find), own)
    given = dict(map(parse_override, overrides))
    if (FUSED,) in given:  # before its scale is found to be of none
        check_lora_stays(given[(FUSED,)], own)
    config = load_config(run / CONFIG, overrides, {"output_dir": str(run)}, find)
    config = elsewhere(config, own)
    if copy is not None:
        saved = plain_config(parse_config(read_recipe(run / CONFIG), find))
        trained = _completed(copy, find)
        quiet = {"output_dir", *newly_marked(trained, saved)}  # a folder may be moved
        for part in differences(trained, saved):
            if part in quiet:
                continue
            print(
                f"{run / CONFIG}: {part} is not what the last checkpoint was trained with",
                file=sys.stderr,
            )
    return config


def check_is_run(run: Path) -> str | None:
    """What the last checkpoint of a run has of its configuration, if there is any.

    Raises:
        UserError: the folder holds no run.
    """
    copy = _copy_in_checkpoint(run)
    if copy is None and not (run / CONFIG).is_file():
        raise UserError(_no_run(run))
    return copy


def _no_run(run: Path) -> str:
    """What is there in place of a run folder."""
    if run.is_dir():
        return f"{run}: no run folder, since there is no {CONFIG} in it; give output_dir of a run"
    what = "a file, and a run is a folder" if run.is_file() else "there is no such folder"
    return f"{run}: {what}; give output_dir of a run, such as runs/demo"


def _copy_in_checkpoint(run: Path) -> str | None:
    for folder in reversed(list_checkpoints(run)):
        try:
            return read_manifest(folder)["config"] or None
        except DamagedCheckpoint:
            continue
    return None


def check_same(config: Config) -> None:
    """A run goes on with its own settings, but for those that leave its figures alone."""
    for part in _changes(_saved_settings(config), plain_config(config)):
        raise UserError(f"{part}: the run to resume has another value; use --overwrite")


def goes_on(config: Config) -> bool:
    """Whether the folder holds a checkpoint of the same settings, place aside."""
    run = config.output_dir
    if not list_checkpoints(run):
        return False
    new = plain_config(config)
    return {**_saved_settings(config), "output_dir": None} == {**new, "output_dir": None}


def saved_config(config: Config) -> Config | None:
    """What the run was begun with, as its last checkpoint or its config.yaml says; None: neither.

    Args:
        config: the one that it is to go on with.
    """
    try:
        return parse_config(_saved_settings(config), _method_of(config))
    except UserError:
        return None


def _method_of(config: Config) -> FindMethod:
    """Of a user's own methods, the one whose class is here already."""
    here = method_settings(config.method)["name"]
    return lambda spec: type(config.method) if spec == here else find_none(spec)


def _saved_settings(config: Config) -> Any:
    run = config.output_dir
    copy = _copy_in_checkpoint(run)
    if copy is not None:
        return _completed(copy, _method_of(config))
    for folder in (run, run / MOVING, run / REPLACED):
        if (folder / CONFIG).is_file():
            return _settings_in(folder / CONFIG, _method_of(config))
    raise UserError(f"--resume: {run} holds no run; leave --resume out to start one")


def _completed(copy: str, find: FindMethod) -> Any:
    """What a checkpoint has, with the defaults of settings that there were none of at its time."""
    settings = read_yaml(copy, "checkpoint")
    try:
        return plain_config(parse_config(settings, find))
    except UserError:  # of a setting that is gone, say: its name is told as a difference
        return settings


def _settings_in(file: Path, find: FindMethod) -> Any:
    try:
        return plain_config(parse_config(read_recipe(file), find))
    except UserError as error:
        raise UserError(
            f"--resume: {file} is damaged and no checkpoint has a copy of it ({error}); put it "
            "right, or start again in another output_dir"
        ) from None


def _changes(old: Any, new: Any) -> Iterable[str]:
    """The settings that differ and may not; the same weights may have another name.

    So may a mark that the run has none of: an earlier version recorded none.
    """
    free = FREE | {name for name, mark in MARKED.items() if _same(old, new, mark)}
    free |= set(newly_marked(old, new))
    for part in differences(old, new):
        measured = part.startswith("evaluation.") and part != "evaluation.hold_out"
        if part not in free and not measured:
            yield part


def _same(old: Any, new: Any, mark: str) -> bool:
    """Whether a checksum was recorded and is the same."""
    found = value_at(old, mark)
    return found is not None and found == value_at(new, mark)


def differences(old: Any, new: Any, prefix: str = "") -> Iterable[str]:
    """Names of the settings that are not the same in two configurations as plain data."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if old != new:
            yield prefix
        return
    for key in {**old, **new}:
        yield from differences(
            old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key)
        )
