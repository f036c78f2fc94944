"""What a command's imports leave for later: it is loaded by its first use, and is the module."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import nablaflow
from nablaflow.commands.late import load_late

Late = Callable[[str], Any]


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Late:
    """Have a module of the given source loaded late, and import it."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str) -> Any:
        (tmp_path / "looked_at.py").write_text(source)
        load_late("looked_at")
        return import_module("looked_at")

    yield write
    sys.modules.pop("looked_at", None)


def test_its_file_is_run_by_the_first_use_and_once(late: Late, capsys: pytest.CaptureFixture[str]):
    module = late("print('run'); value = 3")
    assert import_module("looked_at") is module
    assert not hasattr(module, "__nothing__")  # as whoever looks through all modules asks
    assert capsys.readouterr().out == ""
    assert module.value == 3
    assert not hasattr(module, "nothing")
    assert capsys.readouterr().out == "run\n"


def test_a_name_can_be_imported_of_it_while_it_imports_itself(late: Late):
    module = late(
        "first = 1\nimport looked_at\nassert not hasattr(looked_at, 'second')\nsecond = 2"
    )
    assert (module.second, module.first) == (2, 1)


def test_one_that_fails_fails_at_each_use(late: Late):
    module = late("raise ImportError('its own part is missing')")
    for _ in range(2):
        with pytest.raises(ImportError, match="its own part is missing"):
            _ = module.value


def test_one_that_is_not_there_is_left_to_its_import():
    load_late("no_such_module")
    load_late("no_such_module.part")
    with pytest.raises(ModuleNotFoundError):
        import_module("no_such_module")


def test_one_that_is_loaded_stays(late: Late):
    module = late("value = 3")
    assert module.value == 3
    load_late("looked_at")
    assert import_module("looked_at") is module


USE = """
import sys
from nablaflow.commands.shared import importing
with importing():
    from nablaflow.commands import train
    from nablaflow.runs import align
    from nablaflow.training.loop import Trainer
loaded = lambda: "scipy.stats._stats_py" in sys.modules
assert not loaded(), "a command's start waits for scipy.stats"
from diffusers import EulerDiscreteScheduler
scheduler = EulerDiscreteScheduler(use_beta_sigmas=True)
scheduler.set_timesteps(4)
assert loaded()
from scipy import stats
assert abs(stats.norm.cdf(0.0) - 0.5) < 1e-12
print(*scheduler.sigmas.tolist())
"""


def test_the_start_of_a_run_does_without_scipys_statistics_and_a_scheduler_finds_them():
    from diffusers import EulerDiscreteScheduler

    source = str(Path(nablaflow.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", USE],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert done.returncode == 0, done.stderr
    scheduler = EulerDiscreteScheduler(use_beta_sigmas=True)
    scheduler.set_timesteps(4)
    assert [float(part) for part in done.stdout.split()] == scheduler.sigmas.tolist()
