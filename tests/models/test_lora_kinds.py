"""What else than two factors of a layer a file of kohya's scripts or LyCORIS may hold."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import conv2d

from nablaflow.errors import UserError
from nablaflow.models import WithLora, load_pipeline
from nablaflow.models.load import family_of
from nablaflow.models.lora_file import read_lora
from nablaflow.models.lora_loading import is_read_alike

CONVOLUTION = "down_blocks.0.resnets.0.conv1"
LINEAR = "lora_unet_mid_block_attentions_0_proj_in"


def in_three(unet: Any) -> dict[str, Tensor]:
    """A convolution's update as LyCORIS has it: a 1x1 one, the kernel among the ranks, a 1x1."""
    torch.manual_seed(0)
    weight = unet.get_submodule(CONVOLUTION).weight
    name = f"lora_unet_{CONVOLUTION.replace('.', '_')}"
    return {
        f"{name}.lora_down.weight": torch.randn(2, weight.shape[1], 1, 1),
        f"{name}.lora_mid.weight": torch.randn(2, 2, 3, 3),
        f"{name}.lora_up.weight": torch.randn(weight.shape[0], 2, 1, 1),
    }


@pytest.mark.parametrize("alpha", [None, 1.0])
@torch.no_grad()
def test_a_convolution_in_three_is_the_one_that_they_make(
    folders: dict[str, Path], tmp_path: Path, alpha: float | None
) -> None:
    base: Any = load_pipeline(str(folders["sd"]))
    state, before = in_three(base.unet), base.unet.get_submodule(CONVOLUTION).weight
    down, middle, up = state.values()
    x = torch.randn(1, before.shape[1], 5, 5)
    update = conv2d(conv2d(conv2d(x, down), middle, padding=1), up)
    told = {} if alpha is None else {f"{next(iter(state))[:-17]}.alpha": torch.tensor(alpha)}
    file = tmp_path / "x.safetensors"
    save_file(state | told, file)
    fused: Any = load_pipeline(WithLora(str(folders["sd"]), file, 1.0))
    found = conv2d(x, fused.unet.get_submodule(CONVOLUTION).weight - before, padding=1)
    scale = 1.0 if alpha is None else alpha / 2
    torch.testing.assert_close(found, scale * update, rtol=1e-4, atol=1e-4)
    part = family_of(base).part()
    assert set(read_lora(base, part, file, "adapter.start").layers) == {CONVOLUTION}
    assert not is_read_alike(base, part, file)


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_a_rank_of_nothing_is_said(
    folders: dict[str, Path], tmp_path: Path, alpha: float | None
) -> None:
    state = {f"{LINEAR}.lora_down.weight": torch.zeros(0, 16)}
    state[f"{LINEAR}.lora_up.weight"] = torch.zeros(16, 0)
    state |= {} if alpha is None else {f"{LINEAR}.alpha": torch.tensor(alpha)}
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(
        UserError, match=r"^model_lora: .* has no numbers in \S+ \(it is \[0, 16\]\)"
    ):
        load_pipeline(WithLora(str(folders["sd"]), tmp_path / "x.safetensors", 1.0))


@pytest.mark.parametrize("written", ["[]", "3", "null", "{", "[" * 100_000])
def test_a_header_that_holds_no_settings_is_said(
    folders: dict[str, Path], tmp_path: Path, written: str
) -> None:
    state = {f"{LINEAR}.lora_down.weight": torch.ones(2, 16)}
    state[f"{LINEAR}.lora_up.weight"] = torch.ones(16, 2)
    told = {"lora_adapter_metadata": written}
    save_file(state, tmp_path / "x.safetensors", metadata=told)
    with pytest.raises(UserError, match=r"^model_lora: .* header's lora_adapter_metadata, where"):
        load_pipeline(WithLora(str(folders["sd"]), tmp_path / "x.safetensors", 1.0))


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({f"{LINEAR}.diff": torch.ones(16, 16)}, r"an update of whole weights \(\.diff\)"),
        ({f"{LINEAR}.diff_b": torch.ones(16)}, r"an update of whole weights \(\.diff\)"),
        ({"lora_unet_conv_norm_out.w_norm": torch.ones(8)}, r"an update of norms"),
        ({f"{LINEAR}.on_input": torch.tensor(False)}, r"an IA3"),
        ({f"{LINEAR}.b1.weight": torch.ones(2, 16), f"{LINEAR}.alpha": torch.ones(())}, "a GLoRA"),
        ({f"{LINEAR}.something": torch.ones(2)}, r"is no LoRA \(it holds \S+something\)"),
    ],
)
def test_another_adapter_is_called_by_its_name(
    folders: dict[str, Path], tmp_path: Path, more: dict[str, Tensor], line: str
) -> None:
    """Not a LoRA for another base, and not quantized."""
    base: Any = load_pipeline(str(folders["sd"]))
    save_file(in_three(base.unet) | more, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=f"^model_lora: .* {line}"):
        load_pipeline(WithLora(str(folders["sd"]), tmp_path / "x.safetensors", 1.0))
