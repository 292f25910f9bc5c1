"""CoCoOp: a caption's context vectors depend on the image that it is compared with, so it scores pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from bench.types import LoadContext
from submissions.backbones.backbone import Backbone, Changed, add_part, dim_of
from submissions.backbones.fitted import load_fitted
from submissions.backbones.plan import parse_count
from submissions.backbones.prompts import PART, Tokens, depth_of

REDUCTION = 16


class Conditioner(nn.Module):
    """From an image's vector to the context of its captions: tokens, all moved by what a small network makes of it.

    Args:
        n_prompts: tokens.
        dim: of an image's vector; the network is Linear(dim, dim / 16), ReLU, Linear(dim / 16, width).
        width: of the text tower's states.
        device: torch's name of where they lie.

    Source: arXiv:2203.05557, section 3.2; the network as in trainers/cocoop.py of its released code.
    """

    def __init__(self, n_prompts: int, dim: int, width: int, device: str) -> None:
        super().__init__()
        self.context = Tokens(1, n_prompts, width, device)
        hidden = max(1, dim // REDUCTION)
        self.shift = nn.Sequential(
            nn.Linear(dim, hidden, device=device), nn.ReLU(), nn.Linear(hidden, width, device=device)
        )

    def forward(self, images: Float[Tensor, "n dim"]) -> Float[Tensor, "n n_prompts width"]:
        """The context under each image, of normalised vectors."""
        (context,) = self.context()
        return context + self.shift(images).unsqueeze(1)


class Conditioned(Changed):
    """Implements `Encoder` by the base's own vectors, and `DifferentiableReranker` by captions under each image.

    Args:
        base: computes the vectors; its image vectors are what is kept of the images, too.
        conditioner: makes the context.
    """

    def __init__(self, base: Backbone, conditioner: Conditioner) -> None:
        super().__init__(base, base.module)
        add_part(base, conditioner, PART)
        self._conditioner = conditioner

    def score(self, images: Float[Tensor, "n dim"], texts: Sequence[str]) -> Float[Tensor, " n"]:
        """Cosine of each image vector and the text beside it, as it is under that image; differentiable."""
        normalized = functional.normalize(images)
        vectors = self.base.embed_texts(texts, [self._conditioner(normalized)])
        return (normalized * functional.normalize(vectors)).sum(dim=1)

    def image_tokens(self, images: Sequence[PIL.Image.Image]) -> Float[np.ndarray, "n_images dim"]:
        """The base's vectors, (n_images, dim) float32."""
        return self.encode_images(images)

    @torch.inference_mode()
    def score_pairs(
        self, tokens: Float[np.ndarray, "n_pairs dim"], texts: Sequence[str]
    ) -> Float[np.ndarray, " n_pairs"]:
        """`score` of such vectors, (n_pairs,) float32; those that were stored in half precision are as welcome."""
        return self.score(torch.from_numpy(tokens).to(self.device).float(), texts).cpu().numpy()

    def score_pixels(self, pixels: Float[Tensor, "n 3 height width"], texts: Sequence[str]) -> Float[Tensor, " n"]:
        """`score` from pixels in [0, 1], (n_pairs,) float32, differentiable."""
        return self.score(self.embed_pixels(pixels), texts)


def attach(backbone: Backbone, args: Mapping[str, str]) -> Conditioned:
    """The base as a first stage, with a `Conditioner` that learns for the second.

    Raises:
        InputError: the text tower has no blocks.
        UsageError: an argument is not as it must be.
    """
    depth_of(backbone.text, "text", most=1)
    n_prompts = parse_count("n_prompts", args["n_prompts"])
    return Conditioned(backbone, Conditioner(n_prompts, dim_of(backbone), backbone.text.width, backbone.device))


def load(context: LoadContext) -> Backbone:
    """The base with its fitted conditioner."""
    return load_fitted(context, attach)
