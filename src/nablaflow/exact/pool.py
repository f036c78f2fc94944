"""What is left of a study, carried out by several processes at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from nablaflow.errors import TrainingStopped
from nablaflow.exact.study import LabCell, LabStudy, Row
from nablaflow.memory import keep_freed_memory
from nablaflow.storage.study import at_least, check_writable, unwritable_is_the_users

REFRESH = 0.2  # seconds between two looks at how far the workers are


@dataclass(frozen=True)
class PoolPlan:
    """What is left of a study, one torch thread a cell.

    Attributes:
        workers: processes; 1: this one.
    """

    study: LabStudy
    cells: tuple[LabCell, ...]
    workers: int

    def run(
        self,
        on_updates: Callable[[int], None] = lambda updates: None,
        on_cell: Callable[[LabCell], None] = lambda cell: None,
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

    def _run_here(
        self, on_updates: Callable[[int], None], on_cell: Callable[[LabCell], None]
    ) -> None:
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
        self, on_updates: Callable[[int], None], on_cell: Callable[[LabCell], None]
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


def plan(study: LabStudy, *, workers: int | None = None, overwrite: bool = False) -> PoolPlan:
    """See what is left to do, and make the folder.

    Args:
        workers: processes; None: one for each core; 1: this one.
        overwrite: see `LabStudy.missing`.

    Raises:
        UserError: a mistake; nothing was written.
    """
    workers = _cores() if workers is None else workers
    at_least("workers", workers, 1)
    cells = study.missing(overwrite=overwrite)
    with unwritable_is_the_users(study.out):
        study.out.mkdir(parents=True, exist_ok=True)
    if cells:
        check_writable(study.out)
    return PoolPlan(study, tuple(cells), min(workers, len(cells)))


def _cores() -> int:
    """Those that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


@contextmanager
def _one_thread() -> Iterator[None]:
    """As a worker has: a figure must not depend on how many of them there were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
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
    keep_freed_memory()
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


def _carry_out(study: LabStudy, cell: LabCell) -> None:
    study.carry_out(cell, _count)
