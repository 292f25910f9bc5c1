"""What a frozen base makes of examples: computed once, because every step of the training reads it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from submissions.backbones.backbone import Backbone
from submissions.backbones.examples import Examples
from submissions.backbones.retrieval import ENCODE_BATCH, embed_captions

MOST_STATE_BYTES = 4 << 30


class Features:
    """Vectors of length one of all images and captions, and the states of the images' places.

    States are kept as float16 where they fit into `MOST_STATE_BYTES`, and computed for each batch where they do not.

    Args:
        base: does not change while these are used.
        examples: what is read.
    """

    def __init__(self, base: Backbone, examples: Examples) -> None:
        self._base, self.examples = base, examples
        rows = range(examples.n_images)
        parts = [self._read(rows[start : start + ENCODE_BATCH]) for start in range(0, len(rows), ENCODE_BATCH)]
        self.images = torch.cat([vectors for vectors, _ in parts])
        kept = [states for _, states in parts if states is not None]
        self._states = torch.cat(kept) if kept else None
        self.texts = functional.normalize(embed_captions(base, examples))

    def states(self, images: Int[np.ndarray, " n"]) -> Float[Tensor, "n n_states width"]:
        """Of some images, float32."""
        if self._states is None:
            return self._compute(images.tolist())
        return self._states[torch.from_numpy(images)].to(self._base.device).float()

    @torch.no_grad()
    def _read(self, images: Sequence[int]) -> tuple[Float[Tensor, "n dim"], Tensor | None]:
        vectors, states = self._base.embed_with_states(self.examples.pixels(images))
        fits = 2 * states[0].numel() * self.examples.n_images <= MOST_STATE_BYTES
        return functional.normalize(vectors), states.half().cpu() if fits else None

    @torch.no_grad()
    def _compute(self, images: Sequence[int]) -> Float[Tensor, "n n_states width"]:
        return self._base.embed_with_states(self.examples.pixels(images))[1]
