"""What a frozen base makes of examples: computed once, because every step of the training reads it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from bench.types import Image
from submissions.backbones.backbone import Backbone
from submissions.backbones.examples import Examples, read_pixels
from submissions.backbones.frozen import Frozen
from submissions.backbones.retrieval import ENCODE_BATCH, batches_of

MOST_STATE_BYTES = 4 << 30


class Features:
    """Vectors of length one of all images and captions, and the states of the images' places.

    States are kept as float16 where they fit into `MOST_STATE_BYTES`, and computed for each batch where they do not.

    Args:
        base: does not change while these are used.
        examples: what is read.
    """

    def __init__(self, base: Frozen, examples: Examples) -> None:
        self._base, self.examples = base.backbone, examples
        batches = batches_of(examples.collection.images, ENCODE_BATCH)
        parts = base.apply(_encode_with_states, [(batch, examples.n_images) for batch in batches])
        self.images = torch.cat([part[0] for part in parts])
        self._states = torch.cat([part[1].cpu() for part in parts]) if len(parts[0]) > 1 else None
        self.texts = functional.normalize(base.captions(examples))

    def states(self, images: Int[np.ndarray, " n"]) -> Float[Tensor, "n n_states width"]:
        """Of some images, float32."""
        if self._states is None:
            return self._compute(images.tolist())
        return self._states[torch.from_numpy(images)].to(self._base.device).float()

    @torch.no_grad()
    def _compute(self, images: Sequence[int]) -> Float[Tensor, "n n_states width"]:
        return self._base.embed_with_states(self.examples.pixels(images))[1]


def _encode_with_states(backbone: Backbone, task: tuple[Sequence[Image], int]) -> tuple[Tensor, ...]:
    """Vectors of length one of images, and their states if those of so many images in all fit into memory."""
    images, n_images = task
    vectors, states = backbone.embed_with_states(read_pixels(backbone, images))
    fits = 2 * states[0].numel() * n_images <= MOST_STATE_BYTES
    return (functional.normalize(vectors), *([states.half().cpu()] if fits else []))
