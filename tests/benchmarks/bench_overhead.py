"""What the harness adds to a bare loop over the same encoder, the same images and captions, decode included.

    python tests/benchmarks/bench_overhead.py [SUBMISSION] [DATASET] [PAIRS]

Both sides load the submission before the clock starts. The bare loop decodes, encodes and stops; the harness decodes
ahead, encodes in another process, ranks, bootstraps and writes the record. They run in turn; the ratio is taken pair
by pair.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench import torchvision_fix
from bench.data.registry import load_collection
from bench.embed import Embedder
from bench.evaluate import evaluate
from bench.submission import Submission, find_submission
from bench.types import Collection, LoadContext
from bench.worker.host import WorkerSettings

BATCH = 32


def main() -> None:
    reference, dataset, pairs = (*sys.argv[1:], *["tiny", "scenes/test", "3"][len(sys.argv) - 1 :])
    submission, collection = find_submission(reference), load_collection(dataset)
    torchvision_fix.install()
    encoder = load_encoder(submission)
    ratios = []
    for pair in range(int(pairs) + 1):
        bare, harness = time_bare(encoder, collection), time_harness(submission, collection)
        if pair:  # the first warms both up
            ratios.append(harness / bare)
        print(f"bare {bare:.2f} s  harness {harness:.2f} s  ratio {harness / bare:.3f}", flush=True)
    print(f"{submission.label} on {collection.name}, {len(collection.images)} images: {statistics.median(ratios):.3f}")


def load_encoder(submission: Submission):
    spec = importlib.util.spec_from_file_location("bare_submission", submission.module)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(LoadContext(submission.folder, "cpu", "float32", submission.args, offline=True))


def time_bare(encoder, collection: Collection) -> float:
    images, texts = collection.images, collection.captions
    started = time.perf_counter()
    for start in range(0, len(images), BATCH):
        encoder.encode_images([image.decode() for image in images[start : start + BATCH]])
    for start in range(0, len(texts), BATCH):
        encoder.encode_texts(texts[start : start + BATCH])
    return time.perf_counter() - started


def time_harness(submission: Submission, collection: Collection) -> float:
    def decode(image):
        return np.asarray(image.decode())

    with tempfile.TemporaryDirectory() as cache, Embedder(submission, WorkerSettings(), Path(cache), BATCH) as embedder:
        embedder.start()
        started = time.perf_counter()
        images = embedder.images(collection.images, decode, "clean", lambda count: None)
        texts = embedder.texts(collection.captions, lambda count: None)
        evaluate(collection, images.vectors, texts.vectors, ("t2i", "i2t"))
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
