"""What every shift costs: a map of shifts and severities, curves of chosen submissions, and one page a shift.

Cells that differ in their seed alone are shown as one, and so are all submissions of the board in the map that greets
a reader. Value and ends of the intervals are averaged: an average varies no more than what it is made of does on
average, so that its interval is rather too wide than too narrow.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from bench.locks import Change
from bench.records import Estimate, estimate
from leaderboard.boards import Board, Row, unique_slugs
from leaderboard.entries import Entry, Score
from leaderboard.rendering import Page, Script, percent

MEAN, SWAPPED = "mean", "collection"
_PICTURES = Path(__file__).parents[1] / "static" / "shifts" / "examples.json"
_KINDS = {
    "image": "of images",
    "text": "of captions",
    "gallery_image": "of the gallery's images",
    "gallery_text": "of the gallery's captions",
    "collection": "another collection",
}
_STEPS = 10


class Lane(NamedTuple):
    """A shift at one strength: a severity, MEAN over them, or SWAPPED for a collection that stands in for another."""

    change: str
    column: str


class Held(NamedTuple):
    """R@1 in a lane, and the share of the clean canvas's that is lost."""

    r1: Estimate
    lost: Estimate


class Baseline(NamedTuple):
    """What a shifted cell is measured against: the clean canvas of a collection, in the cell's directions."""

    collection: str
    directions: tuple[str, ...]


class Shift(NamedTuple):
    """A shift as a board has it.

    Args:
        name: by which entries know it.
        change: by which the suite's lock and the pictures know it.
        family: what it is averaged with.
        columns: its strengths, weakest first.
        baseline: of its cells.
        path: its page, from the board's folder.
    """

    name: str
    change: str
    family: str
    columns: tuple[str, ...]
    baseline: Baseline
    path: str


def parts(board: Board) -> Iterator[Page | Script]:
    """The map and curves with their data, and a page for each shift."""
    shifts = list_shifts(board)
    table = [find_held(row.entry) for row in board.rows]
    means = _average_rows(table)
    columns = _columns(shifts)
    yield Page(
        f"{board.slug}/shifts.html",
        "shifts.html",
        {
            "families": [
                (family, [(shift, _facts(board, shift), _marks(shift, columns, means)) for shift in found])
                for family, found in _by_family(shifts).items()
            ],
            "columns": columns,
            "swapped": SWAPPED,
            "clean": _average(_cleans(board)),
            "steps": range(_STEPS),
        },
    )
    yield Script(f"{board.slug}/shifts-data.js", "shifts", _data(board, shifts, table, means))
    for shift in shifts:
        yield Page(f"{board.slug}/{shift.path}", "shift.html", _page(board, shift, table))


def list_shifts(board: Board) -> list[Shift]:
    """The shifts of a board, in the suite's order; where the page of each is, others may link to."""
    found: dict[str, list[Score]] = {}
    for row in board.rows[:1]:
        for score in _shifted(row.entry):
            found.setdefault(_name(row.entry, score), []).append(score)
    return [
        Shift(
            name=name,
            change=scores[0].cell.change,
            family=scores[0].family,
            columns=tuple(sorted({_column(score) for score in scores}, key=_rank)),
            baseline=_baseline(scores[0]),
            path=f"shifts/{slug}.html",
        )
        for slug, (name, scores) in zip(unique_slugs(found), found.items(), strict=True)
    ]


def find_held(entry: Entry) -> dict[Lane, Held]:
    """How an entry holds up in every lane; of several seeds the average."""
    found: dict[Lane, list[Score]] = {}
    for score in _shifted(entry):
        found.setdefault(Lane(_name(entry, score), _column(score)), []).append(score)
    held = {lane: _held(scores) for lane, scores in found.items()}
    return held | {Lane(name, MEAN): Held(part.r1, part.lost) for name, part in entry.shifts.items()}


def to_tenths(figure: Estimate | None) -> list[int] | None:
    """Value, low and high in tenths of a percent, so that a script shows the very digits that a page does."""
    return None if figure is None else [tenths_of(end) for end in (figure.value, figure.low, figure.high)]


def tenths_of(fraction: float) -> int:
    """Rounded as `percent` rounds it: once, from the fraction itself."""
    return round(10 * round(100 * fraction, 1))


def _shifted(entry: Entry) -> Iterator[Score]:
    return (score for score in entry.scores if score.lost is not None)


def _name(entry: Entry, score: Score) -> str:
    """With its collection where the suite has several that are shifted, as `Entry.shifts` names it."""
    change = score.cell.change
    return change if change in entry.shifts else f"{score.cell.collection} {change}"


def _column(score: Score) -> str:
    return score.cell.shift.partition(":")[2] or SWAPPED


def _rank(column: str) -> tuple[bool, int]:
    return (column == SWAPPED, int(column) if column.isdigit() else 0)


def _columns(shifts: Iterable[Shift]) -> list[str]:
    """All strengths that occur, behind their mean."""
    return [MEAN, *sorted({column for shift in shifts for column in shift.columns}, key=_rank)]


def _baseline(score: Score) -> Baseline:
    return Baseline(score.cell.baseline or score.cell.collection, score.cell.directions)


def _find_clean(entry: Entry, baseline: Baseline) -> Estimate | None:
    """R@1 on a clean canvas over some of its directions; None where the entry does not hold it."""
    for score in entry.scores:
        cell = score.cell
        if cell.is_clean and cell.shift == "clean_canvas" and cell.collection == baseline.collection:
            if set(cell.directions) == set(baseline.directions):
                return score.r1
            known = score.metrics.get(baseline.directions[0]) if len(baseline.directions) == 1 else None  # type: ignore[call-overload]
            return known.get("hit@1") if known else None
    return None


def _held(scores: Sequence[Score]) -> Held:
    lost = [score.lost for score in scores if score.lost is not None]
    return Held(_mean([score.r1 for score in scores]), _mean(lost))


def _mean(figures: Sequence[Estimate]) -> Estimate:
    if len(figures) == 1:
        return figures[0]
    sums = [sum(ends) for ends in zip(*((one.value, one.low, one.high) for one in figures), strict=True)]
    return estimate(*(total / len(figures) for total in sums))


def _average(figures: Sequence[Estimate | None]) -> Estimate | None:
    known = [figure for figure in figures if figure is not None]
    return _mean(known) if known else None


def _average_rows(table: Sequence[Mapping[Lane, Held]]) -> dict[Lane, Held]:
    """The mean of all submissions, in the lanes that all of them have."""
    lanes = [lane for lane in table[0] if all(lane in held for held in table)] if table else []
    return {
        lane: Held(_mean([held[lane].r1 for held in table]), _mean([held[lane].lost for held in table]))
        for lane in lanes
    }


def _cleans(board: Board) -> list[Estimate | None]:
    scores = [row.entry.clean() for row in board.rows]
    return [None if score is None else score.r1 for score in scores]


def _by_family(shifts: Iterable[Shift]) -> dict[str, list[Shift]]:
    families: dict[str, list[Shift]] = {}
    for shift in shifts:
        families.setdefault(shift.family, []).append(shift)
    return families


def _marks(shift: Shift, columns: Sequence[str], held: Mapping[Lane, Held]) -> list[dict[str, Any]]:
    """What stands in the map's row of a shift: per column whether it has that strength, and its figure."""
    marks = []
    for column in columns:
        found = held.get(Lane(shift.name, column))
        step = None if found is None else step_of(found.r1.value)
        marks.append({"column": column, "held": found, "step": step, "is_own": column in (MEAN, *shift.columns)})
    return marks


def step_of(fraction: float) -> int:
    """Which of ten colours a fraction has, from 0, by what is shown of it."""
    return min(_STEPS - 1, max(0, tenths_of(fraction) * _STEPS // 1000))


def _data(
    board: Board, shifts: Sequence[Shift], table: Sequence[Mapping[Lane, Held]], means: Mapping[Lane, Held]
) -> dict[str, Any]:
    """Every figure of every submission and of their mean, in the order of one list of lanes."""
    lanes = [Lane(shift.name, column) for shift in shifts for column in (MEAN, *shift.columns)]
    baselines = list(dict.fromkeys(shift.baseline for shift in shifts))
    return {
        "changes": [{"name": shift.name, "baseline": baselines.index(shift.baseline)} for shift in shifts],
        "lanes": lanes,
        "mean": {"canvas": to_tenths(_average(_cleans(board))), **_columns_of(means, lanes)},
        "rows": [
            {
                "id": row.id,
                "label": row.entry.label,
                "canvas": to_tenths(clean),
                "clean": [to_tenths(_find_clean(row.entry, baseline)) for baseline in baselines],
                **_columns_of(held, lanes),
            }
            for row, held, clean in zip(board.rows, table, _cleans(board), strict=True)
        ],
    }


def _columns_of(held: Mapping[Lane, Held], lanes: Iterable[Lane]) -> dict[str, list[list[int] | None]]:
    found = [held.get(lane) for lane in lanes]
    return {
        "r1": [to_tenths(part.r1) if part else None for part in found],
        "lost": [to_tenths(part.lost) if part else None for part in found],
    }


def _page(board: Board, shift: Shift, table: Sequence[Mapping[Lane, Held]]) -> dict[str, Any]:
    lines = _order(board.rows, shift, table)
    return {
        "shift": shift,
        "facts": _facts(board, shift),
        "lines": lines,
        "best": lines[0] if lines else None,
        "worst": lines[-1] if len(lines) > 1 else None,
        "pictures": _pictures(shift),
        "captions": _captions(shift),
        "left_out": _why_nothing(shift),
        "credits": _examples()["credits"],
        "swapped": SWAPPED,
    }


def _order(rows: Sequence[Row], shift: Shift, table: Sequence[Mapping[Lane, Held]]) -> list[dict[str, Any]]:
    """Who survives it: by R@1 under it, best first; of equal ones in the order of the board."""
    found = [(row, held) for row, held in zip(rows, table, strict=True) if Lane(shift.name, MEAN) in held]
    found.sort(key=lambda pair: -pair[1][Lane(shift.name, MEAN)].r1.value)
    return [
        {"row": row, "held": _figures(held[Lane(shift.name, MEAN)]), "cells": _cells(shift, held)}
        for row, held in found
    ]


def _cells(shift: Shift, held: Mapping[Lane, Held]) -> list[dict[str, Any] | None]:
    known = [held.get(Lane(shift.name, column)) for column in shift.columns]
    return [None if part is None else _figures(part) for part in known]


def _figures(held: Held) -> dict[str, Any]:
    return {"r1": percent(held.r1), "lost": percent(held.lost)}


def _facts(board: Board, shift: Shift) -> dict[str, Any]:
    """What the suite's lock says of it; without a lock, what its cells say."""
    change = board.lock.changes.get(shift.change) if board.lock else None
    cells = [cell for cell in board.lock.cells if cell.change == shift.change] if board.lock else []
    return {
        "summary": change.summary if change else "",
        "kind": _KINDS.get(change.kind, change.kind) if change else "",
        "version": _version(change),
        "reasons": list(dict.fromkeys(cell.reason for cell in cells)),
    }


def _version(change: Change | None) -> str:
    if change is None:
        return ""
    return str(change.version) if change.version else "none: the collection is fetched as it is"


@cache
def _examples() -> dict[str, Any]:
    """The index of the pictures; empty without it."""
    empty = {"pictures": {}, "captions": {}, "left_out": {}, "credits": [], "width_px": 256}
    if not _PICTURES.is_file():
        return empty
    found: dict[str, Any] = json.loads(_PICTURES.read_text(encoding="utf-8"))
    return empty | found


def _pictures(shift: Shift) -> list[dict[str, str]]:
    """The original, and what every severity makes of it, also one that the suite has not."""
    shown = _examples()["pictures"].get(shift.change)
    if shown is None:
        return []
    pictures = [{"file": shown["before"], "title": "original"}]
    return pictures + [{"file": file, "title": _title(shift, step)} for step, file in sorted(shown["after"].items())]


def _title(shift: Shift, severity: str) -> str:
    if shift.columns == (SWAPPED,):
        return "in the other collection"
    return f"severity {severity}" + ("" if severity in shift.columns else ", not in this suite")


def _captions(shift: Shift) -> list[tuple[str, list[dict[str, str]]]]:
    """By severity, captions before and after."""
    return sorted(_examples()["captions"].get(shift.change, {}).items())


def _why_nothing(shift: Shift) -> str:
    """Why there is neither a picture nor a caption; empty where there is."""
    if _pictures(shift) or _captions(shift):
        return ""
    reason: str = _examples()["left_out"].get(shift.change, "")
    if reason:
        return reason
    return "Its items belong to a collection of its own." if SWAPPED in shift.columns else "No example was made of it."
