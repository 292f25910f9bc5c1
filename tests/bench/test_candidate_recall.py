"""Candidate recall, read off the final ranks, against a first stage of NumPy's: with ties, under shift, on the site."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from observers import Silent
from typer.testing import CliRunner

from bench.bundle import Results, make_bundle, read_results
from bench.cli import app
from bench.data.registry import load_collection
from bench.metrics import hit
from bench.retrieval.exact import Positives, rank_positives
from bench.retrieval.rerank import rerank
from bench.run import RunSettings, run_suite
from bench.shifted import prepare_clean
from bench.submission import find_submission
from bench.suites import Suite
from bench.summary import Scores, find_candidates, summarise
from bench.worker.host import Worker, WorkerSettings
from leaderboard.boards import read_boards
from leaderboard.entries import read_entry
from leaderboard.site import write_site

K = 4


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, toys: Path, suite: Suite) -> Results:
    """The toy of two stages over the small suite, a pool of four."""
    folder = tmp_path_factory.mktemp("candidates")
    submission = find_submission(f"{toys / 'soft_colours' / 'two_stage.py'}:load")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROVE_CACHE", str(folder / "cache"))
        run_suite(submission, suite, RunSettings(output=folder / "run", batch_size=16, rerank_k=K), Silent())
    return read_results(folder / "run")


@pytest.mark.parametrize("seed", range(5))
def test_a_final_rank_up_to_k_is_a_place_in_the_pool_ties_and_all(seed: int) -> None:
    """Three scores in a gallery of twelve: most pools end in the middle of a tie, and most second scores are tied."""
    rng = np.random.Generator(np.random.Philox(seed))
    n_queries, n_items, k = 40, 12, 5
    levels = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], np.float32)
    gallery = levels[rng.integers(3, size=n_items)]
    queries = levels[rng.integers(3, size=n_queries)]
    right = rng.random((n_queries, n_items)) < 0.15
    right[np.arange(n_queries), rng.integers(n_items, size=n_queries)] = True
    _, items = np.nonzero(right)
    offsets = np.concatenate([[0], np.cumsum(right.sum(axis=1))])
    positives = Positives(np.arange(n_queries), offsets, items)
    first = rank_positives(queries, gallery, positives, top=10)
    second = rng.integers(3, size=(n_queries, n_items)).astype(np.float32)
    final = rerank(first, np.arange(n_queries), k, lambda asked, found: second[asked, found])
    scores = queries @ gallery.T
    pools = [sorted(range(n_items), key=lambda item, row=row: (-scores[row, item], item))[:k] for row in range(40)]
    expected = [float(any(right[row, item] for item in pool)) for row, pool in enumerate(pools)]
    assert hit(final, k).tolist() == expected
    assert 0 < np.mean(expected) < 1
    assert hit(first, k).tolist() != expected, "no positive was level with an edge, so nothing was tried"


def test_it_is_the_first_stages_recall_at_k(results: Results) -> None:
    """Of NumPy's first stage, in both directions of the clean canvas."""
    collection = load_collection("scenes/test").head(24)
    canvas = [prepare_clean(canvas=True)(image) for image in collection.images]
    with Worker(find_submission(_reference_of(results)), WorkerSettings()) as worker:
        images, texts = worker.encode_images(canvas), worker.encode_texts(list(collection.captions))
    units = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (images, texts)]
    scores = (units[0][:, None] * units[1]).sum(axis=2)
    right = np.zeros(scores.shape, bool)
    right[tuple(collection.positives.T)] = True
    candidates = find_candidates(results)
    assert candidates is not None
    assert candidates.k == K
    stated = candidates.cells["scenes/test clean_canvas"]
    for direction, table, own in (("i2t", scores, right), ("t2i", scores.T, right.T)):
        pools = np.argsort(-table, axis=1, kind="stable")[:, :K]
        expected = np.take_along_axis(own, pools, axis=1).any(axis=1).mean()
        assert stated[direction].value == pytest.approx(expected)
        assert stated[direction].low <= expected <= stated[direction].high


def test_means_are_those_of_r1_with_another_cutoff(results: Results) -> None:
    """Over directions, severities, shifts of a family, and families; lost against the clean canvas's own."""
    found, overall = find_candidates(results), summarise(results).overall
    assert found is not None
    assert found.clean is not None
    assert found.shifted is not None
    assert found.lost is not None
    assert overall is not None
    assert "scenes-objects/test clean_canvas" in found.cells
    assert set(found.cells["scenes-objects/test clean_canvas"]) == {"i2t"}, "images that ask for images have one stage"

    def of(cell: str) -> float:
        return float(np.mean([value.value for value in found.cells[cell].values()]))

    noise = (of("scenes/test gaussian_noise:1") + of("scenes/test gaussian_noise:5")) / 2
    gallery = (of("scenes/test gallery_mix:4") + of("scenes/test gallery_danger:1")) / 2
    night, typo = of("scenes-night/test clean_canvas"), of("scenes/test typo_keyboard:3")
    assert found.shifted.value == pytest.approx((noise + gallery + night + typo) / 4)
    assert found.clean.value == pytest.approx(of("scenes/test clean_canvas"))
    clean = {name: part.value for name, part in found.cells["scenes/test clean_canvas"].items()}
    kept = [noise / found.clean.value, night / found.clean.value, typo / found.clean.value]
    mix = of("scenes/test gallery_mix:4") / clean["t2i"], of("scenes/test gallery_danger:1") / clean["i2t"]
    assert found.lost.value == pytest.approx(1 - np.mean([*kept, np.mean(mix)]))
    assert found.shifted.value > overall.r1.value


def test_no_second_stage_can_rank_more_of_them_first(results: Results) -> None:
    first, pooled = Scores(results), Scores(results, k=K)
    assert first.records
    assert all(pooled.of(record)[0] >= first.of(record)[0] for record in first.records)


def test_one_stage_has_none(results: Results) -> None:
    alone = replace(results, manifest=results.manifest.model_copy(update={"rerank_k": None}))
    assert find_candidates(alone) is None
    assert summarise(alone).as_dict()["candidates"] is None


def test_it_is_shown_where_there_is_a_second_stage(
    results: Results, finished_run: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    two, one = (make_bundle(folder, tmp_path / name, False) for name, folder in _folders(results, finished_run))
    said = CliRunner().invoke(app, ["score", str(two)]).output
    found = read_entry(two).entry.candidates
    assert found is not None
    assert found == find_candidates(results)
    assert f"among the {K} that the second stage orders" in " ".join(said.split())
    assert f"{100 * found.cells['scenes/test gallery_mix:4']['t2i'].value:.1f}" in said
    assert "second stage orders" not in CliRunner().invoke(app, ["score", str(one)]).output
    write_site(read_boards([two, one]), tmp_path / "site")
    pages = {path.stem: path.read_text() for path in (tmp_path / "site").rglob("submissions/*.html")}
    shown = {name: "Candidate recall" in page for name, page in pages.items()}
    assert sorted(shown.values()) == [False, True], shown
    assert shown["two_stage"]


def _folders(results: Results, finished_run: object) -> list[tuple[str, Path]]:
    return [("two", results.folder), ("one", finished_run.folder)]  # type: ignore[attr-defined]


def _reference_of(results: Results) -> str:
    toys = Path(__file__).parents[1] / "toys"
    assert results.manifest.label == "two_stage"
    return f"{toys / 'soft_colours' / 'two_stage.py'}:load"
