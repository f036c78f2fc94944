"""A user's mistake: status 2, one line that names the place and the remedy, nothing written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from safetensors.torch import load_file, save_file

from tests.support.run_folders import contents

pytestmark = pytest.mark.usefixtures("lean_runs")

Cli = Callable[..., Result]
SOURCE = Path(__file__).parents[2] / "src"


def assert_refused(result: Result, here: Path, *words: str) -> None:
    """Checks the whole contract; ``words`` are what the one line must hold."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]
    assert "Traceback" not in result.stderr
    assert list(here.iterdir()) == [], "nothing was written"


# --- settings -------------------------------------------------------------------------------------

SETTINGS = {
    "unknown key": ("optimizer.learning_rat=1e-3", ["optimizer.learning_rat", "learning_rate?"]),
    "unknown group": ("optimiser.learning_rate=1e-3", ["optimiser", "optimizer?"]),
    "unknown method": ("method=residual-nabla-bd", ["method.name", "residual-nabla-db?"]),
    "wrong type": ("training.updates=many", ["training.updates", "integer", "'many'"]),
    "negative beta": ("method.beta=-1", ["method.beta", "greater than or equal to 0"]),
    "beta is no number": ("method.beta=.nan", ["method.beta", "finite"]),
    "no prompts": ("prompts=[]", ["prompts", "at least one prompt"]),
    "not a setting": ("updates", ["'updates'", "key=value"]),
    "no transition": ("training.transition_fraction=0.01", ["training.transition_fraction"]),
    "too many transitions": ("training.transition_fraction=1.5", ["training.transition_fraction"]),
    "one step": ("sampler.steps=1", ["sampler.steps"]),
    "unknown sampler": ("sampler.name=dddim", ["sampler.name", "ddim?"]),
    "unknown reward": ("reward=warmt", ["warmt", "warmth?"]),
    "no such reward file": ("reward=mine.py:score", ["mine.py", "no file"]),
    "no gradient": ("reward=jpeg_compressibility", ["jpeg_compressibility", "gradient"]),
    "no such model": ("model=./nowhere", ["model", "./nowhere"]),
    "no such prompts": ("prompts=nowhere.txt", ["prompts", "nowhere.txt"]),
    "targets neither auto nor names": ("adapter.targets=all", ["adapter.targets", "must be auto"]),
    "channels that are none": ("flow.channels=[8, 0]", ["flow.channels", "must be auto"]),
    "no such layer": ("adapter.targets=[to_z]", ["adapter.targets", "to_z"]),
    "flow too deep": ("flow.channels=[8,8,8,8,8]", ["flow.channels", "fewer"]),
    "gamma of another length": ("method.gamma=[1.0,1.0]", ["method.gamma", "sampler.steps"]),
    "no such device": ("training.device=mps", ["training.device", "cpu"]),
    "unknown precision": ("training.precision=fp8", ["training.precision", "fp16"]),
    "no estimator": ("method=value-matching", ["method.estimator.name", "missing", "n-step"]),
    "unknown estimator": (
        "method={name: value-matching, beta: 1, estimator: n-stp}",
        ["method.estimator.name", "n-step?"],
    ),
    "a setting of another estimator": (
        "method={name: value-matching, beta: 1, estimator: {name: adjoint, n: 3}}",
        ["method.estimator.n", "n-step", "method.estimator.name=n-step"],
    ),
    "estimator's gamma of another length": (
        "method={name: value-matching, beta: 1, estimator: {name: n-step, gamma: [1.0]}}",
        ["method.estimator.gamma", "sampler.steps"],
    ),
    "stride of none": ("method={name: adjoint-matching, stride: 0}", ["method.stride", "1"]),
    "too few images": ("evaluation.n=3", ["evaluation.n", "4"]),
    "too small a bank": ("evaluation.bank=3", ["evaluation.bank"]),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_wrong_setting(cli: Cli, recipe: Path, here: Path, case: str):
    override, words = SETTINGS[case]
    assert_refused(cli("train", recipe, override), here, *words)


def test_a_flow_network_that_is_asked_for_and_not_used(cli: Cli, recipe: Path, here: Path):
    asked = cli("train", recipe, "method=terminal", "flow.channels=[8]")
    assert_refused(asked, here, "flow.channels", "terminal", "leave it out")


def test_a_flow_network_that_is_needed_and_off(cli: Cli, recipe: Path, here: Path):
    off = cli("train", recipe, "method=nabla-td", "flow=null")
    assert_refused(off, here, "flow", "nabla-td", "adjoint-matching")


def test_a_wrong_setting_of_the_demo(cli: Cli, here: Path):
    assert_refused(cli("demo", "training.update=3"), here, "training.update", "updates?")


# --- files ----------------------------------------------------------------------------------------


def test_no_recipe(cli: Cli, here: Path):
    assert_refused(cli("train", "nowhere.yaml"), here, "nowhere.yaml", "recipe")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "no prompt"),
        (b"\n# only a comment\n\n", "no prompt"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "text"),
        (b"a circle\n\x00\x01\n", "binary"),
        ("ein schöner Kreis".encode("latin-1"), "UTF-8"),
    ],
    ids=["empty", "comments", "picture", "zeros", "another encoding"],
)
def test_a_prompts_file_without_prompts(
    cli: Cli, recipe: Path, here: Path, tmp_path: Path, content: bytes, word: str
):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    assert_refused(cli("train", recipe, f"prompts={file}"), here, "prompts.txt", word)


@pytest.fixture
def copied(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copied"))


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [
        lambda model: cut(model / WEIGHTS),
        lambda model: (model / WEIGHTS).write_bytes(b""),
        lambda model: (model / WEIGHTS).unlink(),
        lambda model: cut(model / "unet" / "config.json"),
        lambda model: cut(model / "model_index.json"),
        lambda model: (model / "model_index.json").unlink(),
        lambda model: shutil.rmtree(model / "vae"),
        lambda model: cut(model / "tokenizer" / "tokenizer.json"),
    ],
    ids=[
        "cut",
        "empty",
        "no weights",
        "cut config",
        "cut index",
        "no index",
        "no vae",
        "cut words",
    ],
)
def test_a_damaged_model_folder(
    cli: Cli, recipe: Path, here: Path, copied: Path, damage: Callable[[Path], None]
):
    damage(copied)
    assert_refused(cli("train", recipe, f"model={copied}"), here, "model", str(copied))


def test_a_model_folder_whose_weights_are_anothers(
    cli: Cli, recipe: Path, here: Path, copied: Path
):
    weights = load_file(copied / WEIGHTS)
    weights["conv_in.weight"] = weights["conv_in.weight"][:4].contiguous()
    save_file(weights, copied / WEIGHTS)
    assert_refused(cli("train", recipe, f"model={copied}"), here, "model", str(copied))


# --- rewards --------------------------------------------------------------------------------------

REWARDS = {
    "one number for all": ("return images.mean()", ["shape ()", "(4,)"]),
    "a number for each pixel": ("return images.mean(1)", ["shape (4, "]),
    "a list": ("return [0.0] * len(images)", ["list"]),
    "half precision": ("return images.mean((1, 2, 3)).half()", ["float16", ".float()"]),
    "integers": ("return images.mean((1, 2, 3)).long()", ["int64", ".float()"]),
    "nan": ("return images.mean((1, 2, 3)) * float('nan')", ["NaN"]),
    "infinity": ("return images.mean((1, 2, 3)) / 0", ["infinite"]),
    "an exception": ("raise KeyError('weights')", ["KeyError"]),
    "detached": ("return images.detach().mean((1, 2, 3))", ["gradient"]),
    "constant": ("return images.mean((1, 2, 3)) * 0", ["gradient", "zero"]),
    "others' images": ("return (images - images.mean(0)).mean((1, 2, 3))", ["batch"]),
    "numpy": (
        "import torch; return torch.tensor(images.detach().numpy().mean((1, 2, 3)))",
        ["gradient"],
    ),
}


@pytest.mark.parametrize("case", REWARDS)
def test_a_reward_that_breaks_its_contract(
    cli: Cli, recipe: Path, here: Path, tmp_path: Path, case: str
):
    body, words = REWARDS[case]
    (tmp_path / "mine.py").write_text(f"def score(images, prompts):\n    {body}\n")
    result = cli("train", recipe, f"reward={tmp_path}/mine.py:score")
    assert_refused(result, here, "mine.py:score", *words)


# --- run folders ----------------------------------------------------------------------------------


@pytest.fixture
def run_there(recipe: Path, here: Path, cli: Cli) -> Path:
    """A folder with a configuration, as a run has one."""
    folder = here.parent / "earlier"
    result = cli("train", recipe, f"output_dir={folder}", "training.updates=1")
    assert result.exit_code == 0, result.stderr
    return folder


def test_runs_are_not_overwritten_nor_resumed_by_mistake(
    cli: Cli, recipe: Path, here: Path, run_there: Path
):
    before = contents(run_there)
    where = f"output_dir={run_there}"
    same = ("train", recipe, where, "training.updates=1")
    assert_refused(cli(*same), here, "output_dir", "--overwrite", "--resume")
    changed = cli(*same, "optimizer.learning_rate=0.5", "--resume")
    assert_refused(changed, here, "optimizer.learning_rate")
    assert_refused(cli(*same, "sampler.steps=5", "--resume"), here, "sampler.steps")
    # A mistake found with --overwrite must not cost the run that is there.
    assert_refused(cli(*same, "reward=warmt", "--overwrite"), here, "warmth?")
    assert contents(run_there) == before


def test_nothing_to_resume(cli: Cli, recipe: Path, here: Path):
    assert_refused(cli("train", recipe, "--resume"), here, "--resume", "run")


def test_a_folder_of_other_things_is_never_replaced(
    cli: Cli, recipe: Path, here: Path, tmp_path: Path
):
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "one.png").write_bytes(b"x")
    where = f"output_dir={precious}"
    assert_refused(cli("train", recipe, where), here, "output_dir")
    assert_refused(cli("train", recipe, where, "--overwrite"), here, "--overwrite", "by hand")
    assert (precious / "one.png").read_bytes() == b"x"


def test_a_file_in_the_place_of_the_run_folder(cli: Cli, recipe: Path, here: Path, tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("x")
    assert_refused(cli("train", recipe, f"output_dir={file}"), here, "output_dir")
    assert_refused(cli("train", recipe, f"output_dir={file}/run"), here, "output_dir")
    assert file.read_text() == "x"


def test_resuming_with_a_damaged_checkpoint(cli: Cli, recipe: Path, here: Path, run_there: Path):
    (run_there / "checkpoints" / "step-000001" / "state.pt").write_bytes(b"no zip file")
    result = cli("train", recipe, f"output_dir={run_there}", "training.updates=2", "--resume")
    assert_refused(result, here, "step-000001", "remove it")


@pytest.mark.parametrize("command", ["sample", "eval"])
def test_commands_on_a_folder_that_is_no_run(cli: Cli, here: Path, tmp_path: Path, command: str):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(cli(command, empty), here, str(empty))
    assert_refused(cli(command, tmp_path / "nowhere"), here, "nowhere")


@pytest.mark.parametrize("command", ["sample", "eval"])
def test_commands_on_a_run_without_a_checkpoint(
    cli: Cli, here: Path, run_there: Path, command: str
):
    shutil.rmtree(run_there / "checkpoints")
    assert_refused(cli(command, run_there), here, str(run_there), "checkpoint")


# --- the real program -----------------------------------------------------------------------------


def test_the_program_itself_says_one_line(recipe: Path, here: Path):
    """Nothing of what the libraries say while a model loads gets in between."""
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    command = [
        sys.executable,
        "-m",
        "nablaflow.cli",
        "train",
        str(recipe),
        "reward=jpeg_compressibility",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("nablaflow: ")
    assert list(here.iterdir()) == []


def test_debug_shows_where_it_happened(cli: Cli, recipe: Path):
    result = cli("train", recipe, "seed=-1", "--debug")
    assert result.exit_code != 0
    assert type(result.exception).__name__ == "UserError"


def test_a_process_that_is_told_of_others_and_not_where(
    cli: Cli, recipe: Path, here: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_refused(cli("train", recipe), here, "WORLD_SIZE: is 2", "MASTER_ADDR", "torchrun")


def test_half_precision_without_a_gpu(cli: Cli, recipe: Path, here: Path):
    result = cli("train", recipe, "training.precision=fp16")
    assert_refused(result, here, "training.precision: fp16 needs a GPU", "bf16")
