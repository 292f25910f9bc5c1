"""VPT-deep: 8 learnt tokens at every block of the image tower; both towers stay frozen.

They stand behind the image's own tokens (to attention their place makes no difference), and every block's take the
place of what the block before made of its own. They start from N(0, 0.02) and not, as in VPT's own code, from a
uniform distribution [inferred]; the first block's come after the layer norm that precedes the blocks. The loss is
symmetric InfoNCE over in-batch pairs. MaPLe's released code, where VPT stands beside CLIP, trains for 5 epochs with
SGD, 2.5e-3, batch 4; here the rate is ten times as high, because gradients are clipped to a norm of 1 and a batch of
32 makes fewer steps.

Source: arXiv:2203.12119, section 3.2; the repository muzairkhattak/multimodal-prompt-learning (configs/trainers/VPT).
"""

from __future__ import annotations

from bench.types import FitContext, FitFacts
from submissions.backbones.plan import PLAN_ARGS, Plan
from submissions.backbones.training import fit_on_base
from submissions.vpt.model import attach

NEEDS_BASE = True
VERSION = 1
METHOD = "VPT-deep (image prompts)"
ARGS = {"n_prompts": "8", **PLAN_ARGS}
PLAN = Plan(epochs=10, batch=32, lr=2.5e-2, weight_decay=5e-4, optimizer="sgd")


def fit(context: FitContext) -> FitFacts:
    """Writes a submission folder with the fitted tokens into `context.output`.

    Raises:
        InputError: the base has no blocks that prompts could stand in.
        UsageError: an argument is not as it must be.
    """
    return fit_on_base(context, PLAN, attach)
