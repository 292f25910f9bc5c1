"""Attacks: what is still found while somebody searches for the change that does most harm, and how far to believe it.

Only results of one threat model, aim and direction share a plot: an attack on the query and one on the whole gallery
are different questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from bench.records import CurvePoint
from leaderboard.boards import Board, Row
from leaderboard.entries import Attacked, Entry
from leaderboard.pages.shifts import tenths_of, to_tenths
from leaderboard.rendering import Page, Script

RELIABLE = "reliable"
_THREATS = {
    "query": "the query itself is changed",
    "gallery_target": "the query's own positives in the gallery are changed",
    "gallery_all": "every item of the gallery is changed",
    "both": "query and gallery are changed together",
    "distractor": "items are added to the gallery",
}


class Panel(NamedTuple):
    """What shares a plot: results that differ in the submission and the budget alone."""

    attack: str
    threat_model: str
    direction: str
    collection: str
    stage: str
    seed: int
    unit: str

    @property
    def title(self) -> str:
        """Behind attack, threat model and direction what is not the usual."""
        stage = f"{self.stage} attacked" if self.stage else ""
        seed = f"seed {self.seed}" if self.seed else ""
        usual = (self.attack, self.threat_model.replace("_", " "), self.direction)
        return ", ".join(part for part in (*usual, stage, seed) if part)


def parts(board: Board) -> Iterator[Page | Script]:
    """The page with all attacked cells, and the data of its plots."""
    panels = group_results(board.rows)
    yield Page(
        f"{board.slug}/attacks.html",
        "attacks.html",
        {
            "panels": [_describe(board, panel, panels[panel], number) for number, panel in enumerate(panels)],
            "skipped": list(_skipped(board.rows)),
            "doubts": list(_doubts(board.rows)),
            "curves": [(row, curve) for row in board.rows if (curve := find_curve(row.entry))],
        },
    )
    yield Script(f"{board.slug}/attacks-data.js", "attacks", _data(board.rows, [*panels]))


def group_results(rows: Iterable[Row]) -> dict[Panel, list[tuple[Row, Attacked]]]:
    """The attacked cells of all rows by what shares a plot, in the order of the first result."""
    panels: dict[Panel, list[tuple[Row, Attacked]]] = {}
    for row in rows:
        for attack in row.entry.attacks:
            panels.setdefault(_panel(attack), []).append((row, attack))
    return panels


def find_curve(entry: Entry) -> tuple[CurvePoint, ...]:
    """What the examination of a submission found, budget by budget; empty if its images were not attacked.

    One examination speaks for all attacks on the images of a collection, so that their records repeat it.
    """
    return next((attack.curve for attack in entry.attacks if attack.curve), ())


def _panel(attack: Attacked) -> Panel:
    cell = attack.cell
    name = cell.shift.partition(":")[0]
    return Panel(name, cell.threat_model, attack.direction, cell.collection, cell.stage, cell.seed, attack.unit)


def _describe(board: Board, panel: Panel, found: Sequence[tuple[Row, Attacked]], number: int) -> dict[str, Any]:
    change = board.lock.changes.get(panel.attack) if board.lock else None
    return {
        "number": number,
        "panel": panel,
        "summary": change.summary if change else "",
        "threat": _THREATS.get(panel.threat_model, ""),
        "n_images": sorted({attack.n_images for _, attack in found}),
        "found": found,
    }


def _doubt(attack: Attacked) -> str:
    """Why the result may say little of the submission's robustness; empty if it is reliable."""
    return "" if attack.verdict == RELIABLE else attack.verdict


def _doubts(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Verdicts other than reliable, each once a submission, with what the failed checks say."""
    for row in rows:
        for verdict in dict.fromkeys(filter(None, map(_doubt, row.entry.attacks))):
            told = [attack for attack in row.entry.attacks if attack.verdict == verdict]
            failed = dict.fromkeys(check for attack in told for check in attack.checks if not check.passed)
            yield {
                "row": row,
                "verdict": verdict,
                "cells": list(dict.fromkeys(attack.cell.id for attack in told)),
                "checks": list(failed),
            }


def _skipped(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Cells that cannot be asked of a submission; those with one reason together."""
    for row in rows:
        reasons: dict[str, list[str]] = {}
        for cell, reason in row.entry.skipped.items():
            reasons.setdefault(reason, []).append(cell)
        for reason, cells in reasons.items():
            yield {"row": row, "reason": reason, "cells": cells}


def _data(rows: Sequence[Row], panels: Sequence[Panel]) -> dict[str, Any]:
    numbers = {panel: number for number, panel in enumerate(panels)}
    return {
        "panels": [{"title": panel.title, "unit": panel.unit} for panel in panels],
        "rows": [
            {
                "id": row.id,
                "label": row.entry.label,
                "results": [_result(attack, numbers) for attack in row.entry.attacks],
                "curve": [[point.budget, tenths_of(point.hit_1)] for point in find_curve(row.entry)],
            }
            for row in rows
        ],
    }


def _result(attack: Attacked, numbers: dict[Panel, int]) -> dict[str, Any]:
    return {
        "panel": numbers[_panel(attack)],
        "budget": attack.budget,
        "clean": to_tenths(attack.clean),
        "attacked": to_tenths(attack.attacked),
        "asr": to_tenths(attack.asr),
        "doubt": _doubt(attack),
    }
