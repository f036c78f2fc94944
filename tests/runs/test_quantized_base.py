"""A run on a base in 4 bits: what it says, what it saves, and who reads it afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

import nablaflow as nf
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.models import SamplerSettings, random
from nablaflow.models.four_bits import Linear4bit
from nablaflow.runs.doctor_recipe import _on_shapes
from nablaflow.runs.policy import load_policy
from nablaflow.runs.pretrained import with_mark
from nablaflow.runs.run import Run
from nablaflow.training.held import weights_held
from tests.support.tiny_run import MakeConfig

NF4 = "model_quantization=nf4"


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        (
            "adapter.kind=full",
            r"adapter\.kind: full trains the weights that model_quantization=nf4",
        ),
        ("adapter.dora=true", r"adapter\.dora: it trains the lengths of weights"),
        ("model_quantization=int8", "model_quantization: .*nf4"),
    ],
)
def test_what_does_not_go_with_it_is_one_line(make_config: MakeConfig, setting: str, line: str):
    with pytest.raises(UserError, match=line):
        make_config(NF4, setting)


def arguments(folder: Path, model: Any) -> dict[str, Any]:
    return {
        "model": model,
        "model_quantization": "nf4",
        "reward": "brightness",
        "prompts": ["a circle", "a star"],
        "method": nf.ResidualNablaDB(beta=100.0),
        "updates": 1,
        "sampler": SamplerSettings(steps=4),
        "adapter": {"rank": 2},
        "optimizer": {"learning_rate": 0.1, "warmup": 0, "schedule": "constant"},
        "guard": None,
        "training": {
            "prompts_per_update": 1,
            "images_per_prompt": 2,
            "transition_fraction": 0.5,
            "trackers": [],
            "device": "cpu",
        },
        "evaluation": {"n": 4, "batch": 4, "bank": 0},
        "output_dir": folder,
    }


@pytest.fixture(scope="module")
def said_and_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Run]:
    pytest.importorskip("bitsandbytes")
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("nablaflow.runs.setup.as_told", lambda line: lines.append(line) or line)
        run = nf.align(**arguments(tmp_path_factory.mktemp("nf4") / "run", str(tiny_model)))
    return "\n".join(lines), run


def test_the_log_the_report_and_the_card_say_so(
    said_and_run: tuple[str, Run], tmp_path: Path
) -> None:
    said, run = said_and_run
    assert "reference: 15 linear layers, " in said
    assert "in NF4; the KL and the tilt are of the quantized network" in said
    note = "trained on this model's denoiser in nf4"
    assert note in run.report.read_text().replace("&#x27;", "'")
    card = run.export("diffusers", tmp_path / "lora") / "README.md"
    assert note in card.read_text()
    assert "- quantization of the base model: `nf4" in card.read_text()
    card = run.export("kohya", tmp_path / "kohya") / "README.md"
    assert note in card.read_text()


def test_the_mark_of_the_model_is_that_without(
    said_and_run: tuple[str, Run], make_config: MakeConfig
) -> None:
    config: Config = make_config("output_dir=other")
    assert said_and_run[1].config.model_hash == with_mark(config).model_hash


def image(pipeline: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline("a circle", num_inference_steps=2, generator=generator, output_type="np").images


def test_the_policy_its_pipeline_and_the_merged_export_are_one(
    said_and_run: tuple[str, Run], tmp_path: Path, tiny_model: Path
) -> None:
    run = said_and_run[1]
    model, _, _ = load_policy(run.folder)
    assert sum(isinstance(part, Linear4bit) for part in model.network.modules()) == 15
    own = run.pipeline()
    assert not any(isinstance(part, Linear4bit) for part in own.unet.modules())
    merged = StableDiffusionPipeline.from_pretrained(run.export("merged", tmp_path / "merged"))
    np.testing.assert_allclose(image(merged), image(own), atol=1e-4)
    with model.as_in_stock(), model.reference():
        reference = image(model.pipeline)
    with model.as_in_stock():
        np.testing.assert_allclose(image(model.pipeline), image(own), atol=1e-4)
    assert np.abs(image(own) - reference).max() > 1e-3
    plain = StableDiffusionPipeline.from_pretrained(tiny_model)
    assert np.abs(image(plain) - reference).max() > 1e-3


def test_a_pipeline_in_memory_is_quantized_in_a_copy(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    own = StableDiffusionPipeline.from_pretrained(tiny_model)
    before = image(own)
    run = nf.align(**arguments(tmp_path / "run", own))
    assert np.array_equal(image(own), before)
    assert all(type(part) is not Linear4bit for part in own.unet.modules())
    assert run.config.model_quantization == "nf4"
    assert isinstance(run.pipeline().unet.mid_block.attentions[0], nn.Module)
    nf.align(**arguments(tmp_path / "run", own) | {"updates": 2}, resume=True)


def four_bits(count: int) -> int:
    """Bytes of so many weights: halves, scales of 64, theirs of 256 and the tables of one layer."""
    blocks = -(-count // 64)
    return -(-count // 2) + blocks + 4 * -(-blocks // 256) + 4 * 256 + 4


def test_the_plan_counts_four_bits(make_config: MakeConfig) -> None:
    pytest.importorskip("bitsandbytes")
    given = ("model=random:flux-small", "training.precision=bf16", "sampler.name=memoryless")
    plain, quantized = (
        _on_shapes(make_config(*given, "adapter.targets=auto", f"model_quantization={name}"))
        for name in ("null", "nf4")
    )
    layers = [
        part.weight.numel()
        for name, part in random("flux", small=True).transformer.named_modules()
        if type(part) is nn.Linear and "transformer_blocks" in name
    ]
    less = sum(2 * count - four_bits(count) for count in layers)
    assert weights_held(plain, None, ()) - weights_held(quantized, None, ()) == less
