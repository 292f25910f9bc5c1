"""MultiWay-Adapter: small networks beside each block's own, and one behind each pair of blocks for both towers.

The extractors beside the feed-forward networks take up what is new, the enhancers behind them, through which images and
texts pass alike, keep the towers aligned. The paper tries scales of .1 to .6: the released code's default is .1, and
`--search` tries the range. AdamW at 5e-4 with weight decay .05, ten epochs and a fifth of warm-up are those of the
released script; its layer-wise decay of rates and its dropped paths are left out [inferred].

Source: arXiv:2309.01516, section 2; checked against longkukuhi/MultiWay-Adapter (`multiway_encoder.py`, `adapter.py`,
`ex.sh`).
"""

from __future__ import annotations

from bench.types import FitContext, FitFacts
from submissions.backbones.plan import PLAN_ARGS, Plan
from submissions.backbones.training import fit_on_base
from submissions.mwa.model import attach

NEEDS_BASE = True
VERSION = 1
METHOD = "MultiWay-Adapter"
ARGS = {
    "rank": "64",
    "scale": "0.1",
    "enhancer": "bottleneck",
    "enhancer_rank": "192",
    "towers": "both",
    **PLAN_ARGS,
}
SEARCH = {"scale": ["0.1", "0.3", "0.6"]}
PLAN = Plan(epochs=10, batch=64, lr=5e-4, weight_decay=0.05, warmup=0.2, betas=(0.9, 0.999))


def fit(context: FitContext) -> FitFacts:
    """Writes a submission folder with the fitted extractors and enhancers into `context.output`.

    Raises:
        InputError: the base has no transformer blocks of a known form.
        UsageError: an argument is not as it must be.
    """
    return fit_on_base(context, PLAN, attach)
