"""How well a second stage orders what the first one found, on validation examples."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from submissions.backbones.examples import Examples


class Candidates:
    """The pairs that a second stage orders: each image with its best captions, and captions with their best images.

    One caption of each image asks, its first, because every pair costs a pass through a network.

    Args:
        cosines: of the first stage.
        examples: that they are of.
        pool: best items of each query.
    """

    def __init__(self, cosines: Float[Tensor, "n_images n_captions"], examples: Examples, pool: int) -> None:
        true = np.zeros(cosines.shape, bool)
        true[tuple(examples.collection.positives.T)] = True
        asked = np.array([of_image[0] for of_image in examples.captions_of])
        i2t = _pairs(cosines, pool)
        t2i = np.flip(_pairs(cosines.T[asked], pool), axis=-1)
        t2i[..., 1] = asked[:, None]
        self._by_direction = (i2t, t2i)
        self._right = [true[tuple(pairs.reshape(-1, 2).T)].reshape(pairs.shape[:2]) for pairs in self._by_direction]

    @property
    def pairs(self) -> Int[np.ndarray, "n_pairs 2"]:
        """All of them, (image, caption), those of each query together and best first."""
        return np.concatenate([pairs.reshape(-1, 2) for pairs in self._by_direction])

    def recall_at_1(self, scores: Float[np.ndarray, " n_pairs"]) -> float:
        """Mean of both directions' R@1 in percent where such scores of `pairs` order them."""
        return self._mean([ranks == 1 for ranks in self._ranks(scores)])

    def reciprocal_rank(self, scores: Float[np.ndarray, " n_pairs"]) -> float:
        """Mean of both directions' mean reciprocal rank in percent: as R@1, but it tells more settings apart."""
        return self._mean([1 / ranks for ranks in self._ranks(scores)])

    def _mean(self, values: list[np.ndarray]) -> float:
        return float(100 * np.mean([of_queries.mean() for of_queries in values]))

    def _ranks(self, scores: Float[np.ndarray, " n_pairs"]) -> list[Float[np.ndarray, " n_queries"]]:
        """Of each query's first right item, from one; infinite where there is none."""
        first = self._right[0].size
        parts = zip(np.split(scores, [first]), self._right, strict=True)
        return [_first_right(part.reshape(right.shape), right) for part, right in parts]


def _first_right(
    scores: Float[np.ndarray, "n_queries pool"], right: Bool[np.ndarray, "n_queries pool"]
) -> Float[np.ndarray, " n_queries"]:
    order = np.argsort(-scores, axis=1, kind="stable")
    ordered = np.take_along_axis(right, order, axis=1)
    return np.where(ordered.any(axis=1), 1.0 + ordered.argmax(axis=1), np.inf)


def _pairs(cosines: Float[Tensor, "n_queries n_items"], pool: int) -> Int[np.ndarray, "n_queries pool 2"]:
    """(query, item) of every query and its best items, best first."""
    items = cosines.topk(min(pool, cosines.shape[1])).indices.numpy()
    return np.stack([np.broadcast_to(np.arange(len(items))[:, None], items.shape), items], axis=-1)
