"""What a submission is timed over: a collection as it encodes it, the gallery around it, its index, the exact answers
and what a second stage keeps of each image. All of it is cached under what decides it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from bench.embed import Embedder
from bench.evaluate import to_unit
from bench.examples import pixels_of
from bench.records import digest_of, estimate
from bench.retrieval.costs import reset_peak
from bench.retrieval.gallery import ExactBest, PaddedGallery, hardness
from bench.retrieval.index import IndexFile, IndexSpec, build_index, check_fits, recover_index
from bench.retrieval.payload import Payload, open_payload, payload_sha256, write_payload
from bench.shifted import source_digest
from bench.stats import bootstrap, cluster_counts, cluster_sums, intervals
from bench.store import cache_folder, locked, read_sealed, seal, set_aside, sha256_of, write_atomic
from bench.timing_records import Gallery, Recall
from bench.types import Collection

N_QUERIES = 1_000
N_TRAINING = 200_000
_VERSION = 1
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Encoded:
    """A collection as a submission encodes it on the canonical canvas.

    Args:
        images: unit vectors, (n_images, dim) float32.
        captions: unit vectors, (n_captions, dim) float32.
        tokens: what its second stage keeps, (n_images, ...); None where it has none or none is asked for.
        weights_sha256: of what was loaded.
    """

    collection: Collection
    images: Float32[np.ndarray, "n_images dim"]
    captions: Float32[np.ndarray, "n_captions dim"]
    tokens: np.ndarray | None
    weights_sha256: str


class Queries(NamedTuple):
    """Captions that ask for recall.

    Args:
        vectors: (n_queries, dim) float32.
        images: the first image that each goes with, (n_queries,) int64.
        own: all images that each goes with.
    """

    vectors: Float32[np.ndarray, "n_queries dim"]
    images: Int[np.ndarray, " n_queries"]
    own: Sequence[Int[np.ndarray, " n_own"]]


def encode(embedder: Embedder, collection: Collection, second_stage: bool | None) -> Encoded:
    """The collection through the submission; what `rove run` has encoded on the canvas is read from the cache.

    Args:
        second_stage: whether tokens are wanted; None for wherever there is a second stage.

    Raises:
        SubmissionError: the submission failed.
        InputError: an image cannot be decoded.
    """
    loaded = embedder.start()
    pixels = pixels_of(collection, None)
    images = embedder.images(*pixels, _ignore).vectors
    captions = embedder.texts(list(collection.captions), _ignore).vectors
    wanted = loaded.reranker if second_stage is None else second_stage
    tokens = embedder.tokens(*pixels, _ignore).vectors if wanted else None
    return Encoded(collection, to_unit(images), to_unit(captions), tokens, loaded.weights_sha256)


def draw_queries(encoded: Encoded, seed: int, n_queries: int = N_QUERIES) -> Queries:
    """Some of the captions, at most `n_queries`, by the seed."""
    rng = np.random.Generator(np.random.Philox(seed))
    n_captions = len(encoded.captions)
    chosen = np.sort(rng.permutation(n_captions)[:n_queries])
    pairs = encoded.collection.positives
    by_caption = pairs[np.argsort(pairs[:, 1], kind="stable")]
    ends = np.searchsorted(by_caption[:, 1], [chosen, chosen + 1])
    own = [by_caption[start:stop, 0] for start, stop in ends.T]
    return Queries(encoded.captions[chosen], np.array([images[0] for images in own]), own)


@dataclass(frozen=True, eq=False)
class Stand:
    """A gallery with those who ask; what does not depend on an index."""

    encoded: Encoded
    gallery: PaddedGallery
    queries: Queries
    facts: Gallery

    @classmethod
    def make(cls, encoded: Encoded, n_items: int | None, seed: int) -> Stand:
        """The collection's images, padded to `n_items`, and some of its captions.

        Raises:
            UsageError: the collection has more images than that.
        """
        gallery = PaddedGallery(encoded.images, n_items or len(encoded.images), seed)
        queries = draw_queries(encoded, seed)
        return cls(encoded, gallery, queries, _describe(gallery, encoded, queries, seed))


def find_index(
    stand: Stand, spec: IndexSpec, k: int, rebuild: bool, say: Say
) -> tuple[Path, IndexFile, Int[np.ndarray, "n_queries k"]]:
    """The folder of the gallery's index, what is known of it, and the exact k best rows of every query.

    What is not in the cache is made in one pass over the gallery, whose vectors are drawn as they are needed.

    Raises:
        InputError: the index would not fit into memory or onto the disk.
    """
    gallery, queries = stand.gallery, stand.queries
    folder = cache_folder() / "indexes" / digest_of(_VERSION, gallery.identity, spec.factory, N_TRAINING)[:32]
    asked = digest_of(_VERSION, gallery.identity, _digest(queries.vectors), k)[:32]
    answers = cache_folder() / "exact" / asked
    with locked(folder):
        built = None if rebuild else recover_index(folder)
        exact, best = _read_rows(answers, len(queries.vectors), k), ExactBest(queries.vectors, k)
        shards = gallery.shards() if exact is not None else _watched(gallery, best)
        if built is None:
            check_fits(spec, gallery.n_items, gallery.dim, folder)
            say(f"building {spec.factory} over {gallery.n_items:,} vectors")
            reset_peak()
            built = build_index(spec, gallery.sample(N_TRAINING), shards, gallery.n_items, folder)
        elif exact is None:
            say(f"searching {gallery.n_items:,} vectors exactly")
            for _ in shards:
                pass
        if exact is None:
            exact = best.result()[1]
            _write_rows(answers, exact)
    return folder, built, exact


def find_payload(encoded: Encoded) -> Payload | None:
    """The file of what the second stage keeps of every image, named by its sha256; None without a second stage."""
    if encoded.tokens is None:
        return None
    path = cache_folder() / "payloads" / f"{payload_sha256(encoded.tokens)}.npy"
    if path.is_file() and sha256_of(path) != path.stem:
        set_aside(path, f"{path} does not have the sha256 that it is named by.")
    if not path.is_file():
        write_payload(path, encoded.tokens)
    return open_payload(path)


def _describe(gallery: PaddedGallery, encoded: Encoded, queries: Queries, seed: int) -> Gallery:
    """The gallery as its record tells it, with how near to the queries its synthetic vectors lie."""
    nearest = hardness(queries.vectors, queries.own, encoded.images, gallery.synthetic(gallery.n_real))
    return Gallery(
        collection=encoded.collection.name,
        source_sha256=source_digest(encoded.collection),
        n_real=gallery.n_real,
        n_synthetic=gallery.n_synthetic,
        dim=gallery.dim,
        seed=seed,
        sha256=gallery.identity,
        n_components=0 if gallery.mixture is None else len(gallery.mixture.weights),
        nearest_real=nearest.nearest_real,
        nearest_synthetic=nearest.nearest_synthetic,
    )


def measure_recall(rows: Int[np.ndarray, "n_queries k"], exact: Int[np.ndarray, "n_queries k"], stand: Stand) -> Recall:
    """What an index found, against the exact answers; intervals by resampling the images that the captions are of."""
    queries, n_images = stand.queries, stand.gallery.n_real
    columns = [
        [len(np.intersect1d(found, best)) / exact.shape[1] for found, best in zip(rows, exact, strict=True)],
        _hits(rows, queries),
        _hits(exact, queries),
    ]
    values = np.array(columns, np.float64).T
    sums = cluster_sums(values, queries.images, n_images)
    replicates = bootstrap(sums, cluster_counts(queries.images, n_images))
    overlap, hits, hits_exact = (
        estimate(value, low, high)
        for value, (low, high) in zip(values.mean(axis=0), intervals(replicates), strict=True)
    )
    return Recall(k=exact.shape[1], n_queries=len(exact), overlap=overlap, hits=hits, hits_exact=hits_exact)


def _hits(rows: Int[np.ndarray, "n_queries k"], queries: Queries) -> list[float]:
    return [float(np.isin(own, found).any()) for own, found in zip(queries.own, rows, strict=True)]


def _watched(gallery: PaddedGallery, best: ExactBest) -> Iterator[Float32[np.ndarray, "n_shard dim"]]:
    """The gallery's shards, each compared with the queries on its way."""
    for shard in gallery.shards():
        best.add(shard)
        yield shard


def _read_rows(path: Path, n_queries: int, k: int) -> Int[np.ndarray, "n_queries k"] | None:
    """Earlier answers; None if there are none that can be read whole."""
    data = read_sealed(path)
    return None if data is None else np.frombuffer(data, np.int64).reshape(n_queries, k)


def _write_rows(path: Path, rows: Int[np.ndarray, "n_queries k"]) -> None:
    write_atomic(path, seal(rows.astype(np.int64).tobytes()))


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _ignore(count: int) -> None:
    pass
