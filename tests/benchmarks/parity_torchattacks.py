"""Our PGD and APGD beside torchattacks used the plain way: queries lost by each, and what the adapter costs.

    taskset -c 0 python tests/benchmarks/parity_torchattacks.py [SUBMISSION] [DATASET] [IMAGES] [PAIRS] [EPS ...]

Plain is what its README shows: scores of all captions as logits at our temperature, the first caption as the label,
`attack(images, labels)`; steps, step size and eps are ours. Both results are rounded to whole levels inside the budget.
A query that was found is lost when none of its captions is on rank 1 any more. Times are of the processor, on one
thread, our `pgd` and a bare loop over the same logits in turn; their results must be the same to the bit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from bench_overhead import load_encoder
from torch import Tensor, nn
from torch.nn import functional

from bench import torchvision_fix
from bench.data.registry import load_collection
from bench.submission import find_submission

torchvision_fix.install()

import torchattacks

from shifts.attacks.budget import enforce_pixels, to_levels, to_pixels
from shifts.attacks.catalogue import STEPS
from shifts.attacks.goal import TEMPERATURE, Goal
from shifts.attacks.image import STEP, apgd, pgd

BATCH = 64


class Plain(nn.Module):
    """Zero-shot retrieval as torchattacks would have it."""

    def __init__(self, embed_pixels: Callable[[Tensor], Tensor], texts: Tensor) -> None:
        super().__init__()
        self.embed_pixels, self.texts = embed_pixels, texts
        self.device_mark = nn.Parameter(torch.zeros(1))

    def forward(self, pixels: Tensor) -> Tensor:
        return functional.normalize(self.embed_pixels(pixels)) @ self.texts.T / TEMPERATURE


def main() -> None:
    reference, dataset, n, pairs = (*sys.argv[1:5], *("tiny", "scenes/test", "64", "5")[len(sys.argv) - 1 :])
    torch.set_num_threads(1)
    encoder, collection = load_encoder(find_submission(reference)), load_collection(dataset)
    n_images = int(n)
    crops = to_levels(encoder.pixels([image.decode() for image in collection.images[:n_images]]))
    captions = collection.captions
    vectors = [encoder.encode_texts(captions[start : start + BATCH]) for start in range(0, len(captions), BATCH)]
    texts = functional.normalize(torch.from_numpy(np.concatenate(vectors)))
    own = torch.zeros(n_images, len(texts), dtype=torch.bool)
    own[tuple(collection.positives[collection.positives[:, 0] < n_images].T)] = True
    goal = Goal(texts, own)
    for eps in map(int, sys.argv[5:] or (1, 2)):
        compare_success(encoder.embed_pixels, crops, goal, eps)
    compare_time(encoder.embed_pixels, crops[:16], goal.take(torch.arange(16)), int(pairs))


def compare_success(embed_pixels: Callable[[Tensor], Tensor], crops: np.ndarray, goal: Goal, eps: int) -> None:
    images, plain = to_pixels(crops), Plain(embed_pixels, goal.others)
    first = goal.own.float().argmax(dim=1)
    theirs = {
        "pgd": torchattacks.PGD(plain, eps / 255, STEP * eps / 255 / STEPS, STEPS),
        "apgd": torchattacks.APGD(plain, eps=eps / 255, steps=STEPS),
    }
    before = found(embed_pixels, crops, goal)
    for ours in (pgd, apgd):
        torch.manual_seed(0)
        peer = found(embed_pixels, enforce_pixels(theirs[ours.__name__](images, first), crops, eps), goal)
        rng = np.random.Generator(np.random.Philox(0))
        attacked = ours(lambda p: goal.logits(embed_pixels(p)), images, eps / 255, STEPS, rng)
        mine = found(embed_pixels, enforce_pixels(attacked, crops, eps), goal)
        lost = [f"{(before & ~after).sum()} of {before.sum()}" for after in (mine, peer)]
        print(f"{ours.__name__}:{eps}  queries lost: ours {lost[0]}, torchattacks {lost[1]}", flush=True)


def found(embed_pixels: Callable[[Tensor], Tensor], levels: np.ndarray, goal: Goal) -> np.ndarray:
    with torch.no_grad():
        scores = functional.normalize(embed_pixels(to_pixels(levels))) @ goal.others.T
    rivals = scores.masked_fill(goal.own, -2).amax(dim=1)
    return (scores.masked_fill(~goal.own, -2).amax(dim=1) > rivals).numpy()


def compare_time(embed_pixels: Callable[[Tensor], Tensor], crops: np.ndarray, goal: Goal, pairs: int) -> None:
    images, eps = to_pixels(crops), 2 / 255
    ratios = []
    for pair in range(pairs + 1):
        results, seconds = {}, {}
        for attack in (pgd, bare_pgd) if pair % 2 else (bare_pgd, pgd):
            rng = np.random.Generator(np.random.Philox(pair))
            started = time.process_time()
            results[attack] = attack(lambda p: goal.logits(embed_pixels(p)), images, eps, STEPS, rng)
            seconds[attack] = time.process_time() - started
        if not torch.equal(results[pgd], results[bare_pgd]):
            raise SystemExit("pgd and the bare loop differ")
        if pair:  # the first warms both up
            ratios.append(seconds[pgd] / seconds[bare_pgd])
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    print(f"pgd / bare loop, {pairs} pairs: {middle:.3f} (quartiles {low:.3f} to {high:.3f}), same bits")


def bare_pgd(logits: Callable[[Tensor], Tensor], images: Tensor, eps: float, steps: int, rng) -> Tensor:
    draw = torch.Generator().manual_seed(int(rng.integers(2**63)))
    pixels = (images + torch.empty_like(images).uniform_(-eps, eps, generator=draw)).clamp(0, 1)
    labels = torch.zeros(len(images), dtype=torch.long)
    for _ in range(steps):
        pixels.requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(logits(pixels), labels), pixels)
        delta = (pixels.detach() + STEP * eps / steps * gradient.sign() - images).clamp(-eps, eps)
        pixels = (images + delta).clamp(0, 1)
    return pixels


if __name__ == "__main__":
    main()
