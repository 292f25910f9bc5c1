"""Bottleneck adapters: a small network behind each block, which alone learns; it stays there at inference.

One adapter of width 64 behind each block's feed-forward network, or with `places=2` another behind its attention, as
in the paper. Adapters learn at higher rates than whole models do: the paper tries 3e-5 to 3e-3 with Adam, batches of 32
and a tenth of warm-up; AdamW at 1e-3 with weight decay .01 and ten epochs are ours [inferred]. The layer norms stay
frozen, which the paper trains as well.

Source: arXiv:1902.00751, sections 2.1 and 3.1.
"""

from __future__ import annotations

from bench.types import FitContext, FitFacts
from submissions.adapter.model import attach
from submissions.backbones.plan import PLAN_ARGS, Plan
from submissions.backbones.training import fit_on_base

NEEDS_BASE = True
VERSION = 1
METHOD = "bottleneck adapter"
ARGS = {"rank": "64", "scale": "1.0", "places": "1", "towers": "both", **PLAN_ARGS}
PLAN = Plan(epochs=10, batch=32, lr=1e-3, weight_decay=0.01, betas=(0.9, 0.999))


def fit(context: FitContext) -> FitFacts:
    """Writes a submission folder with the fitted adapters into `context.output`.

    Raises:
        InputError: the base has no transformer blocks.
        UsageError: an argument is not as it must be.
    """
    return fit_on_base(context, PLAN, attach)
