"""The forms that a folder comes in: loaded as the stock pipeline does, or one line."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from nablaflow.models import (
    AdapterSettings,
    SamplerSettings,
    hand_over,
    load_model,
    load_pipeline,
    single_file,
)
from nablaflow.models.conditioning import check_network
from nablaflow.models.pipelines import PipelineModel
from tests.support.flow_pipelines import flux, sd3
from tests.support.mistakes import line_of
from tests.support.pipelines import (
    LATENT,
    render,
    stable_diffusion,
    stable_diffusion_xl,
    unconditional,
)
from tests.support.schedules import STABLE_DIFFUSION

CPU = torch.device("cpu")


def model_of(pipeline: Any, **sampler: Any) -> PipelineModel:
    settings = SamplerSettings(**{"steps": 4, **sampler})
    return load_model(pipeline, settings, AdapterSettings(rank=2), CPU)


def with_config(pipeline: Any, **changes: Any) -> Any:
    pipeline.unet.register_to_config(**changes)
    return pipeline


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "asked", "size"),
    [
        ((8, 16), {}, (16, 32)),
        ([8, 16], {"height": 24}, (24, 32)),
        (8, {"width": 32}, (16, 32)),
        (None, {"height": 16, "width": 24}, (16, 24)),
    ],
)
def test_images_have_the_size_of_the_unet_or_the_one_asked_for(
    own: Any, asked: dict[str, int], size: tuple[int, int]
) -> None:
    model = model_of(with_config(stable_diffusion(), sample_size=own), **asked)
    assert model.image_size == size
    x = torch.randn(1, *model.state_shape, generator=torch.Generator().manual_seed(0))
    assert model.predict(x, torch.tensor([4]), model.condition(["a"])).x0_hat.shape == x.shape
    assert model.decode(x).shape == (1, 3, *size)


def test_a_size_that_cannot_be_is_refused() -> None:
    line = line_of(lambda: model_of(stable_diffusion(), height=17))
    assert line.startswith("sampler.height: 17")
    assert "use 16" in line
    line = line_of(lambda: model_of(stable_diffusion(), height=20))
    assert "20 pixels are not a multiple of 8" in line, "by which the stock pipeline divides"
    line = line_of(lambda: model_of(with_config(stable_diffusion(), sample_size=7)))
    assert line.startswith("sampler.height: 14 pixels of the model's own size")
    assert line.endswith("set sampler.height=16")
    line = line_of(lambda: model_of(with_config(stable_diffusion(), sample_size=True)))
    assert "sample_size of True is no size" in line
    line = line_of(lambda: model_of(with_config(stable_diffusion(), sample_size=None), height=16))
    assert line.startswith("sampler.width")
    assert "no sample_size" in line
    line = line_of(lambda: model_of(unconditional(), width=16))
    assert line.startswith("sampler.width")
    assert model_of(unconditional(), width=LATENT).image_size == (LATENT, LATENT)
    line = line_of(lambda: model_of(with_config(unconditional(), sample_size=(8, 9))))
    assert "sample_size of 9" in line


def test_without_a_size_of_its_own_a_stable_diffusion_xl_is_given_one() -> None:
    """As its stock pipeline has to be, whose default is what the UNet says."""
    pipeline = with_config(stable_diffusion_xl(), sample_size=None)
    line = line_of(lambda: model_of(pipeline))
    assert "set sampler.height and sampler.width, in multiples of 8" in line
    model = model_of(with_config(stable_diffusion_xl(), sample_size=None), height=24, width=16)
    assert model.image_size == (24, 16)


@pytest.mark.parametrize("size", [None, 0, 1, [8, 12], True, "8"])
def test_a_size_that_makes_no_positions_is_named_with_its_file(tmp_path: Path, size: Any) -> None:
    sd3().save_pretrained(tmp_path)
    file = tmp_path / "transformer" / "config.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps(whole | {"sample_size": size}))
    line = line_of(lambda: load_pipeline(str(tmp_path)))
    assert line.startswith(f"model: sample_size {size!r} in {file} is no number of latents")
    file.write_text(json.dumps(whole))
    load_pipeline(str(tmp_path))


@pytest.mark.parametrize("part", ["height", "width"])
def test_an_odd_size_of_a_transformer_has_a_remedy_that_works(part: str) -> None:
    def of_size(**given: int) -> PipelineModel:
        pipeline: Any = sd3()
        pipeline.default_sample_size = 7
        return model_of(pipeline, name="memoryless", **given)

    other = {"height": 16, "width": 16}
    del other[part]
    line = line_of(lambda: of_size(**other))
    assert line.startswith(f"sampler.{part}: 14 pixels of the model's own size are not a multiple")
    assert line.endswith(f"set sampler.{part}=16")
    assert of_size(**other, **{part: 16}).image_size == (16, 16)


# --- files ----------------------------------------------------------------------------------------


def weights(pipeline: Any) -> torch.Tensor:
    return torch.cat([p.flatten().float() for p in pipeline.unet.parameters()])


def test_weights_of_a_variant_alone_are_loaded(tmp_path: Path) -> None:
    pipeline = stable_diffusion()
    pipeline.save_pretrained(tmp_path, variant="fp16")
    assert torch.equal(weights(load_pipeline(str(tmp_path))), weights(pipeline))


def test_plain_weights_come_before_a_variants(tmp_path: Path) -> None:
    pipeline = stable_diffusion()
    pipeline.save_pretrained(tmp_path)
    stable_diffusion(seed=1).unet.save_pretrained(tmp_path / "unet", variant="non_ema")
    assert torch.equal(weights(load_pipeline(str(tmp_path))), weights(pipeline))


def test_several_variants_and_no_plain_weights_are_named(tmp_path: Path) -> None:
    pipeline = stable_diffusion()
    pipeline.save_pretrained(tmp_path, variant="fp16")
    for file in (tmp_path / "vae").glob("*.safetensors"):
        file.rename(file.with_name(file.name.replace("fp16", "bf16")))
    assert "variants bf16, fp16 only" in line_of(lambda: load_pipeline(str(tmp_path)))


def test_bin_files_are_loaded_where_there_is_nothing_else(tmp_path: Path) -> None:
    pipeline = stable_diffusion()
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    file = tmp_path / "unet" / "diffusion_pytorch_model.bin"
    torch.save(pipeline.unet.state_dict(), file)
    assert torch.equal(weights(load_pipeline(str(tmp_path))), weights(pipeline))


def test_plain_bin_files_beside_a_variants_safetensors_are_loaded(tmp_path: Path) -> None:
    """As the repositories of Stable Diffusion 1 had them."""
    pipeline = stable_diffusion()
    pipeline.save_pretrained(tmp_path)
    for part, bin_name in {
        "unet": "diffusion_pytorch_model",
        "text_encoder": "pytorch_model",
    }.items():
        (file,) = (tmp_path / part).glob("*.safetensors")
        torch.save(load_file(file), tmp_path / part / f"{bin_name}.bin")
        save_file(
            {name: torch.zeros_like(value) for name, value in load_file(file).items()},
            file.with_suffix(".fp16.safetensors"),
        )
        file.unlink()
    found = load_pipeline(str(tmp_path))
    assert torch.equal(weights(found), weights(pipeline))
    theirs = pipeline.text_encoder.state_dict()
    ours = found.text_encoder.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("other", ["diffusion_flax_model.msgpack", "model.onnx", None])
def test_weights_of_another_library_are_named(tmp_path: Path, other: str | None) -> None:
    stable_diffusion().save_pretrained(tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    file.unlink() if other is None else file.rename(file.with_name(other))
    line = line_of(lambda: load_pipeline(str(tmp_path)))
    assert f"no weights of PyTorch (none{'' if other is None else f' but {other}'})" in line
    assert "download unet/*.safetensors" in line


class Trap:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('code ran')",))


def test_code_in_a_bin_file_does_not_run(tmp_path: Path) -> None:
    stable_diffusion().save_pretrained(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"x": Trap()}, tmp_path / "unet" / "diffusion_pytorch_model.bin")
    assert "may hold code" in line_of(lambda: load_pipeline(str(tmp_path)))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_bin_files_alone_are_loaded_in_silence(
    tmp_path: Path, variant: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """diffusers writes that an error occurred where it looks for safetensors, and goes on."""
    pipeline = stable_diffusion()
    pipeline.save_pretrained(tmp_path, variant=variant, safe_serialization=False)
    assert list((tmp_path / "unet").glob("*.bin"))
    logging.getLogger("diffusers").addHandler(caplog.handler)
    try:
        found = load_pipeline(str(tmp_path))
    finally:
        logging.getLogger("diffusers").removeHandler(caplog.handler)
    assert torch.equal(weights(found), weights(pipeline))
    assert caplog.records == []


@pytest.mark.parametrize("safe", [True, False])
def test_a_lora_inside_the_base_is_named(tmp_path: Path, safe: bool) -> None:
    pipeline = stable_diffusion()
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    line = line_of(lambda: model_of(pipeline))
    assert "fuse_lora() and unload_lora_weights()" in line
    pipeline.save_pretrained(tmp_path, safe_serialization=safe)
    line = line_of(lambda: load_pipeline(str(tmp_path)))
    assert "LoRA inside" in line
    assert "unload_lora_weights()" in line


WITH_A_LORA: dict[str, tuple[Callable[[], Any], str]] = {
    "text_encoder": (stable_diffusion, "q_proj"),
    "text_encoder_2": (stable_diffusion_xl, "q_proj"),
    "vae": (stable_diffusion, "to_q"),
    "unet": (stable_diffusion, "to_q"),
}


@pytest.mark.parametrize("part", WITH_A_LORA)
def test_a_lora_inside_any_part_is_named_and_its_remedy_works(tmp_path: Path, part: str) -> None:
    make, layer = WITH_A_LORA[part]
    pipeline = make()
    network = getattr(pipeline, part)
    network.add_adapter(LoraConfig(r=2, target_modules=[layer], init_lora_weights=False))
    expected = render(pipeline)
    pipeline.save_pretrained(tmp_path / "a")
    line = line_of(lambda: load_pipeline(str(tmp_path / "a")))
    assert line.startswith(f"model: {tmp_path / 'a' / part}/")
    assert "was saved with a LoRA inside; in the pipeline that it came from call" in line
    assert (f"{part}.fuse_lora()" in line) == (part == "vae")
    holder = network if part == "vae" else pipeline
    holder.fuse_lora()
    (holder.unload_lora if part == "vae" else holder.unload_lora_weights)()
    pipeline.save_pretrained(tmp_path / "new")
    found = render(load_pipeline(str(tmp_path / "new")))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_lora_inside_a_t5_is_named_and_its_folder_is_to_be_had_again(tmp_path: Path) -> None:
    """Which no pipeline of diffusers fuses."""
    pipeline: Any = flux()
    pipeline.save_pretrained(tmp_path / "base")
    pipeline.text_encoder_2.add_adapter(LoraConfig(r=2, target_modules=["q"]))
    held = line_of(lambda: hand_over(pipeline))
    assert "text_encoder_2 carries a LoRA; give the pipeline the text_encoder_2" in held
    pipeline.save_pretrained(tmp_path / "a")
    line = line_of(lambda: load_pipeline(str(tmp_path / "a")))
    assert "text_encoder_2/adapter_model.safetensors was saved with a LoRA inside" in line
    assert "put the text_encoder_2 folder of the model that it was trained on" in line
    shutil.rmtree(tmp_path / "a" / "text_encoder_2")
    shutil.copytree(tmp_path / "base" / "text_encoder_2", tmp_path / "a" / "text_encoder_2")
    load_pipeline(str(tmp_path / "a"))


def test_a_class_that_is_not_served_is_named_before_its_weights_are_read(tmp_path: Path) -> None:
    stable_diffusion().save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    other = json.loads(index.read_text()) | {"_class_name": "KandinskyPipeline"}
    index.write_text(json.dumps(other))
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(b"not weights")
    line = line_of(lambda: load_pipeline(str(tmp_path)))
    assert "KandinskyPipeline is not supported" in line
    index.write_text(json.dumps(other | {"_class_name": ["my_pipeline", "MyPipeline"]}))
    assert "'MyPipeline'] is not supported" in line_of(lambda: load_pipeline(str(tmp_path)))
    for served in ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "DDPMPipeline"):
        assert served in line


@pytest.mark.parametrize(
    ("encoder", "kind"),
    [
        ("cond_stage_model.transformer.x", "StableDiffusionPipeline"),
        ("conditioner.embedders.1.model.x", "StableDiffusionXLPipeline"),
        ("text_encoders.clip_l.x", "StableDiffusion3Pipeline"),
    ],
)
def test_a_single_file_is_loaded_with_the_configuration_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str, kind: str
) -> None:
    file = tmp_path / "model.safetensors"
    blocks = "joint_blocks.0.x" if "Diffusion3" in kind else "out.weight"
    names = (f"model.diffusion_model.{blocks}", encoder)
    save_file({name: torch.zeros(1) for name in names}, file)
    given: dict[str, Any] = {}

    def from_single_file(path: str, **options: Any) -> StableDiffusionPipeline:
        given.update(options, path=path)
        return stable_diffusion()

    monkeypatch.setattr(
        getattr(single_file, kind), "from_single_file", staticmethod(from_single_file)
    )
    assert isinstance(load_pipeline(str(file)), StableDiffusionPipeline)
    assert (given["path"], given["local_files_only"]) == (str(file), True)


def test_a_refiner_in_a_file_is_refused(tmp_path: Path) -> None:
    names = ("model.diffusion_model.out.weight", "conditioner.embedders.0.model.x")
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "m.safetensors")
    assert "is a refiner" in line_of(lambda: load_pipeline(str(tmp_path / "m.safetensors")))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("joint_blocks.0.x_block.attn.qkv.weight", "SD3Transformer2DModel"),
        ("double_blocks.0.img_attn.qkv.weight", "FluxTransformer2DModel"),
        ("double_stream_modulation_img.lin.weight", "Flux2Transformer2DModel"),
        ("distilled_guidance_layer.in_proj.weight", "ChromaTransformer2DModel"),
        ("layers.0.adaLN_modulation.0.weight", "ZImageTransformer2DModel"),
        ("transformer_blocks.0.img_mlp.net.0.proj.weight", "QwenImageTransformer2DModel"),
    ],
)
def test_a_transformer_alone_is_named_with_what_puts_it_into_its_pipeline(
    tmp_path: Path, name: str, kind: str, prefix: str
) -> None:
    names = (prefix + name, f"{prefix}double_blocks.0.x") if "double" in name else (prefix + name,)
    save_file({each: torch.zeros(1) for each in names}, tmp_path / "m.safetensors")
    line = line_of(lambda: load_pipeline(str(tmp_path / "m.safetensors")))
    assert f"{kind} as T" in line
    pipeline = line.split("import ")[1].split(" as P")[0]
    assert hasattr(diffusers, pipeline)
    assert hasattr(getattr(diffusers, kind), "from_single_file")
    assert f"is the transformer of a {pipeline}" in line


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.diffusion_model.out.weight", "from_single_file"),
        ("something.else", "from_single_file"),
        ("lora_unet_x.lora_down.weight", "is a LoRA and not a model"),
    ],
)
def test_a_file_that_cannot_be_loaded_says_what_it_is_and_how_to_convert_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    def unreachable(path: str, **options: Any) -> None:
        raise OSError("no configuration in the cache")

    kind = single_file.StableDiffusionPipeline
    monkeypatch.setattr(kind, "from_single_file", staticmethod(unreachable))
    file = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(1)}, file)
    line = line_of(lambda: load_pipeline(str(file)))
    assert said in line
    assert "save_pretrained" in line
    pickled = shutil.copy(file, tmp_path / "model.ckpt")
    assert "is not safetensors" in line_of(lambda: load_pipeline(str(pickled)))
    quantized = shutil.copy(file, tmp_path / "model.gguf")
    assert "is quantized (GGUF)" in line_of(lambda: load_pipeline(str(quantized)))


def test_a_part_by_diffusers_names_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    stable_diffusion().unet.save_pretrained(tmp_path / "unet")
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    assert "is one part of a pipeline" in line_of(lambda: load_pipeline(str(file)))


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"num_class_embeds": 10}, "num_class_embeds"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type"),
        ({"encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type"),
        ({"cross_attention_dim": 768}, "text encoder writes"),
    ],
)
def test_conditioning_that_nobody_gives_is_refused(changes: dict[str, Any], named: str) -> None:
    line = line_of(lambda: model_of(with_config(stable_diffusion(), **changes)))
    assert line.startswith("model: ")
    assert named in line


def test_what_is_no_unet_is_not_called_one() -> None:
    network: Any = sd3().transformer
    network.register_to_config(num_class_embeds=10)
    line = line_of(lambda: check_network(network, called="transformer"))
    assert line.startswith("model: its transformer is conditioned on class labels")


def test_classes_of_an_unconditional_model_are_refused() -> None:
    assert "num_class_embeds" in line_of(
        lambda: model_of(with_config(unconditional(), num_class_embeds=10))
    )


def test_dropout_is_off_whatever_mode_a_pipeline_comes_in() -> None:
    pipeline = unconditional()
    pipeline.unet.train()
    for part in pipeline.unet.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    model = model_of(pipeline)
    x, k = torch.randn(1, *model.state_shape), torch.tensor([4])
    first, second = (model.predict(x, k, model.condition([""])).epsilon for _ in range(2))
    assert torch.equal(first, second)


def test_a_schedule_that_ends_without_signal_is_refused_with_epsilon() -> None:
    pipeline = stable_diffusion()
    pipeline.scheduler = DDIMScheduler(**STABLE_DIFFUSION, rescale_betas_zero_snr=True)
    assert "zero terminal SNR" in line_of(lambda: model_of(pipeline))
