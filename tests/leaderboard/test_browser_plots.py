"""The pages with charts, in a browser: they show what Python computed, and what they show is in the URL."""

from __future__ import annotations

import itertools
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_boards import attacked_and_timed, made_board
from made_timings import timing_of
from opened_pages import OpenPage

from leaderboard import site
from leaderboard.boards import Board, Boards
from leaderboard.entries import read_entry, read_reference
from leaderboard.pages import plots
from leaderboard.ranking import pareto
from leaderboard.rendering import Script, make_environment

COSTS = ("parameters", "image", "text")
READ_RAMP = """() => {
  const found = [];
  for (const by of ["r1", "lost"]) for (let step = 0; step < 10; step += 1) {
    const cell = document.createElement("td");
    cell.className = `${by}-${step}`;
    document.querySelector("#map tbody tr:last-child").append(cell);
    const { color, backgroundColor } = getComputedStyle(cell);
    cell.remove();
    found.push([`${by}-${step}`, color, backgroundColor]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def slug(made_site: Path) -> str:
    return next(path.parent.name for path in made_site.glob("*/plots.html"))


def draw(page: Any, holder: str) -> Any:
    """The page once its chart stands."""
    page.wait_for_selector(f"{holder}[data-drawn] svg")
    return page


def after_redraw(page: Any, holder: str, act: Any) -> None:
    """Does something, and waits until the chart was drawn again."""
    drawn = page.locator(holder).get_attribute("data-drawn")
    act()
    page.wait_for_function("([h, n]) => document.querySelector(h).dataset.drawn !== n", arg=[holder, drawn])


@pytest.mark.parametrize("measure", ["r1", "lost"])
def test_the_front_is_the_one_that_python_finds(open_page: OpenPage, slug: str, measure: str) -> None:
    page = draw(open_page(f"{slug}/plots.html"), "#plot")
    rows = page.evaluate("rove.plots")
    sign = -1 if measure == "r1" else 1
    page.select_option("#choose-y", measure)
    for x, z in itertools.product(COSTS, ("none", "text")):
        page.select_option("#choose-x", x)
        page.select_option("#choose-z", z)
        costs = [cost for cost in (x, z) if cost != "none"]
        table = np.array([[sign * row["exact"][measure], *(row[cost] for cost in costs)] for row in rows])
        expected = {row["id"] for row, is_best in zip(rows, pareto(table), strict=True) if is_best}
        assert set(page.locator("#front").get_attribute("data-ids").split()) == expected


def test_rows_of_other_hardware_are_not_drawn_and_counted(
    open_page: OpenPage, real_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROVE_CACHE", str(tmp_path / "cache"))
    real = attacked_and_timed(read_entry(real_bundle, read_reference(real_bundle)))
    timing = timing_of(real.entry.manifest, rerank_k=0)
    real = real._replace(entry=real.entry.model_copy(update={"timings": (timing,)}))
    board = made_board(real, 5, real_bundle)
    moved = replace(
        board, rows=(*board.rows[:3], *(replace(row, entry=_elsewhere(row.entry)) for row in board.rows[3:]))
    )
    page = draw(open_page(write_plots(moved, tmp_path / "site")), "#plot")
    assert page.locator("#left-out").text_content() == "5 of 5 submissions are drawn."
    page.select_option("#choose-x", "text")
    assert "2 not, because they were measured on other hardware." in page.locator("#left-out").text_content()
    page.select_option("#choose-hardware", index=1)
    assert page.locator("#left-out").text_content().startswith("2 of 5 submissions are drawn. 3 not")
    page.select_option("#choose-x", "query")
    assert page.locator("#choose-hardware").text_content() == "x86-64, 2 cores (5)"
    assert page.locator("#choose-items").text_content() == "1,000,000 items"
    assert page.locator("#front").get_attribute("data-ids") == board.rows[0].id


def _elsewhere(entry: Any) -> Any:
    environment = entry.manifest.environment.model_copy(update={"processor": "Another <b>CPU</b>"})
    return entry.model_copy(update={"manifest": entry.manifest.model_copy(update={"environment": environment})})


def write_plots(board: Board, folder: Path) -> Path:
    """The page of trade-offs alone."""
    shutil.copytree(Path(site.__file__).parent / "static", folder / "static", ignore=shutil.ignore_patterns("*.webp"))
    (folder / board.slug).mkdir()
    environment = make_environment()
    for part in plots.parts(board):
        found = Boards((board,), ())
        text = (
            part.text()
            if isinstance(part, Script)
            else environment.get_template(part.template).render(part.context, site=found, board=board, page=part)
        )
        (folder / part.path).write_text(text)
    return folder / board.slug / "plots.html"


@pytest.mark.parametrize("measure", ["r1", "lost"])
def test_the_map_of_a_submission_agrees_with_the_pages_of_the_shifts(
    open_page: OpenPage, slug: str, measure: str
) -> None:
    page = open_page(f"{slug}/shifts.html")
    chosen = page.locator("#choose-of option").nth(3).get_attribute("value")
    page.select_option("#choose-of", chosen)
    page.select_option("#choose-by", measure)
    cell = page.locator("#map td[data-lane=gaussian_noise][data-column='5']")
    value, low, high = re.findall(r"-?\d+\.\d", re.sub(r"(\.\d)", r"\1 ", cell.text_content()))
    survivors = open_page(f"{slug}/shifts/gaussian_noise.html")
    line = survivors.locator(f"tr:has(a[href='../submissions/{chosen}.html'])").last
    told = line.locator("td").last.text_content()
    assert (f"lost {value} ({low} to {high})" if measure == "lost" else f"{value}{low} to {high}") in told


def test_the_view_is_in_the_url_and_comes_back_from_it(open_page: OpenPage, slug: str) -> None:
    page = draw(open_page(f"{slug}/shifts.html"), "#curves")
    assert "?" not in page.url
    ids = page.evaluate("rove.shifts.rows.map((row) => row.id)")
    after_redraw(page, "#curves", lambda: page.get_by_role("button", name=f"Remove {ids[0]}", exact=True).click())
    after_redraw(page, "#curves", lambda: page.locator("#chooser input").fill(ids[7]))
    page.select_option("#choose-by", "lost")
    page.select_option("#choose-of", ids[7])
    assert page.url.endswith(f"?of={ids[7]}&by=lost&s={ids[1]},{ids[2]},{ids[3]},{ids[7]}")
    again = draw(open_page(page.url), "#curves")
    assert again.locator(".chosen li").all_text_contents() == page.locator(".chosen li").all_text_contents()
    assert again.locator("#map").inner_text() == page.locator("#map").inner_text()
    assert again.locator("#choose-of").input_value() == ids[7]


def test_what_a_url_asks_for_in_vain_is_left_out(open_page: OpenPage, slug: str) -> None:
    page = draw(open_page(f"{slug}/shifts.html?of=nobody&by=nothing&s=nobody,<script>"), "#curves")
    assert page.locator("#choose-of").input_value() == "mean"
    assert page.locator(".chosen li").count() == 0


def test_at_most_six_are_drawn(open_page: OpenPage, slug: str) -> None:
    page = draw(open_page(f"{slug}/attacks.html"), "[data-panel='0']")
    for row in page.evaluate("rove.attacks.rows.map((row) => row.id)")[4:7]:
        page.locator("#chooser input").fill(row)
    assert page.locator(".chosen li").count() == 6
    assert "At most 6" in page.locator("#chooser [role=status]").text_content()


def test_charts_follow_the_colour_scheme_and_the_width(open_page: OpenPage, slug: str) -> None:
    page = draw(open_page(f"{slug}/plots.html"), "#plot")
    light = page.locator("#plot svg").inner_html()
    after_redraw(page, "#plot", lambda: page.emulate_media(color_scheme="dark"))
    assert "#e6eaf0" in page.locator("#plot svg").inner_html()
    assert "#e6eaf0" not in light
    after_redraw(page, "#plot", lambda: page.set_viewport_size({"width": 400, "height": 900}))
    assert page.locator("#plot svg").bounding_box()["width"] <= 400


def test_a_point_tells_its_figures_with_their_intervals(open_page: OpenPage, slug: str) -> None:
    page = draw(open_page(f"{slug}/plots.html"), "#plot")
    page.locator("#plot svg .mark-symbol path").first.hover(force=True)
    tip = page.locator(".chart-tip")
    tip.wait_for()
    assert re.search(r"R@1 under shift: \d+\.\d % \(\d+\.\d to \d+\.\d\)", tip.text_content())
    page.keyboard.press("Escape")
    tip.wait_for(state="hidden")


def test_doubtful_results_are_hollow_and_examined_ones_dashed(open_page: OpenPage, slug: str) -> None:
    page = draw(open_page(f"{slug}/attacks.html"), "#examined")
    card = "#fff"
    hollow = [page.locator(f"[data-panel='{panel}'] .mark-symbol path[fill='{card}']").count() for panel in (0, 1)]
    assert hollow == [0, 4]
    assert page.locator("#examined .mark-line path[stroke-dasharray]").count() == 4
    assert page.locator("[data-panel='0'] .mark-line path[stroke-dasharray]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_can_be_read_on_every_colour_of_the_map(open_page: OpenPage, slug: str, scheme: str) -> None:
    page = open_page(f"{slug}/shifts.html", scheme=scheme)
    ramp = page.evaluate(READ_RAMP)
    assert min(_contrast(ink, paper) for _, ink, paper in ramp) >= 4.5
    for measure in ("r1", "lost"):
        shades = [_luminance(paper) for name, _, paper in ramp if name.startswith(measure)]
        assert shades == sorted(shades, reverse=scheme == "light")


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance of `rgb(r, g, b)`."""
    levels = np.array([int(level) / 255 for level in re.findall(r"\d+", colour)[:3]])
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("name", ["plots", "shifts", "attacks"])
def test_without_javascript_the_figures_are_there(browser: Any, made_site: Path, slug: str, name: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto((made_site / slug / f"{name}.html").as_uri())
        for summary in page.locator("summary").all():
            summary.click()
        assert re.search(r"\d+\.\d to \d+\.\d", page.locator("main table").first.inner_text())
        assert not page.locator(".tools").first.is_visible()
    finally:
        context.close()
