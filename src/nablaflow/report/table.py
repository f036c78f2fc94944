"""The headline figures as a table: one list of rows, shown in a terminal or in HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from nablaflow.evaluation.budgets import Trip
from nablaflow.metrics.catalog import METRICS
from nablaflow.metrics.tilt import MIN_EFFECTIVE_SAMPLE_SIZE
from nablaflow.report.digits import is_told, to_the_error
from nablaflow.report.words import the_way, warnings

MISSING = "\N{EN DASH}"
COLUMNS = {"reference": "reference", "policy": "aligned", "exact_tilt": "exact tilt"}
"""Key in ``summary.json`` to the column's heading."""
_FIGURES = {
    "reward_mean": ("mean reward", "in the reward's own unit"),
    "diversity": ("within-prompt diversity", "mean distance between two images of a prompt"),
    "distance_to_reference": (
        "distance to reference",
        "Fréchet distance; how far the prior has moved",
    ),
    "distance_to_tilt": ("distance to exact tilt", "energy distance; 0 is the goal"),
}


@dataclass(frozen=True)
class SummaryRow:
    """One figure of all three columns, as text.

    Attributes:
        key: of the figure in ``summary.json``.
        label: its name.
        hint: what it says, in a few words.
        cells: one for each of ``COLUMNS``.
    """

    key: str
    label: str
    hint: str
    cells: tuple[str, ...]


def plus_minus(value: float | None, se: float | None) -> str:
    """A figure with its standard error, both to the error's second significant digit.

    >>> plus_minus(0.81234, 0.00417)
    '0.8123 ± 0.0042'
    """
    if value is None:
        return MISSING
    if se is None or not is_told(se, value):
        return f"{value:.4g}"
    return " ± ".join(to_the_error(se, value, se))


def rows(summary: Mapping[str, Any]) -> list[SummaryRow]:
    """The rows of a ``summary.json``; what it lacks is a dash."""
    columns = [summary.get(key) or {} for key in COLUMNS]
    return [
        SummaryRow(
            name, label, hint, tuple(plus_minus(c.get(name), c.get(f"{name}_se")) for c in columns)
        )
        for name, (label, hint) in _labels(columns).items()
    ]


def _labels(columns: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Label and hint of each figure: those of every run, then the metrics that were asked for."""
    further = {
        name: (metric.label, "see docs/metrics.md")
        for name, metric in METRICS.items()
        if any(name in column for column in columns)
    }
    return {**_FIGURES, **{name: label for name, label in further.items() if name not in _FIGURES}}


def notes(summary: Mapping[str, Any]) -> list[str]:
    """The sentences that go below the table."""
    return [
        note
        for note in (
            _closing(summary),
            _calibrated(summary),
            _fit(summary),
            _guard(summary),
            no_tilt(summary),
            _basis(summary),
        )
        if note
    ]


def rich_table(summary: Mapping[str, Any]) -> Group:
    """For a terminal: ``Console().print(rich_table(summary))``."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="")
    table.add_column("", no_wrap=True)
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows(summary):
        table.add_row(row.label, *row.cells)
    return Group(table, *(Text(f"\n{note}") for note in notes(summary)))


def html_table(summary: Mapping[str, Any]) -> str:
    """The same as a ``<table>`` and a paragraph for each note."""
    headings = "".join(
        f'<th scope="col" class="{key}">{heading}</th>' for key, heading in COLUMNS.items()
    )
    body = "".join(_html_row(row) for row in rows(summary))
    below = "".join(f'<p class="note">{escape(note)}</p>' for note in notes(summary))
    return (
        f'<div class="scroll"><table><thead><tr><td></td>{headings}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{below}"
    )


def _html_row(row: SummaryRow) -> str:
    cells = "".join(
        f'<td class="{key}">{cell}</td>' for key, cell in zip(COLUMNS, row.cells, strict=True)
    )
    label = f'<a href="#{row.key}">{row.label}</a>'
    return f'<tr><th scope="row">{label}<small>{row.hint}</small></th>{cells}</tr>'


def _closing(summary: Mapping[str, Any]) -> str | None:
    closing = summary.get("closing")
    if closing is None:
        return None
    return the_way(closing, summary.get("closing_se") or 0.0)


def _calibrated(summary: Mapping[str, Any]) -> str | None:
    """What ``training.calibrate`` made of the policy, where that was anything."""
    strength = _strength(summary)
    if strength == 1.0:
        return None
    found, more = summary["calibrated"], "more" if strength < 1.0 else "less"
    return (
        f"Calibrated after update {found['update']}: what was trained had {more} reward than the "
        f"run's exact tilt, and the aligned model is it at strength {found['strength']:.3g}."
    )


def _strength(summary: Mapping[str, Any]) -> float:
    """Of what was trained; 1 without a calibration."""
    found = summary.get("calibrated")
    return 1.0 if found is None else found["strength"]


def _fit(summary: Mapping[str, Any]) -> str | None:
    """How much of its own target the policy follows."""
    fit = summary.get("fit")
    if fit is None:
        return None
    asked = plus_minus(fit["asked"], fit["asked_se"])
    left = plus_minus(fit["unfollowed"], fit["unfollowed_se"])
    changed = ", what calibration changed among them" if _strength(summary) != 1.0 else ""
    return (
        f"The method asks for {asked} nats along the policy's own trajectories, of which {left} "
        f"are not followed{changed} ({fit['trajectories']} trajectories)."
    )


def _guard(summary: Mapping[str, Any]) -> str | None:
    """What the guard did, and the best policy under it."""
    guard = summary.get("guard")
    if guard is None:
        return None
    best = f"best under it: update {guard['best_update']}, {guard['best_checkpoint']}"
    best += ", as it was trained" if _strength(summary) != 1.0 else ""
    trip = guard["tripped"]
    if guard["action"] == "warn":
        said = list(warnings(guard["last"], guard["budgets"]).values())
        if said:
            return f"The guard warns: {'; '.join(said)}; {best}."
    if trip is None or guard["action"] == "warn":
        return f"The guard stayed within its budgets; {best}."
    rolled = guard["action"] == "roll-back"
    what = "rolled the run back" if rolled else "stopped the run"
    return f"The guard {what} after update {trip['update']}: {Trip(**trip)}; {best}."


def _basis(summary: Mapping[str, Any]) -> str | None:
    """What the figures were measured on."""
    counts = [
        f"{column['n']:,} images {source}"
        for key, source in (("reference", "of the reference"), ("policy", "of the aligned model"))
        if (column := summary.get(key)) and "n" in column
    ]
    if tilt := summary.get("exact_tilt"):
        counts.append(
            f"{tilt['n']:,} reweighted images of the reference for the exact tilt, "
            f"which count for {tilt['effective_sample_size']:,.0f} in each prompt or more"
        )
    return f"One standard error beside each figure; from {', '.join(counts)}." if counts else None


def no_tilt(summary: Mapping[str, Any]) -> str | None:
    """Why there are no figures of the exact tilt, and what would measure them; None: there are."""
    if summary.get("exact_tilt"):
        return None
    size, enough = summary.get("effective_sample_size"), summary.get("bank_for_tilt")
    remedy = "" if enough is None else f"; {_measured_by(enough)}"
    if size is None:
        return f"No figures of the exact tilt: evaluation.bank is 0{remedy}." if enough else None
    if size >= MIN_EFFECTIVE_SAMPLE_SIZE:
        return None
    return (
        f"No figures of the exact tilt: at this beta the reference samples count for only "
        f"{size:.0f} effective ones in some prompt, and {MIN_EFFECTIVE_SAMPLE_SIZE} are "
        f"needed{remedy}."
    )


def _measured_by(bank: int) -> str:
    return (
        f"train it again with --resume evaluation.bank={bank} (in Python resume=True, "
        f"evaluation={{'bank': {bank}}}): by the rewards seen here, so many images of the "
        "reference are enough"
    )
