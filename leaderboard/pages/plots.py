"""Trade-offs: what a submission finds under shift, or loses to it, against what it costs.

Every axis of cost but the number of parameters is time, and times are compared inside one class of hardware only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bench.records import Finite
from leaderboard.boards import Board, Row
from leaderboard.entries import Entry
from leaderboard.pages.shifts import to_tenths
from leaderboard.queries import Query, list_queries
from leaderboard.ranking import pareto
from leaderboard.rendering import Page, Script


class Cost(NamedTuple):
    """A cost that a table can compare for all rows: its name, and on which hardware it is what; None if unknown."""

    name: str
    values: list[tuple[str, Finite | None]]


def parts(board: Board) -> Iterator[Page | Script]:
    """The page, whose table says what its plot draws, and the data of the plot."""
    fronts = find_fronts([row.entry for row in board.rows])
    lines = [
        {
            "row": row,
            "parameters": row.entry.parameters,
            "hardware": row.entry.hardware,
            "fronts": of_row,
            "queries": list_queries(row.entry),
        }
        for row, of_row in zip(board.rows, fronts, strict=True)
    ]
    yield Page(f"{board.slug}/plots.html", "plots.html", {"lines": lines})
    yield Script(f"{board.slug}/plots-data.js", "plots", [_point(row) for row in board.rows])


def find_fronts(entries: Sequence[Entry]) -> list[list[str]]:
    """Per entry the costs at which no other of its hardware class finds as much under shift for less."""
    costs = [
        Cost("parameters", [("", entry.parameters) for entry in entries]),
        Cost("ms / image", [(entry.hardware, entry.image_ms) for entry in entries]),
        Cost("ms / caption", [(entry.hardware, entry.text_ms) for entry in entries]),
    ]
    fronts: list[list[str]] = [[] for _ in entries]
    for cost in costs:
        for place in _find_front(entries, cost):
            fronts[place].append(cost.name)
    return fronts


def _find_front(entries: Sequence[Entry], cost: Cost) -> Iterator[int]:
    """Places of the entries on it; each class of hardware has a front of its own."""
    classes: dict[str, list[tuple[int, float, float]]] = {}
    for place, (entry, (hardware, value)) in enumerate(zip(entries, cost.values, strict=True)):
        if value is not None and entry.overall is not None:
            classes.setdefault(hardware, []).append((place, float(value), -entry.overall.r1.value))
    for points in classes.values():
        table = np.array(points)
        yield from (int(place) for place in table[pareto(table[:, 1:]), 0])


def _point(row: Row) -> dict[str, Any]:
    entry = row.entry
    return {
        "id": row.id,
        "label": entry.label,
        "r1": to_tenths(entry.overall.r1) if entry.overall else None,
        "lost": to_tenths(entry.overall.lost) if entry.overall else None,
        "exact": {"r1": entry.overall.r1.value, "lost": entry.overall.lost.value} if entry.overall else None,
        "parameters": entry.parameters,
        "image": entry.image_ms,
        "text": entry.text_ms,
        "hardware": entry.hardware,
        "queries": list(_plain(list_queries(entry))),
    }


def _plain(queries: Iterable[Query]) -> Iterator[dict[str, Any]]:
    for query in queries:
        yield {
            "hardware": query.hardware,
            "n_items": query.n_items,
            "p50": query.p50_ms,
            "p95": query.p95_ms,
            "index": query.timing.index.factory,
            "overlap": to_tenths(query.timing.recall.overlap),
            "flags": list(query.timing.flags),
        }
