"""The table's HTML: every figure under its column with its interval, and nothing of a stranger's as markup."""

from __future__ import annotations

import base64
import datetime
import json
import re
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from made_entries import FAMILIES
from made_pages import EVIL, REASON, STATIC, made_rows_board, render
from made_timings import timing_of

from bench.records import Estimate
from leaderboard.boards import Board
from leaderboard.history import Change, Revision
from leaderboard.pages import table, weights
from leaderboard.pages.columns import list_columns
from leaderboard.queries import list_queries
from leaderboard.rendering import Page


class Parsed(HTMLParser):
    """The ranked table: headings' keys, and per row the texts of its cells, their order and their class."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.keys: list[str] = []
        self.rows: list[list[str]] = []
        self.orders: list[list[str | None]] = []
        self.classes: list[str] = []
        self.attributes: set[str] = set()
        self.tags: list[str] = []
        self._is_board = self._is_body = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.attributes |= given.keys()
        if given.get("id") == "board":
            self._is_board = True
        if not self._is_board:
            return
        self._is_body = self._is_body or tag == "tbody"
        if tag == "th" and given.get("data-key"):
            self.keys.append(str(given["data-key"]))
        if tag == "tr" and self._is_body:
            self.rows.append([])
            self.orders.append([])
            self.classes.append(given.get("class") or "")
        if tag in ("td", "th") and self._is_body:
            self.rows[-1].append("")
            self.orders[-1].append(given.get("data-order"))

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._is_board = False

    def handle_data(self, data: str) -> None:
        if self._is_board and self._is_body and self.rows and self.rows[-1]:
            self.rows[-1][-1] += f"{data.strip()} "

    def column(self, key: str) -> list[str]:
        return [" ".join(row[self.keys.index(key)].split()) for row in self.rows]


@pytest.fixture(scope="module")
def board() -> Board:
    return made_rows_board()


@pytest.fixture(scope="module")
def page(board: Board) -> str:
    (part,) = table.parts(board)
    assert isinstance(part, Page)
    return render(board, part)


def shown(estimate: Estimate | None, scale: float = 100) -> str:
    if estimate is None:
        return ""
    return f"{scale * estimate.value:.1f} {scale * estimate.low:.1f} to {scale * estimate.high:.1f}"


def test_every_figure_stands_under_its_column_with_its_interval(board: Board, page: str) -> None:
    parsed = Parsed(page)
    expected = {
        "shifted_r1": [shown(row.entry.overall.r1) for row in board.rows if row.entry.overall],
        "lost": [shown(row.entry.overall.lost) for row in board.rows if row.entry.overall],
        "win_rate": [shown(row.standing.win_rate) for row in board.rows],
        "effective_robustness": [shown(row.standing.effective_robustness) for row in board.rows],
        "mce": [shown(row.entry.mce) for row in board.rows],
        "clean_t2i_r1": [shown(row.entry.scores[1].metrics["t2i"]["hit@1"]) for row in board.rows],
        "native_i2t_r1": [shown(row.entry.scores[0].metrics["i2t"]["hit@1"]) for row in board.rows],
        "clean_rsum": [shown(row.entry.scores[1].metrics["both"]["rsum"], 1) for row in board.rows],
    }
    for name in FAMILIES:
        expected[f"family_{name}_r1"] = [shown(row.entry.families[name].r1) for row in board.rows]
        expected[f"family_{name}_lost"] = [shown(row.entry.families[name].lost) for row in board.rows]
    assert {key: parsed.column(key) for key in expected} == expected
    assert parsed.column("rank") == [
        f"{row.standing.place} {row.standing.first} to {row.standing.last}" for row in board.rows
    ]


def test_rows_are_as_wide_as_the_head_and_only_text_has_no_order(board: Board, page: str) -> None:
    parsed = Parsed(page)
    texts = {column.key for column in list_columns(board) if column.kind == "text"}
    assert len(set(parsed.keys)) == len(parsed.keys)
    for row, orders in zip(parsed.rows, parsed.orders, strict=True):
        assert len(row) == len(parsed.keys)
        assert {key for key, order in zip(parsed.keys, orders, strict=True) if order is None} == texts


def test_what_is_missing_has_no_number_to_be_sorted_by(board: Board, page: str) -> None:
    parsed = Parsed(page)
    orders = [row[parsed.keys.index("mce")] for row in parsed.orders]
    assert orders == ["" if row.entry.mce is None else f"{100 * row.entry.mce.value:.6g}" for row in board.rows]
    assert "" in orders


def test_a_rule_stands_between_tie_groups_only(board: Board, page: str) -> None:
    groups = [row.standing.tie_group for row in board.rows]
    opens = [False, *(above != below for above, below in pairwise(groups))]
    assert [name == "apart" for name in Parsed(page).classes] == opens
    assert True in opens
    assert False in opens[1:]


def test_attacks_that_cannot_be_asked_or_trusted_are_marked(board: Board, page: str) -> None:
    parsed = Parsed(page)
    (key,) = [key for key in parsed.keys if key.startswith("attacked_")]
    by_label = dict(zip([row.entry.label for row in board.rows], parsed.column(key), strict=True))
    assert by_label["plain"] == "n/a not applicable"
    assert by_label[EVIL] == "25.0 22.5 to 27.5 unreliable"
    assert by_label["last"] == "25.0 22.5 to 27.5"
    assert f'title="{REASON}"' in page
    assert 'title="unreliable: more steps do less"' in page


def test_strangers_text_is_text_and_the_page_needs_no_inline_code(page: str) -> None:
    parsed = Parsed(page)
    assert "img" not in parsed.tags
    assert page.count("&lt;img src=x") >= 2
    assert not {name for name in parsed.attributes if name == "style" or name.startswith("on")}
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)


def test_the_first_page_is_the_same_table_from_the_root(board: Board) -> None:
    (part,) = table.first_page(board)
    assert isinstance(part, Page)
    assert part.path == "index.html"
    page = render(board, part)
    assert f'href="made-v1/submissions/{board.rows[0].id}.html"' in page
    assert 'src="static/table.js"' in page
    (nothing,) = table.first_page(None)
    assert isinstance(nothing, Page)
    assert "No results yet" in render(None, nothing)


def test_what_does_not_count_is_listed_with_its_reason(board: Board) -> None:
    change = Change(
        revision=1, event="added", bundle_sha256="a" * 64, date=datetime.date(2026, 1, 2), reason="first <b>"
    )
    gone = replace(Revision(Path(), "made-v1", "old", 1, change), withdrawn=change.model_copy(update={"reason": "bad"}))
    others = replace(board, rows=(), superseded=(Revision(Path(), "made-v1", "old", 2, change), gone))
    (part,) = table.parts(others)
    assert isinstance(part, Page)
    page = render(others, part)
    assert "lacks 3 of 9 cells" in page
    assert re.search(r"r2</td><td>superseded</td><td>2026-01-02</td><td[^>]*>first &lt;b&gt;", page)
    assert re.search(r"r1</td><td>withdrawn</td><td>2026-01-02</td><td[^>]*>bad", page)
    assert 'id="board"' not in page


def test_the_timing_shown_is_that_of_the_smallest_gallery(board: Board) -> None:
    entry = board.rows[0].entry
    large = timing_of(entry.manifest, rerank_k=0)
    small = large.model_copy(update={"gallery": large.gallery.model_copy(update={"n_synthetic": 0})})
    nothing = small.model_copy(update={"served": ()})
    assert not list_queries(entry)
    assert list_queries(entry.model_copy(update={"timings": (large, small)}))[0].timing is small
    assert list_queries(entry.model_copy(update={"timings": (nothing, large)}))[0].timing is large


@pytest.mark.parametrize("measure", ["r1", "lost"])
def test_packed_resamples_are_those_of_the_rows(board: Board, measure: weights.Measure) -> None:
    resamples = [row.resamples for row in board.rows]
    steps = np.frombuffer(base64.b64decode(weights.pack(resamples, measure)), "<i2").reshape(len(resamples), -1, 200)
    for found, of in zip(steps, resamples, strict=True):
        np.testing.assert_allclose(found / 10_000, getattr(of, measure)[:, :200], atol=0.00005001)


def test_presets_are_of_families_that_the_suite_has() -> None:
    presets = dict(weights.list_presets(["noise", "typo", "gallery", "sentence", "of-my-own"]))
    assert presets == {
        "Equal": ("noise", "typo", "gallery", "sentence", "of-my-own"),
        "Photo noise and blur": ("noise",),
        "Photos only": ("noise",),
        "Captions only": ("typo", "sentence"),
        "Galleries only": ("gallery",),
    }


def test_vendored_files_are_those_that_are_stated() -> None:
    for stated in json.loads((STATIC / "vendor" / "VENDORED.json").read_text()):
        assert sha256((STATIC / "vendor" / stated["path"]).read_bytes()).hexdigest() == stated["sha256"], stated["path"]
