"""Tip-Adapter-F: the cache of tip_adapter, whose keys learn.

On class prompts by cross-entropy over the shots, one of their ten crops an epoch, as in the released code (which draws
a new crop each time); on captions by InfoNCE over all training pairs, where a pair does not see itself in the cache,
or it would find its own caption whatever the keys are [inferred]. AdamW, 1e-3, eps 1e-4, 20 epochs, batch 256, half a
cosine, as released; the epoch and the two numbers are chosen on validation images, where the released code chooses the
epoch on test images.

Source: arXiv:2111.03930, section 3.2; checked against `main.py` of github.com/gaopengcuhk/Tip-Adapter.
"""

from __future__ import annotations

from bench.types import FitContext, FitFacts
from submissions.backbones.cache import CACHE_ARGS
from submissions.backbones.cache_fitting import PLAN, fit_cache
from submissions.backbones.plan import PLAN_ARGS
from submissions.tip_adapter_f.model import attach

NEEDS_BASE = True
SHARES_OUT = True
VERSION = 1
METHOD = "Tip-Adapter-F (cache whose keys learn)"
ARGS = {**CACHE_ARGS, **PLAN_ARGS}


def fit(context: FitContext) -> FitFacts:
    """Writes a submission folder with the fitted cache into `context.output`.

    Raises:
        InputError: a class has fewer images than shots.
        UsageError: an argument is not as it must be.
    """
    return fit_cache(context, attach, PLAN)
