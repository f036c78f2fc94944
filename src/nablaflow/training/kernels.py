"""The kernels of ``sampler.variance: analytic``: found once, from the reference, and kept.

What x_k leaves open of x_0 is found on samples of the reference itself, for the run's prompts and
always from the same noise: runs that differ in their seed or their method have one reference. So
they are kept for later runs, as a bank is, and the demo's ship. Each checkpoint holds the figures,
so that whatever reads one samples with the kernels it was trained on.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.diffusion import left_open, squared_errors, trajectory_noise
from nablaflow.errors import UserError
from nablaflow.evaluation.bank import sample_states, spread, states_key
from nablaflow.evaluation.kept import find_kept, keep
from nablaflow.evaluation.shares import in_shares
from nablaflow.models import SamplerSettings
from nablaflow.models.pipelines import PipelineModel
from nablaflow.progress import StartProgress, unseen
from nablaflow.seeds import stream
from nablaflow.storage.checkpoint import load_group

GROUP = "kernels"  # of a checkpoint's tensors
SAMPLES = 64  # every one of them has thousands of coordinates, and is noised at every level
SEED = 0


def kernel_state(model: PipelineModel) -> dict[str, Tensor]:
    """What a checkpoint keeps of the kernels; nothing where they are the sampler's own."""
    return {} if model.left_open is None else {"left_open": model.left_open}


def load_kernels(model: PipelineModel, checkpoint: Path) -> None:
    """Give a model the kernels that a checkpoint was trained with.

    Raises:
        DamagedCheckpoint: its file is missing or damaged.
        UserError: it is of another number of steps, or of no kernels.
    """
    path = checkpoint / f"{GROUP}.safetensors"
    found = load_group(checkpoint, GROUP).get("left_open")
    if found is None:
        raise UserError(f"{path} holds no kernels, which sampler.variance=analytic needs")
    if len(found) != model.process.steps + 1:
        raise UserError(
            f"{path} is of {len(found) - 1} steps, sampler.steps of {model.process.steps}; "
            "use the run's own"
        )
    model.widen_kernels(found)


def find_kernels(
    model: PipelineModel,
    prompts: list[str],
    sampler: SamplerSettings,
    batch: int,
    fingerprint: str = "",
    start: StartProgress = unseen,
) -> None:
    """Give a model the kernels of its reference: those found before, or `estimate` and keep them.

    Args:
        sampler: the settings that the model samples by.
        batch: images at once, halved where memory does not suffice.
        fingerprint: of the pretrained weights; empty where nothing is to be kept.
        start: shows the work, if there is any.

    Raises:
        UserError: the sampler has such kernels already.
    """
    model.widen_kernels(torch.zeros(model.process.steps + 1))  # its own, and refuses what it must
    own = (GROUP, model.device.type)  # the last digits depend on the kind of device
    key = states_key(fingerprint, prompts, sampler, model.process, SAMPLES, SEED, own)
    found = find_kept(GROUP, key) if fingerprint else None
    if found is None:
        found = {"left_open": estimate(model, prompts, batch, start)}
        if fingerprint:
            keep(GROUP, key, found)
    model.widen_kernels(found["left_open"])


@torch.no_grad()
def estimate(
    model: PipelineModel, prompts: list[str], batch: int, start: StartProgress = unseen
) -> Float[Tensor, "levels"]:
    """What x_k leaves open of x_0, by k, from `SAMPLES` images of the reference by its own kernels.

    They are noised afresh at every level. Arguments as `find_kernels` has them.
    """
    process, index = model.process, spread(SAMPLES, len(prompts)).tolist()
    told = start("measure the kernels", 2 * SAMPLES)
    with model.reference():
        states = sample_states(
            model, prompts, SAMPLES, seed=SEED, batch=batch, purpose=GROUP, on_progress=told
        )

        def errors(part: slice) -> Tensor:
            rows = range(part.start, part.stop)
            condition = model.condition([prompts[index[row]] for row in rows])
            found = squared_errors(
                process,
                states[part].to(model.device),
                lambda x, k: model.predict(x, k, condition),
                trajectory_noise([stream(SEED, "left-open", row) for row in rows]),
            )
            return (found * len(rows)).cpu()

        parts = in_shares(errors, SAMPLES, batch, "evaluation.batch", told)
    return left_open(process, torch.stack(parts).sum(0) / SAMPLES).float()
