"""Where a scorer's parts come from: a path, or ``owner/name`` or ``owner/name@revision``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nablaflow.hub import fetch_file, fetch_folder, is_local


def source_folder(
    source: str, patterns: Sequence[str], *, field: str, revision: str | None = None
) -> Path:
    """The folder that a source means; ``revision`` counts where the source has none of its own.

    Raises:
        UserError: it is neither there nor on the hub.
    """
    if is_local(source):
        return fetch_folder("", patterns, local=source, field=field)
    repo, _, own = source.partition("@")
    return fetch_folder(repo, patterns, revision=own or revision, field=field)


def source_file(source: str, name: str, *, field: str, revision: str | None = None) -> Path:
    """The file that a source means; its ``name`` is that on the hub, or in a folder.

    Raises:
        UserError: it is neither there nor on the hub.
    """
    if is_local(source):
        return fetch_file("", name, local=source, field=field)
    repo, _, own = source.partition("@")
    return fetch_file(repo, name, revision=own or revision, field=field)
