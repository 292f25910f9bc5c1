"""MaPLe: learnt text tokens at 9 blocks, and image tokens that are linear maps of them; both towers stay frozen.

Two tokens at each of the text tower's first blocks, each block's in place of the ones before; at the image tower's
first blocks stands what one linear layer a block makes of them. All start from N(0, 0.02), where the paper takes the
first block's from the words "a photo": captions are no class names that need such a frame [inferred]. The first
block's image tokens come after the layer norm that precedes the blocks, in the released code before it. The loss is
symmetric InfoNCE over in-batch pairs. The released code trains for 5 epochs with SGD, 3.5e-3, batch 4; here the rate
is ten times as high, because gradients are clipped to a norm of 1 and a batch of 32 makes fewer steps.

Source: arXiv:2210.03117, section 3.2; the repository muzairkhattak/multimodal-prompt-learning (trainers/maple.py).
"""

from __future__ import annotations

from bench.types import FitContext, FitFacts
from submissions.backbones.plan import PLAN_ARGS, Plan
from submissions.backbones.training import fit_on_base
from submissions.maple.model import attach

NEEDS_BASE = True
VERSION = 1
METHOD = "MaPLe (coupled text and image prompts)"
ARGS = {"n_prompts": "2", "depth": "9", **PLAN_ARGS}
PLAN = Plan(epochs=10, batch=32, lr=3.5e-2, weight_decay=5e-4, optimizer="sgd")


def fit(context: FitContext) -> FitFacts:
    """Writes a submission folder with the fitted tokens into `context.output`.

    Raises:
        InputError: the base has no blocks that prompts could stand in.
        UsageError: an argument is not as it must be.
    """
    return fit_on_base(context, PLAN, attach)
