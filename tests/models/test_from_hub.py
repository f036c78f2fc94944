"""Pipelines by their hub ids: from the cache of this machine, whatever files they have there."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils import logging
from peft import LoraConfig
from safetensors.torch import load_file

from nablaflow.models import from_hub, load_pipeline
from tests.support.mistakes import line_of
from tests.support.pipelines import perturb, stable_diffusion

REPO, SHA = "owner/name", "0" * 40


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the cache, which is empty, would have the files of `REPO`."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    root = tmp_path / "models--owner--name"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(SHA)
    (root / "snapshots" / SHA).mkdir(parents=True)
    return root / "snapshots" / SHA


def weights(pipeline: Any) -> torch.Tensor:
    return torch.cat([p.flatten() for p in pipeline.unet.parameters()])


@pytest.mark.parametrize("files", ["plain", "fp16", "bin"])
def test_a_cached_pipeline_loads_from_the_files_that_it_has(snapshot: Path, files: str) -> None:
    pipeline = stable_diffusion()
    pipeline.save_pretrained(snapshot, variant="fp16" if files == "fp16" else None)
    if files == "bin":
        (file,) = (snapshot / "unet").glob("*.safetensors")
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
    assert torch.equal(weights(load_pipeline(REPO)), weights(pipeline))


def test_what_is_not_here_is_told_with_what_brings_it(snapshot: Path) -> None:
    line = line_of(lambda: load_pipeline(REPO))
    assert "hub cannot be reached" in line
    assert "hf download owner/name" in line
    assert line.endswith("give model=FOLDER")
    line = line_of(lambda: load_pipeline("owner/na me"))
    assert line == "model: 'owner/na me' is neither a path nor a hub id"


def test_weights_that_are_not_here_are_named(snapshot: Path) -> None:
    stable_diffusion().save_pretrained(snapshot)
    (snapshot / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert "download unet/*.safetensors" in line_of(lambda: load_pipeline(REPO))


def test_a_lora_inside_is_found_there_too(snapshot: Path) -> None:
    pipeline = stable_diffusion()
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    pipeline.save_pretrained(snapshot)
    assert "LoRA inside" in line_of(lambda: load_pipeline(REPO))


@pytest.mark.parametrize("there", [0, 1, 2, None])
def test_of_the_hub_the_best_choice_of_files_that_is_there_is_fetched(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch, there: int | None
) -> None:
    asked: list[dict[str, Any]] = []

    def download(model: str, **options: Any) -> str:
        asked.append(options)
        if len(asked) - 1 != there:
            raise OSError("Could not find the necessary `safetensors` weights")
        return str(snapshot)

    monkeypatch.setattr(DiffusionPipeline, "download", staticmethod(download))
    if there is None:
        assert "hf download" in line_of(lambda: from_hub.folder_from_hub(REPO, ["safety_checker"]))
        return
    assert from_hub.folder_from_hub(REPO, ["safety_checker"]) == snapshot
    assert asked[-1] == {**from_hub.CHOICES[there], "safety_checker": None, "revision": None}


def test_a_repository_without_a_pipeline_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> str:
        raise EntryNotFoundError("no such file")

    monkeypatch.setattr(from_hub, "hf_hub_download", none)
    assert "has no model_index.json on the hub" in line_of(lambda: load_pipeline(REPO))


def test_out_of_reach_is_one_line_without_the_clients_tries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[bool] = []
    client = logging.get_logger("huggingface_hub.utils._http")

    def out_of_reach(*_: Any, **__: Any) -> str:
        told.append(client.isEnabledFor(logging.WARNING))
        raise LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(from_hub, "hf_hub_download", out_of_reach)
    before = logging.get_verbosity()
    assert line_of(lambda: load_pipeline(REPO)) == (
        "model: owner/name is not in the cache, and the hub cannot be reached: run `hf download "
        "owner/name --local-dir FOLDER` where it can, and give model=FOLDER"
    )
    assert told == [False]
    assert logging.get_verbosity() == before


def test_a_revision_is_the_one_that_is_asked_for(snapshot: Path) -> None:
    """A branch, a tag or a commit after the name; the default branch without."""
    pipelines = {"1" * 40: stable_diffusion(), SHA: stable_diffusion()}
    for commit, pipeline in pipelines.items():
        perturb(pipeline.unet, seed=int(commit[0]))
        pipeline.save_pretrained(snapshot.parent / commit)
    (snapshot.parents[1] / "refs" / "v1").write_text("1" * 40)
    for revision, commit in (("", SHA), ("@v1", "1" * 40), ("@" + "1" * 40, "1" * 40)):
        found = load_pipeline(f"{REPO}{revision}")
        assert torch.equal(weights(found), weights(pipelines[commit]))
        assert from_hub.commit_on_hub(f"{REPO}{revision}") == commit
    assert line_of(lambda: load_pipeline(f"{REPO}@")).startswith("model: owner/name@ names no re")
    line = line_of(lambda: load_pipeline(f"{REPO}@v2"))
    assert "`hf download owner/name --revision v2 --local-dir FOLDER`" in line
