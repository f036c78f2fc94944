"""Work in a process of its own that may die, and what must be left of a run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nablaflow.__main__ import main
from nablaflow.storage.checkpoint import load_checkpoint
from nablaflow.storage.manifest import list_checkpoints
from nablaflow.storage.records import read_records

TIMES = ("seconds", "training_seconds", "peak_rss_mb", "peak_device_mb")
"""What of a summary is another in every run."""


def in_a_process(work: Callable[[], object], said: Path | None = None) -> int:
    """Exit status of a process of its own that does the work.

    Args:
        said: file of what it writes to its standard streams; None: the test's own.
    """
    child = os.fork()
    if child == 0:
        try:
            if said is not None:
                _tell(said)
            work()
            os._exit(0)
        except SystemExit as error:
            os._exit(int(error.code or 0))
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
            sys.stderr.flush()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _tell(file: Path) -> None:
    """As a shell's ``> file 2>&1`` does, past what pytest has put in the streams' place."""
    number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(number, stream)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False, buffering=1)


def differences(found: Path, wanted: Path) -> list[str]:
    """What of a run is not bit for bit as it would have been, and what is left half written."""
    first, second = (load_checkpoint(list_checkpoints(run)[-1]) for run in (found, wanted))
    told = [
        f"{group}/{name}"
        for group, theirs in second.tensors.items()
        for name, value in theirs.items()
        if not torch.equal(first.tensors[group][name], value)
    ]
    told += [] if first.update == second.update else [f"update {first.update}"]
    updates = [[record["update"] for record in read_records(run)] for run in (found, wanted)]
    told += [] if updates[0] == updates[1] else [f"lines of updates {updates[0]}"]
    told += [] if _outcome(found) in ({}, _outcome(wanted)) else ["summary.json, or the adapter"]
    return told + [str(path.relative_to(found)) for path in found.rglob("*.partial*")]


def _outcome(run: Path) -> dict[str, Any]:
    """What a measured run comes to; nothing of one that was only trained."""
    if not (run / "summary.json").is_file():
        return {}
    summary = json.loads((run / "summary.json").read_text())
    adapter = (run / "lora" / "pytorch_lora_weights.safetensors").read_bytes()
    return {"lora": adapter, **{name: v for name, v in summary.items() if name not in TIMES}}


def evidence(run: Path, said: Path) -> str:
    """What is left to find a fault by: the files of a run, its log, and what its processes told."""
    files = [f"{path.stat().st_size:9} {path.relative_to(run)}" for path in sorted(run.rglob("*"))]
    told = [path.read_text(errors="replace") for path in (run / "log.txt", said) if path.is_file()]
    return "\n".join([*files, *told])


def at_once(commands: Sequence[Sequence[str]], place: Path) -> list[tuple[int, str]]:
    """Exit status and what was told of command lines that begin at the same moment.

    Args:
        place: a folder for what they tell.
    """
    begun: list[tuple[int, Path]] = []
    for number, arguments in enumerate(commands):
        said = place / f"said-{number}"
        said.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            os._exit(in_a_process(partial(_command, arguments), said) & 0xFF)
        begun.append((child, said))
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in begun]
    return [(status, said.read_text()) for status, (_, said) in zip(ended, begun, strict=True)]


def _command(arguments: Sequence[str]) -> None:
    sys.argv = ["nablaflow", *arguments]
    main()
