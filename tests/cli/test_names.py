"""What ``--help`` lists is what the lists hold, though it is read without importing them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Collection

import pytest
from click.testing import Result

from nablaflow.commands.names import LISTS, names
from nablaflow.comparison.entrants import BYSTANDERS, ENTRANTS
from nablaflow.exact import CONTENDERS, PROBLEMS
from nablaflow.features import FEATURES
from nablaflow.methods import METHODS
from nablaflow.metrics.catalog import METRICS
from nablaflow.prompts.source import SETS
from nablaflow.rewards import CONFIGURABLE, REWARDS

Cli = Callable[..., Result]
HELD: dict[str, Collection[str]] = {
    "contenders": CONTENDERS,
    "entrants": [*ENTRANTS, *BYSTANDERS],
    "features": FEATURES,
    "methods": METHODS,
    "metrics": METRICS,
    "problems": PROBLEMS,
    "prompt sets": SETS,
    "rewards": [*REWARDS, *CONFIGURABLE],
}


def test_every_list_is_compared_here():
    assert HELD.keys() == {*LISTS, "methods"}


@pytest.mark.parametrize("what", HELD)
def test_names_are_those_of_the_list(what: str):
    assert names(what) == list(HELD[what])


@pytest.mark.parametrize(
    ("command", "held"),
    [
        (("train",), ("methods", "rewards", "prompt sets")),
        (("demo",), ("methods", "rewards", "prompt sets")),
        (("eval",), ("metrics", "rewards", "prompt sets")),
        (("compare",), ("entrants", "rewards")),
        (("exact",), ("problems", "contenders")),
        (("reward", "score"), ("rewards",)),
        (("reward", "fit"), ("features",)),
    ],
)
def test_help_lists_the_names_that_a_command_takes(
    cli: Cli, command: tuple[str, ...], held: tuple[str, ...]
):
    words = cli(*command, "--help").stdout.replace(",", " ").split()
    for what in held:
        assert set(HELD[what]) <= set(words)


def test_help_imports_no_torch():
    """Which would take it from a fifth of a second to seconds."""
    code = (
        "import sys; sys.argv = ['nablaflow', *sys.argv[1:]]\n"
        "from nablaflow.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'scipy', 'matplotlib'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    for arguments in (["--help"], ["--version"], ["exact", "--help"], ["train", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        assert "HEAVY []" in done.stdout
