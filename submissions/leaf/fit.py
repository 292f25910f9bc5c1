"""LEAF: the text tower keeps the base's vectors when the worst character of a caption changes; needs no images.

The mean over captions of the squared distance between the vector of a changed caption and the base's of the clean
one, both unnormalised and summed over dimensions; the change, at most k characters, is searched for to maximise the
same distance. Where the base's vectors come normalised, as pocket's do, the loss is taken of those. All is computed in
eval mode; the factor on cosines stays. The last weights are kept: clean recall would choose the base. Rate, decay,
batch and warm-up are the source's for ViT-L/14, which trains 30 epochs on 80,000 captions; the number of epochs is ours
[inferred]. One caption of each image is taken an epoch.

Source: arXiv:2506.03355, its TextFARE loss; checked against `utils_AT.py` of github.com/LIONS-EPFL/LEAF.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bench.types import FitContext, FitFacts
from submissions.backbones.backbone import Backbone
from submissions.backbones.examples import Batch
from submissions.backbones.perturb import TEXT_ARGS, TextSearch, perturb_texts, squared_distance
from submissions.backbones.plan import PLAN_ARGS, Plan
from submissions.backbones.retrieval import Objective, Student
from submissions.backbones.training import fit_on_base
from submissions.leaf.model import attach

NEEDS_BASE = True
VERSION = 1
METHOD = "adversarial fine-tuning of the text tower"
ARGS = {**TEXT_ARGS, **PLAN_ARGS}
PLAN = Plan(epochs=10, batch=128, lr=1e-5, weight_decay=1e-4, warmup=0.075, keep="last", betas=(0.9, 0.999))


def fit(context: FitContext) -> FitFacts:
    """Writes a submission folder with the fitted text tower into `context.output`.

    Raises:
        UsageError: an argument is not as it must be.
    """
    search = TextSearch.told(context.args)
    return fit_on_base(context, PLAN, attach, lambda base, examples: make_objective(base, search))


def make_objective(base: Backbone, search: TextSearch) -> Objective:
    """The loss of a batch, whose targets are the base's own vectors; the base must not be what learns."""

    def objective(student: Student, batch: Batch) -> Float[Tensor, ""]:
        embed = student.backbone.embed_texts
        with torch.no_grad():
            targets = base.embed_texts(batch.texts)

        def harm(vectors: Tensor, owners: Tensor) -> Tensor:
            return squared_distance(vectors, targets[owners])

        changed = perturb_texts(embed, harm, batch.texts, search, batch.rng)
        return squared_distance(embed(changed), targets).mean()

    return objective
