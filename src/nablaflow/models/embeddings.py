"""Embeddings of prompts, found once for each and kept off the accelerator."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from nablaflow.models.condition import Condition
from nablaflow.models.stored_embeddings import StoredEmbeddings

KEPT = 2**31  # bytes; of Stable Diffusion XL's, 0.6 MB each in float32
CPU = torch.device("cpu")


class Embeddings:
    """A cache of one-row conditions by prompt; those not asked for longest go first.

    Args:
        encode: embeds one prompt alone, so that the result does not depend on a batch.
        encoding: entered around all the work that a call has for ``encode``.
        stored: what earlier runs embedded, if that is kept.
    """

    def __init__(
        self,
        encode: Callable[[str], Condition],
        encoding: Callable[[], AbstractContextManager[None]],
        kept: int = KEPT,
        stored: StoredEmbeddings | None = None,
    ) -> None:
        self._stored = stored
        self._encode, self._encoding, self._room = encode, encoding, kept
        self._rows: OrderedDict[str, Condition] = OrderedDict()

    def __call__(self, prompts: list[str], device: torch.device) -> Condition:
        """One row for each prompt, on ``device``."""
        missing = [text for text in dict.fromkeys(prompts) if not self._is_here(text)]
        if missing:
            with self._encoding():
                for text in missing:
                    self._rows[text] = self._encode(text).to(CPU)
                    if self._stored is not None:
                        self._stored.write(text, self._rows[text])
        for text in prompts:
            self._rows.move_to_end(text)
        found = Condition.concatenate([self._rows[text] for text in prompts])
        self._drop(keep=len(set(prompts)))
        return found.to(device)

    def _is_here(self, text: str) -> bool:
        """Whether it was embedded before, in this run or in another."""
        if text not in self._rows and self._stored is not None:
            found = self._stored.read(text)
            if found is not None:
                self._rows[text] = found
        return text in self._rows

    def _drop(self, keep: int) -> None:
        """What does not fit, but never what was just asked for."""
        size = next(iter(self._rows.values())).bytes()
        while len(self._rows) > max(keep, self._room // max(1, size)):
            self._rows.popitem(last=False)
