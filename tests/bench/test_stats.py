"""The bootstrap against explicit resampling and scipy's, corrections by hand, and bounded memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bench import stats
from bench.errors import InputError
from bench.metrics import lower_median, worst_decile, worst_decile_terms
from bench.stats import (
    Interval,
    bootstrap,
    cluster_counts,
    cluster_sums,
    compare,
    detectable_difference,
    holm,
    interval,
    intervals,
    median_replicates,
    median_terms,
    p_value,
    pareto_front,
)


def captions_of_images(seed: int, n_clusters: int, n_metrics: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Values per caption that are alike within an image, and the image of each; captions in random order."""
    rng = np.random.default_rng(seed)
    cluster = rng.permutation(np.repeat(np.arange(n_clusters), rng.integers(1, 7, size=n_clusters)))
    hardness = rng.normal(size=(n_clusters, n_metrics))
    return (hardness[cluster] + rng.normal(size=(cluster.size, n_metrics)) > 0).astype(float), cluster


def weights_of(n_clusters: int, n_resamples: int, seed: int = stats.SEED) -> np.ndarray:
    """The resamples' weights, read off metrics that are 1 for one image each."""
    counts = np.ones((n_clusters, n_clusters))
    return n_clusters * bootstrap(np.eye(n_clusters), counts, n_resamples, seed)


def test_equals_an_explicit_loop_over_resampled_queries() -> None:
    values, cluster = captions_of_images(0, 40)
    sums, counts = cluster_sums(values, cluster, 40), cluster_counts(cluster, 40)
    replicates = bootstrap(sums, counts, n_resamples=60)
    for row, weights in enumerate(np.rint(weights_of(40, 60)).astype(int)):
        assert weights.sum() == 40
        drawn_images = np.repeat(np.arange(40), weights)
        drawn_queries = np.concatenate([np.flatnonzero(cluster == image) for image in drawn_images])
        np.testing.assert_allclose(replicates[row], values[drawn_queries].mean(axis=0), rtol=1e-12)


def test_sums_and_counts_by_hand() -> None:
    values = np.array([[1.0, 0.5], [0.0, 0.25], [1.0, 0.0]])
    cluster = np.array([2, 0, 2])
    assert cluster_sums(values, cluster, 4).tolist() == [[0, 0.25], [0, 0], [2, 0.5], [0, 0]]
    assert cluster_counts(cluster, 4).tolist() == [1, 0, 2, 0]


def test_resamples_depend_only_on_images_and_seed() -> None:
    values, cluster = captions_of_images(1, 50, n_metrics=4)
    sums, counts = cluster_sums(values, cluster, 50), cluster_counts(cluster, 50)
    together = bootstrap(sums, counts, 300)
    assert np.array_equal(bootstrap(sums, counts, 300), together)
    np.testing.assert_allclose(bootstrap(sums[:, 2:], counts, 120), together[:120, 2:], rtol=1e-12)
    per_metric = np.stack([counts, counts, np.ones(50), counts], axis=1)
    mixed = bootstrap(sums, per_metric, 300)
    np.testing.assert_allclose(mixed[:, [0, 1, 3]], together[:, [0, 1, 3]], rtol=1e-12)
    np.testing.assert_allclose(mixed[:, 2], weights_of(50, 300) @ sums[:, 2] / 50, rtol=1e-12)
    assert not np.allclose(bootstrap(sums, counts, 300, seed=1), together)


def test_equal_columns_stand_in_every_place() -> None:
    values, cluster = captions_of_images(2, 50, n_metrics=2)
    sums, counts = cluster_sums(values, cluster, 50)[:, [0, 1, 0, 0]], cluster_counts(cluster, 50)
    columns = np.stack(
        [counts, counts, counts, np.ones(50)], axis=1
    )  # the last has the sums of others, not their counts
    found = bootstrap(sums, columns, 300)
    alone = [bootstrap(sums[:, [i]], columns[:, i], 300) for i in range(4)]
    np.testing.assert_allclose(found, np.hstack(alone), rtol=1e-12)
    ends = [stats.intervals(part)[0] for part in alone]
    np.testing.assert_allclose(stats.intervals(found), ends, rtol=1e-12)
    assert not np.allclose(ends[0], ends[3])


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weights_of(37, 100)
    monkeypatch.setattr(stats, "_CHUNK_BYTES", 37 * 8 * 7)
    np.testing.assert_allclose(weights_of(37, 100), whole, rtol=1e-12)


def test_weights_are_multinomial() -> None:
    weights = weights_of(20, 10_000)
    assert weights.sum(axis=1) == pytest.approx(20)
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.05)
    assert weights.var(axis=0) == pytest.approx(1 - 1 / 20, abs=0.08)
    assert np.corrcoef(weights.T)[0, 1:].mean() == pytest.approx(-1 / 19, abs=0.02)


def test_agrees_with_scipy_on_one_query_per_image() -> None:
    values = np.random.default_rng(2).gamma(2.0, size=(300, 1))
    ours = interval(bootstrap(values, np.ones(300))[:, 0])
    theirs = scipy.stats.bootstrap(
        (values[:, 0],), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(0)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.04 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.04 * width)


def test_covers_the_truth_with_clustered_captions() -> None:
    covered, covered_if_independent = [], []
    for seed in range(300):
        values, cluster = captions_of_images(1000 + seed, 100, n_metrics=1)
        found = interval(bootstrap(cluster_sums(values, cluster, 100), cluster_counts(cluster, 100), 500)[:, 0])
        covered.append(found.low <= 0.5 <= found.high)
        half_width = 1.96 * values.std() / np.sqrt(values.size)
        covered_if_independent.append(abs(values.mean() - 0.5) <= half_width)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.035)
    assert np.mean(covered_if_independent) < 0.85


@pytest.mark.parametrize("spread", [1.5, 8.0, 120.0])
def test_median_replicates_follow_the_medians_of_the_resamples(spread: float) -> None:
    rng = np.random.default_rng(3)
    cluster = np.repeat(np.arange(300), 5)
    ranks = np.floor(1 + rng.exponential(spread, size=300)[cluster] * rng.uniform(0.3, 2, size=1500))
    sums, counts = cluster_sums(median_terms(ranks)[:, None], cluster, 300), cluster_counts(cluster, 300)
    replicates = median_replicates(bootstrap(sums, counts, 2000)[:, 0], ranks)
    weights = np.rint(weights_of(300, 2000)).astype(int)
    exact = np.array([lower_median(np.repeat(ranks, row[cluster])) for row in weights])
    assert np.abs(replicates - exact).mean() < 0.4 * exact.std() + 0.02
    ours, theirs = interval(replicates), interval(exact)
    tolerance = max(1.0, 0.15 * (theirs.high - theirs.low))
    assert ours.low == pytest.approx(theirs.low, abs=tolerance)
    assert ours.high == pytest.approx(theirs.high, abs=tolerance)
    assert set(replicates) <= set(ranks)


@pytest.mark.parametrize("n_queries", [1, 2, 7, 10, 1000])
def test_median_is_its_own_replicate_where_nothing_moves(n_queries: int) -> None:
    ranks = np.random.default_rng(n_queries).integers(1, 40, size=n_queries).astype(float)
    share = median_terms(ranks).mean()
    assert median_replicates(np.array([share, share, np.nan]), ranks)[:2].tolist() == [lower_median(ranks)] * 2
    assert np.isnan(median_replicates(np.array([np.nan]), ranks)).all()


def test_worst_decile_gets_its_interval_as_a_mean() -> None:
    values = np.random.default_rng(4).beta(2, 2, size=1000)
    replicates = bootstrap(worst_decile_terms(values)[:, None], np.ones(1000), 1000)[:, 0]
    weights = np.rint(weights_of(1000, 200)).astype(int)
    exact = np.array([worst_decile(np.repeat(values, row)) for row in weights])
    assert np.corrcoef(replicates[:200], exact)[0, 1] > 0.98
    assert replicates[:200].std() == pytest.approx(exact.std(), rel=0.1)
    assert np.mean(replicates) == pytest.approx(worst_decile(values), abs=0.1 * exact.std())


def test_interval_takes_percentiles_and_leaves_undefined_resamples_out() -> None:
    replicates = np.arange(101.0)
    assert interval(replicates, level=0.5) == Interval(25.0, 75.0)
    assert interval(np.append(replicates, np.full(50, np.nan)), level=0.5) == Interval(25.0, 75.0)
    assert intervals(replicates[:, None])[0] == pytest.approx([2.5, 97.5])
    both = intervals(np.stack([replicates, np.where(replicates < 1, np.nan, replicates)], axis=1), level=0.5)
    assert both.tolist() == [[25.0, 75.0], [25.75, 75.25]]
    with pytest.raises(InputError, match="column 0 is undefined in most resamples"):
        interval(np.array([1.0, np.nan]))


def test_ratio_that_is_undefined_in_some_resamples() -> None:
    clean_hits = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    lost_hits = np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    replicates = bootstrap(lost_hits[:, None], clean_hits, 2000)[:, 0]
    assert np.isnan(replicates).mean() == pytest.approx((4 / 6) ** 6, abs=0.03)
    assert interval(replicates) == Interval(0.0, 1.0)


def test_paired_difference_is_narrower_than_two_unpaired_ones() -> None:
    rng = np.random.default_rng(5)
    first = (rng.random((1000, 1)) < 0.7).astype(float)
    second = np.where(rng.random((1000, 1)) < 0.05, 0.0, first)
    ours, theirs = (bootstrap(values, np.ones(1000), 4000)[:, 0] for values in (first, second))
    found = compare(first.mean(), second.mean(), ours, theirs)
    gaps = (first - second)[:, 0]
    half_width = 1.96 * gaps.std() / np.sqrt(1000)
    assert found.value == pytest.approx(gaps.mean())
    assert found.interval.low == pytest.approx(gaps.mean() - half_width, abs=0.15 * half_width)
    assert found.interval.high == pytest.approx(gaps.mean() + half_width, abs=0.15 * half_width)
    assert found.interval.is_above()
    assert found.p_value == pytest.approx(2 / 4001)
    nothing = compare(first.mean(), first.mean(), ours, ours)
    assert (nothing.value, nothing.interval, nothing.p_value) == (0.0, Interval(0.0, 0.0), 1.0)
    with pytest.raises(InputError, match="expected the same"):
        compare(0.0, 0.0, ours, theirs[:10])


def test_p_values_are_uniform_where_there_is_no_difference() -> None:
    found = []
    for seed in range(300):
        gaps = np.random.default_rng(seed).normal(size=(60, 1))
        found.append(p_value(bootstrap(gaps, np.ones(60), 400)[:, 0]))
    assert np.mean(np.array(found) < 0.5) == pytest.approx(0.5, abs=0.09)
    assert np.mean(np.array(found) < 0.05) == pytest.approx(0.05, abs=0.04)


def test_p_value_by_hand() -> None:
    assert p_value(np.array([1.0, 2.0, 3.0, -1.0, np.nan])) == pytest.approx(2 * 2 / 5)
    assert p_value(np.array([-1.0, -2.0, -3.0])) == pytest.approx(2 / 4)


def test_holm_by_hand() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.7])) == pytest.approx([1.0, 1.0])
    assert holm(np.array([0.05])) == pytest.approx([0.05])
    assert holm(np.array([])).size == 0


def test_superiority_and_equivalence() -> None:
    assert Interval(0.001, 0.02).is_above()
    assert not Interval(0.0, 0.02).is_above()
    assert not Interval(0.001, 0.02).is_above(0.01)
    assert Interval(-0.004, 0.009).is_within(0.01)
    assert not Interval(-0.011, 0.009).is_within(0.01)
    assert not Interval(-0.004, 0.01).is_within(0.01)


def test_detectable_difference() -> None:
    assert detectable_difference(1000, power=0.5) == pytest.approx(0.0248, abs=1e-4)
    assert detectable_difference(1000) == pytest.approx((1.95996 + 0.84162) * 0.4 / 1000**0.5, rel=1e-4)
    assert detectable_difference(4000) == pytest.approx(detectable_difference(1000) / 2)
    rng = np.random.default_rng(6)
    shift = detectable_difference(200, sd=1.0)
    means = rng.normal(shift, 1.0, size=(4000, 200)).mean(axis=1)
    assert np.mean(means - 1.96 / np.sqrt(200) > 0) == pytest.approx(0.8, abs=0.03)


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="query 1 belongs to image 5; expected 0 to 4"):
        cluster_counts(np.array([0, 5]), 5)
    with pytest.raises(InputError, match="query 0 belongs to image -1"):
        cluster_sums(np.ones((1, 1)), np.array([-1]), 5)
    with pytest.raises(InputError, match=r"values have shape \(3, 1\); expected \(2, n_metrics\)"):
        cluster_sums(np.ones((3, 1)), np.array([0, 1]), 5)
    with pytest.raises(InputError, match="value of query 1 in column 0 is not finite"):
        cluster_sums(np.array([[1.0], [np.nan]]), np.array([0, 1]), 5)
    with pytest.raises(InputError, match=r"counts have shape \(4,\)"):
        bootstrap(np.ones((5, 2)), np.ones(4), 10)
    with pytest.raises(InputError, match="column 1 has no query at all"):
        bootstrap(np.ones((5, 2)), np.array([[1.0, 0.0]] * 5), 10)


def test_memory_is_the_result_and_a_few_chunks() -> None:
    n_clusters, n_resamples = 5_000, 6_000
    sums = np.ones((n_clusters, 4))
    tracemalloc.start()
    bootstrap(sums, np.ones(n_clusters), n_resamples)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    all_weights_bytes = 8 * n_clusters * n_resamples
    assert stats._DRAWN_BYTES < peak_bytes < 5 * stats._DRAWN_BYTES < all_weights_bytes


def points_on_a_grid() -> st.SearchStrategy[np.ndarray]:
    """Points of few distinct coordinates, so that ties of one and of both are common."""
    coordinates = st.sampled_from([-2.5, 0.0, 1.0, 1.5, 3.0, 1e300])
    return arrays(np.float64, st.tuples(st.integers(0, 12), st.just(2)), elements=coordinates)


@given(points_on_a_grid())
def test_the_front_is_what_no_point_beats(points: np.ndarray) -> None:
    def beats(one: np.ndarray, other: np.ndarray) -> bool:
        return one[0] <= other[0] and one[1] >= other[1] and (one[0] < other[0] or one[1] > other[1])

    expected = [not any(beats(other, point) for other in points) for point in points]
    assert pareto_front(points[:, 0], points[:, 1]).tolist() == expected


@pytest.mark.parametrize(
    ("costs", "gains", "match"),
    [([1.0, np.nan], [1.0, 2.0], "finite"), ([1.0, 2.0], [np.nan, 2.0], "finite"), ([1.0], [1.0, 2.0], "shapes")],
)
def test_a_front_of_what_cannot_be_compared_is_an_error(costs: list, gains: list, match: str) -> None:
    with pytest.raises(InputError, match=match):
        pareto_front(np.array(costs), np.array(gains))
