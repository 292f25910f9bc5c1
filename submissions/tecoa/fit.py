"""TeCoA: the image tower learns to find the right caption under the worst small change of pixels.

Cross-entropy over 100 times the cosines of each perturbed image with the captions of the batch; the perturbation, at
most eps in each value, maximises the same loss. The source classifies among the texts of ImageNet's classes, whose
place the captions take; a caption that is also true of the image is left out of the sum [inferred]. Text vectors are
the base's. All is computed in eval mode; the factor 100 is fixed, and the base's own stays. The last weights are
kept: clean recall would choose the base. Rate, decay, batch and warm-up are RobustVLM's for ViT-L/14, which trains for
20,000 steps; the number of epochs is ours [inferred].

Source: arXiv:2212.07016, section 3; the loop as in `train/adversarial_training_clip.py` of github.com/chs20/RobustVLM.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from bench.types import FitContext, FitFacts
from submissions.backbones.examples import Batch
from submissions.backbones.perturb import PIXEL_ARGS, PixelSearch, perturb_pixels
from submissions.backbones.plan import PLAN_ARGS, Plan
from submissions.backbones.retrieval import Objective, Student
from submissions.backbones.training import fit_on_base
from submissions.tecoa.model import attach

NEEDS_BASE = True
VERSION = 1
METHOD = "text-guided adversarial fine-tuning of the image tower"
ARGS = {**PIXEL_ARGS, **PLAN_ARGS}
PLAN = Plan(epochs=10, batch=128, lr=1e-5, weight_decay=1e-4, warmup=0.07, keep="last", betas=(0.9, 0.999))
SCALE = 100.0


def fit(context: FitContext) -> FitFacts:
    """Writes a submission folder with the fitted image tower into `context.output`.

    Raises:
        UsageError: an argument is not as it must be.
    """
    search = PixelSearch.told(context.args)
    return fit_on_base(context, PLAN, attach, lambda base, examples: make_objective(search))


def make_objective(search: PixelSearch) -> Objective:
    """The loss of a batch."""

    def objective(student: Student, batch: Batch) -> Float[Tensor, ""]:
        backbone = student.backbone
        with torch.no_grad():
            texts = backbone.embed_texts(batch.texts)

        def loss(changed: Tensor) -> Tensor:
            return matching_loss(backbone.embed_pixels(changed), texts, batch.also_true)

        return loss(perturb_pixels(loss, batch.pixels.to(backbone.device), search, batch.rng))

    return objective


def matching_loss(
    images: Float[Tensor, "n dim"], texts: Float[Tensor, "n dim"], also_true: Bool[Tensor, "n n"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of each image's own caption among those of the batch.

    In one direction only, unlike `contrastive`: images are what was perturbed.

    Args:
        images: vectors of any norm.
        texts: of their captions, row by row.
        also_true: rows images, columns captions; the diagonal is False.
    """
    logits = SCALE * functional.normalize(images) @ functional.normalize(texts).T
    logits = logits.masked_fill(also_true.to(logits.device), -torch.inf)
    return functional.cross_entropy(logits, torch.arange(len(images), device=logits.device))
