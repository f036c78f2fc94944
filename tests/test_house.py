"""What holds for the whole package: a face for every folder, one meaning for each name."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import nablaflow

SOURCE = Path(nablaflow.__file__).parent


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in SOURCE.rglob("*.py")}
    assert len(folders) > 15
    faceless = [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()]
    assert faceless == []


def _defined(path: Path) -> Iterator[tuple[str, bool]]:
    """Names that a module defines at its top, and whether each is a class."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            yield node.name, True
        elif isinstance(node, ast.Assign):
            yield from ((name.id, False) for name in node.targets if isinstance(name, ast.Name))


def test_the_name_of_a_class_is_defined_once() -> None:
    places, classes = defaultdict[str, list[str]](list), set[str]()
    for path in sorted(SOURCE.rglob("*.py")):
        for name, is_class in _defined(path):
            places[name].append(str(path.relative_to(SOURCE)))
            if is_class and not name.startswith("_"):
                classes.add(name)
    assert len(classes) > 100
    assert {name: places[name] for name in sorted(classes) if len(places[name]) > 1} == {}


def test_no_pipeline_is_named_above_the_models() -> None:
    """A family says everything that depends on its class; the embedded model is made as one."""
    rooms = (SOURCE / "models", SOURCE / "nano")
    above = [path for path in SOURCE.rglob("*.py") if not set(rooms) & set(path.parents)]
    named = re.compile(r"(StableDiffusion\w*|DDPM|Diffusion)Pipeline\b|\.unet\b|\.transformer\b")
    assert [path.name for path in above if named.search(path.read_text())] == []


def _never_run(path: Path) -> Iterator[str]:
    """Statements that follow the end of their block."""
    ends = (ast.Return, ast.Raise, ast.Continue, ast.Break)
    for node in ast.walk(ast.parse(path.read_text())):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            for before, after in pairwise(block if isinstance(block, list) else ()):
                if isinstance(before, ends):
                    yield f"{path.relative_to(SOURCE)}:{after.lineno}"


def test_no_statement_follows_the_end_of_its_block() -> None:
    """What is never run is not checked by the linter either: not even its names have to exist."""
    assert [place for path in sorted(SOURCE.rglob("*.py")) for place in _never_run(path)] == []
