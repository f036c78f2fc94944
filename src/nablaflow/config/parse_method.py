"""From a name, or a mapping with ``name`` and settings, to a method, or to one line."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from nablaflow.config.named_method import FindMethod, find_none, method_settings, registered_methods
from nablaflow.config.suggestions import suggest
from nablaflow.config.values import refusal
from nablaflow.errors import UserError, nearest, show
from nablaflow.methods import Method
from nablaflow.rewards.custom import is_custom
from nablaflow.settings import Kinds, explain, named_kinds

Group = TypeVar("Group", bound=BaseModel)

RENAMED = {"tilted-matching": "path-weighted-matching"}
"""Methods by the name that older recipes have; Tilt Matching (arXiv 2512.21829) is another."""


def _by_present_name(value: Any) -> Any:
    """The same choice of a method by the name that it has now, which is said."""
    name = value.get("name") if isinstance(value, Mapping) else value
    if not isinstance(name, str) or name not in RENAMED:
        return value
    print(f"method.name: {name} is called {RENAMED[name]} now", file=sys.stderr)
    return {**value, "name": RENAMED[name]} if isinstance(value, Mapping) else RENAMED[name]


def parse_method(value: Any, find: FindMethod = find_none) -> Method:
    """A method from its name, from a mapping with ``name`` and settings, or itself.

    Args:
        find: finds the class of a user's own.

    Raises:
        UserError: unknown name, unknown setting, a setting of another method, a wrong value.
    """
    if isinstance(value, Method):
        method_settings(value)
        return value
    value = _by_present_name(value)
    _check_is_method(value)
    kind, settings = _chosen(_kinds_for(value, find), value, "method")
    for name, field in kind.model_fields.items():
        kinds, inner = named_kinds(kind, name), settings.get(name)
        asked = name in settings or field.is_required()
        if kinds and asked and not isinstance(inner, BaseModel):
            chosen, given = _chosen(kinds, inner, f"method.{name}")
            settings[name] = {"name": chosen.model_fields["name"].default, **given}
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise refusal(explain(error, kind, ("method",), suggest)) from None


def _check_is_method(value: Any) -> None:
    """Say of an object that is no method what it is."""
    if isinstance(value, type):
        raise UserError(f"method: {value.__name__} is a class; make one, {value.__name__}(beta=…)")
    if isinstance(value, BaseModel):
        raise UserError(f"method: {type(value).__name__} trains nothing; give a method to train by")


def _kinds_for(value: Any, find: FindMethod) -> Mapping[str, type[Method]]:
    """The methods of the list, and the user's own if one is asked for."""
    name = value.get("name") if isinstance(value, Mapping) else value
    if isinstance(name, str) and is_custom(name):
        return {**registered_methods(), name: find(name)}
    return registered_methods()


def _chosen(
    kinds: Mapping[str, type[Group]], value: Any, place: str
) -> tuple[type[Group], dict[str, Any]]:
    """The class and the settings that a name, or a mapping with ``name``, asks for at ``place``.

    Raises:
        UserError: unknown name, unknown setting, a setting of another of the ``kinds``.
    """
    settings = {"name": value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        raise UserError(f"{place}.name: missing; {nearest('', kinds)}")
    name = settings["name"]
    if name not in kinds:
        what = place.rpartition(".")[2]
        raise refusal(f"{place}.name: no {what} {show(name)}; {nearest(name, kinds)}")
    given = {key: inner for key, inner in settings.items() if key != "name"}
    for key in given:
        if key not in kinds[name].model_fields:
            raise refusal(_not_a_setting(kinds, name, str(key), place))
    return kinds[name], given


def _not_a_setting(kinds: Kinds, name: str, key: str, place: str) -> str:
    owners = [other for other, kind in kinds.items() if key in kind.model_fields]
    own = [field for field in kinds[name].model_fields if field != "name"]
    if not owners:
        return f"{place}.{key}: unknown key for {name}; {nearest(key, own)}"
    remedy = f"leave it out or set {place}.name={owners[0]}"
    return f"{place}.{key}: a setting of {', '.join(owners)}, not of {name}; {remedy}"
