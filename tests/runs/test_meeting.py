"""Where processes that torchrun started again meet, as its agent arranges it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from accelerate.state import PartialState
from torch.distributed import TCPStore
from torch.distributed.rendezvous import rendezvous

from nablaflow.runs.accelerator import fresh_accelerator
from nablaflow.runs.meeting import meeting_place


def test_a_restart_finds_no_address_of_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(agent.port)}
    place |= {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    stores = [
        next(rendezvous(meeting_place(restarts) or "env://", timeout=timedelta(seconds=9)))[0]
        for restarts in (0, 1, 2)
    ]
    for number, store in enumerate(stores):
        store.set(f"address of {number}", "somewhere")
    found = [[store.check([f"address of {n}"]) for n in range(3)] for store in stores]
    assert found == [[True, False, False], [False, True, False], [False, False, True]]


def test_processes_that_do_not_meet_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """What accelerate has begun to note of them by then is no account of them."""

    def fail() -> None:
        with fresh_accelerator():
            monkeypatch.setitem(PartialState._shared_state, "_cpu", True)
            raise ValueError("nobody there")

    with pytest.raises(ValueError, match="nobody there"):
        fail()
