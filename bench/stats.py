"""Intervals and comparisons by a paired cluster bootstrap whose unit of resampling is the image. Metrics enter as sums
and counts per image, so that all metrics of all cells are one matrix product with weights that depend only on the
number of images and the seed: two submissions on one collection share their resamples. Galleries are not resampled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from bench.errors import InputError

N_RESAMPLES = 10_000
SEED = 0
LEVEL = 0.95
_DRAWN_BYTES = 32 << 20
_KEPT_BYTES = 64 << 20
_CHUNK_BYTES = 2 << 20
"""Of kept weights as floats: they fit into a core's own cache, with the sums beside them."""


@dataclass(frozen=True)
class Interval:
    """The ends of a confidence interval, both included."""

    low: float
    high: float

    def is_above(self, threshold: float = 0.0) -> bool:
        """Superiority: the whole interval lies above the threshold."""
        return self.low > threshold

    def is_within(self, margin: float) -> bool:
        """Equivalence: the whole interval lies strictly inside -margin to margin.

        With a 95 % interval this is a TOST at 2.5 % a side, stricter than the usual 5 %.
        """
        return -margin < self.low and self.high < margin


@dataclass(frozen=True)
class Difference:
    """A paired difference, first minus second, with its interval and its two-sided p-value, not yet adjusted."""

    value: float
    interval: Interval
    p_value: float


def cluster_sums(
    values: Float[np.ndarray, "n_queries n_metrics"], cluster_of_query: Int[np.ndarray, " n_queries"], n_clusters: int
) -> Float[np.ndarray, "n_clusters n_metrics"]:
    """Each metric summed over the queries of each image, float64.

    Args:
        values: per query, one column per metric.
        cluster_of_query: the image that each query belongs to, 0 to n_clusters - 1.
        n_clusters: images of the whole collection, also those without a query, so that directions share resamples.

    Raises:
        InputError: a query belongs to no image, or a value is not finite.
    """
    _check_clusters(cluster_of_query, n_clusters)
    if values.ndim != 2 or values.shape[0] != cluster_of_query.size:
        raise InputError(f"values have shape {values.shape}; expected ({cluster_of_query.size}, n_metrics).")
    if not np.isfinite(values).all():
        query, metric = np.argwhere(~np.isfinite(values))[0]
        raise InputError(f"the value of query {query} in column {metric} is not finite; expected finite values.")
    columns = [np.bincount(cluster_of_query, column, minlength=n_clusters) for column in values.T]
    return np.stack(columns, axis=1)


def cluster_counts(
    cluster_of_query: Int[np.ndarray, " n_queries"], n_clusters: int
) -> Float[np.ndarray, " n_clusters"]:
    """How many queries each image has, float64; the denominators of means.

    Args:
        cluster_of_query: the image that each query belongs to, 0 to n_clusters - 1.
        n_clusters: images of the whole collection.

    Raises:
        InputError: a query belongs to no image.
    """
    _check_clusters(cluster_of_query, n_clusters)
    return np.bincount(cluster_of_query, minlength=n_clusters).astype(np.float64)


def _check_clusters(cluster_of_query: Int[np.ndarray, " n_queries"], n_clusters: int) -> None:
    outside = np.flatnonzero((cluster_of_query < 0) | (cluster_of_query >= n_clusters))
    if outside.size:
        found = cluster_of_query[outside[0]]
        raise InputError(f"query {outside[0]} belongs to image {found}; expected 0 to {n_clusters - 1}.")


def bootstrap(
    sums: Float[np.ndarray, "n_clusters n_metrics"],
    counts: Float[np.ndarray, "n_clusters n_metrics"] | Float[np.ndarray, " n_clusters"],
    n_resamples: int = N_RESAMPLES,
    seed: int = SEED,
) -> Float[np.ndarray, "n_resamples n_metrics"]:
    """Every metric's mean in every resample of the images, float64: sum of sums / sum of counts.

    float64 throughout: row r is the same resample for every call with as many images and the same seed. NaN where a
    resample holds no query of a column. Counts need not count queries: clean hits as counts and lost hits as sums
    give resamples of `asr_hits`.

    Args:
        sums: per image, one column per metric, as `cluster_sums` gives them; cells of one collection side by side.
        counts: per image, one column per metric, or one for all; never negative.
        n_resamples: rows to return.
        seed: of the resamples.

    Raises:
        InputError: the shapes do not fit, or a column has no query at all.
    """
    columns = _count_columns(sums, counts)
    chosen, place = _distinct(np.vstack([sums, columns]))
    sums, columns = sums[:, chosen], columns[:, chosen]
    denominators, divisor = _distinct(columns)
    stacked = np.hstack([sums, columns[:, denominators]])
    replicates = np.empty((n_resamples, len(chosen)))
    for start, weights in _iterate_weights(sums.shape[0], n_resamples, seed):
        totals = weights @ stacked
        divisors = totals[:, len(chosen) :]
        divisors[divisors == 0] = np.nan
        replicates[start : start + len(weights)] = totals[:, : len(chosen)] / divisors[:, divisor]
    return replicates[:, place]


def _count_columns(
    sums: Float[np.ndarray, "n_clusters n_metrics"],
    counts: Float[np.ndarray, "n_clusters n_metrics"] | Float[np.ndarray, " n_clusters"],
) -> Float[np.ndarray, "n_clusters n_metrics"]:
    """The counts, one column per metric."""
    columns = counts[:, None] if counts.ndim == 1 else counts
    n_clusters, n_metrics = sums.shape
    if columns.shape not in ((n_clusters, n_metrics), (n_clusters, 1)):
        raise InputError(f"counts have shape {counts.shape}; expected {sums.shape} or ({n_clusters},), as the sums do.")
    empty = np.flatnonzero(columns.sum(axis=0) <= 0)
    if empty.size:
        raise InputError(f"column {empty[0]} has no query at all; expected a count above 0. Leave the metric out.")
    return np.broadcast_to(columns, sums.shape)


def _distinct(columns: Float[np.ndarray, "n m"]) -> tuple[list[int], list[int]]:
    """The first of each kind of column, and which of these every column equals: without ties many metrics are one."""
    kinds: dict[bytes, int] = {}
    places = [kinds.setdefault(column.tobytes(), len(kinds)) for column in columns.T]
    return [places.index(kind) for kind in range(len(kinds))], places


def _iterate_weights(
    n_clusters: int, n_resamples: int, seed: int
) -> Iterator[tuple[int, Float[np.ndarray, "n_rows n_clusters"]]]:
    """Chunks of how often each image stands in each resample, with the row they start at; memory stays bounded.

    All cells of a collection have the same weights, so those that fit are drawn once for all of them.
    """
    if n_resamples * n_clusters > _KEPT_BYTES:
        yield from _draw_weights(n_clusters, n_resamples, seed)
        return
    rows_per_chunk = max(1, _CHUNK_BYTES // (8 * n_clusters))
    kept = _kept_weights(n_clusters, n_resamples, seed)
    for start in range(0, n_resamples, rows_per_chunk):
        yield start, kept[start : start + rows_per_chunk].astype(np.float64)


@lru_cache(maxsize=4)
def _kept_weights(n_clusters: int, n_resamples: int, seed: int) -> UInt8[np.ndarray, "n_resamples n_clusters"]:
    """All weights, in an eighth of the memory: that an image is drawn 256 times has a chance below 1e-500."""
    kept = np.empty((n_resamples, n_clusters), dtype=np.uint8)
    for start, weights in _draw_weights(n_clusters, n_resamples, seed):
        kept[start : start + len(weights)] = weights
    return kept


def _draw_weights(
    n_clusters: int, n_resamples: int, seed: int
) -> Iterator[tuple[int, Float[np.ndarray, "n_rows n_clusters"]]]:
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, n_clusters])))
    rows_per_chunk = max(1, _DRAWN_BYTES // (8 * n_clusters))
    for start in range(0, n_resamples, rows_per_chunk):
        n_rows = min(rows_per_chunk, n_resamples - start)
        drawn = rng.integers(n_clusters, size=(n_rows, n_clusters))
        drawn += n_clusters * np.arange(n_rows)[:, None]
        counted = np.bincount(drawn.reshape(-1), minlength=n_rows * n_clusters)
        yield start, counted.reshape(n_rows, n_clusters).astype(np.float64)


def interval(replicates: Float[np.ndarray, " n_resamples"], level: float = LEVEL) -> Interval:
    """The percentile interval of one quantity, resamples in which it is undefined (NaN) left out.

    Args:
        replicates: the quantity in every resample: a column of `bootstrap`, or any function of several, such as RSUM.
        level: of confidence.

    Raises:
        InputError: it is undefined in half of the resamples or more.
    """
    low, high = intervals(replicates[:, None], level)[0]
    return Interval(float(low), float(high))


def intervals(
    replicates: Float[np.ndarray, "n_resamples n_metrics"], level: float = LEVEL
) -> Float[np.ndarray, "n_metrics 2"]:
    """`interval` of every column, as rows (low, high)."""
    chosen, place = _distinct(replicates)
    columns = np.ascontiguousarray(replicates.T[chosen])  # each in one piece, which is faster to sort
    undefined = np.isnan(columns)
    lost = np.flatnonzero(undefined.mean(axis=1) >= 0.5)
    if lost.size:
        first = place.index(int(lost[0]))
        raise InputError(f"column {first} is undefined in most resamples; expected queries in every one.")
    tails = ((1 - level) / 2, (1 + level) / 2)
    ends = np.quantile(columns, tails, axis=1).T
    for kind in np.flatnonzero(undefined.any(axis=1)):
        ends[kind] = np.quantile(columns[kind][~undefined[kind]], tails)
    return ends[place]


def median_terms(values: Float[np.ndarray, " n_queries"]) -> Float[np.ndarray, " n_queries"]:
    """1 where a query's value is at most the sample's lower median, else 0: the column that stands for a median.

    A median is not a mean, so it enters `bootstrap` through this share, and `median_replicates` turns back the
    replicates of the share into replicates of the median.

    Args:
        values: per query, such as ranks of the best positive.
    """
    return (values <= np.sort(values)[(values.size - 1) // 2]).astype(np.float64)


def median_replicates(
    shares: Float[np.ndarray, " n_resamples"], values: Float[np.ndarray, " n_queries"]
) -> Float[np.ndarray, " n_resamples"]:
    """The lower median in every resample, to first order, without sorting any resample.

    Where the share of values up to the sample's median falls by d in a resample, the resample's median is the
    sample's quantile at d above the median's own level: Bahadur's representation, whose percentile interval is
    Woodruff's. It is always one of the values, and it is the sample's own median where d is 0.

    Args:
        shares: column of `bootstrap` that belongs to `median_terms(values)`.
        values: per query, those that `median_terms` was given.

    Source: Woodruff, Confidence intervals for medians and other position measures, JASA 1952.
    """
    ordered = np.sort(values)
    levels = 0.5 + median_terms(values).mean() - shares
    places = np.ceil(np.nan_to_num(levels) * values.size - 1e-9).astype(np.int64) - 1
    return np.where(np.isnan(shares), np.nan, ordered[np.clip(places, 0, values.size - 1)])


def compare(
    first: float,
    second: float,
    first_replicates: Float[np.ndarray, " n_resamples"],
    second_replicates: Float[np.ndarray, " n_resamples"],
    level: float = LEVEL,
) -> Difference:
    """The paired difference of two submissions in one quantity, first minus second.

    Args:
        first: the quantity's value; `first_replicates` are its resamples.
        second: the same of the other submission, on the same images.
        first_replicates: from `bootstrap` with the same images, number of resamples and seed as the second's.
        second_replicates: see `first_replicates`.
        level: of confidence.

    Raises:
        InputError: the replicates are not as many.
    """
    if first_replicates.shape != second_replicates.shape:
        shapes = f"{first_replicates.shape} and {second_replicates.shape}"
        raise InputError(f"replicates have shapes {shapes}; expected the same. Bootstrap both with the same settings.")
    differences = first_replicates - second_replicates
    return Difference(first - second, interval(differences, level), p_value(differences))


def p_value(differences: Float[np.ndarray, " n_resamples"]) -> float:
    """Two-sided p-value of no difference: twice the smaller share of resamples on either side of 0, never 0 itself.

    The smallest that n resamples can give is 2 / (n + 1).

    Args:
        differences: resamples of a difference; undefined ones (NaN) are left out.
    """
    defined = differences[~np.isnan(differences)]
    smaller = min(np.count_nonzero(defined <= 0), np.count_nonzero(defined >= 0))
    return min(1.0, 2 * (smaller + 1) / (defined.size + 1))


def holm(p_values: Float[np.ndarray, " n_tests"]) -> Float[np.ndarray, " n_tests"]:
    """p-values adjusted for being several, in the order given; those below alpha are significant together.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 1979.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * np.arange(p_values.size, 0, -1)
    adjusted = np.empty(p_values.size)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def detectable_difference(n_clusters: int, sd: float = 0.4, power: float = 0.8, level: float = LEVEL) -> float:
    """The smallest true difference whose interval excludes 0 with probability `power`, in the unit of `sd`.

    A power of 0.5 gives the half width of the interval: 0.025 for 1,000 images.

    Args:
        n_clusters: images.
        sd: standard deviation over images of the paired difference; the default is that of a hit rate of 80 %, or of
            two submissions that disagree on 16 % of the images.
        power: probability to detect it.
        level: of confidence.
    """
    normal = NormalDist()
    return (normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)) * sd / math.sqrt(n_clusters)


def pareto_front(costs: Float[np.ndarray, " n"], gains: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which points no other beats: none costs less and gains as much, or gains more and costs as much.

    Equal points stay together, on the front or off it.

    Args:
        costs: less is better, such as milliseconds.
        gains: more is better, such as recall.

    Raises:
        InputError: there are not as many gains as costs, or one of them is not finite.
    """
    if costs.ndim != 1 or costs.shape != gains.shape:
        raise InputError(f"costs and gains have shapes {costs.shape} and {gains.shape}; expected (n,) for both.")
    if not (np.isfinite(costs).all() and np.isfinite(gains).all()):
        raise InputError("a cost or gain is not finite; expected finite values. Leave the point out.")
    distinct, place = np.unique(costs, return_inverse=True)
    best = np.full(distinct.size, -np.inf)
    np.maximum.at(best, place, gains)
    best_of_cheaper = np.concatenate([[-np.inf], np.maximum.accumulate(best)])[place]
    return (gains == best[place]) & (gains > best_of_cheaper)
