"""Every setting of a run, each with its meaning and its unit; a mistake is one line that names it.

A configuration is immutable. ``parse.py`` turns a nested mapping into one; ``overrides.py`` builds
that mapping from a recipe and the command line.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, InstanceOf, field_serializer, model_validator

from nablaflow.config.named_method import method_settings
from nablaflow.config.reward_spec import RewardSpec
from nablaflow.config.settings import (
    EvaluationSettings,
    GuardSettings,
    OptimizerSettings,
    Seed,
    TrainingSettings,
)
from nablaflow.methods import Method
from nablaflow.methods.contract import check_noise
from nablaflow.models import AdapterSettings, FlowSettings, SamplerSettings
from nablaflow.models.quantized import Quantization
from nablaflow.places import at_home
from nablaflow.prompts.source import PromptSource
from nablaflow.settings import Settings

SHARED_ROLLOUT = 4
"""Updates that share one, where they can: sampling is then a small part of the work."""

# Validation is strict, but YAML has text for paths.
AnyPath = Annotated[Path, Field(strict=False), AfterValidator(at_home)]


class Config(Settings):
    """All settings of a run. Every command reads this and nothing else."""

    model: str = Field(
        default="nano",
        min_length=1,
        description='"nano" or "flow" (embedded), a folder in diffusers format, or a hub id, with '
        "@REVISION for another than its default branch",
    )
    model_hash: str | None = Field(
        default=None,
        description="of the files of a model's folder, the package's own included, the commit of a "
        "hub id, or of weights and noise levels of a pipeline that was handed over in Python, "
        "which a run records and checks when it is resumed, measured or sampled; null: they are "
        "not checked",
    )
    model_lora: str | None = Field(
        default=None,
        min_length=1,
        description="a LoRA that is fused into the model first, so that the two are the reference, "
        "which the KL and the tilt are of: a .safetensors file as diffusers, peft, kohya's scripts "
        "or ComfyUI have it, or a folder with one; null: none",
    )
    model_lora_scale: float = Field(
        default=1.0, description="strength at which model_lora is fused; 1 is as it was trained"
    )
    model_lora_hash: str | None = Field(
        default=None,
        description="SHA-256 of that file, which a run records, so that another one is noticed",
    )
    model_quantization: Quantization | None = Field(
        default=None,
        description="nf4: the linear layers of the denoiser's blocks in 4 bits once it is read, as "
        "a LoRA's base in QLoRA (NF4, double quantization); the quantized network is then the "
        "reference, which the KL and the tilt are of; it needs the extra bitsandbytes and "
        "adapter.kind=lora; null: as it is read",
    )
    reward: RewardSpec = Field(
        description="name of a reward, path/to/file.py:function (after trl: with TRL's signature), "
        "a mapping with name and settings, or a mapping of those to weights"
    )
    prompts: PromptSource | None = Field(
        description="list of prompts, a text file with one a line, .jsonl or .csv, a set by name, "
        "hub:owner/name, trl:path/to/file.py:function; or a mapping of source, column, split and "
        "count; null: an unconditional model"
    )
    output_dir: AnyPath = Field(description="the run folder")
    seed: Seed = Field(
        default=0, description="of training: noise, order of the prompts, chosen transitions"
    )
    method: InstanceOf[Method] = Field(
        description="the objective: its name and its settings, such as method.beta"
    )
    sampler: SamplerSettings = Field(
        default_factory=SamplerSettings, description="the reverse process"
    )
    adapter: AdapterSettings = Field(
        default_factory=AdapterSettings, description="the weights to train"
    )
    flow: FlowSettings | None = Field(
        default_factory=FlowSettings,
        description="the flow network; null is none, and so it is for a method without use for one",
    )
    optimizer: OptimizerSettings = Field(
        default_factory=OptimizerSettings, description="the optimizer"
    )
    training: TrainingSettings = Field(default_factory=TrainingSettings, description="the loop")
    evaluation: EvaluationSettings = Field(
        default_factory=EvaluationSettings, description="the measurement"
    )
    guard: GuardSettings | None = Field(
        default_factory=GuardSettings.that_warns,
        description="watches for reward hacking during training; without one of its settings it "
        "only warns; null is none",
    )

    @model_validator(mode="after")
    def _scale_is_of_a_lora(self) -> Config:
        if self.model_lora is None and self.model_lora_scale != 1.0:
            raise ValueError("model_lora_scale: there is no model_lora to scale; leave it out")
        return self

    @model_validator(mode="after")
    def _only_a_lora_trains_on_four_bits(self) -> Config:
        if self.model_quantization is None:
            return self
        if self.adapter.kind != "lora":
            raise ValueError(
                f"adapter.kind: {self.adapter.kind} trains the weights that model_quantization="
                f"{self.model_quantization} leaves 16 levels; use lora, or model_quantization=null"
            )
        if self.adapter.dora:
            raise ValueError(
                "adapter.dora: it trains the lengths of weights, which model_quantization="
                f"{self.model_quantization} leaves 16 levels; leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _only_ddim_has_eta(self) -> Config:
        if self.sampler.name != "ddim" and self.sampler.eta != 1.0:
            raise ValueError(
                f"sampler.eta: {self.sampler.name} has none; leave it out or set sampler.name=ddim"
            )
        return self

    @model_validator(mode="after")
    def _noise_fits_the_method(self) -> Config:
        noisy = self.sampler.name != "euler"
        check_noise(self.method, noisy=noisy)
        limited = self.guard is not None and self.guard.max_kl is not None
        if limited and not noisy and self.guard != GuardSettings.that_warns():
            raise ValueError(
                "guard.max_kl: without noise there is no divergence of paths to bound; leave it "
                "out, and use guard.min_diversity or guard.budgets"
            )
        if not noisy and self.sampler.variance == "analytic":
            raise ValueError("sampler.variance: euler's steps have none; leave it out")
        return self

    @model_validator(mode="after")
    def _some_transition_is_trained(self) -> Config:
        if self.strata < 1 and not self.method.one_transition:
            steps = self.sampler.steps
            raise ValueError(
                f"training.transition_fraction: {self.training.transition_fraction:g} of "
                f"sampler.steps={steps} is no transition at all; "
                f"use training.transition_fraction={_least_fraction(steps):g} or more steps"
            )
        return self

    @property
    def updates_per_rollout(self) -> int:
        """How many updates share a rollout, also where the recipe leaves it open."""
        given = self.training.updates_per_rollout
        if given is not None:
            return given
        able = self.method.trains_at_any_state and self.training.data == "on-policy"
        return SHARED_ROLLOUT if able else 1

    @property
    def calibrates(self) -> bool:
        """``training.calibrate``; without a word, whether a run can say where its goal is."""
        asked = self.training.calibrate
        return self.evaluation.bank > 0 and self.method.aims_at_tilt if asked is None else asked

    @property
    def strata(self) -> int:
        """Transitions trained in each trajectory: one from each stratum of its steps."""
        return round(self.training.transition_fraction * self.sampler.steps)

    @property
    def transitions_each(self) -> int:
        """Transitions of each trajectory that are trained."""
        always_last = bool(getattr(self.method, "always_last", False))
        return 1 if self.method.one_transition else self.strata + always_last

    @field_serializer("method")
    def _with_its_name(self, method: Method) -> dict[str, Any]:
        return method_settings(method)


def _least_fraction(steps: int) -> float:
    """The smallest share with two significant digits that selects one of ``steps``."""
    digits = math.ceil(math.log10(steps)) + 1
    return math.ceil(10**digits / steps) / 10**digits
