"""Where a run does not fit: what is offered lowers the stage of the peak, and says by how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nablaflow.config.recipe import Config
from nablaflow.runs import remedies
from nablaflow.runs.plan import MemoryPlan
from nablaflow.runs.remedies import savings
from nablaflow.runs.setup import Parts
from nablaflow.training.memory_plan import GIB

PLAIN = ["method.step=exact", "method.reverse_weight=0", "method.gamma=one", "flow=null"]
PLAN = MemoryPlan(
    parts={
        "the process": GIB // 2,
        "weights": 8 * GIB,
        "adapter and optimizer": GIB // 4,
        "rollout, kept": 0,
        "largest stage": 10 * GIB,
    },
    stages={"rehearsal": 3 * GIB, "rollout": 4 * GIB, "losses and gradients": 10 * GIB},
    saved={"reference": GIB, "policy": 2 * GIB, "decoder": 5 * GIB},
    encoders={"text_encoder": 2 * GIB, "text_encoder_3": 4 * GIB},
    rest=False,
    batches={"micro_batch": 1},
    device="cuda",
    rewarded=True,
)
FOUR_BITS = "model_quantization=nf4 (6.00 GB)"
SMALLER = "smaller images than 16 x 16 (sampler.height, sampler.width)"


@pytest.fixture
def parts(make_parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Of a small model, in whose place the plan is that of a large one."""
    monkeypatch.setattr(remedies, "saved_by_quantizing", lambda network: 6 * GIB)
    return make_parts(*PLAIN)


def offered(parts: Parts, plan: MemoryPlan, **training: object) -> list[str]:
    config: Config = parts.config
    own = config.training.model_copy(update=training)
    return savings(config.model_copy(update={"training": own}), parts.model, plan)


def test_all_that_helps_where_the_peak_is_in_the_gradients(parts: Parts):
    assert offered(parts, PLAN) == [
        "training.gradient_checkpointing=true (a part of 8.00 GB)",
        "training.decoder=tiny (most of 5.00 GB or more)",
        "training.decoder_precision=bf16 (half of 5.00 GB or more)",
        "training.offload_encoders=true (6.00 GB of an accelerator)",
        "training.precision=bf16 (up to 4.00 GB)",
        FOUR_BITS,
        "a lower adapter.rank (a part of 0.25 GB)",
        SMALLER,
    ]


def test_what_is_so_already_is_no_remedy(parts: Parts):
    so = {"gradient_checkpointing": True, "decoder": "tiny", "precision": "bf16"}
    assert offered(parts, replace(PLAN, rest=True), **so) == [
        FOUR_BITS,
        "a lower adapter.rank (a part of 0.25 GB)",
        SMALLER,
    ]


def test_a_base_in_4_bits_is_for_a_plain_lora_that_has_none(parts: Parts):
    for other in (
        {"model_quantization": "nf4"},
        {"adapter": {"kind": "full"}},
        {"adapter": {"dora": True}},
    ):
        values: dict[str, Any] = dict(other)
        if "adapter" in values:
            values["adapter"] = parts.config.adapter.model_copy(update=values["adapter"])
        config = parts.config.model_copy(update=values)
        assert not any("quantization" in way for way in savings(config, parts.model, PLAN))


def test_a_decoder_in_half_precision_is_not_offered_again(parts: Parts):
    ways = offered(parts, PLAN, decoder_precision="bf16")
    assert not any("decoder_precision" in way for way in ways)


def test_encoders_of_a_processor_have_nowhere_to_rest(parts: Parts):
    assert not any("offload" in way for way in offered(parts, replace(PLAN, device="cpu")))


def test_what_a_rollout_takes_is_not_lowered_by_what_gradients_do(parts: Parts):
    ways = offered(parts, replace(PLAN, stages=PLAN.stages | {"rollout": 11 * GIB}))
    assert not any("gradient_checkpointing" in way or "decoder" in way for way in ways)


def test_the_decoder_counts_where_the_value_gradients_are(parts: Parts):
    """Of a method with an estimator the reward's gradient is found there."""
    ways = offered(parts, replace(PLAN, stages=PLAN.stages | {"value gradients": GIB}))
    assert ways[0] == "training.gradient_checkpointing=true (a part of 3.00 GB)"
    assert not any("decoder" in way for way in ways)


def test_resting_encoders_save_no_more_than_the_rehearsal_leaves(parts: Parts):
    """Which they are at work in: 8 + 6 GB with them there, where the losses take 10."""
    ways = offered(parts, replace(PLAN, stages=PLAN.stages | {"rehearsal": 8 * GIB}))
    assert "training.offload_encoders=true (2.00 GB of an accelerator)" in ways


def test_a_peak_in_the_rehearsal_with_resting_encoders_is_lowered_by_what_may_be_left_out(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
):
    stages = PLAN.stages | {"rehearsal": 12 * GIB}
    plan = replace(PLAN, rest=True, stages=stages)
    rank = "a lower adapter.rank (a part of 0.25 GB)"
    assert offered(parts, plan, precision="bf16") == [FOUR_BITS, rank]
    monkeypatch.setattr(type(parts.model), "may_lack", ("text_encoder_3", "tokenizer_3"))
    assert offered(parts, plan, precision="bf16") == [
        "a folder of the model without its text_encoder_3 (up to 2.00 GB)",
        FOUR_BITS,
        rank,
    ]


def test_nothing_is_offered_that_would_save_nothing_in_print(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(remedies, "saved_by_quantizing", lambda network: GIB // 500)
    small = dict.fromkeys(PLAN.saved, 0)
    trained = PLAN.parts | {"adapter and optimizer": GIB // 500, "weights": 0}
    plan = replace(PLAN, saved=small, parts=trained, encoders={})
    assert offered(parts, plan) == [SMALLER]


def test_a_value_that_is_fitted_is_named_where_its_fit_is_the_peak(parts: Parts):
    plan = replace(PLAN, stages=PLAN.stages | {"fit of the value": 12 * GIB})
    assert "method.value=forward-looking (2.00 GB)" in offered(parts, plan)
    below = replace(PLAN, stages=PLAN.stages | {"fit of the value": 9 * GIB})
    assert not any("method.value" in way for way in offered(parts, below))
