"""Exact ranking against full sorting, by hand, under ties, and in bounded memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import InputError
from bench.retrieval import exact
from bench.retrieval.exact import Positives, positives_of_labels, positives_of_pairs, rank_positives

few = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def quantised(rng: np.random.Generator, n_rows: int, dim: int) -> np.ndarray:
    """Small integers: inner products are exact in float32, and many are equal."""
    return rng.integers(-2, 3, size=(n_rows, dim)).astype(np.float32)


def random_positives(rng: np.random.Generator, n_queries: int, n_items: int) -> Positives:
    chosen = [
        np.sort(rng.choice(n_items, size=rng.integers(1, min(6, n_items) + 1), replace=False)) for _ in range(n_queries)
    ]
    offsets = np.cumsum([0, *(len(items) for items in chosen)])
    return Positives(np.arange(n_queries), offsets, np.concatenate(chosen))


def random_case(seed: int, max_queries: int = 150, max_items: int = 150) -> tuple[np.ndarray, np.ndarray, Positives]:
    rng = np.random.default_rng(seed)
    n_queries, n_items = rng.integers(1, max_queries), rng.integers(2, max_items)
    queries, gallery = quantised(rng, n_queries, 4), quantised(rng, n_items, 4)
    return queries, gallery, random_positives(rng, n_queries, n_items)


def places_by_sorting(scores: np.ndarray, positive: np.ndarray, positives_win: bool) -> list[int]:
    """1-based places of the positives in a full sort that breaks ties against them, or for them."""
    order = np.lexsort((~positive if positives_win else positive, -scores))
    return [place + 1 for place, item in enumerate(order) if positive[item]]


def check_against_sorting(
    queries: np.ndarray, gallery: np.ndarray, positives: Positives, exclude_self: bool = False, **options: int
) -> None:
    ranking = rank_positives(queries, gallery, positives, exclude_self=exclude_self, **options)
    for number, row in enumerate(positives.queries):
        own = slice(positives.offsets[number], positives.offsets[number + 1])
        scores = np.array([float(np.dot(queries[row].astype(np.float64), item)) for item in gallery])
        if exclude_self:
            scores[row] = -np.inf
        positive = np.zeros(len(gallery), dtype=bool)
        positive[positives.items[own]] = True
        assert ranking.pessimistic[own].tolist() == places_by_sorting(scores, positive, positives_win=False)
        assert ranking.optimistic[own].tolist() == places_by_sorting(scores, positive, positives_win=True)
        by_score = sorted(positives.items[own], key=lambda item: (-scores[item], item))
        assert ranking.items[own].tolist() == by_score
        best = [item for item in np.argsort(-scores, kind="stable") if scores[item] > -np.inf][: ranking.top.shape[1]]
        assert ranking.top[number].tolist() == best + [-1] * (ranking.top.shape[1] - len(best))


def test_three_by_three_with_negative_scores_by_hand() -> None:
    scores = np.array([[-0.1, -0.2, -0.3], [-0.5, -0.5, 0.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    positives = Positives(np.arange(3), np.array([0, 1, 2, 4]), np.array([1, 0, 0, 2]))
    ranking = rank_positives(scores, np.eye(3, dtype=np.float32), positives)
    assert ranking.pessimistic.tolist() == [2, 3, 2, 3]
    assert ranking.optimistic.tolist() == [2, 2, 1, 2]
    assert ranking.items.tolist() == [1, 0, 0, 2]
    assert ranking.top[:, :4].tolist() == [[0, 1, 2, -1], [2, 0, 1, -1], [0, 1, 2, -1]]
    assert ranking.pessimistic.dtype == ranking.top.dtype == ranking.items.dtype == np.int32
    assert ranking.top.shape == (3, 10)


@pytest.mark.parametrize("seed", range(8))
def test_equals_a_full_sort_with_ties_and_several_positives(seed: int) -> None:
    check_against_sorting(*random_case(seed))


@pytest.mark.parametrize("block_bytes", [1, 64 * 256 * 4, 128 * 256 * 4, 1 << 30])
def test_blocks_do_not_matter(block_bytes: int) -> None:
    rng = np.random.default_rng(1)
    queries, gallery = quantised(rng, 200, 5), quantised(rng, 250, 5)
    check_against_sorting(queries, gallery, random_positives(rng, 200, 250), block_bytes=block_bytes, top=3)


def test_image_to_image_leaves_the_query_out() -> None:
    rng = np.random.default_rng(2)
    labels = np.append(rng.integers(0, 12, size=150), [50, 51])
    images = quantised(rng, labels.size, 4)
    positives = positives_of_labels(labels)
    assert labels.size - positives.queries.size == 2
    for number, query in enumerate(positives.queries):
        others = [image for image in np.flatnonzero(labels == labels[query]) if image != query]
        assert positives.items[positives.offsets[number] : positives.offsets[number + 1]].tolist() == others
    check_against_sorting(images, images, positives, exclude_self=True)


@pytest.mark.parametrize("seed", range(5))
def test_stand_ins_are_seen_by_the_queries_that_they_are_right_for(seed: int) -> None:
    queries, gallery, positives = random_case(seed)
    stand_ins = quantised(np.random.default_rng(seed + 99), len(gallery), 4)
    ranking = rank_positives(queries, gallery, positives, block_bytes=1 << 12, stand_ins=stand_ins)
    for number, query in enumerate(queries):
        own = slice(positives.offsets[number], positives.offsets[number + 1])
        positive = np.isin(np.arange(len(gallery)), positives.items[own])
        scores = np.where(positive, stand_ins @ query, gallery @ query)
        assert ranking.pessimistic[own].tolist() == places_by_sorting(scores, positive, positives_win=False)
        assert ranking.optimistic[own].tolist() == places_by_sorting(scores, positive, positives_win=True)


def test_a_constant_encoder_is_last_among_stand_ins_as_well() -> None:
    constant = np.full((70, 48), 1 / np.sqrt(48), np.float32)
    positives = Positives(np.arange(64), np.arange(65), np.arange(64))
    ranking = rank_positives(constant[:64], constant, positives, stand_ins=constant.copy())
    assert (ranking.pessimistic == 70).all()
    assert (ranking.optimistic == 1).all()


def test_pairs_become_positives_of_both_directions() -> None:
    pairs = np.array([[0, 2], [0, 0], [1, 1], [1, 0], [0, 2]])
    captions, images = positives_of_pairs(pairs, "t2i"), positives_of_pairs(pairs, "i2t")
    assert [part.tolist() for part in (captions.queries, captions.offsets, captions.items)] == [
        [0, 1, 2],
        [0, 2, 3, 4],
        [0, 1, 1, 0],
    ]
    assert [part.tolist() for part in (images.queries, images.offsets, images.items)] == [
        [0, 1],
        [0, 2, 4],
        [0, 2, 0, 1],
    ]


@pytest.mark.parametrize("dim", [1, 7, 512, 769])
@pytest.mark.parametrize(("n_queries", "n_items"), [(37, 1001), (1, 2), (65, 63), (130, 999), (64, 128), (3, 4097)])
def test_a_constant_encoder_is_last(n_queries: int, n_items: int, dim: int) -> None:
    vector = np.random.default_rng(n_items).standard_normal(dim).astype(np.float32)
    vector /= np.linalg.norm(vector)
    positives = Positives(np.arange(n_queries), np.arange(n_queries + 1), np.arange(n_queries) * 7 % n_items)
    ranking = rank_positives(np.tile(vector, (n_queries, 1)), np.tile(vector, (n_items, 1)), positives)
    assert (ranking.pessimistic == n_items).all()
    assert (ranking.optimistic == 1).all()


@pytest.fixture
def round_by_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that are off by a little more in each column, as a matrix product's edge kernels may leave them."""

    def iterate(*arguments: object) -> Iterator[tuple[int, np.ndarray]]:
        for start, scores in plain(*arguments):
            scores += np.linspace(0, 1e-5, scores.shape[1], dtype=np.float32)
            yield start, scores

    plain = exact._iterate_scores
    monkeypatch.setattr(exact, "_iterate_scores", iterate)


def check_pairs_of_copies_tie(n_queries: int, n_items: int, dim: int) -> None:
    rng = np.random.default_rng(3)
    once = rng.standard_normal((n_items, dim), dtype=np.float32)
    once[:, 0] = 0
    again = once * np.array([-1] + [1] * (dim - 1), dtype=np.float32)
    order = rng.permutation(2 * n_items)
    gallery = np.concatenate([once, again])[order]
    one_copy = np.argsort(order)[:n_items]
    positives = Positives(np.arange(n_queries), np.arange(n_queries + 1), one_copy[:n_queries])
    ranking = rank_positives(rng.standard_normal((n_queries, dim), dtype=np.float32), gallery, positives)
    assert (ranking.pessimistic - ranking.optimistic == 1).all()


@pytest.mark.parametrize(("n_queries", "n_items", "dim"), [(37, 1001, 512), (200, 333, 100), (1, 77, 640)])
def test_equal_vectors_tie_exactly_wherever_they_stand(n_queries: int, n_items: int, dim: int) -> None:
    check_pairs_of_copies_tie(n_queries, n_items, dim)


@pytest.mark.usefixtures("round_by_column")
def test_equal_vectors_tie_even_if_their_products_do_not() -> None:
    check_pairs_of_copies_tie(37, 1001, 8)
    one_each = Positives(np.arange(37), np.arange(38), np.full(37, 900))
    constant = rank_positives(np.ones((37, 4), dtype=np.float32), np.ones((1001, 4), dtype=np.float32), one_each)
    assert (constant.pessimistic == 1001).all()
    assert (constant.optimistic == 1).all()


@few
@given(seed=st.integers(0, 10**6), factor=st.integers(1, 7), exponent=st.integers(-20, 20))
def test_scale_changes_nothing(seed: int, factor: int, exponent: int) -> None:
    queries, gallery, positives = random_case(seed)
    scale = np.float32(factor * 2.0**exponent)
    plain, scaled = rank_positives(queries, gallery, positives), rank_positives(queries * scale, gallery, positives)
    for name in ("pessimistic", "optimistic", "items", "top"):
        assert np.array_equal(getattr(plain, name), getattr(scaled, name))


@few
@given(seed=st.integers(0, 10**6))
def test_order_of_the_gallery_changes_no_rank(seed: int) -> None:
    queries, gallery, positives = random_case(seed)
    order = np.random.default_rng(seed).permutation(len(gallery))
    moved = np.argsort(order)[positives.items]
    pieces = np.split(moved, positives.offsets[1:-1])
    elsewhere = Positives(positives.queries, positives.offsets, np.concatenate([np.sort(piece) for piece in pieces]))
    plain, shuffled = rank_positives(queries, gallery, positives), rank_positives(queries, gallery[order], elsewhere)
    assert np.array_equal(plain.pessimistic, shuffled.pessimistic)
    assert np.array_equal(plain.optimistic, shuffled.optimistic)


@few
@given(seed=st.integers(0, 10**6))
def test_a_distractor_never_improves_a_rank(seed: int) -> None:
    queries, gallery, positives = random_case(seed)
    distractor = quantised(np.random.default_rng(seed + 1), 1, 4)
    plain = rank_positives(queries, gallery, positives)
    crowded = rank_positives(queries, np.concatenate([gallery, distractor]), positives)
    assert set(crowded.pessimistic - plain.pessimistic) <= {0, 1}
    assert set(crowded.optimistic - plain.optimistic) <= {0, 1}


def test_a_distractor_equal_to_the_positive_costs_one_pessimistic_place() -> None:
    gallery = np.eye(3, dtype=np.float32)
    positives = Positives(np.arange(3), np.arange(4), np.arange(3))
    crowded = rank_positives(gallery, np.concatenate([gallery, gallery[:1]]), positives)
    assert crowded.pessimistic.tolist() == [2, 1, 1]
    assert crowded.optimistic.tolist() == [1, 1, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n_bad", [1, 2])
def test_names_the_first_row_that_is_not_finite(value: float, n_bad: int) -> None:
    rng = np.random.default_rng(4)
    clean = rng.standard_normal((300, 8), dtype=np.float32)
    positives = Positives(np.arange(300), np.arange(301), np.arange(300))
    broken = clean.copy()
    broken[[130, 299][:n_bad], 3] = value
    with pytest.raises(InputError, match="query row 130 is not finite"):
        rank_positives(broken, clean, positives, block_bytes=1)
    with pytest.raises(InputError, match="gallery row 130 is not finite"):
        rank_positives(clean, broken, positives)
    labels = np.zeros(300, dtype=np.int64)
    with pytest.raises(InputError, match="gallery row 130 is not finite"):
        rank_positives(clean, broken, positives_of_labels(labels), exclude_self=True)


def test_scores_that_overflow_are_refused() -> None:
    huge = np.full((3, 2), 3e38, dtype=np.float32)
    with pytest.raises(InputError, match="query row 0 has scores that are not finite"):
        rank_positives(huge, huge, Positives(np.arange(3), np.arange(4), np.arange(3)))


def test_refuses_what_does_not_fit() -> None:
    ones, one_each = np.ones((3, 2), dtype=np.float32), Positives(np.arange(3), np.arange(4), np.arange(3))
    with pytest.raises(InputError, match="queries are float64"):
        rank_positives(ones.astype(np.float64), ones, one_each)
    with pytest.raises(InputError, match="2 and 3 dimensions"):
        rank_positives(ones, np.ones((3, 3), dtype=np.float32), one_each)
    with pytest.raises(InputError, match="gallery row 2; expected 0 to 1"):
        rank_positives(ones, ones[:2], one_each)
    with pytest.raises(InputError, match="query row 2; expected 0 to 1"):
        rank_positives(ones[:2], ones, one_each)
    with pytest.raises(InputError, match="row 0 is a positive of itself"):
        rank_positives(ones, ones, one_each, exclude_self=True)
    with pytest.raises(InputError, match="top is 0"):
        rank_positives(ones, ones, one_each, top=0)
    with pytest.raises(InputError, match="query 1 has no positive"):
        Positives(np.arange(2), np.array([0, 1, 1]), np.array([0]))
    with pytest.raises(InputError, match="do not rise"):
        Positives(np.arange(1), np.array([0, 2]), np.array([1, 1]))
    with pytest.raises(InputError, match="none of 3 images shares its label"):
        positives_of_labels(np.arange(3))


def test_memory_is_one_block_and_not_the_matrix() -> None:
    rng = np.random.default_rng(5)
    queries = rng.standard_normal((6_000, 16), dtype=np.float32)
    gallery = rng.standard_normal((8_000, 16), dtype=np.float32)
    positives = Positives(np.arange(6_000), np.arange(6_001), np.arange(6_000))
    block_bytes, matrix_bytes = 4 << 20, 4 * 6_000 * 8_000
    rank_positives(queries[:64], gallery, Positives(np.arange(64), np.arange(65), np.arange(64)))
    tracemalloc.start()
    rank_positives(queries, gallery, positives, block_bytes=block_bytes)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert block_bytes / 2 < peak_bytes < block_bytes + (3 << 20) < matrix_bytes / 10
