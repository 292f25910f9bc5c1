"""Trade-offs, shifts and attacks: their figures follow from the entries, whatever the submissions are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_boards import attacked_and_timed, made_board
from made_timings import GALLERY, timing_of

from bench.records import Estimate
from leaderboard.boards import Board, unique_slugs
from leaderboard.entries import Entry, Summarised, read_entry, read_reference
from leaderboard.pages import attacks, plots, shifts
from leaderboard.queries import list_queries
from leaderboard.rendering import Page, Script

N_ROWS = 7
PICTURES = Path(shifts.__file__).parents[1] / "static"


@pytest.fixture(scope="module")
def real(real_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Summarised:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROVE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return attacked_and_timed(read_entry(real_bundle, read_reference(real_bundle)))


@pytest.fixture(scope="module")
def board(real: Summarised, real_bundle: Path) -> Board:
    return made_board(real, N_ROWS, real_bundle)


def part_of(module: Any, board: Board, kind: type, ending: str) -> Any:
    return next(part for part in module.parts(board) if isinstance(part, kind) and part.path.endswith(ending))


def tenths(fraction: float) -> int:
    """What is shown of a fraction, in tenths of a percent."""
    return int(f"{100 * fraction:.1f}".replace(".", ""))


def with_score(entry: Entry, r1: float, **manifest: Any) -> Entry:
    assert entry.overall
    overall = entry.overall.model_copy(update={"r1": Estimate(value=r1, low=r1, high=r1)})
    return entry.model_copy(
        update={"overall": overall, "manifest": entry.manifest.model_copy(update=manifest), "image_ms": 1.0}
    )


class TestTradeOffs:
    def test_a_row_is_on_the_front_where_no_other_finds_as_much_for_less(self, real: Summarised) -> None:
        entries = [
            with_score(real.entry, r1, parameters=size) for r1, size in ((0.5, 10), (0.6, 20), (0.55, 30), (0.4, None))
        ]
        fronts = plots.find_fronts([*entries[:3], entries[3].model_copy(update={"image_ms": None})])
        assert ["parameters" in front for front in fronts] == [True, True, False, False]
        assert ["ms / image" in front for front in fronts] == [False, True, False, False]

    def test_times_are_compared_inside_one_class_of_hardware_and_sizes_across(self, real: Summarised) -> None:
        slow = real.entry.manifest.environment.model_copy(update={"processor": "Another CPU"})
        weak = with_score(real.entry, 0.3, parameters=20)
        strong = with_score(real.entry, 0.6, parameters=10)
        elsewhere = weak.model_copy(update={"manifest": weak.manifest.model_copy(update={"environment": slow})})
        assert plots.find_fronts([weak, strong])[0] == []
        assert plots.find_fronts([elsewhere, strong])[0] == ["ms / image", "ms / caption"]

    def test_one_query_is_timed_through_the_index_that_finds_most(self, real: Summarised) -> None:
        timing = timing_of(real.entry.manifest, rerank_k=0)
        lossy = timing.recall.model_copy(update={"overlap": Estimate(value=0.2, low=0.1, high=0.3)})
        index = timing.index.model_copy(update={"factory": "Flat"})
        small = GALLERY.model_copy(update={"n_synthetic": 0})
        reranked = timing.model_copy(update={"rerank_k": 50, "gallery": GALLERY.model_copy(update={"n_real": 7})})
        records = (timing.model_copy(update={"recall": lossy, "index": index}), timing, reranked)
        entry = real.entry.model_copy(update={"timings": (*records, timing.model_copy(update={"gallery": small}))})
        queries = list_queries(entry)
        assert [(query.n_items, query.timing.index.factory) for query in queries] == [
            (1_000, "IVF4096,PQ64"),
            (1_000_000, "IVF4096,PQ64"),
        ]
        assert queries[0].p50_ms == 30.5

    def test_the_plot_and_the_table_have_the_same_rows(self, board: Board) -> None:
        points = part_of(plots, board, Script, "plots-data.js").value
        lines = part_of(plots, board, Page, "plots.html").context["lines"]
        assert [point["id"] for point in points] == [line["row"].id for line in lines] == [row.id for row in board.rows]
        assert points[0]["r1"] == [
            tenths(getattr(board.rows[0].entry.overall.r1, end)) for end in ("value", "low", "high")
        ]


class TestShifts:
    def test_the_data_hold_every_shifted_cell_as_it_was_scored(self, board: Board) -> None:
        data = part_of(shifts, board, Script, "shifts-data.js").value
        lanes = [tuple(lane) for lane in data["lanes"]]
        for row, told in zip(board.rows, data["rows"], strict=True):
            shifted = [score for score in row.entry.scores if score.lost is not None]
            assert len(lanes) == len(shifted) + len(row.entry.shifts)
            for score in shifted:
                column = score.cell.shift.partition(":")[2] or "collection"
                place = lanes.index((score.cell.change, column))
                expected = [tenths(end) for end in (score.lost.value, score.lost.low, score.lost.high)]
                assert told["lost"][place] == expected

    def test_seeds_are_averaged_value_and_ends(self, real: Summarised) -> None:
        score = next(score for score in real.entry.scores if score.cell.shift == "gaussian_noise:5")
        again = score.model_copy(
            update={
                "cell": score.cell.model_copy(update={"seed": 1}),
                "r1": Estimate(value=0.9, low=0.7, high=1.0),
            }
        )
        entry = real.entry.model_copy(update={"scores": (*real.entry.scores, again)})
        found = shifts.find_held(entry)[shifts.Lane("gaussian_noise", "5")].r1
        both = np.mean([(one.value, one.low, one.high) for one in (score.r1, again.r1)], axis=0)
        assert (found.value, found.low, found.high) == pytest.approx(tuple(both))

    def test_what_touches_one_direction_is_measured_against_that_direction(self, board: Board) -> None:
        data = part_of(shifts, board, Script, "shifts-data.js").value
        canvas = board.rows[0].entry.clean()
        assert canvas
        cleans = {change["name"]: data["rows"][0]["clean"][change["baseline"]][0] for change in data["changes"]}
        assert cleans["gallery_danger"] == tenths(canvas.metrics["i2t"]["hit@1"].value)
        assert cleans["gaussian_noise"] == tenths(canvas.r1.value)

    def test_survivors_stand_by_r1_under_this_very_shift(self, board: Board) -> None:
        page = part_of(shifts, board, Page, "shifts/gaussian_noise.html").context
        held = [line["row"].entry.shifts["gaussian_noise"].r1.value for line in page["lines"]]
        assert held == sorted(held, reverse=True)
        assert len(held) == N_ROWS
        assert page["best"] is page["lines"][0]
        assert page["worst"] is page["lines"][-1]

    def test_every_picture_of_a_page_exists_and_every_page_shows_something_or_says_why(self, board: Board) -> None:
        pages = [part.context for part in shifts.parts(board) if isinstance(part, Page) and "/shifts/" in part.path]
        assert len(pages) == len(board.rows[0].entry.shifts)
        for page in pages:
            assert page["pictures"] or page["captions"] or page["left_out"]
            assert all((PICTURES / "shifts" / picture["file"]).is_file() for picture in page["pictures"])

    def test_names_that_look_alike_in_a_path_have_pages_of_their_own(self, real: Summarised, board: Board) -> None:
        assert len({shift.path for shift in shifts.list_shifts(board)}) == len(board.rows[0].entry.shifts)
        assert unique_slugs(["Night/test", "night-test", "pgd_2"]) == ["night-test", "night-test--2", "pgd_2"]

    @pytest.mark.parametrize(("fraction", "step"), [(-0.2, 0), (0.0, 0), (0.0994, 0), (0.0996, 1), (0.95, 9), (1.0, 9)])
    def test_colours_rise_with_the_figure(self, fraction: float, step: int) -> None:
        assert shifts.step_of(fraction) == step

    def test_a_board_without_rows_has_its_page(self, board: Board) -> None:
        empty = Board(board.label, board.slug, board.lock, (), (), ())
        assert [type(part) for part in shifts.parts(empty)] == [Page, Script]


class TestAttacks:
    def test_only_one_threat_model_and_direction_share_a_plot(self, real: Summarised, real_bundle: Path) -> None:
        first = real.entry.attacks[0]
        other = first.model_copy(update={"cell": first.cell.model_copy(update={"threat_model": "gallery_all"})})
        stronger = first.model_copy(update={"cell": first.cell.model_copy(update={"shift": "pgd:8"}), "budget": 8})
        entry = real.entry.model_copy(update={"attacks": (*real.entry.attacks, other, stronger)})
        panels = attacks.group_results(made_board(real._replace(entry=entry), 2, real_bundle).rows)
        assert [panel.title for panel in panels] == ["pgd, query, t2i", "pgd, query, i2t", "pgd, gallery all, t2i"]
        assert [len(found) for found in panels.values()] == [4, 2, 2]

    def test_doubtful_results_are_listed_with_their_reason(self, board: Board) -> None:
        page = part_of(attacks, board, Page, "attacks.html").context
        assert {doubt["verdict"] for doubt in page["doubts"]} == {"unreliable: a larger budget does less"}
        results = part_of(attacks, board, Script, "attacks-data.js").value["rows"][0]["results"]
        assert [bool(result["doubt"]) for result in results] == [False, True]

    def test_what_was_skipped_is_listed_by_reason(self, board: Board) -> None:
        skipped = part_of(attacks, board, Page, "attacks.html").context["skipped"]
        assert len(skipped) == N_ROWS
        assert skipped[0]["cells"] == ["scenes/test typo"]


def test_no_figure_is_without_its_interval(board: Board) -> None:
    """Three numbers, or none, wherever a page's data tell a share that was estimated."""

    def check(value: Any, key: str = "") -> None:
        if isinstance(value, dict):
            for name, part in value.items():
                check(part, name)
        elif isinstance(value, list) and key in ("r1", "lost", "clean", "attacked", "asr", "canvas", "overlap"):
            figures = [value] if value and isinstance(value[0], int) else value
            assert all(figure is None or len(figure) == 3 for figure in figures)
            assert all(figure is None or figure[1] <= figure[0] <= figure[2] for figure in figures)
        elif isinstance(value, list):
            for part in value:
                check(part)

    for module in (plots, shifts, attacks):
        for part in module.parts(board):
            if isinstance(part, Script):
                check(json.loads(json.dumps(part.value)))
