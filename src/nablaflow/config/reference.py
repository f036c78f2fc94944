"""The settings reference: every setting of a recipe as a page of Markdown, read off the classes.

``docs/generate.py`` writes it, and a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from nablaflow.config.named_method import registered_methods
from nablaflow.config.recipe import Config
from nablaflow.settings import group_of, named_kinds

HEAD = """# Settings

Every setting of a recipe. In a recipe `sampler: {steps: 50}`, on the command line
`sampler.steps=50`, in `nf.align` `sampler={"steps": 50}`. A key that is not on this page is an
error, and the message suggests the nearest one. `make reference` writes this page from the code.

The default is what a setting is where a recipe says nothing; "required" means that a recipe has to
say it. `nf.align` and `nablaflow demo` say some of these themselves (`nablaflow.config.defaults`).
In brackets stand the least and the largest number allowed; `>` and `<` leave out the bound itself.
"""
_METHOD = "The objective. `method.name` is one of the names below; each has settings of its own."
WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}
BOUNDS = {"ge": "from", "gt": ">", "le": "to", "lt": "<"}


def page() -> str:
    """The whole page."""
    groups = [name for name in Config.model_fields if group_of(Config, name) is not None]
    parts = [HEAD, _section("## The recipe", Config, "")]
    for name in groups:
        parts.append(_group(f"## {name}", Config, name, "", 3))
    parts.append(_methods(registered_methods()))
    parts.append(_rewards())
    return "\n".join(parts)


def _group(title: str, owner: type[BaseModel], name: str, prefix: str, level: int) -> str:
    """A group of settings, which is a field of its owner, and the groups inside it."""
    kind, prefix = group_of(owner, name), f"{prefix}{name}."
    assert kind is not None
    parts = [_section(title, kind, prefix)]
    for inner in kind.model_fields:
        if group_of(kind, inner) is not None:
            parts.append(_group(f"{'#' * level} {prefix}{inner}", kind, inner, prefix, level + 1))
    return "\n".join(parts)


def _first_line(kind: type[BaseModel]) -> str:
    """The first line of a class's docstring."""
    return (kind.__doc__ or "").strip().splitlines()[0].replace("``", "`")


def _methods(kinds: Mapping[str, type[BaseModel]]) -> str:
    """Each method with the settings that are its own, the shared one before them."""
    shared = set.intersection(*(set(kind.model_fields) for kind in kinds.values()))
    first = next(iter(kinds.values()))
    parts = [_section("## method", first, "method.", shared, doc=_METHOD)]
    for name, kind in kinds.items():
        own = [field for field in kind.model_fields if field not in shared]
        parts.append(_section(f"### {name}", kind, "method.", own))
        for field in own:
            for chosen, inner in (named_kinds(kind, field) or {}).items():
                fields = [name for name in inner.model_fields if name != "name"]
                title = f"#### method.{field}.name={chosen}"
                parts.append(_section(title, inner, f"method.{field}.", fields))
    return "\n".join(parts)


def _rewards() -> str:
    """Each reward with settings. Imported on use, since rewards bring torch with them."""
    from nablaflow.rewards import CONFIGURABLE

    head = "## reward\n\nA reward by name has settings as `reward: {name: aesthetic, batch: 4}`; "
    head += "[rewards](rewards.md) has those without any, and sums.\n"
    parts = [_section(f"### {name}", kind, "reward.") for name, kind in CONFIGURABLE.items()]
    return "\n".join([head, *parts])


def _section(
    title: str,
    kind: type[BaseModel],
    prefix: str,
    names: Iterable[str] | None = None,
    doc: str | None = None,
) -> str:
    """A heading, the class's own first line, and a table of its fields."""
    lines = [title, "", doc or _first_line(kind), ""]
    chosen = kind.model_fields if names is None else names
    rows = [
        _row(prefix + name, field) for name, field in kind.model_fields.items() if name in chosen
    ]
    if rows:
        lines += ["| setting | type | default | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _row(key: str, field: FieldInfo) -> str:
    assert field.description, f"{key} has no description"
    described = _cell(field.description)
    return f"| `{key}` | {_cell(_type(field))} | {_cell(_default(field))} | {described} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    if isinstance(value, BaseModel):
        return "as below"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _type(field: FieldInfo) -> str:
    """The type in words, with its choices and its bounds."""
    return _in_words(field.annotation) + _bounds(field.metadata)


def _in_words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _in_words(inner[0]) + _bounds(_flat(inner[1:]))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (list, tuple):
        return f"list of {_in_words(inner[0])}"
    if origin is dict or kind is dict:
        return "mapping"
    if origin is Union or type(kind).__name__ == "UnionType":
        parts = [_in_words(part) for part in inner if part is not type(None)]
        return ", ".join([*parts, "null"] if type(None) in inner else parts)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "settings of its own"
    return WORDS.get(kind, "any")


def _flat(metadata: Iterable[Any]) -> list[Any]:
    """Constraints, those inside a nested ``Field`` as well."""
    found: list[Any] = []
    for part in metadata:
        found += part.metadata if isinstance(part, FieldInfo) else [part]
    return found


def _bounds(metadata: Iterable[Any]) -> str:
    said = [
        f"{sign} {getattr(part, name)}"
        for part in metadata
        for name, sign in BOUNDS.items()
        if getattr(part, name, None) is not None
    ]
    return f" ({' '.join(said)})" if said else ""
