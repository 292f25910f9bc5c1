"""An encoder over any open_clip model, shared by the submissions that are one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import open_clip
import PIL.Image
import torch
from jaxtyping import Float, Int
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
        tokens = self.tokenize(list(texts)).to(self._device)
        return _array(_encode_causal(self.model, tokens) if _is_causal(self.model) else self.model.encode_text(tokens))


def _is_causal(model: nn.Module) -> bool:
    """Whether no token sees those behind it, and the vector is that of the end-of-text token."""
    return isinstance(model, open_clip.CLIP) and model.attn_mask is not None and model.text_pool_type == "argmax"


def _encode_causal(model: Any, tokens: Int[Tensor, "n_texts context"]) -> Float[Tensor, "n_texts dim"]:
    """`model.encode_text(tokens)` without the padding that nothing looks at: of 77 places captions fill about 20."""
    ends = tokens.argmax(dim=1)
    length = int(ends.max()) + 1
    dtype = model.transformer.get_cast_dtype()
    states = model.token_embedding(tokens[:, :length]).to(dtype) + model.positional_embedding[:length].to(dtype)
    states = model.transformer(states, attn_mask=model.attn_mask[:length, :length])
    last = model.ln_final(states)[torch.arange(len(tokens), device=tokens.device), ends]
    projection = model.text_projection
    if projection is None:
        return last
    return projection(last) if isinstance(projection, nn.Linear) else last @ projection


def _split(preprocess: Callable[[PIL.Image.Image], Tensor]) -> tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]:
    """What comes before normalisation, and normalisation, which may be nothing."""
    steps = getattr(preprocess, "transforms", [preprocess])
    if not isinstance(steps[-1], Normalize):
        return preprocess, nn.Identity()
    return Compose(steps[:-1]), steps[-1]


def _array(embeddings: Tensor) -> np.ndarray:
    return embeddings.float().cpu().numpy()
