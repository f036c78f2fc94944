"""The guard's turns between updates: all processes look together, the best policy is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import final

from nablaflow.config.settings import TrainingSettings
from nablaflow.errors import TrainingStopped
from nablaflow.evaluation.budgets import Trip
from nablaflow.evaluation.guard import Guard, Look, as_record
from nablaflow.storage.checkpoint import best_folder, load_checkpoint
from nablaflow.training.keeping import Keeper
from nablaflow.training.processes import from_main
from nablaflow.training.stepper import Record


@final
class Guarding:
    """Of a run that has a guard."""

    def __init__(self, guard: Guard, keeper: Keeper, training: TrainingSettings) -> None:
        self.guard, self._keeper, self._training = guard, keeper, training

    def is_due(self, update: int, spent: float) -> bool:
        """Whether it is the guard's turn; the same after a resume, since all it reads is kept.

        Args:
            update: how many are done.
            spent: share of ``training.minutes`` so far, the same on all processes.
        """
        guard, minutes = self.guard, self._training.minutes
        if guard.looks is None or minutes is None:
            return update % guard.every == 0
        last = 0 if guard.last is None else guard.last.update
        before = self._passed(guard.looks, last, guard.looked / (60.0 * minutes))
        return self._passed(guard.looks, update, spent) > before

    def _passed(self, looks: int, update: int, spent: float) -> int:
        """How many of the looks' times are behind; a run ends by its updates or by its time."""
        return max(looks * update // self._training.updates, int(looks * spent))

    def begin(self, on_look: Callable[[int], None]) -> None:
        """Measure the reference, unless a resumed run has done so.

        Raises:
            UserError: it exceeds a budget itself.
        """
        if self.guard.reference is not None:
            return
        self.guard.begin(on_look)
        self.guard.restore(from_main(self.guard.state()))

    def turn(
        self,
        run: Path,
        update: int,
        seconds: float,
        on_look: Callable[[int], None],
        spent: float = 0.0,
    ) -> Record:
        """Look at the policy, keep it if it is the best, put the best in its place if it must be.

        Args:
            update: how many are done.
            seconds: of training so far.
            on_look: told how many more images are done.
            spent: share of ``training.minutes`` so far, as in `is_due`.

        Raises:
            TrainingStopped: a state that the policy samples is not finite.
        """
        guard = self.guard
        look = from_main(self._look(update, on_look))
        guard.looked = 60.0 * (self._training.minutes or 0.0) * spent
        if guard.judge(look):
            self._keeper.save_best(run, update, seconds)
        if guard.trip is not None and guard.settings.action == "roll-back":
            self._roll_back(run)
        return as_record(look)

    def trip(self, update: int, on_look: Callable[[int], None]) -> Trip | None:
        """The budget that the policy as it is exceeds, if there is one; nothing is remembered."""
        self.begin(on_look)
        return self.guard.exceeded(from_main(self._look(update, on_look)))

    def _look(self, update: int, on_look: Callable[[int], None]) -> Look:
        try:
            return self.guard.look(update, on_look)
        except FloatingPointError as error:
            raise TrainingStopped(
                f"update {update}: {error} is not finite; what was saved is whole. Lower "
                "optimizer.learning_rate or method.beta and start again with --overwrite"
            ) from error

    def _roll_back(self, run: Path) -> None:
        """The best policy in place of this one; what the guard knows stays."""
        assert self.guard.best is not None
        best = load_checkpoint(best_folder(run, self.guard.best.update))
        self._keeper.restore(replace(best, state={**best.state, "guard": self.guard.state()}))
