"""The tries of the hub's client, which are not told: what failed is told once, at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import logging


@contextmanager
def untold_tries() -> Iterator[None]:
    """No warnings of the client's at each try; afterwards as before. Its bars stay."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
