"""Stands in for the command line's progress display."""

from __future__ import annotations

from bench.records import Cell, Record


class Silent:
    """An observer that counts and shows nothing."""

    def __init__(self) -> None:
        self.scored: list[str] = []
        self.reused: list[str] = []

    def cell_started(self, cell: Cell, n_items: int) -> None:
        pass

    def items_encoded(self, count: int) -> None:
        pass

    def cell_finished(self, record: Record, reused: bool) -> None:
        (self.reused if reused else self.scored).append(record.cell.id)
