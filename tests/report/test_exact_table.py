"""The table of a study: medians and ranges that can be told by hand."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from nablaflow.report.exact_table import exact_table, notes, over_floor, significant, spread
from nablaflow.report.table import MISSING

ROW: dict[str, Any] = {
    "problem": "ring",
    "method": "terminal",
    "seed": 0,
    "n": 8000,
    "energy_distance": 0.004,
    "floor": 0.0005,
    "sliced_wasserstein": 0.3,
    "sliced_wasserstein_floor": 0.04,
    "mode_weight_error": 0.0625,
    "reward_mean": 1.25,
    "target_reward_mean": 1.291,
    "log_det": -2.5,
    "target_log_det": -2.98,
    "network_evaluations": 12_340_000,
    "seconds": 41.3,
}


def row(**changes: Any) -> dict[str, Any]:
    return {**ROW, **changes}


def printed(rows: list[dict[str, Any]], width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(exact_table(rows))
    return console.export_text()


def figures(text: str, label: str) -> list[str]:
    """The figures of the one line that begins with ``label``."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(label)]
    return line.strip().removeprefix(label).split()


def test_every_figure_stands_beside_what_exact_samples_have() -> None:
    text = printed([ROW])
    exact = ["0.000500", "1.00", "0.0400", MISSING, "1.291", "-2.98", MISSING, MISSING]
    found = ["0.00400", "8.00", "0.300", "0.062", "1.250", "-2.50", "12.3", "41"]
    assert figures(text, "ring: exact") == exact
    assert figures(text, "terminal") == found
    assert "least" not in text


def test_random_problems_have_a_median_and_a_worst_of_what_can_be_compared() -> None:
    """A distance or a reward of one problem says nothing beside another's."""
    rows = [
        row(problem=f"random-{number}", energy_distance=distance, seconds=seconds)
        for number, (distance, seconds) in enumerate([(0.001, 9.0), (0.01, 30.0), (0.002, 50.0)])
    ]
    lines = [line.split() for line in printed([ROW, *rows]).splitlines()]
    family = lines.index(["3", "random"])
    dash = MISSING
    assert lines[family + 1][1:] == [dash, "4.00", dash, "0.062", dash, dash, "12.3", "30"]
    assert lines[family + 2][1:] == [dash, "20.0", dash, "0.062", dash, dash, "12.3", "50"]
    assert "random" not in printed([ROW, ROW])
    assert "1 random" not in printed(rows[:1])


def test_seeds_are_a_median_and_a_range() -> None:
    rows = [row(seed=s, energy_distance=e) for s, e in enumerate((0.001, 0.006, 0.002))]
    text = printed(rows)
    assert figures(text, "terminal")[:2] == ["0.00200", "4.00"]
    assert figures(text, "least")[:2] == ["0.00100", "2.00"]
    assert figures(text, "most")[:2] == ["0.00600", "12.0"]
    assert "Medians over 3 seeds" in text


def test_the_multiple_is_of_each_seeds_own_floor() -> None:
    rows = [row(seed=s, energy_distance=e, floor=f) for s, e, f in ((0, 1.0, 1.0), (1, 4.0, 2.0))]
    text = printed(rows)
    assert figures(text, "terminal")[1] == "1.50"
    assert [figures(text, label)[1] for label in ("least", "most")] == ["1.00", "2.00"]


def test_what_is_not_finite_is_a_dash_and_takes_its_seeds_along() -> None:
    rows = [row(), row(seed=1, energy_distance=None)]
    assert figures(printed(rows), "terminal")[:3] == [MISSING, MISSING, "0.300"]
    assert spread([1.0, None]) is None
    assert spread([]) is None
    assert over_floor(rows[1]) is None


def test_problems_and_methods_keep_their_order() -> None:
    rows = [row(problem=p, method=m) for p in ("unequal", "bumps") for m in ("terminal", "adjoint")]
    starts = [line.split()[0] for line in printed(rows).splitlines() if line.strip()]
    assert starts[3:9] == ["unequal:", "terminal", "adjoint", "bumps:", "terminal", "adjoint"]


@pytest.mark.parametrize("width", [80, 100])
def test_nothing_is_cut_with_long_names_and_long_figures(width: int) -> None:
    long = row(
        problem="32-dimensional",
        method="residual-nabla-db-published",
        energy_distance=0.000512,
        reward_mean=-1.234,
        log_det=-38.12,
        network_evaluations=1_234_567_890,
        seconds=86_399.0,
    )
    text = printed([long, {**long, "seed": 1}], width)
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    joined = "".join(line.split()[0] for line in text.splitlines() if "nabla-db" in line)
    assert joined + "-published" == "residual-nabla-db-published"
    for figure in ("0.000512", "-1.234", "-38.12", "1,235", "86399"):
        assert figure in " ".join(text.replace("8.6e+04", "86399").split())


def test_the_conventions_are_said() -> None:
    told = " ".join(notes([ROW]))
    assert "two exact samples of 8,000 points" in told
    assert "one forward or one backward pass of one state" in told
    assert "Medians" not in told


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.012345, "0.0123"), (1.0, "1.00"), (123.4, "123"), (12345.6, "12,346"), (2.5e7, "2.50e+07")],
)
def test_three_digits(value: float, text: str) -> None:
    assert significant(value) == text
