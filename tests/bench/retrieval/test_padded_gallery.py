"""Galleries in shards, their beginnings, their threads, and the exact best items against full sorting."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest

from bench.errors import InputError, UsageError
from bench.retrieval import gallery as gallery_module
from bench.retrieval.gallery import ExactBest, PaddedGallery, hardness


def unit(n: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_module, "BLOCK_ITEMS", 50)
    monkeypatch.setattr(gallery_module, "SHARD_ITEMS", 200)


def gallery_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("rove-gallery")]


@pytest.mark.usefixtures("small_shards")
def test_real_vectors_come_first_and_all_rows_come_once() -> None:
    real = unit(250)
    gallery = PaddedGallery(real, 1035, seed=0)
    shards = list(gallery.shards())
    rows = np.concatenate(shards)
    assert max(len(shard) for shard in shards) == 200
    assert rows.shape == (1035, 8)
    assert rows.dtype == np.float32
    assert (rows[:250] == real).all()
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-6)
    assert np.unique(rows, axis=0).shape == rows.shape
    assert (gallery.n_real, gallery.n_synthetic, gallery.dim) == (250, 785, 8)
    assert not gallery_threads()


@pytest.mark.usefixtures("small_shards")
def test_the_vectors_do_not_depend_on_threads_or_the_number_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    real = unit(120)
    whole = np.concatenate(list(PaddedGallery(real, 1000, seed=5).shards()))
    monkeypatch.setattr(gallery_module, "_count_cores", lambda: 1)
    assert (np.concatenate(list(PaddedGallery(real, 1000, seed=5).shards())) == whole).all()
    assert (np.concatenate(list(PaddedGallery(real, 333, seed=5).shards())) == whole[:333]).all()
    assert (PaddedGallery(real, 1000, seed=5).synthetic(470) == whole[120:590]).all()
    assert (PaddedGallery(real, 1000, seed=6).synthetic(470) != whole[120:590]).all()


@pytest.mark.usefixtures("small_shards")
def test_an_iterator_that_is_closed_early_leaves_no_thread() -> None:
    shards = PaddedGallery(unit(20), 5000, seed=0).shards()
    next(shards)
    next(shards)
    assert gallery_threads()
    shards.close()
    assert not gallery_threads()


def test_a_gallery_is_never_held_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_module, "BLOCK_ITEMS", 500)
    monkeypatch.setattr(gallery_module, "SHARD_ITEMS", 5000)
    gallery = PaddedGallery(unit(100, 64), 100_000, seed=0)
    assert gallery.mixture is not None
    tracemalloc.start()
    n_rows = 0
    for shard in gallery.shards():
        n_rows += len(shard)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_rows == 100_000
    assert peak < 4 * 5000 * 64 * 4


def test_without_synthetic_items_nothing_is_fitted() -> None:
    gallery = PaddedGallery(unit(1), 1, seed=0)
    assert gallery.mixture is None
    assert [len(shard) for shard in gallery.shards()] == [1]
    assert gallery.synthetic(3).shape == (0, 8)


def test_identity_changes_with_whatever_decides_the_vectors() -> None:
    real = unit(30)
    other = real.copy()
    other[29, 0] = np.nextafter(other[29, 0], 2)
    galleries = [(real, 100, 0), (real, 101, 0), (real, 100, 1), (other, 100, 0), (real.reshape(60, 4), 100, 0)]
    galleries[-1] = (galleries[-1][0] / np.linalg.norm(galleries[-1][0], axis=1, keepdims=True), 100, 0)
    identities = {PaddedGallery(*arguments).identity for arguments in galleries}
    assert len(identities) == 5
    assert PaddedGallery(real.copy(), 100, 0).identity in identities


@pytest.mark.usefixtures("small_shards")
def test_a_sample_has_the_shares_of_the_gallery() -> None:
    real = unit(100)
    gallery = PaddedGallery(real, 1000, seed=0)
    rows = {row.tobytes(): number for number, row in enumerate(np.concatenate(list(gallery.shards())))}
    sample = [rows[row.tobytes()] for row in gallery.sample(300)]
    assert len(set(sample)) == 300
    assert sum(row < 100 for row in sample) == 30
    assert max(row for row in sample if row < 100) > 50
    assert sorted(rows[row.tobytes()] for row in gallery.sample(5000)) == list(range(1000))


def test_galleries_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="9 items was asked for; expected 10"):
        PaddedGallery(unit(10), 9, seed=0)
    with pytest.raises(UsageError, match="2,147,483,648"):
        PaddedGallery(unit(10), 2**31, seed=0)
    stretched = unit(10)
    stretched[4] *= 2
    with pytest.raises(InputError, match="row 4 has length 2"):
        PaddedGallery(stretched, 10, seed=0)
    stretched[4] = np.nan
    with pytest.raises(InputError, match="row 4 has length nan"):
        PaddedGallery(stretched, 10, seed=0)


@pytest.mark.parametrize("n_queries", [1, 7, 300])
def test_the_best_items_are_those_of_a_full_sort(n_queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_module, "SCORE_BYTES", 4096)
    rng = np.random.default_rng(n_queries)
    # Small integers: scores are exact and many are equal.
    queries = rng.integers(-2, 3, (n_queries, 4)).astype(np.float32)
    items = rng.integers(-2, 3, (900, 4)).astype(np.float32)
    best = ExactBest(queries, 12)
    for part in (items[:5], items[5:600], items[600:]):
        best.add(part)
    scores, rows = best.result()
    every = queries @ items.T
    expected = np.stack([np.lexsort((np.arange(900), -line))[:12] for line in every])
    assert rows.dtype == np.int64
    assert (rows == expected).all()
    assert (scores == np.take_along_axis(every, expected, axis=1)).all()


def test_best_items_of_a_short_gallery_and_wrong_arguments() -> None:
    best = ExactBest(unit(3), 4)
    best.add(unit(2, seed=1))
    scores, rows = best.result()
    assert (np.sort(rows, axis=1) == [-1, -1, 0, 1]).all()
    assert np.isneginf(scores[:, 2:]).all()
    with pytest.raises(InputError, match=r"expected float32 \(n_items, 8\)"):
        best.add(unit(2, 9))
    with pytest.raises(InputError, match="at least 1"):
        ExactBest(unit(3), 0)
    with pytest.raises(InputError, match="finite"):
        ExactBest(np.full((2, 8), np.nan, np.float32), 1)


def test_hardness_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_module, "SCORE_BYTES", 8)
    queries = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    real = np.array([[1, 0], [0.6, 0.8]], np.float32)
    synthetic = np.array([[0.8, 0.6], [0, -1], [1, 0]], np.float32)
    assert hardness(queries, np.array([0, 1, 0]), real, synthetic) == pytest.approx((0.6, 0.8))
    both = [np.array([0]), np.array([1]), np.array([0, 1])]
    assert hardness(queries, both, real, synthetic) == pytest.approx((0.3, 0.8))
    assert hardness(queries[:1], np.array([0]), real[:1], synthetic[:0]) == (None, None)
