"""Metrics: per query first, averaged later, all of them functions of the ranks of a query's positives.

Ranks are pessimistic (ties count against the query) unless a name says otherwise, so that a constant encoder is never
above chance. `hit@k` (displayed as R@k) is what retrieval papers call recall@k: any positive within the first k. TREC
calls it success@k; `recall@k` here is TREC's, the fraction of the positives within the first k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import gammaln

TIES_PP = 0.1
HIT_CUTOFFS = (1, 5, 10)


@dataclass(frozen=True)
class Ranks:
    """The ranks of every query's positives, best first.

    Args:
        offsets: query q has those from `offsets[q]` to `offsets[q + 1]`, at least one, (n_queries + 1,).
        pessimistic: 1-based, ties count against the query, (n_positives,).
        optimistic: 1-based, ties count for the query, (n_positives,).
    """

    offsets: Int[np.ndarray, " n_queries+1"]
    pessimistic: Int[np.ndarray, " n_positives"]
    optimistic: Int[np.ndarray, " n_positives"]

    @property
    def counts(self) -> Int[np.ndarray, " n_queries"]:
        """How many positives each query has."""
        return np.diff(self.offsets)

    @property
    def best(self) -> Int[np.ndarray, " n_queries"]:
        """The pessimistic rank of each query's best positive."""
        return self.pessimistic[self.offsets[:-1]]

    @property
    def places(self) -> Int[np.ndarray, " n_positives"]:
        """1, 2, 3, ... within each query's positives."""
        return np.arange(1, len(self.pessimistic) + 1) - np.repeat(self.offsets[:-1], self.counts)

    def sum_by_query(self, values: np.ndarray) -> Float[np.ndarray, " n_queries"]:
        """Sums over each query's positives."""
        return np.asarray(np.add.reduceat(values.astype(np.float64), self.offsets[:-1]))


PerQuery = Float[np.ndarray, " n_queries"]


def hit_at(k: int) -> Callable[[Ranks], PerQuery]:
    """1 where any positive is among the first k."""
    return lambda ranks: (ranks.best <= k).astype(np.float64)


def recall_at(k: int) -> Callable[[Ranks], PerQuery]:
    """The fraction of the positives that is among the first k."""
    return lambda ranks: ranks.sum_by_query(ranks.pessimistic <= k) / ranks.counts


def ndcg_at(k: int) -> Callable[[Ranks], PerQuery]:
    """Discounted gain of the first k, gains 0 or 1, log2 discount, over that of the ideal order."""

    def ndcg(ranks: Ranks) -> PerQuery:
        gains = np.where(ranks.pessimistic <= k, 1 / np.log2(ranks.pessimistic + 1.0), 0)
        ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
        return np.asarray(ranks.sum_by_query(gains) / ideal[np.minimum(ranks.counts, k) - 1])

    return ndcg


def reciprocal_rank(ranks: Ranks) -> PerQuery:
    """1 / rank of the best positive; its mean is MRR."""
    return np.asarray(1 / ranks.best)


def average_precision_at_r(ranks: Ranks) -> PerQuery:
    """(1/R) sum over the first R places of precision times relevance, R the number of positives (arXiv:2003.08505)."""
    within = ranks.pessimistic <= np.repeat(ranks.counts, ranks.counts)
    return ranks.sum_by_query(np.where(within, ranks.places / ranks.pessimistic, 0)) / ranks.counts


def r_precision(ranks: Ranks) -> PerQuery:
    """Precision among the first R places, R the number of positives."""
    return ranks.sum_by_query(ranks.pessimistic <= np.repeat(ranks.counts, ranks.counts)) / ranks.counts


METRICS: Mapping[str, Callable[[Ranks], PerQuery]] = {
    "hit@1": hit_at(1),
    "hit@5": hit_at(5),
    "hit@10": hit_at(10),
    "recall@5": recall_at(5),
    "recall@10": recall_at(10),
    "ndcg@10": ndcg_at(10),
    "mrr": reciprocal_rank,
    "map@r": average_precision_at_r,
    "r_precision": r_precision,
}
DISPLAY_NAMES: Mapping[str, str] = {
    "hit@1": "R@1",
    "hit@5": "R@5",
    "hit@10": "R@10",
    "recall@5": "recall@5",
    "recall@10": "recall@10",
    "ndcg@10": "nDCG@10",
    "mrr": "MRR",
    "map@r": "mAP@R",
    "r_precision": "R-Precision",
    "median_rank": "median rank",
    "rsum": "RSUM",
}


def per_query(ranks: Ranks) -> Float[np.ndarray, "n_queries n_metrics"]:
    """Every metric of `METRICS` for every query, columns in its order."""
    return np.stack([metric(ranks) for metric in METRICS.values()], axis=1)


def optimistic_hit_at(ranks: Ranks, k: int) -> PerQuery:
    """1 where a positive would be among the first k if every tie fell its way."""
    return (ranks.optimistic[ranks.offsets[:-1]] <= k).astype(np.float64)


def expected_hit_at(ranks: Ranks, k: int) -> PerQuery:
    """The probability that a positive is among the first k when ties are broken at random.

    With a items above the group that ties with the best positive, m positives and n irrelevant items in that group, it
    is 1 - C(n, k - a) / C(n + m, k - a): McSherry and Najork (ECIR 2008), for success@k.
    """
    first = ranks.offsets[:-1]
    above = ranks.optimistic[first] - 1
    irrelevant = ranks.pessimistic[first] - ranks.optimistic[first]
    places = ranks.places - 1
    same = (ranks.optimistic - places == np.repeat(ranks.optimistic[first], ranks.counts)) & (
        ranks.pessimistic - places == np.repeat(ranks.pessimistic[first], ranks.counts)
    )
    positives = np.where(irrelevant > 0, ranks.sum_by_query(same), 1)
    drawn = np.clip(k - above, 0, irrelevant + positives)
    missed = np.where(
        drawn > irrelevant, 0.0, np.exp(_log_choose(irrelevant, drawn) - _log_choose(irrelevant + positives, drawn))
    )
    return np.asarray(1 - missed)


def has_ties(ranks: Ranks) -> bool:
    """Whether some R@k differs by more than 0.1 percentage points between the ways to count ties."""
    gaps = [np.mean(optimistic_hit_at(ranks, k)) - np.mean(hit_at(k)(ranks)) for k in HIT_CUTOFFS]
    return bool(100 * max(gaps) > TIES_PP)


def _log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    k = np.minimum(k, n)
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))
