"""Exact ranks of all positives of every query, one block of scores at a time: the full matrix is never held, let alone
sorted. All scores of a query come from one matrix product, and equal gallery vectors are given equal scores, so that
rounding decides no tie and a constant encoder is never better than chance. Importing this module loads numba.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, ParamSpec, TypeVar, cast

import numpy as np
from jaxtyping import Float, Float32, Int
from numba import config, njit

from bench.errors import InputError
from bench.metrics import Ranks, check_offsets, rises_within_queries

BLOCK_BYTES = 64 << 20
MIN_BLOCK_QUERIES = 64

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Positives:
    """Which gallery items are right for which query.

    The positives of query q are `items[offsets[q]:offsets[q + 1]]`.

    Args:
        queries: the row of the query matrix that each query is, (n_queries,) int64.
        offsets: (n_queries + 1,) int64; every query has at least one positive.
        items: rows of the gallery matrix, rising within a query, (n_pairs,) int64.

    Raises:
        InputError: a query has no positive, or an item twice.
    """

    queries: Int[np.ndarray, " n_queries"]
    offsets: Int[np.ndarray, " n_queries_plus_1"]
    items: Int[np.ndarray, " n_pairs"]

    def __post_init__(self) -> None:
        check_offsets(self.offsets, self.items.size)
        if self.queries.shape != (self.offsets.size - 1,):
            raise InputError(f"queries have shape {self.queries.shape}; expected ({self.offsets.size - 1},).")
        if not rises_within_queries(self.offsets, self.items).all():
            raise InputError("the positives of a query do not rise; expected each item once, in order.")


def positives_of_pairs(pairs: Int[np.ndarray, "n_pairs 2"], direction: Literal["t2i", "i2t"]) -> Positives:
    """The positives of all captions (`t2i`) or all images (`i2t`) of a collection; repeated pairs count once.

    Args:
        pairs: rows (image index, caption index), as `Collection.positives`.
        direction: `t2i` asks with captions for images, `i2t` the other way round.
    """
    columns = pairs[:, ::-1] if direction == "t2i" else pairs
    queries, items = np.unique(columns, axis=0).T.astype(np.int64)
    found, starts = np.unique(queries, return_index=True)
    return Positives(found, np.append(starts, queries.size).astype(np.int64), np.ascontiguousarray(items))


def positives_of_labels(labels: Int[np.ndarray, " n_images"]) -> Positives:
    """The positives of every image in image-to-image retrieval: the other images of its label.

    An image that is alone with its label can find nothing and asks nothing: it stays in the gallery and is not among
    the queries, so `labels.size - positives.queries.size` were dropped.

    Args:
        labels: class of each image, as `Collection.labels`.

    Raises:
        InputError: no two images share a label.
    """
    _, label_places, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    queries = np.flatnonzero(sizes[label_places] > 1)
    if not queries.size:
        raise InputError(f"none of {labels.size} images shares its label with another; expected at least two that do.")
    by_label = np.argsort(label_places, kind="stable")
    firsts = (np.cumsum(sizes) - sizes)[label_places[queries]]
    counts = sizes[label_places[queries]]
    ends = np.cumsum(counts)
    members = by_label[np.arange(ends[-1]) + np.repeat(firsts - (ends - counts), counts)]
    offsets = np.append(0, np.cumsum(counts - 1))
    return Positives(queries, offsets, members[members != np.repeat(queries, counts)])


@dataclass(frozen=True, eq=False)
class Ranking(Ranks):
    """The ranks of all positives, which items they are, and the best items of each query.

    Args:
        items: the gallery rows that the ranks belong to, best first within a query, (n_pairs,) int32.
        top: gallery rows of the best items, best first, of equal ones the lower row first, -1 where the gallery is
            shorter, (n_queries, top) int32.
    """

    items: Int[np.ndarray, " n_pairs"]
    top: Int[np.ndarray, "n_queries top"]


def rank_positives(
    queries: Float[np.ndarray, "n_query_rows dim"],
    gallery: Float[np.ndarray, "n_items dim"],
    positives: Positives,
    exclude_self: bool = False,
    top: int = 10,
    block_bytes: int = BLOCK_BYTES,
    stand_ins: Float[np.ndarray, "n_items dim"] | None = None,
) -> Ranking:
    """The pessimistic and optimistic rank of every positive by inner product, and the best items of every query.

    Holds one block of scores and the result beside its arguments.

    Args:
        queries: embeddings, normalised by the caller, float32.
        gallery: embeddings, float32; items that are nobody's positive are distractors.
        positives: whose rows are ranked for which of `queries`.
        exclude_self: leave row i of the gallery out of the ranking of row i of `queries`, for `i2i`.
        top: how many of the best items are kept.
        block_bytes: size of the block of scores; at least 64 queries are scored at once.
        stand_ins: for each item of the gallery the vector by which queries that it is right for find it instead.

    Raises:
        InputError: shapes or dtypes do not fit, a positive is not in the gallery or is the query that is left out, or
            a score is not finite; the message names the row.
    """
    _check_matrices(queries, gallery, top)
    _check_rows(positives, len(queries), len(gallery), exclude_self)
    n_queries, n_pairs = positives.queries.size, positives.items.size
    excluded = positives.queries if exclude_self else np.full(n_queries, -1)
    pessimistic, optimistic, items = (np.empty(n_pairs, dtype=np.int32) for _ in range(3))
    best = np.full((n_queries, top), -1, dtype=np.int32)
    n_items = len(gallery)
    if stand_ins is not None:
        gallery = np.concatenate([gallery, stand_ins])
    copies = _find_copies(gallery)

    def rank(first: int, scores: Float32[np.ndarray, "n_rows n_items"]) -> int:
        part = slice(first, first + len(scores))
        offsets = positives.offsets[first : part.stop + 1]
        pairs = slice(offsets[0], offsets[-1])
        _equate_copies(scores, copies)
        if stand_ins is not None:
            rows, own = np.repeat(np.arange(len(scores)), np.diff(offsets)), positives.items[pairs]
            scores[rows, own] = scores[rows, own + n_items]
            scores = np.ascontiguousarray(scores[:, :n_items])
        items[pairs] = _best_first(scores, offsets, positives.items[pairs])
        return _rank_rows(scores, excluded[part], offsets, items, pessimistic, optimistic, best[part])

    # numba.get_num_threads() would start its own pool, after which this process must not fork.
    n_threads = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    with ThreadPoolExecutor(n_threads) as pool:
        for start, scores in _iterate_scores(queries, gallery, positives.queries, block_bytes):
            parts = np.array_split(scores, n_threads)
            firsts = start + np.cumsum([0, *(len(part) for part in parts[:-1])])
            for first, part, n_ranked in zip(firsts, parts, pool.map(rank, firsts, parts), strict=True):
                if n_ranked < len(part):
                    raise _not_finite(queries, gallery, int(positives.queries[first + n_ranked]))
    return Ranking(positives.offsets, pessimistic, optimistic, items, best)


def _check_matrices(queries: np.ndarray, gallery: np.ndarray, top: int) -> None:
    for name, matrix in (("queries", queries), ("gallery", gallery)):
        if matrix.ndim != 2 or matrix.dtype != np.float32 or not matrix.size:
            raise InputError(f"{name} are {matrix.dtype} {matrix.shape}; expected float32 (n_items, dim), not empty.")
    if queries.shape[1] != gallery.shape[1]:
        dims = f"{queries.shape[1]} and {gallery.shape[1]}"
        raise InputError(f"queries and gallery have {dims} dimensions; expected the same. Encode both with one model.")
    if top < 1:
        raise InputError(f"top is {top}; expected at least 1.")


def _check_rows(positives: Positives, n_query_rows: int, n_items: int, exclude_self: bool) -> None:
    for name, rows, count in (("query", positives.queries, n_query_rows), ("gallery", positives.items, n_items)):
        outside = rows[(rows < 0) | (rows >= count)]
        if outside.size:
            raise InputError(f"the positives name {name} row {outside[0]}; expected 0 to {count - 1}.")
    if exclude_self:
        own = positives.items == np.repeat(positives.queries, np.diff(positives.offsets))
        if own.any():
            row = positives.items[np.argmax(own)]
            raise InputError(f"row {row} is a positive of itself; expected others only. Use positives_of_labels.")


def _iterate_scores(
    queries: Float[np.ndarray, "n_query_rows dim"],
    gallery: Float[np.ndarray, "n_items dim"],
    rows: Int[np.ndarray, " n_queries"],
    block_bytes: int,
) -> Iterator[tuple[int, Float32[np.ndarray, "n_block n_items"]]]:
    """Blocks of the scores of queries `rows` with all items, and their first query; all blocks share one buffer."""
    rows_per_block = max(MIN_BLOCK_QUERIES, block_bytes // (4 * len(gallery)))
    buffer = np.empty((min(rows_per_block, rows.size), len(gallery)), dtype=np.float32)
    for start in range(0, rows.size, rows_per_block):
        block = queries[rows[start : start + rows_per_block]]
        with np.errstate(invalid="ignore", over="ignore"):
            np.matmul(block, gallery.T, out=buffer[: len(block)])
        yield start, buffer[: len(block)]


def _find_copies(gallery: Float[np.ndarray, "n_items dim"]) -> Int[np.ndarray, "n_copies 2"]:
    """Every item whose vector already stood at a lower row, and the first such row; 0 and -0 are equal."""
    firsts: dict[bytes, int] = {}
    digests = (blake2b((vector + 0.0).tobytes(), digest_size=16).digest() for vector in gallery)
    found = [(item, firsts.setdefault(digest, item)) for item, digest in enumerate(digests)]
    return np.array([(item, first) for item, first in found if item != first], dtype=np.int64).reshape(-1, 2)


def _best_first(
    scores: Float32[np.ndarray, "n_rows n_items"], offsets: Int[np.ndarray, " n_rows_plus_1"], items: np.ndarray
) -> Int[np.ndarray, " n_pairs"]:
    """The positives `items` of each row in the order of their scores, of equal ones the lower item first."""
    rows = np.repeat(np.arange(len(scores)), np.diff(offsets))
    return items[np.lexsort((-scores[rows, items], rows))]


def _first_not_finite(matrix: Float[np.ndarray, "n_rows n_columns"]) -> int | None:
    """The first row with a NaN or an infinity; one row at a time, to make no mask as large as the matrix."""
    return next((row for row, values in enumerate(matrix) if not np.isfinite(values).all()), None)


def _not_finite(queries: np.ndarray, gallery: np.ndarray, query: int) -> InputError:
    """An error that names the row to blame for a score of `query` that is not finite."""
    item = _first_not_finite(gallery)
    if not np.isfinite(queries[query]).all():
        culprit = f"query row {query} is"
    elif item is not None:
        culprit = f"gallery row {item} is"
    else:
        culprit = f"query row {query} has scores that are"
    return InputError(f"{culprit} not finite; expected finite embeddings, normalised. Check what the encoder returns.")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function as machine code that leaves other threads running, compiled when first called and kept on disk."""
    return cast(Callable[P, R], njit(cache=True, nogil=True)(function))


@compiled
def _equate_copies(scores: np.ndarray, copies: np.ndarray) -> None:
    """Gives copies the score of the first of their kind, in place.

    A matrix product rounds its edge columns differently from the others on some processors (AVX2), and padding to a
    round number of columns does not help where the kernel's own width is not round.
    """
    for row in range(len(scores)):
        for copy in range(len(copies)):
            scores[row, copies[copy, 0]] = scores[row, copies[copy, 1]]


@compiled
def _rank_rows(
    scores: np.ndarray,
    excluded: np.ndarray,
    offsets: np.ndarray,
    items: np.ndarray,
    pessimistic: np.ndarray,
    optimistic: np.ndarray,
    top: np.ndarray,
) -> int:
    """How many rows could be ranked: fills the last three, up to the first row with a score that is not finite."""
    for row in range(len(scores)):
        line = scores[row]
        if _count_not_finite(line):
            return row
        if excluded[row] >= 0:
            line[excluded[row]] = -np.inf
        part = slice(offsets[row], offsets[row + 1])
        _rank_row(line, line[items[part]], pessimistic[part], optimistic[part], top[row])
    return len(scores)


@compiled
def _count_not_finite(line: np.ndarray) -> int:
    count = 0
    for score in line:
        count += score - score != 0
    return count


@compiled
def _rank_row(
    line: np.ndarray, positives: np.ndarray, pessimistic: np.ndarray, optimistic: np.ndarray, top: np.ndarray
) -> None:
    """Fills the ranks and the best items of one query in one pass; `positives` are its positives' scores, falling.

    An item that is level with positive j, or between it and the one before, counts for j and all later ones, and is
    tallied at j. The tallies include the positives themselves, which `_accumulate` takes off again.
    """
    pessimistic[:] = 0
    optimistic[:] = 0
    top_scores = np.full(top.size, -np.inf, dtype=np.float32)
    lowest = positives[-1]
    for item in range(line.size):
        score = line[item]
        if score >= lowest:
            level = _first_at_most(positives, score)
            pessimistic[level] += 1
            below = _first_below(positives, score) if positives[level] == score else level
            if below < positives.size:
                optimistic[below] += 1
        if score > top_scores[-1]:
            insert(top_scores, top, score, item)
    _accumulate(positives, pessimistic, optimistic)


@compiled
def _first_at_most(falling: np.ndarray, score: float) -> int:
    low, high = 0, falling.size
    while low < high:
        middle = (low + high) // 2
        if falling[middle] <= score:
            high = middle
        else:
            low = middle + 1
    return low


@compiled
def _first_below(falling: np.ndarray, score: float) -> int:
    low, high = 0, falling.size
    while low < high:
        middle = (low + high) // 2
        if falling[middle] < score:
            high = middle
        else:
            low = middle + 1
    return low


@compiled
def insert(scores: np.ndarray, items: np.ndarray, score: float, item: int) -> None:
    """Puts an item that beats the last one behind all that it does not beat."""
    place = scores.size - 1
    while place > 0 and scores[place - 1] < score:
        scores[place] = scores[place - 1]
        items[place] = items[place - 1]
        place -= 1
    scores[place] = score
    items[place] = item


@compiled
def _accumulate(positives: np.ndarray, pessimistic: np.ndarray, optimistic: np.ndarray) -> None:
    """Turns tallies of all items into ranks, in place: 1 + place + irrelevant items, level ones in or out."""
    n_level_or_above = 0
    n_above = 0
    for place in range(positives.size):
        n_level_or_above += pessimistic[place]
        n_above += optimistic[place]
        pessimistic[place] = 1 + place + n_level_or_above - _first_below(positives, positives[place])
        optimistic[place] = 1 + place + n_above - _first_at_most(positives, positives[place])
