"""Which setting was meant by a key that there is none of."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from nablaflow.config.aliases import ALIASES
from nablaflow.config.named_method import registered_methods
from nablaflow.config.recipe import Config
from nablaflow.settings import group_of, named_kinds, nearest_key


def suggest(word: str, group: type[BaseModel]) -> str:
    """The nearest key beside the unknown one, the same one in another group, or what is meant."""
    hint = nearest_key(word, group)
    elsewhere = [key for key in _leaves(Config) if key.rsplit(".", 1)[-1] == word]
    if elsewhere and not hint.startswith("did you mean"):
        return f"did you mean {elsewhere[0]}?"
    return f"did you mean {ALIASES[word]}?" if word in ALIASES else hint


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted keys of all settings that hold a value, those of every method included."""
    for name in model.model_fields:
        group = group_of(model, name)
        kinds = registered_methods() if name == "method" else named_kinds(model, name)
        groups = [group] if group else list((kinds or {}).values())
        for inner in groups:
            yield from _leaves(inner, f"{prefix}{name}.")
        if not groups:
            yield prefix + name
