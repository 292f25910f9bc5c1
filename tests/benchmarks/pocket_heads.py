"""Does pocket's head earn its place? Compares a fitted pocket with a linear head on the same frozen features.

    python tests/benchmarks/pocket_heads.py FITTED TRAIN TEST

Both heads see the train collection only; the test collection is scored once each, and the differences are paired over
images (10,000 resamples).
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from bench import torchvision_fix
from bench.data.registry import load_collection
from bench.evaluate import rank_direction, to_unit
from bench.metrics import hit
from bench.stats import bootstrap, cluster_counts, cluster_sums, compare
from bench.types import FitContext

torchvision_fix.install()

from submissions.pocket import fit as pocket
from submissions.pocket.features import Features, extract
from submissions.pocket.model import HEAD_FILE, IMAGE_DIM, TEXT_DIM, build_heads

EPOCHS, BATCH, LR = 30, 500, 1e-3


class _Nowhere:
    """A checkpoint for what is not interrupted."""

    def read(self) -> None:
        return None

    def write(self, state: bytes) -> None:
        pass


def main() -> None:
    folder, train_name, test_name = sys.argv[1:]
    train, test = load_collection(train_name), load_collection(test_name)
    context = FitContext(train, None, None, 0, None, pocket.ARGS, "cpu", lambda figures: None, _Nowhere())
    learn, score = extract(train, context), extract(test, context)
    fitted = build_heads()
    fitted.load_state_dict(load_file(f"{folder}/{HEAD_FILE}"))
    heads = {"pocket": fitted.eval(), "linear": fit_linear(learn)}
    ranks = {}
    with torch.inference_mode():
        for name, head in heads.items():
            images = to_unit(head["images"](score.images).numpy())
            texts = to_unit(head["texts"](score.texts).numpy())
            ranks[name] = {d: rank_direction(d, test, images, texts) for d in ("t2i", "i2t")}
    for direction in ("t2i", "i2t"):
        for k in (1, 10):
            report(direction, k, ranks["pocket"][direction], ranks["linear"][direction], len(test.images))


def fit_linear(data: Features) -> nn.ModuleDict:
    """One affine map for each tower, InfoNCE, the usual reference for frozen features."""
    torch.manual_seed(0)
    rng = np.random.Generator(np.random.Philox(0))
    layers = {"images": IMAGE_DIM, "texts": TEXT_DIM}
    heads = nn.ModuleDict({name: nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 512)) for name, d in layers.items()})
    log_scale = nn.Parameter(torch.tensor(3.0))
    steps = EPOCHS * (len(data.images) // BATCH)
    optimizer = torch.optim.AdamW([*heads.parameters(), log_scale], LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps + 1, pct_start=0.1)
    for _ in range(EPOCHS):
        for rows in rng.permutation(len(data.images))[: len(data.images) // BATCH * BATCH].reshape(-1, BATCH):
            captions = [rng.choice(data.captions_of[i]) for i in rows]
            images = functional.normalize(heads["images"](data.images[rows]))
            texts = functional.normalize(heads["texts"](data.texts[captions]))
            logits = log_scale.exp().clamp(max=100) * images @ texts.T
            target = torch.arange(BATCH)
            loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return heads.eval()


def report(direction: str, k: int, first, second, n_images: int) -> None:
    values = [hit(part.ranks, k) for part in (first, second)]
    sums = cluster_sums(np.stack(values, axis=1), first.images, n_images)
    replicates = bootstrap(sums, cluster_counts(first.images, n_images))
    found = compare(values[0].mean(), values[1].mean(), *replicates.T)
    print(
        f"{direction} R@{k}: pocket {100 * values[0].mean():.1f}  linear {100 * values[1].mean():.1f}  "
        f"difference {100 * found.value:+.1f} pp [{100 * found.interval.low:+.1f}, {100 * found.interval.high:+.1f}]"
    )


if __name__ == "__main__":
    main()
