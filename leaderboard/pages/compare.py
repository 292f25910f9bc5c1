"""Two to four submissions against each other, cell by cell: the page, and every row's hits for the browser."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from bench.records import Cell
from bench.stats import SEED
from leaderboard.boards import Board, Row
from leaderboard.entries import Hits
from leaderboard.rendering import Page, Script

_WORD = 0xFFFFFFFF


def parts(board: Board) -> Iterator[Page | Script]:
    """The page, what it knows of the board, and a script of hits per row, which it loads when the row is chosen."""
    yield Page(f"{board.slug}/compare.html", "compare.html", {})
    yield Script(f"{board.slug}/compare.js", "compare", describe_board(board))
    for row in board.rows:
        yield Script(f"{board.slug}/hits/{row.id}.js", "hits", describe_hits(row.id, row.hits))


def describe_board(board: Board) -> dict[str, Any]:
    """The rows in order, and the cells in the suite's order, each with what it is averaged with."""
    return {
        "suite": board.label,
        "rows": [{"id": row.id, "name": name} for row, name in zip(board.rows, _unique_names(board.rows), strict=True)],
        "cells": [_describe_cell(*found) for found in _find_cells(board.rows)],
    }


def describe_hits(row_id: str, hits: Hits) -> dict[str, Any]:
    """A row's tables as the browser unpacks them, and of every number of images how its resamples begin."""
    return {
        "id": row_id,
        "names": hits.names,
        "items": hits.items,
        "n_images": hits.n_images,
        "keys": {str(n_images): philox_key(n_images) for n_images in sorted(set(hits.n_images))},
        "hits": base64.b64encode(hits.hits).decode(),
        "queries": base64.b64encode(hits.queries).decode(),
    }


def philox_key(n_images: int) -> list[int]:
    """The four 32-bit words, lowest first, of the key with which `bench.stats` draws resamples of as many images."""
    key = np.random.Philox(np.random.SeedSequence([SEED, n_images])).state["state"]["key"]
    return [int(half) >> shift & _WORD for half in key for shift in (0, 32)]


def _unique_names(rows: Iterable[Row]) -> list[str]:
    """Labels as they are typed to choose a row; a label that stands twice has the row's id behind it."""
    named = [(row.entry.label.strip(), row.id) for row in rows]
    counts = Counter(label for label, _ in named)
    return [label if label and counts[label] == 1 else f"{label} ({row_id})".strip() for label, row_id in named]


def _find_cells(rows: Iterable[Row]) -> list[tuple[Cell, str, bool]]:
    """Every cell with its family and whether its change is named together with its collection."""
    rows = list(rows)
    if not rows:
        return []
    cells = rows[0].entry.manifest.cells
    families = _find_families(cells, rows)
    shifted = [cell for cell in cells if not cell.is_clean and not cell.is_attack]
    are_several = len({cell.baseline or cell.collection for cell in shifted}) > 1
    return [(cell, families.get(cell, ""), are_several and not cell.baseline) for cell in cells]


def _find_families(cells: tuple[Cell, ...], rows: Iterable[Row]) -> dict[Cell, str]:
    """By cell; a cell that the first rows skipped is looked up in the next ones."""
    missing = {cell for cell in cells if not cell.is_attack}
    families: dict[Cell, str] = {}
    for row in rows:
        found = {score.cell: score.family for score in row.entry.scores if score.cell in missing}
        families |= found
        missing -= found.keys()
        if not missing:
            break
    return families


def _describe_cell(cell: Cell, family: str, with_collection: bool) -> dict[str, str]:
    group = "attacks" if cell.is_attack else "clean" if cell.is_clean else "shifted"
    return {
        "slug": cell.slug,
        "id": cell.id,
        "group": group,
        "family": family if group == "shifted" else "",
        "change": f"{cell.collection} {cell.change}" if with_collection else cell.change,
    }
