"""My weights: the order anew, with a weight for each family of shifts, computed in the browser from resamples."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from bench.locks import list_locks
from leaderboard.boards import Board
from leaderboard.entries import Resamples
from leaderboard.rendering import Page, Script

N_RESAMPLES = 200
SCALE = 10_000
Measure = Literal["r1", "lost"]
_GROUPS = {
    "image": "Photos",
    "collection": "Photos",
    "text": "Captions",
    "gallery_image": "Galleries",
    "gallery_text": "Galleries",
}


class Preset(NamedTuple):
    """Weights by a name: 1 of these families, 0 of all others."""

    name: str
    families: tuple[str, ...]


def parts(board: Board) -> Iterator[Page | Script]:
    """The page, what it knows of each row, and resamples of either measure; the browser loads one of them at a time."""
    families = [{"name": name, "key": f"w{place}"} for place, name in enumerate(board.families)]
    presets = list_presets(board.families)
    yield Page(f"{board.slug}/weights.html", "weights.html", {"families": families, "presets": presets})
    yield Script(f"{board.slug}/weights-data.js", "weights", _describe(board, presets))
    for measure in ("r1", "lost") if board.rows else ():
        packed = pack([row.resamples for row in board.rows], measure)
        yield Script(f"{board.slug}/weights-{measure}.js", f"resamples_{measure}", packed)


def list_presets(families: Sequence[str]) -> list[Preset]:
    """All families alike, noise and blur, and each group of families alone; those that choose nothing are left out."""
    kinds = {change.family: change.kind for lock in list_locks().values() for change in lock.changes.values()}
    groups: dict[str, list[str]] = {"Equal": list(families)}
    groups["Photo noise and blur"] = [name for name in families if name in ("noise", "blur")]
    for label in dict.fromkeys(_GROUPS.values()):
        groups[f"{label} only"] = [name for name in families if _GROUPS.get(kinds.get(name, "")) == label]
    return [Preset(name, tuple(members)) for name, members in groups.items() if members]


def pack(resamples: Sequence[Resamples], measure: Measure) -> str:
    """The first N_RESAMPLES resamples, row by row and family by family, as base64 of little-endian int16 over SCALE.

    The share lost is negative where a shift helps; what lies outside of +-3.2 is cut off there. It is undefined (NaN)
    in a resample in which nothing was found without a shift: the mean of the other resamples stands in for it.
    """
    table: Float[np.ndarray, "n_rows n_families n_kept"] = np.stack(
        [getattr(of, measure)[:, :N_RESAMPLES] for of in resamples]
    ).astype(np.float64)
    if np.isnan(table).any():
        table = np.where(np.isnan(table), np.nanmean(table, axis=2, keepdims=True), table)
    steps = np.clip(np.rint(table * SCALE), -32_000, 32_000)
    return base64.b64encode(steps.astype("<i2").tobytes()).decode("ascii")


def _describe(board: Board, presets: Sequence[Preset]) -> dict[str, Any]:
    n_resamples = min(N_RESAMPLES, board.rows[0].resamples.r1.shape[1]) if board.rows else 0
    return {
        "families": list(board.families),
        "presets": [[int(name in preset.families) for name in board.families] for preset in presets],
        "n_resamples": n_resamples,
        "scale": SCALE,
        "rows": [
            {
                "id": row.id,
                "label": row.entry.label,
                "place": row.standing.place,
                "r1": [row.entry.families[name].r1.value for name in board.families],
                "lost": [row.entry.families[name].lost.value for name in board.families],
            }
            for row in board.rows
        ],
    }
