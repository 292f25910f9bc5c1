"""A submission's embeddings of whole collections: from the cache, or from its worker, which starts when first needed;
a worker for images and one for texts where they are to know nothing of each other.

The unit of caching is one tower over one list of items. Its key hashes everything the vectors depend on: the weights
that were loaded, every item, shift and seed, batch plan, device, dtype and library versions. So an image shift
encodes images only, a text shift captions only, and the clean side is encoded once; a submission that was fitted on
another's captions alone takes its images from there.
"""

from __future__ import annotations

import hashlib
import io
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Float, Float32, Int

from bench.errors import ProtocolError, RoveError, SubmissionError
from bench.feed import Pixels, Prepare, feed_batches
from bench.records import digest_of
from bench.store import read_sealed, seal, write_atomic
from bench.submission import Submission
from bench.types import Image
from bench.worker.host import Loaded, Worker, WorkerSettings

Progress = Callable[[int], None]
Share = Callable[[str, Callable[[], "Embedded"]], "Embedded"]
"""What lies under a key, made by the function given unless somebody else has made it."""

Tower = Literal["images", "tokens"]
Role = Literal["images", "texts"]
Item = TypeVar("Item")
MIN_COSINE = 0.999
"""Between two ways to the same vector: another batch, or `embed_pixels`; the bound that submissions are told."""

_CACHE_VERSION = 4
_RECENT = 4
_log = logging.getLogger("rove")


@dataclass(frozen=True)
class Embedded:
    """One tower's output for one list of items.

    Args:
        vectors: as the submission returned them, (n_items, dim) float32, finite and never zero; in place of them what
            a second stage keeps of each image, (n_items, ...) float16 or float32.
        fed_sha256: what it was fed: pixels or captions, in the order of the items.
        ms_per_item: median over batches, in milliseconds.
        cached: whether it was read from the cache in this run.
    """

    vectors: Float[np.ndarray, "n_items ..."]
    fed_sha256: str
    ms_per_item: float
    cached: bool


class Embedder:
    """Encodes collections with one submission; a context manager, since it may hold a worker."""

    def __init__(
        self,
        submission: Submission,
        settings: WorkerSettings,
        cache: Path,
        batch_size: int,
        surroundings: object = None,
        share: Share | None = None,
    ) -> None:
        """`surroundings` is what else decides the vectors: the versions of what makes the pixels, the processor.

        `share` is asked before the cache is, and lets others have what is found or made.
        """
        self._submission, self._settings, self._surroundings = submission, settings, surroundings
        self._cache, self._batch_size = cache, batch_size
        self._share: Share = share or (lambda key, make: make())
        self._workers: dict[Role, Worker] = {}
        self._loaded: Loaded | None = None
        self._recent: dict[str, Embedded] = {}

    def __enter__(self) -> Embedder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> Loaded:
        """Loads the submission, unless that has happened.

        Raises:
            SubmissionError: it cannot be loaded.
        """
        return self._loaded or self._running("images").loaded

    def close(self) -> None:
        """Ends the workers, if there are any."""
        while self._workers:
            self._workers.popitem()[1].close()

    def images(self, images: Sequence[Image], prepare: Prepare, identity: object, progress: Progress) -> Embedded:
        """Embeddings of `images` after `prepare`; `identity` is what, beside the images, decides the pixels.

        Raises:
            SubmissionError: the submission failed; the next call starts it afresh.
            InputError: an image cannot be decoded.
        """
        return self._from_images("images", images, prepare, identity, progress)

    def tokens(self, images: Sequence[Image], prepare: Prepare, identity: object, progress: Progress) -> Embedded:
        """What the second stage keeps of `images`, in place of vectors; as `images`.

        Raises:
            UsageError: the submission has no second stage.
            SubmissionError: the submission failed; the next call starts it afresh.
            InputError: an image cannot be decoded.
        """
        return self._from_images("tokens", images, prepare, identity, progress)

    def texts(self, texts: Sequence[str], progress: Progress) -> Embedded:
        """Embeddings of `texts`; equal texts are encoded once, and those of like length together, for less padding.

        Raises:
            SubmissionError: the submission failed; the next call starts it afresh.
        """
        key = self._key("texts", list(texts), None)
        place = {text: index for index, text in enumerate(dict.fromkeys(texts))}
        unique = list(place)

        def encode(order: np.ndarray) -> Embedded:
            order = order[np.argsort([len(unique[i]) for i in order], kind="stable")]
            sent = [unique[i] for i in order]
            batches = (sent[i : i + self._batch_size] for i in range(0, len(sent), self._batch_size))
            vectors, ms = _encode_all(batches, lambda batch: self._running("texts").encode_texts(batch), progress)
            rows = np.argsort(order)[[place[text] for text in texts]]
            return Embedded(checked_vectors(vectors, "encode_texts")[rows], digest_of(list(texts)), ms, cached=False)

        return self._cached(key, len(unique), encode)

    def score_pairs(
        self, tokens: Float[np.ndarray, "n_images ..."], images: Int[np.ndarray, " n_pairs"], texts: Sequence[str]
    ) -> Float32[np.ndarray, " n_pairs"]:
        """The second stage's scores of `tokens[images]` with the texts beside them; nothing is cached.

        Tokens are gathered batch by batch: those of all pairs at once need not fit into memory. Pairs go by the lengths
        of their texts, so that a batch has little padding, and those of one text together, so that it is read once.

        Raises:
            UsageError: the submission has no second stage.
            SubmissionError: the submission failed; the next call starts it afresh.
        """
        order = np.array(sorted(range(len(texts)), key=lambda row: (len(texts[row]), texts[row])), np.intp)
        scores = np.empty(len(texts), np.float32)
        try:
            for start in range(0, len(texts), self._batch_size):
                rows = order[start : start + self._batch_size]
                asked = [texts[row] for row in rows]
                scores[rows] = self._running("texts").score_pairs(tokens[images[rows]], asked)
        except SubmissionError:
            self.close()
            raise
        return scores

    def _from_images(
        self, tower: Tower, images: Sequence[Image], prepare: Prepare, identity: object, progress: Progress
    ) -> Embedded:
        key = self._key(tower, [(image.id, image.sha256) for image in images], identity)

        def encode(order: np.ndarray) -> Embedded:
            digests: list[bytes] = []

            def call(batch: list[Pixels]) -> np.ndarray:
                digests.extend(pixels.sha256 for pixels in batch)
                arrays = [pixels.array for pixels in batch]
                worker = self._running("images")
                return worker.encode_images(arrays) if tower == "images" else worker.image_tokens(arrays)

            batches = feed_batches([images[i] for i in order], prepare, self._batch_size)
            found, ms = _encode_all(batches, call, progress)
            if tower == "images":
                checked_vectors(found, "encode_images")
            back = np.argsort(order)
            fed = hashlib.sha256(b"".join(digests[i] for i in back)).hexdigest()
            return Embedded(found[back], fed, ms, cached=False)

        return self._cached(key, len(images), encode)

    def _key(self, tower: str, items: object, identity: object) -> str:
        loaded = self.start()
        own = [self._submission.fingerprint, loaded.weights_sha256, loaded.versions]
        return digest_of(
            _CACHE_VERSION,
            tower,
            loaded.tower_ids.get(tower, own),
            loaded.device_name,
            self._settings.dtype,
            self._batch_size,
            self._surroundings,
            identity,
            items,
        )

    def _cached(self, key: str, n_items: int, encode: Callable[[np.ndarray], Embedded]) -> Embedded:
        # Vectors made at one level do not stand for another; their order, and so their last bits, is the same at each.
        place = digest_of(key, str(self._settings.isolation))

        def find() -> Embedded:
            return _read(self._cache, place) or self._encode(key, place, n_items, encode)

        found = self._recent.get(key) or self._share(place, find)
        self._recent[key] = replace(found, cached=True)
        while len(self._recent) > _RECENT:
            del self._recent[next(iter(self._recent))]
        return found

    def _encode(self, key: str, place: str, n_items: int, encode: Callable[[np.ndarray], Embedded]) -> Embedded:
        """What the submission makes of the items, which is left in the cache."""
        order = np.random.Generator(np.random.Philox(int(key[:32], 16))).permutation(n_items)
        try:
            found = encode(order)
        except SubmissionError:
            self.close()
            raise
        try:
            _write(self._cache, place, found)
        except RoveError as error:
            _log.warning("embeddings are not cached: %s ROVE_CACHE names another folder.", error)
        return found

    def _running(self, role: Role) -> Worker:
        """The worker for images or for texts: the same one, unless they are kept separate."""
        own = role if self._settings.isolation.separate else "images"
        if own not in self._workers:
            worker = self._workers[own] = Worker(self._submission, self._settings)
            self._check_same_weights(worker.loaded)
        return self._workers[own]

    def _check_same_weights(self, loaded: Loaded) -> None:
        if self._loaded is not None and self._loaded.weights_sha256 != loaded.weights_sha256:
            raise ProtocolError(
                f"{self._submission.name} loaded other weights than before; expected the same each time."
            )
        self._loaded = loaded


def _encode_all(
    batches: Iterable[list[Item]], call: Callable[[list[Item]], np.ndarray], progress: Progress
) -> tuple[np.ndarray, float]:
    """All embeddings, and the median over batches of the milliseconds per item."""
    parts, times = [], []
    for batch in batches:
        started = time.perf_counter_ns()
        parts.append(call(batch))
        times.append((time.perf_counter_ns() - started) / 1e6 / len(batch))
        progress(len(batch))
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) > 1:
        dims = " and ".join(sorted(" x ".join(map(str, shape)) for shape in shapes))
        raise ProtocolError(f"embeddings have {dims} dimensions; expected the same for all batches.")
    return np.concatenate(parts), statistics.median(times)


def checked_vectors(vectors: np.ndarray, function: str) -> np.ndarray:
    """`vectors`, if every one has a direction; rows are named in the order that the submission saw."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1) | ~vectors.any(axis=1))
    if bad.size:
        kind = "zero" if np.isfinite(vectors[bad[0]]).all() else "not finite"
        raise ProtocolError(
            f"{function} returned a vector that is {kind} (item {bad[0]} of {len(vectors)}, {bad.size} in all); "
            "expected finite vectors with a direction. See submissions/README.md."
        )
    return vectors


def _write(folder: Path, key: str, embedded: Embedded) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, vectors=embedded.vectors, fed=np.array(embedded.fed_sha256), ms=np.array(embedded.ms_per_item))
    write_atomic(_path(folder, key), seal(buffer.getvalue()))


def _read(folder: Path, key: str) -> Embedded | None:
    """What was written under `key`; a damaged file is set aside and reported."""
    data = read_sealed(_path(folder, key))
    if data is None:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return Embedded(file["vectors"], str(file["fed"]), float(file["ms"]), cached=True)


def _path(folder: Path, key: str) -> Path:
    return folder / "embeddings" / key[:2] / key
