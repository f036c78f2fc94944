"""What belongs to the whole process, and is put back after a reward's code has changed it."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch
from torch.backends import cudnn


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _go_to(folder: str | None) -> None:
    if folder is not None:
        with suppress(OSError):
            os.chdir(folder)


def _put_streams(streams: tuple[Any, Any, Any]) -> None:
    sys.stdin, sys.stdout, sys.stderr = streams


_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _put_stops(handlers: tuple[Any, ...]) -> None:
    with suppress(ValueError, TypeError):  # not the main thread; set by no line of Python
        for number, handler in zip(_STOPS, handlers, strict=True):
            signal.signal(number, handler)


def _put_device(device: torch.device) -> None:
    torch.set_default_device(None if device == torch.device("cpu") else device)


_CUDNN = ("enabled", "benchmark", "deterministic", "allow_tf32")


def _put_cudnn(values: tuple[bool, ...]) -> None:
    for name, value in zip(_CUDNN, values, strict=True):
        setattr(cudnn, name, value)


def _flushes_denormals() -> bool:
    return not (torch.tensor(1e-40, dtype=torch.float32, device="cpu") * 1).item()


class _Kept:
    """A stream that stays open, whoever closes it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def close(self) -> None:
        self._stream.flush()


@contextmanager
def _on_standard_error() -> Iterator[None]:
    """Within it what is printed goes there; other streams that are set meanwhile stay set."""
    out, error = sys.stdout, sys.stderr
    told: Any = None if error is None else _Kept(error)
    sys.stdout = sys.stderr = told
    try:
        yield
    finally:
        if sys.stdout is told:
            sys.stdout = out
        if sys.stderr is told:
            sys.stderr = error


@contextmanager
def _not_ended_at_once() -> Iterator[None]:
    """Within it ``os._exit`` is ``sys.exit``, but for processes that the code starts itself."""
    here, end = os.getpid(), os._exit

    def leave(status: int) -> Any:
        if os.getpid() != here:
            end(status)
        raise SystemExit(status)

    os._exit = leave
    try:
        yield
    finally:
        os._exit = end


_GLOBAL: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (torch.get_default_device, _put_device),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "whether gradients are recorded": (torch.is_grad_enabled, torch.set_grad_enabled),
    "whether gradients are searched for NaN": (
        torch.is_anomaly_enabled,
        torch.autograd.set_detect_anomaly,
    ),
    "whether algorithms are deterministic": (
        torch.get_deterministic_debug_mode,
        torch.set_deterministic_debug_mode,
    ),
    "the precision of float32 products": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "cuDNN's settings": (lambda: tuple(getattr(cudnn, name) for name in _CUDNN), _put_cudnn),
    "whether the smallest numbers count as 0": (_flushes_denormals, torch.set_flush_denormal),
    "the working directory": (_working_directory, _go_to),
    "the standard streams": (lambda: (sys.stdin, sys.stdout, sys.stderr), _put_streams),
    "what Ctrl-C, SIGTERM and SIGHUP do": (
        lambda: tuple(signal.getsignal(number) for number in _STOPS),
        _put_stops,
    ),
    "the recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
}
"""How each is read and set."""


@contextmanager
def left_as_it_was(who: str) -> Iterator[None]:
    """Put back what the code inside changes for the whole process, and name it once.

    What it prints goes to standard error: standard output may be one JSON object.
    Numbers that it draws from torch's global generator stay drawn; a seed that it sets does not
    stay set.
    """
    before = {what: read() for what, (read, _) in _GLOBAL.items()}
    seed, drawn = torch.initial_seed(), torch.get_rng_state()
    changed: list[str] = []
    try:
        with _on_standard_error(), _not_ended_at_once():
            yield
    finally:
        for what, (read, put) in _GLOBAL.items():
            if read() != before[what]:
                put(before[what])
                changed.append(what)
        if torch.initial_seed() != seed:
            torch.manual_seed(seed)
            torch.set_rng_state(drawn)
            changed.append("the seed of torch's global generator")
        for what in changed:  # only now, where standard error is what it was
            _say(who, what)


@contextmanager
def surroundings_left(who: str) -> Iterator[None]:
    """The same of the environment and the filters of warnings.

    A file may set those for its own libraries when it is imported; a call has no reason to.
    Variables that it adds stay: libraries that it loads do so.
    """
    variables, filters = dict(os.environ), list(warnings.filters)
    try:
        yield
    finally:
        lost = {name: v for name, v in variables.items() if os.environ.get(name) != v}
        if lost:
            os.environ.update(lost)
            _say(who, "the environment")
        if list(warnings.filters) != filters:
            warnings.resetwarnings()
            warnings.filters.extend(filters)  # type: ignore[attr-defined]
            _say(who, "the filters of warnings")


@cache
def _say(who: str, what: str) -> None:
    print(f"{who} changes {what}, which is put back after each call", file=sys.stderr)
