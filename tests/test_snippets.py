"""What the pages say to write: both forms of the first run are one, and the blocks run."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from nablaflow.config.overrides import load_config
from nablaflow.config.recipe import Config
from nablaflow.exact import Problem
from nablaflow.nano.pretrain.text import build_tokenizer
from nablaflow.rewards.probe import probe
from nablaflow.shapes import META, Shapes, weights_come_back

ROOT = Path(__file__).parents[1]
FIRST_PAGES = ["README.md", "docs/index.md"]


def _block(page: str, language: str, word: str) -> str:
    """The first block of a page that has a word."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return next(block for block in blocks if word in block)


class _Begun(Exception):
    pass


@pytest.mark.parametrize("page", FIRST_PAGES)
def test_the_recipe_and_the_call_in_python_are_one_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_reward.py").write_text(_block("docs/bring_a_reward.md", "python", "# my_reward.py"))
    Path("my_prompts.txt").write_text("a fox\n")
    Path("my.yaml").write_text(_block(page, "yaml", "# my.yaml"))
    configs = list[Config]()

    def begin(config: Config, **_: Any) -> None:
        configs.append(config)
        raise _Begun

    monkeypatch.setattr("nablaflow.api.align.run", begin)
    with pytest.raises(_Begun):
        exec(_block(page, "python", "nf.align("), {})
    assert configs == [load_config(Path("my.yaml"), [], {})]
    assert configs[0].evaluation.bank > 0


@pytest.mark.parametrize("page", FIRST_PAGES)
def test_the_image_afterwards_is_by_the_sampler_of_the_run(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    calls = re.findall(r'pipeline\("a fox", (.*?)\)\.images', text)
    recipe = _block(page, "yaml", "# my.yaml")
    (steps, guidance) = re.findall(r"sampler: {steps: (\d+), guidance_scale: ([\d.]+)}", recipe)[0]
    asked = f"num_inference_steps={steps}, guidance_scale={guidance}, eta=1.0"
    assert calls == [asked, asked]
    assert text.count("pipeline.scheduler = DDIMScheduler.from_config(") == 2


def test_the_first_page_names_every_extra() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = project.split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    extras = set(re.findall(r"^([\w-]+) = \[", table, re.MULTILINE))
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    assert {name for row in named for name in re.findall(r"`([\w-]+)`", row)} == extras


def test_the_laboratorys_block_states_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    block = _block("docs/exact.md", "python", "nf.exact.Problem(")
    result = SimpleNamespace(energy_distance=0.0, floor=0.0)
    monkeypatch.setattr("nablaflow.exact.evaluate", lambda problem, **_: result)
    names: dict[str, Any] = {}
    exec(block, names)
    assert isinstance(names["problem"], Problem)
    assert names["problem"].target.sample(3, torch.Generator().manual_seed(0)).shape == (3, 2)


def test_a_network_as_a_reward(tmp_path: Path) -> None:
    """It has a gradient, is counted on shapes, and keeps its weights there."""
    tokenizer = build_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2}
    text = small | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config=text, vision_config=small | {"patch_size": 32}, projection_dim=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    block = _block("docs/bring_a_reward.md", "python", "# my_clip.py")
    names: dict[str, Any] = {}
    exec(block.replace("path/to/clip", str(tmp_path)), names)
    with weights_come_back(), Shapes():  # as a plan asks it
        images = torch.zeros(1, 3, 32, 32, device=META, requires_grad=True)
        names["score"](images, ["a"]).sum().backward()
    prompts = ["a circle", "a star"]
    assert probe(names["score"], height=32, width=32, device="cpu", prompts=prompts).differentiable
