"""Comparing in a browser: the numbers of `rove compare`, whatever is chosen is in the URL, and the table as a file."""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from observers import Silent
from opened_pages import OpenPage, find_violations

from bench.bundle import make_bundle, read_results
from bench.run import RunSettings, run_suite
from bench.stats import _kept_weights as draw_weights
from bench.stats import bootstrap, compare, holm, interval, p_value
from bench.submission import find_submission
from bench.suites import Suite
from bench.summary import Scores, mean_held
from bench.summary import compare as compare_results
from leaderboard.boards import Boards, read_boards
from leaderboard.entries import Hits
from leaderboard.pages.compare import philox_key
from leaderboard.site import write_site

PLACE = "small-v1-draft/compare.html"


@pytest.fixture(scope="module")
def other_bundle(toys: Path, suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy again, blind to most of its colours."""
    folder = tmp_path_factory.mktemp("dull")
    shutil.copytree(toys / "colours", folder / "dull")
    model = (folder / "dull/model.py").read_text()
    changed = model.replace("np.sqrt(shares)", "np.sqrt(shares) * (np.arange(len(PALETTE)) > 4)")
    assert changed != model
    (folder / "dull/model.py").write_text(changed)
    manifest = folder / "dull/submission.toml"
    manifest.write_text(manifest.read_text().replace('name = "colours"', 'name = "dull"'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROVE_CACHE", str(folder / "cache"))
        submission = find_submission(str(folder / "dull"))
        run = run_suite(submission, suite, RunSettings(output=folder / "run", batch_size=16), Silent())
    return make_bundle(run.folder, folder / "bundle", overwrite=False)


@pytest.fixture(scope="module")
def real_site(real_bundle: Path, other_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of two submissions that were really scored."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROVE_CACHE", str(folder / "cache"))
        write_site(read_boards([real_bundle, other_bundle]), folder / "site")
    return folder / "site"


def open_compared(open_page: OpenPage, path: Path | str, **how: Any) -> Any:
    page = open_page(path, **how)
    page.get_by_text("Compared over").wait_for()
    return page


def download(page: Any) -> list[dict[str, str]]:
    with page.expect_download() as caught:
        page.get_by_role("button", name="Download CSV").click()
    return list(csv.DictReader(io.StringIO(Path(caught.value.path()).read_text(encoding="utf-8-sig"))))


def test_weights_are_those_of_numpy(open_page: OpenPage) -> None:
    page = open_page(PLACE)
    digest = """async ([nImages, key]) => {
      const weights = await rove.bootstrap.drawWeights(nImages, key);
      const hashed = new Uint8Array(await crypto.subtle.digest("SHA-256", weights));
      return [...hashed].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    }"""
    for n_images in (1, 24, 200, 1000):
        expected = hashlib.sha256(draw_weights(n_images, 10_000, 0).tobytes()).hexdigest()
        assert page.evaluate(digest, [n_images, philox_key(n_images)]) == expected, n_images


def test_sums_intervals_and_p_values_are_those_of_the_statistics(open_page: OpenPage) -> None:
    rng, n_images = np.random.default_rng(3), 24
    queries = 5.0 * (rng.random(n_images) < 0.1)
    queries[0] = 5.0  # so few queries that some resamples hold none
    columns = [rng.integers(0, largest + 1, n_images) for largest in (1, 5, 255, 0, 1, 1, 7)]
    columns[0] = rng.binomial(queries.astype(int), 0.6)
    sums = np.stack([*columns, queries], axis=1).astype(float)
    totals = bootstrap(sums, np.ones(n_images)) * n_images
    page = open_page(PLACE)
    found = page.evaluate(
        """async ([nImages, key, columns]) => {
          const { drawWeights, sumColumns, interval, pValue } = rove.bootstrap;
          const weights = await drawWeights(nImages, key);
          const sums = await sumColumns(weights, columns.map((column) => Uint8Array.from(column)));
          const ratios = sums[0].map((value, row) => value / sums.at(-1)[row] - 0.5);
          return { first: sums.map((column) => [...column.slice(0, 200)]), ends: interval(ratios), p: pValue(ratios),
                   none: interval(new Float64Array(10).fill(NaN)) };
        }""",
        [n_images, philox_key(n_images), sums.T.astype(int).tolist()],
    )
    np.testing.assert_array_equal(np.array(found["first"]).T, np.rint(totals[:200]))
    ratios = bootstrap(sums[:, :1], queries)[:, 0] - 0.5
    assert 0 < np.isnan(ratios).mean() < 0.5
    ends = interval(ratios)
    assert found["ends"] == pytest.approx([ends.low, ends.high], abs=1e-12)
    assert found["p"] == pytest.approx(p_value(ratios), abs=1e-15)
    assert found["none"] is None
    p_values = np.array([0.04, 0.01, 0.04, 1.0, 0.0002, 0.03])
    assert page.evaluate("(values) => rove.bootstrap.holm(values)", p_values.tolist()) == pytest.approx(holm(p_values))


def test_cells_families_and_all_have_the_numbers_of_rove_compare(
    open_page: OpenPage, real_site: Path, real_bundle: Path, other_bundle: Path
) -> None:
    page = open_compared(open_page, f"{real_site / PLACE}?a=colours&b=dull&margin=5")
    rows = {(row["level"], "" if row["level"] == "overall" else row["name"]): row for row in download(page)}
    compared = compare_results(read_results(real_bundle), read_results(other_bundle), 0.05)
    expected = {(row.kind, "" if row.kind == "overall" else row.name): row for row in compared}
    assert rows.keys() == expected.keys()
    assert len({row.difference.value for row in compared}) > 3
    for place, row in expected.items():
        found, ends = rows[place], row.difference
        numbers = [float(found[name]) for name in ("r1_a", "r1_other", "difference", "low", "high", "p_holm")]
        assert numbers == pytest.approx([row.a, row.b, ends.value, ends.low, ends.high, row.p_holm], abs=1e-9), place
        decided = "better" if ends.low > 0 else "worse" if ends.high < 0 else "equal" if row.equivalent else "undecided"
        assert found["verdict"] == decided


def test_families_are_averaged_as_the_summary_averages_them(
    open_page: OpenPage, real_site: Path, real_bundle: Path, other_bundle: Path
) -> None:
    page = open_compared(open_page, f"{real_site / PLACE}?a=colours&b=dull")
    rows = {row["name"]: row for row in download(page) if row["level"] != "cell"}
    ours, theirs = (Scores(read_results(bundle)).families for bundle in (real_bundle, other_bundle))
    pairs = {name: (ours[name].r1, theirs[name].r1) for name in ours}
    pairs["Overall"] = tuple(mean_held(list(families.values())).r1 for families in (ours, theirs))
    assert rows.keys() == pairs.keys()
    differences = {name: compare(a[0], b[0], a[1], b[1]) for name, (a, b) in pairs.items()}
    adjusted = dict(zip(ours, holm(np.array([differences[name].p_value for name in ours])), strict=True))
    for name, difference in differences.items():
        ends, row = interval(pairs[name][0][1]), rows[name]
        expected = [pairs[name][0][0], ends.low, ends.high, difference.value, *vars(difference.interval).values()]
        found = [row[column] for column in ("r1_a", "r1_a_low", "r1_a_high", "difference", "low", "high")]
        assert [float(value) for value in found] == pytest.approx(expected, abs=1e-9), name
        assert float(row["p_holm"]) == pytest.approx(adjusted.get(name, difference.p_value), abs=1e-12)


@pytest.fixture(scope="module")
def uneven_site(real_bundle: Path, other_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of the two has one cell on other items, and lacks another."""
    folder = tmp_path_factory.mktemp("uneven")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROVE_CACHE", str(folder / "cache"))
        board = read_boards([real_bundle, other_bundle]).boards[0]
        rows = tuple(replace(row, hits=uneven(row.hits)) if row.id == "dull" else row for row in board.rows)
        write_site(Boards((replace(board, rows=rows),), ()), folder / "site")
    return folder / "site"


def uneven(hits: Hits) -> Hits:
    names = tuple(name.replace("typo_keyboard", "unknown") for name in hits.names)
    items = tuple(
        "f" * 16 if "gaussian_noise-5" in name else found for name, found in zip(names, hits.items, strict=True)
    )
    return Hits(names, items, hits.n_images, hits.hits, hits.queries)


def test_cells_on_other_items_are_listed_and_not_compared(open_page: OpenPage, uneven_site: Path) -> None:
    page = open_compared(open_page, f"{uneven_site / PLACE}?a=colours&b=dull")
    listed = page.locator("#found li").all_inner_texts()
    assert sorted(listed) == [
        "scenes/test gaussian_noise:5: scored on other items",
        "scenes/test typo_keyboard:3: not scored by dull",
    ]
    names = [row["name"] for row in download(page)]
    assert "scenes/test gaussian_noise:1" in names
    assert not {"scenes/test gaussian_noise:5", "scenes/test typo_keyboard:3", "typo"} & set(names)


def test_what_is_chosen_is_in_the_url_and_back(open_page: OpenPage) -> None:
    page = open_compared(open_page, PLACE)
    page.get_by_label("C, if wanted").fill("model-0003")
    page.get_by_label("B", exact=True).fill("model-0001")
    page.get_by_label("Equal within, pp").fill("2.5")
    page.get_by_label("Equal within, pp").press("Tab")
    page.get_by_text("Compared over").wait_for()
    page.get_by_role("button", name="A − C, pp").click()
    page.get_by_role("button", name="A − C, pp").click()
    assert page.url.endswith("&b=model-0001&c=model-0003&margin=2.5&sort=-difference2")
    again = open_compared(open_page, page.url)
    assert again.locator("#found table").inner_text() == page.locator("#found table").inner_text()
    assert again.get_by_role("columnheader", name="A − C, pp").get_attribute("aria-sort") == "descending"


def test_swapping_turns_the_differences(open_page: OpenPage, real_site: Path) -> None:
    page = open_compared(open_page, f"{real_site / PLACE}?a=colours&b=dull")
    before = {row["name"]: float(row["difference"]) for row in download(page)}
    page.get_by_role("button", name="Swap A and B").click()
    page.wait_for_url("**a=dull&b=colours")
    page.get_by_text("Compared over").wait_for()
    assert {row["name"]: -float(row["difference"]) for row in download(page)} == pytest.approx(before)


def test_sorting_keeps_cells_in_their_families(open_page: OpenPage, real_site: Path) -> None:
    page = open_compared(open_page, f"{real_site / PLACE}?a=colours&b=dull&sort=-difference1")
    rows = download(page)
    differences = {row["name"]: float(row["difference"]) for row in rows}
    groups = page.locator("#found tbody").evaluate_all(
        "(all) => all.map((body) => [...body.rows].map((row) => row.cells[0].firstChild.data))"
    )
    assert [group[0] for group in groups[:2]] == ["Overall", "Clean"]
    families = groups[2:]
    means = [differences[family[0]] for family in families]
    assert means == sorted(means, reverse=True)
    assert len(means) > 2
    for _, *cells in families:
        assert [differences[cell] for cell in cells] == sorted((differences[cell] for cell in cells), reverse=True)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("?a=nobody&b=model-0001", "No submission of small-v1-draft is called nobody; choose one of the list."),
        ("?a=model-0001", "Choose two submissions, A and B."),
        ("?a=model-0001&b=model-0002&c=model-0001", "One submission is chosen twice; choose different ones."),
        ("?a=__proto__&b=../../x", "No submission of small-v1-draft is called __proto__; choose one of the list."),
    ],
)
def test_what_cannot_be_compared_is_said(open_page: OpenPage, query: str, told: str) -> None:
    page = open_page(PLACE + query)
    assert page.locator("#progress").inner_text() == told
    assert page.get_by_role("button", name="Download CSV").is_disabled()


def test_compared_page_is_accessible_and_fits(open_page: OpenPage, real_site: Path) -> None:
    for width, scheme in ((360, "dark"), (1440, "light")):
        page = open_compared(open_page, f"{real_site / PLACE}?a=colours&b=dull", width=width, scheme=scheme)
        assert find_violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
