"""Learned scorers on tiny random weights, against transformers' own processors and plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertTokenizerFast, CLIPModel, CLIPTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from nablaflow.errors import UserError
from nablaflow.features.preprocess import CLIP_MEAN, CLIP_STD
from nablaflow.rewards import NamedReward, hpsv2, image_reward, load, probe, score_and_gradient
from nablaflow.rewards.aesthetic import Aesthetic
from nablaflow.rewards.ahead import Queue
from nablaflow.rewards.scorer import Scorer
from nablaflow.runs.budget import reward_weights
from nablaflow.shapes import META, Shapes
from tests.support import blip

TINY = {"height": 32, "width": 32}


def eight_bit(images: torch.Tensor) -> torch.Tensor:
    return (images * 255).round() / 255


def pixels(images: torch.Tensor) -> torch.Tensor:
    """What transformers' processor makes of the images as 8-bit pictures."""
    pictures = [
        Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in images
    ]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=TINY)
    return processor(images=pictures, return_tensors="pt").pixel_values


def tensor_of(found: Any) -> torch.Tensor:
    """``get_image_features`` gives a tensor in transformers 4, an object in 5."""
    return found if isinstance(found, torch.Tensor) else found.pooler_output


def clip_embeddings(
    folder: Path, images: torch.Tensor, prompts: list[str]
) -> tuple[torch.Tensor, torch.Tensor, float]:
    model = CLIPModel.from_pretrained(folder)
    tokens = CLIPTokenizerFast.from_pretrained(folder)(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        image = tensor_of(model.get_image_features(pixel_values=pixels(images)))
        text = tensor_of(model.get_text_features(**tokens))
    image, text = (x / x.norm(dim=-1, keepdim=True) for x in (image, text))
    return image, text, model.logit_scale.exp().item()


@pytest.fixture
def aesthetic(clip_folder, head_file) -> dict[str, Any]:
    return {"name": "aesthetic", "weights": str(head_file), "backbone": str(clip_folder)}


def test_a_plan_counts_a_scorer_and_its_weights(aesthetic):
    """On shapes, as the plan of a run's memory calls it; of a scorer elsewhere nothing is here."""
    settings = {key: value for key, value in aesthetic.items() if key != "name"}
    network = Aesthetic(**settings).network()
    weights = sum(value.nbytes for value in (*network.parameters(), *network.buffers()))
    assert reward_weights(load(aesthetic), (64, 64)) == weights
    assert reward_weights(load({**aesthetic, "device": "cpu"}), (64, 64)) == 0
    reward = load(aesthetic)
    with Shapes() as shapes:
        leaf = torch.zeros(1, 3, 64, 64, device=META, requires_grad=True)
        reward(leaf, ["a"]).sum().backward()
    assert leaf.grad is not None
    assert shapes.peak > weights


# The mean or deviation of ImageNet in place of CLIP's is 0.05 off or more.
@pytest.mark.parametrize(("size", "tolerance"), [(32, 1e-4), (56, 0.03)])
def test_aesthetic_is_its_head_on_the_unit_embedding(
    aesthetic, clip_folder, images, prompts, size, tolerance
):
    images = eight_bit(images)[..., :size, :size]
    state = torch.load(aesthetic["weights"], weights_only=True)
    hidden = clip_embeddings(clip_folder, images, prompts)[0]
    for index in (0, 2, 4, 6, 7):
        weight, bias = state[f"layers.{index}.weight"], state[f"layers.{index}.bias"]
        hidden = hidden @ weight.T + bias
    found = load(aesthetic)(images, prompts)
    torch.testing.assert_close(found, hidden[:, 0], atol=tolerance, rtol=0)
    assert found.std() > 0.3


@pytest.mark.parametrize(
    ("own", "images", "apart"),
    [
        (None, "cuda:0", False),
        ("cpu", "cpu", False),
        ("cuda", "cuda:0", False),
        ("cuda:1", "cuda:0", True),
        ("cpu", "cuda:0", True),
    ],
)
def test_a_scorer_on_a_device_of_its_own_need_not_be_waited_for(own, images, apart):
    scorer = Scorer(Aesthetic(device=own))
    assert scorer.is_apart(torch.device(images)) == apart


def test_a_call_that_is_begun_gives_the_scores_of_the_call(aesthetic, images, prompts):
    scorer, queue = load(aesthetic).function, Queue()
    first, second = (slice(0, 2), slice(2, None))
    begun = [scorer.begin(images[part], prompts[part], queue) for part in (first, second)]
    for part, end in zip((first, second), begun, strict=True):
        assert torch.equal(end(), scorer(images[part], prompts[part]))


# At the network's own size only arithmetic differs; a resize adds Pillow's rounding to 8 bits.
SIZES = pytest.mark.parametrize(("size", "tolerance"), [(32, 1e-5), (56, 1e-3)])


@SIZES
def test_clip_score_is_the_scaled_cosine(clip_folder, images, prompts, size, tolerance):
    images = eight_bit(images)[..., :size, :size]
    image, text, _ = clip_embeddings(clip_folder, images, prompts)
    reward = load({"name": "clip_score", "weights": str(clip_folder), "scale": 2.5})
    wanted = 2.5 * (image * text).sum(-1)
    torch.testing.assert_close(reward(images, prompts), wanted, atol=2.5 * tolerance, rtol=0)
    assert wanted.std() > 1e-3


@SIZES
def test_pickscore_has_the_models_own_temperature(clip_folder, images, prompts, size, tolerance):
    images = eight_bit(images)[..., :size, :size]
    image, text, scale = clip_embeddings(clip_folder, images, prompts)
    folder = str(clip_folder)
    spec = {"name": "pickscore", "weights": folder, "tokenizer": folder}
    wanted = scale * (image * text).sum(-1)
    found = load(spec)(images, prompts)
    torch.testing.assert_close(found, wanted, atol=scale * tolerance, rtol=0)


def test_the_temperature_is_not_rounded_to_bf16(clip_folder, images, prompts):
    folder = str(clip_folder)
    reward = load({"name": "pickscore", "weights": folder, "tokenizer": folder, "dtype": "bf16"})
    reward(images, prompts)
    network = next(iter(reward.function._networks.values()))
    scale = CLIPModel.from_pretrained(clip_folder).logit_scale.exp().item()
    assert network.scale == pytest.approx(scale, rel=1e-6)


def test_hpsv2_pads_what_is_not_square_and_never_crops():
    clip = torch.nn.Module()
    clip.visual = torch.nn.Module()
    clip.visual.image_size = (224, 224)
    seen = hpsv2.HPSNetwork(clip, None).preprocess(torch.full((1, 3, 50, 100), 0.5))
    middle, black = seen[0, :, 100, 0], seen[0, :, 0, 0]
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    torch.testing.assert_close(middle, (0.5 - mean) / std)
    torch.testing.assert_close(black, -mean / std)


@pytest.fixture
def tiny_image_reward(monkeypatch, tmp_path, bert_folder) -> dict[str, Any]:
    monkeypatch.setattr(image_reward, "SIZES", blip.TINY)
    path = tmp_path / "ImageReward.pt"
    torch.save(blip.random_checkpoint(blip.TINY), path)
    return {"name": "image_reward", "weights": str(path), "tokenizer": str(bert_folder)}


def test_image_reward_is_the_published_network(tiny_image_reward, bert_folder, images, prompts):
    images = eight_bit(images)[..., :32, :32]  # its own size: the resize has tests of its own
    state = blip.random_checkpoint(blip.TINY)
    tokens = BertTokenizerFast.from_pretrained(bert_folder)(
        prompts, padding="max_length", max_length=35, return_tensors="pt"
    )
    wanted = blip.score(state, blip.TINY, pixels(images), tokens.input_ids, tokens.attention_mask)
    found = load(tiny_image_reward)(images, prompts)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
    assert wanted.std() > 0.02


def test_image_rewards_gradient_is_the_published_networks(tiny_image_reward, prompts):
    # At the network's own size nothing is resized, so the two differ by arithmetic alone.
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    reward = load(tiny_image_reward)
    _, found = score_and_gradient(reward, images, prompts)
    network = next(iter(reward.function._networks.values()))
    tokens = network.tokenizer(prompts, padding="max_length", max_length=35, return_tensors="pt")
    leaf = images.clone().requires_grad_()
    scores = blip.score(
        blip.random_checkpoint(blip.TINY),
        blip.TINY,
        network.preprocess(leaf),
        tokens.input_ids,
        tokens.attention_mask,
    )
    (wanted,) = torch.autograd.grad(scores.sum(), leaf)
    torch.testing.assert_close(found, wanted, atol=1e-4 * wanted.abs().max().item(), rtol=1e-3)


def test_a_checkpoint_of_image_reward_must_be_whole(tiny_image_reward, images, prompts):
    state = torch.load(tiny_image_reward["weights"], weights_only=True)
    del state["blip.text_encoder.encoder.layer.0.crossattention.self.key.weight"]
    state["blip.other.weight"] = torch.zeros(1)
    torch.save(state, tiny_image_reward["weights"])
    said = (
        r"ImageReward\.pt does not fit, keys are 1 missing \(blip\.text_encoder\.encoder\.layer\.0"
        r"\.crossattention\.self\.key\.weight\) and 1 unknown \(blip\.other\.weight\); give"
    )
    with pytest.raises(UserError, match=said):
        load(tiny_image_reward)(images, prompts)


@pytest.fixture(params=["aesthetic", "image_reward"])
def scorer(request, aesthetic, tiny_image_reward) -> dict[str, Any]:
    return aesthetic if request.param == "aesthetic" else tiny_image_reward


def test_neither_batches_nor_checkpointing_change_a_score_or_gradient(scorer, images, prompts):
    whole = score_and_gradient(load(scorer), images, prompts)
    for settings in ({"batch": 1}, {"batch": 2, "gradient_checkpointing": True}):
        parts = score_and_gradient(load({**scorer, **settings}), images, prompts)
        torch.testing.assert_close(parts[0], whole[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(parts[1], whole[1], atol=1e-4, rtol=1e-3)


def test_a_gradient_reaches_the_pixels_and_is_a_finite_difference(scorer, images, prompts):
    reward = load(scorer)
    found = probe(reward, height=40, width=56, device="cpu", prompts=prompts)
    assert found.differentiable
    images = 0.2 + 0.6 * images
    _, gradient = score_and_gradient(reward, images, prompts)
    direction = gradient / gradient.norm()
    step = 1e-2
    ahead, behind = (reward(images + s * step * direction, prompts) for s in (1, -1))
    slope = (ahead - behind).sum() / (2 * step)
    assert slope.item() == pytest.approx(gradient.norm().item(), rel=2e-2)


def test_a_backbone_in_bf16_leaves_score_and_gradient_in_float32(scorer, images, prompts):
    exact, _ = score_and_gradient(load(scorer), images, prompts)
    score, gradient = score_and_gradient(load({**scorer, "dtype": "bf16"}), images, prompts)
    assert score.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(score, exact, atol=0.1 * exact.abs().max().item(), rtol=0)


def test_nothing_is_read_before_the_first_score(aesthetic):
    reward = load({**aesthetic, "weights": "/nowhere/head.pth"})
    assert isinstance(reward, NamedReward)
    assert reward.name == "aesthetic"
    with pytest.raises(UserError, match=r"reward\.weights: there is no file /nowhere/head\.pth"):
        reward(torch.rand(1, 3, 8, 8), ["a"])


def test_a_head_with_other_keys_is_named(aesthetic, tmp_path):
    torch.save({"layers.0.weight": torch.zeros(1024, 768), "x": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"9 missing \(layers\.0\.bias, .*1 unknown \(x\)"):
        load({**aesthetic, "weights": str(tmp_path / "a.pt")})(torch.rand(1, 3, 8, 8), ["a"])


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("visual_projection.weight", r"1 missing \(visual_projection\.weight\)"),
        ("text_model.adapter.weight", r"1 unknown \(text_model\.adapter\.weight\)"),
    ],
)
def test_a_backbone_with_other_keys_is_named(aesthetic, clip_folder, tmp_path, key, said):
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    state[key] = torch.zeros(1)
    # A constant that older versions of transformers saved with the weights.
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    if "missing" in said:
        del state[key]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"keys are {said}; give"):
        load({**aesthetic, "backbone": str(tmp_path)})(torch.rand(1, 3, 8, 8), ["a"])


@pytest.mark.parametrize(
    ("spec", "files"),
    [
        ("aesthetic", r"trl-lib/ddpo-aesthetic-predictor \(aesthetic-model\.pth\)"),
        (
            "clip_score",
            r"openai/clip-vit-large-patch14 \(tokenizer_config\.json, tokenizer\.json, "
            r"config\.json, model\.safetensors\)",
        ),
        ("pickscore", r"laion/CLIP-ViT-H-14-laion2B-s32B-b79K \(tokenizer_config\.json"),
        ("image_reward", r"google-bert/bert-base-uncased \(tokenizer_config\.json"),
    ],
)
def test_without_a_network_it_says_what_to_fetch(spec, files, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=f"^{files}.* is not in the cache.*--local-dir FOLDER"):
        load(spec)(torch.rand(1, 3, 8, 8), ["a"])


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("aesthetic", "trl-lib/ddpo-aesthetic-predictor"),
        ("backbone", "openai/clip-vit-large-patch14"),
        ("clip_score", "openai/clip-vit-large-patch14"),
        ("tokenizer", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
        ("pickscore", "yuvalkirstain/PickScore_v1"),
        ("words", "google-bert/bert-base-uncased"),
        ("image_reward", "THUDM/ImageReward"),
    ],
)
def test_what_is_published_is_asked_for_at_a_commit(
    name, asked, clip_folder, bert_folder, head_file, tmp_path, monkeypatch
):
    spec = {
        "backbone": {"name": "aesthetic", "weights": str(head_file)},
        "tokenizer": {"name": "pickscore"},
        "pickscore": {"name": "pickscore", "tokenizer": str(clip_folder)},
        "words": {"name": "image_reward"},
        "image_reward": {"name": "image_reward", "tokenizer": str(bert_folder)},
    }.get(name, {"name": name})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=f"run `hf download {asked} .*--revision [0-9a-f]{{40}} "):
        load(spec)(torch.rand(1, 3, 8, 8), ["a"])


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        ({"revision": "main"}, "openai/clip-vit-large-patch14 .* --revision main "),
        ({"weights": "me/mine"}, r"me/mine [a-z_. ]+ --local-dir"),
        ({"weights": "me/mine", "revision": "v2"}, "me/mine .* --revision v2 "),
        ({"weights": "me/mine@v1", "revision": "v2"}, "me/mine .* --revision v1 "),
    ],
)
def test_the_commit_is_only_that_of_the_published_weights(settings, command, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=f"run `hf download {command}"):
        load({"name": "clip_score", **settings})(torch.rand(1, 3, 8, 8), ["a"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bach": 2}, r"reward\.bach: unknown key for aesthetic; did you mean batch\?"),
        ({"batch": 0}, r"reward\.batch: .*greater than or equal to 1, not 0"),
        ({"dtype": "fp8"}, r"reward\.dtype: must be 'float32' or 'bf16', not 'fp8'"),
        ({"device": "gpu"}, r"reward\.device: no such device 'gpu'"),
        ({"device": "cuda:63"}, r"reward\.device: there is no cuda:63 here"),
    ],
)
def test_mistakes_in_settings_are_found_before_any_weights(settings, said):
    with pytest.raises(UserError, match=said):
        load({"name": "aesthetic", **settings})
