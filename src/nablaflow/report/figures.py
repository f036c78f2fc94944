"""A plot as a file."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nablaflow.storage.files import write_whole


def save_figure(figure: Figure, path: Path, **options: Any) -> None:
    """As a PNG, whole or not at all.

    Args:
        options: of matplotlib's ``savefig``.
    """
    content = BytesIO()
    figure.savefig(content, format="png", **options)
    write_whole(path, content.getvalue())
