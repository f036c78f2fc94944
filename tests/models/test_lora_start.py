"""`adapter.start`: the policy begins at a LoRA as a stock pipeline renders it, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.formats import write_policy
from nablaflow.models.kohya_scales import stock_keeps
from nablaflow.models.lora_file import GivenLora, LoraFactors
from nablaflow.models.lora_start import targets_of
from nablaflow.models.pipelines import PipelineModel
from tests.support.flow_parts import SMALL
from tests.support.flow_pipelines import FLOW_FAMILIES
from tests.support.loras import FILE, WIDELY, stock_lora
from tests.support.pipelines import perturb, render

CPU = torch.device("cpu")


def begun(
    base: Path, start: Path, sampler: SamplerSettings | None = None, **adapter: Any
) -> PipelineModel:
    settings = AdapterSettings(**{"rank": 4, "start": str(start), **adapter})
    return load_model(load_pipeline(str(base)), sampler or SamplerSettings(), settings, CPU)


def assert_begins(model: PipelineModel, base: Path, lora: Path, weight_name: str = FILE) -> None:
    stock = load_pipeline(str(base))
    reference = model.stock_image(stock, "a red circle", **noise())
    stock.load_lora_weights(lora, weight_name=weight_name)
    wanted = model.stock_image(stock, "a red circle", **noise())
    with model.as_in_stock():
        found = model.stock_image(model.pipeline, "a red circle", **noise())
        with model.reference():
            before = model.stock_image(model.pipeline, "a red circle", **noise())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(before, reference, rtol=0, atol=1e-4)
    assert (wanted - reference).abs().max() > 1e-3


def noise() -> dict[str, Any]:
    return {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}


@pytest.mark.parametrize("family", ["sd", "sd2", "sdxl"])
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"target_modules": ["to_k", "conv1", "ff.net.2"]},
    ],
    ids=["plain", "rslora", "dora", "targets"],
)
def test_the_policy_is_the_lora_and_the_reference_is_the_base(
    folders: dict[str, Path], tmp_path: Path, family: str, kind: dict[str, Any]
) -> None:
    lora = stock_lora(folders[family], tmp_path / "lora", **kind)
    own = {"rslora": "use_rslora" in kind, "dora": "use_dora" in kind, "alpha": 3.0}
    assert_begins(begun(folders[family], lora, **own), folders[family], lora)


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_transformers_begin_at_theirs(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    base = folders[family]
    lora = stock_lora(base, tmp_path / "lora", "transformer", target_modules=WIDELY)
    assert_begins(begun(base, lora, SamplerSettings(**SMALL)), base, lora)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_kohyas_names_are_read(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    """Alpha other than rank, as those scripts have it, by diffusers' own conversion."""
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

    stock_lora(folders[family], tmp_path / "lora")
    kohya = convert_state_dict_to_kohya(load_file(tmp_path / "lora" / FILE))
    kohya = {k: torch.tensor(6.0) if k.endswith(".alpha") else v for k, v in kohya.items()}
    (tmp_path / "kohya").mkdir()
    save_file(kohya, tmp_path / "kohya" / "style.safetensors")
    model = begun(folders[family], tmp_path / "kohya")
    assert_begins(model, folders[family], tmp_path / "kohya", "style.safetensors")
    assert model.adapter.targets == ["to_q"]  # type: ignore[attr-defined]


def by_kohya(state: dict[str, torch.Tensor], alphas: list[float | None]) -> dict[str, torch.Tensor]:
    """The same layers by kohya's names, with alphas in turns; None has none."""
    found = {}
    for index, name in enumerate(sorted(n for n in state if "lora_A" in n)):
        path = name.removeprefix("unet.").removesuffix(".lora_A.weight")
        short = f"lora_unet_{path.replace('.', '_')}"
        found[f"{short}.lora_down.weight"] = state[name]
        found[f"{short}.lora_up.weight"] = state[name.replace("lora_A", "lora_B")]
        alpha = alphas[index % len(alphas)]
        found |= {} if alpha is None else {f"{short}.alpha": torch.tensor(alpha)}
    return found


@pytest.mark.parametrize("alphas", [[1.0, 4.0, 8.0], [2.0, None]])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_alphas_that_differ_by_layer_all_count(
    folders: dict[str, Path], tmp_path: Path, family: str, alphas: list[float | None]
) -> None:
    """As kohya's readers have it, update = alpha / rank up down; diffusers 0.42 loses them."""
    state = load_file(stock_lora(folders[family], tmp_path / "lora") / FILE)
    save_file(by_kohya(state, alphas), tmp_path / "k.safetensors")
    ups = sorted(n.replace("lora_A", "lora_B") for n in state if "lora_A" in n)
    turns = [4.0 if alpha is None else alpha for alpha in alphas] * len(ups)
    scaled = {name: state[name] * alpha / 4 for name, alpha in zip(ups, turns, strict=False)}
    (tmp_path / "folded").mkdir()
    save_file(state | scaled, tmp_path / "folded" / FILE)
    assert_begins(
        begun(folders[family], tmp_path / "k.safetensors"), folders[family], tmp_path / "folded"
    )
    assert not stock_keeps(load_file(tmp_path / "k.safetensors"))
    assert stock_keeps(load_file(tmp_path / "folded" / FILE))


def test_a_bias_beside_an_update_is_not_dropped(folders: dict[str, Path], tmp_path: Path) -> None:
    lora = stock_lora(folders["sd"], tmp_path / "lora", target_modules=["to_out.0"], lora_bias=True)
    assert "has a bias beside its update" in refused(folders["sd"], lora)


def test_an_exported_policy_is_a_start(folders: dict[str, Path], tmp_path: Path) -> None:
    model = load_model(
        load_pipeline(str(folders["sd"])), SamplerSettings(), AdapterSettings(rank=4), CPU
    )
    perturb(model.network)
    for form in ("diffusers", "kohya"):
        write_policy(model, str(folders["sd"]), tmp_path / form, form, torch.float32)
        again = begun(folders["sd"], tmp_path / form)
        torch.testing.assert_close(
            render(again.pipeline), render(model.pipeline), rtol=0, atol=1e-4
        )


def test_layers_that_it_leaves_out_begin_at_the_reference(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    lora = stock_lora(folders["sd"], tmp_path / "lora")
    model = begun(folders["sd"], lora, targets=["to_q", "to_v"])
    assert set(model.adapter.coverage.layers) == {"to_q", "to_v"}
    assert_begins(model, folders["sd"], lora)


def refused(base: Path, start: Path, **adapter: Any) -> str:
    with pytest.raises(UserError) as caught:
        begun(base, start, **adapter)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("other", ["sdxl", "sd2"])
def test_a_lora_for_another_base_is_refused(
    folders: dict[str, Path], tmp_path: Path, other: str
) -> None:
    lora = stock_lora(folders[other], tmp_path / "lora", target_modules=["to_k", "proj_in"])
    assert "is it a LoRA for another base?" in refused(folders["sd"], lora)


def test_another_rank_or_kind_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    base = folders["sd"]
    plain = stock_lora(base, tmp_path / "plain")
    dora = stock_lora(base, tmp_path / "dora", use_dora=True)
    rslora = stock_lora(base, tmp_path / "rslora", use_rslora=True)
    mixed = stock_lora(
        base, tmp_path / "mixed", target_modules=["to_q", "to_k"], rank_pattern={"to_k": 2}
    )
    assert refused(base, plain, rank=8).endswith("set adapter.rank=4")
    assert "has rank 2, 4" in refused(base, mixed)
    assert refused(base, dora).endswith("set adapter.dora=true")
    assert refused(base, plain, dora=True).endswith("set adapter.dora=false")
    assert refused(base, rslora).endswith("set adapter.rslora=true")
    assert refused(base, plain, targets=["to_v"]).startswith("adapter.targets: adapter.start has")


def test_files_that_are_no_lora_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    base = folders["sd"]
    lora = stock_lora(base, tmp_path / "lora")
    state = load_file(lora / FILE)
    key = next(iter(state))
    cases = {
        "odd": {**state, "unet.nowhere.lora_A.weight": torch.ones(4, 8)},
        "cut": {name: value for name, value in state.items() if name != key},
        "text": {**state, "text_encoder.a.lora_A.weight": torch.ones(4, 8)},
        "loha": {"lora_unet_a.hada_w1_a": torch.ones(2, 2)},
        "dora": {f"{key}.dora_scale": torch.ones(2)},
        "peft": {f"base_model.model.{key}": torch.ones(4, 8)},
        "broken": {**state, key: state[key] * torch.nan},
        "named": {n.replace(".weight", ".default.weight"): value for n, value in state.items()},
        "scale": {**state, "unet.a.lora.alpha": torch.tensor(2.0)},
        "weights": {"conv_in.weight": torch.ones(2)},
        "none": {},
    }
    said = {}
    for name, tensors in cases.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        said[name] = refused(base, tmp_path / f"{name}.safetensors")
    assert "no place" in said["odd"]
    assert "lora_A.default.weight, for which" in said["named"], "peft's own names of an adapter"
    assert "unet.a.lora.alpha, that is beside no factors" in said["scale"]
    assert "another base" in said["cut"]
    assert "changes the text encoder too" in said["text"]
    assert "is a LoHa and no LoRA" in said["loha"]
    assert "adapter_config.json that has its scale is not beside it" in said["peft"]
    assert "values of down_blocks" in said["broken"]
    assert "diffusers leaves out" in said["dora"]
    assert "it holds conv_in.weight" in said["weights"]
    endless = stock_lora(base, tmp_path / "endless", lora_alpha=float("inf"))
    assert "values of down_blocks" in refused(base, endless / FILE)
    assert "it is empty" in said["none"]
    (tmp_path / "damaged.safetensors").write_bytes(b"no header")
    (tmp_path / "lora.bin").write_bytes(b"pickle")
    assert "cannot be read" in refused(base, tmp_path / "damaged.safetensors")
    assert "is no .safetensors file" in refused(base, tmp_path / "lora.bin")
    assert "there is no file" in refused(base, tmp_path / "gone.safetensors")
    assert "files; name one" in refused(base, tmp_path)
    assert "did you mean" in refused(base, _beside_lora(tmp_path))


def by_kohyas_script(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

    return convert_state_dict_to_kohya(load_file(stock_lora(base, folder) / FILE))


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8])
def test_quantized_factors_are_not_taken_for_another_bases(
    folders: dict[str, Path], tmp_path: Path, kind: torch.dtype
) -> None:
    state = by_kohyas_script(folders["sd"], tmp_path)
    whole = {n: v if n.endswith(".alpha") else v.to(kind) for n, v in state.items()}
    save_file(whole, tmp_path / "whole.safetensors")
    said = refused(folders["sd"], tmp_path / "whole.safetensors")
    assert "is quantized" in said
    assert "use the LoRA in float32" in said


def test_a_scale_of_zero_is_not_a_start_at_the_reference(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Kohya's own scripts read an alpha of zero as the rank, others as nothing."""
    state = by_kohyas_script(folders["sd"], tmp_path)
    one = next(name for name in state if name.endswith(".alpha"))
    save_file(state | {one: torch.tensor(0.0)}, tmp_path / "one.safetensors")
    header = stock_lora(folders["sd"], tmp_path / "header", lora_alpha=0)
    assert f"scaled to nothing ({one} is 0)" in refused(folders["sd"], tmp_path / "one.safetensors")
    assert "scaled to nothing (lora_alpha of down_blocks" in refused(folders["sd"], header)


def test_another_bases_shape_is_told_once(folders: dict[str, Path], tmp_path: Path) -> None:
    lora = stock_lora(folders["sd2"], tmp_path / "lora", target_modules=["to_q", "proj_in"])
    said = refused(folders["sd"], lora)
    assert "proj_in.lora_A.weight is [4, 8] in it and [4, 8, 1, 1] in the model" in said
    assert "size mismatch" not in said


def _beside_lora(root: Path) -> Path:
    (root / "run" / "lora").mkdir(parents=True)
    return root / "run"


def test_a_layer_that_names_cannot_tell_from_others_is_refused() -> None:
    network = torch.nn.ModuleDict(
        {
            "out": torch.nn.Linear(2, 2),
            "block": torch.nn.ModuleDict({"out": torch.nn.Linear(2, 2)}),
        }
    )
    factors = LoraFactors(torch.zeros(1, 2), torch.zeros(2, 1), 1.0, None)
    with pytest.raises(UserError, match=r"block\.out is one of them too"):
        targets_of(GivenLora({"out": factors}, rslora=False), network, "auto")
    assert targets_of(GivenLora({"block.out": factors}, rslora=False), network, "auto") == [
        "block.out"
    ]
    assert targets_of(GivenLora({"out": factors}, rslora=False), network, ["out"]) == ["out"]


def test_models_without_loras_have_no_start(folders: dict[str, Path], tmp_path: Path) -> None:
    lora = stock_lora(folders["sd"], tmp_path / "lora")
    assert "nothing reads a LoRA of a DDPMPipeline" in refused(folders["ddpm"], lora)


def test_a_fully_trained_network_has_no_start() -> None:
    with pytest.raises(UserError, match=r"adapter\.start: every weight trains"):
        AdapterSettings(kind="full", start="lora.safetensors")
