"""What every reward promises, kept in one place: float32 inside, one finite number an image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor

from nablaflow.devices import without_autocast
from nablaflow.errors import UserError
from nablaflow.rewards.ahead import GoesAhead, Queue
from nablaflow.rewards.calling import calling
from nablaflow.typing import Batch, Images, Reward

Components = dict[str, Batch]
"""The scores (batch,) of each reward that another is made of, by its name."""
Found = tuple[Batch, Components]
"""The scores of a reward, and of all that it is made of."""
FoundOfAny = tuple[Tensor, dict[str, Tensor]]
"""The same of images whose number is not that of others beside them."""


class Composite(ABC):
    """A reward that is made of others."""

    @property
    @abstractmethod
    def parts(self) -> tuple[NamedReward, ...]:
        """The rewards that it is made of."""

    @abstractmethod
    def combine(self, scores: list[Batch]) -> Batch:
        """Its scores (batch,) from those of its parts, in their order."""

    def evaluate(self, images: Images, prompts: list[str]) -> Found:
        """Its scores, and those of its parts and of theirs."""
        return self.together([part.detailed(images, prompts) for part in self.parts])

    def together(self, found: Sequence[Found]) -> Found:
        """What `evaluate` gives, from what its parts gave."""
        components: Components = {}
        for part, (score, inner) in zip(self.parts, found, strict=True):
            components |= {**inner, part.name: score}
        return self.combine([score for score, _ in found]), components

    def __call__(self, images: Images, prompts: list[str]) -> Batch:
        """Score images in [0, 1], one prompt each."""
        return self.evaluate(images, prompts)[0]


@dataclass(frozen=True)
class NamedReward:
    """A reward with the name that messages and logs give it.

    Attributes:
        name: a name of the list, a path with a function, or a sum of such.
        function: the reward itself. The built-in ones keep the dtype of the images.
        timeout: seconds that a call may take; None: as many as it likes.
    """

    name: str
    function: Reward
    timeout: float | None = None

    def __call__(self, images: Images, prompts: list[str]) -> Batch:
        """Score images in [0, 1], one prompt each.

        Half-precision images are raised to float32 (float64 stays) and autocast is off, so the
        reward and the gradient inside it are never computed in half precision.

        Raises:
            UserError: the reward is not a finite float32 tensor of shape (batch,) on the images'
                device.
        """
        return self.detailed(images, prompts)[0]

    def detailed(self, images: Images, prompts: list[str]) -> Found:
        """Score as a call does, and give the scores of all rewards that it is made of, by name.

        Raises:
            UserError: as in a call.
        """
        images = at_least_float32(images)
        return self._checked(images, lambda: self._score(images, prompts))

    def _score(self, images: Images, prompts: list[str]) -> tuple[Any, Components]:
        if isinstance(self.function, Composite):
            return self.function.evaluate(images, prompts)
        if not _is_foreign(self.function):
            return self.function(images, prompts), {}
        # The user's code may write into what it is given, through numpy for one.
        return self.function(images.clone(), list(prompts)), {}

    def begin(self, images: Images, prompts: list[str], queue: Queue) -> Callable[[], Found]:
        """Begin what `detailed` does, without a gradient; what is returned ends it.

        Of what it is made of, the parts whose work is done elsewhere go on beside the caller's; the
        others are called at once, on the caller's thread.

        Raises:
            UserError: as in a call, now or at the end.
        """
        images, function = at_least_float32(images), self.function
        if not (isinstance(function, Composite) or _is_apart(function, images.device)):
            found = self.detailed(images, prompts)
            return lambda: found
        with self._calling(images):
            end = _begin(function, images, prompts, queue)
        # What the check looks at, without the images, of which many may wait.
        like = images.new_empty(len(images))
        return lambda: self._checked(like, end)

    @contextmanager
    def _calling(self, images: Tensor) -> Iterator[None]:
        """Within this context the reward's code is called."""
        around = calling(self.name, self.timeout, foreign=_is_foreign(self.function))
        with around, without_autocast(images.device):
            yield

    def _checked(self, images: Tensor, score: Callable[[], Found]) -> Found:
        with self._calling(images):
            scores, components = score()
        check_form(self.name, scores, images)
        check_finite(self.name, scores)
        return scores, components


def _begin(
    function: GoesAhead | Composite, images: Images, prompts: list[str], queue: Queue
) -> Callable[[], Found]:
    if isinstance(function, Composite):
        parts = [part.begin(images, prompts, queue) for part in function.parts]
        return lambda: function.together([end() for end in parts])
    scores = function.begin(images, prompts, queue)
    return lambda: (scores(), {})


def _is_apart(function: Any, device: torch.device) -> TypeGuard[GoesAhead]:
    """Whether its work is done elsewhere than on a device, so that it may go on by itself."""
    return isinstance(function, GoesAhead) and function.is_apart(device)


def _is_foreign(function: Any) -> bool:
    """Whether code of the user's is called, be it through a wrapper's ``function``."""
    inner = getattr(function, "function", function)
    return not str(getattr(inner, "__module__", "")).startswith("nablaflow.")


def named(reward: Any) -> NamedReward:
    """Give a callable its own name; a ``NamedReward`` stays as it is.

    Raises:
        UserError: it cannot be called, or makes an object where it is.
    """
    if isinstance(reward, NamedReward):
        return reward
    if isinstance(reward, type):
        name = reward.__name__
        raise UserError(f"reward {name} is a class: give an instance of it, such as {name}()")
    if not callable(reward):
        raise UserError(
            f"reward {reward!r} is not callable: give a name, path/to/file.py:function, "
            "a mapping of those to weights, or a function of (images, prompts)"
        )
    name = getattr(reward, "__name__", type(reward).__name__)
    return NamedReward(name, cast(Reward, reward))


def at_least_float32(images: Tensor) -> Tensor:
    """Raise half precision to float32; float32 and float64 stay, without a copy."""
    return images.to(torch.promote_types(images.dtype, torch.float32))


def check_form(name: str, scores: Any, images: Tensor) -> None:
    """Raise ``UserError`` unless ``scores`` is a float32 tensor (batch,) on the images' device.

    The images' own dtype will do too, so that float64 can be carried through.
    """
    batch = len(images)
    if not isinstance(scores, Tensor):
        raise UserError(
            f"reward {name!r} returned {type(scores).__name__}: "
            f"return a torch.Tensor of shape ({batch},), one number an image"
        )
    if scores.shape != (batch,):
        raise UserError(
            f"reward {name!r} returned shape {tuple(scores.shape)} for {batch} images: "
            f"return shape ({batch},), one number an image"
        )
    if scores.layout != torch.strided:
        raise UserError(f"reward {name!r} returned a sparse tensor: end it with .to_dense()")
    if scores.dtype not in (torch.float32, images.dtype):
        raise UserError(f"reward {name!r} returned {scores.dtype}: end it with .float()")
    if scores.device != images.device:
        raise UserError(
            f"reward {name!r} returned its scores on {scores.device}, the images are on "
            f"{images.device}: end it with .to(images.device)"
        )


def check_finite(name: str, values: Tensor, what: str = "reward") -> None:
    """Raise ``UserError`` unless all ``values``, whose first dimension is the batch, are finite.

    Args:
        name: of the reward.
        values: (batch, ...), its scores or their gradient.
        what: what the values are, for the message.
    """
    finite = values.detach()[:, None].isfinite().flatten(1).all(1)
    if not finite.all():
        raise UserError(
            f"the {what} of {name!r} is NaN or infinite for {int((~finite).sum())} of "
            f"{len(values)} images: look for a division by 0, or a log or sqrt at 0"
        )


def score_and_gradient(
    reward: NamedReward, images: Images, prompts: list[str]
) -> tuple[Batch, Images]:
    """Rewards and their gradient with respect to the images, both detached and at least float32.

    Works under ``torch.no_grad`` too; the graph behind ``images`` is not followed.

    Raises:
        UserError: one of the two is not finite, the reward has no gradient, or it breaks its
            contract otherwise.
    """
    with torch.enable_grad():
        leaf = at_least_float32(images.detach()).requires_grad_()
        scores = reward(leaf, prompts)
        # The rows do not depend on one another (``probe`` checks it): one sum gives all gradients.
        gradient = gradient_of(reward.name, scores, leaf)
    return scores.detach(), gradient


def gradient_of(name: str, scores: Batch, leaf: Tensor) -> Tensor:
    """The gradient of the sum of a reward's scores with respect to what they are of.

    Raises:
        UserError: it is not finite, or there is none in this call.
    """
    total = scores.sum()
    if not total.requires_grad:
        raise UserError(
            f"reward {name!r} gave scores without a gradient in this call; it must give them with "
            "one in every call"
        )
    (gradient,) = torch.autograd.grad(total, leaf)
    check_finite(name, gradient, "gradient")
    return gradient


def summary(error: BaseException) -> str:
    """An exception on one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def walk(reward: NamedReward) -> Iterator[NamedReward]:
    """A reward and all that it is made of, parts after the whole."""
    yield reward
    if isinstance(reward.function, Composite):
        for part in reward.function.parts:
            yield from walk(part)


def goes_ahead(reward: NamedReward, device: torch.device) -> bool:
    """Whether a part of it can be begun and waited for later, see `NamedReward.begin`."""
    return any(_is_apart(part.function, device) for part in walk(reward))
