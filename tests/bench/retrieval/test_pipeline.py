"""The served pipeline: order of both stages, pools that are short, and where the time goes."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest

from bench.errors import UsageError
from bench.retrieval.pipeline import Pipeline

N_ITEMS, DIM = 60, 8


class Exact:
    """An index by brute force that finds at most `n_found` items."""

    def __init__(self, gallery, n_found=N_ITEMS):
        self.gallery, self.n_found = gallery, n_found

    def search(self, queries, k):
        scores = queries @ self.gallery.T
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        rows[:, self.n_found :] = -1
        return np.take_along_axis(scores, rows, axis=1), rows


class Rows:
    """A payload whose tokens are the row's own number, so that what was fetched can be read off the scores."""

    def fetch(self, rows):
        return rows.astype(np.float16)[:, None]


class Numbers:
    """A submission whose texts are numbers of its vectors, and whose second stage prefers the rows of `liking`."""

    def __init__(self, vectors, liking):
        self.vectors, self.liking, self.pairs = vectors, liking, []

    def encode_texts(self, texts):
        return self.vectors[[int(text) for text in texts]]

    def score_pairs(self, tokens, texts):
        assert tokens.shape == (len(texts), 1)
        self.pairs += list(zip(tokens[:, 0].astype(int).tolist(), texts, strict=True))
        return self.liking[tokens[:, 0].astype(int)].astype(np.float32)


@pytest.fixture
def world():
    rng = np.random.default_rng(3)
    gallery = rng.standard_normal((N_ITEMS, DIM)).astype(np.float32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    return gallery, rng.standard_normal((20, DIM)).astype(np.float32), rng.permutation(N_ITEMS)


def first_stage(gallery, queries, k):
    return np.argsort(-(queries @ gallery.T), axis=1)[:, :k]


def test_one_stage_gives_the_exact_best(world):
    gallery, queries, liking = world
    answer = Pipeline(Numbers(queries, liking), Exact(gallery)).answer([str(i) for i in range(20)])
    np.testing.assert_array_equal(answer.rows, first_stage(gallery, queries, 10))
    assert list(answer.ns) == ["encode", "search", "end_to_end"]


@pytest.mark.parametrize("rerank_k", [1, 5, 10, 30])
def test_second_stage_orders_its_pool_and_leaves_the_rest(world, rerank_k):
    gallery, queries, liking = world
    pipeline = Pipeline(Numbers(queries, liking), Exact(gallery), Rows(), 10, rerank_k)
    rows = pipeline.answer([str(i) for i in range(20)]).rows
    for found, best in zip(rows, first_stage(gallery, queries, max(10, rerank_k)), strict=True):
        pool = sorted(best[:rerank_k], key=lambda row: -liking[row])
        assert found.tolist() == [*pool, *best[rerank_k:]][:10]


@pytest.mark.parametrize("k", [1, 3, 10, 25])
def test_recall_at_k_does_not_change_when_k_items_are_reranked(world, k):
    gallery, queries, liking = world
    texts = [str(i) for i in range(20)]
    one = Pipeline(Numbers(queries, liking), Exact(gallery), k=k).answer(texts).rows
    two = Pipeline(Numbers(queries, liking), Exact(gallery), Rows(), k, k).answer(texts).rows
    np.testing.assert_array_equal(np.sort(one), np.sort(two))
    assert k == 1 or (one != two).any()


def test_pool_with_too_few_items_ends_in_minus_one(world):
    gallery, queries, liking = world
    submission = Numbers(queries, liking)
    rows = Pipeline(submission, Exact(gallery, n_found=3), Rows(), 10, 8).answer(["0", "7"]).rows
    assert (rows[:, 3:] == -1).all()
    assert (rows[:, :3] >= 0).all()
    assert len(submission.pairs) == 6
    assert {text for _, text in submission.pairs} == {"0", "7"}


def test_stages_add_up_to_the_whole(world):
    gallery, queries, liking = world
    ticks = count(start=100, step=7)
    pipeline = Pipeline(Numbers(queries, liking), Exact(gallery), Rows(), 10, 10, clock=lambda: next(ticks))
    ns = pipeline.answer(["1"]).ns
    assert ns == {"encode": 7, "search": 7, "fetch": 7, "rerank": 7, "end_to_end": 28}


@pytest.mark.parametrize(("payload", "rerank_k", "k"), [(None, 5, 10), (Rows(), 0, 10), (Rows(), -1, 10), (None, 0, 0)])
def test_contradictions_are_refused(world, payload, rerank_k, k):
    gallery, queries, liking = world
    with pytest.raises(UsageError, match="expected both or none"):
        Pipeline(Numbers(queries, liking), Exact(gallery), payload, k, rerank_k)
