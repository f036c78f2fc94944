"""Problems by methods by seeds: each cell is stored when finished, so a study can go on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from nablaflow.diffusion import check_variance
from nablaflow.errors import UserError
from nablaflow.exact.catalog import PROBLEMS, named_problem
from nablaflow.exact.contenders import CONTENDERS, DEFAULT, PUBLISHED, contender
from nablaflow.exact.evaluate import Result, check_batch, evaluate
from nablaflow.exact.problem import STEPS, Problem
from nablaflow.exact.random_problems import random_name
from nablaflow.storage.files import write_whole

ALL = "all"

Row = dict[str, Any]
"""All figures of a `Result`; None is one that is not finite."""


@dataclass(frozen=True)
class LabCell:
    """One training: a method on a problem."""

    problem: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.problem}/{self.method}/seed-{self.seed}"

    def short(self, width: int) -> str:
        """In at most ``width`` characters, at the expense of the method's name.

        >>> LabCell("ring", "residual-nabla-db-published", 0).short(30)
        'ring residual-nabla-db-publ… 0'
        """
        room = width - len(self.problem) - len(str(self.seed)) - 2
        cut = len(self.method) > room
        method = f"{self.method[: max(0, room - 1)]}\N{HORIZONTAL ELLIPSIS}" if cut else self.method
        return f"{self.problem} {method} {self.seed}"


@dataclass(frozen=True)
class LabStudy:
    """Every method on every problem with every seed.

    Attributes:
        seeds: how many: 0, 1, ...
        updates, batch, n: of each training, as in `evaluate`.
        steps, variance: of the sampler, on every problem.
        out: folder; a finished cell is ``<problem>/<method>/seed-<s>.json`` in it, with its samples
            as ``.safetensors`` beside.

    Raises:
        UserError: a name that is none, or too small a number.
    """

    problems: tuple[str, ...]
    methods: tuple[str, ...]
    out: Path
    seeds: int = 1
    updates: int = 300
    batch: int = 256
    n: int = 8000
    steps: int = STEPS
    variance: str = "analytic"

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 2)
        check_variance(self.variance, "--variance")
        for problem in self.problems:
            self._problem(problem)
        for method in self.methods:
            contender(method)
        for name, least in (("seeds", 1), ("updates", 0), ("batch", 1), ("n", 100)):
            at_least(name, getattr(self, name), least)
        for found in map(contender, self.methods):
            check_batch(found.method(1.0), self.batch, found.settings.steps_per_rollout)

    @staticmethod
    def named(
        problems: Sequence[str],
        methods: Sequence[str],
        out: Path,
        random: int | None = None,
        **settings: Any,
    ) -> LabStudy:
        """By names as the command line has them: none for the default, ``all`` for the list.

        The defaults are every named problem, or the random ones where those are asked for, and the
        project's default method with the published form.

        Args:
            random: so many random problems besides.

        Raises:
            UserError: a name that is none, or too small a number.
        """
        if random is not None:
            at_least("random", random, 1)
            problems = [*problems, *map(random_name, range(random))]
        return LabStudy(
            _chosen(problems, PROBLEMS, tuple(PROBLEMS)),
            _chosen(methods, CONTENDERS, (DEFAULT, PUBLISHED)),
            out,
            **settings,
        )

    @property
    def cells(self) -> list[LabCell]:
        """In the order of problems, then methods, then seeds."""
        return [
            LabCell(problem, method, seed)
            for problem in self.problems
            for method in self.methods
            for seed in range(self.seeds)
        ]

    def settings(self, cell: LabCell) -> dict[str, Any]:
        """What decides a cell's figures, as plain data."""
        problem, found = self._problem(cell.problem), contender(cell.method)
        return {
            "updates": self.updates,
            "batch": self.batch,
            "n": self.n,
            "steps": self.steps,
            "variance": self.variance,
            "method": found.method(problem.beta).model_dump_named(),
            "training": found.settings.model_dump(mode="json"),
        }

    def missing(self, *, overwrite: bool = False) -> list[LabCell]:
        """The cells that have to be run; writes nothing.

        Args:
            overwrite: run those again that were made with other settings, or cannot be read.

        Raises:
            UserError: there are such cells, and they are not to be overwritten.
        """
        return [cell for cell in self.cells if not self._is_done(cell, overwrite)]

    def done(self) -> int:
        """How many cells are there, made with these settings."""
        return len(self.cells) - len(self.missing(overwrite=True))

    def rows(self) -> list[Row]:
        """The figures of every cell, in the order of `cells`; all must be done."""
        return [_read(self._path(cell))["row"] for cell in self.cells]

    def samples(self, cell: LabCell) -> Float[Tensor, "n dim"]:
        """Samples of a cell's policy, float32."""
        return load_file(self._samples_path(cell))["samples"]

    def carry_out(self, cell: LabCell, on_update: Callable[[], None]) -> None:
        """Train, measure, and store one cell."""
        result = evaluate(
            self._problem(cell.problem),
            cell.method,
            self.updates,
            self.batch,
            cell.seed,
            self.n,
            on_update=lambda update: on_update(),
        )
        with unwritable_is_the_users(self.out):
            self._store(cell, result)

    def _problem(self, name: str) -> Problem:
        return _problem(name, self.steps, self.variance)

    def _path(self, cell: LabCell) -> Path:
        return self.out / cell.problem / cell.method / f"seed-{cell.seed}.json"

    def _samples_path(self, cell: LabCell) -> Path:
        return self._path(cell).with_suffix(".safetensors")

    def _is_done(self, cell: LabCell, overwrite: bool) -> bool:
        path = self._path(cell)
        if not (path.is_file() and self._samples_path(cell).is_file()):
            return False
        try:
            found = _read(path)["settings"]
        except UserError:
            if overwrite:
                return False
            raise
        change = difference(found, self.settings(cell))
        if change and not overwrite:
            raise UserError(
                f"--out: {path.parent} holds figures of other settings ({change}); "
                "use --overwrite or another --out"
            )
        return not change

    def _store(self, cell: LabCell, result: Result) -> None:
        """The JSON comes last, and an old one goes first: where it is, the cell is whole."""
        path, samples = self._path(cell), self._samples_path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        partial = samples.with_name(f".partial-{samples.name}")
        save_file({"samples": result.samples.float().contiguous()}, partial)
        os.replace(partial, samples)
        row = {name: _finite_or_none(value) for name, value in result.row().items()}
        whole = {"row": row, "settings": self.settings(cell)}
        write_whole(path, json.dumps(whole, indent=2, allow_nan=False) + "\n")


@cache
def _problem(name: str, steps: int, variance: str) -> Problem:
    """With what it has found out about itself, which takes seconds for some."""
    return replace(named_problem(name), steps=steps, variance=variance)


def _chosen(
    names: Sequence[str], known: Mapping[str, Any], default: tuple[str, ...]
) -> tuple[str, ...]:
    every = known if ALL in names else ()
    return tuple(dict.fromkeys([*every, *(name for name in names if name != ALL)])) or default


def at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"--{name}: {value} is too few; use {least} or more")


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> dict[str, Any]:
    """A finished cell's file.

    Raises:
        UserError: it is not one.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"row": dict(found["row"]), "settings": dict(found["settings"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"--out: {path} is not a finished cell; remove it, or use --overwrite"
        ) from None


def difference(old: Any, new: Any, name: str = "") -> str | None:
    """The first setting that differs, with both values; None: all are the same."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return None if old == new else f"{name}: {old} there, {new} here"
    for key in {**old, **new}:
        inner = f"{name}.{key}" if name else key
        if change := difference(old.get(key), new.get(key), inner):
            return change
    return None


@contextmanager
def unwritable_is_the_users(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--out: cannot write {error.filename or out} ({error.strerror or error}); "
            "use another folder, or make room"
        ) from error
