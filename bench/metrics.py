"""Retrieval metrics from ranks, and degradation formulas from metrics. Everything is computed per query first and
averaged later, so that intervals can be made from the same values. A metric is one function and one line of METRICS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from bench.errors import InputError

TIE_MARGIN = 0.001
HIT_CUTOFFS = (1, 5, 10)
WORST_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Ranks:
    """Where each query's positives stand in its gallery, best first; what every metric is computed from.

    The ranks of query q are the entries `offsets[q]` to `offsets[q + 1]`. With j = 0, 1, ... a positive's place among
    its query's positives, s its score and i running over the irrelevant items,
    `pessimistic` is 1 + j + #{i: s_i >= s} and `optimistic` is 1 + j + #{i: s_i > s}.

    Args:
        offsets: (n_queries + 1,) integers; every query has at least one positive.
        pessimistic: 1-based, ties lost, (n_pairs,) integers, strictly increasing within a query.
        optimistic: 1-based, ties won, (n_pairs,) integers, strictly increasing within a query.

    Raises:
        InputError: the arrays cannot be ranks; the message names the first query that is wrong.
    """

    offsets: Int[np.ndarray, " n_queries_plus_1"]
    pessimistic: Int[np.ndarray, " n_pairs"]
    optimistic: Int[np.ndarray, " n_pairs"]

    def __post_init__(self) -> None:
        check_offsets(self.offsets, self.pessimistic.size)
        if self.optimistic.shape != self.pessimistic.shape or self.pessimistic.ndim != 1:
            shapes = f"{self.pessimistic.shape} and {self.optimistic.shape}"
            raise InputError(f"pessimistic and optimistic ranks have shapes {shapes}; expected the same (n_pairs,).")
        wrong = (self.optimistic < 1) | (self.pessimistic < self.optimistic)
        for ranks in (self.pessimistic, self.optimistic):
            wrong |= ~rises_within_queries(self.offsets, ranks)
        if wrong.any():
            query = np.searchsorted(self.offsets, np.flatnonzero(wrong)[0], side="right") - 1
            problem = "expected 1 <= optimistic <= pessimistic, both rising"
            raise InputError(f"the ranks of query {query} are impossible: {problem}. Rank its positives again.")

    @property
    def best(self) -> Int[np.ndarray, " n_queries"]:
        """Pessimistic rank of each query's best positive."""
        return self.pessimistic[self.offsets[:-1]]

    @property
    def n_positives(self) -> Int[np.ndarray, " n_queries"]:
        """How many positives each query has."""
        return np.diff(self.offsets)

    @property
    def places(self) -> Int[np.ndarray, " n_pairs"]:
        """Each positive's place among the positives of its query: 0 for the best."""
        return np.arange(self.pessimistic.size) - np.repeat(self.offsets[:-1], self.n_positives)


def check_offsets(offsets: Int[np.ndarray, " n_queries_plus_1"], n_pairs: int) -> None:
    """Nothing, if `offsets` cut `n_pairs` entries into one piece or more, none of them empty.

    Raises:
        InputError: they do not; the message says how.
    """
    if offsets.ndim != 1 or offsets.size < 2 or offsets.dtype.kind != "i":
        raise InputError(f"offsets are {offsets.dtype} {offsets.shape}; expected integers of shape (n_queries + 1,).")
    if offsets[0] != 0 or offsets[-1] != n_pairs:
        ends = f"{offsets[0]} to {offsets[-1]}"
        raise InputError(f"offsets run from {ends}; expected 0 to {n_pairs}, the number of pairs.")
    empty = np.flatnonzero(np.diff(offsets) < 1)
    if empty.size:
        raise InputError(f"query {empty[0]} has no positive; expected at least one. Leave such queries out.")


def rises_within_queries(
    offsets: Int[np.ndarray, " n_queries_plus_1"], values: Int[np.ndarray, " n_pairs"]
) -> Bool[np.ndarray, " n_pairs"]:
    """Whether each entry is larger than the one before it; the first of a query always passes."""
    rises = np.ones(values.size, dtype=bool)
    rises[1:] = values[1:] > values[:-1]
    rises[offsets[:-1]] = True
    return rises


def hit(ranks: Ranks, k: int) -> Float[np.ndarray, " n_queries"]:
    """1 where any positive is among the first k, else 0: the field's R@k, TREC's success@k; not the fraction."""
    return (ranks.best <= k).astype(np.float64)


def hit_optimistic(ranks: Ranks, k: int) -> Float[np.ndarray, " n_queries"]:
    """`hit` if every tie with an irrelevant item were won."""
    return (ranks.optimistic[ranks.offsets[:-1]] <= k).astype(np.float64)


def hit_expected(ranks: Ranks, k: int) -> Float[np.ndarray, " n_queries"]:
    """The probability of a `hit` if the items that tie with the best positive stood in random order.

    With a irrelevant items above the best positive, n irrelevant and m positive ones level with it, all of the k - a
    open places go to irrelevant ones with probability C(n, k - a) / C(n + m, k - a).

    Source: McSherry and Najork, Computing Information Retrieval Performance Measures Efficiently in the Presence of
        Tied Scores, ECIR 2008.
    """
    starts = ranks.offsets[:-1]
    above = ranks.optimistic[starts] - 1
    tied_irrelevant = ranks.pessimistic[starts] - ranks.optimistic[starts]
    tied_positives = _count_tied_with_best(ranks)
    miss = np.ones(starts.size)
    for place in range(k):
        left = np.maximum(tied_irrelevant - place, 0)
        share = left / np.maximum(tied_irrelevant + tied_positives - place, 1)
        miss *= np.where(place < k - above, share, 1.0)
    return 1.0 - miss


def _count_tied_with_best(ranks: Ranks) -> Int[np.ndarray, " n_queries"]:
    """How many positives tie with the best one, itself included; exact wherever an irrelevant item ties as well."""
    starts, counts, places = ranks.offsets[:-1], ranks.n_positives, ranks.places
    tied = np.ones(places.size, dtype=bool)
    for variant in (ranks.pessimistic, ranks.optimistic):
        tied &= variant - places == np.repeat(variant[starts], counts)
    return np.add.reduceat(tied.astype(np.int64), starts)


def recall(ranks: Ranks, k: int) -> Float[np.ndarray, " n_queries"]:
    """The fraction of a query's positives among the first k; with five captions recall@1 is at most 0.2."""
    return _sum_per_query(ranks, ranks.pessimistic <= k) / ranks.n_positives


def ndcg(ranks: Ranks, k: int) -> Float[np.ndarray, " n_queries"]:
    """nDCG@k with binary gains and log2 discounts: 1 where the first k hold as many positives as they can.

    Source: Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, TOIS 2002.
    """
    gains = np.where(ranks.pessimistic <= k, 1.0 / np.log2(1.0 + ranks.pessimistic), 0.0)
    ideal = np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))
    return _sum_per_query(ranks, gains) / ideal[np.minimum(ranks.n_positives, k) - 1]


def reciprocal_rank(ranks: Ranks) -> Float[np.ndarray, " n_queries"]:
    """1 / rank of the best positive, without a cutoff; its mean is MRR."""
    return 1.0 / ranks.best


def best_rank(ranks: Ranks) -> Float[np.ndarray, " n_queries"]:
    """Rank of the best positive; its median over the queries is the median rank."""
    return ranks.best.astype(np.float64)


def map_at_r(ranks: Ranks) -> Float[np.ndarray, " n_queries"]:
    """mAP@R: (1 / R) sum over r <= R of P@r rel(r), R being the query's number of positives; not mAP without a cutoff.

    Source: arXiv 2003.08505.
    """
    counts = ranks.n_positives
    precisions = (ranks.places + 1) / ranks.pessimistic
    return _sum_per_query(ranks, np.where(ranks.pessimistic <= np.repeat(counts, counts), precisions, 0.0)) / counts


def r_precision(ranks: Ranks) -> Float[np.ndarray, " n_queries"]:
    """P@R, R being the query's number of positives."""
    counts = ranks.n_positives
    return _sum_per_query(ranks, ranks.pessimistic <= np.repeat(counts, counts)) / counts


def _sum_per_query(ranks: Ranks, values: Bool[np.ndarray, " n_pairs"] | Float[np.ndarray, " n_pairs"]) -> np.ndarray:
    return np.add.reduceat(values.astype(np.float64), ranks.offsets[:-1])


@dataclass(frozen=True)
class Metric:
    """A number per query, and how the queries' numbers become one.

    Args:
        id: as records and files have it.
        name: as people are shown it.
        per_query: from ranks to (n_queries,) float64.
        unit: "%" for fractions that are shown times 100, "rank" for places, "" for plain numbers.
        summary: how values become one: their mean, or their lower median.
        higher_is_better: False for ranks.
    """

    id: str
    name: str
    per_query: Callable[[Ranks], Float[np.ndarray, " n_queries"]]
    unit: Literal["%", "rank", ""] = "%"
    summary: Literal["mean", "median"] = "mean"
    higher_is_better: bool = True


METRICS: tuple[Metric, ...] = (
    *(Metric(f"hit@{k}", f"R@{k}", partial(hit, k=k)) for k in HIT_CUTOFFS),
    *(Metric(f"recall@{k}", f"fraction recall@{k}", partial(recall, k=k)) for k in HIT_CUTOFFS),
    Metric("ndcg@10", "nDCG@10", partial(ndcg, k=10), unit=""),
    Metric("mrr", "MRR", reciprocal_rank, unit=""),
    Metric("med_r", "median rank", best_rank, unit="rank", summary="median", higher_is_better=False),
    Metric("map@r", "mAP@R", map_at_r),
    Metric("r_precision", "R-Precision", r_precision),
    *(Metric(f"hit@{k}_optimistic", f"R@{k}, ties won", partial(hit_optimistic, k=k)) for k in HIT_CUTOFFS),
    *(Metric(f"hit@{k}_expected", f"R@{k}, ties at random", partial(hit_expected, k=k)) for k in HIT_CUTOFFS),
)


def find_metric(metric_id: str) -> Metric:
    """The metric of that id.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    for metric in METRICS:
        if metric.id == metric_id:
            return metric
    raise InputError(f"unknown metric '{metric_id}'; expected one of {', '.join(metric.id for metric in METRICS)}.")


def score_queries(ranks: Ranks, metrics: Sequence[Metric] = METRICS) -> Float[np.ndarray, "n_queries n_metrics"]:
    """Every metric's value for every query, one column per metric, float64."""
    return np.stack([metric.per_query(ranks) for metric in metrics], axis=1)


def summarise(
    values: Float[np.ndarray, "n_queries n_metrics"], metrics: Sequence[Metric] = METRICS
) -> Float[np.ndarray, " n_metrics"]:
    """Each metric over the queries: the mean, or the lower median, of its column.

    Args:
        values: as `score_queries` returns them.
        metrics: those that the columns stand for.
    """
    columns = zip(metrics, values.T, strict=True)
    return np.array(
        [lower_median(column) if metric.summary == "median" else column.mean() for metric, column in columns]
    )


def lower_median(values: Float[np.ndarray, " n"]) -> float:
    """The smallest value that at least half of the values do not exceed; unlike `np.median`, always one of them."""
    return float(np.sort(values)[(values.size - 1) // 2])


def has_ties(ranks: Ranks) -> bool:
    """Whether R@1, 5 or 10 moves by more than 0.1 percentage points with how ties are broken: the flag `ties`."""
    return any(np.mean(hit_optimistic(ranks, k) - hit(ranks, k)) > TIE_MARGIN for k in HIT_CUTOFFS)


def rsum(t2i: Float[np.ndarray, "*batch 3"], i2t: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch"]:
    """RSUM in percent, at most 600: the sum of R@1, 5 and 10 over both directions.

    Args:
        t2i: hit@1, 5 and 10 as fractions on the last axis; other axes, such as resamples, are kept.
        i2t: the same of the other direction.
    """
    return 100.0 * (np.sum(t2i, axis=-1) + np.sum(i2t, axis=-1))


def relative_drop(
    clean: Float[np.ndarray, "*batch"], shifted: Float[np.ndarray, "*batch n_cells"]
) -> Float[np.ndarray, "*batch"]:
    """MMI: the share of the clean score that is lost on the average shifted cell; NaN where the clean score is 0.

    Args:
        clean: R@1 mean or RSUM without a shift.
        shifted: the same under each shift, on the last axis.

    Source: arXiv 2212.08044.
    """
    return _divide(np.asarray(clean) - np.mean(shifted, axis=-1), np.asarray(clean))


def mce(
    errors: Sequence[Float[np.ndarray, "*batch n_severities"]],
    reference_errors: Sequence[Float[np.ndarray, "*batch n_severities"]],
) -> Float[np.ndarray, "*batch"]:
    """Mean over shifts of the errors' sum over severities divided by the reference submission's; 1 is on a par.

    A ratio, where the source gives percent; NaN where the reference makes no error.

    Args:
        errors: one array per shift, fractions (1 - R@1), severities on the last axis.
        reference_errors: the same of the suite's reference submission.

    Source: arXiv 1903.12261.
    """
    pairs = zip(errors, reference_errors, strict=True)
    ratios = [_divide(np.sum(ours, axis=-1), np.sum(theirs, axis=-1)) for ours, theirs in pairs]
    return np.asarray(np.mean(ratios, axis=0))


def relative_mce(
    errors: Sequence[Float[np.ndarray, "*batch n_severities"]],
    clean_error: Float[np.ndarray, "*batch"],
    reference_errors: Sequence[Float[np.ndarray, "*batch n_severities"]],
    reference_clean_error: Float[np.ndarray, "*batch"],
) -> Float[np.ndarray, "*batch"]:
    """`mce` of what the shifts add to the clean error, on both sides; NaN where they add nothing to the reference's.

    Args:
        errors: one array per shift, fractions (1 - R@1), severities on the last axis.
        clean_error: without a shift.
        reference_errors: as `errors`, of the suite's reference submission.
        reference_clean_error: as `clean_error`, of the suite's reference submission.

    Source: arXiv 1903.12261.
    """
    clean, reference_clean = np.asarray(clean_error)[..., None], np.asarray(reference_clean_error)[..., None]
    return mce([error - clean for error in errors], [error - reference_clean for error in reference_errors])


def worst_decile_terms(values: Float[np.ndarray, " n_queries"]) -> Float[np.ndarray, " n_queries"]:
    """One term per query whose mean is the worst decile, so that it gets its interval as any other mean does.

    With q the value at the decile the term is q + min(value - q, 0) / 0.1. The mean over a resample is the resample's
    worst decile up to second order, since the best q maximises it.

    Args:
        values: per query, higher better, such as the query's mean hit over shifted cells.

    Source: Rockafellar and Uryasev, Optimization of conditional value-at-risk, 2000, theorem 1.
    """
    at_decile = np.sort(values)[int(np.ceil(WORST_SHARE * values.size)) - 1]
    return np.asarray(at_decile + np.minimum(values - at_decile, 0.0) / WORST_SHARE)


def worst_decile(values: Float[np.ndarray, " n_queries"]) -> float:
    """Mean over the tenth of the queries that does worst; of 25 queries the third worst counts half."""
    return float(worst_decile_terms(values).mean())


def asr_hits(clean_hits: Bool[np.ndarray, " n_queries"], attacked_hits: Bool[np.ndarray, " n_queries"]) -> float:
    """The share of the clean hits that the attack turns into misses; NaN where nothing was hit."""
    clean_hits = clean_hits.astype(bool)
    return float(_divide(np.sum(clean_hits & ~attacked_hits.astype(bool)), np.sum(clean_hits)))


def asr_drop(clean_hits: Bool[np.ndarray, " n_queries"], attacked_hits: Bool[np.ndarray, " n_queries"]) -> float:
    """Clean R@1 - attacked R@1, as a fraction; below `asr_hits` x R@1 where the attack also turns misses into hits."""
    return float(np.mean(clean_hits) - np.mean(attacked_hits))


def _divide(dividend: np.ndarray, divisor: np.ndarray) -> np.ndarray:
    """The quotient; NaN, silently, where the divisor is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(divisor == 0, np.nan, np.true_divide(dividend, divisor))
