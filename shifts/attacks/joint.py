"""Pixels and words changed together, so that an image and its captions part: Co-Attack, SGA, and neither's teamwork.

All three make one word edit a caption and move the image by `eps`; they differ in what each side is pushed away from.
They look at nothing but pairs that belong together: not at the rest of the gallery, not at who stands beside them in
the batch. Losses are summed over the batch, and of the gradient only the sign counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from shifts.attacks.goal import Logits, cross_entropies
from shifts.attacks.words import replace_words

N_WORD_EDITS = 1
SCALES = (0.5, 0.75, 1.25, 1.5)
NOISE = 0.05
CHANGED_WORDS_WEIGHT = 3.0

Pixels = Float[Tensor, "batch 3 height width"]
Vectors = Float[Tensor, "n dim"]
Owners = Int[np.ndarray, " n_texts"]
_View = Callable[[Pixels], Pixels]
_PixelLosses = Callable[[Pixels], Float[Tensor, " batch"]]
_TextLosses = Callable[[Vectors, Tensor], Float[Tensor, " n"]]


class Victim(Protocol):
    """What is attacked, by both its sides."""

    def embed_pixels(self, pixels: Pixels) -> Float[Tensor, "batch dim"]:
        """Embeddings of any norm, differentiable."""

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n_texts dim"]:
        """Embeddings of any norm, without gradient."""


def sga_image(logits: Logits, images: Pixels, eps: float, steps: int, rng: np.random.Generator) -> Pixels:
    """The images moved along the sign of a gradient that is summed over five sizes of them: SGA's image step.

    Each step raises the cross-entropy of label 0 of the images and of four copies, which have noise added, are
    resized by `SCALES`, clipped and resized back. It starts from U(-eps, eps) and moves by eps / 4, which at 2/255 is
    the .5/255 of the released code.

    Source: arXiv 2307.14061, section 4.3; `ImageAttacker` of github.com/Zoky-2020/SGA, which also divides the
    gradient by its mean, to no effect on the sign.
    """
    return _ascend_scales(images, lambda pixels: cross_entropies(logits(pixels)), eps, steps, rng)


def separate(
    victim: Victim,
    images: Pixels,
    texts: Sequence[str],
    owners: Owners,
    eps: float,
    steps: int,
    rng: np.random.Generator,
) -> tuple[Pixels, list[str]]:
    """Either side away from its own clean embedding, the words as in BERT-Attack: what teamwork has to beat.

    It is `co_attack` in which the image does not look at the changed words.

    Source: the attacks on both sides without interaction of github.com/adversarial-for-goodness/Co-Attack, which are
    the separate row of SGA's tables.
    """
    return co_attack(victim, images, texts, owners, eps, steps, rng, words_weight=0.0)


def co_attack(
    victim: Victim,
    images: Pixels,
    texts: Sequence[str],
    owners: Owners,
    eps: float,
    steps: int,
    rng: np.random.Generator,
    words_weight: float | None = None,
) -> tuple[Pixels, list[str]]:
    """Words first, away from the clean caption; then the image, away from its clean self and from the changed words.

    Distances are Kullback-Leibler divergences between the softmaxes of unit vectors; the changed words weigh
    `CHANGED_WORDS_WEIGHT` (or `words_weight`) times as much as the clean image; the start is U(0, eps), the step
    1.25 eps / steps: all as in the released code for CLIP. It is not followed where it attacks pair by pair and keeps
    of an image what its last caption made of it (here all its captions count alike), lets pixels leave [0, 1] before
    the first step, and takes the language model's candidates for a word from the token before it.

    Source: arXiv 2206.09391, section 4; `run_before_fusion` of github.com/adversarial-for-goodness/Co-Attack.
    """
    changed_texts = _replace_words(victim, texts, _encode(victim, texts, images), _divergences)
    clean, targets = _embed(victim, images), _encode(victim, changed_texts, images)
    weight = CHANGED_WORDS_WEIGHT if words_weight is None else words_weight

    def losses(pixels: Pixels) -> Float[Tensor, " batch"]:
        vectors = _vectors(victim, pixels)
        from_words = _mean_by_owner(_divergences(vectors[owners], targets), owners, len(images))
        return _divergences(vectors, clean) + weight * from_words

    return _ascend_once(images, losses, eps, steps, rng), changed_texts


def sga(
    victim: Victim,
    images: Pixels,
    texts: Sequence[str],
    owners: Owners,
    eps: float,
    steps: int,
    rng: np.random.Generator,
) -> tuple[Pixels, list[str]]:
    """Words away from the clean image, the image away from all those captions at five sizes, then words anew.

    The image's ascent is that of `sga_image`, on its mean cosine with its changed captions. The last words replace
    those of the original captions, not the first changes, and look at the changed image. The released code is not
    followed where it cuts the captions that guide the image at 30 tokens, ranks words by the caption's own
    embedding, and takes the language model's candidates for a word from the token before it.

    Source: arXiv 2307.14061, section 4.3; `SGAttacker` of github.com/Zoky-2020/SGA.
    """
    guides = _encode(victim, _part(victim, texts, _embed(victim, images)[owners]), images)
    changed = _ascend_scales(images, _away_from_captions(victim, guides, owners), eps, steps, rng)
    return changed, _part(victim, texts, _embed(victim, changed)[owners])


def _ascend_once(images: Pixels, losses: _PixelLosses, eps: float, steps: int, rng: np.random.Generator) -> Pixels:
    """The ascent of Co-Attack's code: from U(0, eps), by 1.25 eps in all."""
    start = images + eps * _draw(torch.rand, images, _generator(rng))
    return _ascend(images, start, losses, [_as_it_is], eps, 1.25 * eps / steps, steps)


def _ascend_scales(images: Pixels, losses: _PixelLosses, eps: float, steps: int, rng: np.random.Generator) -> Pixels:
    """The ascent of SGA's code: from U(-eps, eps), by eps / 4 a step, over the images and copies of other sizes."""
    generator = _generator(rng)
    start = images + eps * (2 * _draw(torch.rand, images, generator) - 1)
    copies = [partial(_rescaled, scale=scale, generator=generator) for scale in SCALES]
    return _ascend(images, start, losses, [_as_it_is, *copies], eps, eps / 4, steps)


def _ascend(
    images: Pixels,
    start: Pixels,
    losses: _PixelLosses,
    views: Sequence[_View],
    eps: float,
    step: float,
    steps: int,
) -> Pixels:
    """Steps along the sign of the losses' gradient summed over the views, one view in memory at a time."""
    low, high = (images - eps).clamp(min=0.0), (images + eps).clamp(max=1.0)
    pixels = start.clamp(low, high)
    for _ in range(steps):
        gradient = torch.zeros_like(pixels)
        for view in views:
            gradient += _gradient(losses, view, pixels)
        pixels = (pixels + step * gradient.sign()).clamp(low, high)
    return pixels


def _gradient(losses: _PixelLosses, view: _View, pixels: Pixels) -> Pixels:
    with torch.enable_grad():
        leaf = pixels.detach().requires_grad_()
        return torch.autograd.grad(losses(view(leaf)).sum(), leaf)[0]


def _as_it_is(pixels: Pixels) -> Pixels:
    return pixels


def _rescaled(pixels: Pixels, scale: float, generator: torch.Generator) -> Pixels:
    """The pixels with noise, made smaller or larger and brought back to their size; new noise at every call."""
    size = pixels.shape[-2:]
    noisy = pixels + NOISE * _draw(torch.randn, pixels, generator)
    scaled = _resize(noisy, (int(scale * size[0]), int(scale * size[1]))).clamp(0.0, 1.0)
    return _resize(scaled, (size[0], size[1]))


def _resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Without antialiasing, as torchvision 0.15, which SGA was released with, did to tensors."""
    return functional.interpolate(pixels, size, mode="bicubic", align_corners=False)


def _away_from_captions(victim: Victim, targets: Vectors, owners: Owners) -> _PixelLosses:
    """Minus each image's mean cosine with its captions' unit vectors."""

    def losses(pixels: Pixels) -> Float[Tensor, " batch"]:
        vectors = _vectors(victim, pixels)
        return _mean_by_owner(_misfits(vectors[owners], targets), owners, len(pixels))

    return losses


def _part(victim: Victim, texts: Sequence[str], anchors: Vectors) -> list[str]:
    """The texts with a word replaced, away from the image vector that stands in the same row."""
    return _replace_words(victim, texts, anchors, _misfits)


def _replace_words(victim: Victim, texts: Sequence[str], anchors: Vectors, losses: _TextLosses) -> list[str]:
    def score(candidates: Sequence[str], rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        found: np.ndarray = losses(_encode(victim, candidates, anchors), anchors[rows]).cpu().numpy()
        return found

    return replace_words(score, texts, N_WORD_EDITS)


def _misfits(vectors: Vectors, targets: Vectors) -> Float[Tensor, " n"]:
    """Minus the cosines of pairs of unit vectors."""
    return -(vectors * targets).sum(dim=1)


def _divergences(vectors: Vectors, targets: Vectors) -> Float[Tensor, " n"]:
    """KL(softmax(target) || softmax(vector)) of each pair."""
    return functional.kl_div(vectors.log_softmax(dim=1), targets.softmax(dim=1), reduction="none").sum(dim=1)


def _mean_by_owner(values: Float[Tensor, " n_texts"], owners: Owners, n_images: int) -> Float[Tensor, " n_images"]:
    """The mean over each image's texts, 0 for an image that has none; a product, for its sums have a fixed order."""
    belongs = torch.as_tensor(owners, device=values.device) == torch.arange(n_images, device=values.device)[:, None]
    weights = belongs.to(values.dtype) / belongs.sum(dim=1, keepdim=True).clamp(min=1)
    return weights @ values


@torch.no_grad()
def _embed(victim: Victim, pixels: Pixels) -> Vectors:
    return _vectors(victim, pixels)


def _vectors(victim: Victim, pixels: Pixels) -> Vectors:
    """Unit vectors on the pixels' device, differentiable."""
    return _unit(victim.embed_pixels(pixels).to(pixels.device))


def _encode(victim: Victim, texts: Sequence[str], beside: Tensor) -> Vectors:
    """Unit vectors on the same device as another tensor."""
    return _unit(victim.encode_texts(texts).to(beside.device))


def _unit(vectors: Vectors) -> Vectors:
    return functional.normalize(vectors, dim=1)


def _generator(rng: np.random.Generator) -> torch.Generator:
    """On the CPU: the same numbers for all devices."""
    return torch.Generator().manual_seed(int(rng.integers(2**63)))


def _draw(distribution: Callable[..., Tensor], like: Tensor, generator: torch.Generator) -> Tensor:
    return distribution(like.shape, generator=generator).to(like.device)
