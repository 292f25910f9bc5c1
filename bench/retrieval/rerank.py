"""Exact ranks of all positives after a second stage: for every query, the k best items of the first stage are put in
the order of the second stage's scores, and everything else stays behind them in the first stage's order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int

from bench.errors import InputError, ProtocolError
from bench.retrieval.exact import Positives, Ranking, rank_positives

PAIRS_AT_ONCE = 4096
PairScores = Callable[[Int[np.ndarray, " n_pairs"], Int[np.ndarray, " n_pairs"]], Float32[np.ndarray, " n_pairs"]]


@dataclass(frozen=True)
class SecondStage:
    """How a submission orders the best items of its first stage.

    Args:
        k: how many items of each query are scored again.
        score_by_direction: `score(images, captions)` of each direction that has a second stage, always in that order,
            as indices of the collection's items; the gallery's distractors follow the collection's own.
    """

    k: int
    score_by_direction: Mapping[Literal["t2i", "i2t"], PairScores]

    def score(self, direction: Literal["t2i", "i2t"]) -> PairScores:
        """The direction's `score(queries, items)`."""
        score = self.score_by_direction[direction]
        return score if direction == "i2t" else lambda captions, images: score(images, captions)


def rerank_positives(
    queries: Float32[np.ndarray, "n_query_rows dim"],
    gallery: Float32[np.ndarray, "n_items dim"],
    positives: Positives,
    k: int,
    score: PairScores,
    top: int = 10,
    stand_ins: Float32[np.ndarray, "n_items dim"] | None = None,
) -> Ranking:
    """The pessimistic and optimistic rank of every positive, and the best items, after both stages.

    Args:
        queries: embeddings of the first stage, normalised by the caller.
        gallery: embeddings of the first stage.
        positives: whose rows are ranked for which of `queries`.
        k: size of the pool that the second stage orders.
        score: takes rows of `queries` and rows of `gallery`, at most PAIRS_AT_ONCE of them, and gives one score a pair.
        top: how many of the best items are kept.
        stand_ins: as for `rank_positives`; `score` has to know by itself which pairs are of a query and its own.

    Raises:
        InputError: as `rank_positives`, or `k` is not positive.
        ProtocolError: the second stage's scores have another shape or dtype, or are not finite; names the pair.
    """
    if k < 1:
        raise InputError(f"k is {k}; expected at least 1 item for the second stage.")
    first = rank_positives(queries, gallery, positives, top=max(k, top), stand_ins=stand_ins)
    return rerank(first, positives.queries, k, score, top)


def rerank(first: Ranking, queries: Int[np.ndarray, " n_queries"], k: int, score: PairScores, top: int = 10) -> Ranking:
    """The ranking `first` with its k best items of each query in the order of `score`.

    The pool is what a system would fetch: of items level at its edge the lower rows are in. A positive outside keeps
    its rank, except that none that is level with the edge is counted as if it could still be inside.

    Args:
        first: with at least `k` and at least `top` best items a query.
        queries: the first argument of `score` for each query.
    """
    pool = _reorder(first, _score_pool(queries, first.top[:, :k], score))
    n_inside = np.repeat(pool.relevant.sum(axis=1), first.n_positives)
    outside_or_first = k + 1 + first.places - n_inside
    items, pessimistic = first.items.copy(), first.pessimistic.copy()
    optimistic = np.maximum(first.optimistic, outside_or_first).astype(np.int32)
    # The positives inside stood first among their query's positives, and still do: only their order changes.
    pairs = (first.offsets[:-1, None] + np.cumsum(pool.relevant, axis=1) - 1)[pool.relevant]
    items[pairs] = pool.items[pool.relevant]
    pessimistic[pairs], optimistic[pairs] = _rank_pool(pool)
    best = np.concatenate([pool.items, first.top[:, k:]], axis=1)[:, :top]
    return Ranking(first.offsets, pessimistic, optimistic, items, np.ascontiguousarray(best))


class _Pool(NamedTuple):
    """The items of each query's pool, best first, of equal ones the lower row first; -1 and -inf where it is short."""

    items: Int[np.ndarray, "n_queries k"]
    scores: Float32[np.ndarray, "n_queries k"]
    relevant: Bool[np.ndarray, "n_queries k"]


def _score_pool(
    queries: Int[np.ndarray, " n_queries"], pool: Int[np.ndarray, "n_queries k"], score: PairScores
) -> Float32[np.ndarray, "n_queries k"]:
    """The second stage's score of every item of the pool, -inf where there is none."""
    scores = np.full(pool.shape, -np.inf, dtype=np.float32)
    numbers, places = np.nonzero(pool >= 0)
    for start in range(0, numbers.size, PAIRS_AT_ONCE):
        part = numbers[start : start + PAIRS_AT_ONCE], places[start : start + PAIRS_AT_ONCE]
        asked, items = queries[part[0]].astype(np.int64), pool[part].astype(np.int64)
        scores[part] = _checked(score(asked, items), asked, items)
    return scores


def _checked(scores: np.ndarray, queries: np.ndarray, items: np.ndarray) -> Float32[np.ndarray, " n_pairs"]:
    if scores.shape != items.shape or scores.dtype != np.float32:
        found = f"{scores.dtype} {scores.shape}"
        raise ProtocolError(f"the second stage scored {items.size} pairs with {found}; expected float32 (n_pairs,).")
    wrong = ~np.isfinite(scores)
    if wrong.any():
        pair = np.argmax(wrong)
        where = f"query {queries[pair]} with item {items[pair]}"
        raise ProtocolError(f"the second stage scored {where} of the gallery {scores[pair]}; expected finite scores.")
    return scores


def _reorder(first: Ranking, scores: Float32[np.ndarray, "n_queries k"]) -> _Pool:
    """The pool in the second stage's order."""
    items = first.top[:, : scores.shape[1]]
    order = np.lexsort((items, -scores))
    return _Pool(
        np.take_along_axis(items, order, axis=1),
        np.take_along_axis(scores, order, axis=1),
        np.take_along_axis(_find_relevant(first, items), order, axis=1),
    )


def _find_relevant(ranks: Ranking, items: Int[np.ndarray, "n_queries k"]) -> Bool[np.ndarray, "n_queries k"]:
    """Which of each query's `items` are among its positives."""
    n_items = int(max(items.max(), ranks.items.max())) + 1
    queries = np.arange(len(items))
    own = np.repeat(queries, ranks.n_positives) * n_items + ranks.items
    return np.isin(queries[:, None] * n_items + items, own) & (items >= 0)


def _rank_pool(pool: _Pool) -> tuple[Int[np.ndarray, " n_inside"], Int[np.ndarray, " n_inside"]]:
    """The pessimistic and the optimistic ranks of the positives inside, query after query, best first."""
    columns = np.arange(pool.items.shape[1])
    breaks = np.pad(pool.scores[:, 1:] != pool.scores[:, :-1], ((0, 0), (1, 1)), constant_values=True)
    starts = np.maximum.accumulate(np.where(breaks[:, :-1], columns, 0), axis=1)
    ends = np.minimum.accumulate(np.where(breaks[:, 1:], columns, columns[-1])[:, ::-1], axis=1)[:, ::-1]
    n_others = np.pad(np.cumsum(~pool.relevant, axis=1), ((0, 0), (1, 0)))
    places = np.cumsum(pool.relevant, axis=1)
    lost, won = (np.take_along_axis(n_others, level, axis=1) + places for level in (ends + 1, starts))
    return lost[pool.relevant], won[pool.relevant]
