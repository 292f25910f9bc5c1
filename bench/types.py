"""The types that the rooms of Rove share: images, collections, what a submission implements, what a cluster is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from bench.errors import InputError

if TYPE_CHECKING:
    import PIL.Image
    from torch import Tensor

Direction = Literal["t2i", "i2t", "i2i"]
ThreatModel = Literal["query", "gallery_target", "gallery_all", "both", "distractor"]
Stage = Literal["retrieval", "reranking"]


class Image(Protocol):
    """One image of a collection, decoded only when asked."""

    @property
    def id(self) -> str:
        """Stable name within its collection: never a position, never a path of this machine."""

    @property
    def sha256(self) -> str:
        """Hex digest of the image's source bytes, or of its pixels where it is rendered."""

    def decode(self) -> PIL.Image.Image:
        """The image in RGB, EXIF orientation applied.

        Raises:
            InputError: the image is missing, corrupt or not allowed; the message names it.
        """


@dataclass(frozen=True, eq=False)
class Collection:
    """Images, captions, and which go together: one split of a data set.

    Args:
        name: data set and split, such as "flickr30k/test".
        images: lazily decoded, ids unique.
        captions: verbatim.
        positives: rows (image index, caption index), (n_pairs, 2) int64; every image and every caption
            stands in at least one. An explicit table: images have any number of captions and a caption may
            be true of several images.
        labels: class of each image for image-to-image retrieval, (n_images,) int64.
        label_names: display name of each class.
        revision: where the data came from, precisely: a hub revision, a file's sha256, a generator's version.

    Raises:
        InputError: an item breaks the above; the message names it.
    """

    name: str
    images: Sequence[Image]
    captions: Sequence[str]
    positives: Int[np.ndarray, "n_pairs 2"]
    labels: Int[np.ndarray, " n_images"] | None = None
    label_names: tuple[str, ...] | None = None
    revision: str = ""

    def __post_init__(self) -> None:
        if not len(self.images) or not len(self.captions):
            counts = f"{len(self.images)} images and {len(self.captions)} captions"
            raise InputError(f"{self.name} has {counts}; expected at least one of each.")
        _check_unique_ids(self.name, self.images)
        self._check_positives()
        if self.labels is not None and self.labels.shape != (len(self.images),):
            raise InputError(f"{self.name}: labels have shape {self.labels.shape}; expected ({len(self.images)},).")

    def _check_positives(self) -> None:
        pairs = self.positives
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind != "i":
            found = f"{pairs.dtype} {pairs.shape}"
            raise InputError(f"{self.name}: positives are {found}; expected integers of shape (n_pairs, 2).")
        for column, kind, count in ((0, "image", len(self.images)), (1, "caption", len(self.captions))):
            indices = pairs[:, column]
            if indices.min(initial=0) < 0 or indices.max(initial=-1) >= count:
                raise InputError(f"{self.name}: a positive names {kind} {indices.max()} of {count}.")
            lonely = np.flatnonzero(np.bincount(indices, minlength=count) == 0)
            if lonely.size:
                item = self.images[lonely[0]].id if kind == "image" else repr(self.captions[lonely[0]])
                raise InputError(f"{self.name}: {kind} {item} goes with nothing; expected a positive for every {kind}.")

    @property
    def directions(self) -> tuple[Direction, ...]:
        """What can be asked of it: both cross-modal directions, and `i2i` where images carry labels."""
        return ("t2i", "i2t") if self.labels is None else ("t2i", "i2t", "i2i")

    def head(self, n_images: int) -> Collection:
        """The first `n_images` images with the captions that go with them; positives are renumbered."""
        return self if n_images >= len(self.images) else self._part(0, n_images, self.name)

    def beside(self, n_images: int) -> Collection | None:
        """As many images as `head(n_images)` has, the next ones, with their captions; None if there are not so many."""
        if len(self.images) < 2 * n_images:
            return None
        return self._part(n_images, 2 * n_images, f"{self.name}-beside")

    def _part(self, start: int, stop: int, name: str) -> Collection:
        inside = (self.positives[:, 0] >= start) & (self.positives[:, 0] < stop)
        pairs = self.positives[inside]
        kept, renumbered = np.unique(pairs[:, 1], return_inverse=True)
        return Collection(
            name=name,
            images=self.images[start:stop],
            captions=[self.captions[i] for i in kept],
            positives=np.stack([pairs[:, 0] - start, renumbered.reshape(-1)], axis=1),
            labels=None if self.labels is None else self.labels[start:stop],
            label_names=self.label_names,
            revision=self.revision,
        )


def _check_unique_ids(name: str, images: Sequence[Image]) -> None:
    seen: set[str] = set()
    for image in images:
        if image.id in seen:
            raise InputError(f"{name}: image id {image.id!r} stands twice; expected every id once.")
        seen.add(image.id)


@runtime_checkable
class Encoder(Protocol):
    """A submission: maps pixels and strings to vectors. It is never told which cell it is fed."""

    def encode_images(self, images: Sequence[PIL.Image.Image]) -> Float[np.ndarray, "n_images dim"]:
        """Embeddings in the order given, (n_images, dim) float32; any norm: the harness normalises."""

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n_texts dim"]:
        """Embeddings in the order given, (n_texts, dim) float32; over-long texts are the encoder's to truncate."""


@runtime_checkable
class Differentiable(Protocol):
    """What an encoder has besides, if it can be attacked through its gradient; all of it in float32.

    `encode_images(images)` and `embed_pixels(pixels(images))` must be the same vectors, and `pixels` must leave an
    image that already has the model's own size as it is: attacked images are stored at that size and scored by
    `encode_images`. The gradient is asked of `embed_pixels`'s latest output only, and once.
    """

    def pixels(self, images: Sequence[PIL.Image.Image]) -> Tensor:
        """Resized and cropped for the model, before normalisation, (n_images, 3, height, width) float32 in [0, 1]."""

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Embeddings of such pixels, (n_images, dim) float32, differentiable; normalisation happens in here.

        The pixels come on the submission's device and are not to be changed in place.
        """


@runtime_checkable
class Shared(Protocol):
    """What an encoder has besides, if a tower of it may be the very one of another submission, such as its base."""

    def tower_ids(self) -> Mapping[str, str]:
        """For "images" and "texts", or one of them: a hash of code, weights and library versions of that tower.

        Vectors that another submission's tower of the same hash computed are taken from the cache.
        """


@runtime_checkable
class Reranker(Protocol):
    """What an encoder has besides, if it scores pairs more closely than by a cosine, as a second stage."""

    def image_tokens(self, images: Sequence[PIL.Image.Image]) -> np.ndarray:
        """What is kept of each image for `score_pairs`, (n_images, ...) float16 or float32; its bytes are reported."""

    def score_pairs(self, tokens: np.ndarray, texts: Sequence[str]) -> Float[np.ndarray, " n_pairs"]:
        """How well each image's tokens go with the text beside it, (n_pairs,) float32; higher is better."""


@runtime_checkable
class DifferentiableReranker(Protocol):
    """What a reranker that is also `Differentiable` has besides, if it can be attacked through its own gradient."""

    def score_pixels(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        """`score_pairs` from pixels as `Differentiable.pixels` gives them, (n_pairs,) float32, differentiable."""


@dataclass(frozen=True)
class LoadContext:
    """What a submission's `load(context)` is given.

    Args:
        folder: where its `submission.toml` lies; weights are found relative to it.
        device: torch's name of the device to compute on, such as "cpu" or "cuda".
        dtype: "float32" or "bfloat16"; embeddings are returned as float32 either way.
        args: the manifest's defaults, overridden by `--model-arg KEY=VALUE`.
        offline: nothing may be fetched.
    """

    folder: Path
    device: str
    dtype: str
    args: Mapping[str, str]
    offline: bool


@dataclass(frozen=True)
class Base:
    """The submission that a recipe starts from.

    Args:
        name: as its manifest says.
        folder: where its files lie.
        args: what it is loaded with.
        shipped: whether it comes with Rove, so that a fitted submission can name it in place of a copy.
    """

    name: str
    folder: Path
    args: Mapping[str, str]
    shipped: bool


class Checkpoint(Protocol):
    """Where a recipe keeps its state, to go on from after an interruption."""

    def read(self) -> bytes | None:
        """The latest state of the same fit, or None."""

    def write(self, state: bytes) -> None:
        """Keeps `state` in place of the one before; a crash leaves one of them whole."""


@dataclass(frozen=True)
class FitContext:
    """What a recipe's `fit(context)` is given.

    Args:
        train: the collection to learn from.
        validation: for choices such as early stopping; None lets the recipe hold out a part of `train`.
        output: an empty folder, in which a submission must lie afterwards.
        seed: same seed, same weights on the same machine.
        epochs: passes over `train`; None is the recipe's default.
        args: what the recipe's `ARGS` names, with `--recipe-arg` over their defaults.
        device: torch's name of the device.
        report: takes one step's figures, such as {"epoch": 1, "loss": 2.3}; they are logged and shown.
        checkpoint: where the state is kept between interruptions.
        base: what to start from; None unless the recipe's `NEEDS_BASE` is true.
        budget_s: seconds of training after which the recipe ends in good order; None is no limit.
        generic: images of what the base knows already, not to be forgotten; None unless the recipe's `TAKES_GENERIC`
            is true and one is given.
        generic_validation: for choices, beside `validation`; None lets the recipe hold out a part of `generic`.
        map: `map(function, shared, tasks)` gives what `function(shared, task)` returns on a cluster's nodes, in the
            order of the tasks; all of it is pickled, the function by the name of its module. None without a cluster.
    """

    train: Collection
    validation: Collection | None
    output: Path
    seed: int
    epochs: int | None
    args: Mapping[str, str]
    device: str
    report: Callable[[dict[str, float]], None]
    checkpoint: Checkpoint
    base: Base | None = None
    budget_s: float | None = None
    generic: Collection | None = None
    generic_validation: Collection | None = None
    map: Callable[[Callable[[Any, Any], Any], Any, Sequence[Any]], list[Any]] | None = None


@dataclass(frozen=True)
class FitFacts:
    """What a recipe's `fit` may return: what it did, for the manifest and the model card.

    Args:
        total: parameters of the base.
        trainable: parameters that learnt.
        added: parameters that the fitted submission has more than its base when it is used.
        mergeable: whether what learnt is folded into the base's own layers.
        epochs: passes over the training images, as many as were made.
        steps: optimiser steps.
        seconds: of training, interruptions apart.
        relative_seconds: of computing, decoding apart, to as many steps of full fine-tuning that were timed in the same
            run; None where there are none.
        validation_r1: mean of both directions' R@1 on the validation images, in percent, after fitting, or what else
            the recipe chooses by; higher is better.
        base_validation_r1: the same of the base.
    """

    total: int
    trainable: int
    added: int
    mergeable: bool
    epochs: float
    steps: int
    seconds: float
    relative_seconds: float | None
    validation_r1: float
    base_validation_r1: float


@dataclass(frozen=True)
class ClusterSettings:
    """What the command line says about a Ray cluster.

    Args:
        replicas: how many of the submission are loaded; None for one on each GPU, or one on each node without any.
        gpus_per_replica: such as 0.5, where two share one; None for one whole, or none with `--device cpu`.
        address: of a running cluster, as Ray understands it; None to start one on this machine for the run.
    """

    replicas: int | None = None
    gpus_per_replica: float | None = None
    address: str | None = None
