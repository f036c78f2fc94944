"""Quiet while this package calls diffusers and transformers.

What they log, draw and warn of then is about this package's calls, which the user did not make and
cannot change: optional packages that are not there, casts, parts that a LoRA has no weights for,
options that will have other names.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

LIBRARIES = (diffusers_logging, transformers_logging)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No notes, bars or warnings of change from the two libraries; afterwards as before."""
    before = [(each.get_verbosity(), each.is_progress_bar_enabled()) for each in LIBRARIES]
    for each in LIBRARIES:
        each.set_verbosity_error()
        each.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            theirs = "diffusers|transformers"
            warnings.filterwarnings("ignore", category=FutureWarning, module=theirs)
            yield
    finally:
        for each, (verbosity, bars) in zip(LIBRARIES, before, strict=True):
            each.set_verbosity(verbosity)
            if bars:
                each.enable_progress_bar()
