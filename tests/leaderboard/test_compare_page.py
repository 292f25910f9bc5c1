"""What the page that compares is given: rows by unambiguous names, cells with what they are averaged with, hits."""

from __future__ import annotations

import base64
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_boards import made_board

from bench.bundle import read_results
from bench.metrics import hit
from bench.summary import Scores
from leaderboard.boards import Board
from leaderboard.entries import read_entry
from leaderboard.pages.compare import describe_board, describe_hits, parts, philox_key
from leaderboard.rendering import Script


@pytest.fixture
def board(real_bundle: Path) -> Board:
    return made_board(read_entry(real_bundle), 3, real_bundle)


def test_key_starts_the_generator_of_the_bootstrap() -> None:
    words = philox_key(1000)
    key = np.array([words[0] | words[1] << 32, words[2] | words[3] << 32], dtype=np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key))
    of_bootstrap = np.random.Generator(np.random.Philox(np.random.SeedSequence([0, 1000])))
    np.testing.assert_array_equal(rng.integers(1000, size=5000), of_bootstrap.integers(1000, size=5000))


def test_every_row_has_its_hits_and_they_give_the_cells_r1(board: Board, real_bundle: Path) -> None:
    found = [part for part in parts(board) if isinstance(part, Script)]
    assert [part.path for part in found] == [
        f"{board.slug}/compare.js",
        *(f"{board.slug}/hits/{row.id}.js" for row in board.rows),
    ]
    data = found[1].value
    hits, queries = (
        np.frombuffer(zlib.decompress(base64.b64decode(data[name])), np.uint8) for name in ("hits", "queries")
    )
    pieces = np.cumsum(data["n_images"])[:-1]
    shares = {
        name: of_hits.sum() / of_queries.sum()
        for name, of_hits, of_queries in zip(
            data["names"], np.split(hits, pieces), np.split(queries, pieces), strict=True
        )
    }
    results = read_results(real_bundle)
    for record in results.records:
        evidence = results.evidence(record)
        for name, part in evidence.items():
            assert shares[f"{record.cell.slug}/{name}"] == pytest.approx(hit(part.ranks, 1).mean(), abs=1e-12)


def test_cells_are_grouped_as_the_summary_groups_them(board: Board, real_bundle: Path) -> None:
    expected = {
        record.cell.slug: (family, change)
        for family, changes in Scores(read_results(real_bundle)).changes.items()
        for change, records in changes.items()
        for record in records
    }
    cells = describe_board(board)["cells"]
    assert [cell["slug"] for cell in cells] == [cell.slug for cell in board.rows[0].entry.manifest.cells]
    assert {c["slug"]: (c["family"], c["change"]) for c in cells if c["group"] == "shifted"} == expected
    clean = [cell["slug"] for cell in cells if cell["group"] == "clean"]
    assert clean == ["scenes-test-clean", "scenes-test-clean_canvas", "scenes-objects-test-clean_canvas"]


def test_a_cell_that_the_first_row_skipped_gets_its_family_from_another(board: Board) -> None:
    first, *others = board.rows
    entry = first.entry.model_copy(update={"scores": first.entry.scores[:2]})
    without = replace(board, rows=(replace(first, entry=entry), *others))
    assert describe_board(without)["cells"] == describe_board(board)["cells"]


def test_rows_of_one_label_can_be_told_apart(board: Board) -> None:
    rows = [relabelled(row, label) for row, label in zip(board.rows, ("same", "same", " "), strict=True)]
    named = describe_board(replace(board, rows=tuple(rows)))["rows"]
    first, second, third = (row.id for row in rows)
    assert [row["name"] for row in named] == [f"same ({first})", f"same ({second})", f"({third})"]


def relabelled(row: Any, label: str) -> Any:
    manifest = row.entry.manifest.model_copy(update={"label": label})
    return replace(row, entry=row.entry.model_copy(update={"manifest": manifest}))


def test_a_board_without_rows_has_nothing_to_compare(board: Board) -> None:
    assert describe_board(replace(board, rows=())) == {"suite": board.label, "rows": [], "cells": []}


def test_keys_are_given_for_every_number_of_images(board: Board) -> None:
    hits = board.rows[0].hits
    assert describe_hits("x", hits)["keys"] == {str(n): philox_key(n) for n in sorted({24, 144})}
