"""Properties of metrics, ranking and the store that hold for whatever comes, tried on what hypothesis makes up."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bench.errors import InputError, RoveError
from bench.metrics import HIT_CUTOFFS, METRICS, find_metric, has_ties, score_queries, summarise
from bench.retrieval.exact import Positives, Ranking, rank_positives
from bench.store import replacing, write_atomic

some = settings(max_examples=40, deadline=None, derandomize=True, database=None)

Case = tuple[np.ndarray, np.ndarray, list[list[int]]]


@st.composite
def retrievals(draw: st.DrawFn) -> Case:
    """Vectors of small whole numbers, whose products are exact and often equal, and each query's positives."""
    n_queries, n_items, dim = draw(st.integers(1, 8)), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    numbers = st.integers(-2, 2).map(float)
    queries = draw(hnp.arrays(np.float32, (n_queries, dim), elements=numbers))
    gallery = draw(hnp.arrays(np.float32, (n_items, dim), elements=numbers))
    items = st.lists(st.integers(0, n_items - 1), min_size=1, max_size=4, unique=True).map(sorted)
    return queries, gallery, draw(st.lists(items, min_size=n_queries, max_size=n_queries))


def rank(queries: np.ndarray, gallery: np.ndarray, positives: list[list[int]]) -> Ranking:
    offsets = np.cumsum([0, *map(len, positives)])
    return rank_positives(queries, gallery, Positives(np.arange(len(queries)), offsets, np.concatenate(positives)))


def places(scores: list[float], positives: list[int], ties_lost: bool) -> list[int]:
    """The places of the positives when everything is put into one order, ties lost or won."""
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], (item in positives) == ties_lost, item))
    return [place for place, item in enumerate(order, start=1) if item in positives]


def exact_hit(places: list[int], n_items: int, k: int) -> Fraction:
    return Fraction(min(places) <= k)


def exact_recall(places: list[int], n_items: int, k: int) -> Fraction:
    return Fraction(sum(place <= k for place in places), len(places))


def exact_precision(places: list[int], n_items: int, k: int) -> Fraction:
    return Fraction(sum(place <= len(places) for place in places), len(places))


def exact_map_at_r(places: list[int], n_items: int, k: int) -> Fraction:
    found = [Fraction(i, place) for i, place in enumerate(places, start=1) if place <= len(places)]
    return sum(found, Fraction(0)) / len(places)


def exact_reciprocal(places: list[int], n_items: int, k: int) -> Fraction:
    return Fraction(1, min(places))


REFERENCES: dict[str, tuple[Callable[[list[int], int, int], Fraction], int]] = {
    **{f"hit@{k}": (exact_hit, k) for k in HIT_CUTOFFS},
    **{f"recall@{k}": (exact_recall, k) for k in HIT_CUTOFFS},
    "r_precision": (exact_precision, 0),
    "map@r": (exact_map_at_r, 0),
    "mrr": (exact_reciprocal, 0),
}


@given(retrievals())
@some
def test_ranks_are_those_of_one_full_order(case: Case) -> None:
    ranking = rank(*case)
    queries, gallery, positives = case
    for number, own in enumerate(positives):
        scores = [float(np.dot(queries[number], item)) for item in gallery]
        part = slice(ranking.offsets[number], ranking.offsets[number + 1])
        assert ranking.pessimistic[part].tolist() == places(scores, own, ties_lost=True)
        assert ranking.optimistic[part].tolist() == places(scores, own, ties_lost=False)
        best = sorted(range(len(scores)), key=lambda item: (-scores[item], item))[:10]
        assert ranking.top[number].tolist() == best + [-1] * (10 - len(best))


@given(retrievals())
@some
def test_metrics_are_those_of_a_slow_reference(case: Case) -> None:
    ranking, (queries, gallery, positives) = rank(*case), case
    for metric_id, (reference, k) in REFERENCES.items():
        found = find_metric(metric_id).per_query(ranking)
        for number, own in enumerate(positives):
            scores = [float(np.dot(queries[number], item)) for item in gallery]
            expected = reference(places(scores, own, ties_lost=True), len(gallery), k)
            assert found[number] == pytest.approx(float(expected), abs=1e-12), metric_id


@given(retrievals())
@some
def test_more_places_never_find_less_and_every_fraction_is_one(case: Case) -> None:
    ranking = rank(*case)
    values = dict(zip((metric.id for metric in METRICS), score_queries(ranking).T, strict=True))
    for prefix, suffix in (("hit@", ""), ("hit@", "_optimistic"), ("hit@", "_expected"), ("recall@", "")):
        by_cutoff = [values[f"{prefix}{k}{suffix}"] for k in HIT_CUTOFFS]
        assert all((more >= less - 1e-12).all() for less, more in pairwise(by_cutoff))
    for k in HIT_CUTOFFS:
        assert (values[f"hit@{k}"] <= values[f"hit@{k}_expected"] + 1e-12).all()
        assert (values[f"hit@{k}_expected"] <= values[f"hit@{k}_optimistic"] + 1e-12).all()
    bounded = [values[metric.id] for metric in METRICS if metric.unit != "rank"]
    assert (np.stack(bounded) >= 0).all()
    assert (np.stack(bounded) <= 1 + 1e-12).all()


@given(retrievals(), st.integers(-20, 20), st.randoms(use_true_random=False))
@some
def test_scale_and_the_order_of_queries_and_items_change_no_score(case: Case, exponent: int, random: Any) -> None:
    queries, gallery, positives = case
    scores = summarise(score_queries(rank(*case)))
    factor = np.float32(2.0**exponent)
    np.testing.assert_array_equal(summarise(score_queries(rank(queries * factor, gallery, positives))), scores)
    order = random.sample(range(len(queries)), len(queries))
    shuffled = rank(queries[order], gallery, [positives[number] for number in order])
    np.testing.assert_allclose(summarise(score_queries(shuffled)), scores, atol=1e-12)
    moved = random.sample(range(len(gallery)), len(gallery))  # the item at place p comes from place moved[p]
    found = [sorted(moved.index(item) for item in own) for own in positives]
    np.testing.assert_array_equal(summarise(score_queries(rank(queries, gallery[moved], found))), scores)


@given(st.integers(1, 8), st.integers(2, 40), st.integers(1, 3), st.data())
@some
def test_a_constant_is_never_above_chance(n_queries: int, n_items: int, n_positives: int, data: st.DataObject) -> None:
    some_items = st.lists(st.integers(0, n_items - 1), min_size=1, max_size=n_positives, unique=True).map(sorted)
    positives = [data.draw(some_items) for _ in range(n_queries)]
    value = data.draw(st.sampled_from([0.0, 1.0, -1.0, 1e-30, 3.3]))
    ranking = rank(np.full((n_queries, 2), value, np.float32), np.full((n_items, 2), value, np.float32), positives)
    for k in HIT_CUTOFFS:
        misses = [np.prod([max(n_items - k - j, 0) / (n_items - j) for j in range(len(own))]) for own in positives]
        assert find_metric(f"hit@{k}").per_query(ranking).mean() <= 1 - np.mean(misses) + 1e-12
    if n_items > 1 + max(map(len, positives)):
        assert has_ties(ranking)


@given(retrievals(), st.sampled_from([np.nan, np.inf, -np.inf]), st.booleans(), st.data())
@some
def test_what_is_not_finite_is_refused_by_its_row(
    case: Case, value: float, in_gallery: bool, data: st.DataObject
) -> None:
    queries, gallery, positives = case
    matrix = gallery if in_gallery else queries
    row = data.draw(st.integers(0, len(matrix) - 1))
    matrix[row, data.draw(st.integers(0, matrix.shape[1] - 1))] = value
    kind = "gallery" if in_gallery else "query"
    with pytest.raises(InputError, match=rf"{kind} row {row} is not finite; expected"):
        rank(queries, gallery, positives)


WRITES = ("mkstemp", "write", "fsync", "chmod", "replace")


@given(
    st.binary(max_size=200),
    st.binary(max_size=200),
    st.sampled_from(WRITES),
    st.sampled_from([errno.ENOSPC, errno.EIO]),
)
@some
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, old: bytes, new: bytes, step: str, code: int
) -> None:
    path = tmp_path_factory.mktemp("store") / "x.json"
    write_atomic(path, old)
    with pytest.MonkeyPatch.context() as patch:
        fail(patch, step, code)
        error = OSError(code, os.strerror(code)) if step == "write" else None
        with pytest.raises(RoveError, match=rf"cannot write {path}: .*Earlier files are intact"):
            fill(path, new, error)
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == ["x.json"]
    write_atomic(path, new)
    assert path.read_bytes() == new


def fill(path: Path, data: bytes, error: BaseException | None) -> None:
    """Writes `data`, and ends the block with `error` if there is one."""
    with replacing(path) as file:
        file.write(data)
        if error is not None:
            raise error


def fail(patch: pytest.MonkeyPatch, step: str, code: int) -> None:
    """Lets a step of writing fail; `write` fails in the block itself."""

    def broken(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    if step == "mkstemp":
        patch.setattr("tempfile.mkstemp", broken)
    elif step != "write":
        patch.setattr(os, step, broken)


@given(st.binary(max_size=50), st.sampled_from([KeyboardInterrupt, ValueError, SystemExit, MemoryError]))
@some
def test_whatever_ends_the_block_leaves_the_old_file(
    tmp_path_factory: pytest.TempPathFactory, old: bytes, kind: type[BaseException]
) -> None:
    path = tmp_path_factory.mktemp("store") / "x.json"
    write_atomic(path, old)
    with pytest.raises(kind):
        fill(path, b"half", kind())
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == ["x.json"]


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=8))
@some
def test_the_last_write_stands(tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("store") / "deep" / "x.json"
    for data in contents:
        write_atomic(path, data)
    assert path.read_bytes() == contents[-1]
    assert os.listdir(path.parent) == ["x.json"]
