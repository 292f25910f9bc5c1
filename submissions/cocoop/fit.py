"""CoCoOp: learnt tokens before a caption depend on the image it is compared with, so it re-ranks.

Four tokens from N(0, 0.02), all moved by what a small network makes of the image's normalised vector. A caption's
vector is then another one for each image, which no index of vectors can hold: the base's own vectors find candidates,
and each pair's cosine orders them. The loss is cross-entropy over all pairs of a batch, of captions under each image
as in the released code, and of images under each caption besides [inferred]; a batch of 8 is 64 passes through the
text tower. The released code trains for 10 epochs with SGD, 2e-3, one image a step; here the rate is ten times as
high, because gradients are clipped to a norm of 1 and fewer steps are made. The validation R@1 is that after
re-ranking.

Source: arXiv:2203.05557, section 3.2; the repository KaiyangZhou/CoOp (trainers/cocoop.py, configs/trainers/CoCoOp).
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from bench.types import FitContext, FitFacts
from submissions.backbones.backbone import Backbone
from submissions.backbones.examples import Batch, Examples
from submissions.backbones.plan import PLAN_ARGS, Plan
from submissions.backbones.reranking import Candidates
from submissions.backbones.retrieval import Student, embed_captions, embed_images, match_pairs
from submissions.backbones.training import fit_on_base
from submissions.cocoop.model import Conditioned, attach

NEEDS_BASE = True
VERSION = 1
METHOD = "CoCoOp (text context conditioned on the image), a reranker"
ARGS = {"n_prompts": "4", **PLAN_ARGS}
PLAN = Plan(epochs=5, batch=8, lr=2e-2, weight_decay=5e-4, optimizer="sgd")
VALIDATED_IMAGES, POOL = 100, 20
PAIRS_AT_ONCE = 256


def fit(context: FitContext) -> FitFacts:
    """Writes a submission folder with the fitted conditioner into `context.output`.

    Raises:
        InputError: the base's text tower takes no prompts.
        UsageError: an argument is not as it must be.
    """
    return fit_on_base(context, PLAN, attach, lambda base, examples: conditional_loss, validate=reranked_recall_at_1)


def conditional_loss(student: Student, batch: Batch) -> Float[Tensor, ""]:
    """Cross-entropy, both ways, of every image of the batch with every caption under that image.

    A caption that is also true of another image is no negative of it, as in `retrieval.contrastive`.
    """
    model = cast(Conditioned, student.backbone)
    images = student.image_vectors(batch)
    n = len(images)
    cosines = model.score(images.repeat_interleave(n, dim=0), batch.texts * n).view(n, n)
    return match_pairs(model.log_scale.exp() * cosines, batch.also_true)


@torch.no_grad()
def reranked_recall_at_1(backbone: Backbone, examples: Examples) -> float:
    """Mean of both directions' R@1 in percent, after the second stage ordered the best `POOL` of the first.

    Over the first `VALIDATED_IMAGES` images with their captions alone, one caption of each image asked, because every
    pair costs a pass through the text tower. A backbone without a second stage keeps the first's order.
    """
    few = Examples(examples.collection.head(VALIDATED_IMAGES), backbone)
    images, captions = embed_images(backbone, few), embed_captions(backbone, few)
    cosines = (functional.normalize(images) @ functional.normalize(captions).T).cpu()
    candidates = Candidates(cosines, few, POOL)
    rows = candidates.pairs
    if not isinstance(backbone, Conditioned):
        return candidates.recall_at_1(cosines.numpy()[tuple(rows.T)])
    parts = [rows[start : start + PAIRS_AT_ONCE] for start in range(0, len(rows), PAIRS_AT_ONCE)]
    scores = [backbone.score(images[part[:, 0]], few.texts(part[:, 1])).cpu() for part in parts]
    return candidates.recall_at_1(torch.cat(scores).numpy())
