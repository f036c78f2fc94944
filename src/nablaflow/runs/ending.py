"""The end of a launch of several processes: where one cannot go on, the others say so and end too.

Those that wait for it are told by the system that its connection is gone, in words of gloo's or
NCCL's. Before it goes, a process leaves its own words where they met.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch.distributed import DistError

from nablaflow.errors import TrainingStopped
from nablaflow.runs.meeting import last_meeting
from nablaflow.runs.stopping import Interrupted
from nablaflow.training.processes import in_words, of_words

KEY = "nablaflow/ended"
STOPPED = Interrupted.__name__


@contextmanager
def ending_together() -> Iterator[None]:
    """Within this context an error of another process ends this one by that one's line.

    Raises:
        UserError, TrainingStopped, ExportError: what another process raised.
        Interrupted: another process was stopped.
    """
    try:
        yield
    except BaseException as error:
        if not _is_of_another(error):
            tell(error)
            raise
        raise _told() from error


def _is_of_another(error: BaseException) -> bool:
    """Whether it says that another process does not answer."""
    return isinstance(error, DistError) or (type(error) is RuntimeError and "gloo" in str(error))


def tell(error: BaseException) -> None:
    """Leave to the others what ends this process, unless one of them was first."""
    store = last_meeting()
    if store is None:
        return
    stopped = isinstance(error, KeyboardInterrupt)
    kind, line = (STOPPED, str(error) or "stopped") if stopped else in_words(error)
    with suppress(RuntimeError):  # whoever keeps the words is gone
        store.compare_set(KEY, "", json.dumps([_process(), kind, line]))


def _process() -> int:
    return int(os.environ.get("RANK") or 0)


def _left() -> list[Any] | None:
    """What the process that ended first has left.

    Whoever keeps it has to be there for certain: the launcher, or else the first process, whose
    end torch would tell in a page.
    """
    store, of_launcher = last_meeting(), os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    if store is None or not (of_launcher or _process() == 0):
        return None
    with suppress(RuntimeError):
        return json.loads(store.get(KEY)) if store.check([KEY]) else None
    return None


def _told() -> BaseException:
    found = _left()
    if found is None:
        return TrainingStopped(
            "another process of this launch has ended, or was killed, and its own output says why; "
            "what was saved is whole"
        )
    process, kind, line = found
    told = f"process {process} of this launch ended: {line}" if kind else line
    return Interrupted(told) if kind == STOPPED else of_words(kind, told, process)
