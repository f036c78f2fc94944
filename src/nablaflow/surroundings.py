"""What a program has set for tensors of its own: neither it nor a run reaches the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Asked = ParamSpec("Asked")
Found = TypeVar("Found")


@contextmanager
def own_surroundings() -> Iterator[None]:
    """Gradients, float32, no autocast and no default device, as in a program that has just begun.

    Afterwards all is as it was, torch's global random numbers too, which a run seeds and from which
    peft draws.
    """
    with ExitStack() as stack:
        stack.enter_context(_WHOLE_PROCESS.inside())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


class _WholeProcess:
    """What all threads share: the first that comes in keeps it, the last that goes puts it back."""

    def __init__(self) -> None:
        self._lock, self._inside, self._kept = threading.Lock(), 0, ExitStack()

    @contextmanager
    def inside(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._keep()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._kept.close()

    def _keep(self) -> None:
        cuda = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        self._kept.enter_context(torch.random.fork_rng(cuda))
        self._kept.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)


_WHOLE_PROCESS = _WholeProcess()


def surrounded(function: Callable[Asked, Found]) -> Callable[Asked, Found]:
    """Have a function work in `own_surroundings`."""

    @wraps(function)
    def work(*args: Asked.args, **named: Asked.kwargs) -> Found:
        with own_surroundings():
            return function(*args, **named)

    return work
