"""Recipes in YAML and ``key.sub=value`` from the command line, laid over a command's defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nablaflow.addresses import masked
from nablaflow.config.aliases import ALIASES
from nablaflow.config.named_method import (
    FindMethod,
    find_none,
    is_own,
    method_settings,
    registered_methods,
)
from nablaflow.config.parse import parse_config
from nablaflow.config.recipe import Config
from nablaflow.config.yaml_text import dump_values, read_yaml
from nablaflow.errors import UserError
from nablaflow.methods import Method
from nablaflow.models.settings import OF_A_LORA
from nablaflow.prompts.source import absolute
from nablaflow.rewards.custom import is_custom
from nablaflow.settings import Kinds, named_kinds
from nablaflow.storage.files import read_text

Values = dict[str, Any]
MARKS = {
    ("model",): ("model_hash",),
    ("model_lora",): ("model_lora_hash",),
    ("adapter", "start"): ("adapter", "start_hash"),
}
"""Paths of files, and where a run keeps what tells each from any other."""


def load_config(
    recipe: Path | None,
    overrides: Sequence[str],
    defaults: Mapping[str, Any],
    find: FindMethod = find_none,
) -> Config:
    """The configuration of a command: ``defaults``, the recipe over them, the overrides on top.

    A relative path of a prompts file starts at the recipe's folder, in an override at the
    working directory; it is made absolute, so that the saved configuration runs from anywhere.

    Args:
        overrides: ``key.sub=value``, the value in YAML.
        find: finds the class of a method of the user's own; by default there is none.

    Raises:
        UserError: one line that names the key or the file, and the remedy.
    """
    values = dict(defaults)
    if recipe is not None:
        values = merge(values, _absolute_prompts(read_recipe(recipe), recipe.parent))
    config = parse_config(apply_overrides(values, overrides), find)
    _refuse_idle_flow(config, overrides)
    return config


def _refuse_idle_flow(config: Config, overrides: Sequence[str]) -> None:
    """A recipe may have flow settings for its other methods; who overrides one wants a network."""
    for text in overrides:
        path, value = parse_override(text)
        refuse_idle_flow(config, path, value)


def refuse_idle_flow(config: Config, path: tuple[str, ...], value: Any) -> None:
    """Refuse a setting of the flow network that is given for a method without use for one."""
    of_flow = path[0] == "flow" or path[-1].startswith("flow_")
    if of_flow and value is not None and not config.method.uses_flow:
        name = method_settings(config.method)["name"]
        raise UserError(f"{'.'.join(path)}: {name} has no use for a flow network; leave it out")


def dump_config(config: Config) -> str:
    """YAML that ``load_config`` reads back as an equal configuration, but for a judge's secrets."""
    return dump_values(plain_config(config))


def plain_config(config: Config) -> Values:
    """A configuration as plain data, a judge's secrets left out."""
    values = config.model_dump(mode="json")
    values["reward"] = masked(values["reward"])
    held_out = (values["guard"] or {}).get("held_out")
    if held_out:
        held_out["reward"] = masked(held_out["reward"])
    return values


def read_recipe(path: Path) -> Values:
    """The settings in a YAML file, unchecked.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe; give the path of a YAML file") from None
    except IsADirectoryError:
        own = path / "config.yaml"
        remedy = f"give {own}" if own.is_file() else "give the path of a YAML file"
        raise UserError(f"{path}: a folder, and no recipe; {remedy}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; a recipe is a YAML file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); a recipe is a YAML file") from None
    values = read_yaml(text, str(path))
    if values is None:
        raise UserError(f"{path}: empty; a recipe holds lines of the form key: value")
    if not isinstance(values, dict):
        raise UserError(f"{path}: no settings; a recipe holds lines of the form key: value")
    return values


def _absolute_prompts(values: Values, folder: Path) -> Values:
    """With paths of prompts, the evaluation's and the guard's as well, that start at ``folder``."""
    found = dict(values)
    if "prompts" in found:
        found["prompts"] = absolute(found["prompts"], folder)
    for name in ("evaluation", "guard"):
        group = found.get(name)
        if isinstance(group, Mapping) and "prompts" in group:
            found[name] = {**group, "prompts": absolute(group["prompts"], folder)}
    return found


# --- laying one set of values over another --------------------------------------------------------


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Values:
    """``over`` laid over ``base``: groups key by key, everything else as a whole."""
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merge_value(key, merged.get(key), value)
    return merged


def _merge_value(key: str, old: Any, new: Any) -> Any:
    if key == "method":
        plain = isinstance(new, BaseModel) and not isinstance(new, Method)  # which none can be
        return new if plain else _merge_named(old, new, registered_methods())
    if key == "adapter" and isinstance(new, Mapping) and "kind" in new:
        old = _of_kind(old, new["kind"])
    # A mapping of rewards, or one source of prompts, is one value: two of them do not add up.
    if key not in ("reward", "prompts") and isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **new}
    return new


def _merge_named(old: Any, new: Any, kinds: Kinds) -> Any:
    """A method of another name keeps only those of the old settings that it has as well.

    And so it is with an estimator inside a method.
    """
    old, new = _named_mapping(old), _named_mapping(new)
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    name = new.get("name", old.get("name"))
    kind = kinds.get(str(name))
    if name != old.get("name"):
        # Of a user's own, whose file is not run here, it is known that it has a beta.
        shared = kind.model_fields if kind else ("beta",) if is_custom(str(name)) else ()
        old = {k: v for k, v in old.items() if k in shared}
    merged = {**old, **new}
    for field in old.keys() & new.keys():
        inner = named_kinds(kind, field) if kind else None
        if inner:
            merged[field] = _merge_named(old[field], new[field], inner)
    return merged


def _of_kind(adapter: Any, kind: Any) -> Any:
    """What an adapter of another kind keeps of the old settings."""
    if not isinstance(adapter, Mapping) or kind != "full":
        return adapter
    return {key: value for key, value in adapter.items() if key not in OF_A_LORA}


def _named_mapping(value: Any) -> Any:
    """A name, a method or an estimator as a mapping with ``name``."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, BaseModel) or is_own(value):
        return value
    return method_settings(value) if isinstance(value, Method) else value.model_dump(mode="json")


# --- overrides ------------------------------------------------------------------------------------

_MARKED = ("'", '"', "|", ">", "!", "&", "*")  # how text begins that YAML is to read
_OVERRIDE = re.compile(r"\s*(?P<key>\w+(\.\w+)*)\s*=(?P<value>.*)", re.DOTALL)


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """``optimizer.learning_rate=1e-3`` as ``(("optimizer", "learning_rate"), 0.001)``.

    Nothing after the sign is the empty text; ``null`` is none. Text that is not in quotes is as it
    stands: what follows " #" would be a comment in a recipe, and a line's end a space.
    """
    match = _OVERRIDE.fullmatch(text)
    if match is None:
        raise UserError(f"{text!r}: not a setting; write key=value, such as training.updates=100")
    value = match["value"].strip()
    found = read_yaml(value, match["key"]) if value else ""
    plain = value.startswith("#") or (isinstance(found, str) and not value.startswith(_MARKED))
    return tuple(match["key"].split(".")), value if plain else found


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> Values:
    """``values`` with each override set; of two for one key the later one wins."""
    settings = [parse_override(text) for text in overrides]
    given = {path for path, _ in settings}
    # The recipe may be a run's, whose checksum is of the file that it names itself.
    settings += [(mark, None) for of, mark in MARKS.items() if of in given and mark not in given]
    # Names come first: they decide which of the settings below them are kept.
    settings.sort(key=lambda setting: _rank(setting[0]))
    result = dict(values)
    for path, value in settings:
        groups = {("prompts",), ("evaluation", "prompts"), ("guard", "prompts")}
        if path in groups or path[-2:] == ("prompts", "source"):
            value = absolute(value, Path())
        result[path[0]] = _assign(result.get(path[0]), path, 1, value)
    return result


def _rank(path: tuple[str, ...]) -> int:
    """0: a method's name, an adapter's kind; 1: the name of an estimator, or the like; 2: else."""
    if path in (("method",), ("method", "name"), ("adapter",), ("adapter", "kind")):
        return 0
    return 1 if path[0] == "method" and path[-1] == "name" else 2


def _assign(old: Any, path: tuple[str, ...], depth: int, value: Any) -> Any:
    """``old``, which stands at ``path[:depth]``, with ``value`` at ``path``; ``old`` is kept."""
    if path[0] == "method" and depth == 1:
        nested = {path[1]: _assign(None, path, 2, value)} if len(path) > 1 else value
        return _merge_named(old, nested, registered_methods())
    if path == ("adapter", "kind") and depth == 1:
        old = _of_kind(old, value)
    if depth == len(path):
        return value
    if old is not None and not isinstance(old, Mapping):
        group = ".".join(path[:depth])
        meant = ALIASES.get(path[-1])
        remedy = f"did you mean {meant}?" if meant else f"set {group} as a whole"
        raise UserError(
            f"{'.'.join(path)}: {group} is {old!r} and has no keys of its own; {remedy}"
        )
    inner = dict(old or {})
    return {**inner, path[depth]: _assign(inner.get(path[depth]), path, depth + 1, value)}
