"""A mixture of Gaussians over a model's own image embeddings, from which the synthetic part of a large gallery is
drawn. It says where embeddings lie and how they spread, not what real images at that scale would be: galleries padded
with it are labelled synthetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int
from threadpoolctl import threadpool_limits

from bench.errors import InputError
from bench.retrieval.index_spec import load_faiss

MAX_COMPONENTS = 1024
ITEMS_PER_COMPONENT = 10
ITERATIONS = 20
TRAINED_PER_COMPONENT = 64
MIN_SHRINKAGE = 1e-3
MIN_SPREAD = 1e-3
NORMAL_STEPS = 128


class Draws(NamedTuple):
    """Random numbers that make vectors.

    Args:
        components: of the mixture, (n,) int64.
        steps: normal numbers, rounded to and counted in 1/128, (n, dim) float32.
    """

    components: Int[np.ndarray, " n"]
    steps: Float32[np.ndarray, "n dim"]


@dataclass(frozen=True, eq=False)
class Mixture:
    """Gaussians with one covariance in common, projected to the unit sphere.

    Args:
        weights: share of each component, (n_components,) float64, sum 1.
        means: (n_components, dim) float32.
        factor: lower triangular; times its transpose the covariance, (dim, dim) float32.
        shrinkage: how far the covariance was drawn towards a multiple of the identity, 0 to 1.
    """

    weights: Float64[np.ndarray, " n_components"]
    means: Float32[np.ndarray, "n_components dim"]
    factor: Float32[np.ndarray, "dim dim"]
    shrinkage: float

    def sample(self, n: int, rng: np.random.Generator) -> Float32[np.ndarray, "n dim"]:
        """`n` unit vectors; the same for a state of `rng`, however many threads the matrix product has."""
        return self.place(self.draw(n, rng))

    def draw(self, n: int, rng: np.random.Generator) -> Draws:
        """All the chance that is in `n` vectors."""
        components = rng.choice(len(self.weights), n, p=self.weights)
        normals = rng.standard_normal((n, len(self.factor)), dtype=np.float32)
        normals *= NORMAL_STEPS
        return Draws(components, np.rint(normals, out=normals))

    def place(self, draws: Draws) -> Float32[np.ndarray, "n dim"]:
        """The unit vectors of such draws.

        The normal numbers and the factor are both rounded, so that their product needs no rounding and the order in
        which BLAS adds decides nothing.
        """
        vectors = draws.steps @ (self.factor.T / np.float32(NORMAL_STEPS))
        vectors += self.means.take(draws.components, axis=0)
        vectors /= np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
        return vectors


def fit_mixture(vectors: Float32[np.ndarray, "n dim"], seed: int) -> Mixture:
    """A mixture with a component for about every ten vectors, at most 1,024.

    Components are k-means clusters. Their common covariance is that of the vectors around their cluster's mean, shrunk
    as far as its sampling error asks for, at least by a thousandth: it is positive definite for fewer vectors than
    dimensions, too. Vectors that are all equal get a spread of 0.001 around them; two vectors give a thin line.

    Args:
        vectors: of unit length.
        seed: of k-means; the same seed gives the same mixture, whatever the number of threads.

    Raises:
        InputError: fewer than two vectors, or one is not finite.
        MissingError: faiss is not installed.

    Source: Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance matrices, 2004, section 3.2.
    """
    _check_vectors(vectors)
    faiss = load_faiss()
    # One thread: the order of sums, and with it the last bit of each, depends on their number.
    with threadpool_limits(1):
        components = _cluster(faiss, vectors, seed)
        names, components, counts = np.unique(components, return_inverse=True, return_counts=True)
        means = np.zeros((names.size, vectors.shape[1]))
        np.add.at(means, components, vectors)
        means /= counts[:, None]
        covariance, shrinkage = shrunk_covariance(vectors - means[components], len(vectors) - names.size)
        factor = _round_factor(np.linalg.cholesky(covariance))
    return Mixture(counts / len(vectors), means.astype(np.float32), factor, shrinkage)


def shrunk_covariance(
    residuals: Float64[np.ndarray, "n dim"], n_free: int
) -> tuple[Float64[np.ndarray, "dim dim"], float]:
    """Ledoit and Wolf's covariance, and its weight of the identity, of residuals with `n_free` degrees of freedom.

    Two floors keep it positive definite where the estimator is not: on the weight, and on the mean variance.
    """
    n, dim = residuals.shape
    covariance = residuals.T @ residuals / n_free
    target = max(float(np.trace(covariance)) / dim, MIN_SPREAD**2 / dim)
    distance = float(np.square(covariance - target * np.eye(dim)).sum())
    fourth_moment = float(np.square(np.einsum("ij,ij->i", residuals, residuals)).sum()) * n / n_free**2
    error = (fourth_moment - float(np.square(covariance).sum())) / n_free
    shrinkage = float(np.clip(error / distance, MIN_SHRINKAGE, 1)) if distance else 1.0
    return (1 - shrinkage) * covariance + shrinkage * target * np.eye(dim), shrinkage


def _check_vectors(vectors: np.ndarray) -> None:
    if vectors.ndim != 2 or vectors.dtype != np.float32 or len(vectors) < 2:
        raise InputError(
            f"a mixture was asked of {vectors.dtype} {vectors.shape}; expected float32 (n, dim) with n at least 2. "
            "Use a collection with more images."
        )
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise InputError(
            f"row {np.argmin(finite)} is not finite; expected finite embeddings. Check what the encoder returns."
        )


def _cluster(faiss: Any, vectors: Float32[np.ndarray, "n dim"], seed: int) -> Int[np.ndarray, " n"]:
    """The k-means cluster of each vector; clusters of equal vectors may be empty."""
    n, dim = vectors.shape
    kmeans = faiss.Kmeans(
        dim,
        max(1, min(MAX_COMPONENTS, n // ITEMS_PER_COMPONENT)),
        niter=ITERATIONS,
        seed=seed % 2**31,
        min_points_per_centroid=1,
        max_points_per_centroid=TRAINED_PER_COMPONENT,
    )
    kmeans.train(vectors)
    return kmeans.assign(vectors)[1]


def _round_factor(factor: Float64[np.ndarray, "dim dim"]) -> Float32[np.ndarray, "dim dim"]:
    """The factor with each row in whole steps that are coarse enough for `Mixture.place` to add up without rounding.

    By Cauchy and Schwarz no partial sum exceeds the norm of the normals, which is below sqrt(dim) + 8 but once in 1e14,
    times the norm of the row. Counted in steps that is held below 2^23, half of what float32 counts exactly; the other
    half is for the rounding itself. The error is below 1e-4 of a row's variance for 2,048 dimensions.
    """
    dim = len(factor)
    most_steps = 2.0**23 / (NORMAL_STEPS * (np.sqrt(dim) + 8))
    steps = 2.0 ** np.ceil(np.log2(np.linalg.norm(factor, axis=1) / most_steps))
    rounded = np.rint(factor / steps[:, None]) * steps[:, None]
    np.fill_diagonal(rounded, np.maximum(np.diag(rounded), steps))
    return rounded.astype(np.float32)
