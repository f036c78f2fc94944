"""The guard's turns between updates: all processes look together, the best policy is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import final

from nablaflow.errors import TrainingStopped
from nablaflow.evaluation.guard import Guard, Look, as_record
from nablaflow.storage.checkpoint import best_folder, load_checkpoint
from nablaflow.training.keeping import Keeper
from nablaflow.training.processes import from_main
from nablaflow.training.stepper import Record


@final
class Guarding:
    """Of a run that has a guard."""

    def __init__(self, guard: Guard, keeper: Keeper) -> None:
        self.guard, self._keeper = guard, keeper

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
        self, run: Path, update: int, seconds: float, on_look: Callable[[int], None]
    ) -> Record:
        """Look at the policy, keep it if it is the best, put the best in its place if it must be.

        Args:
            update: how many are done.
            seconds: of training so far.
            on_look: told how many more images are done.

        Raises:
            TrainingStopped: a state that the policy samples is not finite.
        """
        guard = self.guard
        look = from_main(self._look(update, on_look))
        if guard.judge(look):
            self._keeper.save_best(run, update, seconds)
        if guard.trip is not None and guard.settings.action == "roll-back":
            self._roll_back(run)
        return as_record(look)

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
