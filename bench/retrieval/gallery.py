"""Galleries of millions of items, in shards: a collection's embeddings first, then synthetic ones from a mixture that
was fitted to them. Beside them what is true of such a gallery: the exact best items of a set of queries, and how hard
the synthetic ones are in comparison with the real. Importing this module loads numba.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import repeat
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from bench.errors import InputError, UsageError
from bench.retrieval.exact import compiled, insert
from bench.retrieval.mixture import Draws, Mixture, fit_mixture

# Part of a gallery's identity: to be raised with any change to the mixture, to the draws or to the size of a block.
GENERATOR_VERSION = 1
BLOCK_ITEMS = 10_000
SHARD_ITEMS = 5 * BLOCK_ITEMS
MAX_ITEMS = 2**31 - 1
SCORE_BYTES = 64 << 20


class PaddedGallery:
    """Real vectors, followed by synthetic ones up to a number of items; never held as a whole.

    Synthetic vectors are drawn in blocks, each with its own stream of random numbers, so that neither the threads nor
    the number of items decides what stands in a row: a gallery is the beginning of every larger one.

    Args:
        real: of unit length.
        n_items: of the padded gallery.
        seed: of the mixture and of the synthetic vectors.

    Raises:
        UsageError: there are more real vectors than `n_items`, or more items than 32 bits count.
        InputError: the real vectors are not float32 of unit length; the message names the row.
    """

    def __init__(self, real: Float32[np.ndarray, "n_real dim"], n_items: int, seed: int) -> None:
        _check_real(real)
        if not len(real) <= n_items <= MAX_ITEMS:
            raise UsageError(
                f"a gallery of {n_items:,} items was asked for; expected {len(real):,}, as many as the collection has, "
                f"to {MAX_ITEMS:,}. Choose another --gallery."
            )
        self._real = real
        self.n_items = n_items
        self.seed = seed

    @property
    def dim(self) -> int:
        return self._real.shape[1]

    @property
    def n_real(self) -> int:
        return len(self._real)

    @property
    def n_synthetic(self) -> int:
        return self.n_items - self.n_real

    @cached_property
    def mixture(self) -> Mixture | None:
        """What synthetic vectors are drawn from, fitted when first needed; None where there are none."""
        return fit_mixture(self._real, self.seed) if self.n_synthetic else None

    @cached_property
    def identity(self) -> str:
        """Hex sha256 of everything that decides the vectors."""
        facts = f"{GENERATOR_VERSION} {self._real.shape} {self.n_items} {self.seed} ".encode()
        digest = hashlib.sha256(facts)
        digest.update(np.ascontiguousarray(self._real).data)
        return digest.hexdigest()

    def shards(self) -> Iterator[Float32[np.ndarray, "n_shard dim"]]:
        """All vectors in the order of their rows, at most `SHARD_ITEMS` at a time.

        Holds the shard in use and the random numbers of the next, which threads draw meanwhile; they end with the
        iterator.
        """
        for start in range(0, self.n_real, SHARD_ITEMS):
            yield self._real[start : start + SHARD_ITEMS]
        if self.mixture is not None:
            yield from _draw_shards(self.mixture, self.seed, self.n_synthetic)

    def synthetic(self, n: int) -> Float32[np.ndarray, "n dim"]:
        """The first `n` synthetic vectors, or all where there are fewer."""
        if self.mixture is None or not n:
            return np.empty((0, self.dim), np.float32)
        vectors = np.empty((min(n, self.n_synthetic), self.dim), np.float32)
        for number, shard in enumerate(_draw_shards(self.mixture, self.seed, len(vectors))):
            vectors[number * SHARD_ITEMS : (number + 1) * SHARD_ITEMS] = shard
        return vectors

    def sample(self, n: int) -> Float32[np.ndarray, "n_sample dim"]:
        """`n` vectors to train an index on, or all: real and synthetic ones in the proportion of the gallery.

        The real ones are chosen by the seed. The synthetic ones are the first of the gallery, which are as random as
        any others.
        """
        n = min(n, self.n_items)
        n_real = round(n * self.n_real / self.n_items)
        chosen = np.random.default_rng(self.seed).choice(self.n_real, n_real, replace=False)
        return np.concatenate([self._real[np.sort(chosen)], self.synthetic(n - n_real)])


class Hardness(NamedTuple):
    """Medians over queries of the best cosine, None where no query has anything to compare with.

    Args:
        nearest_real: with a real image that is not the query's own.
        nearest_synthetic: with one of as many synthetic vectors.
    """

    nearest_real: float | None
    nearest_synthetic: float | None


def hardness(
    queries: Float32[np.ndarray, "n_queries dim"],
    own: Sequence[Int[np.ndarray, " n_own"]] | Int[np.ndarray, " n_queries"],
    real: Float32[np.ndarray, "n_real dim"],
    synthetic: Float32[np.ndarray, "n_synthetic dim"],
) -> Hardness:
    """How near the real and the synthetic items of a gallery come to the queries that do not ask for them.

    Synthetic vectors that come nearer than real ones make a harder gallery than real images would; farther, an easier.

    Args:
        queries: of unit length, as are `real` and `synthetic`.
        own: for each query the row of `real` that it asks for, or all of them.
        real: the collection's images.
        synthetic: the first `n_real` of them count.
    """
    synthetic = synthetic[: len(real)]
    n_block = max(1, SCORE_BYTES // (4 * len(real)))
    best_real, best_synthetic = (np.full(len(queries), -np.inf, np.float32) for _ in range(2))
    for start in range(0, len(queries), n_block):
        block = slice(start, start + n_block)
        scores = queries[block] @ real.T
        for line, rows in zip(scores, own[block], strict=True):
            line[rows] = -np.inf
        best_real[block] = scores.max(axis=1)
        best_synthetic[block] = (queries[block] @ synthetic.T).max(axis=1, initial=-np.inf)
    return Hardness(_median(best_real), _median(best_synthetic))


class ExactBest:
    """The exact best items of each query by inner product, over a gallery that is given shard by shard.

    Holds one block of scores beside the result. A shard costs little more than its matrix product.

    Args:
        queries: finite.
        k: how many items of each query are kept.

    Raises:
        InputError: the queries are not finite float32, or `k` is not positive.
    """

    def __init__(self, queries: Float32[np.ndarray, "n_queries dim"], k: int) -> None:
        if queries.ndim != 2 or queries.dtype != np.float32 or not queries.size or not np.isfinite(queries).all():
            raise InputError(
                f"queries are {queries.dtype} {queries.shape}; expected finite float32 (n_queries, dim), not empty."
            )
        if k < 1:
            raise InputError(f"the best {k} items were asked for; expected at least 1.")
        self._queries = queries
        self._scores = np.full((len(queries), k), -np.inf, np.float32)
        self._rows = np.full((len(queries), k), -1, np.int64)
        self._n_items = 0
        self._buffer = np.empty(max(SCORE_BYTES // 4, 256 * len(queries)), np.float32)

    def add(self, shard: Float32[np.ndarray, "n_shard dim"]) -> None:
        """Compares the queries with the next items of the gallery.

        Raises:
            InputError: the shard does not have the queries' dtype and dimensions.
        """
        if shard.ndim != 2 or shard.dtype != np.float32 or shard.shape[1] != self._queries.shape[1]:
            raise InputError(
                f"a shard is {shard.dtype} {shard.shape}; expected float32 (n_items, {self._queries.shape[1]})."
            )
        n_queries, n_threads = len(self._queries), _count_cores()
        n_block = self._buffer.size // n_queries
        best, rows = np.array_split(self._scores, n_threads), np.array_split(self._rows, n_threads)
        with ThreadPoolExecutor(n_threads) as pool:
            for start in range(0, len(shard), n_block):
                block = shard[start : start + n_block]
                scores = self._buffer[: n_queries * len(block)].reshape(n_queries, len(block))
                np.matmul(self._queries, block.T, out=scores)
                firsts = repeat(self._n_items + start, n_threads)
                # Taken out of the iterator so that an exception of a thread is raised.
                list(pool.map(_merge, np.array_split(scores, n_threads), firsts, best, rows))
        self._n_items += len(shard)

    def result(self) -> tuple[Float32[np.ndarray, "n_queries k"], Int[np.ndarray, "n_queries k"]]:
        """Scores, falling, and rows of the best items, of equal ones the lower row first.

        Where there are fewer than k items: a score of minus infinity and row -1.
        """
        return self._scores.copy(), self._rows.copy()


@compiled
def _merge(scores: np.ndarray, first: int, best: np.ndarray, rows: np.ndarray) -> None:
    """Puts the items from row `first` on among the best that stand in `best` and `rows`, in place."""
    for query in range(len(scores)):
        for item in range(scores.shape[1]):
            if scores[query, item] > best[query, -1]:
                insert(best[query], rows[query], scores[query, item], first + item)


def _draw_shards(mixture: Mixture, seed: int, n: int) -> Iterator[Float32[np.ndarray, "n_shard dim"]]:
    """The synthetic vectors 0 to n.

    Threads draw nothing but random numbers: two matrix products at a time would only be in each other's way.
    """
    pool = ThreadPoolExecutor(_count_cores(), thread_name_prefix="rove-gallery")
    try:
        upcoming = _start_drawing(pool, mixture, seed, 0, n)
        for start in range(0, n, SHARD_ITEMS):
            shard = _place_shard(mixture, upcoming, min(n - start, SHARD_ITEMS))
            upcoming = _start_drawing(pool, mixture, seed, start + SHARD_ITEMS, n)
            yield shard
    finally:
        pool.shutdown(cancel_futures=True)


def _start_drawing(pool: ThreadPoolExecutor, mixture: Mixture, seed: int, first: int, n: int) -> deque[Future[Draws]]:
    """The draws of the shard that begins at `first`, block by block; none where it begins beyond `n`."""
    starts = range(first, min(first + SHARD_ITEMS, n), BLOCK_ITEMS)
    return deque(pool.submit(_draw_block, mixture, seed, start // BLOCK_ITEMS) for start in starts)


def _draw_block(mixture: Mixture, seed: int, number: int) -> Draws:
    """One block of the endless row of synthetic vectors."""
    return mixture.draw(BLOCK_ITEMS, np.random.Generator(np.random.Philox(key=[seed, number])))


def _place_shard(mixture: Mixture, draws: deque[Future[Draws]], n: int) -> Float32[np.ndarray, "n dim"]:
    """The vectors of `draws`, the first `n`; empties `draws`, to hold each block only once."""
    shard = np.empty((n, mixture.means.shape[1]), np.float32)
    for start in range(0, n, BLOCK_ITEMS):
        part = shard[start : start + BLOCK_ITEMS]
        part[:] = mixture.place(draws.popleft().result())[: len(part)]
    return shard


def _check_real(real: np.ndarray) -> None:
    if real.ndim != 2 or real.dtype != np.float32 or not real.size:
        raise InputError(f"the gallery is {real.dtype} {real.shape}; expected float32 (n_items, dim), not empty.")
    norms = np.sqrt(np.einsum("ij,ij->i", real, real))
    wrong = np.flatnonzero(~(np.abs(norms - 1) < 1e-3))
    if wrong.size:
        raise InputError(
            f"gallery row {wrong[0]} has length {norms[wrong[0]]:.4g}; expected 1. Normalise the embeddings first."
        )


def _count_cores() -> int:
    """The cores that this process may use: fewer than the machine has where it was pinned."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _median(best: Float32[np.ndarray, " n_queries"]) -> float | None:
    finite = best[np.isfinite(best)]
    return float(np.median(finite)) if finite.size else None
