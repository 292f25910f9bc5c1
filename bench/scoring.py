"""Metrics with intervals, computed from evidence: the one way in which any published number comes about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float

from bench.evidence import Evidence
from bench.metrics import HIT_CUTOFFS, METRICS, asr_drop, asr_hits, has_ties, hit, rsum, score_queries, summarise
from bench.records import Estimate, estimate
from bench.stats import bootstrap, cluster_counts, cluster_sums, intervals, median_replicates, median_terms
from bench.types import Direction

Recalls = dict[Direction, tuple[float, Float[np.ndarray, " n_resamples"]]]
Metrics = dict[Direction | Literal["both"], dict[str, Estimate]]
_Part = TypeVar("_Part")
CELLS_AT_ONCE = 8  # resampled in one product: a quarter of the time that eight take, and no more than 60 MB
CROSS_MODAL: tuple[Direction, Direction] = ("t2i", "i2t")
_IDS = [metric.id for metric in METRICS]
_HITS = [_IDS.index(f"hit@{k}") for k in HIT_CUTOFFS]


def score_evidence(evidence: Mapping[Direction, Evidence], n_images: int) -> Metrics:
    """Every metric of every direction with its interval; under `both`, RSUM and the mean R@1 of `t2i` and `i2t`."""
    return score_cells([evidence], n_images)[0]


def score_cells(cells: Sequence[Mapping[Direction, Evidence]], n_images: int) -> list[Metrics]:
    """`score_evidence` of several cells of the same images: one product for all."""
    tables = [{name: score_queries(part.ranks) for name, part in evidence.items()} for evidence in cells]
    return [_score(*both) for both in zip(tables, _replicates(cells, tables, n_images), strict=True)]


def _score(tables: Mapping[Direction, np.ndarray], replicates: Mapping[Direction, np.ndarray]) -> Metrics:
    values = {name: summarise(table) for name, table in tables.items()}
    metrics: Metrics = {
        name: dict(zip(_IDS, _estimates(values[name], replicates[name]), strict=True)) for name in tables
    }
    if set(CROSS_MODAL) <= set(tables):
        hits = [values[name][_HITS] for name in CROSS_MODAL]
        hit_replicates = [replicates[name][:, _HITS] for name in CROSS_MODAL]
        both = rsum(*hits), np.mean(hits, axis=0)[0]
        both_replicates = rsum(*hit_replicates), np.mean(hit_replicates, axis=0)[:, 0]
        metrics["both"] = dict(zip(("rsum", "hit@1"), _estimates(both, np.stack(both_replicates, axis=1)), strict=True))
    return metrics


def recall_by_direction(cells: Sequence[Mapping[Direction, Evidence]], n_images: int, k: int) -> list[Recalls]:
    """R@k of each direction by itself, with its resamples, of several cells of the same images: one product for all."""
    parts = [part for evidence in cells for part in evidence.values()]
    hits = [hit(part.ranks, k) for part in parts]
    sums = [cluster_sums(found[:, None], part.images, n_images) for found, part in zip(hits, parts, strict=True)]
    counts = [cluster_counts(part.images, n_images) for part in parts]
    drawn = np.ascontiguousarray(bootstrap(np.hstack(sums), np.stack(counts, axis=1)).T)
    return _by_cell(cells, zip((float(found.mean()) for found in hits), drawn, strict=True))


def mean_recall(recalls: Recalls) -> tuple[float, Float[np.ndarray, " n_resamples"]]:
    """R@k averaged over the cell's cross-modal directions (or over all, if it has none of them), and its resamples."""
    crossing = [recalls[name] for name in CROSS_MODAL if name in recalls] or recalls.values()
    values, replicates = zip(*crossing, strict=True)
    return float(np.mean(values)), np.mean(replicates, axis=0)


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
    cells: Sequence[Mapping[Direction, Evidence]], tables: Sequence[Mapping[Direction, np.ndarray]], n_images: int
) -> list[dict[Direction, Float[np.ndarray, "n_resamples n_metrics"]]]:
    """Every metric in every resample, of every direction of every cell."""
    medians = [i for i, metric in enumerate(METRICS) if metric.summary == "median"]
    parts = [part for evidence in cells for part in evidence.values()]
    scored = [table for of_cell in tables for table in of_cell.values()]
    sums, counts = [], []
    for part, table in zip(parts, scored, strict=True):
        terms = table.copy()
        terms[:, medians] = np.stack([median_terms(table[:, i]) for i in medians], axis=1)
        sums.append(cluster_sums(terms, part.images, n_images))
        counts.append(np.repeat(cluster_counts(part.images, n_images)[:, None], len(METRICS), axis=1))
    drawn = np.split(bootstrap(np.hstack(sums), np.hstack(counts)), len(sums), axis=1)
    for table, replicates in zip(scored, drawn, strict=True):
        for i in medians:
            replicates[:, i] = median_replicates(replicates[:, i], table[:, i])
    return _by_cell(cells, drawn)


def _by_cell(cells: Iterable[Iterable[Direction]], parts: Iterable[_Part]) -> list[dict[Direction, _Part]]:
    """The parts, one for each direction of each cell in order, by cell and direction."""
    rest = iter(parts)
    return [{name: next(rest) for name in directions} for directions in cells]


def _estimates(values: Iterable[Any], replicates: Float[np.ndarray, "n_resamples n_values"]) -> list[Estimate]:
    return [estimate(float(value), *ends) for value, ends in zip(values, intervals(replicates).tolist(), strict=True)]
