"""A beta that the run finds: what it chooses, what it saves, what it refuses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import nablaflow as nf
from nablaflow.config.overrides import dump_config, load_config
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.methods import ResidualNablaDB
from nablaflow.methods.tilt_rule import Undecided
from nablaflow.runs.align import run
from nablaflow.runs.setup import Parts
from tests.support.loras import stock_lora

pytestmark = pytest.mark.usefixtures("lean_runs")

MakeConfig = Callable[..., Config]


def beta_of(config: Config) -> float:
    return getattr(config.method, "beta")  # noqa: B009  every method has one


@pytest.mark.parametrize("written", ["auto", "{effective_share: 0.5}", "{nats: 1.0}", "{nats: 1}"])
def test_a_rule_is_no_number_until_it_is_found(make_config: MakeConfig, written: str) -> None:
    config = make_config(f"method.beta={written}")
    assert isinstance(beta_of(config), Undecided)
    assert math.isnan(beta_of(config) * 2.0)
    text = dump_config(config)
    path = config.output_dir.with_suffix(".yaml")
    path.write_text(text)
    assert load_config(path, [], {}) == config


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("much", ["method.beta", "must be a number, auto,"]),
        ("{share: 0.5}", ["method.beta", "share"]),
        ("{}", ["method.beta", "one of the two"]),
        ("{nats: 1.0, effective_share: 0.5}", ["method.beta", "one of the two"]),
        ("{effective_share: 1.5}", ["method.beta", "less than 1"]),
        ("-1.0", ["method.beta", "greater than or equal to 0"]),
        ("null", ["method.beta", "must be"]),
    ],
)
def test_what_is_no_strength_is_refused(
    make_config: MakeConfig, written: str, words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        make_config(f"method.beta={written}")
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_saves_the_number_and_goes_on_with_it(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["method.beta=auto", "flow=null", "method.step=exact", "method.reverse_weight=0"]
    config = make_config(*small, "training.updates=1")
    run(config)
    saved = load_config(config.output_dir / "config.yaml", [], {})
    beta = beta_of(saved)
    assert not isinstance(beta, Undecided)
    assert beta > 0
    said = re.search(
        r"beta: (\S+), at which 3\d% of 192 reference samples count", capsys.readouterr().err
    )
    assert said is not None  # beta has two digits: a third is met to a hundredth or two
    assert said[1] == f"{beta:g}"
    again = run(make_config(*small, "training.updates=2"), resume=True)
    assert again.summary["updates"] == 2
    assert beta_of(load_config(config.output_dir / "config.yaml", [], {})) == beta


def test_the_helper_finds_what_a_run_finds(
    make_parts: Callable[..., Parts], tiny_model: Path
) -> None:
    parts = make_parts("method.beta={nats: 0.5}")
    found = nf.choose_beta(
        model=str(tiny_model),
        reward="warmth",
        prompts=["a circle", "a square", "a star"],
        nats=0.5,
        sampler={"steps": 4},
    )
    assert found.beta == beta_of(parts.config) == parts.trainer.method.beta
    assert found.nats == pytest.approx(0.5, rel=0.1)
    assert found.tilted_reward_mean > found.reward_mean


def test_the_helper_measures_the_reference_with_its_lora(
    tiny_model: Path, make_parts: Callable[..., Parts], tmp_path: Path
) -> None:
    lora = stock_lora(tiny_model, tmp_path / "lora")
    with_it = (f"model_lora={lora}", "model_lora_scale=0.5")
    parts = make_parts("method.beta={nats: 0.5}", *with_it)
    asked = {"reward": "warmth", "prompts": ["a circle", "a square", "a star"], "nats": 0.5}
    asked |= {"model": str(tiny_model), "sampler": {"steps": 4}}
    found = nf.choose_beta(**asked, model_lora=lora, model_lora_scale=0.5)
    assert found.beta == beta_of(parts.config)
    assert found.reward_mean != nf.choose_beta(**asked).reward_mean


def test_a_method_in_python_takes_a_rule() -> None:
    assert ResidualNablaDB(beta="auto") == ResidualNablaDB(beta="auto")  # type: ignore[arg-type]
    assert ResidualNablaDB(beta=2.0) != ResidualNablaDB(beta="auto")  # type: ignore[arg-type]


def constant(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return 0.0 * images.mean((1, 2, 3))


def endless(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images.mean((1, 2, 3)) / 0.0


@pytest.mark.parametrize(
    ("reward", "said"), [(constant, "is the same for all"), (endless, "finite")]
)
def test_a_reward_without_a_spread_is_one_line(tiny_model: Path, reward: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        nf.choose_beta(
            model=str(tiny_model), reward=reward, prompts=["a circle"], sampler={"steps": 4}
        )
    assert "\n" not in str(error.value)


def test_the_helper_takes_one_rule(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="one of the two"):
        nf.choose_beta(reward="warmth", prompts=["a"], nats=1.0, effective_share=0.5)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"nats": 0.0}, r"beta\.nats: must be greater than 0"),
        ({"effective_share": 0}, r"beta\.effective_share: must be greater than 0\.02"),
        ({"nats": np.array([0.5, 1.0])}, r"beta\.nats: must be a valid number"),
        ({"prompts": {"a circle", "a star"}}, "prompts: a set has another order"),
        ({"prompts": [1]}, "prompts: must be a list of texts"),
        ({"prompts": {"sorce": "x.txt"}}, "prompts: "),
        ({"prompts": None}, "prompts: null is for unconditional models"),
        ({"model_lora_scale": "1"}, "model_lora_scale: must be a valid number"),
        ({"sampler": {"stps": 4}}, r"sampler\.stps: unknown key"),
        ({"reward": lambda images, prompts: 1 / 0}, "reward '<lambda>' fails on 4 images"),
        ({"reward": lambda images, prompts: images.mean()}, r"reward '<lambda>' returned shape"),
        ({"model": 3}, "model: must be a folder, a hub id or a diffusers pipeline"),
    ],
)
def test_the_helper_refuses_in_one_line(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], line: str
) -> None:
    """As `nf.align` does; a strength of 0 was taken for none, so that a third was found."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in a notebook
    asked = {"model": str(tiny_model), "reward": "warmth", "prompts": ["a circle"]}
    with pytest.raises(UserError, match=f"^{line}") as caught:
        nf.choose_beta(**{**asked, "sampler": {"steps": 2}, **given})
    assert "\n" not in str(caught.value)


def test_the_helper_takes_what_align_takes(tiny_model: Path) -> None:
    asked: dict[str, Any] = {"reward": "warmth", "nats": 0.5}
    expected = nf.choose_beta(
        model=str(tiny_model), prompts=["a star"], sampler={"steps": 2}, **asked
    )
    found = nf.choose_beta(
        model=StableDiffusionPipeline.from_pretrained(tiny_model),
        prompts=(text for text in ["a star"]),
        sampler=nf.SamplerSettings(steps=2),
        **asked,
    )
    assert found == expected
