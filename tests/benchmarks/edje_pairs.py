"""Pairs a second that an EDJE submission scores, and what share of the machine's matrix rate that is.

    python tests/benchmarks/edje_pairs.py SUBMISSION [--device cuda] [--dtype bfloat16]

Pairs/s of two machines say nothing of each other; the ratio to the rate of one large matrix product, measured in the
same run, does. Floating-point operations are counted by formula, two for each multiplication with addition.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench import torchvision_fix

torchvision_fix.install()

from bench.submission import find_submission
from bench.types import LoadContext
from submissions.backbones.fitted import import_model
from submissions.edje.model import Reranking

BATCHES = (95, 1000)
REPEATS, MATRIX = 5, 2048
WORDS = ("a", "dog", "runs", "over", "the", "green", "grass", "with", "red", "ball", "and", "two", "children", "watch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("submission")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    told = parser.parse_args()
    found = find_submission(told.submission)
    context = LoadContext(Path(found.folder), told.device, told.dtype, found.args, offline=True)
    model = import_model(context.folder / "model.py").load(context)
    if not isinstance(model, Reranking):
        parser.error(f"{told.submission} was not fitted by the recipe edje")
    rate = measure_matrix_rate(told.device, getattr(torch, told.dtype))
    print(
        f"{told.device}, {told.dtype}, {torch.get_num_threads()} threads: {rate / 1e9:,.0f} GFLOP/s in a matrix product"
    )
    for batch in BATCHES:
        for n_texts in (1, batch):
            print(describe(model, batch, n_texts, rate, told.device))


def describe(model: Reranking, batch: int, n_texts: int, rate: float, device: str) -> str:
    """One line of figures: pairs of `batch` images with `n_texts` different captions."""
    rng = np.random.default_rng(0)
    pool = [" ".join(rng.permutation(WORDS)[:11]) for _ in range(n_texts)]
    texts = [pool[row % n_texts] for row in range(batch)]
    stage = model.stage
    dim = model.embed_texts(texts[:1]).shape[1]
    n_tokens = stage.adapter.queries.shape[0] + stage.n_carried
    tokens = rng.standard_normal((batch, n_tokens, stage.encoder.size.width)).astype(np.float16)
    seconds = measure(lambda: model.score_pairs(tokens, texts), device)
    flops = count_flops(model, dim, model.tokenizer.lengths(texts[:1])[0], n_texts / batch)
    pairs = batch / seconds
    return (
        f"batch {batch}, {n_texts} captions, {n_tokens} tokens: {pairs:,.0f} pairs/s, {flops / 1e6:.1f} MFLOP a pair "
        f"(the base's text tower apart), {100 * pairs * flops / rate:.0f} % of the matrix rate"
    )


def count_flops(model: Reranking, dim: int, n_words: int, texts_a_pair: float) -> float:
    """Of one pair: the fused layers, the share of its caption that is read below them, and the first stage."""
    stage = model.stage
    size = stage.encoder.size
    d, length = size.width, n_words + stage.adapter.queries.shape[0] + 1
    below = (size.layers - size.fused) * layer_flops(n_words, d) * texts_a_pair
    last = 2 * length * 2 * d * d + 2 * 10 * d * d + 4 * length * d
    fused = (size.fused - 1) * layer_flops(length, d) + last + 2 * d * d
    n_bank = len(stage.bank.images) if stage.bank is not None else 0
    first = 2 * dim * (1 + n_bank * (1 + texts_a_pair)) if stage.n_carried else 0
    return below + fused + first


def layer_flops(length: int, width: int) -> float:
    """Of one transformer layer over a sequence."""
    return 2 * length * 12 * width * width + 4 * length * length * width


def measure_matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Operations a second of one large matrix product."""
    left, right = (torch.randn(MATRIX, MATRIX, device=device, dtype=dtype) for _ in range(2))
    return 2 * MATRIX**3 / measure(lambda: left @ right, device)


def measure(call: Callable[[], object], device: str) -> float:
    """Median seconds of a call, after one that does not count."""
    seconds = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
