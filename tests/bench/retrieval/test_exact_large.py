"""Ranking 30,000 images against 155,000 captions: the largest clean test set that people use, in bounded memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from bench.metrics import hit
from bench.retrieval.exact import positives_of_pairs, rank_positives

N_IMAGES, CAPTIONS_EACH, DIM = 31_000, 5, 64
SCORES_BYTES = 4 * N_IMAGES * N_IMAGES * CAPTIONS_EACH


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_memory_stays_bounded(direction: str) -> None:
    rng = np.random.Generator(np.random.Philox(0))
    images = rng.standard_normal((N_IMAGES, DIM), np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts = np.repeat(images, CAPTIONS_EACH, axis=0)
    texts[::CAPTIONS_EACH] = -texts[::CAPTIONS_EACH]  # one caption in five is as wrong as can be
    n_texts = len(texts)
    pairs = np.stack([np.arange(n_texts) // CAPTIONS_EACH, np.arange(n_texts)], axis=1)
    asked, gallery = (texts, images) if direction == "t2i" else (images, texts)
    tracemalloc.start()
    ranking = rank_positives(asked, gallery, positives_of_pairs(pairs, direction))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400 << 20 < SCORES_BYTES / 40
    if direction == "t2i":
        expected = np.arange(n_texts) % CAPTIONS_EACH > 0
        assert ((hit(ranking, 1) > 0) == expected).all()
    else:
        assert (hit(ranking, 1) == 1).all()
        assert (ranking.pessimistic[CAPTIONS_EACH - 1 :: CAPTIONS_EACH] == n_texts).all()
