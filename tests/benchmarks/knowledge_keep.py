"""What knowledge-preserving tuning keeps: naive fine-tuning's in-domain gain, other domains, image-text retrieval.

    python tests/benchmarks/knowledge_keep.py BASE NAIVE KEPT [--image-text DATASET]

BASE is a submission (a name or a folder), NAIVE and KEPT are what `rove fit knowledge_keep` made of it with `keep=no`
and with `--generic`, both from scenes-objects/train. Prints a Markdown table of R@1 in percent with 95 % intervals:
image-to-image on scenes-objects/test and its other domains, image-text on DATASET, the test split of what `--generic`
named; then, from resamples of images that all three share, which part of naive tuning's in-domain gain KEPT has (goal:
at least 90 %), and which part of its image-text loss remains (goal: at most a third).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bench import torchvision_fix
from bench.data.registry import load_collection
from bench.evaluate import rank_direction, to_unit
from bench.metrics import hit
from bench.stats import bootstrap, cluster_counts, cluster_sums, interval
from bench.submission import find_submission, shipped_submissions
from bench.types import Base, Collection, Direction
from submissions.backbones.backbone import Backbone
from submissions.backbones.fitted import load_base

IN_DOMAIN = "scenes-objects/test"
OTHER_DOMAINS = [f"scenes-objects-{domain}/test" for domain in ("sketch", "cartoon", "painting", "night")]
FROM_IMAGES: tuple[Direction, ...] = ("i2i",)
BOTH: tuple[Direction, ...] = ("t2i", "i2t")
BATCH = 50


class Resampled(NamedTuple):
    """A quantity in percent, and in every resample of the images."""

    value: float
    replicates: Float[np.ndarray, " n_resamples"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("submissions", nargs=3, metavar="SUBMISSION")
    parser.add_argument("--image-text", default="scenes/test")
    told = parser.parse_args()
    columns = dict.fromkeys([IN_DOMAIN, *OTHER_DOMAINS], FROM_IMAGES) | {told.image_text: BOTH}
    rows = {name: measure(load(name), columns) for name in told.submissions}
    print("| | " + " | ".join(columns) + " |\n|" + " --- |" * (1 + len(columns)))
    for name, found in rows.items():
        print(f"| `{name}` | " + " | ".join(map(shown, found.values())) + " |")
    print_answers(*rows.values(), image_text=told.image_text)


def load(reference: str) -> Backbone:
    """The submission as its own `load` gives it, in this process."""
    found = find_submission(reference)
    shipped = found.folder in shipped_submissions().values()
    return load_base(Base(found.name, found.folder, found.args, shipped), "cpu")


def measure(backbone: Backbone, columns: Mapping[str, tuple[Direction, ...]]) -> dict[str, Resampled]:
    """R@1 on every collection, the mean of its directions."""
    found = {}
    for name, directions in columns.items():
        collection = load_collection(name)
        images, texts = encode(backbone, collection, with_texts=directions != ("i2i",))
        found[name] = mean([recall(direction, collection, images, texts) for direction in directions])
    return found


def encode(backbone: Backbone, collection: Collection, with_texts: bool) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of all images and, if asked, of all captions."""
    starts = range(0, len(collection.images), BATCH)
    images = [backbone.encode_images([i.decode() for i in collection.images[n : n + BATCH]]) for n in starts]
    captions = collection.captions if with_texts else collection.captions[:1]
    texts = [backbone.encode_texts(captions[n : n + BATCH]) for n in range(0, len(captions), BATCH)]
    return to_unit(np.concatenate(images)), to_unit(np.concatenate(texts))


def recall(direction: Direction, collection: Collection, images: np.ndarray, texts: np.ndarray) -> Resampled:
    """R@1 of one direction; the unit of resampling is the image."""
    evidence, n_images = rank_direction(direction, collection, images, texts), len(collection.images)
    hits = 100 * hit(evidence.ranks, 1)
    sums = cluster_sums(hits[:, None], evidence.images, n_images)
    replicates = bootstrap(sums, cluster_counts(evidence.images, n_images))
    return Resampled(float(hits.mean()), replicates[:, 0])


def mean(parts: list[Resampled]) -> Resampled:
    return Resampled(
        float(np.mean([part.value for part in parts])), np.mean([part.replicates for part in parts], axis=0)
    )


def print_answers(
    base: Mapping[str, Resampled], naive: Mapping[str, Resampled], kept: Mapping[str, Resampled], image_text: str
) -> None:
    """The differences from the base, paired over images, and both ratios."""
    rows = {"naive": naive, "kept": kept}
    for name in base:
        parts = [f"{title} {shown(minus(row[name], base[name]), '+.1f')}" for title, row in rows.items()]
        print(f"- {name}, against the base, in points: {', '.join(parts)}")
    for words, name in (("naive tuning's in-domain gain that is kept", IN_DOMAIN), ("its image-text loss", image_text)):
        print(f"- share of {words}, percent: {shown(share(base[name], naive[name], kept[name]), '.0f')}")


def minus(first: Resampled, second: Resampled) -> Resampled:
    return Resampled(first.value - second.value, first.replicates - second.replicates)


def share(base: Resampled, naive: Resampled, kept: Resampled) -> Resampled:
    """What the change from base to kept is of that from base to naive, in percent; undefined where the latter is 0."""
    part, whole = minus(kept, base), minus(naive, base)
    divisors = np.where(whole.replicates == 0, np.nan, whole.replicates)
    value = 100 * part.value / whole.value if whole.value else float("nan")
    return Resampled(value, 100 * part.replicates / divisors)


def shown(one: Resampled, style: str = ".1f") -> str:
    if np.isnan(one.replicates).mean() >= 0.5:
        return "undefined, because naive tuning changed nothing"
    found = interval(one.replicates)
    return f"{one.value:{style}} [{found.low:{style}}, {found.high:{style}}]"


if __name__ == "__main__":
    torchvision_fix.install()
    main()
