"""Groups of settings as Python has them: their help, and mistakes in their constructors."""

from __future__ import annotations

import inspect

import pytest
from pydantic import Field

from nablaflow.config.settings import GuardSettings
from nablaflow.errors import UserError
from nablaflow.methods import METHODS, ResidualNablaDB
from nablaflow.settings import Settings


class Inner(Settings):
    """A part."""

    size: int = Field(ge=1, description="how large, in cubits")


class Outer(Settings):
    """A whole.

    With a second paragraph.
    """

    part: Inner | None = Field(default=None, description="what is inside")
    colour: str = Field(default="blue", description="of the outside")


def test_help_ends_with_the_settings():
    assert inspect.getdoc(Outer) == (
        "A whole.\n\nWith a second paragraph.\n\nSettings:\n"
        "    part: what is inside (default: None)\n"
        "    colour: of the outside (default: 'blue')"
    )
    assert "size: how large, in cubits (required)" in str(inspect.getdoc(Inner))


@pytest.mark.parametrize("kind", METHODS.values())
def test_every_setting_of_every_method_is_in_its_help(kind: type[Settings]):
    shown = " ".join(str(inspect.getdoc(kind)).split())
    assert shown.count("Settings:") == 1
    for name, field in kind.model_fields.items():
        assert f"{name}: {' '.join(str(field.description).split())}" in shown


def test_a_group_that_inherits_lists_each_setting_once():
    class Wider(Outer):
        """More."""

        height: float = Field(default=1.0, description="upwards")

    shown = str(inspect.getdoc(Wider))
    assert shown.startswith("More.")
    assert shown.count("colour:") == 1
    assert "height: upwards" in shown


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Outer(color="red"), r"Outer\.color: unknown key; did you mean colour\?"),
        (lambda: Outer(colour=3), r"Outer\.colour: must be a valid string, not 3"),
        (lambda: Outer(part={"size": 0}), r"Outer\.part\.size: must be greater than .* 1, not 0"),
        (lambda: Inner(), r"Inner\.size: missing; set Inner\.size=… \(how large, in cubits\)"),
        (lambda: ResidualNablaDB(betta=1), r"ResidualNablaDB\.betta: .* did you mean beta\?"),
        (
            lambda: GuardSettings(action="roll-back"),
            r"GuardSettings: nothing can cause the roll-back .*",
        ),
    ],
)
def test_a_mistake_in_a_constructor_is_one_line(make, line: str):
    with pytest.raises(UserError, match=f"^{line}$"):
        make()


def test_a_group_inside_a_group_is_checked_as_one():
    """Pydantic makes the inner one: the line has the whole place, as above."""
    assert Outer.model_validate({"part": {"size": 2}}).part == Inner(size=2)
    assert inspect.signature(Inner).parameters["size"].default is inspect.Parameter.empty
