"""What a reward's spec reaches for outside itself: code, hosts, environment variables, files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nablaflow.addresses import masked_url
from nablaflow.errors import UserError, printable
from nablaflow.hub import is_local
from nablaflow.places import at_home
from nablaflow.rewards import CALLABLE
from nablaflow.rewards.combine import parse
from nablaflow.rewards.custom import is_custom, is_fitted
from nablaflow.rewards.trl import TRL
from nablaflow.storage import checksums

CODE, HOST, VARIABLE, FILE = "code", "host", "environment variable", "file"


@dataclass(frozen=True, order=True)
class Reference:
    """One thing that is reached for.

    Attributes:
        kind: ``CODE``, ``HOST``, ``VARIABLE`` or ``FILE``.
        name: as it was written.
    """

    kind: str
    name: str

    @property
    def _shown(self) -> str:
        return masked_url(self.name) if self.kind == HOST else self.name

    def __str__(self) -> str:
        return printable(f"{self.kind} {self._shown}")

    @property
    def path(self) -> Path | None:
        """Where the code or the file is, links followed; None for the other kinds."""
        if self.kind not in (CODE, FILE):
            return None
        place = self.name.rpartition(":")[0] if self.kind == CODE else self.name
        return at_home(place).resolve()

    @property
    def identity(self) -> str:
        """The same for the same thing only: code that was changed is another."""
        if self.path is None:
            return f"{self.kind} {self._shown}"  # a run's config.yaml has no more of it
        return f"{self.kind} {self.path} {self.name.rpartition(':')[2]} {self.content or ''}"

    @property
    def content(self) -> str | None:
        """SHA-256 of code as its file is now; None for the other kinds, and where none is there."""
        known = self.kind == CODE and self.path is not None and self.path.is_file()
        return checksums.of_file(self.path) if known and self.path is not None else None


def references(spec: Any, key: str = "") -> Iterator[Reference]:
    """Everything that a spec, or a part of one, may reach for; rather too much than too little.

    Args:
        key: of the setting whose value ``spec`` is.
    """
    if isinstance(spec, Mapping):
        for inner, value in spec.items():
            yield from _of_text(str(inner))
            yield from references(value, str(inner))
    elif isinstance(spec, list | tuple):
        for part in spec:
            yield from references(part, key)
    elif isinstance(spec, str) and key == "token_variable":
        yield Reference(VARIABLE, spec)
    elif isinstance(spec, str):
        yield from _of_text(spec, is_setting=key not in ("", "name", "of"))


def _of_text(text: str, *, is_setting: bool = False) -> Iterator[Reference]:
    if text.startswith(CALLABLE):  # a function that was in memory; nothing can be made of its name
        return
    if "://" in text:
        yield Reference(HOST, text)
        return
    for term in sorted({text, *_terms(text)}):
        if is_custom(term):
            yield Reference(CODE, term.removeprefix(TRL))
        elif is_fitted(term) or is_path(term, or_name=is_setting):
            yield Reference(FILE, term)


def is_path(text: str, *, or_name: bool = False) -> bool:
    """Whether a text means a path; with ``or_name``, one in the working directory as well."""
    if text.startswith((".", "/", "~")):
        return True
    try:
        return is_local(text) if "/" in text else or_name and Path(text).exists()
    except (OSError, ValueError):  # no system would take it for a path
        return False


def _terms(text: str) -> Iterator[str]:
    try:
        yield from parse(text)
    except UserError:
        return
