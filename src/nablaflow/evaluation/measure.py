"""What figures are made of: images sampled, decoded and scored, and those of the reference bank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.evaluation.bank import (
    BANK_SEED,
    reference_bank,
    sample_states,
    spread,
    states_key,
)
from nablaflow.evaluation.bank_size import BankSize, look_at_bank
from nablaflow.evaluation.reference_states import ReferenceStates
from nablaflow.evaluation.sampled import ImageLook, Sampled
from nablaflow.evaluation.scored import shipped_scores
from nablaflow.evaluation.shares import in_shares
from nablaflow.features import pooled_pixels
from nablaflow.metrics.summary import SampleSet
from nablaflow.models.pipelines import PipelineModel
from nablaflow.progress import StartProgress
from nablaflow.rewards import NamedReward
from nablaflow.typing import Latents

SHOWN = 8  # images of each prompt that the report shows
MOST_SHOWN = 64
EVALUATION = "evaluation"
"""Names the noise of the samples that figures are of."""
SECOND = "yardstick"
"""Names the noise of the samples that distances are measured from."""


@torch.no_grad()
def measure_states(
    model: PipelineModel,
    reward: NamedReward | None,
    states: Latents,
    prompts: list[str],
    *,
    batch: int,
    on_progress: Callable[[int], None],
    looks: Mapping[str, ImageLook] | None = None,
) -> Sampled:
    """Decode states, prompts in turns, to features and rewards; keep the first images.

    Each process of a run looks at its share of them, and has all figures afterwards.

    Args:
        reward: None where nobody asks for the rewards, which are then NaN.
        states: (n, ...), clean ones.
        batch: how many are decoded at once; less where memory runs out.
        on_progress: told how many more are done.

    Raises:
        UserError: the reward breaks its contract, or an image is not finite.
    """
    looks = looks or {}
    index = spread(len(states), len(prompts))
    shown = min(MOST_SHOWN, SHOWN * len(prompts), len(states))

    def work(rows: slice) -> tuple[Tensor, ...]:
        pictures = model.decode(states[rows].to(model.device).float())
        if not pictures.isfinite().all():  # a reward would be blamed for it
            raise UserError(
                "evaluation: images of the model are not finite, so that nothing can be measured "
                "of them; a smaller strength or an earlier checkpoint may have some"
            )
        texts = [prompts[i] for i in index[rows].tolist()]
        scores = pictures.new_full((len(pictures),), torch.nan)
        if reward is not None:
            scores = reward(pictures, texts)
        seen = [look(pictures, texts).cpu() for look in looks.values()]
        kept = pictures[: max(0, shown - rows.start)]
        return pooled_pixels(pictures).cpu(), scores.cpu(), kept.cpu(), *seen

    parts = in_shares(work, len(states), batch, "evaluation.batch", on_progress)
    features, rewards, images, *seen = (torch.cat(part) for part in zip(*parts, strict=True))
    shown_prompts = [prompts[i] for i in index[:shown].tolist()]
    rows = dict(zip(looks, seen, strict=True))
    return Sampled(SampleSet(features, rewards, index), images, shown_prompts, rows)


def sample_and_measure(
    model: PipelineModel,
    reward: NamedReward | None,
    prompts: list[str],
    config: Config,
    progress: StartProgress,
    what: str,
    *,
    looks: Mapping[str, ImageLook] | None = None,
    purpose: str = EVALUATION,
) -> Sampled:
    """The evaluation's own samples of whichever network is active.

    Args:
        reward: None as in `measure_states`.
        purpose: names the noise; the same noise for all models that share it.
    """
    settings = config.evaluation
    states = sample_states(
        model,
        prompts,
        settings.n,
        seed=settings.seed,
        batch=settings.batch,
        purpose=purpose,
        on_progress=progress(f"sample the {what}", settings.n),
    )
    return measure_states(
        model,
        reward,
        states,
        prompts,
        batch=settings.batch,
        on_progress=progress(f"score the {what}", settings.n),
        looks=looks,
    )


@dataclass(frozen=True)
class Subject:
    """A run as far as measuring goes.

    Attributes:
        model: its network is the policy.
        prompts: to measure on.
        fingerprint: of the pretrained weights; names their reference bank.
        beta: of the exact tilt.
        bank: how much of the reference bank is looked at.
    """

    config: Config
    model: PipelineModel
    reward: NamedReward
    prompts: list[str]
    fingerprint: str
    beta: float
    bank: BankSize


def measure_reference(
    subject: Subject,
    reward: NamedReward | None,
    progress: StartProgress,
    what: str,
    *,
    looks: Mapping[str, ImageLook] | None = None,
    purpose: str = EVALUATION,
) -> Sampled:
    """`sample_and_measure` of the reference, whose samples other runs of the model may have made.

    Args:
        reward: None as in `measure_states`.
        purpose: names the noise.
    """
    settings, sampler = subject.config.evaluation, subject.config.sampler
    states = ReferenceStates(subject.model, sampler, subject.fingerprint).sample(
        subject.prompts,
        settings.n,
        seed=settings.seed,
        purpose=purpose,
        batch=settings.batch,
        on_progress=progress(f"sample the {what}", settings.n),
    )
    return measure_states(
        subject.model,
        reward,
        states,
        subject.prompts,
        batch=settings.batch,
        on_progress=progress(f"score the {what}", settings.n),
        looks=looks,
    )


def bank_of(subject: Subject, progress: StartProgress) -> SampleSet | None:
    """As much of the reference bank as the subject says, with its rewards; None without one."""
    config, prompts = subject.config, subject.prompts
    if config.evaluation.bank == 0:
        return None
    process, whole = subject.model.process, subject.bank.whole
    key = states_key(subject.fingerprint, prompts, config.sampler, process, whole, BANK_SEED)
    scored = shipped_scores(key, subject.reward, len(prompts))
    if scored is not None:
        return look_at_bank(
            lambda n, known: torch.arange(n),
            scored.rows,
            subject.bank,
            len(prompts),
            lambda seen: subject.beta,
        ).samples
    return measure_bank(
        subject.model,
        subject.reward,
        prompts,
        config,
        subject.fingerprint,
        subject.bank,
        progress,
        find_beta=lambda seen: subject.beta,
    ).samples


def measure_bank(
    model: PipelineModel,
    reward: NamedReward,
    prompts: list[str],
    config: Config,
    fingerprint: str,
    size: BankSize,
    progress: StartProgress,
    *,
    find_beta: Callable[[SampleSet], float],
    looks: Mapping[str, ImageLook] | None = None,
) -> Sampled:
    """As many of the reference bank's images as ``size`` asks for, with their rewards.

    Args:
        fingerprint: of the pretrained weights.
        find_beta: the tilt's strength, which decides how many are enough.
    """
    batch = config.evaluation.batch

    def sample(n: int, known: Tensor | None) -> Latents:
        return reference_bank(
            model,
            fingerprint,
            prompts,
            config.sampler,
            n,
            batch=batch,
            on_progress=progress("sample the reference bank", n),
            whole=size.whole,
            known=known,
        )

    def score(states: Latents) -> Sampled:
        told = progress("score the reference bank", len(states))
        return measure_states(
            model, reward, states, prompts, batch=batch, on_progress=told, looks=looks
        )

    return look_at_bank(sample, score, size, len(prompts), find_beta)
