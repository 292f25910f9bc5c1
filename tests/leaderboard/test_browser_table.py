"""The table in a browser: sorting, filters and downloads say what the HTML says, and the address keeps them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from made_pages import EVIL, FORMULA, QUOTED, made_rows_board, write_pages

from leaderboard.boards import Board

OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def board() -> Board:
    return made_rows_board(n_more=120)


@pytest.fixture(scope="module")
def site(board: Board, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pages(board, tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pages(made_rows_board(), tmp_path_factory.mktemp("few"))


def labels(page: Any) -> list[str]:
    return page.locator("#board tbody th a").all_inner_texts()


def query(page: Any) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def sort_by(page: Any, key: str, modifiers: tuple[str, ...] = ()) -> None:
    before = page.url
    page.locator(f'th[data-key="{key}"] .dt-column-order').click(modifiers=list(modifiers))
    page.wait_for_url(lambda url: url != before)  # written once the rows are in order


def saved(page: Any, button: str) -> str:
    with page.expect_download() as found:
        page.click(f"#{button}")
    return Path(found.value.path()).read_bytes().decode("utf-8")


def test_rows_are_sorted_by_the_number_and_those_without_go_last_both_ways(
    board: Board, site: Path, open_page: OpenPage
) -> None:
    page = open_page(f"{site}/index.html?rows=all")
    assert labels(page) == [row.entry.label for row in board.rows]
    known = {row.entry.label: row.entry.mce.value for row in board.rows if row.entry.mce}
    for sign, sort in ((1, "mce"), (-1, "-mce")):
        sort_by(page, "mce")
        found = labels(page)
        assert query(page)["sort"] == [sort]
        assert set(found[len(known) :]) == {row.entry.label for row in board.rows if not row.entry.mce}
        values = [known[label] for label in found[: len(known)]]
        assert values == sorted(values, key=lambda value: sign * value)


def test_shift_click_sorts_by_a_second_column(board: Board, site: Path, open_page: OpenPage) -> None:
    page = open_page(f"{site}/index.html?rows=all")
    sort_by(page, "tie_group")
    sort_by(page, "submission", ("Shift",))
    expected = sorted(board.rows, key=lambda row: (row.standing.tie_group, row.entry.label.lower()))
    assert labels(page) == [row.entry.label for row in expected]
    assert query(page)["sort"] == ["tie_group,submission"]


def test_a_link_brings_back_what_was_chosen(site: Path, open_page: OpenPage) -> None:
    address = "index.html?sort=-lost&search=more&method=LoRA&most=1000000&groups=families%2Cattacks&by=lost"
    page = open_page(f"{site}/{address}")
    found = labels(page)
    assert query(page) == parse_qs(urlsplit(address).query)
    assert found
    assert all(label.startswith("more-") for label in found)
    keys = page.eval_on_selector_all("#board thead [data-key]", "heads => heads.map(head => head.dataset.key)")
    assert keys == [
        "rank", "submission", "family_noise_lost", "family_blur_lost", "family_typo_lost",
        "attacked_made_test_pgd_2_query_i2t",
    ]  # fmt: skip
    assert page.locator("#method").input_value() == "LoRA"
    page.click("#reset")
    page.wait_for_url("**/index.html")
    assert len(labels(page)) == 100


def test_filters_leave_the_rows_that_keep_to_them(board: Board, site: Path, open_page: OpenPage) -> None:
    page = open_page(f"{site}/index.html?rows=all")
    page.select_option("#method", "zero-shot")
    page.fill("#most", "0.5")
    parameters = {row.entry.label: row.entry.manifest.parameters for row in board.rows}
    methods = {row.entry.label: row.entry.manifest.submission.method for row in board.rows}
    expected = [
        label
        for label, count in parameters.items()
        if methods[label] == "zero-shot" and count is not None and count <= 500_000
    ]
    assert 0 < len(expected) < len(board.rows)
    assert labels(page) == expected
    assert page.locator("#status").inner_text() == f"{len(expected)} of {len(board.rows)} submissions"
    page.select_option("#badge", "reproduced")
    assert labels(page) == []


def test_pages_hold_a_hundred_rows_and_stand_in_the_address(board: Board, site: Path, open_page: OpenPage) -> None:
    page = open_page(f"{site}/index.html")
    page.click("#pager .dt-paging-button.next")
    assert labels(page) == [row.entry.label for row in board.rows[100:]]
    assert query(page) == {"page": ["2"]}
    page = open_page(f"{site}/index.html?page=2")
    assert labels(page) == [row.entry.label for row in board.rows[100:]]


def test_csv_holds_what_is_seen_and_no_formula(few: Path, open_page: OpenPage) -> None:
    page = open_page(f"{few}/index.html?sort=-submission&groups=shift")
    text = saved(page, "csv")
    assert text.startswith("\ufeff")
    assert text.count("\r\n") == text.count("\n") == 7
    rows = list(csv.DictReader(io.StringIO(text[1:], newline="")))
    assert [row["submission"].removeprefix("'") for row in rows] == labels(page)
    by_label = {row["submission"]: row for row in rows}
    assert f"'{FORMULA}" in by_label
    assert {EVIL, QUOTED} <= by_label.keys()
    assert not [name for name in rows[0] if name.startswith(("clean", "family", "attacked"))]
    assert rows[0]["suite"] == "made-v1"
    shown = made_rows_board().rows
    for row in shown:
        found = next(of for label, of in by_label.items() if label.removeprefix("'") == row.entry.label)
        figures = {"effective_robustness": row.standing.effective_robustness, "mce": row.entry.mce}
        for name, estimate in figures.items():
            ends = [found[name], found[f"{name}_low"], found[f"{name}_high"]]
            if estimate is None:
                assert ends == ["", "", ""]
            else:
                expected = [100 * end for end in (estimate.value, estimate.low, estimate.high)]
                assert [float(end) for end in ends] == pytest.approx(expected, abs=0.0501)
    assert any(row["effective_robustness_low"].startswith("-") for row in rows)


def test_json_holds_the_same(few: Path, open_page: OpenPage) -> None:
    page = open_page(f"{few}/index.html?groups=shift,cost")
    found = json.loads(saved(page, "json"))
    assert [row["submission"] for row in found["rows"]] == labels(page)
    for row, expected in zip(found["rows"], made_rows_board().rows, strict=True):
        place = expected.standing
        assert row["rank"] == {"value": place.place, "low": place.first, "high": place.last}
        assert row["parameters"] == expected.entry.manifest.parameters
        assert row["mce"]["value"] == (round(100 * expected.entry.mce.value, 1) if expected.entry.mce else None)


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1440, "light")])
def test_the_table_is_usable_on_any_screen(
    few: Path, site: Path, open_page: OpenPage, axe: Callable[[Any], list[str]], width: int, scheme: str
) -> None:
    assert axe(open_page(f"{few}/index.html", width, scheme)) == []
    page = open_page(f"{site}/index.html", width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.evaluate("document.querySelector('.wide').scrollTo(400, 900)")
    name, head, frame = (
        page.locator(place).first.bounding_box()
        for place in ("#board tbody th", '#board thead th[data-key="lost"]', ".wide")
    )
    assert name["x"] - frame["x"] <= 90
    assert head["y"] - frame["y"] <= 40
    if width == 360:
        assert name["x"] - frame["x"] <= 2
        assert name["width"] <= 0.45 * width


def test_without_scripts_every_row_and_column_is_there(board: Board, site: Path, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((site / "index.html").as_uri())
    rows = page.locator("#board tbody tr")
    assert rows.count() == len(board.rows)
    assert rows.last.is_visible()
    assert not page.locator("#tools").is_visible()
    context.close()


def test_without_the_library_every_row_is_still_shown(board: Board, site: Path, browser: Any) -> None:
    context = browser.new_context()
    context.route("**/dataTables.min.js", lambda route: route.abort())
    page = context.new_page()
    page.goto((site / "index.html").as_uri())
    assert page.locator("#board tbody tr").last.is_visible()
    context.close()
