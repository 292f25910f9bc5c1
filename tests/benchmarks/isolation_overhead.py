"""What each level of isolation costs while a submission encodes, and while it starts.

    python tests/benchmarks/isolation_overhead.py [SUBMISSION] [DATASET] [ROUNDS]

One worker at each level encodes the same batches in turn; the ratio to L0 is taken round by round, and its median is
printed. Levels that this machine does not have are left out.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np

from bench.data.registry import load_collection
from bench.submission import find_submission
from bench.worker.host import Worker, WorkerSettings
from bench.worker.isolation import Isolation, best_level

BATCH, N_IMAGES, N_TEXTS = 32, 32, 160


def main() -> None:
    reference, dataset, rounds = (*sys.argv[1:], *["tiny", "scenes/test", "15"][len(sys.argv) - 1 :])
    submission, collection = find_submission(reference), load_collection(dataset)
    images = [np.asarray(image.decode()) for image in collection.images[:N_IMAGES]]
    texts = list(collection.captions[:N_TEXTS])
    levels = [level for level in ("L0", "L1", "L2", "L3") if level <= best_level()]
    workers, started = {}, {}
    for level in levels:
        begun = time.perf_counter()
        workers[level] = Worker(submission, WorkerSettings(offline=True, isolation=Isolation(level)))
        started[level] = time.perf_counter() - begun
    took: dict[str, list[float]] = {level: [] for level in levels}
    for number in range(int(rounds) + 1):
        for level in levels if number % 2 else levels[::-1]:
            begun = time.perf_counter()
            for start in range(0, N_IMAGES, BATCH):
                workers[level].encode_images(images[start : start + BATCH])
            for start in range(0, N_TEXTS, BATCH):
                workers[level].encode_texts(texts[start : start + BATCH])
            if number:  # the first warms up
                took[level].append(time.perf_counter() - begun)
    for worker in workers.values():
        worker.close()
    print("| level | encode, s | x L0, median (middle half) | start, s |\n| --- | --- | --- | --- |")
    for level in levels:
        ratios = [one / base for one, base in zip(took[level], took["L0"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        median_s = statistics.median(took[level])
        print(f"| {level} | {median_s:.2f} | {middle:.3f} ({low:.3f} to {high:.3f}) | {started[level]:.1f} |")


if __name__ == "__main__":
    main()
