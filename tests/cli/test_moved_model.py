"""A run whose model's folder is elsewhere by now, or another: known by its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import nablaflow as nf
from nablaflow.config.overrides import load_config
from nablaflow.config.parse import parse_config
from nablaflow.errors import UserError
from nablaflow.models.file_mark import PIECES, SIZE, mark_of_files
from nablaflow.runs.pretrained import load_pretrained, reference_of, with_mark
from nablaflow.storage.run_folder import LORA_FILE
from tests.cli.conftest import Cli
from tests.support.cli_runs import READERS, train

COMMITS = ("0" * 40, "1" * 40)

pytestmark = pytest.mark.usefixtures("lean_runs")


@pytest.fixture(scope="module")
def trained(
    settings: dict[str, Any], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a run, ``run``, and what it was begun with, ``base``."""
    root = tmp_path_factory.mktemp("moved")
    shutil.copytree(tiny_model, root / "base")
    train({**settings, "model": str(root / "base")}, root)
    return root


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run; its model is in ``new-place`` and not in ``base``, which it names."""
    shutil.copytree(trained / "base", tmp_path / "new-place")
    run = Path(shutil.copytree(trained / "run", tmp_path / "mine"))
    for file in (run / "config.yaml", *run.glob("checkpoints/*/manifest.json")):
        file.write_text(file.read_text().replace(str(trained / "base"), str(tmp_path / "base")))
    return run


@pytest.mark.parametrize("command", READERS)
def test_where_its_model_is_now_may_be_given(
    cli: Cli, run: Path, tmp_path: Path, command: str
) -> None:
    given = [str(part).format(run=run) for part in READERS[command]]
    lost = cli(*given, "--trust-run")
    assert lost.exit_code == 2
    assert lost.stderr.endswith("the run was begun with; give where it is now (model=…)\n")
    found = cli(*given, f"model={tmp_path / 'new-place'}")
    assert found.exit_code == 0, found.stderr


def test_so_it_may_in_python(run: Path, tmp_path: Path) -> None:
    opened = nf.Run.open(run, model=tmp_path / "new-place")
    assert len(nf.sample(opened, n=1)) == 1
    assert opened.pipeline() is not None
    with pytest.raises(UserError, match="give where it is now"):
        nf.Run.open(run, trusted=True).pipeline()


def change_weights(base: Path) -> None:
    (file,) = (base / "unet").glob("*.safetensors")
    state = load_file(file)
    save_file({name: value + 1e-3 for name, value in state.items()}, file, {"format": "pt"})


def change_scheduler(base: Path) -> None:
    file = base / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_end": 0.02}))


@pytest.mark.parametrize("change", [change_weights, change_scheduler])
def test_another_model_at_its_place_is_noticed(
    cli: Cli, run: Path, tmp_path: Path, here: Path, change: Any
) -> None:
    change(Path(shutil.copytree(tmp_path / "new-place", tmp_path / "base")))
    commands = [[str(part).format(run=run) for part in given] for given in READERS.values()]
    commands.append(["train", str(run / "config.yaml"), "--resume", f"output_dir={run}"])
    for command in commands:
        refused = cli(*command, "--trust-run")
        assert refused.exit_code == 2, command
        assert "is not what the run was begun with, by its files" in refused.stderr


def test_a_resumed_run_goes_on_with_a_moved_model(cli: Cli, run: Path, tmp_path: Path) -> None:
    given = (f"output_dir={run}", "training.updates=3", "--trust-run")
    resumed = ("train", run / "config.yaml", "--resume", *given)
    refused = cli(*resumed)
    assert refused.exit_code == 2
    assert "give where it is now (model=…)" in refused.stderr
    place = tmp_path / "new-place"
    done = cli(*resumed, f"model={place}")
    assert done.exit_code == 0, done.stderr
    config = load_config(run / "config.yaml", [], {})
    assert config.model == str(place)
    assert config.model_hash == mark_of_files(str(place))


def test_a_run_that_recorded_no_mark_records_one_when_it_goes_on(
    cli: Cli, recipe: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those that an earlier version has begun."""
    with monkeypatch.context() as patch:
        patch.setattr("nablaflow.runs.align.with_mark", lambda config: config)
        assert cli("train", recipe, "training.updates=1").exit_code == 0
    assert load_config(here / "run" / "config.yaml", [], {}).model_hash is None
    told = "model: the run was begun without a checksum of"
    for updates, words in ((1, True), (2, True), (3, False)):  # the first writes no checkpoint
        done = cli("train", recipe, f"training.updates={updates}", "--resume")
        assert done.exit_code == 0, done.stderr
        assert (told in done.stderr) == words
        config = load_config(here / "run" / "config.yaml", [], {})
        assert config.model_hash == mark_of_files(config.model)
    sampled = cli("sample", here / "run", "--n", "1", "--out", "seen")
    assert "model_hash" not in sampled.stderr


@pytest.fixture
def on_hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cached repository ``owner/name``, whose default branch is at the first commit of two."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "cache" / "models--owner--name"
    for commit in COMMITS:
        shutil.copytree(tiny_model, root / "snapshots" / commit)
    change_weights(root / "snapshots" / COMMITS[1])
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMITS[0])
    return root


def test_of_the_hub_it_stays_at_the_commit_that_it_was_begun_with(
    cli: Cli, recipe: Path, here: Path, on_hub: Path
) -> None:
    begun = ("train", recipe, "model=owner/name", "training.updates=2")
    assert cli(*begun, "output_dir=whole").exit_code == 0
    assert cli(*begun, "output_dir=run", "training.updates=1").exit_code == 0
    (on_hub / "refs" / "main").write_text(COMMITS[1])  # as when its author gives it other weights
    done = cli(*begun, "output_dir=run", "--resume")
    assert done.exit_code == 0, done.stderr
    policies = [here / run / "lora" / LORA_FILE for run in ("whole", "run")]
    assert policies[0].read_bytes() == policies[1].read_bytes()
    assert load_config(here / "run" / "config.yaml", [], {}).model_hash == f"commit:{COMMITS[0]}"
    loaded = f"from_pretrained(&#x27;owner/name&#x27;, revision=&#x27;{COMMITS[0]}&#x27;, "
    assert loaded in (here / "run" / "report.html").read_text()
    refused = cli("sample", "run", "model=owner/name@main", "--out", "seen")
    assert refused.exit_code == 2
    assert f"is not commit {COMMITS[0]} on the hub" in refused.stderr
    folder = on_hub / "snapshots" / COMMITS[0]
    refused = cli("sample", "run", f"model={folder}", "--out", "seen")
    assert f"{folder} does not say that it is commit {COMMITS[0]} on the hub" in refused.stderr
    drawn = cli("sample", "run", f"model=owner/name@{COMMITS[0]}", "--n", "1", "--out", "seen")
    assert drawn.exit_code == 0, drawn.stderr


def test_so_it_does_at_a_branch_or_a_tag(cli: Cli, recipe: Path, here: Path, on_hub: Path) -> None:
    (on_hub / "refs" / "v1").write_text(COMMITS[0])
    begun = ("train", recipe, "model=owner/name@v1", "output_dir=run")
    assert cli(*begun, "training.updates=1").exit_code == 0
    (on_hub / "refs" / "v1").write_text(COMMITS[1])
    done = cli(*begun, "training.updates=2", "--resume")
    assert done.exit_code == 0, done.stderr
    loaded = f"from_pretrained(&#x27;owner/name&#x27;, revision=&#x27;{COMMITS[0]}&#x27;, "
    assert loaded in (here / "run" / "report.html").read_text()
    drawn = cli("sample", "run", "--n", "1", "--out", "seen")
    assert drawn.exit_code == 0, drawn.stderr
    other = f"model=owner/name@{COMMITS[1]}"
    for given in (("sample", "run", other, "--out", "other"), (*begun, other, "--resume")):
        refused = cli(*given)
        assert refused.exit_code == 2
        assert f"is not commit {COMMITS[0]} on the hub" in refused.stderr


def test_its_recipe_begins_another_run_with_another_model(
    cli: Cli, run: Path, tmp_path: Path, here: Path
) -> None:
    change_weights(tmp_path / "new-place")
    begun = (f"model={tmp_path / 'new-place'}", "output_dir=other", "training.updates=1")
    done = cli("train", run / "config.yaml", *begun)
    assert done.exit_code == 0, done.stderr


def test_a_mark_is_of_what_the_files_hold(tmp_path: Path, tiny_model: Path) -> None:
    copied = Path(shutil.copytree(tiny_model, tmp_path / "copied"))
    assert mark_of_files(str(copied)) == mark_of_files(str(tiny_model))
    (copied / "notes.txt").write_text("of no matter")
    (copied / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not read")
    assert mark_of_files(str(copied)) == mark_of_files(str(tiny_model))
    assert mark_of_files("nano") == mark_of_files(str(nf.nano.path()))
    assert mark_of_files("folder") is None
    large = tmp_path / "large.safetensors"
    large.write_bytes(bytes(3 * PIECES * SIZE))
    before = mark_of_files(str(large))
    with large.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert mark_of_files(str(large)) != before


def test_an_embedded_model_of_another_version_is_another(
    settings: dict[str, Any], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    shutil.copytree(tiny_model, package / "pipeline")
    monkeypatch.setattr(nf.nano, "_FOLDER", package)
    config = with_mark(parse_config({**settings, "model": "nano"}))
    load_pretrained(config, None)
    file = package / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({name: value + 0.01 for name, value in weights.items()}, file)
    for read in (load_pretrained, lambda *given: reference_of(*given, torch.float32)):
        with pytest.raises(UserError, match=r"^model: nano is not what the run was begun with"):
            read(config, None)
    load_pretrained(config.model_copy(update={"model_hash": None}), None)  # of an earlier version
