"""What a program has set for tensors of its own: it does not reach this package's work, nor that it."""

from __future__ import annotations

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
    cuda = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(cuda))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield


def surrounded(function: Callable[Asked, Found]) -> Callable[Asked, Found]:
    """Have a function work in `own_surroundings`."""

    @wraps(function)
    def work(*args: Asked.args, **named: Asked.kwargs) -> Found:
        with own_surroundings():
            return function(*args, **named)

    return work
