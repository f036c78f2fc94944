"""A command whose ``--help`` ends with the names that its options and settings take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typer.core import TyperCommand

from nablaflow.commands.names import names


def naming(lists: Mapping[str, str]) -> type[TyperCommand]:
    """The class of a command that lists names when it is asked for help, and not before.

    Args:
        lists: heading to what `nablaflow.commands.names` calls the list.
    """

    class Named(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:  # click's, or typer's own copy
            self.epilog = "\n\n".join(
                f"{heading}: {', '.join(names(what))}" for heading, what in lists.items()
            )
            super().format_help(ctx, formatter)

    return Named
