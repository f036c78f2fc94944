"""Pipelines of random weights: the published sizes, the real classes, and a run of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

import nablaflow as nf
from nablaflow.config.parse import parse_config
from nablaflow.errors import UserError
from nablaflow.models import fingerprint, load_pipeline
from nablaflow.models.architectures import ARCHITECTURES
from nablaflow.models.load import FAMILIES
from nablaflow.runs.setup import prepare

CLIP_L, CLIP_H, CLIP_G = 123_060_480, 340_387_840, 694_659_840
T5_XXL, QWEN3_4B, QWEN25_VL_7B = 4_762_310_656, 4_022_468_096, 8_292_166_656
PUBLISHED: dict[str, dict[str, int]] = {
    "sd15": {"unet": 859_520_964, "text_encoder": CLIP_L},
    "sd21": {"unet": 865_910_724, "text_encoder": CLIP_H},
    "sdxl": {"unet": 2_567_463_684, "text_encoder": CLIP_L, "text_encoder_2": CLIP_G},
    "ddpm": {"unet": 113_673_219},
    "sd35": {"transformer": 2_243_171_520, "text_encoder_3": T5_XXL},
    "flux": {"transformer": 11_901_408_320, "text_encoder_2": T5_XXL},
    "flux2-klein": {"transformer": 3_875_544_576, "text_encoder": QWEN3_4B},
    "z-image": {"transformer": 6_154_908_736, "text_encoder": QWEN3_4B},
    "qwen-image": {"transformer": 20_430_401_088, "text_encoder": QWEN25_VL_7B},
    "chroma": {"transformer": 8_899_983_424, "text_encoder": T5_XXL},
}
"""Parameters of the networks, as their model cards and files count them."""


def test_every_family_has_one() -> None:
    made = {architecture.pipeline for architecture in ARCHITECTURES.values()}
    kin = {"DDIMPipeline", "PNDMPipeline"}  # of the same networks as a DDPMPipeline
    assert made | kin == {kind.__name__ for family in FAMILIES for kind in family.serves}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_its_networks_have_the_published_size(name: str):
    pipeline = nf.models.random(name, device="meta", dtype=torch.bfloat16)
    for part, published in PUBLISHED[name].items():
        parameters = list(getattr(pipeline, part).parameters())
        assert sum(p.numel() for p in parameters) == pytest.approx(published, rel=1e-3)
        assert all(p.is_meta and p.dtype == torch.bfloat16 for p in parameters)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_small_form_trains(name: str, settings: dict[str, Any]):
    own = {
        "model": f"random:{name}-small",
        "method": {"name": "residual-nabla-db", "beta": 1.0},
        "adapter": {"rank": 2},
        "sampler": {"steps": 4, "height": 16, "width": 16},
        **({"prompts": None} if name == "ddpm" else {}),
    }
    config = parse_config({**settings, **own})
    assert prepare(config, config.output_dir).trainer.step()["update"] == 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_saved_one_is_the_same_in_diffusers_format(name: str, tmp_path: Path):
    made = nf.models.random(name, tmp_path / "model", small=True, seed=3)
    assert fingerprint(load_pipeline(str(tmp_path / "model"))) == fingerprint(made)


def test_the_weights_follow_from_the_seed_and_nothing_else():
    before = torch.get_rng_state()
    first, again = (nf.models.random("sd15", small=True, seed=1) for _ in range(2))
    assert fingerprint(first) == fingerprint(again)
    assert fingerprint(first) != fingerprint(nf.models.random("sd15", small=True, seed=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_mistakes_are_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"models.random: 'sd150' is no architecture.*sd15"):
        nf.models.random("sd150")
    with pytest.raises(UserError, match=r"model: 'sdx' is no architecture"):
        load_pipeline("random:sdx")
    with pytest.raises(UserError, match="is there already"):
        nf.models.random("sd15", tmp_path, small=True)
    with pytest.raises(UserError, match="cannot be saved"):
        nf.models.random("sd15", tmp_path / "x", device="meta")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"name": None}, "null is no architecture here; choose one of"),
        ({"name": ["sd15"]}, r"\['sd15'\] is no architecture here; did you mean sd15"),
        ({"dtype": "float16"}, "dtype must be one of torch's, such as torch.float16, not 'float16"),
        ({"dtype": torch.int8}, "dtype must be one of torch's"),
        ({"device": "gpu"}, "device: no such device 'gpu'; give auto, cpu"),
        ({"device": "cuda:99"}, "device: there is no cuda:99 here"),
        ({"seed": "x"}, "seed must be a whole number, not 'x'"),
        ({"folder": 3}, "the folder must be a path, not 3"),
        ({"folder": f"{__file__}/x"}, "cannot write .* is not a directory"),
    ],
    ids=str,
)
def test_what_a_notebook_may_give_is_one_line(
    given: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as there
    with pytest.raises(UserError, match=f"^models.random: {line}"):
        nf.models.random(**{"name": "sd15", "small": True, **given})
    if "name" in given:
        with pytest.raises(UserError, match=r"^nano\.path: no embedded model"):
            nf.nano.path(given["name"])
