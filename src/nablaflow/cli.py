"""The command line: which commands there are."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nablaflow import __version__
from nablaflow.addresses import masked_text
from nablaflow.commands.compare import compare
from nablaflow.commands.doctor import doctor
from nablaflow.commands.evaluate import evaluate
from nablaflow.commands.exact import exact
from nablaflow.commands.export import export
from nablaflow.commands.gallery import gallery
from nablaflow.commands.named_help import naming
from nablaflow.commands.reward import app as reward_app
from nablaflow.commands.sample import sample
from nablaflow.commands.streams import steady_streams
from nablaflow.commands.studio import studio
from nablaflow.commands.train import demo, train


class _Commands(TyperGroup):
    """Commands whose mistakes in an option show nothing that is secret in an address."""

    def make_context(self, *given: Any, **named: Any) -> Any:
        with _masked():
            return super().make_context(*given, **named)

    def invoke(self, ctx: Any) -> Any:
        with _masked():
            return super().invoke(ctx)


@contextmanager
def _masked() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Typer has a click of its own, or the one that is installed, as its version is.
        mistake: Any = error
        if hasattr(mistake, "format_message"):
            mistake.message = masked_text(mistake.message)
        raise


app = typer.Typer(
    name="nablaflow", cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False
)
_OF_A_RUN = naming(
    {"method.name": "methods", "reward": "rewards", "prompts, sets by name": "prompt sets"}
)
_MEASURED = naming({"--metric": "metrics", "reward": "rewards", "--prompts": "prompt sets"})
app.command(cls=_OF_A_RUN)(demo)
app.command(cls=_OF_A_RUN)(train)
app.command()(sample)
app.command()(export)
app.command()(gallery)
app.command("eval", cls=_MEASURED)(evaluate)
app.command(cls=naming({"--method": "entrants", "--reward": "rewards"}))(compare)
app.command(cls=naming({"--problem": "problems", "--method": "contenders"}))(exact)
app.add_typer(reward_app, name="reward")
app.command()(studio)
app.command()(doctor)


def _tell_version(asked: bool) -> bool:
    if asked:
        print(f"nablaflow {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def nablaflow(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="show the version"),
    ] = False,
) -> None:
    """Align diffusion models with rewards; keep their diversity and their prior."""


def _quiet_libraries() -> None:
    """Keep the libraries' notes on their own optional parts off the user's screen."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def _unfit_surroundings() -> str | None:
    """What the libraries would end by with a trace, or without a word of Python; and its remedy."""
    if sys.flags.optimize > 1:
        return (
            "Python is told to leave out docstrings, which transformers needs: unset "
            "PYTHONOPTIMIZE, or run it without -OO"
        )
    try:
        os.getcwd()
    except OSError:
        return "the working directory is no longer there: go to another with cd"
    return None


def main() -> None:
    """Parse the command line and do what it says."""
    steady_streams()
    mistake = _unfit_surroundings()
    if mistake is not None:
        print(f"nablaflow: {mistake}", file=sys.stderr)
        sys.exit(2)
    _quiet_libraries()
    app()


if __name__ == "__main__":
    main()
