"""FARE: the image tower keeps the base's vectors under the worst small change of pixels; needs no text.

The mean over images of the squared distance between the vector of a perturbed image and the base's of the clean one,
both unnormalised and summed over dimensions; the perturbation, at most eps in each value, maximises the same loss.
Where the base's vectors come normalised, as pocket's do, the loss is taken of those. All is computed in eval mode, in
which the source makes its perturbations (for a transformer without dropout its train mode is the same). The factor on
cosines stays. The last weights are kept: clean recall would choose the base. Rate, decay, batch and warm-up are the
source's for ViT-L/14, which trains for 20,000 steps on ImageNet; the number of epochs is ours [inferred].

Source: arXiv:2402.12336, section 3; checked against `train/adversarial_training_clip.py` of github.com/chs20/RobustVLM.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bench.types import FitContext, FitFacts
from submissions.backbones.backbone import Backbone
from submissions.backbones.examples import Batch
from submissions.backbones.perturb import PIXEL_ARGS, PixelSearch, perturb_pixels, squared_distance
from submissions.backbones.plan import PLAN_ARGS, Plan
from submissions.backbones.retrieval import Objective, Student
from submissions.backbones.training import fit_on_base
from submissions.fare.model import attach

NEEDS_BASE = True
VERSION = 1
METHOD = "unsupervised adversarial fine-tuning of the image tower"
ARGS = {**PIXEL_ARGS, **PLAN_ARGS}
PLAN = Plan(epochs=10, batch=128, lr=1e-5, weight_decay=1e-4, warmup=0.07, keep="last", betas=(0.9, 0.999))


def fit(context: FitContext) -> FitFacts:
    """Writes a submission folder with the fitted image tower into `context.output`.

    Raises:
        UsageError: an argument is not as it must be.
    """
    search = PixelSearch.told(context.args)
    return fit_on_base(context, PLAN, attach, lambda base, examples: make_objective(base, search))


def make_objective(base: Backbone, search: PixelSearch) -> Objective:
    """The loss of a batch, whose targets are the base's own vectors; the base must not be what learns."""

    def objective(student: Student, batch: Batch) -> Float[Tensor, ""]:
        pixels = batch.pixels.to(student.backbone.device)
        with torch.no_grad():
            targets = base.embed_pixels(pixels)

        def loss(changed: Tensor) -> Tensor:
            return squared_distance(student.backbone.embed_pixels(changed), targets).mean()

        return loss(perturb_pixels(loss, pixels, search, batch.rng))

    return objective
