"""The rows that ship: every one still follows from its evidence, under the rules of today, and so do the guidelines."""

from __future__ import annotations

from pathlib import Path

import pytest

from leaderboard.boards import RESULTS, Boards
from leaderboard.guidelines import explain
from leaderboard.history import read_history

GUIDELINES = Path(__file__).parents[2] / "docs" / "guidelines.md"
CURRENT = [revision for revision in read_history(RESULTS) if revision.is_current]


def test_every_current_revision_is_ranked(shipped_boards: Boards) -> None:
    found = shipped_boards
    assert not found.rejected
    ranked = {(board.label, row.entry.label) for board in found.boards for row in board.rows}
    assert ranked == {(revision.suite, revision.label) for revision in CURRENT}
    assert len(ranked) >= 6
    for board in found.boards:
        assert board.lock is not None
        assert not board.unranked
        reference = next(row.entry for row in board.rows if row.entry.label == board.lock.reference)
        assert reference.mce is not None
        assert reference.mce.value == pytest.approx(1)


def test_the_guidelines_are_what_the_rows_say_today(shipped_boards: Boards) -> None:
    remedy = "write them again: rove recommend --explain --output docs/guidelines.md"
    assert explain(shipped_boards.boards) == GUIDELINES.read_text(encoding="utf-8"), remedy
