"""`export RUN`: three formats that stock pipelines read; a mistake is one line and no file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import Result
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nablaflow.runs import export
from nablaflow.runs.policy import load_policy
from nablaflow.runs.run import Run
from nablaflow.storage import checksums
from tests.support.cli_runs import train_far
from tests.support.pipelines import render
from tests.support.run_folders import contents

Cli = Callable[..., Result]
FILES = {"diffusers": "pytorch_lora_weights.safetensors", "kohya": "kohya_lora.safetensors"}


@pytest.fixture(scope="module")
def trained(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Far from its reference, with alpha other than rank and a checkpoint after each update."""
    return train_far(settings, tmp_path_factory.mktemp("exported"), "adapter.alpha=5.0")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(trained, tmp_path / "mine"))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports that are not tried in a stock pipeline, for tests of what their files hold."""
    monkeypatch.setattr("nablaflow.models.formats.check_same_image", lambda *_, **__: None)


def stock(tiny_model: Path) -> Any:
    return StableDiffusionPipeline.from_pretrained(tiny_model)


@pytest.mark.parametrize("form", ["diffusers", "kohya", "merged"])
def test_a_stock_pipeline_gives_the_policys_image(
    cli: Cli, trained: Path, tiny_model: Path, form: str
) -> None:
    result = cli("export", trained, "--format", form, "--out", "out", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["update"] == 2
    assert {"README.md"} < said["files"].keys()
    pipeline = stock(Path("out") if form == "merged" else tiny_model)
    if form != "merged":
        pipeline.load_lora_weights("out", weight_name=FILES[form])
    policy, *_ = load_policy(trained)
    with policy.as_in_stock():
        expected = render(policy.pipeline)
    torch.testing.assert_close(render(pipeline), expected, rtol=0, atol=1e-4)
    assert (expected - render(stock(tiny_model))).abs().max() > 1e-3
    assert {p.name for p in Path().iterdir()} == {"out"}


@pytest.mark.parametrize("form", ["diffusers", "kohya", "merged"])
def test_a_strength_is_in_the_weights(cli: Cli, trained: Path, tiny_model: Path, form: str) -> None:
    result = cli("export", trained, "--format", form, "--strength", "0.5", "--out", "out")
    assert result.exit_code == 0, result.stderr
    pipeline = stock(Path("out") if form == "merged" else tiny_model)
    if form != "merged":
        pipeline.load_lora_weights("out", weight_name=FILES[form])
    half = stock(tiny_model)
    half.load_lora_weights(trained / "lora", adapter_name="whole")
    half.set_adapters("whole", 0.5)  # what diffusers calls half of it
    torch.testing.assert_close(render(pipeline), render(half), rtol=0, atol=1e-4)
    card = (Path("out") / "README.md").read_text()
    assert "0.5 of what was trained" in card
    assert "mean reward" not in card  # the run's figures are of the whole


def test_no_strength_is_the_base_model(cli: Cli, trained: Path) -> None:
    result = cli("export", trained, "--strength", "0", "--out", "out")
    assert result.exit_code == 2
    assert "--strength: 0 is the base model" in result.stderr
    assert not Path("out").exists()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("form", ["diffusers", "kohya", "merged"])
def test_the_same_tensors_are_the_same_bytes(cli: Cli, trained: Path, form: str) -> None:
    for name in "ab":
        assert cli("export", trained, "--format", form, "--out", name).exit_code == 0
    assert contents(Path("a")) == contents(Path("b"))


HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("form", ["diffusers", "kohya", "merged"])
def test_half_precision_is_the_same_rounded(cli: Cli, trained: Path, form: str) -> None:
    for dtype in ("float32", *HALVES):
        result = cli("export", trained, "--format", form, "--dtype", dtype, "--out", dtype)
        assert result.exit_code == 0, result.stderr
    for dtype, kind in HALVES.items():
        for file in Path("float32").rglob("*.safetensors"):
            whole = load_file(file)
            half = load_file(Path(dtype) / file.relative_to("float32"))
            assert whole.keys() == half.keys()
            for name, value in whole.items():
                exact = name.endswith(".alpha")
                assert half[name].dtype == (torch.float32 if exact else kind)
                assert torch.equal(half[name], value.to(half[name].dtype)), name


def test_a_run_that_was_killed_has_its_checkpoint(cli: Cli, run: Path) -> None:
    for name in ("summary.json", "report.html"):
        (run / name).unlink()
    shutil.rmtree(run / "lora")
    result = cli("export", run, "--checkpoint", "step-1")
    assert result.exit_code == 0, result.stderr
    folder = Path("exports", "mine-diffusers")
    assert "after update 1" in result.stdout
    assert "was not measured" in (folder / "README.md").read_text()
    assert cli("export", run, "--out", "last").exit_code == 0
    first, last = (load_file(f / FILES["diffusers"]) for f in (folder, Path("last")))
    assert any((first[name] != last[name]).any() for name in first)


def test_the_card_says_what_it_is(cli: Cli, trained: Path, tiny_model: Path) -> None:
    assert cli("export", trained, "--out", "out").exit_code == 0
    card = Path("out", "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head == {"library_name": "diffusers", "tags": ["nablaflow"]}
    for word in ("`warmth`", "`5`", "residual-nabla-db", "mean reward", "Licence", "load_lora"):
        assert word in card
    assert str(tiny_model.parent) not in card
    assert str(trained.parent) not in card
    (row,) = (line for line in card.splitlines() if line.startswith("| mean reward"))
    shown = float(row.split("|")[3].split("±")[0])
    figures = json.loads((trained / "summary.json").read_text())["policy"]
    assert abs(shown - figures["reward_mean"]) < figures["reward_mean_se"]


@pytest.mark.parametrize("dtype", HALVES)
def test_the_cards_lines_load_it_whatever_its_precision(
    cli: Cli, trained: Path, dtype: str, unchecked: None
) -> None:
    options = ("--format", "merged", "--dtype", dtype, "--out", "this/folder")
    assert cli("export", trained, *options).exit_code == 0
    code = Path("this/folder/README.md").read_text().split("```python")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    parts = names["pipeline"].components.values()
    found = {part.dtype for part in parts if isinstance(part, torch.nn.Module)}
    assert found == {HALVES[dtype]}


def test_python_has_the_same(trained: Path, here: Path) -> None:
    folder = Run.open(trained).export("kohya", dtype="float16")
    assert folder == Path("exports", "run-kohya")
    with safe_open(folder / FILES["kohya"], "pt") as file:
        assert all(name.startswith("lora_unet_") for name in file.keys())  # noqa: SIM118


# --- mistakes -------------------------------------------------------------------------------------


def in_one_line(result: Result, *words: str) -> str:
    """The one line that was said, of a mistake; ``words`` are what it must hold."""
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]
    return lines[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--format", "khoya"), ("--format", "did you mean kohya?")),
        (("--dtype", "fp16"), ("--dtype", "float16")),
        (("--checkpoint", "step-9"), ("--checkpoint", "use last, best or one of step-000001")),
        (("--checkpoint", "best"), ("--checkpoint", "guard")),
        (("--checkpoint", "reference"), ("--checkpoint", "base model")),
        (("--out", "lora.safetensors"), ("--out", "give a folder")),
        (("--out", "a" * 300), ("--out", "no folder can have this name")),
    ],
)
def test_a_mistake_is_one_line(
    cli: Cli, trained: Path, here: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    in_one_line(cli("export", trained, *options), *words)
    assert list(here.iterdir()) == []


def test_what_is_there_is_not_replaced_unasked(cli: Cli, trained: Path, here: Path) -> None:
    Path("mine").mkdir()
    Path("mine", "thesis.txt").write_text("years of work")
    for options in ((), ("--overwrite",)):
        in_one_line(cli("export", trained, "--out", "mine", *options), "holds something else")
    Path("link").symlink_to("mine")
    in_one_line(cli("export", trained, "--out", "link", "--overwrite"), "is a link")
    assert cli("export", trained, "--out", "out").exit_code == 0
    in_one_line(cli("export", trained, "--out", "out"), "--overwrite")
    Path("out", "note.txt").write_text("mine")
    in_one_line(cli("export", trained, "--out", "out", "--overwrite"), "holds something else")
    Path("out", "note.txt").unlink()
    result = cli("export", trained, "--out", "out", "--overwrite", "--format", "kohya")
    assert result.exit_code == 0, result.stderr
    assert Path("out", FILES["kohya"]).is_file()
    assert not Path("out", FILES["diffusers"]).exists()
    assert Path("mine", "thesis.txt").read_text() == "years of work"
    assert {p.name for p in here.iterdir()} == {"mine", "link", "out"}


def test_a_value_too_large_for_half_precision_is_one_line(cli: Cli, run: Path, here: Path) -> None:
    enlarge_down(run / "checkpoints" / "step-000002", 1e6)
    (run / "summary.json").unlink()  # which is of the other factors
    in_one_line(cli("export", run, "--dtype", "float16"), "--dtype", "too large for float16")
    assert [p.name for p in here.iterdir()] in ([], ["exports"])
    assert not any(Path("exports").glob("*"))


def enlarge_down(folder: Path, factor: float) -> None:
    """The same updates from other factors; as whoever hands a run on could, checksums and all."""
    policy = folder / "policy.safetensors"
    factors = {"lora_A": factor, "lora_B": 1 / factor}
    changed = {
        name: value * next(by for part, by in factors.items() if part in name)
        for name, value in load_file(policy).items()
    }
    save_file(changed, policy)
    manifest = checksums.unseal((folder / "progress.json").read_text())
    manifest["files"]["policy.safetensors"] = checksums.of_file(policy)
    (folder / "progress.json").write_text(checksums.sealed(manifest))


def test_a_damaged_checkpoint_is_not_exported(cli: Cli, run: Path, here: Path) -> None:
    for folder in (run / "checkpoints").iterdir():
        data = bytearray((folder / "policy.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "policy.safetensors").write_bytes(bytes(data))
    told = in_one_line(cli("export", run, "--out", "out"))
    assert "policy.safetensors is not what was written" in told
    assert not any(here.rglob("out/*"))


def test_a_run_folder_is_data(cli: Cli, run: Path, tmp_path: Path, here: Path) -> None:
    """Of somebody who means harm: their figures and names are text, their model needs a word."""
    summary = json.loads((run / "summary.json").read_text())
    change(run, output_dir=str(tmp_path / "elsewhere"), reward="warmth + 0.1*contrast")
    result = cli("export", run, "--out", "out")
    assert result.exit_code == 0, result.stderr
    assert not (tmp_path / "elsewhere").exists()
    (run / "summary.json").write_text(json.dumps({**summary, "policy": "<script>"}))
    in_one_line(cli("export", run, "--out", "bad"), "summary.json is damaged")
    assert not Path("bad").exists()
    change(run, model=str(tmp_path / "other"))
    in_one_line(cli("export", run, "--out", "bad"), "--trust-run")
    assert {p.name for p in here.iterdir()} == {"out"}


def change(run: Path, **values: Any) -> None:
    text = (run / "config.yaml").read_text()
    text = yaml.safe_dump({**yaml.safe_load(text), **values})
    (run / "config.yaml").write_text(text)
    for folder in (run / "checkpoints").iterdir():
        manifest = checksums.unseal((folder / "progress.json").read_text())
        (folder / "progress.json").write_text(checksums.sealed({**manifest, "config": text}))


def test_a_fully_trained_run_has_no_lora(
    cli: Cli, settings: dict[str, Any], tmp_path: Path
) -> None:
    recipe = tmp_path / "full.yaml"
    recipe.write_text(yaml.safe_dump({**settings, "adapter": {"kind": "full"}}))
    result = cli("train", recipe, "training.updates=1")
    assert result.exit_code == 0, result.stderr
    for form in ("diffusers", "kohya"):
        in_one_line(cli("export", "run", "--format", form), "adapter.kind=full", "use merged")
    result = cli("export", "run", "--format", "merged", "--out", "out")
    assert result.exit_code == 0, result.stderr
    policy, *_ = load_policy(Path("run"))
    with policy.as_in_stock():
        expected = render(policy.pipeline)
    torch.testing.assert_close(render(stock(Path("out"))), expected, rtol=0, atol=1e-4)


def test_a_run_with_an_average_exports_either(
    cli: Cli, recipe: Path, here: Path, tiny_model: Path
) -> None:
    """The policy as it is measured; with --ema what the run has saved as ema/."""
    given = ("adapter.ema_decay=0.5", "optimizer.learning_rate=0.05")
    assert cli("train", recipe, *given).exit_code == 0
    for out, option in (("plain", ()), ("average", ("--ema",))):
        result = cli("export", "run", "--out", out, *option)
        assert result.exit_code == 0, result.stderr
    file = FILES["diffusers"]
    for out, saved in (("plain", "lora"), ("average", "ema/lora")):
        exported, wanted = load_file(here / out / file), load_file(here / "run" / saved / file)
        assert all(torch.equal(exported[name], wanted[name]) for name in wanted)
    first = load_file(here / "plain" / file)
    assert any(not torch.equal(v, first[k]) for k, v in load_file(here / "average" / file).items())
    assert "- policy: `that of the last update`" in (here / "plain" / "README.md").read_text()
    card = (here / "average" / "README.md").read_text()
    assert "- policy: `its average over the updates, decay 0.5`" in card
    kinds = {
        out: json.loads((here / out / "export.json").read_text()) for out in ("plain", "average")
    }
    assert {out: kind["average"] for out, kind in kinds.items()} == {
        "plain": False,
        "average": True,
    }
    assert "This policy was not measured" in card


def test_a_run_without_an_average_has_none_to_export(cli: Cli, run: Path) -> None:
    result = cli("export", run, "--ema")
    assert result.exit_code == 2
    assert "keeps no average (adapter.ema_decay)" in " ".join(result.stderr.split())


def test_two_at_once_in_one_folder_are_each_whole(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch, unchecked: None
) -> None:
    """The second begins and ends while the first one's weights are there and its card is not."""
    command = ("export", trained, "--out", "out")
    honest = export.card_of
    ended: list[Result] = []

    def meanwhile(*given: Any) -> Any:
        monkeypatch.setattr(export, "card_of", honest)
        ended.append(cli(*command, "--format", "kohya"))
        return honest(*given)

    monkeypatch.setattr(export, "card_of", meanwhile)
    first = cli(*command, "--format", "diffusers")
    assert ended[0].exit_code == 0, ended[0].stderr
    assert first.exit_code == 2
    assert "out holds an export already" in first.stderr
    assert json.loads(Path("out", "export.json").read_text())["format"] == "kohya"
    assert {path.name for path in Path("out").iterdir()} == {
        *("README.md", "export.json", FILES["kohya"])
    }
    assert {path.name for path in Path().iterdir()} == {"out"}
