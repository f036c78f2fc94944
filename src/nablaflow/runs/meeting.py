"""Where the processes of a launch meet, for how long they wait there, and what is said if in vain.

Those that were started again have a place of their own: torchrun keeps one store of addresses for
all of its restarts (unless it has TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1), and a restarted process
that is early finds the address of one that was killed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlparse

from torch.distributed import DistError, PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from nablaflow.errors import UserError

SCHEME = "nablaflow"
WAIT = timedelta(minutes=10)
"""For the others to come, as torch waits on GPUs; later waits are of the work of a run."""


def meeting_place(restarts: int) -> str:
    """``init_method`` of a process group.

    Args:
        restarts: how often torchrun has started these processes again.
    """
    return f"{SCHEME}://{restarts}"


@contextmanager
def meeting() -> Iterator[None]:
    """Tell in one line that the processes did not meet within.

    Raises:
        UserError: so it is.
    """
    _under_way.set()
    try:
        yield
    except DistError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"launch: process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')} found no "
            f"others at {place} ({reason}); start all with one MASTER_ADDR and one MASTER_PORT "
            "that nothing else listens on (docs/scaling.md)"
        ) from error
    finally:
        _under_way.clear()


_under_way = threading.Event()
_met: list[Store] = []


def have_met() -> bool:
    """Whether words can be left now: who still waits for the others has the store to itself."""
    return bool(_met) and not _under_way.is_set()


def last_meeting() -> Store | None:
    """Where the processes of this run met, and may leave words; None for one process."""
    return _met[-1] if _met else None


def _meet(url: str, timeout: timedelta, **options: Any) -> Iterator[tuple[Store, int, int]]:
    parts = urlparse(url)
    own = f"env://?{parts.query}" if parts.query else "env://"  # torch adds rank and size there
    for store, rank, size in rendezvous(own, timeout=min(timeout, WAIT), **options):
        if int(parts.netloc):
            store = PrefixStore(f"restart {parts.netloc}", store)
        _met[:] = [store] if size > 1 else []
        yield store, rank, size


register_rendezvous_handler(SCHEME, _meet)
