"""Recall of one submission on one data set by Rove and by the clip-benchmark package, side by side.

    python tests/benchmarks/parity_clip_benchmark.py SUBMISSION DATASET

Works for any submission: the peer is given a model whose "pixels" are indices and whose forward pass is the
submission's encoder, so its own recall computation, batching and normalisation run on the same vectors.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from bench_overhead import load_encoder
from clip_benchmark.metrics import zeroshot_retrieval

from bench import torchvision_fix
from bench.data.registry import load_collection
from bench.evaluate import rank_direction, to_unit
from bench.metrics import hit
from bench.submission import find_submission

BATCH = 50


class Peer:
    """The interface that clip-benchmark expects, over a Rove encoder."""

    def __init__(self, encoder, images) -> None:
        self.encoder, self.images = encoder, images

    def encode_image(self, indices):
        return torch.from_numpy(self.encoder.encode_images([self.images[int(i)].decode() for i in indices]))

    def encode_text(self, texts):
        return torch.from_numpy(self.encoder.encode_texts(texts.texts))


class Texts:
    """Stands for a batch of token ids: the peer only sends it to a device and through the model."""

    def __init__(self, texts) -> None:
        self.texts = list(texts)

    def to(self, device):
        return self


def main() -> None:
    torchvision_fix.install()
    submission, collection = find_submission(sys.argv[1]), load_collection(sys.argv[2])
    encoder = load_encoder(submission)
    captions_of = [[] for _ in collection.images]
    for image, caption in collection.positives:
        captions_of[image].append(collection.captions[caption])
    batches = [
        (torch.arange(start, min(start + BATCH, len(captions_of))), captions_of[start : start + BATCH])
        for start in range(0, len(captions_of), BATCH)
    ]
    peer = zeroshot_retrieval.evaluate(
        Peer(encoder, collection.images), batches, Texts, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    images = np.concatenate(
        [
            encoder.encode_images([image.decode() for image in collection.images[i : i + BATCH]])
            for i in range(0, len(collection.images), BATCH)
        ]
    )
    texts = np.concatenate(
        [encoder.encode_texts(collection.captions[i : i + 250]) for i in range(0, len(collection.captions), 250)]
    )
    for direction, name in (("t2i", "image_retrieval"), ("i2t", "text_retrieval")):
        ranks = rank_direction(direction, collection, to_unit(images), to_unit(texts)).ranks
        for k in (1, 5, 10):
            ours, theirs = 100 * hit(ranks, k).mean(), 100 * float(peer[f"{name}_recall@{k}"])
            print(
                f"{direction} R@{k}: Rove {ours:.2f}  clip-benchmark {theirs:.2f}  difference {ours - theirs:+.3f} pp"
            )


if __name__ == "__main__":
    main()
