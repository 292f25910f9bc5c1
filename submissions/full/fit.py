"""Full fine-tuning of both towers, or of one.

Symmetric InfoNCE over in-batch pairs, in which another true caption of an image is no negative; the factor on cosines
learns and stays at most 100; AdamW with a cosine schedule; the epoch with the best validation R@1 is kept. What the
other recipes' accuracy and training time are compared with. Rates are ours [inferred]: published fine-tunings of CLIP
use 1e-6 to 1e-5 with far larger batches and models.
"""

from __future__ import annotations

from bench.types import FitContext, FitFacts
from submissions.backbones.plan import PLAN_ARGS, Plan
from submissions.backbones.training import fit_on_base
from submissions.full.model import attach

NEEDS_BASE = True
VERSION = 1
METHOD = "full fine-tuning"
ARGS = {"towers": "both", **PLAN_ARGS}
PLAN = Plan(epochs=10, batch=64, lr=1e-4, weight_decay=0.1)


def fit(context: FitContext) -> FitFacts:
    """Writes a submission folder with all weights fitted into `context.output`.

    Raises:
        UsageError: an argument is not as it must be.
    """
    return fit_on_base(context, PLAN, attach)
