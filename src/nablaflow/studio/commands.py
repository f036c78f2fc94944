"""The commands that the page runs, as it shows them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from nablaflow.studio.data import showable

REWARD = "reward.safetensors"
_MEANS_MORE = re.compile(r"\s[+-]\s|[*:]")  # in a reward's text: a sum, or a function of a file


@dataclass(frozen=True)
class Base:
    """What the page samples and aligns.

    Attributes:
        aligns: the command that aligns, less the reward, beta and the run's folder.
        model: that fresh images are sampled from.
    """

    aligns: Sequence[str] = ("demo",)
    model: str = "nano"


def typed(arguments: Sequence[str]) -> str:
    """As a user would type it."""
    return showable(shlex.join(["nablaflow", *arguments]))


def fit(folder: Path, features: str, kind: str | None = None) -> list[str]:
    """Fit a reward to a folder's judgements, of one kind where it has both."""
    chosen = [] if kind is None else ["--judgements", kind]
    out = str(folder / REWARD)
    fitted = ["reward", "fit", str(folder), "--features", features, *chosen]
    return [*fitted, "--out", out, "--overwrite"]


def align(base: Base, folder: Path, beta: float, updates: int, run: Path) -> list[str]:
    """Align with the reward that is fitted to a folder."""
    return [
        *base.aligns,
        f"reward={_reward(folder / REWARD)}",
        f"method.beta={beta:g}",
        f"training.updates={updates}",
        f"output_dir={_yaml(str(run))}",
    ]


def sample(source: str, prompts: Sequence[str], n: int, seed: int, out: Path) -> list[str]:
    """Sample from a model or a run; without prompts, the run's own."""
    asked = [f"--prompt={prompt}" for prompt in prompts]  # one text may begin with a dash
    return ["sample", source, *asked, "--n", str(n), "--seed", str(seed), "--out", str(out)]


def gallery(run: Path, n: int, out: Path) -> list[str]:
    """Draw a run at each checkpoint and strength, from the same noise."""
    return ["gallery", str(run), "--n", str(n), "--out", str(out), "--overwrite"]


def export(run: Path, form: str, out: Path) -> list[str]:
    """Write a run's policy in a format that other programs read."""
    return ["export", str(run), "--format", form, "--out", str(out), "--overwrite"]


def compare(runs: Sequence[Path], out: Path) -> list[str]:
    """Measure runs against the tilt's own curve."""
    return ["compare", *map(str, runs), "--out", str(out)]


def _reward(path: Path) -> str:
    """A fitted reward's file, also where its path would read as something else."""
    if _MEANS_MORE.search(str(path)):
        return json.dumps({"name": str(path)}, ensure_ascii=False)
    return _yaml(str(path))


def _yaml(text: str) -> str:
    """A text as YAML reads it back: as it stands if that will do."""
    try:
        as_it_stands = yaml.safe_load(text) == text
    except yaml.YAMLError:
        as_it_stands = False
    return text if as_it_stands else json.dumps(text, ensure_ascii=False)
