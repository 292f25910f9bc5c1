"""The mixture against its own parameters, Ledoit and Wolf's formula against a loop, and few or equal vectors."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from bench.errors import InputError, MissingError
from bench.retrieval.mixture import Mixture, fit_mixture, shrunk_covariance


def clustered(n: int, dim: int, n_clusters: int, spread: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around random unit centres, and which centre each belongs to."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((n_clusters, dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    owners = rng.integers(n_clusters, size=n)
    vectors = centres[owners] + spread / np.sqrt(dim) * rng.standard_normal((n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), owners


def test_it_finds_clusters_and_their_common_covariance() -> None:
    vectors, owners = clustered(60, 8, 3)
    many = np.repeat(vectors, 2, axis=0)
    mixture = fit_mixture(vectors, seed=0)
    assert mixture.means.shape == (6, 8)
    centres = np.stack([vectors[owners == owner].mean(axis=0) for owner in range(3)])
    assert (mixture.means @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T).max(axis=1).min() > 0.98
    assert mixture.weights.sum() == pytest.approx(1)
    assert fit_mixture(many, seed=0).means.shape == (12, 8)


def test_samples_spread_like_the_parameters_say() -> None:
    rng = np.random.default_rng(1)
    dim = 4
    factor = np.tril(rng.integers(-8, 9, size=(dim, dim)) / 2048).astype(np.float32)
    means = np.eye(dim, dtype=np.float32)[:2]
    mixture = Mixture(np.array([0.25, 0.75]), means, factor, 0.5)
    drawn = mixture.sample(200_000, np.random.default_rng(2))
    first = drawn[:, 0] > drawn[:, 1]
    assert drawn.dtype == np.float32
    assert np.linalg.norm(drawn, axis=1) == pytest.approx(1, abs=1e-6)
    assert first.mean() == pytest.approx(0.25, abs=0.005)
    # Across the direction of the mean, where projecting to the sphere changes nothing to first order.
    across = drawn[~first][:, [0, 2, 3]].astype(np.float64)
    expected = (factor.astype(np.float64) @ factor.T)[np.ix_([0, 2, 3], [0, 2, 3])]
    np.testing.assert_allclose(np.cov(across.T), expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("dim", [3, 100, 384, 1000])
def test_the_product_is_exact_and_so_the_same_for_any_number_of_threads(dim: int) -> None:
    mixture = fit_mixture(clustered(100, dim, 5)[0], seed=0)
    draws = mixture.draw(500, np.random.default_rng(0))
    in_float32 = draws.steps @ (mixture.factor.T / np.float32(128))
    in_float64 = draws.steps.astype(np.float64) @ mixture.factor.T.astype(np.float64) / 128
    assert (in_float32 == in_float64).all()


def test_fitting_is_the_same_for_any_number_of_threads() -> None:
    vectors = clustered(700, 96, 20)[0]
    fitted = []
    for n_threads in (1, 2, 3):
        with threadpool_limits(n_threads):
            mixture = fit_mixture(vectors, seed=3)
        fitted.append(mixture.means.tobytes() + mixture.factor.tobytes())
    assert len(set(fitted)) == 1
    assert fit_mixture(vectors, seed=4).means.tobytes() not in fitted[0]


def test_shrinkage_against_a_loop_over_outer_products() -> None:
    rng = np.random.default_rng(0)
    residuals = rng.standard_normal((30, 12)) * np.linspace(0.5, 2, 12)
    products = [np.outer(row, row) for row in residuals]
    covariance = sum(products) / 30
    target = np.trace(covariance) / 12 * np.eye(12)
    error = sum(((product - covariance) ** 2).sum() for product in products) / 30**2
    expected = error / ((covariance - target) ** 2).sum()
    found, shrinkage = shrunk_covariance(residuals, 30)
    assert 0.1 < expected < 0.9
    assert shrinkage == pytest.approx(expected)
    np.testing.assert_allclose(found, (1 - expected) * covariance + expected * target)


def test_rounding_the_factor_changes_the_covariance_little() -> None:
    vectors = clustered(400, 512, 1)[0]
    mixture = fit_mixture(vectors, seed=0)
    factor = mixture.factor.astype(np.float64)
    assert (np.triu(factor, 1) == 0).all()
    assert (np.diag(factor) > 0).all()
    variance = np.square(vectors - vectors.mean(axis=0)).sum() / 399
    assert np.trace(factor @ factor.T) == pytest.approx(variance, rel=0.15)


@pytest.mark.parametrize("n", [2, 3, 25])
def test_few_vectors_and_many_dimensions(n: int) -> None:
    vectors = clustered(n, 64, n)[0]
    mixture = fit_mixture(vectors, seed=0)
    assert np.linalg.eigvalsh(mixture.factor @ mixture.factor.T.astype(np.float64)).min() > 0
    drawn = mixture.sample(100, np.random.default_rng(0))
    assert np.linalg.norm(drawn, axis=1) == pytest.approx(1, abs=1e-6)


def test_equal_vectors_give_nearly_equal_ones() -> None:
    vectors = np.repeat(clustered(1, 64, 1)[0], 50, axis=0)
    drawn = fit_mixture(vectors, seed=0).sample(100, np.random.default_rng(0))
    distances = np.linalg.norm(drawn - vectors[0], axis=1)
    assert distances.min() > 0
    assert distances.max() < 2e-3


def test_what_cannot_be_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(20, 8, 2)[0]
    with pytest.raises(InputError, match="n at least 2"):
        fit_mixture(vectors[:1], seed=0)
    vectors[7, 3] = np.nan
    with pytest.raises(InputError, match="row 7 is not finite"):
        fit_mixture(vectors, seed=0)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingError, match=r"rove-bench\[cpu\] or rove-bench\[gpu\]"):
        fit_mixture(vectors[:7], seed=0)
