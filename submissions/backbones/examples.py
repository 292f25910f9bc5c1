"""What a recipe learns from: a collection as a backbone reads it, in batches that follow from seed and step alone."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from bench.errors import InputError
from bench.types import Collection, FitContext, Image
from submissions.backbones.backbone import Backbone

VALIDATION_SHARE, MOST_VALIDATED = 0.1, 500
MOST_PIXEL_BYTES = 4 << 30
DECODERS = 4


class Examples:
    """A collection as a backbone reads it; pixels are decoded once and kept, as many as fit into `MOST_PIXEL_BYTES`."""

    def __init__(self, collection: Collection, backbone: Backbone) -> None:
        self.collection, self._backbone = collection, backbone
        pairs = collection.positives
        self.captions_of: list[np.ndarray] = [np.empty(0, np.int64)] * len(collection.images)
        order = np.argsort(pairs[:, 0], kind="stable")
        for image, rows in zip(*_groups(pairs[order, 0]), strict=True):
            self.captions_of[image] = pairs[order][rows, 1]
        self._kept: dict[int, Tensor] = {}

    def beside(self, collection: Collection) -> Examples:
        """Another collection, as the same backbone reads it."""
        return Examples(collection, self._backbone)

    @property
    def n_images(self) -> int:
        return len(self.captions_of)

    def pixels(self, images: Sequence[int] | Int[np.ndarray, " n"]) -> Float[Tensor, "n 3 height width"]:
        """Of some images, in [0, 1]."""
        missing = [int(i) for i in images if int(i) not in self._kept]
        decoded = _decode(self._backbone, [self.collection.images[i] for i in missing])
        found = dict(zip(missing, decoded, strict=True))
        for index, pixels in found.items():
            if (len(self._kept) + 1) * pixels.nbytes <= MOST_PIXEL_BYTES:
                self._kept[index] = pixels
        return (
            torch.stack([self._kept[int(i)] if int(i) in self._kept else found[int(i)] for i in images]).float() / 255
        )

    def texts(self, captions: Int[np.ndarray, " n"]) -> list[str]:
        """Some captions."""
        return [self.collection.captions[int(i)] for i in captions]


def read_pixels(backbone: Backbone, images: Sequence[Image]) -> Float[Tensor, "n 3 height width"]:
    """What `Examples.pixels` gives of images, none of which is kept."""
    return torch.stack(_decode(backbone, images)).float() / 255


def _decode(backbone: Backbone, images: Sequence[Image]) -> list[UInt8[Tensor, "3 height width"]]:
    def decode(image: Image) -> Tensor:
        return (backbone.pixels([image.decode()])[0] * 255).round().to(torch.uint8)

    with ThreadPoolExecutor(DECODERS) as pool:
        return list(pool.map(decode, images))


@dataclass(frozen=True)
class Batch:
    """Pairs of one step: each image once, with one of its captions.

    Args:
        images: indices within the examples.
        captions: indices within the examples.
        examples: what they are indices of.
        rng: of this step alone.
    """

    images: Int[np.ndarray, " n"]
    captions: Int[np.ndarray, " n"]
    examples: Examples
    rng: np.random.Generator

    @cached_property
    def pixels(self) -> Float[Tensor, "n 3 height width"]:
        return self.examples.pixels(self.images)

    @cached_property
    def texts(self) -> list[str]:
        return self.examples.texts(self.captions)

    @cached_property
    def also_true(self) -> Bool[Tensor, "n n"]:
        """Whether a caption of the batch is true of another image of the batch too, and so no negative of it."""
        rows = [np.isin(self.captions, self.examples.captions_of[i]) for i in self.images]
        return torch.from_numpy(np.stack(rows)).fill_diagonal_(False)


class Sampler:
    """Batches of whole epochs, each of which follows from seed, epoch and place alone, so any can be made again."""

    def __init__(self, examples: Examples, batch: int, seed: int) -> None:
        self._examples, self._seed = examples, seed
        self._batch = min(batch, examples.n_images)
        self.steps_an_epoch = examples.n_images // self._batch

    def batch(self, step: int) -> Batch:
        """The batch of one step of the training."""
        epoch, place = divmod(step, self.steps_an_epoch)
        order = open_stream(self._seed, 0, epoch).permutation(self._examples.n_images)
        images = order[place * self._batch : (place + 1) * self._batch]
        rng = open_stream(self._seed, 1, step)
        captions = np.array([rng.choice(self._examples.captions_of[i]) for i in images])
        return Batch(images, captions, self._examples, rng)


def split_collection(context: FitContext) -> tuple[Collection, Collection]:
    """The images to learn from and those to choose by, which are held out of the train collection if none are given.

    Raises:
        InputError: there is one image only.
    """
    if len(context.train.images) < 2:
        raise InputError(f"{context.train.name} has one image; expected at least two to learn from.")
    if context.validation is not None:
        return context.train, context.validation.head(MOST_VALIDATED)
    order = open_stream(context.seed, 2, 0).permutation(len(context.train.images))
    n_held_out = max(1, min(MOST_VALIDATED, round(VALIDATION_SHARE * len(order))))
    kept, held_out = np.sort(order[n_held_out:]), np.sort(order[:n_held_out])
    return select_images(context.train, kept), select_images(context.train, held_out)


def select_images(collection: Collection, images: Int[np.ndarray, " n"]) -> Collection:
    """Some images of a collection with the captions that go with them."""
    place = np.full(len(collection.images), -1)
    place[images] = np.arange(len(images))
    pairs = collection.positives[place[collection.positives[:, 0]] >= 0]
    kept, renumbered = np.unique(pairs[:, 1], return_inverse=True)
    return Collection(
        name=collection.name,
        images=[collection.images[int(i)] for i in images],
        captions=[collection.captions[int(i)] for i in kept],
        positives=np.stack([place[pairs[:, 0]], renumbered.reshape(-1)], axis=1),
        labels=None if collection.labels is None else collection.labels[images],
        label_names=collection.label_names,
        revision=collection.revision,
    )


def open_stream(*place: int) -> np.random.Generator:
    """Random numbers that follow from `place` alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(place)))


def _groups(values: Int[np.ndarray, " n"]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The distinct values of a sorted array, and the rows of each."""
    distinct, starts = np.unique(values, return_index=True)
    return distinct, np.split(np.arange(len(values)), starts[1:])
