"""From embeddings to a cell's result: normalise, rank exactly, keep the evidence, compute the metrics from it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from bench.errors import InputError, ProtocolError
from bench.evidence import Evidence, pack_evidence
from bench.metrics import Ranks
from bench.retrieval.exact import positives_of_labels, positives_of_pairs, rank_positives
from bench.scoring import Metrics, find_flags, score_evidence
from bench.types import Collection, Direction


class Distractors(NamedTuple):
    """Embeddings of items that join a gallery, (n_distractors, dim) float32; None where none do."""

    images: Float[np.ndarray, "n_distractors dim"] | None = None
    texts: Float[np.ndarray, "n_distractors dim"] | None = None


NO_DISTRACTORS = Distractors()


@dataclass(frozen=True)
class Evaluation:
    """The result of one cell, but for who produced it."""

    evidence: bytes
    metrics: Metrics
    flags: tuple[str, ...]
    embeddings_sha256: dict[Literal["images", "texts"], str]


def evaluate(
    collection: Collection,
    images: Float[np.ndarray, "n_images dim"],
    texts: Float[np.ndarray, "n_captions dim"],
    directions: Sequence[Direction],
    distractors: Distractors = NO_DISTRACTORS,
) -> Evaluation:
    """Ranks every direction and scores it; embeddings may have any norm but zero.

    Args:
        distractors: join the gallery behind the collection's own items and are nobody's positives.

    Raises:
        ProtocolError: images and texts do not lie in one space.
    """
    if images.shape[1] != texts.shape[1]:
        raise ProtocolError(
            f"images have {images.shape[1]} dimensions and texts {texts.shape[1]}; expected one shared space."
        )
    image_units, text_units = to_unit(images), to_unit(texts)
    more = Distractors(*(None if part is None else to_unit(part) for part in distractors))
    evidence = {name: rank_direction(name, collection, image_units, text_units, more) for name in directions}
    return Evaluation(
        evidence=pack_evidence(evidence),
        metrics=score_evidence(evidence, len(collection.images)),
        flags=find_flags(evidence),
        embeddings_sha256={"images": _digest(images), "texts": _digest(texts)},
    )


def rank_direction(
    direction: Direction,
    collection: Collection,
    images: Float[np.ndarray, "n_images dim"],
    texts: Float[np.ndarray, "n_captions dim"],
    distractors: Distractors = NO_DISTRACTORS,
) -> Evidence:
    """The evidence of one direction, from unit vectors; a caption belongs to the first image that it goes with.

    Raises:
        InputError: `i2i` is asked of a collection without labels.
    """
    if direction == "i2i":
        if collection.labels is None:
            raise InputError(f"{collection.name} has no labels; image-to-image retrieval needs them.")
        positives, asked, gallery = positives_of_labels(collection.labels), images, images
    else:
        positives = positives_of_pairs(collection.positives, direction)
        asked, gallery = (texts, images) if direction == "t2i" else (images, texts)
    added = distractors.texts if direction == "i2t" else distractors.images
    gallery = gallery if added is None else np.concatenate([gallery, added])
    ranking = rank_positives(asked, gallery, positives, exclude_self=direction == "i2i")
    first_items = positives.items[positives.offsets[:-1]]
    return Evidence(
        queries=positives.queries.astype(np.int32),
        images=(first_items if direction == "t2i" else positives.queries).astype(np.int32),
        ranks=Ranks(ranking.offsets, ranking.pessimistic, ranking.optimistic),
        items=ranking.items,
        top=ranking.top,
    )


def to_unit(vectors: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n dim"]:
    """The vectors at length 1, float32, whatever their scale was."""
    scaled = vectors / np.abs(vectors).max(axis=1, keepdims=True)
    return np.ascontiguousarray(scaled / np.linalg.norm(scaled, axis=1, keepdims=True), np.float32)


def _digest(vectors: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(vectors, np.float32).data).hexdigest()
