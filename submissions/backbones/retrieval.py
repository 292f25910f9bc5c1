"""Vectors of examples, the contrastive loss on them, and how well they retrieve."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from submissions.backbones.backbone import Backbone
from submissions.backbones.examples import Batch, Examples

LARGEST_LOG_SCALE = math.log(100)
ENCODE_BATCH = 64
Item = TypeVar("Item")


class Student:
    """A backbone that learns; vectors of a tower that does not are computed once for all examples."""

    def __init__(self, backbone: Backbone, examples: Examples) -> None:
        self.backbone, self._examples = backbone, examples
        with torch.enable_grad():
            self._images_learn = backbone.embed_pixels(examples.pixels([0])).requires_grad
            self._texts_learn = backbone.embed_texts(examples.texts(np.array([0]))).requires_grad

    def decode(self, batch: Batch) -> None:
        """Reads the batch's pixels, if they will be needed."""
        if self._images_learn:
            batch.pixels  # noqa: B018

    def image_vectors(self, batch: Batch) -> Float[Tensor, "n dim"]:
        """Of the batch's images, with gradient if their tower learns."""
        return self.backbone.embed_pixels(batch.pixels) if self._images_learn else self._all_images[batch.images]

    def text_vectors(self, batch: Batch) -> Float[Tensor, "n dim"]:
        """Of the batch's captions, with gradient if their tower learns."""
        return self.backbone.embed_texts(batch.texts) if self._texts_learn else self._all_texts[batch.captions]

    @cached_property
    def _all_images(self) -> Float[Tensor, "n_images dim"]:
        return embed_images(self.backbone, self._examples)

    @cached_property
    def _all_texts(self) -> Float[Tensor, "n_captions dim"]:
        return embed_captions(self.backbone, self._examples)


Objective = Callable[[Student, Batch], Tensor]


def contrastive(
    images: Float[Tensor, "n dim"], texts: Float[Tensor, "n dim"], log_scale: Tensor, also_true: Bool[Tensor, "n n"]
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE; a caption that is also true of another image of the batch is no negative of it.

    Args:
        images: vectors of any norm.
        texts: of their captions, row by row.
        log_scale: logarithm of the factor on cosines, at most log 100.
        also_true: rows images, columns captions; the diagonal is False.

    Source: arXiv:2103.00020, figure 3.
    """
    scale = log_scale.clamp(max=LARGEST_LOG_SCALE).exp()
    return match_pairs(scale * functional.normalize(images) @ functional.normalize(texts).T, also_true)


def match_pairs(logits: Float[Tensor, "n n"], also_true: Bool[Tensor, "n n"]) -> Float[Tensor, ""]:
    """Mean of both ways' cross-entropy where the diagonal is the answer and `also_true` pairs are left out."""
    logits = logits.masked_fill(also_true.to(logits.device), -torch.inf)
    targets = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2


def retrieval_loss(student: Student, batch: Batch) -> Float[Tensor, ""]:
    """`contrastive` of a batch: the objective of every recipe that has none of its own."""
    scale = student.backbone.log_scale
    return contrastive(student.image_vectors(batch), student.text_vectors(batch), scale, batch.also_true)


@torch.no_grad()
def embed_images(backbone: Backbone, examples: Examples) -> Float[Tensor, "n_images dim"]:
    """Vectors of all images."""
    rows = range(examples.n_images)
    return torch.cat([backbone.embed_pixels(examples.pixels(part)) for part in batches_of(rows, ENCODE_BATCH)])


def embed_captions(
    backbone: Backbone, examples: Examples, embed: Callable[[list[list[str]]], list[Tensor]] | None = None
) -> Float[Tensor, "n_captions dim"]:
    """Vectors of all captions, encoded in the order of their length and given back in their own.

    Args:
        embed: gives the vectors of batches; None for the backbone, here.
    """
    captions = examples.collection.captions
    order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
    batches = [[captions[i] for i in part] for part in batches_of(order, ENCODE_BATCH)]
    with torch.no_grad():
        parts = embed(batches) if embed else [backbone.embed_texts(batch) for batch in batches]
    return torch.cat(parts)[torch.from_numpy(np.argsort(order))]


def recall_at_1(backbone: Backbone, examples: Examples) -> float:
    """Mean of both directions' R@1 over the examples, in percent."""
    return recall_of(embed_images(backbone, examples), embed_captions(backbone, examples), examples)


def recall_of(
    images: Float[Tensor, "n_images dim"], texts: Float[Tensor, "n_captions dim"], examples: Examples
) -> float:
    """Mean of both directions' R@1 of such vectors, in percent."""
    cosines = (functional.normalize(images) @ functional.normalize(texts).T).cpu().numpy()
    pairs = {(int(image), int(caption)) for image, caption in examples.collection.positives}
    t2i = np.mean([(int(image), caption) in pairs for caption, image in enumerate(cosines.argmax(axis=0))])
    i2t = np.mean([(image, int(caption)) in pairs for image, caption in enumerate(cosines.argmax(axis=1))])
    return float(100 * (t2i + i2t) / 2)


def batches_of(items: Sequence[Item], size: int) -> list[list[Item]]:
    """The items, so many at once."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
