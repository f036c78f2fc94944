"""A run whose reference is the model and a LoRA: said, recorded, and needed by who loads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

import nablaflow as nf
from nablaflow.errors import UserError
from nablaflow.runs.begun_with import elsewhere
from tests.cli.conftest import Cli
from tests.support.cli_runs import READERS, train
from tests.support.loras import FILE, stock_lora
from tests.support.pipelines import render

pytestmark = pytest.mark.usefixtures("lean_runs")


@pytest.fixture(scope="module")
def style(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock_lora(tiny_model, tmp_path_factory.mktemp("style"))


@pytest.fixture(scope="module")
def trained(
    settings: dict[str, Any], style: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A run, and what it said."""
    root = tmp_path_factory.mktemp("fused")
    own = {"model_lora": str(style), "model_lora_scale": 0.5}
    result = train({**settings, **own}, root, "optimizer.learning_rate=0.05")
    return root / "run", result.stderr


@pytest.fixture
def run(trained: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(trained[0], tmp_path / "mine"))


def stock(base: Path, style: Path) -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    pipeline.load_lora_weights(str(style))
    pipeline.fuse_lora(lora_scale=0.5)
    pipeline.unload_lora_weights()
    return pipeline


def test_the_log_the_report_and_the_card_say_so(
    cli: Cli, trained: tuple[Path, str], run: Path, here: Path
) -> None:
    assert f"with {FILE}" not in trained[1]
    assert "reference: the model with" in trained[1]
    assert "at 0.5 fused into it; the KL and the tilt are of the two together" in trained[1]
    lines = [
        "pipeline.load_lora_weights(",
        "# belongs to the reference",
        "pipeline.fuse_lora(lora_scale=0.5)",
        "pipeline.unload_lora_weights()",
    ]
    assert all(line in (run / "report.html").read_text() for line in lines[1:])
    assert cli("export", run, "--format", "diffusers", "--out", "out").exit_code == 0
    card = (here / "out" / "README.md").read_text()
    assert all(line in card for line in lines)
    assert f"- fused into the base model: `…/{FILE} at 0.5`" in card
    assert cli("export", run, "--format", "kohya", "--out", "names").exit_code == 0
    assert f"beside …/{FILE} at strength 0.5" in (here / "names" / "README.md").read_text()


def test_what_is_exported_goes_on_top_or_holds_both(
    cli: Cli, run: Path, here: Path, tiny_model: Path, style: Path
) -> None:
    for form in ("diffusers", "merged"):
        assert cli("export", run, "--format", form, "--out", form).exit_code == 0
    both = stock(tiny_model, style)
    reference = render(both)
    both.load_lora_weights(str(here / "diffusers"))
    whole = StableDiffusionPipeline.from_pretrained(here / "merged")
    torch.testing.assert_close(render(whole), render(both), rtol=0, atol=1e-4)
    torch.testing.assert_close(render(nf.Run.open(run).pipeline()), render(both), rtol=0, atol=1e-4)
    assert (render(both) - reference).abs().max() > 1e-3


def test_all_that_read_the_run_load_it_again(cli: Cli, run: Path, here: Path) -> None:
    for command in (
        ("sample", run, "--n", 1, "--out", "images"),
        ("eval", run, "--n", 4),
        ("train", run / "config.yaml", f"output_dir={run}", "training.updates=3", "--resume"),
    ):
        result = cli(*command)
        assert result.exit_code == 0, result.stderr
    assert json.loads((run / "summary.json").read_text())["updates"] == 3


def test_another_file_is_noticed_by_all(cli: Cli, run: Path, here: Path, style: Path) -> None:
    other = here / "other"
    shutil.copytree(style, other)
    state = load_file(other / FILE)
    save_file({name: value + 1 for name, value in state.items()}, other / FILE)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "model_lora": str(other)}))
    for command in (
        ("sample", run, "--n", 1, "--out", "images", "--trust-run"),
        ("eval", run, "--n", 4, "--trust-run"),
        ("export", run, "--format", "merged", "--out", "out", "--trust-run"),
        ("train", run / "config.yaml", f"output_dir={run}", "--resume", "--trust-run"),
    ):
        result = cli(*command)
        assert result.exit_code == 2, command
        assert "is another file than the run was begun with" in " ".join(result.stderr.split())


def test_another_persons_run_asks_before_it_reads_the_file(
    cli: Cli, run: Path, here: Path, monkeypatch: pytest.MonkeyPatch, style: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "of-another"))
    for command in ("sample", "gallery"):
        result = cli(command, run, "--n", 1)
        assert result.exit_code == 2
        assert f"file{style}" in "".join(result.stderr.split())


@pytest.fixture
def moved(run: Path, here: Path, style: Path) -> Path:
    """Where the run's LoRA is, which its config.yaml does not know."""
    place = here / "moved"
    shutil.copytree(style, place)
    config = yaml.safe_load((run / "config.yaml").read_text())
    for file in (run / "config.yaml", *run.glob("checkpoints/*/manifest.json")):
        text = file.read_text()
        file.write_text(text.replace(config["model_lora"], str(here / "gone")))
    return place


@pytest.mark.parametrize("command", READERS)
def test_where_its_file_is_now_may_be_given(
    cli: Cli, run: Path, moved: Path, here: Path, command: str
) -> None:
    given = [str(part).format(run=run) for part in READERS[command]]
    lost = cli(*given, "--trust-run")
    assert lost.exit_code == 2
    assert "give its new place (model_lora=…)" in " ".join(lost.stderr.split())
    other = Path(shutil.copytree(moved, here / "other"))
    state = load_file(other / FILE)
    save_file({name: value + 1 for name, value in state.items()}, other / FILE)
    wrong = cli(*given, "model_lora=other")
    assert wrong.exit_code == 2
    assert "is another file than the run was begun with" in " ".join(wrong.stderr.split())
    found = cli(*given, "model_lora=moved")
    assert found.exit_code == 0, found.stderr


def test_so_it_may_in_python(run: Path, moved: Path) -> None:
    opened = nf.Run.open(run, model_lora=moved)
    assert nf.evaluate(opened, n=4, only_last=True)["policy"]["n"] == 4
    assert len(nf.sample(opened, n=1)) == 1
    assert opened.export("diffusers").is_dir()
    assert render(opened.pipeline()).isfinite().all()


def test_a_place_is_none_of_a_run_without_one_or_of_a_model(
    cli: Cli, run: Path, here: Path, style: Path
) -> None:
    for given, said in (
        (
            ("sample", run, "reward=warmth"),
            "reward: only model=… or model_lora=… can be given beside a run",
        ),
        (("sample", "nano", f"model_lora={style}"), "model_lora: nano is no run folder"),
        (("eval", run, "model_lora=null"), "model_lora: the run's reference has one in it"),
        (("compare", "model_lora=a"), "compare: model_lora=… goes with runs; leave it out"),
    ):
        result = cli(*given)
        assert result.exit_code == 2
        assert said in " ".join(result.stderr.split())
    config = nf.Run.open(run).config
    without = config.model_copy(update={"model_lora": None})
    with pytest.raises(UserError, match="the run was begun without one"):
        elsewhere(config, without)
    with pytest.raises(UserError, match="the run's reference has one in it"):
        elsewhere(without, config)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("model_lora=gone",), "model_lora: there is no file gone; check the path"),
        (("model_lora_scale=0.5",), "model_lora_scale: there is no model_lora to scale"),
        (("model.lora=a.safetensors",), "did you mean model_lora?"),
        (("lora_scale=2",), "did you mean model_lora_scale?"),
    ],
)
def test_a_mistake_is_one_line_and_no_folder(
    cli: Cli, recipe: Path, here: Path, given: tuple[str, ...], said: str
) -> None:
    result = cli("train", recipe, *given)
    assert (result.exit_code, (here / "run").exists()) == (2, False)
    assert said in " ".join(result.stderr.split())


def test_in_python_a_pipeline_takes_one_too(
    style: Path, tiny_model: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    mine = StableDiffusionPipeline.from_pretrained(tiny_model)
    made = StableDiffusionPipeline(**mine.components, requires_safety_checker=False)
    before = render(made)
    own = ("reward", "prompts", "method", "sampler", "adapter", "flow", "guard", "evaluation")
    given = {name: settings[name] for name in own}
    given["training"] = {**settings["training"], "updates": 1}
    given |= {"optimizer": {"learning_rate": 0.05}, "output_dir": tmp_path / "run"}
    run = nf.align(model=made, model_lora=style, model_lora_scale=0.5, **given)
    assert torch.equal(render(made), before)
    both = stock(tiny_model, style)
    both.load_lora_weights(str(run.lora))
    torch.testing.assert_close(render(run.pipeline()), render(both), rtol=0, atol=1e-4)
    assert nf.evaluate(run, n=4, only_last=True)["policy"]["n"] == 4
