"""The table of a suite: one row a submission in ranked order, every figure with its interval, all of it in the HTML."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from leaderboard.boards import Board, Row
from leaderboard.history import Revision
from leaderboard.pages.columns import GROUPS, Column, Group, list_columns
from leaderboard.rendering import Page, Script


class Heading(NamedTuple):
    """A group of columns, and over how many it reaches."""

    group: Group
    title: str
    n_columns: int


class Left(NamedTuple):
    """A revision that no longer counts."""

    label: str
    number: int
    event: str
    date: str
    reason: str


def parts(board: Board) -> Iterator[Page | Script]:
    """The table's page."""
    columns = list_columns(board)
    context = {
        "columns": columns,
        "headings": list(_headings(columns)),
        "suite": _describe(board),
        "methods": sorted({row.entry.manifest.submission.method for row in board.rows} - {""}),
        "machines": sorted({row.entry.hardware for row in board.rows}),
        "openers": {row.id for row in _group_openers(board.rows)},
        "superseded": [_leave(revision) for revision in board.superseded],
    }
    yield Page(f"{board.slug}/index.html", "table.html", context)


def first_page(board: Board | None) -> Iterator[Page | Script]:
    """The site's first page: the table of one board; without any, what the site is."""
    if board is None:
        yield Page("index.html", "no_boards.html", {})
        return
    yield from (part._replace(path="index.html") for part in parts(board) if isinstance(part, Page))


def _headings(columns: Sequence[Column]) -> Iterator[Heading]:
    for group, members in groupby(columns, key=lambda column: column.group):
        yield Heading(group, GROUPS[group], len(list(members)))


def _describe(board: Board) -> dict[str, Any]:
    """What the caption says of the suite; all rows agree on it."""
    manifest = board.rows[0].entry.manifest if board.rows else None
    return {
        "id": manifest.suite_id if manifest else "",
        "n_cells": len(manifest.cells) if manifest else 0,
        "collections": dict(manifest.collections) if manifest else {},
        "n_seeds": len({cell.seed for cell in manifest.cells}) if manifest else 0,
        "is_draft": board.label.endswith("-draft"),
        "rove": importlib.metadata.version("rove-bench"),
    }


def _group_openers(rows: Sequence[Row]) -> Iterator[Row]:
    """The first row of every tie group but the first group's."""
    for above, row in pairwise(rows):
        if above.standing.tie_group != row.standing.tie_group:
            yield row


def _leave(revision: Revision) -> Left:
    if revision.withdrawn:
        change = revision.withdrawn
        return Left(revision.label, revision.number, "withdrawn", str(change.date), change.reason)
    change = revision.change
    return Left(revision.label, revision.number, "superseded", str(change.date), change.reason)
