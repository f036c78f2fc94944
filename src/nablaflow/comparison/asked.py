"""What a comparison is asked for: methods to train, or runs that exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nablaflow.comparison.finished import compare_runs
from nablaflow.comparison.outcome import Outcome
from nablaflow.comparison.race import race
from nablaflow.comparison.study import ComparisonStudy
from nablaflow.errors import UserError
from nablaflow.progress import show
from nablaflow.storage.study import check_writable


def compare_asked(
    runs: Sequence[Path],
    methods: Sequence[str],
    rewards: Sequence[str],
    out: Path,
    *,
    training: Mapping[str, Any],
    n: int | None = None,
    held_out: str | None = None,
    metrics: Sequence[str] = (),
    settings: Sequence[str] = (),
    overwrite: bool = False,
    trusted: bool = False,
) -> list[Outcome]:
    """An outcome for each reward; of the runs, or without any of the methods.

    Args:
        out: folder for the methods' runs, and for what is measured once.
        training: of the methods: seeds, minutes, beta and calibrate, where they are given.
        settings: ``reward=…``, in place of the runs' own; ``model_lora=…``, where theirs is now.

    Raises:
        UserError: runs and methods, or as `ComparisonStudy.named`, `race` and `compare_runs` say.
    """
    with show() as progress:
        if not runs:
            own = {**training, "metrics": tuple(metrics)} | ({} if n is None else {"n": n})
            study = ComparisonStudy.named(methods, rewards, out, held_out=held_out, **own)
            check_writable(out)
            return race(study, progress, overwrite=overwrite)
        if overwrite:
            raise UserError("--overwrite: it is for methods, and runs are trained; leave it out")
        if methods or rewards or training:
            raise UserError(
                "compare: runs have their methods, rewards, seeds, minutes, beta and strength "
                "already; give runs or --method, not both"
            )
        own = {"n": n, "held_out": held_out, "metrics": metrics or None, "settings": settings}
        return [compare_runs(runs, out, progress, trusted=trusted, **own)]
