"""Who said what of what: kept up with a table that grows by a line at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from nablaflow.studio.table import Row

Item = TypeVar("Item", bound=Hashable)
Said = TypeVar("Said")


class Verdicts(Generic[Row, Item, Said]):
    """What each rater last said of each item; an answer more costs one row, not the whole table.

    Args:
        read: what a row is about, by whom, and what it says; None for a row that says nothing.
        unlike: how far two people are apart.
    """

    def __init__(
        self,
        read: Callable[[Row], tuple[Item, str, Said] | None],
        unlike: Callable[[Said, Said], float],
    ) -> None:
        self._read, self._unlike = read, unlike
        self._lock = threading.Lock()
        self._start(())

    def follow(self, rows: Sequence[Row]) -> None:
        """Read the rows that are new; all of them where it is another list than before."""
        with self._lock:
            if rows is not self._rows:
                self._start(rows)
            for row in rows[self._count :]:
                self._count += 1
                found = self._read(row)
                if found is not None:
                    self._add(*found)

    @property
    def items(self) -> Sequence[Item]:
        """In the order in which they were first judged."""
        return self._items

    def is_by(self, item: Item, rater: str) -> bool:
        """Whether a rater has judged an item."""
        return rater in self._said.get(item, {})

    def apart(self) -> tuple[float, int]:
        """How far any two raters of an item are apart, summed, and how often there are two."""
        return self._apart, self._twos

    def _start(self, rows: Sequence[Row]) -> None:
        self._rows, self._count = rows, 0
        self._items: list[Item] = []
        self._said: dict[Item, dict[str, Said]] = {}
        self._apart, self._twos = 0.0, 0

    def _add(self, item: Item, rater: str, said: Said) -> None:
        if item not in self._said:
            self._items.append(item)
        by = self._said.setdefault(item, {})
        others = [value for name, value in by.items() if name != rater]
        if rater in by:
            self._apart -= sum(self._unlike(by[rater], value) for value in others)
        else:
            self._twos += len(others)
        self._apart += sum(self._unlike(said, value) for value in others)
        by[rater] = said
