"""Problems by methods by seeds: each cell is stored when finished, so a study can go on."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from nablaflow.errors import TrainingStopped, UserError
from nablaflow.exact.catalog import PROBLEMS, named_problem
from nablaflow.exact.contenders import CONTENDERS, DEFAULT, PUBLISHED, contender
from nablaflow.exact.evaluate import Result, evaluate
from nablaflow.training.run_folder import write_whole

ALL = "all"
REFRESH = 0.2  # seconds between two looks at how far the workers are

Row = dict[str, Any]
"""All figures of a `Result`; None is one that is not finite."""


@dataclass(frozen=True)
class Cell:
    """One training: a method on a problem."""

    problem: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.problem}/{self.method}/seed-{self.seed}"

    def short(self, width: int) -> str:
        """In at most ``width`` characters, at the expense of the method's name.

        >>> Cell("ring", "residual-nabla-db-published", 0).short(30)
        'ring residual-nabla-db-publ… 0'
        """
        room = width - len(self.problem) - len(str(self.seed)) - 2
        cut = len(self.method) > room
        method = f"{self.method[: max(0, room - 1)]}\N{HORIZONTAL ELLIPSIS}" if cut else self.method
        return f"{self.problem} {method} {self.seed}"


@dataclass(frozen=True)
class Study:
    """Every method on every problem with every seed.

    Attributes:
        seeds: how many: 0, 1, ...
        updates, batch, n: of each training, as in `evaluate`.
        out: folder; a finished cell is ``<problem>/<method>/seed-<s>.json`` in it, with its samples
            as ``.safetensors`` beside.

    Raises:
        UserError: a name that is none, or too small a number.
    """

    problems: tuple[str, ...]
    methods: tuple[str, ...]
    out: Path
    seeds: int = 1
    updates: int = 600
    batch: int = 256
    n: int = 8000

    def __post_init__(self) -> None:
        for problem in self.problems:
            _problem(problem)
        for method in self.methods:
            contender(method)
        for name, least in (("seeds", 1), ("updates", 0), ("batch", 1), ("n", 100)):
            _at_least(name, getattr(self, name), least)

    @staticmethod
    def named(problems: Sequence[str], methods: Sequence[str], out: Path, **numbers: int) -> Study:
        """By names as the command line has them: none for the default, ``all`` for the list.

        The defaults are every problem, and the project's default method with the published form.
        """
        return Study(
            _chosen(problems, PROBLEMS, tuple(PROBLEMS)),
            _chosen(methods, CONTENDERS, (DEFAULT, PUBLISHED)),
            out,
            **numbers,
        )

    @property
    def cells(self) -> list[Cell]:
        """In the order of problems, then methods, then seeds."""
        return [
            Cell(problem, method, seed)
            for problem in self.problems
            for method in self.methods
            for seed in range(self.seeds)
        ]

    def settings(self, cell: Cell) -> dict[str, Any]:
        """What decides a cell's figures, as plain data."""
        problem, found = _problem(cell.problem), contender(cell.method)
        return {
            "updates": self.updates,
            "batch": self.batch,
            "n": self.n,
            "steps": problem.steps,
            "method": found.method(problem.beta).model_dump_named(),
            "training": found.settings.model_dump(mode="json"),
        }

    def missing(self, *, overwrite: bool = False) -> list[Cell]:
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

    def samples(self, cell: Cell) -> Float[Tensor, "n dim"]:
        """Samples of a cell's policy, float32."""
        return load_file(self._samples_path(cell))["samples"]

    def plan(self, *, workers: int | None = None, overwrite: bool = False) -> Plan:
        """See what is left to do, and make the folder.

        Args:
            workers: processes; None: one for each core; 1: this one.
            overwrite: see `missing`.

        Raises:
            UserError: a mistake; nothing was written.
        """
        workers = _cores() if workers is None else workers
        _at_least("workers", workers, 1)
        cells = self.missing(overwrite=overwrite)
        with _unwritable_is_the_users(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        return Plan(self, tuple(cells), min(workers, len(cells)))

    def carry_out(self, cell: Cell, on_update: Callable[[], None]) -> None:
        """Train, measure, and store one cell."""
        result = evaluate(
            _problem(cell.problem),
            cell.method,
            self.updates,
            self.batch,
            cell.seed,
            self.n,
            on_update=lambda update: on_update(),
        )
        with _unwritable_is_the_users(self.out):
            self._store(cell, result)

    def _path(self, cell: Cell) -> Path:
        return self.out / cell.problem / cell.method / f"seed-{cell.seed}.json"

    def _samples_path(self, cell: Cell) -> Path:
        return self._path(cell).with_suffix(".safetensors")

    def _is_done(self, cell: Cell, overwrite: bool) -> bool:
        path = self._path(cell)
        if not (path.is_file() and self._samples_path(cell).is_file()):
            return False
        try:
            found = _read(path)["settings"]
        except UserError:
            if overwrite:
                return False
            raise
        change = _difference(found, self.settings(cell))
        if change and not overwrite:
            raise UserError(
                f"--out: {path.parent} holds figures of other settings ({change}); "
                "use --overwrite or another --out"
            )
        return not change

    def _store(self, cell: Cell, result: Result) -> None:
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


@dataclass(frozen=True)
class Plan:
    """What is left of a study, one torch thread a cell.

    Attributes:
        workers: processes; 1: this one.
    """

    study: Study
    cells: tuple[Cell, ...]
    workers: int

    def run(
        self,
        on_updates: Callable[[int], None] = lambda updates: None,
        on_cell: Callable[[Cell], None] = lambda cell: None,
    ) -> list[Row]:
        """Carry it out; a cell is stored as soon as it is finished.

        Args:
            on_updates: called with the updates done in all by this call, now and then.
            on_cell: called with each cell that was finished.

        Returns:
            Figures of every cell of the study, in the order of its cells.

        Raises:
            UserError: the folder cannot be written.
            TrainingStopped: a worker was killed.
            KeyboardInterrupt: as it came; no worker is left.
        """
        if self.workers <= 1:
            self._run_here(on_updates, on_cell)
        else:
            self._run_in_pool(on_updates, on_cell)
        return self.study.rows()

    def _run_here(self, on_updates: Callable[[int], None], on_cell: Callable[[Cell], None]) -> None:
        done = 0

        def on_update() -> None:
            nonlocal done
            done += 1
            on_updates(done)

        with _one_thread():
            for cell in self.cells:
                self.study.carry_out(cell, on_update)
                on_cell(cell)

    def _run_in_pool(
        self, on_updates: Callable[[int], None], on_cell: Callable[[Cell], None]
    ) -> None:
        context, others = get_context("spawn"), set(active_children())
        counter = context.Value("q", 0)
        pool = ProcessPoolExecutor(self.workers, context, _start_worker, (counter,))
        workers: set[BaseProcess] = set()
        try:
            with _workers_deaf_to_ctrl_c():
                waiting = {pool.submit(_carry_out, self.study, cell): cell for cell in self.cells}
                workers = set(active_children()) - others
            while waiting:
                finished, _ = wait(waiting, timeout=REFRESH, return_when=FIRST_COMPLETED)
                on_updates(counter.get_obj().value)  # without the lock: nobody can hold this up
                for future in finished:
                    future.result()
                    on_cell(waiting.pop(future))
        except BrokenProcessPool as error:
            pool.shutdown(cancel_futures=True)
            raise _worker_ended([worker.exitcode for worker in workers]) from error
        except BaseException:
            for worker in workers:
                worker.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


@cache
def _problem(name: str) -> Any:
    """With what it has found out about itself, which takes seconds for some."""
    return named_problem(name)


def _chosen(
    names: Sequence[str], known: Mapping[str, Any], default: tuple[str, ...]
) -> tuple[str, ...]:
    if ALL in names:
        return tuple(known)
    return tuple(dict.fromkeys(names)) or default


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"--{name}: {value} is too few; use {least} or more")


def _cores() -> int:
    """Those that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


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


def _difference(old: Any, new: Any, name: str = "") -> str | None:
    """The first setting that differs, with both values; None: all are the same."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return None if old == new else f"{name}: {old} there, {new} here"
    for key in {**old, **new}:
        inner = f"{name}.{key}" if name else key
        if change := _difference(old.get(key), new.get(key), inner):
            return change
    return None


@contextmanager
def _unwritable_is_the_users(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--out: cannot write {error.filename or out} ({error.strerror or error}); "
            "use another folder, or make room"
        ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """As a worker has: a figure must not depend on how many of them there were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _worker_ended(statuses: Sequence[int | None]) -> TrainingStopped:
    """Of one that a signal or the system ended; the pool then sends the others SIGTERM."""
    own = [status for status in statuses if status not in (None, 0, -signal.SIGTERM)]
    how = ", ".join(signal.Signals(-s).name if s < 0 else f"status {s}" for s in own) or "SIGTERM"
    return TrainingStopped(
        f"a worker was ended from outside ({how}; SIGKILL is most likely for want of memory); "
        "finished cells are kept: run the same command again, or with fewer --workers"
    )


# --- in a worker ----------------------------------------------------------------------------------

_counter: Any = None


@contextmanager
def _workers_deaf_to_ctrl_c() -> Iterator[None]:
    """What is started inside never gets a Ctrl-C, which a terminal sends to every process.

    A process inherits what is blocked; here it is delivered when the block ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(counter: Any) -> None:
    global _counter
    _counter = counter
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """A parent that is killed cannot end its workers, and they would wait for it for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _count() -> None:
    with _counter.get_lock():
        _counter.value += 1


def _carry_out(study: Study, cell: Cell) -> None:
    study.carry_out(cell, _count)
