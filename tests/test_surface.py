"""The one public list: complete, lazy, typed."""

from __future__ import annotations

import ast
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import nablaflow as nf
from nablaflow.methods import METHODS, UNTRAINED

INIT = Path(nf.__file__)


def declared() -> set[str]:
    """What a type checker finds: the imports that are never run."""
    blocks = [node for node in ast.parse(INIT.read_text()).body if isinstance(node, ast.If)]
    found = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in found for alias in node.names}


def test_every_public_name_is_there_for_people_and_for_type_checkers():
    assert declared() == set(nf.__all__)
    assert len(set(nf.__all__)) == len(nf.__all__)
    for name in nf.__all__:
        assert getattr(nf, name) is not None
    assert set(nf.__all__) <= set(dir(nf))
    assert (INIT.parent / "py.typed").is_file()


def test_every_method_is_public():
    for kind in (*METHODS.values(), *UNTRAINED.values()):
        assert getattr(nf, kind.__name__) is kind


def test_what_is_not_public_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'aling'"):
        _ = nf.aling  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", ["align", "evaluate", "sample", "compare", "choose_beta"])
def test_type_hints_can_be_had(name: str):
    hints = typing.get_type_hints(getattr(nf, name))
    assert "return" in hints
    assert typing.get_type_hints(nf.align)["return"] is nf.Run


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import nablaflow; dir(nablaflow)", id="the package"),
        pytest.param(
            "from nablaflow.studio.serve import serve; from nablaflow.studio.app import make_app",
            id="the studio",
        ),
        pytest.param(
            "import typer, contextlib\n"
            "from nablaflow.commands.shared import guarded\n"
            "from nablaflow.errors import UserError\n"
            "def work(): raise UserError('a mistake')\n"
            "with contextlib.suppress(typer.Exit): guarded(work, False)",
            id="a mistake's line",
        ),
    ],
)
def test_nothing_heavy_is_imported_by(code: str):
    told = (
        "\nimport sys; heavy = {'torch', 'numpy', 'pydantic', 'diffusers', 'huggingface_hub'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    source = str(INIT.parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code + told],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": source},
    )
    assert done.stdout.strip() == "[]", done.stderr
