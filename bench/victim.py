"""A submission as an attack sees it: torch functions whose values and gradients come from the submission's process.

The arithmetic of an attack stays in the harness's process; the worker only maps pixels to vectors and pulls gradients
back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.embed import checked_vectors
from bench.errors import ProtocolError
from bench.worker.host import Loaded, Worker
from shifts.attacks.budget import to_levels

RECENT_TEXTS = 16_384
Run = Callable[[np.ndarray, slice, bool], np.ndarray]


class Victim:
    """A loaded submission; tensors are in float32 on the CPU, whatever the submission computes on.

    Args:
        worker: stays the caller's to close.
        batch_size: more items than this are handed over in parts.

    Every function raises the worker's SubmissionErrors, from within a backward pass as well.
    """

    def __init__(self, worker: Worker, batch_size: int) -> None:
        self._worker, self._batch_size = worker, batch_size
        self._recent: dict[str, Tensor] = {}

    @property
    def loaded(self) -> Loaded:
        """What the worker says of the submission."""
        return self._worker.loaded

    @property
    def differentiable(self) -> bool:
        """Whether `embed_pixels` has a gradient; else it is for black-box attacks only."""
        return self._worker.loaded.differentiable

    @property
    def reranker(self) -> bool:
        """Whether there is a second stage."""
        return self._worker.loaded.reranker

    @property
    def differentiable_reranker(self) -> bool:
        """Whether `score_pixels` can be called; it has a gradient."""
        return self._worker.loaded.differentiable_reranker

    @property
    def autograd_calls(self) -> int:
        """How often the submission has differentiated backwards while it answered: nought, unless it optimises."""
        return self._worker.autograd_calls

    @property
    def detached_gradients(self) -> int:
        """How many gradients are zeros because the submission's output did not depend on the pixels."""
        return self._worker.detached_gradients

    def pixels(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Float[Tensor, "n_images 3 height width"]:
        """What a differentiable submission looks at of RGB images of any sizes, in [0, 1] before normalisation.

        Raises:
            UsageError: the submission is not differentiable; it does not say what it looks at.
            ProtocolError: the images come out in different sizes.
        """
        parts = [self._worker.pixels(images[rows]) for rows in self._batches(len(images))]
        sizes = {part.shape[2:] for part in parts}
        if len(sizes) > 1:
            raise ProtocolError(f"pixels returned the sizes {sorted(sizes)}; expected one for all images.")
        return torch.from_numpy(_joined(parts))

    def embed_pixels(self, pixels: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n dim"]:
        """Embeddings of pixels in [0, 1], as the submission returns them; differentiable once, if the submission is.

        One that is not differentiable sees them through `encode_images`, rounded to whole levels, without gradient.
        """
        if not self.differentiable:
            return self.encode_images(list(to_levels(pixels)))

        def run(part: np.ndarray, rows: slice, grad: bool) -> np.ndarray:
            return checked_vectors(self._worker.embed_pixels(part, grad), "embed_pixels")

        return self._from_pixels(pixels, run)

    def score_pixels(self, pixels: Float[Tensor, "n_pairs 3 height width"], texts: Sequence[str]) -> Tensor:
        """The second stage's scores of images and the texts beside them, (n_pairs,); differentiable once.

        Raises:
            UsageError: the submission is no `DifferentiableReranker`.
        """

        def run(part: np.ndarray, rows: slice, grad: bool) -> np.ndarray:
            return self._worker.score_pixels(part, texts[rows], grad)

        return self._from_pixels(pixels, run)

    def encode_images(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Float[Tensor, "n_images dim"]:
        """Embeddings of RGB images of any sizes, as the submission returns them."""
        parts = [self._worker.encode_images(images[rows]) for rows in self._batches(len(images))]
        return torch.from_numpy(checked_vectors(_joined(parts), "encode_images"))

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n_texts dim"]:
        """Embeddings of texts, as the submission returns them; of those seen lately it is not asked again."""
        unknown = sorted({*texts} - self._recent.keys(), key=lambda text: (len(text), text))  # alike: less padding
        for rows in self._batches(len(unknown)):
            batch = unknown[rows]
            vectors = checked_vectors(self._worker.encode_texts(batch), "encode_texts")
            self._recent.update(zip(batch, torch.from_numpy(vectors).unbind(), strict=True))
        found = torch.stack([self._recent[text] for text in texts])
        while len(self._recent) > RECENT_TEXTS:
            del self._recent[next(iter(self._recent))]
        return found

    def forget_texts(self) -> None:
        """Makes `encode_texts` ask the submission again about everything."""
        self._recent.clear()

    def image_tokens(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Float[np.ndarray, "n_images ..."]:
        """What the second stage keeps of each image, in the submission's own type."""
        return _joined([self._worker.image_tokens(images[rows]) for rows in self._batches(len(images))])

    def score_pairs(self, tokens: Float[np.ndarray, "n_pairs ..."], texts: Sequence[str]) -> Tensor:
        """The second stage's scores of images' tokens and the texts beside them, (n_pairs,)."""
        parts = [self._worker.score_pairs(tokens[rows], texts[rows]) for rows in self._batches(len(texts))]
        return torch.from_numpy(_joined(parts))

    def _from_pixels(self, pixels: Tensor, run: Run) -> Tensor:
        batches = list(self._batches(len(pixels)))
        pixels = pixels if torch.is_grad_enabled() else pixels.detach()
        return _Remote.apply(pixels.to(device="cpu", dtype=torch.float32), self._worker, run, batches)  # type: ignore[no-untyped-call]

    def _batches(self, count: int) -> Iterator[slice]:
        return (slice(start, start + self._batch_size) for start in range(0, count, self._batch_size))


class _Remote(torch.autograd.Function):
    """A function of pixels that the worker computes.

    The worker keeps one graph, the latest. Where that is not this call's (several batches, or another call came in
    between), backward computes the vectors again, batch by batch: the memory of one batch is all that a worker needs.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, worker: Worker, run: Run, batches: list[slice]) -> Tensor:
        needed = ctx.needs_input_grad[0]
        array = pixels.detach().numpy()
        parts = [run(array[rows], rows, needed and len(batches) == 1) for rows in batches]
        if needed:
            ctx.save_for_backward(pixels)
            ctx.worker, ctx.run, ctx.batches = worker, run, batches
            ctx.graph = worker.graph if len(batches) == 1 else None
        return torch.from_numpy(_joined(parts))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None, None]:
        array, weights = ctx.saved_tensors[0].detach().numpy(), cotangent.numpy()
        gradients = []
        for rows in ctx.batches:
            if ctx.graph is None or ctx.graph != ctx.worker.graph:
                ctx.run(array[rows], rows, True)
            gradients.append(ctx.worker.pull_back(weights[rows]))
        return torch.from_numpy(_joined(gradients)), None, None, None


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
