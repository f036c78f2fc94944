"""Z-Image, Qwen-Image and Chroma, whose networks read a prompt at its own length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings, SamplerSettings, load_model
from nablaflow.models.condition import Condition, PaddedCondition
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.twin import without_data
from nablaflow.models.z_image import check_places
from nablaflow.shapes import Shapes
from tests.support.padded_pipelines import PADDED_FAMILIES, chroma, qwen_image, z_image
from tests.support.pipelines import perturb

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "a", "a blue square no star a red circle"]


def load(pipeline: Any, **sampler: Any) -> PipelineModel:
    given = {"steps": 4, "height": 16, "width": 32, "name": "euler", "guidance_scale": 3.0}
    torch.manual_seed(0)
    return load_model(
        pipeline, SamplerSettings(**{**given, **sampler}), AdapterSettings(rank=2), CPU
    )


def states(model: PipelineModel, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, *model.state_shape, generator=generator)


@torch.no_grad()
def predicted(model: PipelineModel, x: Tensor, prompts: list[str]) -> Tensor:
    k = torch.full((len(x),), 2)
    return model.predict(x, k, model.condition(prompts)).x0_hat


@pytest.mark.parametrize("family", PADDED_FAMILIES)
def test_a_prompt_in_a_batch_is_read_as_if_it_were_alone(family: str) -> None:
    model = load(PADDED_FAMILIES[family]())
    x = states(model, len(PROMPTS))
    together = predicted(model, x, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        alone = predicted(model, x[row : row + 1], [prompt])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)
        others = predicted(model, x[row : row + 1], ["no"])
        assert (alone - others).abs().max() > 1e-3


def test_conditions_keep_what_a_family_adds() -> None:
    rows = [PaddedCondition.of(torch.full((n, 2), float(n)), 4) for n in (3, 1)]
    both = Condition.concatenate(rows).with_negative(rows[1].expand(2))
    assert isinstance(both, PaddedCondition)
    assert both.hidden is not None
    assert both.lengths() == [3, 1]
    assert both.hidden[:, :, 0].tolist() == [[3, 3, 3, 0], [1, 0, 0, 0]]
    first = both[:1]
    assert isinstance(first, PaddedCondition)
    assert first.lengths() == [3]
    assert isinstance(first.negative, PaddedCondition)
    assert first.negative.lengths() == [1]
    shapes = both.to(torch.device("meta"))
    assert isinstance(shapes, PaddedCondition)
    assert shapes.lengths() == [4, 4], "of shapes alone, the most that there can be"


@pytest.mark.parametrize("family", PADDED_FAMILIES)
def test_a_plan_counts_prompts_of_the_greatest_length(family: str) -> None:
    """Shapes alone do not say how long a prompt is, and a plan is for any."""
    with Shapes():
        condition = without_data(load(PADDED_FAMILIES[family]())).condition(["a"])
    assert isinstance(condition, PaddedCondition)
    assert condition.hidden is not None
    assert condition.hidden.shape[1] == 512
    assert condition.lengths() == [512]


@pytest.mark.parametrize("family", PADDED_FAMILIES)
def test_checkpointed_activations_change_no_gradient(family: str) -> None:
    """Chroma's mask among them, which diffusers leaves out where it computes blocks again."""

    def gradients(checkpointed: bool) -> list[Tensor]:
        model = load(PADDED_FAMILIES[family]())
        perturb(model.network)
        if checkpointed:
            model.checkpoint_activations()
            model.network.train()
        x = states(model, 2)
        k = torch.full((2,), 2)
        energy = model.predict(x, k, model.condition(PROMPTS[:2])).x0_hat.square().sum()
        trained = [p for p in model.network.parameters() if p.requires_grad]
        return list(torch.autograd.grad(energy, trained, allow_unused=True))

    plain, again = gradients(False), gradients(True)
    assert any(one is not None and one.abs().max() > 0 for one in plain)
    for one, other in zip(plain, again, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_z_images_guidance_is_one_more_than_its_stock_calls() -> None:
    for scale in (1.0, 3.0):
        call = load(z_image(), guidance_scale=scale).stock_call("a")
        assert call["guidance_scale"] == scale - 1.0


def test_qwen_images_guidance_keeps_the_length_of_a_tokens_velocity() -> None:
    model = load(qwen_image(), guidance_scale=4.0)
    negative, positive = states(model, 2).split(1)
    found = model.guided(negative, positive)
    plain = negative + 4.0 * (positive - negative)
    for row in range(0, found.shape[2], 2):
        for column in range(0, found.shape[3], 2):
            own, guided, want = (
                v[0, :, row : row + 2, column : column + 2] for v in (positive, found, plain)
            )
            torch.testing.assert_close(guided.norm(), own.norm())
            torch.testing.assert_close(guided / guided.norm(), want / want.norm())


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zero_cond_t", "use_additional_t_cond", "guidance_embeds"])
def test_another_kind_of_qwen_image_is_refused(kind: str) -> None:
    pipeline = qwen_image()
    pipeline.transformer.register_to_config(**{kind: True})
    with pytest.raises(UserError, match=rf"model: its transformer \({kind}\) is one for editing"):
        load(pipeline)


def test_a_transformer_that_returns_other_channels_is_refused() -> None:
    pipeline = qwen_image()
    pipeline.transformer.register_to_config(out_channels=8)
    with pytest.raises(UserError, match="does not return what it is given"):
        load(pipeline)


def test_z_images_positions_are_finite() -> None:
    with pytest.raises(UserError, match=r"sampler\.width: .*up to 1024 pixels"):
        load(z_image(), width=1028)
    assert load(z_image(), width=1024).image_size == (16, 1024)


def test_z_images_longest_prompt_leaves_the_image_its_place() -> None:
    """Of 98 places a prompt of 96 tokens, padded or not, takes 1 to 96 and the image 97."""
    pipeline = z_image()
    pipeline.transformer.register_to_config(axes_lens=[98, 256, 256])
    with pytest.raises(UserError, match=r"97 tokens.*the 98 places .*; use 96$"):
        load(pipeline, max_sequence_length=97)
    model = load(pipeline, max_sequence_length=96)
    pipeline.transformer.rope_embedder.axes_lens = [98, 256, 256]
    x, condition = torch.zeros(1, *model.state_shape), model.longest_prompt()
    assert condition.hidden is not None
    model.network([x[0].unsqueeze(1)], torch.zeros(1), [condition.hidden[0]])
    for tokens, places, remedy in ((96, 97, "use 64"), (1, 33, "use a model that has more")):
        with pytest.raises(UserError, match=remedy):
            check_places(tokens, places)


@pytest.mark.parametrize("make", [z_image, qwen_image, chroma])
def test_a_size_is_a_multiple_of_the_patches(make: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=r"sampler\.height: 18 pixels .* multiple of 4.*use 1?6|20"):
        load(make(), height=18)
