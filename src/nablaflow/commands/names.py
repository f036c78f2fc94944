"""The names that the lists of the package hold, for ``--help``.

They are read from the source of the lists: to import them takes seconds, for torch and diffusers
come along, and a second list would have to be kept.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import nablaflow

LISTS = {
    "contenders": (("exact/contenders.py", "_TUNED"), ("exact/contenders.py", "_UNTUNED")),
    "entrants": (
        ("comparison/entrants.py", "ENTRANTS"),
        ("comparison/entrants.py", "BYSTANDERS"),
    ),
    "features": (("features/__init__.py", "FEATURES"),),
    "metrics": (("metrics/catalog.py", "METRICS"),),
    "problems": (("exact/catalog.py", "PROBLEMS"),),
    "prompt sets": (("prompts/source.py", "SETS"),),
    "rewards": (("rewards/__init__.py", "REWARDS"), ("rewards/__init__.py", "CONFIGURABLE")),
}
_ROOT = Path(nablaflow.__file__).parent


def names(what: str) -> list[str]:
    """The names in a list of the package, in its order.

    Args:
        what: ``"methods"``, which are classes that say their own name, or a key of `LISTS`.
    """
    if what == "methods":
        return _methods()
    return [name for file, variable in LISTS[what] for name in _keys(file, variable)]


def _keys(file: str, variable: str) -> list[str]:
    """The keys of a mapping, or the members of a tuple, that a module gives a name.

    A mapping made of a tuple of calls has their first arguments for its keys.
    """
    given = _assigned(_parsed(_ROOT / file).body)
    held: Any = given[variable]
    if isinstance(held, ast.DictComp):
        parts = [call.args[0] for call in held.generators[0].iter.elts]  # type: ignore[attr-defined]
    else:
        parts = held.keys if isinstance(held, ast.Dict) else held.elts
    return [ast.literal_eval(_meant(part, given)) for part in parts if part is not None]


def _methods() -> list[str]:
    """The ``name`` of each class in the order that the list of methods has them in."""
    own = {
        node.name: ast.literal_eval(given["name"])
        for path in (_ROOT / "methods").glob("*.py")
        for node in _parsed(path).body
        if isinstance(node, ast.ClassDef) and "name" in (given := _assigned(node.body))
    }
    listed = _assigned(_parsed(_ROOT / "methods/__init__.py").body)["METHODS"]
    classes = (node.id for node in ast.walk(listed) if isinstance(node, ast.Name))
    return [own[name] for name in classes if name in own]


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _meant(part: ast.expr, given: dict[str, ast.expr]) -> ast.expr:
    return given[part.id] if isinstance(part, ast.Name) else part


def _assigned(lines: list[ast.stmt]) -> dict[str, ast.expr]:
    """What these lines themselves assign, by name."""
    found: dict[str, ast.expr] = {}
    for line in lines:
        if isinstance(line, ast.AnnAssign) and line.value is not None:
            found[ast.unparse(line.target)] = line.value
        elif isinstance(line, ast.Assign):
            found |= {ast.unparse(target): line.value for target in line.targets}
    return found
