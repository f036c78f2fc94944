"""A folder that peft's ``save_pretrained`` wrote: what it adds is what peft itself merges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn

from nablaflow.errors import UserError
from nablaflow.models import WithLora, load_pipeline
from nablaflow.models.load import family_of
from nablaflow.models.lora_file import files_of, find_lora, read_lora
from nablaflow.models.lora_loading import is_read_alike
from nablaflow.models.peft_form import PREFIX, SETTINGS, check_settings
from nablaflow.runs.begun_with import known_lora

TARGETS = ["to_q", "to_k", "proj_in"]
KINDS: dict[str, dict[str, Any]] = {
    "alpha": {"lora_alpha": 3},
    "rslora": {"lora_alpha": 3, "use_rslora": True},
    "patterns": {
        "lora_alpha": 3,
        "rank_pattern": {"to_k": 2},
        "alpha_pattern": {"to_k": 5, "attn1.to_q": 1},
    },
    "dora": {"lora_alpha": 3, "use_dora": True},
    "dora, patterns": {
        "lora_alpha": 3,
        "use_dora": True,
        "use_rslora": True,
        "rank_pattern": {"to_k": 2},
    },
}


def saved(base: Path, folder: Path, **settings: Any) -> nn.Module:
    """A denoiser's LoRA in a folder, by peft alone; the denoiser that has it merged."""
    pipeline: Any = load_pipeline(str(base))
    network = getattr(pipeline, family_of(pipeline).denoiser)
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False, **settings)
    model = get_peft_model(network, config)
    for name, value in model.named_parameters():
        if "lora_magnitude_vector" in name:  # which begins as the lengths that there are
            value.data *= torch.rand_like(value) + 0.5
    model.save_pretrained(str(folder))
    return model.merge_and_unload()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_it_is_what_peft_merges(
    folders: dict[str, Path], tmp_path: Path, family: str, kind: str
) -> None:
    merged = saved(folders[family], tmp_path / "lora", **KINDS[kind])
    file = find_lora(str(tmp_path / "lora"), "adapter.start")
    pipeline: Any = load_pipeline(str(folders[family]))
    part = family_of(pipeline).part()
    fused = getattr(load_pipeline(WithLora(str(folders[family]), file, 1.0)), part.name)
    before = dict(getattr(pipeline, part.name).named_parameters())
    wanted, changed = dict(merged.named_parameters()), 0
    for name, value in fused.named_parameters():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6)
        changed += not torch.equal(value, before[name])
    assert changed > 2
    assert changed == len(read_lora(pipeline, part, file, "adapter.start").layers)
    assert not is_read_alike(pipeline, part, file)


def test_its_scale_is_a_part_of_it(folders: dict[str, Path], tmp_path: Path) -> None:
    """Another alpha beside the same tensors is another LoRA."""
    saved(folders["sd"], tmp_path, lora_alpha=3)
    beside = tmp_path / "adapter_config.json"
    file, mark = known_lora(str(tmp_path), "model_lora", None)
    assert files_of(file, "model_lora") == [file, beside]
    beside.write_text(beside.read_text().replace('"lora_alpha": 3', '"lora_alpha": 4'))
    with pytest.raises(UserError, match="another file than the run was begun with"):
        known_lora(str(tmp_path), "model_lora", mark)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (None, r"adapter_config\.json that has its scale is not beside it"),
        ({"lora_alpha": "much"}, r"no configuration of a LoRA"),
        ({"lora_alpha": float("nan")}, r"no configuration of a LoRA"),
        ({"alpha_pattern": 3}, r"no configuration of a LoRA"),
        ({"alpha_pattern": {"to_q": "much"}}, r"no configuration of a LoRA"),
        ({"alpha_pattern": {"(": 3}}, r"no configuration of a LoRA"),
        ({"r": 7}, r"no configuration of a LoRA .*r is 7 and the rank of \S+ 4"),
        ({"peft_type": "BOFT"}, r"is a BOFT of peft"),
        ({"use_dora": True}, r"use_dora is True .* \(lora_magnitude_vector\) of 0 of \d+ layers"),
        ({"init_lora_weights": "pissa_niter_4"}, r"began at pissa_niter_4"),
        ({"init_lora_weights": "olora"}, r"save_pretrained\(…, path_initial_model_for_weight_c"),
        ({"use_qalora": True}, r"a LoRA with use_qalora"),
        ({"kasa_config": {"beta": 1.0}}, r"a LoRA with kasa_config"),
    ],
)
def test_what_is_no_such_lora_is_refused(
    folders: dict[str, Path], tmp_path: Path, change: dict[str, Any] | None, line: str
) -> None:
    saved(folders["sd"], tmp_path)
    beside = tmp_path / "adapter_config.json"
    if change is None:
        beside.unlink()
    else:
        beside.write_text(json.dumps({**json.loads(beside.read_text()), **change}))
    pipeline: Any = load_pipeline(str(folders["sd"]))
    with pytest.raises(UserError, match=line) as caught:
        read_lora(
            pipeline, family_of(pipeline).part(), find_lora(str(tmp_path), "model_lora"), "start"
        )
    assert "\n" not in str(caught.value)


def test_lengths_that_nothing_says_are_read_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    saved(folders["sd"], tmp_path, use_dora=True)
    beside = tmp_path / SETTINGS
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "use_dora": False}))
    with pytest.raises(UserError, match=r"^model_lora: use_dora is False .* get both again"):
        check_settings(tmp_path / "adapter_model.safetensors", "model_lora")


@pytest.mark.parametrize("kind", ["gaussian", "orthogonal", "pissa", "olora"])
def test_a_lora_that_takes_a_part_out_of_the_base_is_not_read_without_it(
    folders: dict[str, Path], tmp_path: Path, kind: Any
) -> None:
    """peft divides the base's weights again where it loads one; the factors alone are another."""
    pipeline: Any = load_pipeline(str(folders["sd"]))
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["to_q"], init_lora_weights=kind)
    model = get_peft_model(pipeline.unet, config)
    model.save_pretrained(str(tmp_path))
    wanted = dict(model.merge_and_unload().named_parameters())
    source = WithLora(str(folders["sd"]), tmp_path / "adapter_model.safetensors", 1.0)
    if kind in ("pissa", "olora"):
        with pytest.raises(UserError, match=f"^model_lora: .* began at {kind}, which takes"):
            load_pipeline(source)
        return
    fused: Any = load_pipeline(source)
    for name, value in fused.unet.named_parameters():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6)


def test_a_header_says_so_too(folders: dict[str, Path], tmp_path: Path) -> None:
    told = {"unet.r": 2, "unet.lora_alpha": 2, "unet.init_lora_weights": "pissa"}
    layer = "unet.mid_block.attentions.0.proj_in"
    factors = {
        f"{layer}.lora_A.weight": torch.ones(2, 16),
        f"{layer}.lora_B.weight": torch.ones(16, 2),
    }
    file = tmp_path / "x.safetensors"
    save_file(factors, file, metadata={"lora_adapter_metadata": json.dumps(told)})
    with pytest.raises(UserError, match=r"^model_lora: .* began at pissa"):
        load_pipeline(WithLora(str(folders["sd"]), file, 1.0))


@pytest.mark.parametrize("content", ["[]", "null", "[" * 100_000])
def test_what_is_beside_it_may_be_anything(tmp_path: Path, content: str) -> None:
    file = tmp_path / "adapter_model.safetensors"
    save_file({f"{PREFIX}embedding.lora_embedding_A": torch.ones(1)}, file)
    (tmp_path / SETTINGS).write_text(content)
    with pytest.raises(UserError, match=r"^model_lora: .* is no configuration of a LoRA"):
        check_settings(file, "model_lora")
