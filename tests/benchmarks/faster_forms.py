"""Forms in which forward passes may be faster: their time beside float32's, and whether they rank the same.

    python tests/benchmarks/faster_forms.py SUBMISSION DATASET [--limit N] [--rounds N]

SUBMISSION is `pocket` fitted, `tiny`, or an open_clip one. bfloat16 is torch's autocast; compiled is `torch.compile` of
both towers (it needs a C++ compiler), whose compilation is timed by itself. Pixels and captions lie ready in memory,
captions of like length share a batch. Ratios are taken within a round; the median is printed. "same best" is the share
of queries whose best item is float32's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import PIL.Image
import torch
from bench_overhead import load_encoder

from bench import torchvision_fix
from bench.data.registry import load_collection
from bench.evaluate import rank_direction, to_unit
from bench.metrics import hit
from bench.submission import find_submission
from bench.types import Collection

BATCH = 32


class Pass(NamedTuple):
    """All items of one tower: their vectors, and the seconds it took."""

    vectors: np.ndarray
    seconds: float


def run_pass(encode: Callable[[Sequence[Any]], np.ndarray], items: Sequence[Any]) -> Pass:
    started = time.perf_counter()
    parts = [encode(items[start : start + BATCH]) for start in range(0, len(items), BATCH)]
    return Pass(np.concatenate(parts), time.perf_counter() - started)


@contextmanager
def compiled(encoder: Any) -> Iterator[None]:
    """With both towers compiled, their shapes free."""
    module = encoder.module
    if hasattr(module, "visual"):
        towers = [module.visual, module.transformer]
    else:
        towers = [module["images"]["tower"], module["texts"]["tower"].net]
    for tower in towers:
        tower.compile(dynamic=True)
    try:
        yield
    finally:
        for tower in towers:
            tower._compiled_call_impl = None


def describe(collection: Collection, found: tuple[Pass, Pass], plain: tuple[Pass, Pass], order: np.ndarray) -> str:
    """R@1 of both directions, and how often the best item is the one of `plain`."""
    back = np.argsort(order)
    tops, hits = [], []
    for images, texts in (found, plain):
        vectors = to_unit(images.vectors), to_unit(texts.vectors[back])
        ranked = [rank_direction(direction, collection, *vectors) for direction in ("t2i", "i2t")]
        tops.append([part.top[:, 0] for part in ranked])
        hits.append([100 * hit(part.ranks, 1).mean() for part in ranked])
    same = [100 * np.mean(ours == theirs) for ours, theirs in zip(*tops, strict=True)]
    scores = [f"{t2i:.2f} / {i2t:.2f}" for t2i, i2t in hits]
    return f"R@1 {scores[0]}, float32 {scores[1]}; same best {same[0]:.2f} / {same[1]:.2f} %"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("submission")
    parser.add_argument("dataset")
    parser.add_argument("--limit", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    torchvision_fix.install()
    encoder = load_encoder(find_submission(asked.submission))
    collection = load_collection(asked.dataset, offline=True).head(asked.limit)
    images = [image.decode() for image in collection.images]
    order = np.argsort([len(caption) for caption in collection.captions], kind="stable")
    captions = [collection.captions[place] for place in order]

    @torch.inference_mode()
    def encode_images(batch: Sequence[PIL.Image.Image]) -> np.ndarray:
        return encoder.embed_pixels(encoder.pixels(batch)).float().numpy()

    @torch.inference_mode()
    def encode_texts(batch: Sequence[str]) -> np.ndarray:
        return encoder.embed_texts(batch).float().numpy()

    def both() -> tuple[Pass, Pass]:
        return run_pass(encode_images, images), run_pass(encode_texts, captions)

    forms: dict[str, Callable[[], Any]] = {
        "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
        "compiled": lambda: compiled(encoder),
    }
    print(
        f"{len(images)} images, {len(captions)} captions, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for name, form in forms.items():
        ratios: list[tuple[float, ...]] = []
        begun: list[float] = []
        for _ in range(asked.rounds):
            plain = both()
            with form():
                started = time.perf_counter()
                run_pass(encode_images, images[:BATCH])  # compiles, or warms up
                run_pass(encode_texts, captions[:BATCH])
                begun.append(time.perf_counter() - started)
                found = both()
            ratios.append(tuple(ours.seconds / theirs.seconds for ours, theirs in zip(found, plain, strict=True)))
        image, text = (statistics.median(part) for part in zip(*ratios, strict=True))
        print(f"{name}: images {image:.2f}, captions {text:.2f} of float32's time; ", end="")
        print(f"first batches {begun[0]:.1f} s; ", end="")
        print(describe(collection, found, plain, order))


if __name__ == "__main__":
    main()
