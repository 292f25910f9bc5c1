"""Recall agrees with the clip-benchmark package: same model, same images, same captions, its own evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from clip_benchmark.metrics import zeroshot_retrieval

from bench.data.registry import load_collection
from bench.evaluate import rank_direction, to_unit
from bench.metrics import hit
from bench.submission import find_submission
from bench.types import Collection, LoadContext
from submissions.tiny.model import load

N_IMAGES = 200


@pytest.fixture(scope="module")
def own_captions_only() -> Collection:
    """Scenes with the five captions of each image as its only positives: the peer knows no other table."""
    collection = load_collection("scenes/test").head(N_IMAGES)
    first = {caption: image for image, caption in collection.positives[::-1]}
    captions = np.arange(len(collection.captions))
    return replace(collection, positives=np.stack([[first[c] for c in captions], captions], axis=1))


def test_recall_agrees_within_a_tenth_of_a_point(own_captions_only: Collection) -> None:
    collection, folder = own_captions_only, find_submission("tiny").folder
    encoder = load(LoadContext(folder, "cpu", "float32", {}, offline=True))
    images = [image.decode() for image in collection.images]
    evidence = {
        direction: rank_direction(
            direction,
            collection,
            to_unit(np.concatenate([encoder.encode_images(images[i : i + 50]) for i in range(0, N_IMAGES, 50)])),
            to_unit(encoder.encode_texts(collection.captions)),
        )
        for direction in ("t2i", "i2t")
    }
    captions_of = [
        [collection.captions[c] for c in collection.positives[collection.positives[:, 0] == i, 1]]
        for i in range(N_IMAGES)
    ]
    batches = [(encoder.preprocess_batch(images[i : i + 50]), captions_of[i : i + 50]) for i in range(0, N_IMAGES, 50)]
    peer = zeroshot_retrieval.evaluate(
        encoder.module, batches, encoder.tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    for k in (1, 5, 10):
        for direction, name in (("t2i", "image_retrieval"), ("i2t", "text_retrieval")):
            ours = 100 * hit(evidence[direction].ranks, k).mean()
            assert ours == pytest.approx(100 * peer[f"{name}_recall@{k}"], abs=0.1)
