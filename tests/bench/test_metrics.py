"""Metrics by hand, against a naive full sort, and against ir-measures where the definitions coincide."""

from __future__ import annotations

import itertools
import math

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import InputError
from bench.metrics import (
    METRICS,
    Ranks,
    asr_drop,
    asr_hits,
    find_metric,
    has_ties,
    hit,
    hit_expected,
    hit_optimistic,
    lower_median,
    mce,
    relative_drop,
    relative_mce,
    rsum,
    score_queries,
    summarise,
    worst_decile,
    worst_decile_terms,
)

few = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def places(scores: np.ndarray, positive: np.ndarray, positives_win: bool) -> np.ndarray:
    order = np.lexsort((~positive if positives_win else positive, -scores))
    return np.flatnonzero(positive[order]) + 1


def ranks_by_sorting(scores: np.ndarray, positive: np.ndarray) -> Ranks:
    """Ranks of a small case by full sorts.

    Args:
        scores: (n_queries, n_items).
        positive: (n_queries, n_items) bool.
    """
    rows = list(zip(scores, positive, strict=True))
    return Ranks(
        np.append(0, np.cumsum(positive.sum(axis=1))),
        np.concatenate([places(*row, positives_win=False) for row in rows]),
        np.concatenate([places(*row, positives_win=True) for row in rows]),
    )


def random_case(seed: int, n_queries: int = 40, n_items: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Quantised scores of both signs, many of them equal, and one to six positives per query."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(-6, 7, size=(n_queries, n_items)) / 4
    positive = np.zeros(scores.shape, dtype=bool)
    for row in positive:
        row[rng.choice(n_items, size=rng.integers(1, 7), replace=False)] = True
    return scores, positive


def value(metric_id: str, ranks: Ranks) -> np.ndarray:
    return find_metric(metric_id).per_query(ranks)


def naive(metric_id: str, relevant: list[bool]) -> float:
    """A metric of one query from the relevance of its gallery in ranked order."""
    n_relevant = sum(relevant)
    precision = [sum(relevant[: r + 1]) / (r + 1) for r in range(len(relevant))]
    name, _, cutoff = metric_id.partition("@")
    if name == "hit":
        return float(any(relevant[: int(cutoff)]))
    if name == "recall":
        return sum(relevant[: int(cutoff)]) / n_relevant
    if name == "ndcg":
        gained = sum(1 / math.log2(r + 2) for r in range(min(10, len(relevant))) if relevant[r])
        return gained / sum(1 / math.log2(r + 2) for r in range(min(10, n_relevant)))
    if name == "map":
        return sum(precision[r] for r in range(n_relevant) if relevant[r]) / n_relevant
    if name == "r_precision":
        return precision[n_relevant - 1]
    first = relevant.index(True) + 1
    return {"mrr": 1 / first, "med_r": float(first)}[name]


PLAIN = [metric.id for metric in METRICS if "_optimistic" not in metric.id and "_expected" not in metric.id]


@pytest.mark.parametrize("metric_id", PLAIN)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_naive_reference_with_ties_lost(metric_id: str, seed: int) -> None:
    scores, positive = random_case(seed)
    orders = [np.lexsort((row_positive, -row)) for row, row_positive in zip(scores, positive, strict=True)]
    expected = [
        naive(metric_id, row_positive[order].tolist()) for row_positive, order in zip(positive, orders, strict=True)
    ]
    np.testing.assert_allclose(value(metric_id, ranks_by_sorting(scores, positive)), expected, rtol=1e-12)


@pytest.mark.parametrize("k", [1, 5, 10])
@pytest.mark.parametrize("seed", range(3))
def test_optimistic_hit_equals_the_naive_reference_with_ties_won(k: int, seed: int) -> None:
    scores, positive = random_case(seed)
    orders = [np.lexsort((~row_positive, -row)) for row, row_positive in zip(scores, positive, strict=True)]
    expected = [row_positive[order][:k].any() for row_positive, order in zip(positive, orders, strict=True)]
    assert value(f"hit@{k}_optimistic", ranks_by_sorting(scores, positive)).tolist() == expected


def test_three_by_three_by_hand() -> None:
    scores = np.array([[-0.1, -0.2, -0.3], [-0.5, -0.5, -0.9], [0.0, 0.0, 0.0]])
    ranks = ranks_by_sorting(scores, np.eye(3, dtype=bool)[[1, 0, 2]])
    assert ranks.pessimistic.tolist() == [2, 2, 3]
    assert ranks.optimistic.tolist() == [2, 1, 1]
    assert value("hit@1", ranks).tolist() == [0, 0, 0]
    assert value("hit@1_optimistic", ranks).tolist() == [0, 1, 1]
    np.testing.assert_allclose(value("hit@1_expected", ranks), [0, 1 / 2, 1 / 3])
    np.testing.assert_allclose(value("mrr", ranks), [1 / 2, 1 / 2, 1 / 3])
    np.testing.assert_allclose(value("ndcg@10", ranks), [1 / math.log2(3), 1 / math.log2(3), 1 / 2])
    assert value("map@r", ranks).tolist() == value("r_precision", ranks).tolist() == [0, 0, 0]
    assert summarise(score_queries(ranks))[PLAIN.index("med_r")] == 2


def test_two_of_three_by_hand() -> None:
    ranks = Ranks(np.array([0, 2]), np.array([1, 3]), np.array([1, 3]))
    assert value("recall@1", ranks) == [0.5]
    assert value("hit@1", ranks) == [1.0]
    assert value("r_precision", ranks) == [0.5]
    assert value("map@r", ranks) == [0.5]
    assert value("ndcg@10", ranks) == pytest.approx((1 + 1 / 2) / (1 + 1 / math.log2(3)))


@pytest.mark.parametrize(("n_items", "n_positives"), [(1001, 1), (1001, 5), (25_010, 5)])
def test_a_constant_encoder_is_at_chance_or_below(n_items: int, n_positives: int) -> None:
    js = np.arange(n_positives)
    ranks = Ranks(np.array([0, n_positives]), 1 + js + n_items - n_positives, 1 + js)
    for k in (1, 5, 10):
        chance = 1 - math.comb(n_items - n_positives, k) / math.comb(n_items, k)
        assert value(f"hit@{k}_expected", ranks) == pytest.approx(chance, rel=1e-9)
        assert value(f"hit@{k}", ranks) == [0.0]
        assert value(f"hit@{k}_optimistic", ranks) == [1.0]
    assert has_ties(ranks)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_expected_hit_is_the_mean_over_all_orders_of_the_ties(k: int) -> None:
    scores = np.array([[2, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [3, 2, 2, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    positive = np.array([[0, 1, 1, 0, 0, 1], [1, 1, 0, 1, 0, 0], [0, 0, 0, 1, 0, 1], [0, 0, 0, 1, 0, 0]], dtype=bool)
    for row, row_positive in zip(scores, positive, strict=True):
        hits = [
            row_positive[np.lexsort((np.array(order), -row))][:k].any() for order in itertools.permutations(range(6))
        ]
        ranks = ranks_by_sorting(row[None], row_positive[None])
        assert hit_expected(ranks, k) == pytest.approx(np.mean(hits))


@few
@given(seed=st.integers(0, 10**6), k=st.integers(1, 12))
def test_ties_won_are_no_worse_than_at_random_no_worse_than_lost(seed: int, k: int) -> None:
    ranks = ranks_by_sorting(*random_case(seed, n_queries=10))
    assert (hit_optimistic(ranks, k) >= hit_expected(ranks, k)).all()
    assert (hit_expected(ranks, k) >= hit(ranks, k)).all()


@few
@given(seed=st.integers(0, 10**6))
def test_worse_ranks_never_raise_a_metric(seed: int) -> None:
    ranks = ranks_by_sorting(*random_case(seed, n_queries=10))
    later = Ranks(ranks.offsets, ranks.pessimistic + 1, ranks.optimistic + 1)
    for metric in METRICS:
        change = metric.per_query(later) - metric.per_query(ranks)
        assert ((change <= 1e-12) if metric.higher_is_better else (change > 0)).all(), metric.id


@pytest.mark.parametrize(
    ("metric_id", "measure"),
    [
        ("ndcg@10", "nDCG@10"),
        ("mrr", "RR"),
        ("hit@1", "Success@1"),
        ("hit@5", "Success@5"),
        ("hit@10", "Success@10"),
        ("recall@1", "R@1"),
        ("recall@5", "R@5"),
        ("recall@10", "R@10"),
        ("r_precision", "Rprec"),
    ],
)
def test_equals_ir_measures(metric_id: str, measure: str) -> None:
    scores, positive = random_case(7)
    ranks = ranks_by_sorting(scores, positive)
    expected = ir_measures_values(scores, positive, measure)
    np.testing.assert_allclose(value(metric_id, ranks), expected, rtol=1e-9)


def test_map_at_r_equals_average_precision_up_to_r() -> None:
    scores, positive = random_case(8)
    counts = positive.sum(axis=1)
    expected = [ir_measures_values(scores, positive, f"AP@{count}")[query] for query, count in enumerate(counts)]
    np.testing.assert_allclose(value("map@r", ranks_by_sorting(scores, positive)), expected, rtol=1e-9)


def ir_measures_values(scores: np.ndarray, positive: np.ndarray, measure: str) -> list[float]:
    """Per query; scores are replaced by strictly falling ones that put positives behind what they tie with."""
    judgements, run = [], []
    for query, (row, row_positive) in enumerate(zip(scores, positive, strict=True)):
        order = np.lexsort((row_positive, -row))
        run += [ir_measures.ScoredDoc(str(query), str(item), -float(place)) for place, item in enumerate(order)]
        judgements += [ir_measures.Qrel(str(query), str(item), 1) for item in np.flatnonzero(row_positive)]
    parsed = ir_measures.parse_measure(measure)
    by_query = {found.query_id: found.value for found in ir_measures.pytrec_eval.iter_calc([parsed], judgements, run)}
    return [by_query[str(query)] for query in range(len(scores))]


def test_summary_is_the_mean_and_for_ranks_the_lower_median() -> None:
    ranks = Ranks(np.arange(5), np.array([1, 9, 4, 2]), np.array([1, 9, 4, 2]))
    summary = dict(zip([metric.id for metric in METRICS], summarise(score_queries(ranks)), strict=True))
    assert summary["hit@1"] == 0.25
    assert summary["hit@5"] == 0.75
    assert summary["med_r"] == 2.0
    assert summary["mrr"] == pytest.approx((1 + 1 / 9 + 1 / 4 + 1 / 2) / 4)
    assert lower_median(np.array([3.0, 1.0, 2.0])) == 2.0


def test_metric_ids_are_unique_and_found() -> None:
    assert len({metric.id for metric in METRICS}) == len({metric.name for metric in METRICS}) == len(METRICS)
    assert find_metric("hit@5").name == "R@5"
    with pytest.raises(InputError, match=r"unknown metric 'r@5'; expected one of hit@1"):
        find_metric("r@5")


def test_ties_are_flagged_above_a_tenth_of_a_point() -> None:
    one_each, first = np.arange(2501), np.ones(2500, dtype=int)
    assert has_ties(Ranks(one_each, np.where(np.arange(2500) < 3, 2, 1), first))
    assert not has_ties(Ranks(one_each, np.where(np.arange(2500) < 2, 2, 1), first))


@pytest.mark.parametrize(
    ("offsets", "pessimistic", "optimistic", "message"),
    [
        ([0, 1, 1], [1], [1], "query 1 has no positive"),
        ([0, 2], [1], [1], "run from 0 to 2; expected 0 to 1"),
        ([0, 1], [1], [1, 2], "shapes"),
        ([0, 1, 2], [1, 1], [1, 2], "ranks of query 1 are impossible"),
        ([0, 1, 2], [1, 0], [1, 0], "ranks of query 1 are impossible"),
        ([0, 2], [3, 3], [1, 2], "ranks of query 0 are impossible"),
        ([0, 2], [3, 4], [2, 2], "ranks of query 0 are impossible"),
    ],
)
def test_refuses_what_cannot_be_ranks(
    offsets: list[int], pessimistic: list[int], optimistic: list[int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Ranks(np.array(offsets), np.array(pessimistic), np.array(optimistic))


def test_rsum_by_hand() -> None:
    assert rsum(np.array([0.5, 0.7, 0.8]), np.array([0.6, 0.8, 0.9])) == pytest.approx(430)
    assert rsum(np.ones((4, 3)), np.ones((4, 3))).tolist() == [600] * 4


def test_relative_drop_by_hand() -> None:
    assert relative_drop(np.array(0.8), np.array([0.6, 0.4])) == pytest.approx(0.375)
    assert relative_drop(np.array([0.8, 0.5]), np.array([[0.8, 0.8], [0.5, 0.7]])) == pytest.approx([0, -0.2])
    assert np.isnan(relative_drop(np.array(0.0), np.array([0.0])))


def test_mce_by_hand() -> None:
    errors, reference = [np.array([0.2, 0.4]), np.array([0.5])], [np.array([0.4, 0.8]), np.array([0.25])]
    assert mce(errors, reference) == pytest.approx((0.5 + 2) / 2)
    clean, reference_clean = np.array(0.1), np.array(0.2)
    assert relative_mce(errors, clean, reference, reference_clean) == pytest.approx((0.4 / 0.8 + 0.4 / 0.05) / 2)
    batches = [np.tile(error, (7, 1)) for error in errors]
    assert relative_mce(batches, np.full(7, 0.1), reference, reference_clean).shape == (7,)
    assert np.isnan(mce([np.array([0.1])], [np.array([0.0])]))


def test_worst_decile_by_hand() -> None:
    assert worst_decile(np.arange(20.0)) == pytest.approx(0.5)
    assert worst_decile(np.arange(25.0)[::-1]) == pytest.approx((0 + 1 + 0.5 * 2) / 2.5)
    assert worst_decile(np.array([0.3])) == pytest.approx(0.3)
    assert worst_decile_terms(np.arange(20.0)).shape == (20,)


def test_attack_success_by_hand() -> None:
    clean, attacked = np.array([1, 1, 1, 0, 0], dtype=bool), np.array([1, 0, 0, 1, 0], dtype=bool)
    assert asr_hits(clean, attacked) == pytest.approx(2 / 3)
    assert asr_drop(clean, attacked) == pytest.approx(1 / 5)
    assert np.isnan(asr_hits(np.zeros(3, dtype=bool), np.zeros(3, dtype=bool)))
