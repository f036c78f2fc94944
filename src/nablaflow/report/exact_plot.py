"""Pictures of a study of exact problems: where the samples lie, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nablaflow.exact.catalog import named_problem
from nablaflow.report.exact_costs import pareto_figure
from nablaflow.report.exact_look import PAPER, method_colours
from nablaflow.report.exact_samples import SamplesOf, samples_figure
from nablaflow.report.exact_table import Row, groups
from nablaflow.report.figures import save_figure


def write_plots(out: Path, rows: Sequence[Row], samples: SamplesOf) -> list[Path]:
    """``<problem>.png`` of each problem, and ``pareto.png``.

    Args:
        out: folder; it exists.
        samples: of a row's policy, (n, dim).

    Returns:
        Their paths.
    """
    colours = method_colours(rows)
    figures = {
        f"{name}.png": samples_figure(named_problem(name), methods, samples, colours)
        for name, methods in groups(rows).items()
    }
    figures["pareto.png"] = pareto_figure(rows)
    for name, figure in figures.items():
        save_figure(figure, out / name, facecolor=PAPER, metadata={"Software": None})
    return [out / name for name in figures]
