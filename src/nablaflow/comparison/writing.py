"""A finished comparison in files: the figures, the table, the pictures."""

from __future__ import annotations

import json
from pathlib import Path

from nablaflow.comparison.outcome import Outcome
from nablaflow.report.comparison_plot import comparison_figure
from nablaflow.report.comparison_table import comparison_markdown
from nablaflow.report.figures import save_figure
from nablaflow.storage.files import write_whole
from nablaflow.storage.study import slug


def write_outcome(out: Path, outcome: Outcome) -> Path:
    """Write ``<reward>.json``, ``.md`` and ``.png``; returns the picture's path."""
    out.mkdir(parents=True, exist_ok=True)
    stem, data = slug(outcome.reward), outcome.as_data()
    write_whole(out / f"{stem}.json", json.dumps(data, indent=1, allow_nan=False) + "\n")
    write_whole(out / f"{stem}.md", comparison_markdown(outcome.rows()))
    picture = out / f"{stem}.png"
    save_figure(comparison_figure(data), picture)
    return picture
