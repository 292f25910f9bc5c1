"""Seconds and peak memory of ranking at the size of COCO 5K: ours beside the matrix product alone, torch's top 10 and
sorting, each in blocks and over the whole matrix. A script.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np

N_IMAGES, N_CAPTIONS, DIM = 5_000, 25_010, 512
NOISE = 0.3
N_REPEATS = 3
BLOCK_BYTES = 64 << 20


def embed() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Synthetic embeddings of images and of captions near them, normalised, and the image of each caption."""
    rng = np.random.default_rng(0)
    image_of_caption = np.minimum(np.arange(N_CAPTIONS) // 5, N_IMAGES - 1)
    images = rng.standard_normal((N_IMAGES, DIM), dtype=np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    captions = images[image_of_caption] + NOISE * rng.standard_normal((N_CAPTIONS, DIM), dtype=np.float32)
    return images, captions / np.linalg.norm(captions, axis=1, keepdims=True), image_of_caption


def ranker(queries: np.ndarray, gallery: np.ndarray, group_of: tuple[np.ndarray, np.ndarray]) -> Callable[[], float]:
    """Exact ranks of all positives, both tie variants and the ten best: what the harness does."""
    from bench.retrieval.exact import positives_of_pairs, rank_positives

    direction, image_of_caption = ("t2i" if len(queries) > len(gallery) else "i2t"), max(group_of, key=len)
    positives = positives_of_pairs(np.stack([image_of_caption, np.arange(N_CAPTIONS)], axis=1), direction)
    rank_positives(queries[:64], gallery, positives_of_pairs(np.array([[0, 0]]), direction))
    return lambda: float(np.mean(rank_positives(queries, gallery, positives).best <= 10))


def product_alone(
    queries: np.ndarray, gallery: np.ndarray, group_of: tuple[np.ndarray, np.ndarray]
) -> Callable[[], float]:
    """The scores, block by block, and nothing made of them: what no exact method can beat."""
    n_rows = BLOCK_BYTES // (4 * len(gallery))
    buffer = np.empty((n_rows, len(gallery)), np.float32)

    def multiply() -> float:
        for start in range(0, len(queries), n_rows):
            block = queries[start : start + n_rows]
            np.matmul(block, gallery.T, out=buffer[: len(block)])
        return float("nan")

    return multiply


def torch_topk(
    queries: np.ndarray, gallery: np.ndarray, group_of: tuple[np.ndarray, np.ndarray], whole: bool = False
) -> Callable[[], float]:
    """R@10 alone from `torch.topk(10)`; ties fall as they may."""
    import torch

    of_query, of_item = (torch.from_numpy(group) for group in group_of)
    asked, items = torch.from_numpy(queries), torch.from_numpy(gallery)
    n_rows = len(asked) if whole else BLOCK_BYTES // (4 * len(gallery))

    def count() -> float:
        n_hits = 0
        for start in range(0, len(asked), n_rows):
            best = torch.topk(asked[start : start + n_rows] @ items.T, 10).indices
            n_hits += int((of_item[best] == of_query[start : start + n_rows, None]).any(dim=1).sum())
        return n_hits / len(asked)

    return count


def torch_ranks(
    queries: np.ndarray, gallery: np.ndarray, group_of: tuple[np.ndarray, np.ndarray]
) -> Callable[[], float]:
    """R@10 from `torch.topk` over everything: all ranks could be read off it, as off ours."""
    import torch

    of_query, of_item = (torch.from_numpy(group) for group in group_of)
    asked, items = torch.from_numpy(queries), torch.from_numpy(gallery)

    def count() -> float:
        order = torch.topk(asked @ items.T, len(items)).indices
        return float((of_item[order[:, :10]] == of_query[:, None]).any(dim=1).float().mean())

    return count


def full_argsort(
    queries: np.ndarray, gallery: np.ndarray, group_of: tuple[np.ndarray, np.ndarray]
) -> Callable[[], float]:
    """R@10 from a sorted matrix, block by block: all ranks could be read off it."""
    of_query, of_item = group_of
    n_rows = BLOCK_BYTES // (4 * len(gallery))

    def count() -> float:
        n_hits = 0
        for start in range(0, len(queries), n_rows):
            order = np.argsort(-(queries[start : start + n_rows] @ gallery.T), axis=1)
            n_hits += int((of_item[order[:, :10]] == of_query[start : start + n_rows, None]).any(axis=1).sum())
        return n_hits / len(queries)

    return count


METHODS = {
    "rank_positives": (ranker, N_REPEATS),
    "product alone": (product_alone, N_REPEATS),
    "torch.topk(10)": (torch_topk, N_REPEATS),
    "  whole matrix": (partial(torch_topk, whole=True), N_REPEATS),
    "torch.topk(all)": (torch_ranks, 1),
    "argsort": (full_argsort, 1),
}


def measure(method: str, direction: str) -> tuple[float, float, float]:
    """Median seconds, MB of peak memory above that of data and libraries, and R@10; in a process of its own."""
    images, captions, image_of_caption = embed()
    prepare, n_repeats = METHODS[method]
    sides = ((captions, image_of_caption), (images, np.arange(N_IMAGES)))
    (queries, of_query), (gallery, of_item) = sides if direction == "t2i" else sides[::-1]
    call = prepare(queries, gallery, (of_query, of_item))
    before = peak_mb()
    seconds = []
    for _ in range(n_repeats):
        start_ns = time.perf_counter_ns()
        recall = call()
        seconds.append((time.perf_counter_ns() - start_ns) / 1e9)
    return statistics.median(seconds), peak_mb() - before, recall


def peak_mb() -> float:
    """Peak resident memory of this process in MB; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    spawn = multiprocessing.get_context("spawn")
    print(f"{'direction':<11}{'method':<17}{'seconds':>9}{'/ ours':>8}{'+ MB':>8}{'R@10':>8}")
    for direction in ("t2i", "i2t"):
        ours_s = 0.0
        for method in METHODS:
            with spawn.Pool(1) as pool:
                seconds, extra_mb, recall = pool.apply(measure, (method, direction))
            ours_s = ours_s or seconds
            row = f"{seconds:>9.2f}{seconds / ours_s:>7.1f}x{extra_mb:>8.0f}{recall:>8.4f}"
            print(f"{direction:<11}{method:<17}{row}")


if __name__ == "__main__":
    main()
