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

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from bench.types import FitContext, FitFacts
from submissions.backbones.backbone import Backbone
from submissions.backbones.examples import Batch, Examples
from submissions.backbones.plan import PLAN_ARGS, Plan
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
    true = np.zeros(cosines.shape, bool)
    true[tuple(few.collection.positives.T)] = True
    asked = np.array([of_image[0] for of_image in few.captions_of])
    i2t = _pairs(cosines)
    t2i = np.flip(_pairs(cosines.T[asked]), axis=-1)
    t2i[..., 1] = asked[:, None]
    return float(50 * sum(true[tuple(_best(backbone, images, few, pairs).T)].mean() for pairs in (i2t, t2i)))


def _pairs(cosines: Float[Tensor, "n_queries n_items"]) -> Int[np.ndarray, "n_queries pool 2"]:
    """(query, item) of every query and its best items, best first."""
    items = cosines.topk(min(POOL, cosines.shape[1])).indices.numpy()
    return np.stack([np.broadcast_to(np.arange(len(items))[:, None], items.shape), items], axis=-1)


def _best(
    backbone: Backbone, images: Float[Tensor, "n_images dim"], examples: Examples, pairs: Int[np.ndarray, "n pool 2"]
) -> Int[np.ndarray, "n 2"]:
    """Of each row's (image, caption) pairs the one that the second stage scores highest; the first if there is none."""
    if not isinstance(backbone, Conditioned):
        return pairs[:, 0]
    rows = pairs.reshape(-1, 2)
    parts = [rows[start : start + PAIRS_AT_ONCE] for start in range(0, len(rows), PAIRS_AT_ONCE)]
    scores = [backbone.score(images[part[:, 0]], examples.texts(part[:, 1])).cpu() for part in parts]
    best = torch.cat(scores).view(pairs.shape[:2]).argmax(dim=1).numpy()
    return pairs[np.arange(len(pairs)), best]
