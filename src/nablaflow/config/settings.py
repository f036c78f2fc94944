"""The groups of settings that belong to training alone, each with its meaning and its unit."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nablaflow.config.reward_spec import RewardSpec
from nablaflow.prompts.source import PromptSource
from nablaflow.settings import Settings

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
# Validation is strict, but YAML has lists for tuples.
Betas = Annotated[
    tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]],
    Field(strict=False),
]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class OptimizerSettings(Settings):
    """AdamW for policy and flow network."""

    name: Literal["adamw", "adamw8bit"] = Field(
        default="adamw",
        description="adamw8bit has moments of 8 bits: less memory where all weights train; it "
        "needs a GPU and the extra bitsandbytes",
    )
    learning_rate: Positive = Field(default=1e-3, description="the policy's learning rate")
    flow_learning_rate: Positive = Field(
        default=1e-3, description="the flow network's learning rate"
    )
    betas: Betas = Field(default=(0.9, 0.95), description="AdamW's decay rates of the two moments")
    weight_decay: NotNegative = Field(default=1e-4, description="the policy's weight decay")
    flow_weight_decay: NotNegative = Field(
        default=1e-2, description="the flow network's weight decay"
    )
    max_grad_norm: Positive | None = Field(
        default=1.0,
        description="gradient norm above which a network's gradient is scaled down; null: none is",
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="learning rate after the warm-up"
    )
    warmup: int = Field(default=0, ge=0, description="updates over which the learning rate rises")


class TrainingSettings(Settings):
    """The loop. Batch sizes are global: over all processes and accumulation steps."""

    updates: Count = Field(default=200, description="updates in all, each with its optimizer steps")
    minutes: Positive | None = Field(
        default=None,
        description="minutes of training after which a run ends, whatever training.updates says; "
        "a cosine schedule then ends there too, so that such a run is not the same twice",
    )
    prompts_per_update: Count = Field(default=8, description="prompts in one rollout")
    images_per_prompt: Count = Field(
        default=4, description="images, that is trajectories, for each prompt of a rollout"
    )
    transition_fraction: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="share of a trajectory's transitions that are trained; refl, draft and "
        "alignprop train one, whatever it says",
    )
    updates_per_rollout: Count | None = Field(
        default=None,
        description="updates that share a rollout: the first trains on its states, each other on "
        "its clean ends noised afresh; null: 4 where the method's target is a function of the "
        "state alone, as that of residual-nabla-db with its defaults is, else 1",
    )
    steps_per_rollout: Count = Field(
        default=1, description="optimizer steps of one update, each on its own trajectories"
    )
    memory_budget_gb: Positive | None = Field(
        default=None,
        description="GB (2^30 bytes) that training may take, as if the device had no more; batches "
        "that are null are chosen so that its plan, see nablaflow doctor RECIPE, stays within nine "
        "tenths of it, the rest being for what no plan counts; null: for models of 50 M "
        "parameters and more what the device has, for smaller ones no plan is made",
    )
    micro_batch: Count | None = Field(
        default=None,
        description="transitions per forward pass; null: as many as fit, 64 at most; halves on "
        "out-of-memory",
    )
    rollout_batch: Count | None = Field(
        default=None, description="trajectories sampled at once; null halves on out-of-memory"
    )
    decode_batch: Count | None = Field(
        default=None,
        description="images decoded at once, and passed backward through the decoder for a "
        "reward's gradient; null: where memory is planned for images from 256 pixels on 1, else "
        "all; halves on out-of-memory when a rollout's images are decoded",
    )
    estimate_batch: Count | None = Field(
        default=None,
        description="trajectories whose value gradients are found at once, for methods with an "
        "estimator; null starts at micro_batch, or all, and halves on out-of-memory",
    )
    gamma_trajectories: Annotated[int, Field(ge=2, le=2**20)] = Field(
        default=128,
        description="trajectories of the reference on which a measured gamma is found before the "
        "first update",
    )
    value_samples: Annotated[int, Field(ge=64, le=2**20)] = Field(
        default=1024,
        description="samples of the reference to which a contrastive value is fitted before the "
        "first update",
    )
    data: Literal["on-policy", "previous-rollout"] = Field(
        default="on-policy", description="train on this update's rollout, or on the one before"
    )
    precision: Literal["float32", "bf16", "fp16"] = Field(
        default="float32",
        description="precision of the networks; rewards and their gradients stay float32",
    )
    decoder: Literal["full", "tiny"] = Field(
        default="full",
        description="what rewards' gradients are taken through: the model's own decoder, or tiny, "
        "a small one for the latents of Stable Diffusion, XL, 3, FLUX or the embedded models; a "
        "rollout's images and their scores are always of the model's own",
    )
    decoder_precision: Literal["float32", "bf16", "fp16"] = Field(
        default="float32",
        description="precision in which the model's own decoder makes a rollout's images, and "
        "takes rewards' gradients where they are taken through it; images and gradients outside "
        "it are float32, and what is measured, sampled and shown is always decoded in float32",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="compute activations again in the backward pass: less memory, more time",
    )
    offload_encoders: bool | None = Field(
        default=None,
        description="text encoders stay on the CPU but while they embed a prompt, once for each; "
        "null: where they have 10^9 parameters or more",
    )
    checkpoint_every: Count = Field(default=50, description="updates between two checkpoints")
    keep_checkpoints: Count = Field(default=2, description="how many of the newest are kept")
    reward_timeout: Positive | None = Field(
        default=None,
        description="seconds that a call of the reward may take, loading its weights included; "
        "null is any time",
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default=["tensorboard"], description="where metrics go besides metrics.jsonl"
    )
    calibrate: bool | None = Field(
        default=None,
        description="after the last update, weaken the policy to the strength at which its images' "
        "mean reward is the exact tilt's, if it has passed that by more than two standard errors, "
        "or, by method.value=contrastive, strengthen it within the guard's budgets if it is as "
        "much short of that; "
        "evaluation.n images a try; null: where there is an evaluation.bank, and the method aims "
        "at the tilt",
    )
    sample_every: Count = Field(default=50, description="updates between two sheets of samples")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="auto takes the first that works of cuda, mps, cpu"
    )


class EvaluationSettings(Settings):
    """What is measured at the end of a run."""

    n: Count = Field(
        default=64, description="images in all, for the reference and for the policy each"
    )
    batch: Count = Field(default=8, description="images made at once")
    bank: int = Field(
        default=0,
        ge=0,
        description="reference samples for the exact tilt; 0 leaves the exact tilt out",
    )
    seed: Seed = Field(
        default=1, description="seed of the evaluation's noise, apart from the training's"
    )
    metrics: list[str] = Field(
        default=[],
        description="further figures of reference and policy, by the names that eval has",
    )
    prompts: PromptSource | None = Field(
        default=None,
        description="prompts to measure on in place of those trained on; same forms as prompts",
    )
    hold_out: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the prompts that is measured on and not trained on; 0 is none",
    )

    @model_validator(mode="after")
    def _one_set_apart(self) -> EvaluationSettings:
        if self.prompts is not None and self.hold_out:
            raise ValueError("prompts and hold_out are two ways to the same; leave one out")
        return self


class HeldOutSettings(Settings):
    """A reward that is measured and never trained."""

    reward: RewardSpec = Field(description="same forms as reward; its gradient is not needed")
    min: float | None = Field(
        default=None, description="budget: least mean; null: no budget, only shown"
    )


class GuardSettings(Settings):
    """What is looked at during training, on the same prompts and noise each time, and budgets."""

    every: Count | Literal["auto"] = Field(
        default=50,
        description="updates between two looks; auto: five looks, by time where training.minutes "
        "is set; one is at the end",
    )
    n: Count | Literal["auto"] = Field(
        default=64,
        description="images in all, two or more for each prompt; auto: 32, of up to 16 prompts",
    )
    prompts: PromptSource | None = Field(
        default=None, description="prompts of the looks, same forms as prompts; null: the run's"
    )
    seed: Seed = Field(
        default=2, description="seed of the guard's noise, apart from all other noise"
    )
    held_out: HeldOutSettings | None = Field(
        default=None, description="a reward that is not trained"
    )
    max_kl: Positive | None = Field(
        default=None, description="budget: most divergence of its paths from the reference's, nats"
    )
    min_diversity: Positive | None = Field(
        default=None, description="budget: least diversity, as a share of the reference's"
    )
    budgets: dict[str, float] = Field(
        default={},
        description="of further metrics, by the names that eval has: the most of a "
        "distance, the least of anything else, each in the metric's own unit",
    )
    action: Literal["warn", "stop", "roll-back"] = Field(
        default="stop",
        description="when a budget is exceeded: only say so, or end with the policy as it is, or "
        "as it was best",
    )

    @classmethod
    def that_warns(cls) -> GuardSettings:
        """A run's, where nothing is said of one: a few cheap looks that never end it."""
        return cls(every="auto", n="auto", max_kl=30.0, min_diversity=0.6, action="warn")

    @property
    def limits(self) -> dict[str, float | None]:
        """Limit of each figure; null is none."""
        held_out = None if self.held_out is None else self.held_out.min
        own = {"kl": self.max_kl, "diversity": self.min_diversity, "held_out": held_out}
        return {**self.budgets, **own}

    @model_validator(mode="after")
    def _something_can_trip(self) -> GuardSettings:
        if "diversity" in self.budgets:
            raise ValueError("budgets.diversity is min_diversity, a share; set guard.min_diversity")
        if self.action == "roll-back" and set(self.limits.values()) == {None}:
            raise ValueError(
                "nothing can cause the roll-back that action asks for; set guard.max_kl, "
                "guard.min_diversity, guard.held_out.min or guard.budgets"
            )
        return self
