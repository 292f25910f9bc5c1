"""Intervals and tests by resampling images: a photo's captions are no independent observations.

Resamples are multinomial weights over the images that depend only on the number of images and the seed. So every cell
of a collection, and every submission on it, is resampled alike, which makes differences paired; and all resampled
metrics of all cells are one matrix product.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

RESAMPLES = 10_000
SEED = 20_190_612
LEVEL = 0.95
_KEPT_BYTES, _BLOCK_BYTES = 256 << 20, 64 << 20
_MEDIAN_LEVELS = 200


def image_weights(n_images: int, seed: int = SEED) -> Iterator[Float[np.ndarray, "n_resamples n_images"]]:
    """How often each image is drawn in each resample, in blocks of rows; every row sums to n_images (float32)."""
    if 4 * RESAMPLES * n_images <= _KEPT_BYTES:
        yield _kept_weights(n_images, seed)
        return
    yield from _draw(n_images, seed, max(1, _BLOCK_BYTES // (4 * n_images)))


def weighted_sums(columns: Float[np.ndarray, "n_images n"], seed: int = SEED) -> Float[np.ndarray, "n_resamples n"]:
    """Each column's sum over the images drawn, (n_resamples, n) float64; the product itself is in float32."""
    columns = columns.astype(np.float32)
    return np.concatenate([weights @ columns for weights in image_weights(len(columns), seed)]).astype(np.float64)


def resampled_means(
    values: Float[np.ndarray, "n_queries n_metrics"], images: Int[np.ndarray, " n_queries"], n_images: int
) -> Float[np.ndarray, "n_resamples n_metrics"]:
    """The metrics' means in every resample of images; an image's queries come and go together.

    Args:
        values: per query, (n_queries, n_metrics).
        images: the image that each query belongs to, (n_queries,).
        n_images: images of the collection; those without a query count as drawn, and add nothing.

    Returns:
        (n_resamples, n_metrics) float64, within 1e-6 of what a product in float64 gives.
    """
    means = values.mean(axis=0)
    sums = np.zeros((n_images, values.shape[1] + 1))
    np.add.at(sums, images, np.column_stack([values - means, np.ones(len(values))]))
    drawn = weighted_sums(sums)
    return np.asarray(means + drawn[:, :-1] / np.maximum(drawn[:, -1:], 1))


def resampled_medians(
    ranks: Int[np.ndarray, " n_queries"], images: Int[np.ndarray, " n_queries"], n_images: int
) -> Float[np.ndarray, " n_resamples"]:
    """The median rank in every resample: the lowest rank that at least half of the drawn queries reach.

    Looked for among the distinct ranks between the 20th and the 80th percentile, at most `_MEDIAN_LEVELS` of them; a
    resample whose median lies outside gets the nearest of these.
    """
    low, high = np.quantile(ranks, [0.2, 0.8], method="inverted_cdf")
    levels = np.unique(ranks[(ranks >= low) & (ranks <= high)])
    levels = levels[np.unique(np.linspace(0, len(levels) - 1, _MEDIAN_LEVELS).round().astype(int))]
    columns = np.zeros((n_images, len(levels) + 1))
    np.add.at(columns, images, np.column_stack([ranks[:, None] <= levels, np.ones(len(ranks))]))
    drawn = weighted_sums(columns)
    place = (2 * drawn[:, :-1] < drawn[:, -1:]).sum(axis=1)
    return levels[np.minimum(place, len(levels) - 1)].astype(np.float64)


def median_rank(ranks: Int[np.ndarray, " n_queries"]) -> float:
    """The lowest rank that at least half of the queries reach."""
    return float(np.sort(ranks)[(len(ranks) - 1) // 2])


def interval(replicates: Float[np.ndarray, "n_resamples ..."], level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of each column."""
    tail = (1 - level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail], axis=0)
    return low, high


def p_value(difference: Float[np.ndarray, " n_resamples"]) -> float:
    """Two-sided bootstrap p-value of a difference being 0; never below 1 / (n_resamples + 1)."""
    n = len(difference)
    tail = min(int((difference <= 0).sum()), int((difference >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (n + 1))


def holm(p_values: Sequence[float]) -> Float[np.ndarray, " n"]:
    """Adjusted p-values that keep the family-wise error rate (Holm 1979)."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    result = np.empty_like(p)
    result[order] = np.minimum(adjusted, 1)
    return result


def is_superior(difference: Float[np.ndarray, " n_resamples"], level: float = LEVEL) -> bool:
    """Whether the interval of the difference lies above 0."""
    return bool(interval(difference, level)[0] > 0)


def is_equivalent(difference: Float[np.ndarray, " n_resamples"], margin: float, level: float = LEVEL) -> bool:
    """Whether the interval of the difference lies within -margin and +margin."""
    low, high = interval(difference, level)
    return bool(-margin < low and high < margin)


def smallest_detectable_difference(n_images: int, rate: float = 0.5, correlation: float = 0.5) -> float:
    """The difference of two submissions' R@1 that a paired comparison finds with 80 % power, as a fraction.

    Args:
        n_images: independent observations.
        rate: R@1 around which they lie; 0.5 is the worst case.
        correlation: of the two submissions' hits; 0.5 is typical of models of one kind.
    """
    spread = math.sqrt(2 * rate * (1 - rate) * (1 - correlation) / n_images)
    return (1.959964 + 0.841621) * spread


def relative_drop(clean: np.ndarray, shifted: np.ndarray) -> np.ndarray:
    """(clean - shifted) / clean, the MMI of arXiv:2212.08044; 0 where clean is 0."""
    clean = np.asarray(clean, np.float64)
    return np.divide(clean - shifted, clean, out=np.zeros(np.broadcast(clean, shifted).shape), where=clean != 0)


Mask = Bool[np.ndarray, " n_queries"]


def asr_hits(clean: Mask, attacked: Mask) -> float:
    """The share of the clean hits that are no longer hits; nan without clean hits."""
    return float((clean & ~attacked).sum() / clean.sum()) if clean.any() else math.nan


@functools.lru_cache(maxsize=2)
def _kept_weights(n_images: int, seed: int) -> np.ndarray:
    weights = np.concatenate(list(_draw(n_images, seed, RESAMPLES)))
    weights.flags.writeable = False
    return weights


def _draw(n_images: int, seed: int, rows: int) -> Iterator[np.ndarray]:
    rng = np.random.Generator(np.random.Philox(seed))
    for start in range(0, RESAMPLES, rows):
        block = np.empty((min(rows, RESAMPLES - start), n_images), np.float32)
        for row in block:
            row[:] = np.bincount(rng.integers(0, n_images, n_images), minlength=n_images)
        yield block
