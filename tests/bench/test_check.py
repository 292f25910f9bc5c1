"""What `rove check` says of a second stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.check import Report, Speed, check_submission, estimate_seconds
from bench.submission import find_submission
from bench.suites import find_suite
from bench.worker.host import WorkerSettings


def checked(toys: Path, name: str) -> Report:
    return check_submission(find_submission(f"{toys / 'cheats.py'}:{name}"), WorkerSettings(), batch_size=8)


def test_a_second_stage_is_looked_at_and_timed(toys: Path) -> None:
    report = checked(toys, "honest_in_two_stages")
    assert report.passed
    details = {step.name: step.detail for step in report.steps}
    assert "bytes an image" in details["second stage"]
    assert "ms a pair (20 for each query)" in details["speed"]


@pytest.mark.parametrize("name", ["reranking_by_order", "reranking_in_batch"])
def test_scores_that_depend_on_other_pairs_do_not_pass(toys: Path, name: str) -> None:
    report = checked(toys, name)
    assert [step.name for step in report.steps if not step.passed] == ["second stage"]


def test_the_pairs_of_every_cell_count() -> None:
    suite = find_suite("demo-core-v1")
    two_ways = [cell for cell in suite.cells if set(cell.directions) == {"t2i", "i2t"}]
    suite, alone = replace(suite, cells=tuple(two_ways)), Speed(image_ms=1, text_ms=1)
    pairs = sum(6 * 20 * (cell.n_images or suite.collections[cell.collection]) for cell in two_ways)
    added = estimate_seconds(suite, replace(alone, pair_ms=2, rerank_k=20)) - estimate_seconds(suite, alone)
    assert added == pytest.approx(pairs * 2 / 1000)
