"""The rows that ship: every one of them still follows from its evidence, under the rules of today."""

from __future__ import annotations

import pytest

from leaderboard.boards import RESULTS, Boards
from leaderboard.history import read_history

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
