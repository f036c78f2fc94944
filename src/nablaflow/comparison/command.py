"""What `nablaflow compare` does: of methods or of runs, to a table, pictures and a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from nablaflow.comparison.finished import compare_runs
from nablaflow.comparison.outcome import Outcome
from nablaflow.comparison.race import race
from nablaflow.comparison.study import Study, slug
from nablaflow.errors import UserError
from nablaflow.report.comparison_plot import comparison_figure
from nablaflow.report.comparison_table import comparison_markdown, comparison_table
from nablaflow.runs import progress_display
from nablaflow.training.run_folder import write_whole


def compare_command(
    runs: Sequence[Path],
    methods: str | None,
    rewards: Sequence[str],
    settings: dict[str, Any],
    *,
    n: int | None,
    held_out: str | None,
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Carry out a comparison, print it, and write it to the folder.

    Args:
        methods: names with commas between them.
        settings: of `Study`, for methods only.

    Raises:
        UserError: runs and methods were given together, or a mistake in either.
    """
    if runs and (methods or rewards or settings or overwrite):
        raise UserError(
            "compare: runs have their methods, rewards, seeds, minutes and beta already; give runs "
            "or --methods, not both"
        )
    with progress_display(Console(stderr=True)) as progress:
        if runs:
            outcomes = [compare_runs(runs, out, progress, n=n, held_out=held_out)]
        else:
            names = [name.strip() for name in (methods or "").split(",") if name.strip()]
            own = settings if n is None else {**settings, "n": n}
            study = Study.named(names, rewards, out, held_out=held_out, **own)
            outcomes = race(study, progress, overwrite=overwrite)
    pictures = [write_outcome(out, outcome) for outcome in outcomes]
    rows = [row for outcome in outcomes for row in outcome.rows()]
    if as_json:
        print(json.dumps({"rows": rows}))
        return
    for outcome, picture in zip(outcomes, pictures, strict=True):
        title = f"{outcome.reward}, beta {outcome.beta:g}"
        Console().print(comparison_table(title, outcome.rows()))
        print(picture)


def write_outcome(out: Path, outcome: Outcome) -> Path:
    """Write ``<reward>.json``, ``.md`` and ``.png``; returns the picture's path."""
    out.mkdir(parents=True, exist_ok=True)
    stem = slug(outcome.reward)
    data = outcome.as_data()
    write_whole(out / f"{stem}.json", json.dumps(data, indent=1, allow_nan=False) + "\n")
    write_whole(out / f"{stem}.md", comparison_markdown(outcome.rows()))
    picture = out / f"{stem}.png"
    comparison_figure(data).savefig(picture)
    return picture
