"""Embeddings of heavy text encoders on disk: the same to the bit, for the same encoders only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nablaflow.models import AdapterSettings, Condition, SamplerSettings, load_model, load_pipeline
from nablaflow.models.condition import PaddedCondition
from nablaflow.models.stored_embeddings import StoredEmbeddings
from nablaflow.models.text_to_image import TextToImage

PROMPTS = ["a red circle", "a star"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every text encoder is heavy."""
    monkeypatch.setattr(TextToImage, "heavy_from", 1)
    monkeypatch.setenv("NABLAFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embeddings"


def model_of(folder: Path, **sampler: Any) -> Any:
    return load_model(
        load_pipeline(str(folder)),
        SamplerSettings(**sampler),
        AdapterSettings(rank=2),
        torch.device("cpu"),
    )


def embedded(model: Any) -> list[str]:
    """What its encoders are asked for from now on."""
    asked: list[str] = []
    own = model.encode
    model._embeddings._encode = lambda text: (asked.append(text), own(text))[1]
    return asked


def test_a_second_run_reads_what_the_first_embedded(folders: dict[str, Path], cache: Path) -> None:
    for family in ("sd", "sdxl"):
        first = model_of(folders[family]).condition(PROMPTS)
        model = model_of(folders[family])
        asked = embedded(model)
        again = model.condition(PROMPTS)
        assert asked == []
        assert torch.equal(again.hidden, first.hidden)
        assert (again.pooled is None) == (family == "sd")
    assert len(list(cache.iterdir())) == 2 * len(PROMPTS)


def test_other_weights_or_settings_have_their_own(folders: dict[str, Path], cache: Path) -> None:
    model_of(folders["sdxl"]).condition(PROMPTS)
    changed = model_of(folders["sdxl"])
    with torch.no_grad():
        next(changed.pipeline.text_encoder_2.parameters()).add_(1e-3)
    for other in (
        changed,
        *(model_of(folders["sdxl"], **s) for s in ({"clip_skip": 1}, {"prompt_chunks": 2})),
    ):
        asked = embedded(other)
        other.condition(PROMPTS)
        assert asked == PROMPTS
    asked = embedded(model := model_of(folders["sdxl"]))
    model.condition(["a star ", *PROMPTS])
    assert asked == ["a star "]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template", "{{ messages }}"),
        ("model_max_length", 10),
        ("padding_side", "left"),
        ("pad_token", "a"),
    ],
)
def test_another_tokenizer_has_its_own(folders: dict[str, Path], name: str, value: Any) -> None:
    model_of(folders["sd"]).condition(PROMPTS)
    other = model_of(folders["sd"])
    setattr(other.pipeline.tokenizer, name, value)
    asked = embedded(other)
    other.condition(PROMPTS)
    assert asked == PROMPTS


def test_another_activation_has_its_own(folders: dict[str, Path], tmp_path: Path) -> None:
    model_of(folders["sd"]).condition(PROMPTS)
    changed = Path(shutil.copytree(folders["sd"], tmp_path / "changed"))
    file = changed / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_act": "relu"}))
    other = model_of(changed)
    asked = embedded(other)
    other.condition(PROMPTS)
    assert asked == PROMPTS


def test_a_damaged_file_is_made_anew_and_that_is_said(
    folders: dict[str, Path], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = model_of(folders["sd"]).condition(PROMPTS[:1])
    file = next(cache.iterdir())
    whole = file.read_bytes()
    file.write_bytes(whole[:-4] + b"\0\0\1\1")
    again = model_of(folders["sd"]).condition(PROMPTS[:1])
    assert torch.equal(again.hidden, first.hidden)
    assert f"{file} is damaged; what it holds is made anew" in capsys.readouterr().err
    assert file.read_bytes() == whole


def test_encoders_below_the_size_keep_nothing(
    folders: dict[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextToImage, "heavy_from", 10**9)
    model_of(folders["sd"]).condition(PROMPTS)
    assert not cache.exists()


def test_a_condition_of_a_family_of_its_own_comes_back_as_such() -> None:
    store = StoredEmbeddings(lambda: ["encoders"])
    row = PaddedCondition.of(torch.randn(3, 4), 5)
    assert store.read("a") is None
    store.write("a", row)
    found = StoredEmbeddings(lambda: ["encoders"]).read("a")
    assert isinstance(found, PaddedCondition)
    assert found.lengths() == [3]
    assert row.hidden is not None
    assert torch.equal(found.hidden, row.hidden)  # type: ignore[arg-type]
    assert StoredEmbeddings(lambda: ["other encoders"]).read("a") is None


def test_no_more_is_kept_than_there_is_room_for(
    cache: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    row = Condition(torch.zeros(1, 2, 4))
    StoredEmbeddings(list).write("a", row)
    (size,) = [path.stat().st_size for path in cache.iterdir()]
    store = StoredEmbeddings(list, room=2 * size)
    store.write("b", row)
    store.write("c", row)
    assert [store.read(text) is not None for text in "abc"] == [False, True, True]
    StoredEmbeddings(list, room=row.bytes() - 1).write("d", row)
    assert store.read("d") is None
    (tmp_path / "cache" / "embeddings").rename(tmp_path / "cache" / "gone")
    (tmp_path / "cache" / "embeddings").write_text("in the way")
    store = StoredEmbeddings(list)
    store.write("c", row)
    store.write("d", row)
    assert capsys.readouterr().err.count("no embeddings are kept in") == 1
