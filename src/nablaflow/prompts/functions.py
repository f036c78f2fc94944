"""Prompts from a function, as TRL's diffusion trainers take them: ``() -> (prompt, metadata)``."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from nablaflow.errors import UserError
from nablaflow.prompts.files import FoundPrompts, Row
from nablaflow.prompts.source import FUNCTION
from nablaflow.rewards.custom import load_function
from nablaflow.rewards.process import left_as_it_was
from nablaflow.seeds import stream


def draw_prompts(source: str, count: int, seed: int) -> FoundPrompts:
    """Prompts that a function draws; the same ones for the same seed.

    They are drawn by the global generators of random, numpy and torch, which are seeded for it and
    put back.

    Args:
        source: ``trl:path/to/file.py:function``.
        count: draws; a prompt that comes twice counts twice.
        seed: of the run.

    Raises:
        UserError: no such function, it fails, returns something else, or draws by a generator of
            its own, so that a resumed run would see other prompts.
    """
    function = load_function(source.removeprefix(FUNCTION), "prompts", "no arguments")
    first, second = (list(_draws(source, function, count, seed)) for _ in range(2))
    if repr(first) != repr(second):
        raise UserError(
            f"prompts: {source} draws other prompts with the same seed; let it draw by random, "
            "numpy.random or torch's global generator, and count nothing from call to call"
        )
    found = FoundPrompts.of(source, first)
    return FoundPrompts(source, found.texts, found.lines, beside=found.beside, drawn=(count, seed))


def _draws(source: str, function: Callable[[], Any], count: int, seed: int) -> Iterator[Row]:
    with _seeded(stream(seed, "prompts") % 2**32):
        for number in range(1, count + 1):
            try:
                with left_as_it_was(f"prompts {source}"):
                    drawn = function()
            except (Exception, SystemExit) as error:
                raise UserError(
                    f"prompts: {source} fails ({type(error).__name__}: {error}); it must take no "
                    "arguments and return (prompt, metadata)"
                ) from error
            text, beside = drawn if isinstance(drawn, tuple) and len(drawn) == 2 else (drawn, {})
            if not isinstance(text, str):
                raise UserError(
                    f"prompts: {source} returned {type(drawn).__name__}; it must return "
                    "(prompt, metadata), the prompt a text"
                )
            yield number, str(text), beside


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The three global generators at ``seed`` inside, and where they were afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
