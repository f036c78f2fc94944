"""Images scored by a judge elsewhere while others are sampled, seen from the judge.

Whoever waits for the other side waits for an event, and only in a failing test for long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.rewards import NamedReward, WeightedSum
from nablaflow.runs.setup import Parts
from nablaflow.training import scoring
from tests.support.judge import Server, judging, mean_red

LONG = 60.0  # seconds after which a test has failed
MakeParts = Callable[..., Parts]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "*")
    with judging() as found:
        found.answer = mean_red
        yield found


@pytest.fixture
def parts(server: Server, settings: dict[str, Any], make_parts: MakeParts) -> Parts:
    """Rollouts of six trajectories, two at once."""
    settings["method"] = {"name": "ddpo", "beta": 1.0}
    settings["flow"] = None
    settings["reward"] = {"name": "remote", "url": server.url, "retries": 0}
    parts = make_parts("training.images_per_prompt=3", "training.rollout_batch=2")
    server.requests.clear()  # it was tried
    return parts


def watched(parts: Parts, monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]) -> None:
    """Call ``before`` with the number of each part of a rollout that is sampled."""
    sample, calls = parts.model.sample, list[int]()

    def watch(*arguments: Any, **named: Any) -> Any:
        calls.append(len(calls))
        before(calls[-1])
        return sample(*arguments, **named)

    monkeypatch.setattr(parts.model, "sample", watch)


def test_the_first_images_are_judged_while_the_next_are_sampled(
    parts: Parts, server: Server, monkeypatch: pytest.MonkeyPatch
):
    asked, sampled = threading.Event(), threading.Event()

    def answer(request: dict[str, Any]) -> Any:
        asked.set()
        assert sampled.wait(LONG), "nothing was sampled while the judge had not answered"
        return mean_red(request)

    def before(part: int) -> None:
        if part == 1:
            assert asked.wait(LONG), "the judge was not asked before the second part"
        if part == 2:
            sampled.set()

    server.answer = answer
    watched(parts, monkeypatch, before)
    rollout, _ = parts.trainer.batches.rollouts(0)
    assert len(rollout.scores) == 6


def test_all_is_as_if_it_were_scored_afterwards(
    parts: Parts, server: Server, monkeypatch: pytest.MonkeyPatch
):
    ahead, _ = parts.trainer.batches.rollouts(0)
    asked, state = list(server.requests), parts.trainer.batches.state()
    server.requests.clear()
    monkeypatch.setattr(scoring, "goes_ahead", lambda reward, device: False)
    after, _ = parts.trainer.batches.rollouts(0)
    assert torch.equal(ahead.scores, after.scores)
    assert torch.equal(ahead.x0, after.x0)
    assert len(set(ahead.scores.tolist())) == 6
    assert server.requests == asked, "the same images in the same batches and order"
    assert [len(request["images"]) for request in asked] == [2, 2, 2]
    assert parts.trainer.batches.state() == state


def test_batches_of_images_need_not_be_those_of_the_rollout(
    parts: Parts, server: Server, settings: dict[str, Any], make_parts: MakeParts
):
    whole, _ = parts.trainer.batches.rollouts(0)
    server.requests.clear()
    other = make_parts(
        "training.images_per_prompt=3", "training.rollout_batch=2", "training.decode_batch=4"
    )
    server.requests.clear()
    found, _ = other.trainer.batches.rollouts(0)
    assert [len(request["images"]) for request in server.requests] == [4, 2]
    torch.testing.assert_close(found.scores, whole.scores, atol=1 / 255, rtol=0)


def test_a_judge_that_refuses_is_the_same_mistake_and_is_asked_no_more(
    parts: Parts, server: Server
):
    server.answer = lambda request: (
        (400, b"no more") if len(server.requests) == 2 else mean_red(request)
    )
    with pytest.raises(UserError, match=r"refuses \(status 400, no more\); mend the judge"):
        parts.trainer.batches.rollouts(0)
    assert len(server.requests) == 2


def test_ctrl_c_does_not_wait_for_the_judge_and_nothing_more_is_asked(
    parts: Parts, server: Server, monkeypatch: pytest.MonkeyPatch
):
    asked, gone = threading.Event(), threading.Event()

    def answer(request: dict[str, Any]) -> Any:
        asked.set()
        assert gone.wait(LONG)
        return mean_red(request)

    def before(part: int) -> None:
        if part == 2:
            assert asked.wait(LONG)
            raise KeyboardInterrupt

    server.answer = answer
    watched(parts, monkeypatch, before)
    with pytest.raises(KeyboardInterrupt):
        parts.trainer.batches.rollouts(0)
    gone.set()
    for thread in threading.enumerate():
        if thread.name == "reward":
            assert thread.daemon
            thread.join(LONG)
    assert len(server.requests) == 1, "what was begun behind the first is not asked"


def test_images_too_many_at_once_cost_no_sampling_again(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
):
    wanted, _ = parts.trainer.batches.rollouts(0)
    decode, sampled = parts.model.decode, list[int]()

    def small(states: Any) -> Any:
        if len(states) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return decode(states)

    monkeypatch.setattr(parts.model, "decode", small)
    watched(parts, monkeypatch, sampled.append)
    found, _ = parts.trainer.batches.rollouts(0)
    assert sampled == [0, 1, 2]
    state = parts.trainer.batches.state()
    assert (state["rollout_batch"], state["decode_batch"]) == (2, 1)
    torch.testing.assert_close(found.scores, wanted.scores, atol=1 / 255, rtol=0)


def test_it_is_said(parts: Parts):
    (line,) = [line for line in parts.choices if line.startswith("reward:")]
    assert "remote" in line
    assert "while others are made" in line


def test_the_users_own_code_is_called_by_the_thread_that_samples(
    parts: Parts, server: Server, monkeypatch: pytest.MonkeyPatch
):
    """In a sum with a judge: in the same order, on copies, its scores added as ever."""
    seen: list[tuple[threading.Thread, int]] = []

    def own(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        seen.append((threading.current_thread(), len(images)))
        return images.mean((1, 2, 3))

    both = WeightedSum(((1.0, parts.reward), (1.0, NamedReward("own", own))))
    core = parts.trainer.core
    networks = replace(core.networks, reward=NamedReward("both", both))
    monkeypatch.setattr(core, "networks", networks)
    rollout, _ = parts.trainer.batches.rollouts(0)
    assert seen == [(threading.main_thread(), 2)] * 3
    total = rollout.components["remote"] + rollout.components["own"]
    torch.testing.assert_close(rollout.scores, total)
