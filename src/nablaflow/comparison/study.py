"""Rewards by methods by seeds: each cell is a run folder, stored when finished."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from nablaflow.comparison.entrants import (
    BYSTANDERS,
    DEFAULT,
    ENTRANTS,
    check_entrant,
    entrant_settings,
)
from nablaflow.config.defaults import BANK, PROMPTS
from nablaflow.config.overrides import load_config
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.evaluation.bank_size import BankSize
from nablaflow.methods import METHODS
from nablaflow.methods.own import load_method
from nablaflow.rewards.custom import is_custom
from nablaflow.rewards.references import CODE, Reference, references
from nablaflow.runs.own_code import marks
from nablaflow.storage.run_folder import CELL
from nablaflow.storage.study import FILES, Study, at_least, chosen, slug

ENDLESS = 10**6  # updates: time ends a run
IMAGES = 256  # that are measured each time, where nothing is said


@dataclass(frozen=True)
class ComparisonCell:
    """One run: a method with a reward and a seed."""

    reward: str
    method: str
    seed: int

    @property
    def trained(self) -> bool:
        return self.method not in BYSTANDERS

    def __str__(self) -> str:
        return f"{self.reward} {self.method} {self.seed}"


@dataclass(frozen=True)
class ComparisonStudy(Study[ComparisonCell]):
    """Every method with every reward and every seed.

    Attributes:
        seeds: how many: 0, 1, ... Those that train nothing have one.
        minutes: of training, for each.
        beta: the tilt; None: for each reward the one at which the bank's images count for a third,
            see `nablaflow.methods.tilt_rule.AUTO`.
        learning_rate: of the policy, in place of each entrant's own.
        n: images that are measured each time.
        measurements: how often in a run, the times evenly apart and the last at its end.
        bank: images of the reference that are reweighted to the exact tilt; with fewer than the
            usual ``n`` fewer of them, see `BankSize`.
        held_out: spec of a reward that nothing is trained on; None: whether the shape is shown.
        metrics: further figures, by name.
        calibrate: whether each is measured at the strength that has the exact tilt's mean reward,
            too, see `nablaflow.comparison.strength`.
        out: folder; cells are ``<reward>/<method>/seed-<s>``.

    Raises:
        UserError: a method that is none, or too small a number.
    """

    holds: ClassVar[str] = "points"

    methods: tuple[str, ...]
    rewards: tuple[str, ...]
    out: Path
    seeds: int = 3
    minutes: float = 2.0
    beta: float | None = None
    learning_rate: float | None = None
    n: int = IMAGES
    measurements: int = 3
    held_out: str | None = None
    first_seed: int = 0
    bank: int = BANK
    metrics: tuple[str, ...] = ()
    calibrate: bool = False

    def __post_init__(self) -> None:
        for method in self.methods:
            check_entrant(method)
        least = 2 * len(PROMPTS)
        for name, lowest in (("seeds", 1), ("n", least), ("measurements", 1)):
            at_least(name, getattr(self, name), lowest)
        for name in ("minutes", "beta", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"--{name.replace('_', '-')}: must be above 0, not {value:g}")

    @staticmethod
    def named(
        methods: Iterable[str], rewards: Iterable[str], out: Path, **settings: Any
    ) -> ComparisonStudy:
        """By names as the command line has them: ``all`` for every method, none for a few."""
        return ComparisonStudy(
            chosen(tuple(methods), (*ENTRANTS, *BYSTANDERS), DEFAULT),
            tuple(dict.fromkeys(rewards)) or ("warmth",),
            out,
            **settings,
        )

    @property
    def cells(self) -> list[ComparisonCell]:
        """In the order of rewards, then seeds, then methods: a whole round before the next."""
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return [
            ComparisonCell(reward, method, seed)
            for reward in self.rewards
            for seed in seeds
            for method in self.methods
            if method not in BYSTANDERS or seed == self.first_seed
        ]

    @property
    def bank_size(self) -> BankSize:
        """How much of the bank is looked at."""
        return BankSize.for_images(self.bank, IMAGES, self.n)

    def room(self, reward: str) -> Path:
        """Folder of a reward's cells."""
        return self.out / slug(reward)

    def folder(self, cell: ComparisonCell) -> Path:
        return self.room(cell.reward) / slug(cell.method) / f"seed-{cell.seed}"

    def path(self, cell: ComparisonCell) -> Path:
        return self.folder(cell) / CELL

    def of_reward(self, reward: str, beta: float) -> ComparisonStudy:
        """What is run with one reward, whose beta is known by then."""
        return replace(self, rewards=(reward,), beta=beta)

    def config(self, cell: ComparisonCell) -> Config:
        """A cell's configuration; of one that trains nothing what sampling needs."""
        assert self.beta is not None
        own = entrant_settings(
            cell.method if cell.trained else DEFAULT[0], self.beta, self.learning_rate
        )
        endless = {"updates": ENDLESS, "checkpoint_every": ENDLESS, "sample_every": ENDLESS}
        own["training"] |= endless | {
            "minutes": self.minutes,
            "keep_checkpoints": 1,
            "trackers": [],
        }
        values = {
            "model": "nano",
            "reward": cell.reward,
            "prompts": PROMPTS,
            "guard": None,  # all of the time is the method's
            "output_dir": str(self.folder(cell)),
            "seed": cell.seed,
            "adapter": {"rank": 16},
            "evaluation": {
                "n": self.n,
                "batch": 64,
                "bank": self.bank,
                "metrics": list(self.metrics),
            },
        }
        return load_config(None, [], values | own, load_method)

    def settings(self, cell: ComparisonCell) -> dict[str, Any]:
        config = _compared(self.config(cell).model_dump(mode="json"))
        del config["output_dir"]
        if not cell.trained:
            assert self.beta is not None
            config["method"] = [m.model_dump_named() for m in BYSTANDERS[cell.method](self.beta)]
        whole = config | {"measurements": self.measurements, "held_out": self.held_out}
        if self.calibrate and cell.trained:
            whole |= {"calibrate": True}
        files = marks([*self._method_of(cell), *references([cell.reward, self.held_out])])
        return whole | ({FILES: files} if files else {})

    def _completed(self, found: dict[str, Any]) -> dict[str, Any]:
        found = _compared(found)
        values = {name: found[name] for name in found if name in Config.model_fields}
        kept = {"output_dir"}
        if not _is_built_in(found.get("method")):
            values["method"] = entrant_settings(DEFAULT[0], 1.0, None)["method"]
            kept.add("method")
        try:
            config = load_config(None, [], {**values, "output_dir": "."})
        except UserError:  # a setting that is gone, say: its name is told as a difference
            return found
        method = config.method.settled(calibrated=False)
        whole = config.model_copy(update={"method": method}).model_dump(mode="json")
        own = {name: value for name, value in whole.items() if name not in kept}
        return _filled(found, _compared(own))

    def _method_of(self, cell: ComparisonCell) -> list[Reference]:
        return [Reference(CODE, cell.method)] if is_custom(cell.method) else []

    def store(self, cell: ComparisonCell, found: dict[str, Any]) -> None:
        head = {"reward": cell.reward, "method": cell.method, "seed": cell.seed, "beta": self.beta}
        super().store(cell, head | found)


def _compared(settings: dict[str, Any]) -> dict[str, Any]:
    """Without what has no part in a cell.

    That is ``training.calibrate``, since a cell's run ends as it was trained, and what a value is
    fitted to where none is.
    """
    training, method = settings.get("training"), settings.get("method")
    if not isinstance(training, dict):
        return settings
    fitted = isinstance(method, dict) and method.get("value") == "contrastive"
    idle = {"calibrate"} if fitted else {"calibrate", "value_samples"}
    return {**settings, "training": {k: v for k, v in training.items() if k not in idle}}


def _filled(found: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """With the defaults of what is not there, group by group."""
    both = {
        name: _filled(found[name], value)
        for name, value in defaults.items()
        if isinstance(value, dict) and isinstance(found.get(name), dict)
    }
    return {**found, **both, **{k: v for k, v in defaults.items() if k not in found}}


def _is_built_in(method: Any) -> bool:
    """Whether a cell has the settings of one method of the package: its file is never asked."""
    return isinstance(method, dict) and method.get("name") in METHODS
