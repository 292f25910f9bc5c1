"""Metrics with intervals, computed from evidence: the one way in which any published number comes about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float

from bench.evidence import Evidence
from bench.metrics import HIT_CUTOFFS, METRICS, Ranks, has_ties, per_query
from bench.records import Estimate, estimate
from bench.stats import interval, median_rank, resampled_means, resampled_medians
from bench.types import Direction

Metrics = dict[Direction | Literal["both"], dict[str, Estimate]]
CROSS_MODAL = ("t2i", "i2t")


def score_evidence(evidence: Mapping[Direction, Evidence], n_images: int) -> Metrics:
    """Every metric of every direction with its interval, and RSUM and mean R@1 where both directions are there."""
    metrics: Metrics = {}
    replicates: dict[str, np.ndarray] = {}
    values: dict[str, np.ndarray] = {}
    for direction, part in evidence.items():
        ranks = ranks_of(part)
        table = per_query(ranks)
        values[direction] = table.mean(axis=0)
        replicates[direction] = resampled_means(table, part.images, n_images)
        metrics[direction] = _estimates(values[direction], replicates[direction])
        metrics[direction]["median_rank"] = _with_interval(
            median_rank(ranks.best), resampled_medians(ranks.best, part.images, n_images)
        )
    if set(CROSS_MODAL) <= set(values):
        metrics["both"] = {
            name: _with_interval(
                float(combine([values[d] for d in CROSS_MODAL])), combine([replicates[d] for d in CROSS_MODAL])
            )
            for name, combine in (("rsum", _rsum), ("hit@1", _mean_r1))
        }
    return metrics


def mean_r1(evidence: Mapping[Direction, Evidence], n_images: int) -> tuple[float, Float[np.ndarray, " n_resamples"]]:
    """R@1 averaged over the cell's cross-modal directions (or `i2i`, if it has no other), and its resamples."""
    directions = [name for name in CROSS_MODAL if name in evidence] or list(evidence)
    values, replicates = [], []
    for name in directions:
        hits = (ranks_of(evidence[name]).best <= 1).astype(np.float64)[:, None]  # type: ignore[index]
        values.append(float(hits.mean()))
        replicates.append(resampled_means(hits, evidence[name].images, n_images)[:, 0])  # type: ignore[index]
    return float(np.mean(values)), np.mean(replicates, axis=0)


def find_flags(evidence: Mapping[Direction, Evidence]) -> tuple[str, ...]:
    """What a reader should know: `ties:DIRECTION` where R@k depends on how ties are counted."""
    return tuple(f"ties:{name}" for name, part in evidence.items() if has_ties(ranks_of(part)))


def ranks_of(part: Evidence) -> Ranks:
    """The ranks in a direction's evidence."""
    return Ranks(part.offsets, part.pessimistic, part.optimistic)


def _estimates(values: np.ndarray, replicates: np.ndarray) -> dict[str, Estimate]:
    low, high = interval(replicates)
    return {name: estimate(values[i], low[i], high[i]) for i, name in enumerate(METRICS)}


def _with_interval(value: float, replicates: np.ndarray) -> Estimate:
    low, high = interval(replicates)
    return estimate(value, float(low), float(high))


def _rsum(directions: list[np.ndarray]) -> np.ndarray:
    columns = [list(METRICS).index(f"hit@{k}") for k in HIT_CUTOFFS]
    return np.asarray(100 * sum(table[..., column] for table in directions for column in columns))


def _mean_r1(directions: list[np.ndarray]) -> np.ndarray:
    column = list(METRICS).index("hit@1")
    return np.asarray(sum(table[..., column] for table in directions) / len(directions))
