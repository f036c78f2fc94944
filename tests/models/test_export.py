"""What is saved renders the policy's image in a stock pipeline, or is not saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, StableDiffusionPipeline
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from safetensors.torch import load_file
from torch import Tensor

from nablaflow.errors import ExportError
from nablaflow.models import AdapterSettings, SamplerSettings, export, load_model, load_pipeline
from nablaflow.models.export import save_policy
from nablaflow.models.pipelines import PipelineModel
from tests.support.pipelines import perturb, render

SAME = 1e-4


def trained(folder: Path, dtype: torch.dtype = torch.float32, **adapter: Any) -> PipelineModel:
    torch.manual_seed(0)
    model = load_model(
        load_pipeline(str(folder), dtype, exact_decoder=True),
        SamplerSettings(steps=4),
        AdapterSettings(**adapter),
        torch.device("cpu"),
    )
    perturb(model.network)
    return model


def stock(folder: Path) -> Any:
    kind = DDPMPipeline if folder.name == "ddpm" else StableDiffusionPipeline
    return kind.from_pretrained(folder)


def difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


@pytest.mark.parametrize("family", ["sd", "sd2"])
@pytest.mark.parametrize(
    "adapter",
    [
        {"rank": 4},
        {"rank": 2, "alpha": 5.0},
        {"rank": 3, "targets": ["to_k", "ff.net.2"]},
        {"rank": 2, "targets": ["to_q", "conv1", "conv2", "conv_shortcut"]},
    ],
    ids=["plain", "alpha", "targets", "convolutions"],
)
def test_a_stock_pipeline_renders_the_policy_from_the_lora(
    folders: dict[str, Path], tmp_path: Path, family: str, adapter: dict[str, Any]
) -> None:
    model = trained(folders[family], **adapter)
    saved = save_policy(model, str(folders[family]), tmp_path)
    assert saved == tmp_path / "lora"
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]
    assert [path.name for path in saved.iterdir()] == ["pytorch_lora_weights.safetensors"]
    pipeline = StableDiffusionPipeline.from_pretrained(folders[family])
    reference = render(pipeline)
    pipeline.load_lora_weights(saved)
    aligned = render(pipeline)
    assert difference(aligned, render(model.pipeline)) < SAME
    assert difference(aligned, reference) > 100 * SAME


def test_saving_leaves_the_policy_as_it_was(folders: dict[str, Path], tmp_path: Path) -> None:
    model = trained(folders["sd"], rank=2)
    before = render(model.pipeline)
    save_policy(model, str(folders["sd"]), tmp_path)
    assert torch.equal(render(model.pipeline), before)
    with model.reference():
        assert difference(render(model.pipeline), render(stock(folders["sd"]))) < SAME


@pytest.mark.parametrize("family", ["sd", "ddpm"])
def test_a_fully_trained_model_is_saved_whole(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    model = trained(folders[family], kind="full")
    saved = save_policy(model, str(folders[family]), tmp_path)
    assert saved == tmp_path / "model"
    kind = type(model.pipeline)
    aligned = render(kind.from_pretrained(saved))
    assert difference(aligned, render(model.pipeline)) < SAME
    assert difference(aligned, render(stock(folders[family]))) > 100 * SAME


def test_a_lora_that_no_pipeline_loads_is_merged_into_a_whole_model(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = trained(folders["ddpm"], rank=2, alpha=5.0)
    before = render(model.pipeline)
    saved = save_policy(model, str(folders["ddpm"]), tmp_path)
    assert saved == tmp_path / "model"
    aligned = render(DDPMPipeline.from_pretrained(saved))
    assert difference(aligned, before) < SAME
    assert difference(aligned, render(stock(folders["ddpm"]))) > 100 * SAME
    assert torch.equal(render(model.pipeline), before)


def test_a_policy_in_half_precision_is_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    model = trained(folders["sd"], torch.bfloat16, rank=2)
    saved = save_policy(model, str(folders["sd"]), tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(folders["sd"])
    reference = render(pipeline)
    pipeline.load_lora_weights(saved)
    aligned = render(pipeline)
    assert difference(aligned, reference) > 0.02
    own = render(model.pipeline.to(torch.float32))
    assert difference(aligned, own) < 0.02


def scaled(layers: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: 1.5 * value for name, value in layers.items()}


def not_a_number(layers: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value * torch.nan for name, value in layers.items()}


def unscaled(layers: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: value / 2.5 if "lora_B" in n else value for n, value in layers.items()}


@pytest.mark.parametrize("tamper", [scaled, not_a_number])
def test_a_lora_with_another_image_is_not_saved(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tamper: Any
) -> None:
    model = trained(folders["sd"], rank=2)
    honest = export.lora_layers
    monkeypatch.setattr(export, "lora_layers", lambda model: tamper(honest(model)))
    with pytest.raises(ExportError, match="largest difference"):
        save_policy(model, str(folders["sd"]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_lora_whose_scale_is_lost_is_not_saved(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(folders["sd"], rank=2, alpha=5.0)
    honest = export.lora_layers
    monkeypatch.setattr(export, "lora_layers", lambda model: unscaled(honest(model)))
    with pytest.raises(ExportError, match="largest difference"):
        save_policy(model, str(folders["sd"]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_keeps_the_previous_lora(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(folders["sd"], rank=2)
    saved = save_policy(model, str(folders["sd"]), tmp_path)
    written = (saved / "pytorch_lora_weights.safetensors").read_bytes()
    honest = export.lora_layers
    perturb(model.network)
    monkeypatch.setattr(export, "lora_layers", lambda model: scaled(honest(model)))
    with pytest.raises(ExportError):
        save_policy(model, str(folders["sd"]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]
    assert (saved / "pytorch_lora_weights.safetensors").read_bytes() == written


def test_a_second_save_replaces_the_first(folders: dict[str, Path], tmp_path: Path) -> None:
    model = trained(folders["sd"], rank=2)
    save_policy(model, str(folders["sd"]), tmp_path)
    perturb(model.network, seed=9)
    saved = save_policy(model, str(folders["sd"]), tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(folders["sd"])
    pipeline.load_lora_weights(saved)
    assert difference(render(pipeline), render(model.pipeline)) < SAME


def test_a_scale_is_in_the_tensors_and_not_beside_them(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Readers that know no metadata, and those that know kohya's names, see the same update."""
    model = trained(folders["sd"], rank=2, alpha=5.0)
    file = save_policy(model, str(folders["sd"]), tmp_path) / "pytorch_lora_weights.safetensors"
    tensors = load_file(file)
    kohya = convert_state_dict_to_kohya(dict(tensors))
    expected = render(model.pipeline)
    for state in (tensors, kohya):
        pipeline = StableDiffusionPipeline.from_pretrained(folders["sd"])
        pipeline.load_lora_weights(state)
        assert difference(render(pipeline), expected) < SAME


def test_the_same_weights_are_the_same_bytes(folders: dict[str, Path], tmp_path: Path) -> None:
    model = trained(folders["sd"], rank=2, alpha=5.0)
    places = [save_policy(model, str(folders["sd"]), tmp_path / name) for name in "ab"]
    first, second = (p / "pytorch_lora_weights.safetensors" for p in places)
    assert first.read_bytes() == second.read_bytes()
