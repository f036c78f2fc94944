"""Whether the figures and the saved policy in a run's folder are of this run's training.

Each file there may be whole and come from another run. So the figures have the checksum of the
policy's file in the checkpoint that they are of, of what was saved beside them, and their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nablaflow.errors import UserError
from nablaflow.storage import checksums
from nablaflow.storage.manifest import POLICY, list_checkpoints, policy_mark, update_of
from nablaflow.storage.run_folder import CHECKSUMS, LORA_FILE, SUMMARY

FILES = "files"
"""In summary.json: names of files to their SHA-256; runs of an earlier version have none."""
_OWN = "sha256"  # of summary.json, the same for the same run on another day
_OF_THE_DAY = (_OWN, "seconds", "training_seconds", "peak_rss_mb", "peak_device_mb")
_SAVED = (LORA_FILE, CHECKSUMS)  # of a whole model the list, which has the checksums of all else


def with_checksum(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The figures as they are written, with a checksum of their own."""
    return {**summary, _OWN: _checksum(summary)}


def _checksum(summary: Mapping[str, Any]) -> str:
    others = {name: value for name, value in summary.items() if name not in _OF_THE_DAY}
    try:
        plain = json.loads(json.dumps(others))  # as it is read again
        return checksums.of_bytes(json.dumps(plain, sort_keys=True).encode())
    except RecursionError:  # it may hold anything
        return ""


def files_of(run: Path, saved: Path, update: int) -> dict[str, str]:
    """What the figures of a policy are to be known by.

    Args:
        saved: folder of the adapter, or of the whole model.
        update: after which it was saved.
    """
    policy = _policy_after(run, update)
    found = {} if policy is None else {POLICY: policy}
    there = [saved / name for name in _SAVED if (saved / name).is_file()]
    return found | {file.name: checksums.of_file(file) for file in there}


def check_figures(run: Path, summary: Mapping[str, Any]) -> None:
    """Refuse figures that were changed, or that are of another run's policy.

    Where the checkpoint of its policy is gone, nobody can tell.

    Raises:
        UserError: they are that.
    """
    if _OWN in summary and summary[_OWN] != _checksum(summary):  # earlier versions have none
        raise UserError(
            f"{run / SUMMARY} is damaged (its checksum is of other figures); train the run with "
            "--resume to measure it again, or remove it"
        )
    known, found = _known(summary).get(POLICY), _policy_after(run, summary.get("updates"))
    if known is not None and found not in (None, known):
        raise UserError(
            f"{run / SUMMARY} is of another policy than the checkpoint after update "
            f"{summary['updates']}; train the run with --resume to measure it again, or remove it"
        )


def check_saved(saved: Path, summary: Mapping[str, Any]) -> None:
    """Refuse an adapter, or a whole model, that is not the one which was measured.

    Raises:
        UserError: it is another one.
    """
    for name in _SAVED:
        known = _known(summary).get(name)
        if known is not None and checksums.of_file(saved / name) != known:
            raise UserError(
                f"{saved / name} is not the policy that {SUMMARY} is of; train the run with "
                "--resume to write both again"
            )


def _known(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    found = summary.get(FILES)
    return found if isinstance(found, dict) else {}


def _policy_after(run: Path, update: Any) -> str | None:
    """The checksum of the policy's file; None: there is no such checkpoint, or it is damaged."""
    for folder in list_checkpoints(run):
        if update_of(folder) == update:
            return policy_mark(folder)
    return None


def is_of(summary: Mapping[str, Any], checkpoint: Path) -> bool:
    """Whether figures after as many updates as a checkpoint has are of the policy in it.

    That of the guard's best may be another: calibration weakens the last one after it was kept.
    """
    known = _known(summary).get(POLICY)  # earlier versions have none
    return known is None or known == policy_mark(checkpoint)
