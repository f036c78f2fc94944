"""The command line's reference as a page of Markdown, read off the commands themselves.

``docs/generate.py`` writes it, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

HEAD = """# Command line

Every command also has `--help`. With `--json` a command prints one JSON object to standard output
and nothing else there. Exit status: 0 done, 2 a mistake in what was given (one line that names it
and the remedy), 1 training cannot go on, 130 after Ctrl-C, SIGTERM or SIGHUP. `make reference`
writes this page from the code.
"""


def page(app: Any) -> str:
    """The whole page.

    Args:
        app: the command line as a click group (``typer.main.get_command``).
    """
    return "\n".join([HEAD, *_commands("nablaflow", app.commands)])


def _commands(prefix: str, commands: Mapping[str, Any]) -> Iterator[str]:
    for name, command in commands.items():
        if command.hidden:
            continue
        inner = getattr(command, "commands", None)
        if inner is not None:
            yield from _commands(f"{prefix} {name}", inner)
        else:
            yield _command(f"{prefix} {name}", command)


def _command(name: str, command: Any) -> str:
    arguments = [part for part in command.params if part.param_type_name == "argument"]
    options = [part for part in command.params if part.param_type_name == "option"]
    usage = " ".join([name, *(_placeholder(part) for part in arguments), "[options]"])
    rows = [
        f"| {_shown(part)} | {_cell(part.help or '')} | {_default(part)} |"
        for part in [*arguments, *options]
        if not part.hidden
    ]
    table = ["| argument or option | meaning | default |", "|---|---|---|", *rows]
    return "\n".join([f"## {name}\n", f"    {usage}\n", f"{command.help.strip()}\n", *table, ""])


def _placeholder(part: Any) -> str:
    name = part.metavar or part.name.upper()
    return name if part.required or name.startswith("[") else f"[{name}]"


def _shown(part: Any) -> str:
    if part.param_type_name == "argument":
        return f"`{_cell(part.metavar or part.name.upper())}`"
    return ", ".join(f"`{option}`" for option in part.opts)


def _default(part: Any) -> str:
    value = part.default
    if part.required:
        return "required"
    if isinstance(value, bool) or value is None or callable(value):
        return ""
    return f"`{getattr(value, 'value', value)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
