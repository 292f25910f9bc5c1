"""MAT: both towers learn on images and captions perturbed together, beside the clean pairs.

The mean of two symmetric InfoNCE losses, of the perturbed pairs and of the clean ones. First each caption is changed
by at most k characters so that its cosine with its clean image falls; then the pixels, by at most eps in each value,
so that the InfoNCE loss of the images with the changed captions rises. From the source comes the idea: perturbing both
modalities in training defends where one alone does not. The losses and their equal weights, the order, the search for
characters (LEAF's) and all rates are ours [inferred]; the source's augmentation with further captions and images is
left out. All is computed in eval mode; the factor on cosines stays. The last weights are kept: clean recall would
choose the base.

Source: arXiv:2405.18770, abstract; perturbations as `fare` and `leaf` make them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from bench.types import FitContext, FitFacts
from submissions.backbones.backbone import Backbone
from submissions.backbones.examples import Batch
from submissions.backbones.perturb import (
    PIXEL_ARGS,
    TEXT_ARGS,
    PixelSearch,
    TextSearch,
    perturb_pixels,
    perturb_texts,
)
from submissions.backbones.plan import PLAN_ARGS, Plan
from submissions.backbones.retrieval import Objective, Student, contrastive
from submissions.backbones.training import fit_on_base
from submissions.mat.model import attach

NEEDS_BASE = True
VERSION = 1
METHOD = "multimodal adversarial training of both towers"
ARGS = {**PIXEL_ARGS, **TEXT_ARGS, **PLAN_ARGS}
PLAN = Plan(epochs=10, batch=128, lr=1e-5, weight_decay=1e-4, warmup=0.07, keep="last", betas=(0.9, 0.999))


def fit(context: FitContext) -> FitFacts:
    """Writes a submission folder with both fitted towers into `context.output`.

    Raises:
        UsageError: an argument is not as it must be.
    """
    pixels, texts = PixelSearch.told(context.args), TextSearch.told(context.args)
    return fit_on_base(context, PLAN, attach, lambda base, examples: make_objective(pixels, texts))


def make_objective(pixel_search: PixelSearch, text_search: TextSearch) -> Objective:
    """The loss of a batch."""

    def objective(student: Student, batch: Batch) -> Float[Tensor, ""]:
        backbone = student.backbone
        pixels = batch.pixels.to(backbone.device)
        images, texts = backbone.embed_pixels(pixels), backbone.embed_texts(batch.texts)
        clean = contrastive(images, texts, backbone.log_scale, batch.also_true)
        changed_texts = drive_away(backbone, batch, images.detach(), text_search)
        changed_pixels = confuse(backbone, batch, pixels, changed_texts, pixel_search)
        images, texts = backbone.embed_pixels(changed_pixels), backbone.embed_texts(changed_texts)
        return (clean + contrastive(images, texts, backbone.log_scale, batch.also_true)) / 2

    return objective


def drive_away(backbone: Backbone, batch: Batch, images: Float[Tensor, "n dim"], search: TextSearch) -> list[str]:
    """The batch's captions, changed so that their cosines with their own images fall."""

    def harm(vectors: Tensor, owners: Tensor) -> Tensor:
        return -functional.cosine_similarity(vectors, images[owners])

    return perturb_texts(backbone.embed_texts, harm, batch.texts, search, batch.rng)


def confuse(
    backbone: Backbone,
    batch: Batch,
    pixels: Float[Tensor, "n 3 height width"],
    texts: list[str],
    search: PixelSearch,
) -> Float[Tensor, "n 3 height width"]:
    """The batch's pixels, changed so that the contrastive loss with such texts rises."""
    with torch.no_grad():
        vectors = backbone.embed_texts(texts)

    def loss(changed: Tensor) -> Tensor:
        return contrastive(backbone.embed_pixels(changed), vectors, backbone.log_scale, batch.also_true)

    return perturb_pixels(loss, pixels, search, batch.rng)
