"""CoOp: 16 learnt tokens stand before every caption's words; both towers stay frozen.

The tokens are the same for all captions (the unified context) and start from N(0, 0.02). The loss is symmetric
InfoNCE over in-batch pairs in place of cross-entropy over classes [inferred], and whole captions stand where class
names do. The released code trains for 50 to 200 epochs of a few hundred images with SGD, 2e-3, batch 32; here the rate
is ten times as high, because gradients are clipped to a norm of 1 and fewer steps are made.

Source: arXiv:2109.01134, section 3.2; the repository KaiyangZhou/CoOp (trainers/coop.py, configs/trainers/CoOp).
"""

from __future__ import annotations

from bench.types import FitContext, FitFacts
from submissions.backbones.plan import PLAN_ARGS, Plan
from submissions.backbones.training import fit_on_base
from submissions.coop.model import attach

NEEDS_BASE = True
VERSION = 1
METHOD = "CoOp (learnt text context)"
ARGS = {"n_prompts": "16", **PLAN_ARGS}
PLAN = Plan(epochs=10, batch=32, lr=2e-2, weight_decay=5e-4, optimizer="sgd")


def fit(context: FitContext) -> FitFacts:
    """Writes a submission folder with the fitted context into `context.output`.

    Raises:
        InputError: the base has no blocks that prompts could stand in.
        UsageError: an argument is not as it must be.
    """
    return fit_on_base(context, PLAN, attach)
