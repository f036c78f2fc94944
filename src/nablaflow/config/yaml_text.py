"""YAML as recipes are written in it: what a text holds, and plain data as a text."""

from __future__ import annotations

import copy
import re
from collections.abc import Hashable, Iterator
from functools import lru_cache
from typing import Any

import yaml

from nablaflow.config.values import check_text
from nablaflow.errors import UserError

MOST_VALUES = 100_000  # that aliases may stand for
DEEPEST = 100  # lists in lists

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+|0b[01]+)$")
_FLOAT = re.compile(
    r"[-+]?((0|[1-9]\d*)(\.\d*([eE][-+]?\d+)?|[eE][-+]?\d+)|\.\d+([eE][-+]?\d+)?"
    r"|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number, and a prompt ``no`` or ``on`` is text.

    So are 017, 1:30 and 2001-01-01, which YAML 1.1 takes for 15, 90 and a date. Keys must be text
    and must not come twice.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise yaml.constructor.ConstructorError(
                    problem="a key must be text", problem_mark=key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value} comes twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts quotes around every text that ``_Loader`` would read as something else."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # PyYAML writes this one line break as it is, and reads it back as a space.
        style = '"' if "\x85" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)

# PyYAML follows YAML 1.1, where 1e-3 is text and yes, no, on and off are booleans.
_OTHERWISE = {f"{_TAG}{kind}" for kind in ("bool", "int", "float", "timestamp")}
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag not in _OTHERWISE]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"(true|True|false|False)$"), list("tTfF"))
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))
    _kind.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+.0123456789"))


def dump_values(values: dict[str, Any]) -> str:
    """Plain data in YAML that `read_yaml` reads back as it is."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def read_yaml(text: str, source: str) -> Any:
    """What a text in YAML holds.

    Args:
        source: what a message calls it.

    Raises:
        UserError: it is not valid, or its aliases make of it what no settings are.
    """
    check_text(source, text)
    try:
        return copy.deepcopy(_constructed(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark and "\n" in text else ""
        problem = getattr(error, "problem", None) or "it holds a character YAML does not allow"
        raise UserError(f"{source}{line}: not valid YAML: {problem}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None


@lru_cache(maxsize=64)
def _constructed(text: str) -> Any:
    """Kept, since a command reads the same settings some ten times."""
    _check_depth(text)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        _check_aliases(node)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _check_depth(text: str) -> None:
    """Refuse lists in lists without end, which take a reader minutes before it gives up."""
    depth = 0
    for bracket in re.findall(r"[][{}]", text):
        depth += 1 if bracket in "[{" else -1
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} brackets are open at once")


def _check_aliases(root: yaml.Node | None) -> None:
    """Refuse an alias inside what it stands for, and few lines that stand for a million values."""
    sizes: dict[int, int | None] = {}  # of what a node stands for; None while it is looked at

    def size(node: yaml.Node) -> int:
        known = sizes.get(id(node), 0)
        if known is None:
            raise yaml.constructor.ConstructorError(
                problem="an alias inside what it stands for", problem_mark=node.start_mark
            )
        if known == 0:
            sizes[id(node)] = None
            known = 1 + sum(map(size, _inner(node)))
            sizes[id(node)] = known
        return known

    whole = 0 if root is None else size(root)
    if whole > max(MOST_VALUES, 2 * len(sizes)):
        raise yaml.constructor.ConstructorError(problem=f"its aliases stand for {whole:.0e} values")


def _inner(node: yaml.Node) -> Iterator[yaml.Node]:
    for part in node.value if isinstance(node, yaml.CollectionNode) else ():
        yield from part if isinstance(part, tuple) else (part,)
