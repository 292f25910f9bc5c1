"""Tip-Adapter, Tip-Adapter-F and XMAdapter on class prompts: shots, ablations, other domains.

    python tests/benchmarks/cache_models.py BASE TRAIN [--val VAL --test TEST] [--views N] [--draws N] [DOMAIN...]

BASE is a submission's name or folder, the others are collections of class prompts with the same classes. Shots are
drawn from TRAIN; alpha, beta and the epoch are chosen on VAL and everything is scored on TEST. Without them, of each
class of TRAIN 8 images that are no shots are chosen on in every draw, and what is left over is scored. Prints Markdown:
accuracy (image-to-text R@1) in percent over all draws, with 95 % intervals from resamples of the test images that all
rows share; "gain" is over the column before, paired.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench import torchvision_fix

torchvision_fix.install()

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from bench.data.registry import load_collection
from bench.stats import bootstrap, interval
from bench.submission import find_submission, shipped_submissions
from bench.types import Base, Collection
from submissions.backbones.backbone import Backbone
from submissions.backbones.cache import ClassCache, Fusion
from submissions.backbones.cache_fitting import (
    GRIDS,
    PLAN,
    ClassTask,
    FewShots,
    classes_of,
    encode_views,
    make_keys,
    train_cache,
)
from submissions.backbones.examples import Examples, open_stream
from submissions.backbones.fitted import load_base
from submissions.backbones.frozen import Frozen
from submissions.backbones.retrieval import embed_captions, embed_images

SHOTS = (1, 2, 4, 8, 16)
MOST = SHOTS[-1]
HELD_OUT = 8
DRAW_STREAM = 100
HOME = "same domain"


@dataclass(frozen=True)
class Method:
    """A column: None learns nothing at all, not even a cache.

    Args:
        name: for the table.
        learns: whether keys do.
        fused: whether text keys are asked too.
        gamma: of the fusion; None learns.
        hard: whether losses are weighted.
        size: entries of each class, means of as many shots as it takes; None is one for each shot.
    """

    name: str
    learns: bool = True
    fused: bool = True
    gamma: float | None = None
    hard: bool = True
    size: int | None = None


ZERO_SHOT = Method("zero-shot", learns=False, fused=False)
TIP = Method("tip_adapter", learns=False, fused=False, hard=False)
TIP_F = Method("tip_adapter_f", fused=False, hard=False)
XM = Method("xmadapter")
STEPS = (ZERO_SHOT, TIP, TIP_F, XM)
ABLATIONS = (
    Method("gamma 0 (texts alone)", gamma=0.0),
    Method("gamma 1 (images alone)", gamma=1.0),
    Method("no hard weighting", hard=False),
    *(Method(f"{size} entries a class", size=size) for size in SHOTS[:-1]),
)


@dataclass(frozen=True)
class Scored:
    """Test images: their vectors, classes, and which of their collection they are."""

    images: Float[Tensor, "n dim"]
    labels: Int[Tensor, " n"]
    rows: Int[np.ndarray, " n"]
    n_collection: int


class Vectors:
    """All that is computed of the base, once."""

    def __init__(self, base: Backbone, train: Collection, others: dict[str, Collection], n_views: int) -> None:
        self.scale = float(base.log_scale.exp())
        self.classes = classes_of(train)
        self.prompts = functional.normalize(embed_captions(base, Examples(train, base)))
        self.views = encode_views(Frozen(base), train.images, 0, n_views)
        self.own = None if "val" in others else self._whole(base, train, train)
        self.others = {name: self._whole(base, other, train) for name, other in others.items()}

    def _whole(self, base: Backbone, collection: Collection, train: Collection) -> Scored:
        place = {prompt: index for index, prompt in enumerate(train.captions)}
        labels = torch.tensor([place[collection.captions[i]] for i in classes_of(collection)])
        images = functional.normalize(embed_images(base, Examples(collection, base)))
        return Scored(images, labels, np.arange(len(labels)), len(labels))

    def part(self, rows: Int[np.ndarray, " n"]) -> Scored:
        """Of the training collection, which is encoded whole only where there is no other to choose and score on."""
        if self.own is None:
            raise SystemExit("give both --val and --test, or neither.")
        return Scored(self.own.images[rows], self.own.labels[rows], rows, len(self.own.labels))


def draw(vectors: Vectors, seed: int) -> tuple[np.ndarray, Scored, dict[str, Scored]]:
    """Shots (n_classes, MOST), fewer of which are the first of more; what is chosen on; what is scored."""
    members = [np.flatnonzero(vectors.classes == label) for label in range(len(vectors.prompts))]
    mixed = [open_stream(seed, DRAW_STREAM, label).permutation(rows) for label, rows in enumerate(members)]
    others = dict(vectors.others)
    shots = np.stack([rows[:MOST] for rows in mixed])
    if "val" in others:
        return shots, others.pop("val"), others
    held_out = np.concatenate([rows[MOST : MOST + HELD_OUT] for rows in mixed])
    rest = np.concatenate([rows[MOST + HELD_OUT :] for rows in mixed])
    return shots, vectors.part(held_out), {HOME: vectors.part(rest), **others}


def fit(method: Method, vectors: Vectors, shots: np.ndarray, validation: Scored, seed: int) -> ClassCache:
    """A fitted cache, as the recipe fits it."""
    torch.manual_seed(seed)
    n_classes, n_shots = shots.shape
    views = vectors.views[:, shots.reshape(-1)]
    keys = make_keys(views).view(n_classes, n_shots, -1)
    if method.size is not None:
        keys = functional.normalize(keys.view(n_classes, method.size, -1, keys.shape[-1]).mean(dim=2), dim=2)
    few = FewShots(functional.normalize(views, dim=2), keys, vectors.prompts, validation.images, validation.labels)
    task = ClassTask(few, vectors.scale, PLAN.batch, seed, method.hard)
    dim = keys.shape[-1]
    fusion = Fusion(dim, method.gamma) if method.fused else None
    cache = ClassCache(n_classes, keys.shape[1], dim, vectors.scale, method.learns, fusion)
    task.fill(cache)
    task.search(cache, GRIDS)
    if method.learns:
        train_cache(cache, task, PLAN)
        task.search(cache, GRIDS)
    return cache


class Tally:
    """Hits and trials of each test image, summed over draws, by (row, test collection)."""

    def __init__(self) -> None:
        self._hits: dict[tuple[str, str], np.ndarray] = {}
        self._trials: dict[tuple[str, str], np.ndarray] = {}
        self.gammas: dict[str, list[float]] = defaultdict(list)

    @torch.no_grad()
    def score(
        self, row: str, method: Method, cache: ClassCache | None, vectors: Vectors, name: str, to: Scored
    ) -> None:
        logits = vectors.scale * to.images @ vectors.prompts.T if cache is None else cache.logits(to.images)
        hits = (logits.argmax(dim=1) == to.labels).numpy()
        for store, values in ((self._hits, hits), (self._trials, np.ones(len(hits)))):
            np.add.at(store.setdefault((row, name), np.zeros(to.n_collection)), to.rows, values)

    def replicates(self, row: str, name: str) -> tuple[float, np.ndarray]:
        """Percent, and in every resample of the collection's images."""
        hits, trials = self._hits[row, name], self._trials[row, name]
        used = trials > 0
        resampled = bootstrap(hits[used, None], trials[used, None])[:, 0]
        return 100 * hits.sum() / trials.sum(), 100 * resampled

    def shown(self, row: str, name: str) -> str:
        value, resampled = self.replicates(row, name)
        return _shown(value, resampled)

    def gain(self, row: str, before: str, name: str) -> str:
        (value, resampled), (other, others) = self.replicates(row, name), self.replicates(before, name)
        return _shown(value - other, resampled - others, sign="+")


def _shown(value: float, resampled: np.ndarray, sign: str = "") -> str:
    ends = interval(resampled)
    return f"{value:{sign}.1f} [{ends.low:{sign}.1f}, {ends.high:{sign}.1f}]"


def fill(vectors: Vectors, n_draws: int) -> Tally:
    """Every row's hits."""
    tally = Tally()
    for seed in range(n_draws):
        shots, validation, scored = draw(vectors, seed)
        for n_shots in SHOTS:
            methods = (*STEPS, *ABLATIONS) if n_shots == MOST else STEPS
            for method in methods:
                few = shots[:, :n_shots]
                cache = None if method is ZERO_SHOT else fit(method, vectors, few, validation, seed)
                for name, to in scored.items():
                    tally.score(f"{method.name} {n_shots}", method, cache, vectors, name, to)
                if cache is not None and cache.fusion is not None:
                    tally.gammas[f"{method.name} {n_shots}"].append(cache.fusion.gamma.item())
    return tally


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def steps_of(tally: Tally, suffix: int, name: str) -> list[str]:
    cells = [tally.shown(f"{ZERO_SHOT.name} {suffix}", name)]
    for before, method in pairwise(STEPS):
        row = f"{method.name} {suffix}"
        cells += [tally.shown(row, name), tally.gain(row, f"{before.name} {suffix}", name)]
    return cells


def print_tables(tally: Tally, names: Sequence[str]) -> None:
    head = [ZERO_SHOT.name, *(cell for method in STEPS[1:] for cell in (method.name, "gain"))]
    home = names[0]
    print(table(["shots", *head], ([str(n), *steps_of(tally, n, home)] for n in SHOTS)), end="\n\n")
    print(table([f"{MOST} shots, scored on", *head], ([name, *steps_of(tally, MOST, name)] for name in names)))
    full = f"{XM.name} {MOST}"
    print()
    print(table([f"{MOST} shots", "accuracy", "against xmadapter", "gamma"], _ablations(tally, full, home)))


def _ablations(tally: Tally, full: str, home: str) -> Iterator[list[str]]:
    yield [
        f"xmadapter (gamma learned, hard weighting, {MOST} entries)",
        tally.shown(full, home),
        "",
        _gamma(tally, full),
    ]
    for method in ABLATIONS:
        row = f"{method.name} {MOST}"
        yield [method.name, tally.shown(row, home), tally.gain(row, full, home), _gamma(tally, row)]


def _gamma(tally: Tally, row: str) -> str:
    return f"{np.mean(tally.gammas[row]):.2f}"


def open_base(reference: str) -> Backbone:
    """As `rove fit --base` does."""
    found = find_submission(reference)
    shipped = found.folder in shipped_submissions().values()
    return load_base(Base(found.name, Path(found.folder), found.args, shipped), "cpu")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("train")
    parser.add_argument("domains", nargs="*")
    parser.add_argument("--val")
    parser.add_argument("--test")
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--draws", type=int, default=5)
    told = parser.parse_intermixed_args()
    started = time.monotonic()
    named = {"val": told.val, HOME: told.test} if told.val else {}
    train = load_collection(told.train)
    others = {name: load_collection(reference) for name, reference in named.items()}
    others |= {domain.name: domain for domain in map(load_collection, told.domains)}
    vectors = Vectors(open_base(told.base), train, others, told.views)
    encoded = time.monotonic()
    tally = fill(vectors, told.draws)
    scored = [HOME, *(name for name in others if name not in ("val", HOME))]
    n_chosen = len(others["val"].images) if told.val else HELD_OUT * len(train.captions)
    print(
        f"`{told.base}`, {len(train.captions)} classes of {told.train}, {told.draws} draws, {told.views} views a key;"
    )
    print(f"chosen on {n_chosen} images ({told.val or 'of the same collection, neither shots nor scored'});")
    print(f"encoding {encoded - started:.0f} s, fitting {time.monotonic() - encoded:.0f} s.\n")
    print_tables(tally, scored)


if __name__ == "__main__":
    main()
