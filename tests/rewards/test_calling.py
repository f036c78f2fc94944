"""A reward's code cannot end the program, nor change it for what comes after."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from torch.backends import cudnn

from nablaflow.errors import UserError
from nablaflow.rewards import NamedReward
from nablaflow.rewards.calling import RewardFailed

IMAGES = torch.rand(2, 3, 4, 4)


def reward(effect: Callable[[], object], name: str, timeout: float | None = None) -> NamedReward:
    def score(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        effect()
        return images.float().mean((1, 2, 3)).float()

    return NamedReward(name, score, timeout)


@pytest.mark.parametrize("code", [0, None, 1, "bye"])
def test_sys_exit_is_a_failure(code: object):
    with pytest.raises(RewardFailed, match=r"sys\.exit"):
        reward(lambda: sys.exit(code), "leaves")(IMAGES, ["a", "b"])


def test_leaving_at_once_is_a_failure_too():
    with pytest.raises(RewardFailed, match=r"sys\.exit\(0\)"):
        reward(lambda: os._exit(0), "leaves at once")(IMAGES, ["a", "b"])


def test_a_process_of_its_own_ends_as_it_likes():
    def fork() -> None:
        child = os.fork()
        if child == 0:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7

    reward(fork, "forks")(IMAGES, ["a", "b"])


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_is_closed_is_open_afterwards(
    stream: str, capsys: pytest.CaptureFixture[str]
):
    reward(lambda: getattr(sys, stream).close(), f"closes {stream}")(IMAGES, ["a", "b"])
    print("told", file=sys.stderr)
    assert capsys.readouterr().err == "told\n"


EFFECTS = {
    "default dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "threads": (lambda: torch.set_num_threads(3), torch.get_num_threads),
    "gradients": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "deterministic": (
        lambda: torch.use_deterministic_algorithms(True),
        torch.are_deterministic_algorithms_enabled,
    ),
    "precision": (
        lambda: torch.set_float32_matmul_precision("medium"),
        torch.get_float32_matmul_precision,
    ),
    "seed": (lambda: torch.manual_seed(99), torch.initial_seed),
    "default device": (lambda: torch.set_default_device("meta"), torch.get_default_device),
    "searched for NaN": (
        lambda: torch.autograd.set_detect_anomaly(True),
        torch.is_anomaly_enabled,
    ),
    "cuDNN": (lambda: setattr(cudnn, "benchmark", True), lambda: cudnn.benchmark),
    "smallest numbers": (lambda: torch.set_flush_denormal(True), lambda: torch.tensor(1e-40) * 1),
    "working directory": (lambda: os.chdir("/"), os.getcwd),
    "standard streams": (lambda: setattr(sys, "stderr", None), lambda: sys.stderr),
    "Ctrl-C": (
        lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        lambda: signal.getsignal(signal.SIGTERM),
    ),
    "recursion limit": (lambda: sys.setrecursionlimit(5000), sys.getrecursionlimit),
    "environment": (os.environ.clear, lambda: dict(os.environ)),
    "filters of warnings": (
        lambda: warnings.simplefilter("error"),
        lambda: list(warnings.filters),
    ),
}


@pytest.mark.parametrize("word", EFFECTS)
def test_what_it_changes_for_all_is_put_back_and_named(
    word: str, capsys: pytest.CaptureFixture[str]
):
    effect, read = EFFECTS[word]
    before = read()
    changing = reward(effect, f"alters {word}")
    changing(IMAGES, ["a", "b"])
    assert read() == before
    told = capsys.readouterr().err.replace(f"alters {word}", "")
    assert word in told
    changing(IMAGES, ["a", "b"])
    assert capsys.readouterr().err == "", "said once"


def test_what_it_prints_is_kept_from_the_result(capsys: pytest.CaptureFixture[str]):
    reward(lambda: print("a score"), "prints")(IMAGES, ["a", "b"])
    assert capsys.readouterr() == ("", "a score\n")


def test_what_it_writes_into_its_input_changes_nothing_here():
    def score(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        prompts.clear()
        pixels = images.detach().numpy()
        pixels *= 0.5
        return images.mean((1, 2, 3))

    images, prompts = IMAGES.clone(), ["a", "b"]
    assert torch.equal(NamedReward("writes", score)(images, prompts), 0.5 * IMAGES.mean((1, 2, 3)))
    assert torch.equal(images, IMAGES)
    assert prompts == ["a", "b"]


def fails(error: BaseException) -> Callable[[], None]:
    def effect() -> None:
        raise error

    return effect


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), GeneratorExit()], ids=["disk", "end"]
)
def test_what_a_command_would_take_for_its_own_keeps_its_trace(error: BaseException):
    with pytest.raises(RewardFailed, match=type(error).__name__) as found:
        reward(fails(error), "fails")(IMAGES, ["a", "b"])
    assert found.value.__cause__ is error


def test_numbers_after_a_reward_that_seeds_are_those_without_it():
    torch.manual_seed(5)
    wanted = torch.rand(4)
    torch.manual_seed(5)
    reward(lambda: torch.manual_seed(1), "seeds")(IMAGES, ["a", "b"])
    assert torch.equal(torch.rand(4), wanted)


def test_a_reward_that_draws_noise_gets_another_each_time():
    drawn = []
    noisy = reward(lambda: drawn.append(torch.rand(3)), "noisy")
    noisy(IMAGES, ["a", "b"])
    noisy(IMAGES, ["a", "b"])
    assert not torch.equal(*drawn)


def test_one_that_hangs_is_given_up():
    with pytest.raises(UserError, match=r"training\.reward_timeout"):
        reward(hang, "hangs", timeout=0.05)(IMAGES, ["a", "b"])


def hang() -> None:
    while True:
        pass


def test_a_limit_does_not_outlast_the_call():
    before = signal.getsignal(signal.SIGALRM)
    reward(lambda: None, "quick", timeout=1000.0)(IMAGES, ["a", "b"])
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == before
