"""(IA)^3: a learned factor on each key, value and hidden unit, folded into the weights for inference.

Through the peft library. The paper trains T0 with Adafactor at 3e-3 for a thousand steps of 8, without weight decay.
AdamW at 5e-3, batches of 32 and ten epochs are ours [inferred]: an AdamW step moves a factor by about the rate, and the
factors start at one, so that a few hundred steps must be able to move them by tens of percent. There is no weight decay
here either: it would draw the factors to zero and not to one.

Source: arXiv:2205.05638, section 3.3, and its code, r-three/t-few (`configs/ia3.json`, `src/utils/Config.py`).
"""

from __future__ import annotations

from bench.types import FitContext, FitFacts
from submissions.backbones.peft_layers import fold
from submissions.backbones.plan import PLAN_ARGS, Plan
from submissions.backbones.training import fit_on_base
from submissions.ia3.model import attach

NEEDS_BASE = True
VERSION = 1
METHOD = "(IA)^3"
REQUIRES = ["peft"]
ARGS = {"towers": "both", **PLAN_ARGS}
PLAN = Plan(epochs=10, batch=32, lr=5e-3, weight_decay=0.0, warmup=0.06, betas=(0.9, 0.999))


def fit(context: FitContext) -> FitFacts:
    """Writes a submission folder with the fitted factors into `context.output`.

    Raises:
        InputError: the base has no transformer blocks.
        UsageError: an argument is not as it must be.
    """
    return fit_on_base(context, PLAN, attach, merge=fold)
