"""The weights page in a browser: its scores, intervals, places and their stability against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pytest
from made_entries import FAMILIES
from made_pages import made_rows_board, write_pages

from leaderboard.boards import Board

OpenPage = Callable[..., Any]
NAMES = list(FAMILIES)


@pytest.fixture(scope="module")
def board() -> Board:
    return made_rows_board(n_more=5)


@pytest.fixture(scope="module")
def site(board: Board, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pages(board, tmp_path_factory.mktemp("weights"))


def shown(page: Any) -> list[list[str]]:
    """Per row the texts of its cells, lines apart by `|`."""
    rows = page.locator("#order tbody tr").all()
    return [["|".join(text.split("\n")) for text in row.locator("th, td").all_inner_texts()] for row in rows]


def expected(board: Board, weights: list[float], by: str) -> list[list[str]]:
    """The same, worked out row against row."""
    share = np.array(weights) / sum(weights)
    better = np.less if by == "lost" else np.greater
    scores = np.array([share @ [getattr(row.entry.families[name], by).value for name in NAMES] for row in board.rows])
    kept = np.stack([np.rint(1e4 * getattr(row.resamples, by)[:, :200].astype(float)) / 1e4 for row in board.rows])
    drawn = np.einsum("f,rfk->rk", share, kept)
    place = 1 + better(scores[:, None], scores[None] + (1e-9 if by == "r1" else -1e-9)).sum(axis=0)
    places = 1 + better(drawn[:, None], drawn[None] + (1e-9 if by == "r1" else -1e-9)).sum(axis=0)
    ends = np.quantile(drawn, (0.025, 0.975), axis=1)
    first, last = np.quantile(places, (0.025, 0.975), axis=1, method="inverted_cdf").astype(int)
    lines = []
    for row in sorted(range(len(board.rows)), key=lambda row: (place[row], row)):
        before = board.rows[row].standing.place
        by_places = before - place[row]
        moved = "same place" if not by_places else f"{'↑ up' if by_places > 0 else '↓ down'} {abs(by_places)}"
        low, high = min(ends[0, row], scores[row]), max(ends[1, row], scores[row])
        lines.append(
            [
                f"{place[row]}|{min(first[row], place[row])} to {max(last[row], place[row])}",
                board.rows[row].entry.label,
                f"{100 * scores[row]:.1f}|{100 * low:.1f} to {100 * high:.1f}",
                f"{before}|{moved}",
                f"{100 * (places[row] == place[row]).mean():.1f}",
            ]
        )
    return lines


def numbers(lines: list[list[str]]) -> np.ndarray:
    return np.array([[float(part) for part in line[2].replace("|", " to ").split(" to ")] for line in lines])


@pytest.mark.parametrize("by", ["r1", "lost"])
@pytest.mark.parametrize("weights", [(1, 1, 1), (2, 1, 0), (0, 0.3, 4.5)])
def test_scores_places_and_stability_are_those_of_numpy(
    board: Board, site: Path, open_page: OpenPage, weights: tuple[float, ...], by: str
) -> None:
    given = dict(zip(NAMES, weights, strict=True)) | {"by": by}
    page = open_page(f"{site}/weights.html?{urlencode(given)}")
    page.locator("#said:not(:empty)").wait_for()
    found, reference = shown(page), expected(board, list(weights), by)
    assert [line[:2] + line[3:] for line in found] == [line[:2] + line[3:] for line in reference]
    # Python and browsers round a half to a tenth in different ways.
    np.testing.assert_allclose(numbers(found), numbers(reference), atol=0.1001)
    assert np.mean(numbers(found) == numbers(reference)) > 0.9


def test_weights_change_the_order_at_once_and_stand_in_the_address(
    board: Board, site: Path, open_page: OpenPage
) -> None:
    page = open_page(f"{site}/weights.html")
    page.locator("#said:not(:empty)").wait_for()
    before = shown(page)
    page.fill('input[type="number"][data-family="0"]', "0")
    page.fill('input[type="number"][data-family="1"]', "0")
    page.check('input[value="lost"]')
    page.locator("#caption", has_text="lost").wait_for()
    assert parse_qs(urlsplit(page.url).query) == {NAMES[0]: ["0"], NAMES[1]: ["0"], "by": ["lost"]}
    assert [line[1] for line in shown(page)] == [line[1] for line in expected(board, [0, 0, 1], "lost")]
    assert [line[1] for line in shown(page)] != [line[1] for line in before]
    assert page.locator('input[type="range"][data-family="0"]').input_value() == "0"


def test_presets_set_weights(site: Path, open_page: OpenPage) -> None:
    page = open_page(f"{site}/weights.html?noise=3")
    page.get_by_role("button", name="Captions only").click()
    page.wait_for_url("**/weights.html?noise=0&blur=0")
    assert page.get_by_role("button", name="Captions only").get_attribute("aria-pressed") == "true"


def test_no_weight_at_all_is_said(site: Path, open_page: OpenPage) -> None:
    page = open_page(f"{site}/weights.html?noise=0&blur=0&typo=0")
    page.locator("#said:not(:empty)").wait_for()
    assert "All weights are 0" in page.locator("#said").inner_text()


def test_what_is_no_weight_counts_as_one(board: Board, site: Path, open_page: OpenPage) -> None:
    page = open_page(f"{site}/weights.html?noise=-1&blur=much&typo=1e999")
    page.locator("#said:not(:empty)").wait_for()
    assert [line[1] for line in shown(page)] == [line[1] for line in expected(board, [1, 1, 1], "r1")]
    assert urlsplit(page.url).query == ""


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1440, "light")])
def test_the_page_is_usable_on_any_screen(
    site: Path, open_page: OpenPage, axe: Callable[[Any], list[str]], width: int, scheme: str
) -> None:
    page = open_page(f"{site}/weights.html", width, scheme)
    page.locator("#said:not(:empty)").wait_for()
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
