"""The commands end to end on a tiny model: the run folder's contract, and what reads it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import Result
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from nablaflow.config.overrides import load_config
from tests.support.cli_runs import train
from tests.support.run_folders import contents

pytestmark = pytest.mark.usefixtures("lean_runs")

Cli = Callable[..., Result]
FIGURES = ("reward_mean", "diversity", "distance_to_reference", "distance_to_tilt")
OVERRIDES = (
    "training.updates=3",
    "training.sample_every=2",
    "training.checkpoint_every=2",
    "training.trackers=[tensorboard]",
    "adapter.ema_decay=0.9",
    "method.beta=0.5",
    "optimizer.learning_rate=1e-2",
    "evaluation.n=8",
    "evaluation.bank=420",
    "evaluation.batch=70",
)


def only_json(result: Result) -> dict[str, Any]:
    """The object that ``--json`` prints; nothing else may be on stdout."""
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def finished(
    settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A whole run: its folder, and the object that the command printed."""
    root = tmp_path_factory.mktemp("finished")
    return root / "run", only_json(train(settings, root, *OVERRIDES))


@pytest.fixture
def run(finished: tuple[Path, dict[str, Any]]) -> Path:
    return finished[0]


# --- the run folder -------------------------------------------------------------------------------


def test_the_run_folder_holds_what_the_contract_says(run: Path):
    names = {path.name for path in run.iterdir()} - {"logs"}
    assert names == {
        "config.yaml",
        "metrics.jsonl",
        "log.txt",
        "lora",
        "ema",
        "checkpoints",
        "samples",
        "report.html",
        "run.json",
        "summary.json",
        ".nablaflow-run",
    }
    checkpoints = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert checkpoints == ["step-000002", "step-000003"]


def test_the_configuration_is_resolved_and_runs_again(run: Path):
    config = load_config(run / "config.yaml", [], {})
    assert (config.training.updates, config.adapter.ema_decay) == (3, 0.9)
    assert load_config(None, [], yaml.safe_load((run / "config.yaml").read_text())) == config
    # Resolved: settings that nobody gave are there too.
    assert yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["betas"] == [0.9, 0.95]


def test_metrics_have_one_object_for_each_update(run: Path):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["update"] for record in records] == [1, 2, 3]
    for record in records:
        assert {"reward_mean", "loss", "loss_forward", "learning_rate", "seconds"} <= record.keys()
        assert all(math.isfinite(value) for value in record.values())


def test_the_summary_has_every_figure_with_its_standard_error(run: Path):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["updates"] == 3
    assert summary["seconds"] > 0
    assert summary["peak_rss_mb"] > 10
    assert "peak_device_mb" not in summary, "of a processor"
    for part in ("reference", "policy", "exact_tilt"):
        column = summary[part]
        for figure in FIGURES:
            assert figure in column, (part, figure)
            assert f"{figure}_se" in column, (part, figure)
        assert column["n"] == (420 if part == "exact_tilt" else 8)
        assert math.isfinite(column["reward_mean"])
        assert column["reward_mean_se"] > 0
    assert 200 <= summary["exact_tilt"]["effective_sample_size"] <= 420


def test_json_is_the_summary_with_the_folder(finished: tuple[Path, dict[str, Any]]):
    run, printed = finished
    summary = json.loads((run / "summary.json").read_text())
    assert printed == {"output_dir": str(run), **summary}


def test_the_exact_tilt_is_of_the_bank_reweighted(run: Path):
    """Weights exp(beta r) within each prompt, computed here from the cached states."""
    from nablaflow.rewards import load
    from nablaflow.runs.policy import load_policy

    summary = json.loads((run / "summary.json").read_text())
    (bank,) = (run.parent / "cache").glob("bank-*")
    model, config, _ = load_policy(run)
    prompts = config.prompts
    images = model.decode(load_file(bank)["states"].float())
    rewards = load("warmth")(images, [prompts[i % 2] for i in range(420)]).double()
    means, tilted = [], []
    for prompt in range(2):
        own = rewards[prompt::2]
        means.append(own.mean())
        tilted.append((own * (0.5 * own).exp()).sum() / (0.5 * own).exp().sum())
    assert summary["exact_tilt"]["reward_mean"] == pytest.approx(float(sum(tilted) / 2), rel=1e-4)
    # The reference's own samples agree with the bank within five standard errors.
    reference = summary["reference"]
    error = 5 * reference["reward_mean_se"] + 1e-3
    assert reference["reward_mean"] == pytest.approx(float(sum(means) / 2), abs=error)


def test_the_lora_loads_in_a_stock_pipeline_and_changes_its_images(run: Path, tiny_model: Path):
    def image(pipeline: StableDiffusionPipeline) -> torch.Tensor:
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        call = {"num_inference_steps": 2, "generator": generator, "output_type": "latent"}
        return pipeline("a circle", **call).images

    plain = StableDiffusionPipeline.from_pretrained(tiny_model)
    before = image(plain)
    images = []
    for folder in (run / "lora", run / "ema" / "lora"):
        plain.load_lora_weights(folder)
        images.append(image(plain))
        plain.unload_lora_weights()
    assert not torch.allclose(images[0], before, atol=1e-4)
    assert not torch.allclose(images[1], before, atol=1e-4)
    assert not torch.allclose(images[0], images[1], atol=1e-5), "the average lags behind"


def test_pictures_are_there_at_the_interval_and_at_the_end(run: Path):
    names = sorted(path.name for path in (run / "samples").iterdir())
    assert names == ["before_after.png", "step-000002.png"]
    for name in names:
        with Image.open(run / "samples" / name) as picture:
            low, high = picture.convert("L").getextrema()
            assert low < high, "not a single colour"


def test_the_report_needs_no_network_and_names_the_lora(run: Path):
    text = (run / "report.html").read_text()
    assert "load_lora_weights" in text
    assert "<code>lora</code>" in text
    assert str(run.parent) not in text, "no absolute paths"
    for outside in ('src="http', "src='http", "url(http", "@import"):
        assert outside not in text


def test_the_lines_of_the_report_make_an_image(
    run: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where the page is, with the folder that it leaves out; by the sampler's own steps."""
    (block,) = re.findall(
        "<pre><code>(import torch.*?)</code>", (run / "report.html").read_text(), re.DOTALL
    )
    lines = unescape(block).replace(f"…/{tiny_model.name}", str(tiny_model))
    monkeypatch.chdir(run)
    names: dict[str, Any] = {}
    exec(lines, names)
    assert names["image"].size == (16, 16)
    assert "num_inference_steps=4" in lines


# --- commands on a run ----------------------------------------------------------------------------


def test_eval_measures_the_run_again_and_writes_nothing(
    run: Path, cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NABLAFLOW_CACHE", str(run.parent / "cache"))
    before = contents(run)
    again = only_json(cli("eval", run, "--json"))
    assert contents(run) == before
    assert list(here.iterdir()) == []
    summary = json.loads((run / "summary.json").read_text())
    for part in ("reference", "policy", "exact_tilt"):
        figures = {name: value for name, value in summary[part].items() if value is not None}
        found = {name: value for name, value in again[part].items() if value is not None}
        assert found == pytest.approx(figures, rel=1e-4), "same seeds, same figures"


def test_eval_with_another_n(run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NABLAFLOW_CACHE", str(run.parent / "cache"))
    again = only_json(cli("eval", run, "--n", 12, "--json"))
    assert again["policy"]["n"] == again["reference"]["n"] == 12


def test_eval_prints_a_table_of_the_three(run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NABLAFLOW_CACHE", str(run.parent / "cache"))
    result = cli("eval", run)
    assert result.exit_code == 0, result.stderr
    for word in ("reference", "aligned", "exact tilt", "reward", "diversity"):
        assert word in result.stdout.lower()


def test_sample_writes_images_of_the_runs_policy(run: Path, cli: Cli, here: Path):
    found = only_json(cli("sample", run, "--n", 4, "--out", "a", "--json"))["images"]
    assert [Path(name).name for name in found] == [
        "0000-a-circle.png",
        "0001-a-square.png",
        "0002-a-circle.png",
        "0003-a-square.png",
    ]
    assert sorted(here.joinpath("a").glob("0*.png")) == [here / name for name in sorted(found)]
    with Image.open(here / found[0]) as picture:
        assert picture.size == (16, 16)


def test_sample_of_run_and_model_start_from_the_same_noise(
    run: Path, tiny_model: Path, cli: Cli, here: Path
):
    common = ("--n", 2, "--prompt", "a star")
    assert cli("sample", run, *common, "--out", "policy").exit_code == 0
    assert cli("sample", run, *common, "--out", "again").exit_code == 0
    assert cli("sample", run, *common, "--out", "other", "--seed", 1).exit_code == 0
    assert cli("sample", tiny_model, *common, "--out", "model").exit_code == 0
    file = "0000-a-star.png"
    policy = (here / "policy" / file).read_bytes()
    assert policy == (here / "again" / file).read_bytes()
    assert policy != (here / "other" / file).read_bytes()
    assert (here / "model" / file).is_file()


def test_sample_does_not_replace_images(run: Path, cli: Cli, here: Path):
    assert cli("sample", run, "--n", 1, "--out", "a").exit_code == 0
    before = contents(here)
    refused = cli("sample", run, "--n", 1, "--seed", 1, "--out", "a")
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    assert contents(here) == before
    assert cli("sample", run, "--n", 1, "--seed", 1, "--out", "a", "--overwrite").exit_code == 0
    assert contents(here) != before


# --- other commands -------------------------------------------------------------------------------


def test_train_writes_where_the_recipe_says_and_shows_the_table(cli: Cli, recipe: Path, here: Path):
    result = cli("train", recipe, "training.updates=1")
    assert result.exit_code == 0, result.stderr
    assert "reward" in result.stdout.lower()
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert summary["exact_tilt"] is None, "without a bank nothing is quoted"
    assert summary["policy"]["distance_to_tilt"] is None
    assert math.isfinite(summary["policy"]["reward_mean"])


def test_overwrite_replaces_the_whole_run(cli: Cli, recipe: Path, here: Path):
    assert cli("train", recipe, "training.updates=2").exit_code == 0
    assert cli("train", recipe, "training.updates=1", "--overwrite").exit_code == 0
    assert [path.name for path in (here / "run" / "checkpoints").iterdir()] == ["step-000001"]
    assert len((here / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_stop_that_is_nobodys_mistake_has_status_1_and_one_line(cli: Cli, recipe: Path):
    result = cli("train", recipe, "optimizer.learning_rate=1e20", "training.updates=5")
    assert result.exit_code == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("nablaflow: update ")
    assert "not finite" in last
    assert "Traceback" not in result.stderr


def test_doctor_says_what_this_machine_has(cli: Cli):
    found = only_json(cli("doctor", "--json"))
    assert torch.__version__.startswith(found["packages"]["torch"])
    assert found["memory_gib"] > 0
    assert {type(fits) for fits in found["fits"].values()} == {bool}
    shown = cli("doctor").stdout
    assert "torch" in shown
    assert "to_q" in shown


def test_doctor_says_what_is_adapted_of_a_model(cli: Cli, tiny_model: Path):
    found = only_json(cli("doctor", str(tiny_model), "--json"))["adapter"]
    attention, convolutions = (
        ["to_q", "to_k", "to_v", "to_out.0"],
        ["conv1", "conv2", "conv_shortcut"],
    )
    assert list(found["layers"]) == attention + convolutions
    assert 0 < found["trained_share"] < found["adapted_share"] < 1
    assert cli("doctor", "nowhere").exit_code == 2


@pytest.mark.parametrize("command", ["demo", "train", "sample", "eval", "doctor"])
def test_every_command_explains_itself(cli: Cli, command: str):
    result = cli(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_the_demo_in_a_shortened_form(cli: Cli, tiny_model: Path, here: Path):
    """The demo's own objective, on a model of random weights: the whole way to the report."""
    result = cli(
        "demo",
        f"model={tiny_model}",
        "output_dir=short",
        "sampler.steps=5",
        "training.updates=2",
        "training.images_per_prompt=1",
        "method.value=contrastive",
        "training.value_samples=64",
        "training.device=cpu",
        "evaluation.n=16",
        "evaluation.bank=1000",
        "evaluation.batch=100",
        "method.beta=0.1",
    )
    assert result.exit_code == 0, result.stderr
    for column in ("reference", "aligned", "exact tilt"):
        assert column in result.stdout.lower()
    summary = json.loads((here / "short" / "summary.json").read_text())
    assert summary["exact_tilt"]["effective_sample_size"] >= 200
    assert (here / "short" / "report.html").is_file()
