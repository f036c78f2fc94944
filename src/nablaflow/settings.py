"""The base of every group of settings, and one line for what pydantic refuses of them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping
from contextlib import suppress
from inspect import isabstract
from numbers import Integral, Real
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from nablaflow.errors import UserError, nearest, one_line, show

Kinds = Mapping[str, type[BaseModel]]
"""Classes by the name that chooses between them."""

Place = tuple[int | str, ...]
Suggest = Callable[[str, type[BaseModel]], str]
"""``(unknown key, its group) -> a hint``."""


class Settings(BaseModel):
    """Base of every group: unknown keys are errors, no silent conversion, values do not change.

    The docstring of a group ends with its settings and their descriptions, so `help` shows them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        """Check the values.

        Raises:
            UserError: one line: the setting, what is wrong, the remedy.
        """
        try:
            super().__init__(**plain(values))
        except ValidationError as error:
            kind = type(self)
            raise UserError(one_line(explain(error, kind, (kind.__name__,)))) from None

    @classmethod
    def model_validate(cls, obj: Any, **how: Any) -> Any:
        """As pydantic's, of what has numpy's numbers too."""
        return super().model_validate(plain(obj), **how)

    # So that pydantic makes a group inside another without it: the error then names both.
    __init__.__pydantic_base_init__ = True  # pyright: ignore[reportFunctionMemberAccess]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.__doc__ = f"{_own_doc(cls)}\n\n{describe(cls)}".strip()


def plain(value: Any) -> Any:
    """As YAML has it: Python's numbers for numpy's and torch's.

    Not by a validator of pydantic's, with which JSON's lists would be no tuples. What YAML has
    nothing for stays as it is, for the check to refuse.
    """
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    if isinstance(value, tuple):  # stays one, as a path does: a method of one's own may have them
        return tuple(plain(part) for part in value)
    return _plain_number(value)


def _plain_number(value: Any) -> Any:
    """A number of another class than Python's own as that; whatever else as it is."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        with suppress(RuntimeError):  # it is on no device
            value = value.item()
    if isinstance(value, Integral) and not isinstance(value, int):
        return int(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, int | float) else value


# --- what there is to set -------------------------------------------------------------------------


def _own_doc(kind: type[BaseModel]) -> str:
    """The docstring that was written, its indentation taken off."""
    first, _, rest = (kind.__dict__.get("__doc__") or "").partition("\n")
    return f"{first}\n{textwrap.dedent(rest)}".strip()


def describe(kind: type[BaseModel]) -> str:
    """Every setting of a group: name, description, default; nothing where there is none."""
    fields = kind.model_fields.items()
    lines = [f"{name}: {_meaning(field)}" for name, field in fields if field.description]
    wrap = textwrap.TextWrapper(96, initial_indent=" " * 4, subsequent_indent=" " * 8)
    return "\n".join(["Settings:", *map(wrap.fill, lines)]) if lines else ""


def _meaning(field: FieldInfo) -> str:
    if field.is_required():
        return f"{field.description} (required)"
    if field.default_factory is not None:
        return str(field.description)
    return f"{field.description} (default: {field.default!r})"


def named_kinds(model: type[BaseModel], name: str) -> Kinds | None:
    """What a field may hold that is one of several groups, as an estimator is; else None."""
    field = model.model_fields.get(name)
    if field is None or field.discriminator != "name":
        return None
    return {kind.model_fields["name"].default: kind for kind in get_args(field.annotation)}


def group_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The class of a field that is a group of settings (or null), else None.

    An abstract class, as a method's is, stands for several of them.
    """
    field = model.model_fields.get(name)
    if field is None or field.discriminator is not None:
        return None
    kinds = (field.annotation, *get_args(field.annotation))
    groups = (k for k in kinds if isinstance(k, type) and issubclass(k, Settings))
    return next((k for k in groups if not isabstract(k)), None)


# --- what is wrong --------------------------------------------------------------------------------


def nearest_key(word: str, group: type[BaseModel]) -> str:
    """A hint at the setting of the group that an unknown key may have meant."""
    return nearest(word, group.model_fields)


def explain(
    error: ValidationError,
    model: type[BaseModel],
    prefix: tuple[str, ...],
    suggest: Suggest = nearest_key,
) -> str:
    """One line for the most telling of pydantic's errors: a misspelt key before what it left out.

    Args:
        model: the class that was validated; ``prefix`` is where it stands in the configuration.
        suggest: finds a hint for an unknown key.
    """
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    place, owner = _place(first["loc"], model)
    key = dotted((*prefix, *place))
    last = str(place[-1]) if place else ""
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key; {suggest(last, owner)}"
    field = owner.model_fields.get(last)
    problem = _problem(first, key, field.description if field else None)
    names_it = not key or problem.startswith(f"{key}.")  # which of the group's it is
    return problem if names_it else f"{key}: {problem}"


def _problem(error: Any, key: str, description: str | None) -> str:
    """What is wrong and the remedy, in this project's words, for one of pydantic's errors."""
    kind, message, value = error["type"], error["msg"], error["input"]
    if kind == "missing":
        what = f" ({description})" if description else ""
        return f"missing; set {key}=…{what}"
    if kind in ("value_error", "assertion_error"):
        return re.sub(r"^(Value|Assertion) error, ", "", message)
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return f"{show(value)} is not a choice; {nearest(str(value), choices)}"
    if kind in ("model_type", "model_attributes_type"):
        return f"must hold settings of its own, such as {key}.…=…, not {show(value)}"
    if kind == "path_type":
        return f"must be a path, not {show(value)}"
    must = re.sub(r"^Input (should|is not) (be )?", "must be ", message)
    return f"{must}, not {show(value)}"


def _place(loc: Place, model: type[BaseModel]) -> tuple[Place, type[BaseModel]]:
    """``loc`` without the names of union members that pydantic puts into it, and its group."""
    kept: list[int | str] = []
    owner, group, kinds = model, model, None
    for part in loc:
        if kinds is not None:
            group, kinds = kinds[str(part)], None
        elif group is not None:
            kept.append(part)
            owner = group
            group, kinds = group_of(owner, str(part)), named_kinds(owner, str(part))
        elif isinstance(part, int):
            kept.append(part)
    return tuple(kept), owner


def dotted(place: Place) -> str:
    """``("training", "trackers", 0)`` as ``training.trackers[0]``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return "".join(parts).removeprefix(".")
