"""Embeddings of prompts on disk, for text encoders that take longer than reading a file."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from nablaflow.models.condition import Condition
from nablaflow.storage.cached import cache_folder, read_cached, write_cached

ROOM = 2**33  # bytes of all files together; a prompt of T5-XXL's 512 tokens takes 8 MB in float32


class StoredEmbeddings:
    """One-row conditions in nablaflow's cache folder, by all that they depend on.

    A file that is damaged is made anew, and that is said. A disk without room costs the cache and
    not the run.

    Args:
        depends_on: plain data that names the encoders' weights and how they are used; found at the
            first prompt.
    """

    def __init__(self, depends_on: Callable[[], list[Any]], room: int = ROOM) -> None:
        self._depends_on, self._room = depends_on, room
        self._known: list[Any] | None = None
        self._taken = -1  # bytes of the files; not counted yet

    def read(self, prompt: str) -> Condition | None:
        """What an earlier run embedded; None where there is none."""
        key = self._key(prompt)
        path = self._path(key)
        found = read_cached(path, key) if path.is_file() else None
        return None if found is None else _condition(found)

    def write(self, prompt: str, condition: Condition) -> None:
        """Keep it for the runs to come, as long as there is room."""
        key, size = self._key(prompt), condition.bytes()
        if size > self._room:
            return
        try:
            path = self._path(key)
            self._make_room(path.parent, size)
            write_cached(path, _tensors(condition), key)
            self._taken += path.stat().st_size
        except OSError as error:
            print(f"no embeddings are kept in {cache_folder()} ({error.strerror})", file=sys.stderr)
            self._room = 0

    def _make_room(self, folder: Path, size: int) -> None:
        """The files that were written first go, as those of encoders that nobody has any more."""
        if self._taken < 0 or self._taken + size > self._room:
            found = sorted(_files(folder))
            self._taken = sum(taken for _, taken, _ in found)
            for _, taken, path in found:
                if self._taken + size <= self._room:
                    break
                path.unlink(missing_ok=True)
                self._taken -= taken

    def _key(self, prompt: str) -> str:
        if self._known is None:
            self._known = self._depends_on()
        content = json.dumps([*self._known, prompt])
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    @staticmethod
    def _path(key: str) -> Path:
        return cache_folder() / "embeddings" / f"{key}.safetensors"


def _files(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """When each was written, nanoseconds; its bytes; and its path."""
    for path in folder.glob("*.safetensors"):
        with suppress(FileNotFoundError):  # another process made room
            found = path.stat()
            yield found.st_mtime_ns, found.st_size, path


def described(tokenizer: Any) -> list[Any]:
    """What decides the tokens of a prompt, as plain data."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        own: Any = sorted(tokenizer.get_vocab().items())
    else:
        own = json.loads(backend.to_str())
        own |= {"padding": None, "truncation": None}  # of its last call
    names = ("chat_template", "model_max_length", "pad_token_id", "padding_side", "truncation_side")
    return [own, *(getattr(tokenizer, name, None) for name in names)]


def _tensors(condition: Condition) -> dict[str, Tensor]:
    """By the kind of condition and the name of the part."""
    kind = type(condition).__name__
    parts = {field.name: getattr(condition, field.name) for field in fields(condition)}
    return {f"{kind}.{name}": part for name, part in parts.items() if part is not None}


def _condition(tensors: dict[str, Tensor]) -> Condition | None:
    """The condition of `_tensors`; None where its kind is not known here."""
    kinds = {kind.__name__: kind for kind in (Condition, *Condition.__subclasses__())}
    name = next(iter(tensors), "").partition(".")[0]
    if name not in kinds:
        return None
    parts: dict[str, Any] = {full.partition(".")[2]: value for full, value in tensors.items()}
    return kinds[name](**parts)
