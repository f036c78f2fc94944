"""`sample RUN`: which checkpoint, how much of it, and where the sheet is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image

from nablaflow.models.adapters import FullAdapter, LoraAdapter
from nablaflow.runs.sample import image_name
from tests.support.cli_runs import train_far

pytestmark = pytest.mark.usefixtures("lean_runs")

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def run(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained far from its reference, with a checkpoint after each of two updates and no guard."""
    return train_far(settings, tmp_path_factory.mktemp("sampled"))


@pytest.fixture
def images(cli: Cli, run: Path) -> Callable[..., bytes]:
    """The pixels of one image with options."""
    numbers = iter(range(100))

    def made(*options: str) -> bytes:
        out = f"out-{next(numbers)}"
        result = cli("sample", run, "--n", 1, "--prompt", "a star", "--out", out, *options)
        assert result.exit_code == 0, result.stderr
        with Image.open(Path(out, "0000-a-star.png")) as picture:
            return picture.tobytes()

    return made


def test_strength_goes_from_the_reference_to_the_policy_and_beyond(images: Callable[..., bytes]):
    reference, policy = images("--checkpoint", "reference"), images()
    assert reference != policy
    assert images("--strength", "0") == reference
    assert images("--strength", "1.0") == policy
    between, beyond = images("--strength", "0.5"), images("--strength", "3")
    assert len({reference, policy, between, beyond}) == 4


def test_a_checkpoint_goes_by_its_update(images: Callable[..., bytes]):
    first, last = images("--checkpoint", "step-1"), images("--checkpoint", "last")
    assert first != last
    assert images("--checkpoint", "step-000002") == last == images()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--checkpoint", "best"), "which a guard keeps"),
        (("--checkpoint", "step-7"), "one of step-000001, step-000002"),
        (("--checkpoint", "first"), "use last, best, reference"),
        (("--sampler", "dim"), "unknown sampler 'dim'; did you mean ddim?"),
        (("--sampler", "ddim"), "of flow matching also with euler"),
        (("--height", "8"), "--height: a run is sampled as it was trained; leave it out"),
        (("--strength", "-1"), "from 0 on"),
        (("--strength", "nan"), "from 0 on"),
        (("--strength", "1e30"), "--strength: with 1e+30 of what was trained"),
        (("--strength", "0.5", "--checkpoint", "reference"), "leave it or --checkpoint out"),
    ],
)
def test_what_is_not_there_is_one_line(
    cli: Cli, run: Path, here: Path, options: tuple[str, ...], said: str
):
    result = cli("sample", run, "--n", 1, *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert options[0] in result.stderr
    assert list(here.iterdir()) == []


def test_a_model_has_neither(cli: Cli):
    result = cli("sample", "nano", "--checkpoint", "best")
    assert result.exit_code == 2
    assert "--checkpoint: nano is no run folder" in result.stderr


def test_the_sheet_is_not_among_the_images(cli: Cli, run: Path, here: Path):
    result = cli("sample", run, "--n", 2, "--out", "a", "--json")
    found = json.loads(result.stdout)
    assert {str(path) for path in Path("a").glob("*.png")} == set(found["images"])
    assert Path(found["sheet"]) == Path("a", "sheet", "sheet.png")
    assert Path(found["sheet"]).is_file()
    assert found["sheet"] in cli("sample", run, "--n", 2, "--out", "b").stdout.replace("b/", "a/")


def test_a_scaled_layer_is_the_closed_form():
    """W x + s (alpha / rank) B A x, with the tensors that peft made."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    plain = network[0].weight.clone()
    adapter = LoraAdapter(network, rank=2, alpha=4.0, targets=["0"])
    factors = {name: p for name, p in network.named_parameters() if "lora_" in name}
    down = next(p for name, p in factors.items() if "lora_A" in name)
    up = next(p for name, p in factors.items() if "lora_B" in name)
    torch.nn.init.normal_(up)
    x = torch.randn(3, 4)
    for strength in (0.0, 0.5, 1.0, 2.0):
        adapter.scale(strength)
        expected = x @ (plain + strength * 2.0 * up @ down).T
        assert torch.allclose(network(x), expected, atol=1e-6)


def test_a_fully_trained_network_is_scaled_in_its_weights():
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 2.0)
    adapter = FullAdapter(network)
    torch.nn.init.constant_(adapter.network.weight, 6.0)
    adapter.scale(0.25)
    assert adapter.network.weight.item() == 3.0


def test_a_name_holds_what_the_locale_has(monkeypatch: pytest.MonkeyPatch):
    assert image_name(0, "ein grüner Kreis") == "0000-ein-grüner-Kreis.png"
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    assert image_name(0, "ein grüner Kreis") == "0000-ein-gr-ner-Kreis.png"


def test_a_prompt_that_the_locale_cannot_read_is_one_line(cli: Cli):
    result = cli("sample", "nano", "--prompt", "gr\udcc3\udcbcn")
    assert result.exit_code == 2
    assert "--prompt: holds half a character" in result.stderr
