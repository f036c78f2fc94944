"""The table of headline figures."""

import io
import re
from html import unescape

import pytest
from rich.console import Console

from nablaflow.report.table import MISSING, html_table, no_tilt, notes, plus_minus, rich_table, rows


def _printed(summary) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rich_table(summary))
    return console.export_text()


@pytest.mark.parametrize(
    ("value", "se", "text"),
    [
        (0.81234, 0.00417, "0.8123 ± 0.0042"),
        (-0.0012, 0.003, "-0.0012 ± 0.0030"),
        (1234.6, 56.2, "1235 ± 56"),
        (12345.0, 678.0, "12345 ± 678"),
        (0.5, 0.0, "0.5"),
        (0.123456, None, "0.1235"),
        (0.5, float("nan"), "0.5"),
        (None, None, MISSING),
        (0.3, 4.5e-18, "0.3"),  # rounding, and no error
        (-7.53e-14, 2.1e-14, "-7.5e-14 ± 2.1e-14"),
        (0.0, 2.1e-6, "0.0e+00 ± 2.1e-06"),
        (2.345e-5, 4.2e-7, "2.345e-05 ± 4.2e-07"),
        (0.81234567, 4.2e-6, "0.8123457 ± 0.0000042"),
    ],
)
def test_a_figure_is_shown_to_its_errors_second_digit(value, se, text):
    assert plus_minus(value, se) == text


def test_rows_hold_every_figure_of_every_column(summary):
    table = rows(summary)
    assert [row.label for row in table] == [
        "mean reward",
        "within-prompt diversity",
        "distance to reference",
        "distance to exact tilt",
    ]
    assert table[0].cells == ("0.2500 ± 0.0042", "0.6250 ± 0.0042", "0.7500 ± 0.0042")
    assert table[3].cells == ("0.0625 ± 0.0020",) * 3


def test_what_is_missing_is_a_dash():
    assert all(row.cells == (MISSING,) * 3 for row in rows({}))
    assert notes({}) == []


def test_an_untrusted_tilt_is_a_dash_and_says_why(untrusted):
    assert [row.cells[2] for row in rows(untrusted)] == [MISSING] * 4
    assert rows(untrusted)[3].cells == (MISSING,) * 3
    assert "57 effective" in notes(untrusted)[0]
    assert "200 are needed" in notes(untrusted)[0]
    assert not any("closes" in note for note in notes(untrusted))


def test_a_tilt_that_was_not_measured_says_how_it_would_be(summary, untrusted):
    without = {"exact_tilt": None, "closing": None, "bank_for_tilt": 2400}
    small = no_tilt(untrusted | without)
    none = no_tilt(summary | without | {"effective_sample_size": None})
    assert small is not None
    assert none is not None
    assert "57 effective" in small
    assert "evaluation.bank is 0" in none
    for told in (small, none):
        assert "--resume evaluation.bank=2400 (in Python resume=True, " in told
    assert small in notes(untrusted | without)
    assert no_tilt(summary | {"bank_for_tilt": 2400}) is None


def test_the_way_closed_is_said_and_overshoot_is_called_that(summary):
    assert "closes 75% of the way" in notes(summary)[0]
    assert "past it" not in notes(summary)[0]
    past = notes(summary | {"closing": 1.1})[0]
    assert "closes 110% of the way" in past
    assert "more reward than beta asks for" in past


def test_far_past_the_tilt_is_said_in_words(summary):
    far = notes(summary | {"closing": 3.39})[0]
    assert far.startswith("The aligned model has passed the exact tilt: its mean reward is 339%")
    assert "at the cost of diversity and prior" in far
    unsure = notes(summary | {"closing": 1.5, "closing_se": 0.4})[0]
    assert "closes 150% of the way" in unsure
    assert unsure.endswith("tilt's (± 40%).")


def test_a_calibration_is_said_where_it_changed_something(summary):
    told = notes(summary | {"calibrated": {"update": 60, "strength": 0.8436}})
    assert "Calibrated after update 60" in told[1]
    assert "at strength 0.844." in told[1]
    assert notes(summary | {"calibrated": {"update": 60, "strength": 1.0}}) == notes(summary)


def test_what_calibration_changed_is_no_fault_of_the_fit(summary):
    fit = {"asked": 5.0, "asked_se": 0.1, "unfollowed": 0.5, "unfollowed_se": 0.1}
    own = summary | {"fit": fit | {"trajectories": 32}}
    said = "are not followed, what calibration changed among them (32 trajectories)."
    for strength, told in ((0.8, True), (1.6, True), (1.0, False)):
        found = own | {"calibrated": {"update": 60, "strength": strength}}
        assert (said in " ".join(notes(found))) is told


WITHIN = {"update": 9, "kl": 2.0, "diversity": 0.98, "reward": 0.5, "held_out": 0.3}
BUDGETS = {"kl": 10.0, "diversity": 0.6, "held_out": 0.1}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, "The guard stayed within its budgets"),
        ({"diversity": 0.45}, "diversity fell to 45 % of the reference's: this run has collapsed"),
        ({"diversity": 0.55}, "diversity fell to 55 % of the reference's: this run is narrowing"),
        ({"kl": 57.0}, "the paths are 57 nats from the reference's, more than 10"),
        ({"held_out": -0.2}, "the held-out reward drifted to -0.2, below 0.1"),
        ({"kl": float("nan")}, "the paths are nan nats"),
    ],
)
def test_a_guard_that_warns_does_so_in_words(summary, found, said):
    guard = {
        "best_update": 0,
        "best_checkpoint": "checkpoints/best-000000",
        "last": WITHIN | found,
        "budgets": BUDGETS,
        "action": "warn",
        "tripped": None,
    }
    assert said in notes(summary | {"guard": guard})[1]


def test_terminal_and_html_show_the_same(summary, untrusted):
    for case in (summary, untrusted):
        printed = " ".join(_printed(case).split())
        page = " ".join(unescape(re.sub(r"<[^>]+>", " ", html_table(case))).split())
        for row in rows(case):
            for text in (row.label, *row.cells):
                assert text in printed
                assert text in page
        for note in notes(case):
            assert note in printed
            assert note in page


def test_nothing_is_cut_at_80_columns(summary):
    assert "…" not in _printed(summary)
