"""The one list of named configurations, which laboratory and comparison share."""

from __future__ import annotations

from typing import ClassVar

import pytest

from nablaflow.comparison import BYSTANDERS, ENTRANTS
from nablaflow.comparison.entrants import check_entrant, entrant_method, entrant_settings
from nablaflow.errors import UserError
from nablaflow.estimators import Terminal
from nablaflow.exact import CONTENDERS
from nablaflow.exact.contenders import contender
from nablaflow.methods import METHODS, UNTRAINED, Draft, RewardWeightedRegression
from nablaflow.methods.matching import Matching
from nablaflow.methods.variants import UNTRAINED_VARIANTS, VARIANTS


def test_a_name_is_one_object_in_the_laboratory_and_the_comparison() -> None:
    shared = ENTRANTS.keys() & CONTENDERS.keys()
    assert len(shared) > 8
    for name in shared:
        assert ENTRANTS[name].method(2.5) == CONTENDERS[name].method(2.5), name


def test_two_names_are_two_objects() -> None:
    made = [make(2.0) for make in VARIANTS.values()]
    assert all(made.count(method) == 1 for method in made)


def test_every_name_is_used_and_every_method_has_one() -> None:
    used = ENTRANTS.keys() | BYSTANDERS.keys() | CONTENDERS.keys()
    assert used == VARIANTS.keys() | UNTRAINED_VARIANTS.keys()
    assert {make(1.0).name for make in VARIANTS.values()} == METHODS.keys() - {"value-matching"}
    assert {make(1.0).name for make in UNTRAINED_VARIANTS.values()} == UNTRAINED.keys()


@pytest.mark.parametrize("name", ["draft", "draft-lv", "alignprop"])
def test_only_the_tilted_form_has_the_term_that_makes_the_tilt_its_optimum(name: str) -> None:
    plain, tilted = VARIANTS[name](2.0), VARIANTS[f"{name}-tilted"](2.0)
    assert (plain.model_dump()["kl_weight"], tilted.model_dump()["kl_weight"]) == (0.0, 1.0)


def test_plain_names_are_as_published() -> None:
    """DRaFT-K and DRaFT-LV of arXiv 2309.17400; reward weights alone in arXiv 2302.12192."""
    assert VARIANTS["draft-1"](2.0) == Draft(beta=2.0, k=1)
    assert VARIANTS["reward-weighted-regression"](2.0) == RewardWeightedRegression(
        beta=2.0, weights="reward"
    )


class _New(Matching):
    name: ClassVar[str] = "new"

    def value_estimator(self) -> Terminal:
        return Terminal()


def test_a_new_method_of_the_list_runs_everywhere_before_it_has_a_line_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As CONTRIBUTING.md promises: one file and one line, and every command knows it by name."""
    monkeypatch.setitem(METHODS, "new", _New)
    assert contender("new").method(2.0) == _New(beta=2.0)
    check_entrant("new")
    assert entrant_method("new") == _New(beta=1.0)
    given = entrant_settings("new", 2.0, None)["method"]
    assert given == {"name": "new", "beta": 2.0}


def test_what_has_no_defaults_is_not_taken_by_name() -> None:
    for refuse in (contender, check_entrant):
        with pytest.raises(UserError, match="no method 'value-matching' here"):
            refuse("value-matching")
