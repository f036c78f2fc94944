"""`nf.choose_beta`: a tilt's strength, without a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nablaflow.api.given import (
    Model,
    Prompts,
    model_of,
    prompts_of,
    reward_of,
    text_of,
    those_given,
)
from nablaflow.config.parse import parse_config, parse_group
from nablaflow.config.recipe import Config
from nablaflow.devices import best_device
from nablaflow.errors import UserError, in_python
from nablaflow.evaluation.beta import ChosenBeta, find_beta
from nablaflow.methods.tilt_rule import AUTO, TiltRule
from nablaflow.models import AdapterSettings, LivePipeline, SamplerSettings, load_model
from nablaflow.models.pipelines import PipelineModel
from nablaflow.progress import show
from nablaflow.prompts.sets import load_prompts, prompt_metadata
from nablaflow.rewards import load, probe, tell_metadata
from nablaflow.runs.checks import check_prompts
from nablaflow.runs.pretrained import load_pretrained
from nablaflow.surroundings import surrounded
from nablaflow.typing import Reward


@in_python
@surrounded
def choose_beta(
    *,
    model: Model = "nano",
    reward: str | Mapping[str, Any] | Reward,
    prompts: Prompts,
    effective_share: float | None = None,
    nats: float | None = None,
    sampler: SamplerSettings | Mapping[str, Any] | None = None,
    model_lora: str | Path | None = None,
    model_lora_scale: float = 1.0,
    model_quantization: str | None = None,
) -> ChosenBeta:
    """A tilt strength for a reward whose unit nobody knows, from a small reference sample.

    Args:
        model: as in `nablaflow.align`.
        reward: as in `nablaflow.align`.
        prompts: as in `nablaflow.align`; up to four of them are used.
        effective_share: of reference samples that count under the tilt, (sum w)^2 / (n sum w^2)
            with w = exp(beta r), in the prompt where fewest do; a third without ``nats``.
        nats: or the tilt's divergence from the reference, in the prompt where it is largest.
        sampler: as in `nablaflow.align`.
        model_lora: as in `nablaflow.align`: it belongs to the reference.
        model_lora_scale: strength of that.
        model_quantization: as in `nablaflow.align`.

    Returns:
        ``beta``, with what the tilt then is; ``print`` shows it.

    Raises:
        UserError: a mistake in any of these, or a reward that is constant or not finite.
    """
    rule, found = _rule(effective_share, nats), load(reward)
    name, live = model_of(model)
    config = parse_config(
        {
            "model": name,
            "model_lora": text_of(model_lora),
            "model_lora_scale": model_lora_scale,
            "model_quantization": model_quantization,
            "reward": reward_of(reward),
            "prompts": prompts_of(prompts),
            "method": {"name": "residual-nabla-db", "beta": "auto"},  # which has no part in this
            "output_dir": "runs/beta",  # nor has this: nothing is written
            "sampler": {} if sampler is None else sampler,
            "training": {"transition_fraction": 1.0},  # fits any number of steps
        }
    )
    texts = load_prompts(config.prompts, Path())
    tell_metadata(found, lambda: prompt_metadata(config.prompts, seed=config.seed))
    loaded = _reference(config, live)
    height, width = loaded.image_size
    probe(found, height=height, width=width, device=loaded.device, prompts=texts)
    with show() as progress:
        return find_beta(rule, loaded, found, texts, progress.start)


def _rule(effective_share: float | None, nats: float | None) -> TiltRule:
    given = those_given(effective_share=effective_share, nats=nats)
    if len(given) == 2:
        raise UserError("nats: effective_share is given as well; use one of the two")
    return parse_group(TiltRule, given, "beta") if given else AUTO


def _reference(config: Config, live: LivePipeline | None) -> PipelineModel:
    pretrained = load_pretrained(config, live)
    model = load_model(pretrained, config.sampler, AdapterSettings(), best_device())
    check_prompts(config, model)
    return model
