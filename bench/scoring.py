"""Metrics with intervals, computed from evidence: the one way in which any published number comes about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from bench.evidence import Evidence
from bench.metrics import HIT_CUTOFFS, METRICS, asr_drop, asr_hits, has_ties, hit, rsum, score_queries, summarise
from bench.records import Estimate, estimate
from bench.stats import bootstrap, cluster_counts, cluster_sums, intervals, median_replicates, median_terms
from bench.types import Direction

Metrics = dict[Direction | Literal["both"], dict[str, Estimate]]
CROSS_MODAL: tuple[Direction, Direction] = ("t2i", "i2t")
_IDS = [metric.id for metric in METRICS]
_HITS = [_IDS.index(f"hit@{k}") for k in HIT_CUTOFFS]


def score_evidence(evidence: Mapping[Direction, Evidence], n_images: int) -> Metrics:
    """Every metric of every direction with its interval; under `both`, RSUM and the mean R@1 of `t2i` and `i2t`."""
    tables = {name: score_queries(part.ranks) for name, part in evidence.items()}
    replicates = _replicates(evidence, tables, n_images)
    values = {name: summarise(table) for name, table in tables.items()}
    metrics: Metrics = {
        name: dict(zip(_IDS, _estimates(values[name], replicates[name]), strict=True)) for name in evidence
    }
    if set(CROSS_MODAL) <= set(evidence):
        hits = [values[name][_HITS] for name in CROSS_MODAL]
        hit_replicates = [replicates[name][:, _HITS] for name in CROSS_MODAL]
        both = rsum(*hits), np.mean(hits, axis=0)[0]
        both_replicates = rsum(*hit_replicates), np.mean(hit_replicates, axis=0)[:, 0]
        metrics["both"] = dict(zip(("rsum", "hit@1"), _estimates(both, np.stack(both_replicates, axis=1)), strict=True))
    return metrics


def mean_r1(evidence: Mapping[Direction, Evidence], n_images: int) -> tuple[float, Float[np.ndarray, " n_resamples"]]:
    """R@1 averaged over the cell's cross-modal directions (or over all, if it has none of them), and its resamples."""
    return mean_recall(evidence, n_images, 1)


def mean_recall(
    evidence: Mapping[Direction, Evidence], n_images: int, k: int
) -> tuple[float, Float[np.ndarray, " n_resamples"]]:
    """The same of R@k."""
    crossing = {name: evidence[name] for name in CROSS_MODAL if name in evidence} or evidence
    values, replicates = zip(*recall_by_direction(crossing, n_images, k).values(), strict=True)
    return float(np.mean(values)), np.mean(replicates, axis=0)


def recall_by_direction(
    evidence: Mapping[Direction, Evidence], n_images: int, k: int
) -> dict[Direction, tuple[float, Float[np.ndarray, " n_resamples"]]]:
    """R@k of each direction by itself, with its resamples: one product for all."""
    hits = {name: hit(part.ranks, k) for name, part in evidence.items()}
    sums = [cluster_sums(hits[name][:, None], part.images, n_images) for name, part in evidence.items()]
    counts = [cluster_counts(part.images, n_images) for part in evidence.values()]
    drawn = bootstrap(np.hstack(sums), np.stack(counts, axis=1))
    return {name: (float(hits[name].mean()), drawn[:, column]) for column, name in enumerate(evidence)}


def score_attack(
    attacked: Mapping[Direction, Evidence], clean: Mapping[Direction, Evidence], n_images: int
) -> dict[Direction, dict[str, Estimate]]:
    """How far an attack got, by direction: `asr_hits@k` (none where nothing was hit before) and `asr_drop@k`."""
    return {name: _score_success(part, clean[name], n_images) for name, part in attacked.items()}


def _score_success(attacked: Evidence, clean: Evidence, n_images: int) -> dict[str, Estimate]:
    names, values, sums, counts = [], [], [], []
    n_queries = cluster_counts(attacked.images, n_images)
    for k in HIT_CUTOFFS:
        before, after = hit(clean.ranks, k), hit(attacked.ranks, k)
        columns = [before - after, before * (1 - after), before]
        differences, lost, held = cluster_sums(np.stack(columns, axis=1), attacked.images, n_images).T
        names.append(f"asr_drop@{k}")
        values.append(asr_drop(before, after))
        sums.append(differences)
        counts.append(n_queries)
        if before.any():
            names.append(f"asr_hits@{k}")
            values.append(asr_hits(before, after))
            sums.append(lost)
            counts.append(held)
    replicates = bootstrap(np.stack(sums, axis=1), np.stack(counts, axis=1))
    return dict(zip(names, _estimates(values, replicates), strict=True))


def find_flags(evidence: Mapping[Direction, Evidence]) -> tuple[str, ...]:
    """What a reader should know: `ties:DIRECTION` where R@k depends on how ties are counted."""
    return tuple(f"ties:{name}" for name, part in evidence.items() if has_ties(part.ranks))


def _replicates(
    evidence: Mapping[Direction, Evidence], tables: Mapping[Direction, np.ndarray], n_images: int
) -> dict[Direction, Float[np.ndarray, "n_resamples n_metrics"]]:
    """Every metric in every resample: one product for all directions."""
    medians = [i for i, metric in enumerate(METRICS) if metric.summary == "median"]
    sums, counts = [], []
    for name, part in evidence.items():
        terms = tables[name].copy()
        terms[:, medians] = np.stack([median_terms(tables[name][:, i]) for i in medians], axis=1)
        sums.append(cluster_sums(terms, part.images, n_images))
        counts.append(np.repeat(cluster_counts(part.images, n_images)[:, None], len(METRICS), axis=1))
    drawn = np.split(bootstrap(np.hstack(sums), np.hstack(counts)), len(sums), axis=1)
    for name, replicates in zip(evidence, drawn, strict=True):
        for i in medians:
            replicates[:, i] = median_replicates(replicates[:, i], tables[name][:, i])
    return dict(zip(evidence, drawn, strict=True))


def _estimates(values: Iterable[Any], replicates: Float[np.ndarray, "n_resamples n_values"]) -> list[Estimate]:
    return [estimate(float(value), *ends) for value, ends in zip(values, intervals(replicates).tolist(), strict=True)]
