"""An ensemble of small heads on frozen features, its disagreement, and the file it is kept in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import silu

from nablaflow.errors import UserError
from nablaflow.storage import checksums
from nablaflow.storage.files import write_whole
from nablaflow.typing import Batch, Features

FORMAT = 1
METADATA = "nablaflow_reward"


@dataclass(frozen=True)
class Heads:
    """score_m(f) = direct_m . f' + slope_m . silu(inner_m f' + bias_m) + offset_m.

    f' are the features, less ``mean``, over ``std``. With hidden = 0 every member is linear.
    """

    mean: Float[Tensor, "feature"]
    std: Float[Tensor, "feature"]
    direct: Float[Tensor, "member feature"]
    inner: Float[Tensor, "member hidden feature"]
    bias: Float[Tensor, "member hidden"]
    slope: Float[Tensor, "member hidden"]
    offset: Float[Tensor, "member"]

    def __call__(self, features: Features) -> Float[Tensor, "member batch"]:
        """The score of every member for every row."""
        standard = (features - self.mean) / self.std
        linear = self.direct @ standard.T + self.offset[:, None]
        if not self.inner.shape[1]:
            return linear
        bent = silu(torch.einsum("mhf,bf->mbh", self.inner, standard) + self.bias[:, None])
        return linear + torch.einsum("mbh,mh->mb", bent, self.slope)

    def to(self, device: torch.device) -> Heads:
        return Heads(**{name: value.to(device) for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def mean_and_spread(scores: Float[Tensor, "member batch"]) -> tuple[Batch, Batch]:
    """Mean over the members and their standard deviation, n - 1 in the denominator."""
    if len(scores) == 1:
        return scores[0], torch.zeros_like(scores[0])
    # The slope of a root at 0 is infinite: where all members agree there is none.
    return scores.mean(0), scores.var(0).clamp_min(1e-12).sqrt()


def save_heads(path: Path, heads: Heads, about: Mapping[str, Any]) -> None:
    """Write one safetensors file, whole or not at all.

    Args:
        about: what else is to be known, in JSON: the features' name, how good the heads are.
    """
    tensors = {name: value.contiguous() for name, value in heads.tensors().items()}
    own = {"format": FORMAT, **about}
    whole = {**own, "sha256": checksums.of_tensors(tensors, own)}
    write_whole(path, save(tensors, {METADATA: json.dumps(whole)}))


def read_heads(path: Path) -> tuple[Heads, dict[str, Any]]:
    """The heads of a file, and what ``save_heads`` was told about them.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise UserError(f"reward: there is no file {path}; `nablaflow reward fit` writes one")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"reward: {path} is not a whole safetensors file; fit it again") from error
    names = {field.name for field in fields(Heads)}
    known = isinstance(about, dict) and {"format", "sha256"} <= about.keys()
    if not known or about["format"] != FORMAT or set(tensors) != names:
        raise UserError(
            f"reward: {path} was not written by `nablaflow reward fit` of this version; fit again"
        )
    if about.pop("sha256") != checksums.of_tensors(tensors, about):
        raise UserError(f"reward: {path} is damaged: its checksum is of another content; fit again")
    return Heads(**tensors), about
