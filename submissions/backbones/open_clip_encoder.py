"""An encoder over any open_clip model, shared by the submissions that are one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize


class OpenClipEncoder:
    """Implements `bench.types.Encoder` and `Differentiable` with an open_clip model and all that goes with it.

    Args:
        model: has `encode_image` and `encode_text`.
        preprocess: PIL image to (3, height, width) tensor; where the last of its steps normalises, `embed_pixels` does.
        tokenize: texts to (n_texts, context_length) token ids; it truncates.
        device: torch's name of the device.
        dtype: torch's name of the floating type to compute in.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocess: Callable[[PIL.Image.Image], Tensor],
        tokenize: Callable[[list[str]], Tensor],
        device: str,
        dtype: str,
    ) -> None:
        self._device, self._dtype = device, getattr(torch, dtype)
        self.model: Any = model.eval().requires_grad_(False).to(device=device, dtype=self._dtype)
        self._preprocess, self.tokenize = preprocess, tokenize
        self._to_pixels, self._normalize = _split(preprocess)

    @torch.inference_mode()
    def encode_images(self, images: Sequence[PIL.Image.Image]) -> Float[np.ndarray, "n_images dim"]:
        """Embeddings as the model's projection gives them, (n_images, dim) float32."""
        pixels = self.preprocess_batch(images).to(device=self._device, dtype=self._dtype)
        return _array(self.model.encode_image(pixels))

    def preprocess_batch(self, images: Sequence[PIL.Image.Image]) -> Tensor:
        """What the model is fed, (n_images, 3, height, width) float32."""
        return torch.stack([self._preprocess(image) for image in images])

    def pixels(self, images: Sequence[PIL.Image.Image]) -> Float[Tensor, "n_images 3 height width"]:
        """Resized and cropped, before normalisation, in [0, 1]; an image of the model's own size stays as it is."""
        return torch.stack([self._to_pixels(image) for image in images])

    def embed_pixels(self, pixels: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n dim"]:
        """What `encode_images` gives for such pixels, (n, dim) float32, differentiable."""
        normalized = self._normalize(pixels).to(device=self._device, dtype=self._dtype)
        embeddings: Tensor = self.model.encode_image(normalized).float()
        return embeddings

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n_texts dim"]:
        """Embeddings as the model's projection gives them, (n_texts, dim) float32."""
        return _array(self.model.encode_text(self.tokenize(list(texts)).to(self._device)))


def _split(preprocess: Callable[[PIL.Image.Image], Tensor]) -> tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]:
    """What comes before normalisation, and normalisation, which may be nothing."""
    steps = getattr(preprocess, "transforms", [preprocess])
    if not isinstance(steps[-1], Normalize):
        return preprocess, nn.Identity()
    return Compose(steps[:-1]), steps[-1]


def _array(embeddings: Tensor) -> np.ndarray:
    return embeddings.float().cpu().numpy()
