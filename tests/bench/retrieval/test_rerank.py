"""Ranking in two stages against full sorting by both scores, and what reordering a pool can never change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import InputError, ProtocolError
from bench.evaluate import Distractors, Evaluation, evaluate
from bench.evidence import Evidence, read_evidence
from bench.metrics import hit
from bench.retrieval import rerank as module
from bench.retrieval.exact import Positives, rank_positives
from bench.retrieval.rerank import PairScores, SecondStage, rerank_positives
from bench.types import Collection

few = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def from_table(table: np.ndarray) -> PairScores:
    return lambda queries, items: table[queries, items].astype(np.float32)


def random_case(rng: np.random.Generator, ties: bool) -> tuple[np.ndarray, np.ndarray, Positives, np.ndarray, int]:
    """Queries, a gallery in which only some items are anybody's positive, the positives, second scores, and k."""
    n_queries, n_items = int(rng.integers(1, 30)), int(rng.integers(2, 30))
    n_own = int(rng.integers(1, n_items + 1))
    counts = rng.integers(1, min(6, n_own) + 1, size=n_queries)
    items = [np.sort(rng.choice(n_own, size=count, replace=False)) for count in counts]
    positives = Positives(np.arange(n_queries), np.append(0, np.cumsum(counts)), np.concatenate(items))
    k = int(rng.integers(1, n_items + 5))
    if ties:
        queries, gallery = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (n_queries, n_items))
        return queries, gallery, positives, rng.integers(-2, 3, (n_queries, n_items)), k
    queries, gallery = (rng.standard_normal((n, 8), dtype=np.float32) for n in (n_queries, n_items))
    return queries, gallery, positives, rng.standard_normal((n_queries, n_items)), k


def by_sorting(
    first: np.ndarray, second: np.ndarray, positive: np.ndarray, k: int, tie_break: np.ndarray
) -> list[tuple[int, int]]:
    """All items of one query in their final order as (item, 1-based place); only equal items obey `tie_break`."""
    rows = range(len(first))
    pool = set(sorted(rows, key=lambda row: (-first[row], row))[:k])
    final = sorted(
        rows, key=lambda row: (row not in pool, -second[row] if row in pool else -first[row], tie_break[row], row)
    )
    return [(row, place + 1) for place, row in enumerate(final) if positive[row]]


def own_of(positives: Positives, number: int) -> np.ndarray:
    return positives.items[positives.offsets[number] : positives.offsets[number + 1]]


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(25))
def test_equals_a_full_sort_by_both_scores(seed: int, ties: bool) -> None:
    queries, gallery, positives, second, k = random_case(np.random.default_rng(seed), ties)
    ranking = rerank_positives(queries, gallery, positives, k, from_table(second), top=7)
    for number in range(len(queries)):
        part = slice(positives.offsets[number], positives.offsets[number + 1])
        first = np.array([float(np.dot(queries[number].astype(np.float64), item)) for item in gallery])
        positive = np.isin(np.arange(len(gallery)), own_of(positives, number))
        lost = by_sorting(first, second[number], positive, k, positive)
        won = by_sorting(first, second[number], positive, k, ~positive)
        assert ranking.items[part].tolist() == [row for row, _ in lost] == [row for row, _ in won]
        assert ranking.pessimistic[part].tolist() == [place for _, place in lost]
        assert ranking.optimistic[part].tolist() == [place for _, place in won]
        everything = by_sorting(first, second[number], np.full(len(gallery), True), k, np.zeros(len(gallery)))
        best = [row for row, _ in everything][:7]
        assert ranking.top[number].tolist() == best + [-1] * (7 - len(best))
    assert {ranking.pessimistic.dtype, ranking.optimistic.dtype, ranking.items.dtype, ranking.top.dtype} == {
        np.dtype(np.int32)
    }


def test_queries_find_their_own_by_the_stand_ins() -> None:
    rng = np.random.default_rng(9)
    queries, gallery, positives, second, _ = random_case(rng, ties=False)
    stand_ins = rng.standard_normal(gallery.shape, dtype=np.float32)
    ranking = rerank_positives(queries, gallery, positives, 4, from_table(second), stand_ins=stand_ins)
    for number in range(len(queries)):
        positive = np.isin(np.arange(len(gallery)), own_of(positives, number))
        first = np.where(positive, stand_ins @ queries[number], gallery @ queries[number])
        part = slice(positives.offsets[number], positives.offsets[number + 1])
        expected = by_sorting(first, second[number], positive, 4, positive)
        assert list(zip(ranking.items[part], ranking.pessimistic[part], strict=True)) == expected


def test_one_query_by_hand() -> None:
    gallery = np.array([[0.9], [0.8], [0.7], [0.7], [0.1]], dtype=np.float32)
    positives = Positives(np.array([0]), np.array([0, 3]), np.array([1, 2, 3]))
    second = np.array([[-1.0, -2.0, -1.0, 5.0, 9.0]])
    ranking = rerank_positives(np.ones((1, 1), np.float32), gallery, positives, 3, from_table(second), top=4)
    assert ranking.items.tolist() == [2, 1, 3]
    assert ranking.pessimistic.tolist() == [2, 3, 4]
    assert ranking.optimistic.tolist() == [1, 3, 4]
    assert ranking.top.tolist() == [[0, 2, 1, 3]]


@few
@given(seed=st.integers(0, 10**6))
def test_a_pool_of_k_changes_no_hit_at_k_or_deeper(seed: int) -> None:
    queries, gallery, positives, second, k = random_case(np.random.default_rng(seed), ties=False)
    first = rank_positives(queries, gallery, positives)
    final = rerank_positives(queries, gallery, positives, k, from_table(second))
    for cutoff in range(k, len(gallery) + 1):
        assert np.array_equal(hit(final, cutoff), hit(first, cutoff))
    outside = first.pessimistic > k
    assert np.array_equal(final.pessimistic[outside], first.pessimistic[outside])
    assert np.array_equal(final.optimistic[outside], first.optimistic[outside])


@few
@given(seed=st.integers(0, 10**6))
def test_with_ties_at_the_edge_hits_stay_between_losing_and_winning_them(seed: int) -> None:
    queries, gallery, positives, second, k = random_case(np.random.default_rng(seed), ties=True)
    first = rank_positives(queries, gallery, positives)
    final = rerank_positives(queries, gallery, positives, k, from_table(second))
    starts = first.offsets[:-1]
    for cutoff in range(k, len(gallery) + 1):
        hits = [ranks[starts] <= cutoff for ranks in (first.pessimistic, final.pessimistic, first.optimistic)]
        assert (hits[0] <= hits[1]).all()
        assert (hits[1] <= hits[2]).all()
    assert np.array_equal(final.pessimistic[starts] <= k, final.optimistic[starts] <= k)


@few
@given(seed=st.integers(0, 10**6), ties=st.booleans())
def test_the_first_stage_as_its_own_second_stage_changes_nothing(seed: int, ties: bool) -> None:
    queries, gallery, positives, _, _ = random_case(np.random.default_rng(seed), ties)
    whole = len(gallery) + 3
    first = rank_positives(queries, gallery, positives)
    again = rerank_positives(queries, gallery, positives, whole, from_table(queries.astype(float) @ gallery.T))
    for name in ("pessimistic", "optimistic", "items", "top"):
        assert np.array_equal(getattr(first, name), getattr(again, name))


def test_each_pair_is_asked_once_in_bounded_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    queries, gallery = (rng.standard_normal((n, 4), dtype=np.float32) for n in (9, 12))
    rows = np.array([8, 3, 5])
    positives = Positives(rows, np.arange(4), np.array([2, 2, 11]))
    asked: list[np.ndarray] = []

    def score(some: np.ndarray, items: np.ndarray) -> np.ndarray:
        asked.append(np.stack([some, items], axis=1))
        return (some * 100 - items).astype(np.float32)

    rerank_positives(queries, gallery, positives, 5, score)
    assert [len(batch) for batch in asked] == [7, 7, 1]
    pairs = np.concatenate(asked)
    best = [(row, item) for row in rows for item in np.argsort(-(gallery @ queries[row]))[:5]]
    assert sorted(map(tuple, pairs.tolist())) == sorted(best)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_names_the_pair_whose_score_is_not_finite(value: float) -> None:
    table = np.zeros((4, 6))
    table[2, 5] = value
    units = np.eye(6, dtype=np.float32)
    positives = Positives(np.arange(4), np.arange(5), np.arange(4))
    with pytest.raises(ProtocolError, match="query 2 with item 5"):
        rerank_positives(units[:4], units, positives, 6, from_table(table))


@pytest.mark.parametrize("wrong", [np.zeros(3, np.float32), np.zeros((24, 1), np.float32), np.zeros(24)])
def test_refuses_scores_of_another_shape_or_dtype(wrong: np.ndarray) -> None:
    units = np.eye(6, dtype=np.float32)
    positives = Positives(np.arange(4), np.arange(5), np.arange(4))
    with pytest.raises(ProtocolError, match="scored 24 pairs with float"):
        rerank_positives(units[:4], units, positives, 6, lambda queries, items: wrong)
    with pytest.raises(InputError, match="k is 0"):
        rerank_positives(units[:4], units, positives, 0, from_table(np.zeros((4, 6))))


@dataclass(frozen=True)
class Blank:
    id: str
    sha256: str = ""

    def decode(self) -> PIL.Image.Image:
        return PIL.Image.new("RGB", (8, 8))


@pytest.fixture
def collection() -> Collection:
    positives = np.array([(image, caption) for image in range(6) for caption in (2 * image, 2 * image + 1)])
    images = [Blank(str(image)) for image in range(6)]
    return Collection("toy", images, [f"caption {i}" for i in range(12)], positives, labels=np.arange(6) // 3)


def evidence_of(evaluation: Evaluation, folder: Path) -> dict[str, Evidence]:
    (folder / "evidence.parquet").write_bytes(evaluation.evidence)
    return dict(read_evidence(folder / "evidence.parquet"))


def check_direction(
    part: Evidence, queries: np.ndarray, gallery: np.ndarray, own: list[list[int]], table: np.ndarray, k: int
) -> None:
    for query, items in enumerate(own):
        first = np.array([float(queries[query] @ item) for item in gallery])
        positive = np.isin(np.arange(len(gallery)), items)
        expected = by_sorting(first, table[query], positive, k, positive)
        pairs = slice(part.ranks.offsets[query], part.ranks.offsets[query + 1])
        assert part.items[pairs].tolist() == [item for item, _ in expected]
        assert part.ranks.pessimistic[pairs].tolist() == [place for _, place in expected]


def test_evaluate_ranks_by_both_stages_in_both_directions_among_distractors(
    collection: Collection, tmp_path: Path
) -> None:
    rng = np.random.default_rng(6)
    images, texts = (rng.standard_normal((n, 5), dtype=np.float32) for n in (6 + 3, 12 + 4))
    images, texts = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (images, texts))
    table = rng.standard_normal((9, 16))
    score = from_table(table)
    second = SecondStage(8, {"t2i": score, "i2t": score})
    distractors = Distractors(images[6:], texts[12:])
    found = evaluate(collection, images[:6], texts[:12], ("t2i", "i2t"), distractors, second)
    parts = evidence_of(found, tmp_path)
    check_direction(parts["t2i"], texts[:12], images, [[i // 2] for i in range(12)], table.T, 8)
    check_direction(parts["i2t"], images[:6], texts, [[2 * i, 2 * i + 1] for i in range(6)], table, 8)
    assert (parts["i2t"].top.max(), parts["t2i"].top.max()) == (15, 8)


def test_evaluate_leaves_a_direction_without_a_second_stage_as_it_is(collection: Collection, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    images, texts = (rng.standard_normal((n, 5), dtype=np.float32) for n in (6, 12))
    second = SecondStage(6, {"t2i": from_table(rng.standard_normal((6, 12)))})
    directions = ("t2i", "i2t", "i2i")
    plain = evidence_of(evaluate(collection, images, texts, directions), tmp_path)
    final = evidence_of(evaluate(collection, images, texts, directions, second=second), tmp_path)
    same = [np.array_equal(plain[name].ranks.pessimistic, final[name].ranks.pessimistic) for name in directions]
    assert same == [False, True, True]
