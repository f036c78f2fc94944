"""Quiet while this package calls diffusers and transformers.

What they log, draw and warn of then is about this package's calls, which the user did not make and
cannot change: optional packages that are not there, casts, parts that a LoRA has no weights for,
options that will have other names.

One thread at a time: what is set here is the whole process's, and while they build and load
networks the libraries change classes of torch and of their own, and put them back. Two at once
would leave them changed, and no model could be loaded any more.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

LIBRARIES = (diffusers_logging, transformers_logging)
_ALONE = threading.RLock()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No notes, bars or warnings of change from the two libraries; afterwards as before."""
    with _ALONE, _quiet():
        yield


@contextmanager
def _quiet() -> Iterator[None]:
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
