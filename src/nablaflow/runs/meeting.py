"""Where the processes of a launch meet: a place of its own for those that were started again.

torchrun keeps one store of addresses for all of its restarts (unless it has
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1), and a restarted process that is early finds the address of
one that was killed.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlparse

from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

SCHEME = "nablaflow-restart"


def meeting_place(restarts: int) -> str | None:
    """``init_method`` of a process group; None: torch's own.

    Args:
        restarts: how often torchrun has started these processes again.
    """
    return f"{SCHEME}://{restarts}" if restarts else None


def _meet(url: str, timeout: timedelta, **options: Any) -> Iterator[tuple[Store, int, int]]:
    name = f"restart {urlparse(url).netloc}"
    for store, rank, size in rendezvous("env://", timeout=timeout, **options):
        yield PrefixStore(name, store), rank, size


register_rendezvous_handler(SCHEME, _meet)
