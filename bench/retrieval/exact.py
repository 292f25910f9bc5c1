"""Exact ranking by blocks: the ranks of all positives of every query, never the sorted matrix.

One matrix product scores a block of queries against the whole gallery; one pass over each row counts, for every
positive, how many irrelevant items score at least as high, and how many higher. A block holds at most `BLOCK_BYTES`
of scores, so that memory does not depend on the number of queries. A positive's score comes from the same product as
the others': taken from a separate one it would tie or not by rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Float, Int

from bench.errors import InputError

BLOCK_BYTES = 128 << 20
TOP = 10
_LANES = 64


class Positives(NamedTuple):
    """Which gallery items are relevant to each query: those of query q are `items[offsets[q]:offsets[q + 1]]`."""

    offsets: Int[np.ndarray, " n_queries+1"]
    items: Int[np.ndarray, " n_positives"]


class Ranking(NamedTuple):
    """Where each query's positives stand, best first.

    Args:
        offsets: as in `Positives`, (n_queries + 1,) int64.
        items: the positives of each query by falling score, (n_positives,) int32.
        pessimistic: for the j-th of them (from 0), 1 + j + #{irrelevant items that score at least as high}, int32.
        optimistic: the same, counting only irrelevant items that score higher, int32.
        top: the ten best items of each query, ties by lower index, -1 where the gallery is smaller, (n_queries, 10) int32.
    """

    offsets: Int[np.ndarray, " n_queries+1"]
    items: Int[np.ndarray, " n_positives"]
    pessimistic: Int[np.ndarray, " n_positives"]
    optimistic: Int[np.ndarray, " n_positives"]
    top: Int[np.ndarray, "n_queries 10"]


def positives_by(column: int, pairs: Int[np.ndarray, "n_pairs 2"], n_queries: int) -> Positives:
    """The positives when column `column` of the pairs holds the queries (0: images, 1: captions)."""
    order = np.lexsort((pairs[:, 1 - column], pairs[:, column]))
    counts = np.bincount(pairs[:, column], minlength=n_queries)
    return Positives(_offsets(counts), pairs[order, 1 - column].astype(np.int64))


def positives_by_label(labels: Int[np.ndarray, " n_images"]) -> tuple[np.ndarray, Positives]:
    """The images that have another one of their label, and those others: queries and positives of `i2i`."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    queries = np.flatnonzero(counts[inverse] > 1)
    members = [np.flatnonzero(inverse == label) for label in range(len(counts))]
    items = [others[others != query] for query in queries for others in (members[inverse[query]],)]
    lengths = np.array([len(others) for others in items], dtype=np.int64)
    return queries, Positives(_offsets(lengths), np.concatenate(items) if items else np.zeros(0, np.int64))


def rank_positives(
    queries: Float[np.ndarray, "n_queries dim"],
    gallery: Float[np.ndarray, "n_items dim"],
    positives: Positives,
    excluded: Int[np.ndarray, " n_queries"] | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Ranking:
    """The ranks of all positives of every query by falling inner product.

    Args:
        queries: unit vectors, (n_queries, dim) float32.
        gallery: unit vectors, (n_items, dim) float32.
        positives: every query has at least one.
        excluded: one gallery item per query that is neither positive nor irrelevant (the query itself), or None.
        block_bytes: upper bound of the block of scores, in bytes (at least one row is scored).

    Raises:
        InputError: a score is not finite, or a query has no positive.
    """
    n_queries, n_items = len(queries), len(gallery)
    if (np.diff(positives.offsets) < 1).any():
        raise InputError(f"query {np.argmax(np.diff(positives.offsets) < 1)} has no positive; expected at least one.")
    padded = np.zeros((-(-n_items // _LANES) * _LANES, gallery.shape[1]), np.float32)
    padded[:n_items] = gallery
    ranking = Ranking(
        positives.offsets,
        items=np.empty(len(positives.items), np.int32),
        pessimistic=np.empty(len(positives.items), np.int32),
        optimistic=np.empty(len(positives.items), np.int32),
        top=np.empty((n_queries, TOP), np.int32),
    )
    skipped = np.full(n_queries, -1, np.int64) if excluded is None else excluded.astype(np.int64)
    rows = max(1, block_bytes // (4 * len(padded)))
    rows = rows // _LANES * _LANES or rows
    scores = np.empty((min(rows, -(-n_queries // _LANES) * _LANES), len(padded)), np.float32)
    block = np.zeros((len(scores), queries.shape[1]), np.float32)
    for start in range(0, n_queries, len(scores)):
        count = min(len(scores), n_queries - start)
        block[:count] = queries[start : start + count]
        np.matmul(block, padded.T, out=scores)
        bad = _rank_rows(scores[:count, :n_items], start, positives.offsets, positives.items, skipped, *ranking[1:])
        if bad >= 0:
            raise InputError(f"query {bad} has a score that is not finite; expected finite embeddings.")
    return ranking


@numba.njit(parallel=True, cache=True, nogil=True)
def _rank_rows(scores, start, offsets, items, skipped, ordered, pessimistic, optimistic, top):  # type: ignore[no-untyped-def]
    """Fills the ranking of the queries from `start` on; returns the first with a non-finite score, or -1."""
    bad = np.full(scores.shape[0], -1, np.int64)
    for row in numba.prange(scores.shape[0]):
        query = start + row
        if _rank_row(scores[row], query, offsets, items, skipped[query], ordered, pessimistic, optimistic, top[query]):
            bad[row] = query
    for query in bad:
        if query >= 0:
            return query
    return -1


@numba.njit(cache=True, nogil=True)
def _rank_row(row, query, offsets, items, skipped, ordered, pessimistic, optimistic, top):  # type: ignore[no-untyped-def]
    first, last = offsets[query], offsets[query + 1]
    count = last - first
    own = items[first:last]
    order = np.argsort(-row[own], kind="mergesort")
    falling = row[own][order]
    at_least = np.zeros(count + 1, np.int64)  # items whose score is >= falling[j], but < falling[j - 1]
    higher = np.zeros(count + 1, np.int64)  # items whose score is > falling[j], but <= falling[j - 1]
    best = np.full(len(top), -np.inf, row.dtype)
    top[:] = -1
    for item in range(len(row)):
        score = row[item]
        if not np.isfinite(score):
            return True
        if item == skipped:
            continue
        if score > best[-1] or top[-1] < 0:
            _insert(best, top, score, item)
        if score >= falling[-1]:
            at_least[_first_at_most(falling, score)] += 1
            higher[_first_below(falling, score)] += 1
    not_lower, above = 0, 0
    for j in range(count):
        not_lower += at_least[j]
        above += higher[j]
        own_not_lower = _first_below(falling, falling[j])
        own_above = _first_at_most(falling, falling[j])
        ordered[first + j] = own[order[j]]
        pessimistic[first + j] = 1 + j + not_lower - own_not_lower
        optimistic[first + j] = 1 + j + above - own_above
    return False


@numba.njit(cache=True, nogil=True)
def _first_at_most(falling, score):  # type: ignore[no-untyped-def]
    """The first place in a falling list whose value is <= score."""
    low, high = 0, len(falling)
    while low < high:
        middle = (low + high) // 2
        if falling[middle] <= score:
            high = middle
        else:
            low = middle + 1
    return low


@numba.njit(cache=True, nogil=True)
def _first_below(falling, score):  # type: ignore[no-untyped-def]
    """The first place in a falling list whose value is < score; the list's length if there is none."""
    low, high = 0, len(falling)
    while low < high:
        middle = (low + high) // 2
        if falling[middle] < score:
            high = middle
        else:
            low = middle + 1
    return low


@numba.njit(cache=True, nogil=True)
def _insert(best, top, score, item):  # type: ignore[no-untyped-def]
    place = len(top) - 1
    while place > 0 and (top[place - 1] < 0 or best[place - 1] < score):
        best[place], top[place] = best[place - 1], top[place - 1]
        place -= 1
    best[place], top[place] = score, item


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
