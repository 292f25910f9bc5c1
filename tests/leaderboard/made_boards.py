"""Boards of as many submissions as a test asks for, made from one that was really scored by shifting its figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from made_timings import timing_of

from bench.locks import find_lock
from bench.records import Check, CurvePoint, Estimate, Strict
from leaderboard.boards import Board, Row, Source
from leaderboard.entries import Attacked, Entry, Resamples, Summarised
from leaderboard.ranking import rank


def made_board(real: Summarised, n_rows: int, folder: Path, n_cells: int | None = None) -> Board:
    """`n_rows` submissions around a real one, of at least `n_cells` cells if that is given."""
    shifts = np.random.default_rng(0).normal(0, 0.1, n_rows)
    entries = [_shifted(real.entry, f"model-{number:04d}", by) for number, by in enumerate(shifts)]
    if n_cells:
        entries = [_widened(entry, n_cells) for entry in entries]
    of = real.resamples
    resamples = [Resamples(*(np.clip(part + by, 0, 1) for part in (of.r1, of.lost, of.clean))) for by in shifts]
    standings = rank(entries, resamples)
    rows = [
        Row(entry.label, entry, resample, real.hits, standing, Source(folder, None))
        for entry, resample, standing in zip(entries, resamples, standings, strict=True)
    ]
    label = real.entry.manifest.suite
    return Board(label, label, find_lock(label), tuple(sorted(rows, key=lambda row: row.standing.order)), (), ())


def attacked_and_timed(real: Summarised) -> Summarised:
    """A timing, and an attack with a curve in both directions, added to an entry whose suite has none."""
    entry = real.entry
    clean = entry.scores[0]
    cell = clean.cell.model_copy(update={"shift": "pgd:4", "threat_model": "query", "n_images": 24})
    half, tenth = Estimate(value=0.5, low=0.4, high=0.6), Estimate(value=0.1, low=0.05, high=0.15)
    attacks = tuple(
        Attacked(
            cell=cell,
            direction=direction,
            budget=4,
            unit="levels of 255",
            n_images=24,
            clean=half,
            attacked=tenth,
            asr=Estimate(value=0.8, low=0.7, high=0.9),
            verdict=verdict,
            checks=(Check(name="budget", passed=True, detail="largest change 4 of 4 levels"),),
            curve=tuple(CurvePoint(budget=b, hit_1=0.5 / (1 + b), asr_hits=1 - 1 / (1 + b)) for b in (0, 1, 2, 4, 8)),
        )
        for direction, verdict in (("t2i", "reliable"), ("i2t", "unreliable: a larger budget does less"))
    )
    changes = {"attacks": attacks, "timings": (timing_of(entry.manifest),), "skipped": {"scenes/test typo": "no text"}}
    return real._replace(entry=entry.model_copy(update=changes))


def _shifted(entry: Entry, label: str, by: float) -> Entry:
    """Every R@1 and share lost moved by `by`, within 0 to 1; another name, size and speed."""
    manifest = entry.manifest.model_copy(
        update={
            "label": label,
            "submission": entry.manifest.submission.model_copy(update={"name": label}),
            "parameters": int((entry.manifest.parameters or 1_000_000) * 10 ** (3 * by)),
        }
    )
    moved = _move(entry, by)
    return moved.model_copy(update={"manifest": manifest, "text_ms": (entry.text_ms or 1.0) * 10 ** (2 * by)})


def _move(value: object, by: float) -> object:
    if isinstance(value, Estimate):
        if not 0 <= value.value <= 1:
            return value
        ends = [min(1.0, max(0.0, round(end + by, 6))) for end in (value.value, value.low, value.high)]
        return Estimate(value=ends[0], low=ends[1], high=ends[2])
    if isinstance(value, Strict):
        return value.model_copy(update={name: _move(part, by) for name, part in value})
    if isinstance(value, dict):
        return {name: _move(part, by) for name, part in value.items()}
    return tuple(_move(part, by) for part in value) if isinstance(value, tuple) else value


def _widened(entry: Entry, n_cells: int) -> Entry:
    """The scores again under other seeds, until there are `n_cells`."""
    scores = list(entry.scores)
    for seed in range(1, n_cells):
        scores += [
            score.model_copy(update={"cell": score.cell.model_copy(update={"seed": seed})})
            for score in entry.scores
            if not score.cell.is_clean
        ]
        if len(scores) >= n_cells:
            break
    return entry.model_copy(update={"scores": tuple(scores[:n_cells])})
