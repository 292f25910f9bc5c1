"""A suite's table as CSV and JSON, for scripts and spreadsheets that open no page: each figure with its interval."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from bench.records import Estimate
from leaderboard.boards import Board, Row
from leaderboard.rendering import File, Part

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def parts(board: Board) -> Iterator[Part]:
    """`table.csv` and `table.json`; fractions, at the precision of the bundle, and one row a submission in order."""
    table = pd.DataFrame([dict(_cells(row)) for row in board.rows])
    safe = table.map(lambda value: neutralise(value) if isinstance(value, str) else value)
    yield File(f"{board.slug}/table.csv", safe.rename(columns=neutralise).to_csv(index=False))
    yield File(f"{board.slug}/table.json", table.to_json(orient="records", indent=1) + "\n")


def neutralise(text: str) -> str:
    """A stranger's text that no spreadsheet takes for a formula: an apostrophe before one that could be."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _cells(row: Row) -> Iterator[tuple[str, object]]:
    entry, standing = row.entry, row.standing
    yield from {
        "submission": entry.label,
        "method": entry.manifest.submission.method,
        "suite": entry.manifest.suite,
        "suite_id": entry.manifest.suite_id,
        "bundle_sha256": entry.bundle_sha256,
        "reproduced": row.reproduced is not None,
        "place": standing.place,
        "place_low": standing.first,
        "place_high": standing.last,
        "tie_group": standing.tie_group,
        "parameters": entry.parameters,
        "trainable": entry.manifest.submission.parameters.trainable,
        "image_ms": entry.image_ms,
        "text_ms": entry.text_ms,
    }.items()
    overall, canvas = entry.overall, entry.clean()
    yield from _estimate("shifted_r1", overall.r1 if overall else None)
    yield from _estimate("lost", overall.lost if overall else None)
    yield from _estimate("clean_r1", canvas.r1 if canvas else None)
    yield from _estimate("win_rate", standing.win_rate)
    yield from _estimate("worst_decile", entry.worst_decile)
    yield from _estimate("mce", entry.mce)
    yield from _estimate("relative_mce", entry.relative_mce)
    yield from _estimate("effective_robustness", standing.effective_robustness)
    for name, held in entry.families.items():
        yield from _estimate(f"{name}_r1", held.r1)
        yield from _estimate(f"{name}_lost", held.lost)


def _estimate(name: str, estimate: Estimate | None) -> Iterator[tuple[str, object]]:
    ends = (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)
    yield from zip((name, f"{name}_low", f"{name}_high"), ends, strict=True)
