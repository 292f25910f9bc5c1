"""XMAdapter: a cache asked through images and texts at once, and trained most on what the two see differently.

The keys of tip_adapter_f, and text keys besides: class prompts (or the cached captions) through MetaNet, which an
image's vector meets through Img2TxtNet. The affinity is gamma times that to images and 1 - gamma times that to texts;
gamma learns, or `gamma=0..1` fixes it (1: images alone, 0: texts alone). With `hard=yes` the loss of an item is
weighted by how far its two affinities lie apart. The text prompts are the base's own, which the paper takes from CoOp;
sizes, first values, the rate of gamma (100 times the others') and the retrieval form are ours [inferred]. The training
is that of tip_adapter_f.

Source: arXiv:2404.12588, section 3; no code is released.
"""

from __future__ import annotations

from bench.types import FitContext, FitFacts
from submissions.backbones.cache import CACHE_ARGS, FUSION_ARGS
from submissions.backbones.cache_fitting import PLAN, fit_cache
from submissions.backbones.plan import PLAN_ARGS, parse_yes
from submissions.xmadapter.model import attach

NEEDS_BASE = True
SHARES_OUT = True
VERSION = 1
METHOD = "XMAdapter (cross-modal cache)"
ARGS = {**CACHE_ARGS, **FUSION_ARGS, **PLAN_ARGS}


def fit(context: FitContext) -> FitFacts:
    """Writes a submission folder with the fitted cache into `context.output`.

    Raises:
        InputError: a class has fewer images than shots.
        UsageError: an argument is not as it must be.
    """
    return fit_cache(context, attach, PLAN, hard=parse_yes("hard", context.args["hard"]))
