"""From embeddings to a cell's result: normalise, rank exactly, keep the evidence, compute the metrics from it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bench.errors import InputError, ProtocolError
from bench.evidence import Evidence, pack_evidence
from bench.metrics import Ranks
from bench.retrieval.exact import positives_of_labels, positives_of_pairs, rank_positives
from bench.retrieval.rerank import SecondStage, rerank_positives
from bench.scoring import Metrics, find_flags, score_evidence
from bench.types import Collection, Direction


class Distractors(NamedTuple):
    """Embeddings of items that join a gallery, (n_distractors, dim) float32; None where none do."""

    images: Float[np.ndarray, "n_distractors dim"] | None = None
    texts: Float[np.ndarray, "n_distractors dim"] | None = None


class StandIns(NamedTuple):
    """Other unit vectors of all items, by which a query finds those that are right for it; all else stays as it is."""

    images: Float[np.ndarray, "n_images dim"]
    texts: Float[np.ndarray, "n_captions dim"]


NO_DISTRACTORS = Distractors()


@dataclass(frozen=True)
class Evaluation:
    """The result of one cell, but for who produced it."""

    evidence: bytes
    metrics: Metrics
    flags: tuple[str, ...]


def evaluate(
    collection: Collection,
    images: Float[np.ndarray, "n_images dim"],
    texts: Float[np.ndarray, "n_captions dim"],
    directions: Sequence[Direction],
    distractors: Distractors = NO_DISTRACTORS,
    second: SecondStage | None = None,
) -> Evaluation:
    """Ranks every direction and scores it; embeddings may have any norm but zero.

    Args:
        distractors: join the gallery behind the collection's own items and are nobody's positives.
        second: scores the best items of each query again, in the directions that it knows.

    Raises:
        ProtocolError: images and texts do not lie in one space.
    """
    if images.shape[1] != texts.shape[1]:
        raise ProtocolError(
            f"images have {images.shape[1]} dimensions and texts {texts.shape[1]}; expected one shared space."
        )
    more = Distractors(*(None if part is None else to_unit(part) for part in distractors))
    evidence = rank(collection, to_unit(images), to_unit(texts), directions, more, second)
    return Evaluation(
        evidence=pack_evidence({str(name): part for name, part in evidence.items()}),
        metrics=score_evidence(evidence, len(collection.images)),
        flags=find_flags(evidence),
    )


def rank(
    collection: Collection,
    images: Float[np.ndarray, "n_images dim"],
    texts: Float[np.ndarray, "n_captions dim"],
    directions: Sequence[Direction],
    distractors: Distractors = NO_DISTRACTORS,
    second: SecondStage | None = None,
    stand_ins: StandIns | None = None,
) -> dict[Direction, Evidence]:
    """The evidence of every direction, from unit vectors; see `evaluate` and `StandIns`."""
    return {
        name: rank_direction(name, collection, images, texts, distractors, second, stand_ins) for name in directions
    }


def rank_direction(
    direction: Direction,
    collection: Collection,
    images: Float[np.ndarray, "n_images dim"],
    texts: Float[np.ndarray, "n_captions dim"],
    distractors: Distractors = NO_DISTRACTORS,
    second: SecondStage | None = None,
    stand_ins: StandIns | None = None,
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
    changed = None if stand_ins is None else stand_ins.texts if direction == "i2t" else stand_ins.images
    if second is None or direction == "i2i" or direction not in second.score_by_direction:
        ranking = rank_positives(asked, gallery, positives, exclude_self=direction == "i2i", stand_ins=changed)
    else:
        ranking = rerank_positives(asked, gallery, positives, second.k, second.score(direction), stand_ins=changed)
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


def digest_vectors(vectors: Float[np.ndarray, "n dim"]) -> str:
    """Hex sha256 of the vectors as float32."""
    return hashlib.sha256(np.ascontiguousarray(vectors, np.float32).data).hexdigest()
