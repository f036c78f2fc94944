"""Files of another run in a run's folder: each is whole, and none is taken for the run's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import nablaflow as nf
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.models.export import LORA_FILE
from nablaflow.runs import align
from nablaflow.runs.export_card import summary_of

pytestmark = pytest.mark.usefixtures("lean_runs")
MakeConfig = Callable[..., Config]


@pytest.fixture
def two(make_config: MakeConfig, tmp_path: Path) -> tuple[Path, Path]:
    """A run, and one of another seed."""
    for seed in (0, 1):
        more = (f"seed={seed}", f"output_dir={tmp_path}/{seed}", "training.updates=1")
        align.run(make_config(*more, "evaluation.bank=0", "evaluation.n=6"))
    return tmp_path / "0", tmp_path / "1"


def test_of_another_run(two: tuple[Path, Path]) -> None:
    run, other = two
    nf.Run.open(run).pipeline()
    own = (run / "summary.json").read_text()
    shutil.copyfile(other / "lora" / LORA_FILE, run / "lora" / LORA_FILE)
    with pytest.raises(UserError, match=r"safetensors is not the policy that summary.json is of"):
        nf.Run.open(run).pipeline()
    shutil.copyfile(other / "summary.json", run / "summary.json")
    told = r"summary.json is of another policy than the checkpoint after update 1; train "
    with pytest.raises(UserError, match=told):
        nf.Run.open(run)
    with pytest.raises(UserError, match=told):
        summary_of(run, 1)
    earlier = {name: value for name, value in json.loads(own).items() if name != "files"}
    (run / "summary.json").write_text(json.dumps(earlier))  # of an earlier version
    nf.Run.open(run).pipeline()
    assert summary_of(run, 1) == earlier
