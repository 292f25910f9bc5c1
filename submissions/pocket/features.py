"""What the frozen towers say of a collection: computed once for all heads, on a cluster if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bench.types import Collection, FitContext, Image
from submissions.backbones.retrieval import batches_of
from submissions.pocket.model import ImageTower, TextTower, to_pixels

BATCH = 64


class Features(NamedTuple):
    """Of a collection."""

    images: Float[Tensor, "n_images 1280"]
    texts: Float[Tensor, "n_captions 384"]
    captions_of: list[np.ndarray]
    """Caption indices of each image."""

    def part(self, rows: np.ndarray) -> Features:
        """The same of some images only; captions keep their indices."""
        return Features(self.images[rows], self.texts, [self.captions_of[i] for i in rows])


def extract(collection: Collection, context: FitContext) -> Features:
    """The features of all images and captions, on the fit's device."""
    images, captions = batches_of(collection.images, BATCH), batches_of(collection.captions, BATCH)
    if context.map:
        parts = context.map(_encode_images, context.device, images)
        text_parts = context.map(_encode_texts, context.device, captions)
    else:
        parts, done = [], 0
        for batch in images:
            parts.append(_encode_images(context.device, batch))
            done += len(batch)
            context.report({"images_encoded": done, "images": len(collection.images)})
        text_parts = [_encode_texts(context.device, batch) for batch in captions]
    pairs = collection.positives
    captions_of = [pairs[pairs[:, 0] == i, 1] for i in range(len(collection.images))]
    return Features(torch.cat(parts).to(context.device), torch.cat(text_parts).to(context.device), captions_of)


@torch.inference_mode()
def _encode_images(device: str, images: Sequence[Image]) -> Tensor:
    tower, _ = _towers(device)
    found: Tensor = tower(to_pixels([image.decode() for image in images]).to(device))
    return found.cpu()


@torch.inference_mode()
def _encode_texts(device: str, texts: Sequence[str]) -> Tensor:
    _, tower = _towers(device)
    found: Tensor = tower(texts)
    return found.cpu()


@lru_cache(maxsize=1)
def _towers(device: str) -> tuple[ImageTower, TextTower]:
    return ImageTower().eval().to(device), TextTower().eval().to(device)
