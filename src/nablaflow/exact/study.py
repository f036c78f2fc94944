"""Problems by methods by seeds: each cell is stored when finished, so a study can go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from nablaflow.diffusion import ReverseProcess
from nablaflow.errors import UserError
from nablaflow.exact.catalog import PROBLEMS, named_problem
from nablaflow.exact.contenders import CONTENDERS, Contender, contender, default_names, fits
from nablaflow.exact.evaluate import Result, check_batch, evaluate
from nablaflow.exact.paths import Sampling
from nablaflow.exact.problem import STEPS, Problem
from nablaflow.exact.process import bare_process
from nablaflow.exact.random_problems import random_name
from nablaflow.rewards.custom import is_custom
from nablaflow.rewards.references import CODE, Reference
from nablaflow.storage import checksums
from nablaflow.storage.files import write_whole
from nablaflow.storage.study import FILES, Study, at_least, chosen, slug, unwritable_is_the_users

MOST = {"seeds": 10**4, "updates": 10**9}
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


def _own_files(method: str) -> dict[str, Any]:
    """Whoever writes a method runs it, changes it, and runs it again."""
    return {FILES: {method: Reference(CODE, method).content}} if is_custom(method) else {}


@dataclass(frozen=True)
class LabStudy(Study[LabCell]):
    """Every method on every problem with every seed.

    Attributes:
        seeds: how many: 0, 1, ...
        updates, batch, n: of each training, as in `evaluate`.
        steps, process, sampler, variance: as `steps`, `path`, ... of a `Problem`, on every one.
        out: folder; a finished cell is ``<problem>/<method>/seed-<s>.json`` in it, with its samples
            as ``.safetensors`` beside.

    Raises:
        UserError: a name that is none, too small a number, or a method that the sampler's noise
            does not suit.
    """

    holds: ClassVar[str] = "row"

    problems: tuple[str, ...]
    methods: tuple[str, ...]
    out: Path
    seeds: int = 1
    updates: int = 300
    batch: int = 256
    n: int = 8000
    steps: int = STEPS
    variance: str | None = None
    process: str = "diffusion"
    sampler: str | None = None

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 2, 10**5)
        _ = self.sampling
        for problem in self.problems:
            self._problem(problem)
        for method in self.methods:
            contender(method)
        for name, least in (("seeds", 1), ("updates", 0), ("batch", 1), ("n", 100)):
            at_least(name, getattr(self, name), least, MOST.get(name, 10**6))
        for found in map(contender, self.methods):
            check_batch(found.method(1.0), self.batch, found.settings.steps_per_rollout)
        process = bare_process(self.steps, self.process, self.sampling.sampler)
        for name in self.methods:
            fits(contender(name), process)

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
        methods of `default_names`; all methods are those that the sampler's noise suits.

        Args:
            random: so many random problems besides.
            settings: the rest.

        Raises:
            UserError: a name that is none, or too small a number.
        """
        if random is not None:
            at_least("random", random, 1, MOST["seeds"])
            problems = [*problems, *map(random_name, range(random))]
        study = LabStudy(chosen(problems, tuple(PROBLEMS), tuple(PROBLEMS)), (), out, **settings)
        sampler = study.sampling.sampler
        process = bare_process(study.steps, study.process, sampler)
        able = tuple(name for name, each in CONTENDERS.items() if _suits(each, process))
        return replace(study, methods=chosen(methods, able, default_names(sampler)))

    @property
    def sampling(self) -> Sampling:
        """Path, sampler and variance, defaults filled in."""
        fields = ("--process", "--sampler", "--variance")
        return Sampling.named(self.process, self.sampler, self.variance, fields)

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
        problem, found = self._problem(cell.problem), contender(cell.method)
        return {
            "updates": self.updates,
            "batch": self.batch,
            "n": self.n,
            "steps": self.steps,
            **vars(self.sampling),
            "method": found.method(problem.beta).model_dump_named(),
            "training": found.settings.model_dump(mode="json"),
            **_own_files(cell.method),
        }

    def rows(self) -> list[Row]:
        """The figures of every cell, in the order of `cells`; all must be done."""
        return [self.finished(cell)["row"] for cell in self.cells]

    def samples(self, cell: LabCell) -> Float[Tensor, "n dim"]:
        """Samples of a cell's policy, float32.

        Raises:
            UserError: they are not what was written.
        """
        path, known = self._samples_path(cell), self.finished(cell).get("samples")
        try:
            if known not in (None, checksums.of_file(path)):
                raise ValueError("another content")
            return load_file(path)["samples"]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(f"--out: {path} is damaged; remove it, and it is made again") from error

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
            self._store_result(cell, result)

    def _problem(self, name: str) -> Problem:
        return _problem(name, self.steps, self.sampling)

    def path(self, cell: LabCell) -> Path:
        return self.out / cell.problem / slug(cell.method) / f"seed-{cell.seed}.json"

    def _samples_path(self, cell: LabCell) -> Path:
        return self.path(cell).with_suffix(".safetensors")

    def is_done(self, cell: LabCell, *, overwrite: bool = False) -> bool:
        """As for any study; without its samples a cell is not there."""
        return self._samples_path(cell).is_file() and super().is_done(cell, overwrite=overwrite)

    def _store_result(self, cell: LabCell, result: Result) -> None:
        """The JSON comes last, and an old one goes first: where it is, the cell is whole."""
        path, samples = self.path(cell), self._samples_path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        content = save({"samples": result.samples.float().contiguous()})
        write_whole(samples, content)
        row = {name: _finite_or_none(value) for name, value in result.row().items()}
        self.store(cell, {"row": row, "samples": checksums.of_bytes(content)})


@cache
def _problem(name: str, steps: int, sampling: Sampling) -> Problem:
    """With what it has found out about itself, which takes seconds for some."""
    return replace(named_problem(name, "--problem"), steps=steps, **vars(sampling))


def _suits(each: Contender, process: ReverseProcess) -> bool:
    try:
        fits(each, process)
    except UserError:
        return False
    return True


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
