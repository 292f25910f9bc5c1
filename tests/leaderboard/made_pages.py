"""A board with everything in it that is awkward to show, and its table and weights pages, written by themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from made_entries import FAMILIES, NO_HITS, around, made_entry, made_manifest, made_resamples

from bench.records import Cell, estimate
from leaderboard.boards import Board, Boards, Row, Source, Unranked, unique_slugs
from leaderboard.entries import Attacked, Entry
from leaderboard.pages import table, weights
from leaderboard.ranking import rank
from leaderboard.rendering import Page, Script, make_environment

STATIC = Path(table.__file__).parent.parent / "static"
EVIL = "<img src=x onerror=alert(1)>"
FORMULA = "=1+1"
QUOTED = 'a "quoted", comma'
ATTACK = Cell(collection="made/test", shift="pgd:2", threat_model="query", n_images=50, directions=("i2t",))
REASON = "it has no gradient"
LABELS = ("plain", EVIL, FORMULA, QUOTED, "minus", "last")


def made_rows_board(n_more: int = 0) -> Board:
    """Six awkward submissions, and `n_more` plain ones."""
    rng = np.random.default_rng(0)
    labels = [*LABELS, *(f"more-{number:02d}" for number in range(n_more))]
    entries = [_entry(label, number) for number, label in enumerate(labels)]
    shared = rng.standard_normal(2_000)
    resamples = [made_resamples(entry, rng, shared) for entry in entries]
    found = zip(unique_slugs(labels), entries, resamples, rank(entries, resamples), strict=True)
    rows = [Row(row_id, entry, of, NO_HITS, standing, Source(Path(), None)) for row_id, entry, of, standing in found]
    unranked = (Unranked(f"unranked {EVIL}", "lacks 3 of 9 cells"),)
    return Board("made-v1", "made-v1", None, tuple(sorted(rows, key=lambda row: row.standing.order)), unranked, ())


def _entry(label: str, number: int) -> Entry:
    """Families hold up differently from row to row, so that weights change the order."""
    families = {
        name: (round(r1 - 0.004 * number * (1 + place), 6) % 0.9 + 0.05, round(0.03 * (number * (5 + place) % 11), 6))
        for place, (name, (r1, _)) in enumerate(FAMILIES.items())
    }
    entry = made_entry(
        label, families=families, clean=0.7 - 0.03 * (number % 20), parameters=10 ** (number % 9) if number else None
    )
    manifest = made_manifest(label, "made-v1", (*entry.manifest.cells, ATTACK), entry.manifest.parameters)
    submission = manifest.submission.model_copy(update={"method": "LoRA" if number % 2 else "zero-shot"})
    changes = {
        "manifest": manifest.model_copy(update={"submission": submission}),
        "mce": estimate(0.9 - 0.005 * number, 0.2, 1.3) if number % 2 else None,
        "attacks": (_attacked("reliable" if number > 1 else "unreliable: more steps do less"),) if number else (),
        "skipped": {} if number else {ATTACK.id: REASON},
    }
    return entry.model_copy(update=changes)


def _attacked(verdict: str) -> Attacked:
    return Attacked(
        cell=ATTACK,
        direction="i2t",
        budget=2,
        unit="levels of 255",
        n_images=50,
        clean=around(0.6),
        attacked=around(0.25),
        asr=around(0.5),
        verdict=verdict,
        checks=(),
        curve=(),
    )


def render(board: Board | None, part: Page) -> str:
    """A page's HTML."""
    site = Boards((board,) if board else (), ())
    template = make_environment().get_template(part.template)
    return template.render(part.context, site=site, board=board, page=part)


def write_pages(board: Board, folder: Path) -> Path:
    """The table and the weights of a board with what they load, and their folder."""
    shutil.copytree(STATIC, folder / "static", ignore=shutil.ignore_patterns("*.webp", "vega*"))
    for part in (*table.parts(board), *weights.parts(board)):
        path = folder / part.path
        path.parent.mkdir(exist_ok=True)
        path.write_text(part.text() if isinstance(part, Script) else render(board, part), encoding="utf-8")
    return folder / board.slug
