"""Downloads made with the site: every figure at full precision, and nothing that a spreadsheet would run."""

from __future__ import annotations

import csv
import io
import json

import pytest
from made_pages import FORMULA, made_rows_board

from leaderboard.pages.downloads import neutralise, parts


def test_csv_and_json_hold_every_row_with_its_intervals() -> None:
    board = made_rows_board()
    table, records = parts(board)
    rows = list(csv.DictReader(io.StringIO(table.content)))
    assert [row["submission"].removeprefix("'") for row in rows] == [row.entry.label for row in board.rows]
    for row, record, shown in zip(rows, json.loads(records.content), board.rows, strict=True):
        overall = shown.entry.overall
        assert overall is not None
        for value in (row, record):
            assert float(value["shifted_r1"]) == pytest.approx(overall.r1.value, abs=1e-9)
            assert float(value["lost_high"]) == pytest.approx(overall.lost.high, abs=1e-9)
            assert int(value["place"]) == shown.standing.place
        assert record["mce"] is None if shown.entry.mce is None else record["mce"] == shown.entry.mce.value


def test_no_cell_of_a_stranger_is_a_formula() -> None:
    table, records = parts(made_rows_board())
    cells = [cell for row in csv.reader(io.StringIO(table.content)) for cell in row]
    assert f"'{FORMULA}" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t", "\r"))]
    assert FORMULA in [row["submission"] for row in json.loads(records.content)]


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_what_begins_like_a_formula_is_neutralised(text: str) -> None:
    assert neutralise(text) == f"'{text}"
    assert neutralise(f"a{text}") == f"a{text}"
