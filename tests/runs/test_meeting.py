"""Where processes meet, started again by torchrun too, and what is said if they do not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import PartialState
from torch.distributed import TCPStore
from torch.distributed.rendezvous import rendezvous

from nablaflow.config.settings import TrainingSettings
from nablaflow.errors import UserError
from nablaflow.runs import agreement, align, evaluate, meeting
from nablaflow.runs.accelerator import fresh_accelerator, make_accelerator
from nablaflow.runs.agreement import check_agreement
from nablaflow.runs.meeting import meeting_place
from nablaflow.runs.setup import Parts


def test_a_restart_finds_no_address_of_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(agent.port)}
    place |= {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    stores = [
        next(rendezvous(meeting_place(restarts), timeout=timedelta(seconds=9)))[0]
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


def first_of_two(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    names = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**names, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)


def test_a_port_that_is_taken_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    first_of_two(monkeypatch, other.port)
    words = rf"launch: process 0 of 2 found no others at localhost:{other.port} \(.*MASTER_PORT"
    with pytest.raises(UserError, match=words), fresh_accelerator():
        make_accelerator(TrainingSettings(device="cpu"), tmp_path)


def test_others_that_do_not_come_are_not_waited_for_as_long_as_work_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    port = free.port
    del free
    monkeypatch.setattr(meeting, "WAIT", timedelta(milliseconds=20))
    first_of_two(monkeypatch, port)
    with (
        pytest.raises(UserError, match=r"launch: process 0 of 2 found no others"),
        fresh_accelerator(),
    ):
        make_accelerator(TrainingSettings(device="cpu"), tmp_path)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda told: told["optimizer"].update(learning_rate=0.5), "optimizer.learning_rate"),
        (lambda told: told.update(seed=7), "seed"),
        (lambda told: told.update(prompts="others"), "prompts"),
    ],
)
def test_processes_that_were_told_different_things_are_refused(
    make_parts: Callable[..., Parts],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Any], None],
    name: str,
) -> None:
    config = make_parts().config

    def beside_another(own: list[Any]) -> list[Any]:
        other = copy.deepcopy(own)
        change(other[0])
        return own + other

    check_agreement(config, {"prompts": ["a"]})
    monkeypatch.setattr(agreement, "gather_object", lambda own: own * 2)
    check_agreement(config, {"prompts": ["a"]})
    monkeypatch.setattr(agreement, "gather_object", beside_another)
    with pytest.raises(UserError, match=f"^{name}: process 1 of this launch has another value"):
        check_agreement(config, {"prompts": ["a"]})


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``beside("checkpoint", 7)``: another process sees another one."""

    def another(name: str, value: Any) -> None:
        def gather(own: list[Any]) -> list[Any]:
            return own + [told | {name: value} if name in told else told for told in own]

        monkeypatch.setattr(agreement, "gather_object", gather)

    return another


@pytest.mark.usefixtures("train_only")
@pytest.mark.parametrize(("name", "value"), [("--resume", False), ("checkpoint", 7)])
def test_processes_that_see_a_run_otherwise_do_not_go_on_with_it(
    make_config: Callable[..., Any], beside: Callable[..., None], name: str, value: Any
) -> None:
    """As on two machines, of which one has an older listing of the folder."""
    align.run(make_config("training.updates=1"))
    beside(name, value)
    with pytest.raises(UserError, match=f"^{name}: process 1 .* one run folder that all see"):
        align.run(make_config("training.updates=2"), resume=True)


@pytest.mark.usefixtures("train_only")
def test_processes_measure_the_same_checkpoints(
    make_config: Callable[..., Any], beside: Callable[..., None]
) -> None:
    """Beside a training one of them may find a newer one."""
    config = make_config("training.updates=1")
    align.run(config)
    beside("checkpoints", ["step-000001", "step-000002"])
    with pytest.raises(UserError, match=r"^checkpoints: process 1 of this launch"):
        evaluate.evaluate_run(config.output_dir, 6, trusted=True)
