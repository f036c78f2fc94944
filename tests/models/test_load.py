"""Folders that cannot be loaded: one line that names what is wrong."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.models import load_pipeline
from nablaflow.storage.lock import MARKER

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["sd"], tmp_path / "model"))


def no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def broken_index(folder: Path) -> None:
    index = folder / "model_index.json"
    index.write_text(index.read_text()[:40])


def binary_index(folder: Path) -> None:
    (folder / "model_index.json").write_bytes(bytes(range(128, 256)))


def list_for_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("[]")


def no_unet(folder: Path) -> None:
    shutil.rmtree(folder / "unet")


def no_scheduler(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")


def no_weights(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).unlink()


def truncated(folder: Path) -> None:
    path = folder / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_weights(folder: Path) -> None:
    (folder / "vae" / WEIGHTS).write_bytes(b"")


def pickled(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).unlink()
    torch.save({"weight": torch.zeros(1)}, folder / "unet" / "diffusion_pytorch_model.bin")


def another_family(folder: Path) -> None:
    index = folder / "model_index.json"
    parts = json.loads(index.read_text())
    index.write_text(json.dumps(parts | {"_class_name": "StableDiffusionImg2ImgPipeline"}))


@pytest.mark.parametrize("family", ["sd", "sd3", "ddpm"])
@pytest.mark.parametrize("value", [1000.5, "1000", None, -5])
def test_a_scheduler_that_cannot_be_made_is_named_by_its_file(
    folders: dict[str, Path], tmp_path: Path, family: str, value: object
) -> None:
    folder = Path(shutil.copytree(folders[family], tmp_path / "model"))
    own = folder / "scheduler" / "scheduler_config.json"
    own.write_text(json.dumps(json.loads(own.read_text()) | {"num_train_timesteps": value}))
    with pytest.raises(UserError, match=r"scheduler_config\.json .*; use the one") as caught:
        load_pipeline(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (no_index, "has no model_index.json"),
        (broken_index, r"model_index\.json cannot be read"),
        (binary_index, r"model_index\.json cannot be read"),
        (list_for_index, r"model_index\.json"),
        (no_unet, "no unet folder"),
        (no_scheduler, "no scheduler folder"),
        (no_weights, "cannot be loaded"),
        (truncated, "cannot be loaded"),
        (empty_weights, "cannot be loaded"),
        (pickled, "cannot be loaded"),
        (another_family, "StableDiffusionImg2ImgPipeline is not supported"),
    ],
)
def test_a_damaged_folder_is_the_users_to_mend(
    copied: Path, damage: Callable[[Path], None], named: str
) -> None:
    damage(copied)
    with pytest.raises(UserError, match=named) as caught:
        load_pipeline(str(copied))
    message = str(caught.value)
    assert message.startswith("model: ")
    assert "\n" not in message


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/at/all", "/nowhere/at-all"])
def test_a_folder_that_does_not_exist_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"model: there is no folder {name}"):
        load_pipeline(name)


def test_a_path_is_a_folder_and_never_a_hub_id(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = next(iter(folders.values()))
    assert load_pipeline(folder).components
    with pytest.raises(UserError, match=r"there is no folder /.*owner/name"):
        load_pipeline(Path("owner/name"))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UserError, match="model: must be a folder, a file or a hub id, not 3"):
        load_pipeline(3)  # pyright: ignore[reportArgumentType]


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("weights")
    with pytest.raises(UserError, match="one file that is not safetensors"):
        load_pipeline(str(tmp_path / "model"))


@pytest.mark.parametrize("name", ["recipe.yaml", "notes.TXT", "reward.py"])
def test_what_holds_no_weights_is_not_to_be_converted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a")
    with pytest.raises(UserError, match=rf"{name} is no file of weights; give a model's folder"):
        load_pipeline(str(tmp_path / name))


@pytest.mark.parametrize("part", ["lora", "checkpoints", "checkpoints/step-000001"])
def test_a_part_of_a_run_is_told_with_the_run(tmp_path: Path, part: str) -> None:
    (tmp_path / "run" / part).mkdir(parents=True)
    (tmp_path / "run" / MARKER).touch()
    told = f"is a part of the run in {tmp_path / 'run'}; give that folder"
    with pytest.raises(UserError, match=re.escape(told)):
        load_pipeline(str(tmp_path / "run" / part))


def test_a_hub_id_without_a_network_is_named() -> None:
    with pytest.raises(
        UserError, match=r"model: nobody/no-such-model .*hub cannot be reached"
    ) as caught:
        load_pipeline("nobody/no-such-model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_network_has_the_precision_asked_for(
    folders: dict[str, Path], dtype: torch.dtype
) -> None:
    pipeline = load_pipeline(str(folders["sd"]), dtype)
    assert {parameter.dtype for parameter in pipeline.unet.parameters()} == {dtype}


def test_a_safety_checker_that_was_left_behind_is_not_missed(copied: Path) -> None:
    index = copied / "model_index.json"
    checker = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    index.write_text(json.dumps(json.loads(index.read_text()) | checker))
    pipeline: Any = load_pipeline(str(copied))
    assert pipeline.safety_checker is None


@pytest.mark.parametrize("family", ["sd", "sd3", "flux-dev"])
def test_an_adapters_image_encoder_is_not_missed(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    shutil.copytree(folders[family], tmp_path, dirs_exist_ok=True)
    index = tmp_path / "model_index.json"
    encoder = {"image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}
    index.write_text(json.dumps(json.loads(index.read_text()) | encoder))
    pipeline: Any = load_pipeline(str(tmp_path))
    assert pipeline.image_encoder is None
