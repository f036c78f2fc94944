"""Write the pages that are read off the code: docs/settings.md and docs/cli.md."""

from pathlib import Path

import typer

from nablaflow.cli import app
from nablaflow.commands import reference as commands
from nablaflow.config import reference as settings

DOCS = Path(__file__).parent

if __name__ == "__main__":
    (DOCS / "settings.md").write_text(settings.page(), encoding="utf-8")
    (DOCS / "cli.md").write_text(commands.page(typer.main.get_command(app)), encoding="utf-8")
