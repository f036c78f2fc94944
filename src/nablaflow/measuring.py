"""A run measured again: its own figures, and the protocol's for each of its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from nablaflow.errors import UserError
from nablaflow.report import protocol_curves
from nablaflow.runs import progress_display, starter
from nablaflow.training.checkpoint import guards_best, list_checkpoints
from nablaflow.training.overrides import load_config
from nablaflow.training.protocol import Plan, carry_out
from nablaflow.training.run_folder import CONFIG
from nablaflow.training.setup import fresh_accelerator, prepare

CURVES = "evaluation.png"


def evaluate_run(
    folder: Path,
    n: int | None,
    *,
    features: str = "pixels",
    metrics: Sequence[str] | None = None,
    only_last: bool = False,
    prompts: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure a run's checkpoints again; writes nothing.

    Args:
        n: images of each model; None: as many as the run's own evaluation.
        features: what images are compared by, see `nablaflow.training.spaces`.
        metrics: names of `nablaflow.metrics.METRICS`; None: the default ones that ``n`` is enough
            for.
        only_last: leave the checkpoints before the last out, the guard's best among them.
        prompts: in place of the run's own. The exact tilt, which is of these, is then left out.

    Returns:
        What ``summary.json`` has of figures, and the protocol's under ``protocol``.

    Raises:
        UserError: the folder holds no run, or no checkpoint yet; or as `Plan.of` says.
    """
    overrides = [] if n is None else [f"evaluation.n={n}"]
    if prompts is not None:
        overrides += [
            f"evaluation.prompts={prompts}",
            "evaluation.hold_out=0.0",
            "evaluation.bank=0",
        ]
    config = load_config(folder / CONFIG, overrides, {"output_dir": str(folder)})
    found = list_checkpoints(folder)
    if not found:
        raise UserError(f"{folder} has no checkpoint yet; train it first")
    with fresh_accelerator():
        parts = prepare(config, folder)
        n = config.evaluation.n
        plan = Plan.of(metrics, features, n, len(parts.evaluated), parts.model.device)
        with progress_display(console or Console(stderr=True)) as progress:
            kept = found[-1:] if only_last else found
            best = None if only_last else guards_best(folder, found[-1])
            evaluation, protocol = carry_out(parts, plan, kept, starter(progress), best)
    return {**evaluation.summary, "protocol": protocol.as_dict()}


def write_curves(protocol: dict[str, Any], folder: Path) -> Path:
    """Draw the protocol's figures over training into a folder.

    Raises:
        UserError: it cannot be written.
    """
    path = folder / CURVES
    try:
        folder.mkdir(parents=True, exist_ok=True)
        protocol_curves(protocol).savefig(path, metadata={"Software": None})
    except OSError as error:
        raise UserError(f"--out: cannot write {path} ({error.strerror})") from error
    return path
