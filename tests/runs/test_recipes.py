"""The recipes: what they hold, and where each value is said to come from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from transformers import CLIPConfig, CLIPModel

from nablaflow.comparison import ComparisonStudy
from nablaflow.config.defaults import demo_settings
from nablaflow.config.overrides import load_config
from nablaflow.config.parse import parse_config
from nablaflow.config.recipe import Config
from nablaflow.methods import ResidualNablaDB
from nablaflow.prompts.sets import load_prompts
from nablaflow.rewards import CONFIGURABLE
from nablaflow.rewards.aesthetic import Aesthetic, AestheticNetwork, LinearHead
from nablaflow.rewards.settings import parse_settings
from nablaflow.runs.doctor_recipe import plan_of_recipe
from nablaflow.runs.saved_config import differences

OLD_NAME = ["method={name: tilted-matching, beta: 2.0}"]
RECIPES = Path(__file__).parents[2] / "recipes"
GIVEN = ["reward=warmth", "prompts=[a cat]"]


def load_recipe(name: str) -> Config:
    return load_config(RECIPES / f"{name}.yaml", GIVEN, {})


@pytest.mark.parametrize(
    ("name", "beta", "regularization", "updates", "rollout", "images", "steps", "strata"),
    [
        ("sd15_residual_nabla_db_aesthetic", 1e4, 2e3, 100, 512, 256, 50, 5),
        ("sd15_residual_nabla_db_hpsv2", 1e4, 1e2, 100, 512, 256, 50, 5),
        ("sd15_residual_nabla_db_imagereward", 1e3, 1e3, 100, 512, 256, 50, 5),
        ("sd15_fast", 1e4, 2e3, 400, 32, 32, 50, 5),
        ("sd15_sde_dpmsolver", 1e4, 2e3, 100, 512, 256, 20, 8),
    ],
)
def test_recipes_hold_the_published_settings(
    name, beta, regularization, updates, rollout, images, steps, strata
):
    config = load_recipe(name)
    assert config.method == ResidualNablaDB.published(beta, regularization)
    training = config.training
    assert training.updates == updates
    assert training.prompts_per_update * training.images_per_prompt == rollout
    assert rollout // training.steps_per_rollout == images  # of one optimizer step
    assert training.data == "previous-rollout"
    assert (config.sampler.steps, config.strata) == (steps, strata)
    assert config.sampler.guidance_scale == 5.0
    assert (config.adapter.rank, config.adapter.alpha) == (8, 8.0)
    assert config.optimizer.betas == (0.9, 0.999)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("sd15*.yaml")), ids=lambda path: path.stem)
def test_every_published_recipe_loads_names_its_scorer_and_says_where_values_come_from(path):
    assert load_config(path, GIVEN, {}) == load_recipe(path.stem)
    config = load_config(path, [*GIVEN[1:], "reward.batch=2"], {})
    settings = dict(config.reward)
    name = settings.pop("name")
    assert parse_settings(name, CONFIGURABLE[name], settings).batch == 2
    settings = [line for line in path.read_text().splitlines() if re.match(r" *\w+: .", line)]
    untraced = [line for line in settings if "#" not in line]
    ours = ("output_dir:", "name: residual-nabla-db")
    # A longer source stands on the lines above.
    assert [line for line in untraced if not line.strip().startswith((*ours, "prompt_cond"))] == []


def test_the_demo_is_a_recipe_too():
    recipe = load_config(RECIPES / "nano_warmth.yaml", ["output_dir=runs/demo"], {})
    assert recipe == parse_config(demo_settings())


DEMO_LINE = re.compile(r"^( *)(\w+): *([^#]*?)(?: +# (.*))?$")


def _as_the_demo(path: Path) -> Iterator[tuple[str, ...]]:
    """Keys of the values that a recipe says are the demo's."""
    group = ""
    for line in path.read_text().splitlines():
        found = DEMO_LINE.match(line)
        if found is None:
            continue
        indent, key, value, comment = found.groups()
        group = key if not indent else group
        if value and re.match(r"demo\b", comment or ""):
            yield (group, key) if indent else (key,)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("nano_*.yaml")), ids=lambda path: path.stem)
def test_what_a_recipe_says_is_the_demos_is(path: Path):
    own = load_config(path, [], {}).model_dump(mode="json")
    demo = parse_config(demo_settings()).model_dump(mode="json")
    keys = list(_as_the_demo(path))
    assert len(keys) > 10 or path.stem == "nano_warmth"
    for group, *rest in keys:
        here, there = own[group], demo[group]
        values = (here[rest[0]], there[rest[0]]) if rest else (here, there)
        assert values[0] == values[1], (group, *rest)


ENTERED = {
    "adjoint_matching": "adjoint-matching",
    "alignprop": "alignprop",
    "dag_db": "dag-db",
    "dag_kl": "dag-kl",
    "ddpo": "ddpo",
    "diffusion_nft": "diffusion-nft",
    "draft": "draft-tilted",
    "flow_grpo": "flow-grpo",
    "nabla_db": "nabla-db",
    "nabla_td": "nabla-td",
    "refl": "refl",
    "reward_weighted": "reward-weighted-regression",
    "terminal": "terminal",
    "vgg_flow": "vgg-flow",
    "path_weighted_matching": "path-weighted-matching-adjoint",
}


@pytest.mark.parametrize("stem", ENTERED)
def test_a_method_s_recipe_has_what_the_comparison_measured(stem):
    recipe = load_config(RECIPES / f"nano_{stem}.yaml", [], {})
    study = ComparisonStudy.named([ENTERED[stem]], [], Path(), beta=4.0)
    (cell, *_) = study.cells
    entered = study.config(cell)
    assert (recipe.method, recipe.flow) == (entered.method, entered.flow)
    assert recipe.sampler == entered.sampler
    unused = {"flow_learning_rate"} if recipe.flow is None else set()
    optimizers = [c.optimizer.model_dump(exclude=unused) for c in (recipe, entered)]
    assert optimizers[0] == optimizers[1]
    same = {"minutes", "prompts_per_update", "images_per_prompt", "steps_per_rollout"}
    assert recipe.training.model_dump(include=same) == entered.training.model_dump(include=same)


def test_the_simple_animals_are_there():
    prompts = load_config(RECIPES / "sd15_fast.yaml", GIVEN[:1], {}).prompts
    found = load_prompts(prompts, Path())
    assert (len(found), len(set(found)), found[0], found[-1]) == (45, 45, "cat", "kangaroo")


@pytest.mark.parametrize("name", ["sd35_medium", "flux_dev", "flux_24gb"])
def test_recipes_of_flow_matching_load_and_say_where_values_come_from(name: str):
    config = load_config(RECIPES / f"{name}.yaml", GIVEN[1:], {})
    assert (config.sampler.name, config.strata) == ("memoryless", 5)
    text = (RECIPES / f"{name}.yaml").read_text()
    values = re.findall(r"^  \w+: .*$", text, flags=re.MULTILINE)
    unsaid = [line for line in values if not re.search(r"# (ours|card|vggflow)", line)]
    assert unsaid in ([], ["  width: 512"]), "of the size, as its height"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("nano*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_embedded_model_loads_as_it_is(path):
    config = load_config(path, [], {})
    assert config.model == "nano"
    assert path.read_text().splitlines()[2] == f"#   nablaflow train recipes/{path.name}"


def test_a_recipe_with_a_methods_older_name_is_read_and_told(capsys: pytest.CaptureFixture[str]):
    config = load_config(RECIPES / "nano_warmth.yaml", OLD_NAME, {})
    assert config.method.name == "path-weighted-matching"
    assert "tilted-matching is called path-weighted-matching now" in capsys.readouterr().err


def test_the_recipe_for_sdxl_is_whole() -> None:
    sampler = load_recipe("sdxl_aesthetic").sampler
    assert (sampler.height, sampler.width, sampler.original_size) == (1024, 1024, [1024, 1024])


def test_the_recipe_for_one_card_is_sdxls_but_for_its_memory() -> None:
    whole, small = (load_recipe(name).model_dump() for name in ("sdxl_aesthetic", "sdxl_24gb"))
    assert list(differences(whole, small)) == [
        "output_dir",
        "training.decoder",
        "evaluation.batch",
    ]


def test_the_recipe_for_flux_on_one_card_is_fluxs_but_for_its_memory() -> None:
    whole, small = (load_recipe(name).model_dump() for name in ("flux_dev", "flux_24gb"))
    assert list(differences(whole, small)) == [
        "model_quantization",
        "output_dir",
        "sampler.height",
        "sampler.width",
        "training.micro_batch",
        "training.decoder",
        "evaluation.batch",
    ]


def _clip_on_shapes(settings: Aesthetic) -> AestheticNetwork:
    """CLIP ViT-L/14 at its published size, without data."""
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    vision |= {"num_attention_heads": 16, "patch_size": 14, "image_size": 224}
    with torch.device("meta"):
        clip = CLIPModel(CLIPConfig(vision_config=vision, projection_dim=768))
        return AestheticNetwork(clip, LinearHead())


def _small_decoder_on_shapes(_: object, channels: int, *more: object) -> AutoencoderTiny:
    with torch.device("meta"):
        found = AutoencoderTiny(latent_channels=channels)  # as it comes it is taesdxl's, of 4
    found.encoder = None
    return found.eval().requires_grad_(False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "more", "micro_batch"), [("sdxl", [], 8), ("flux", ["prompts=[a cat]"], 4)]
)
def test_a_recipe_fits_on_a_card_of_24_gb_with_its_scorer(
    name: str, more: list[str], micro_batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On shapes: neither weights nor memory for them."""
    if name == "flux":
        pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(Aesthetic, "network", _clip_on_shapes)
    decoder = "nablaflow.models.decoding.load_small_decoder"
    monkeypatch.setattr(decoder, _small_decoder_on_shapes)
    recipe = tmp_path / "recipe.yaml"
    text = (RECIPES / f"{name}_24gb.yaml").read_text()
    recipe.write_text(re.sub(r"(?m)^model: .*$", f"model: random:{name}", text))
    found = plan_of_recipe(recipe, more, trusted=True, elsewhere="cuda", memory=24)
    assert found["counts_the_reward"]
    assert found["parts"]["the reward's weights"] > 1.0
    assert found["peak_gib"] <= found["budget_gib"] == 21.6
    assert found["batches"]["micro_batch"] >= micro_batch
