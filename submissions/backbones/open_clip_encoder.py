"""An encoder over any open_clip model, shared by the submissions that are one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor, nn


class OpenClipEncoder:
    """Implements `bench.types.Encoder` with an open_clip model, its preprocessing and its tokenizer.

    Args:
        model: has `encode_image` and `encode_text`.
        preprocess: PIL image to (3, height, width) tensor.
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
        self.model: Any = model.eval().to(device=device, dtype=self._dtype)
        self._preprocess, self.tokenize = preprocess, tokenize

    @torch.inference_mode()
    def encode_images(self, images: Sequence[PIL.Image.Image]) -> Float[np.ndarray, "n_images dim"]:
        """Embeddings as the model's projection gives them, (n_images, dim) float32."""
        pixels = self.preprocess_batch(images).to(device=self._device, dtype=self._dtype)
        return _array(self.model.encode_image(pixels))

    def preprocess_batch(self, images: Sequence[PIL.Image.Image]) -> Tensor:
        """What the model is fed, (n_images, 3, height, width) float32."""
        return torch.stack([self._preprocess(image) for image in images])

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n_texts dim"]:
        """Embeddings as the model's projection gives them, (n_texts, dim) float32."""
        return _array(self.model.encode_text(self.tokenize(list(texts)).to(self._device)))


def _array(embeddings: Tensor) -> np.ndarray:
    return embeddings.float().cpu().numpy()
