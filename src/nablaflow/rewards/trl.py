"""Rewards as TRL's diffusion trainers take them: ``trl:path/to/file.py:function``.

    function(images, prompts, metadata) -> (scores, info)

for images (batch, 3, h, w) in [0, 1] and tuples with one prompt and one metadata for each of them:
what `DDPOTrainer` and `AlignPropTrainer` of TRL up to 0.22 called. A function of ``(images,
prompts)`` and one that returns its scores alone are taken as well; ``info`` is not used, as there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from nablaflow.errors import UserError
from nablaflow.rewards.contract import NamedReward, walk
from nablaflow.rewards.custom import load_function
from nablaflow.typing import Batch, Images

TRL = "trl:"
Metadata = Mapping[str, Any]
"""What stands beside each prompt, by the prompt's text."""


class TrlReward:
    """A function with TRL's signature as a reward of this package.

    It has a gradient if the function keeps the graph from the images to the scores.

    Attributes:
        metadata: by prompt; `tell_metadata` sets it. A prompt without any gets ``{}``.

    Raises:
        UserError: the function takes neither (images, prompts, metadata) nor (images, prompts).
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        self.__name__ = name or getattr(function, "__name__", type(function).__name__)
        self.function = function
        self.metadata: Metadata = {}
        self._takes_metadata = _takes_metadata(function, self.__name__)

    def __call__(self, images: Images, prompts: list[str]) -> Batch:
        """The function's scores, in the images' dtype and on their device.

        Raises:
            UserError: it returned no numbers, or a tuple that is not (scores, info).
        """
        given = [images, tuple(prompts)]
        if self._takes_metadata:
            given.append(tuple(self.metadata.get(prompt, {}) for prompt in prompts))
        found = self.function(*given)
        if isinstance(found, tuple):
            if len(found) != 2:
                raise UserError(
                    f"reward {self.__name__!r} returned {len(found)} things: return (scores, info)"
                )
            found = found[0]
        try:
            return torch.as_tensor(found, device=images.device).to(images.dtype)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"reward {self.__name__!r} returned {type(found).__name__} for its scores: return "
                "a tensor, an array or a list with one number an image"
            ) from error


def is_trls(function: Callable[..., Any]) -> bool:
    """Whether it has to be given metadata, as TRL's rewards are and no others."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin
        return False
    return _binds(signature, 3) and not _binds(signature, 2)


def _binds(signature: inspect.Signature, arguments: int) -> bool:
    try:
        signature.bind(*range(arguments))
    except TypeError:
        return False
    return True


def _takes_metadata(function: Callable[..., Any], name: str) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin; TRL's own calls have three
        return True
    for arguments in (3, 2):
        if _binds(signature, arguments):
            return arguments == 3
    raise UserError(
        f"reward {name!r} takes {signature}: TRL's rewards take (images, prompts, metadata)"
    )


def is_trl(spec: str) -> bool:
    """Whether a spec names a function with TRL's signature."""
    return spec.startswith(TRL)


def load_trl(spec: str) -> NamedReward:
    """The reward that ``trl:path/to/file.py:function`` means.

    Raises:
        UserError: as `nablaflow.rewards.custom.load_function` and `TrlReward` say.
    """
    function = load_function(spec.removeprefix(TRL))
    return NamedReward(spec, TrlReward(function, spec))


def tell_metadata(reward: NamedReward, find: Callable[[], Metadata]) -> None:
    """Give the parts of a reward that read metadata what stands beside the prompts.

    Args:
        find: looks it up; called only if some part reads it.

    Raises:
        UserError: as ``find`` says.
    """
    readers = [part.function for part in walk(reward) if isinstance(part.function, TrlReward)]
    if readers:
        metadata = find()
        for reader in readers:
            reader.metadata = metadata
