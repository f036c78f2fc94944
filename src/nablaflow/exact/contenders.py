"""Methods as they compete in the laboratory: each with the settings that it was tuned to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from nablaflow.diffusion import ReverseProcess, adds_noise
from nablaflow.errors import UserError, nearest
from nablaflow.exact.training import LabSettings
from nablaflow.methods import Method, Untrained
from nablaflow.methods.contract import check_noise
from nablaflow.methods.own import load_method
from nablaflow.methods.variants import UNTRAINED_VARIANTS, VARIANTS, without_variant
from nablaflow.rewards.custom import is_custom


@dataclass(frozen=True)
class Contender:
    """A method for any tilt, and how it is trained; or a reference that is not trained.

    Attributes:
        method: from beta.
        settings: docs/estimators.md has the grid that they were chosen from.
    """

    method: Callable[[float], Method | Untrained]
    settings: LabSettings = field(default_factory=LabSettings)


DEFAULT = "path-weighted-matching"
"""The laboratory's default method, ours."""

PUBLISHED = "residual-nabla-db-published"
"""The published form, as published."""

TUNED = LabSettings(
    learning_rate=5e-3, flow_learning_rate=5e-3, transition_fraction=0.8, steps_per_rollout=4
)
"""The best of the grid in docs/estimators.md, or as good as any, for all that were tuned."""

_TUNED = (
    "adjoint-matching-constant",
    "adjoint-matching-exact",
    PUBLISHED,
    "residual-nabla-db",
    "residual-nabla-db-contrastive",
    "terminal",
    "nabla-td",
    "vgg-flow",
    DEFAULT,
)
_UNTUNED = (
    "refl",
    "draft-tilted",
    "draft-lv-tilted",
    "alignprop-tilted",
    "best-of-n",
    "guided-sampling",
    "guided-sampling-exact",
    "ddpo",
    "ddpo-published",
    "dag-db",
    "dag-kl",
    "reward-weighted-regression-tilted",
    "reward-weighted-regression",
    "flow-grpo",
    "diffusion-nft",
)

CONTENDERS: dict[str, Contender] = {
    name: Contender(
        {**VARIANTS, **UNTRAINED_VARIANTS}[name], TUNED if name in _TUNED else LabSettings()
    )
    for name in (*_TUNED, *_UNTUNED)
}
"""Those of `nablaflow.methods.variants` that run here; adding one is its name above."""


def default_names(sampler: str) -> tuple[str, ...]:
    """The project's default and the published form; where neither can be, what is made for it."""
    others = {
        "flow-grpo": ("flow-grpo", "diffusion-nft"),
        "euler": ("vgg-flow", "diffusion-nft"),
    }
    return others.get(sampler, (DEFAULT, PUBLISHED))


def fits(each: Contender, process: ReverseProcess) -> None:
    """Raise `UserError` where a contender cannot be trained, or sample, with such kernels."""
    method = each.method(1.0)
    if isinstance(method, Untrained):
        method.check(process)
        return
    check_noise(method, noisy=adds_noise(process))
    on_policy = each.settings.steps_per_rollout == 1
    method.check(process, flow=method.uses_flow, on_policy=on_policy)


def contender(name: str, field: str = "--method") -> Contender:
    """A contender of the list, or a method of the user's own, ``path/to/file.py:Class``.

    Args:
        field: what the name is called where it comes from.

    Raises:
        UserError: there is none of the name, or the class is not whole.
    """
    if is_custom(name):
        own = load_method(name)
        return Contender(lambda beta: own(beta=beta))
    unlisted = without_variant(name)
    if unlisted is not None:
        return Contender(lambda beta: unlisted(beta=beta))
    if name not in CONTENDERS:
        raise UserError(f"{field}: no method {name!r} here; {nearest(name, CONTENDERS)}")
    return CONTENDERS[name]
