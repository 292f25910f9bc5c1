"""Tip-Adapter: a few training items, kept as keys and values, correct every vector; nothing is trained.

On class prompts, `shots` images of each class are drawn by seed; a key is the mean of ten crops' vectors, and the
classes of an image's nearest keys are added to its zero-shot logits. On captions, `cache` pairs are kept, and an image
is moved towards the captions of the images that are like it, a text towards the images of the captions that are like
it: a retrieval form [inferred]. What is set by hand for each data set in the released code is searched on the
validation images: alpha and beta by accuracy, alpha and tau by the mean R@1 of both directions.

Source: arXiv:2111.03930, section 3.1; checked against `main.py` and `utils.py` of github.com/gaopengcuhk/Tip-Adapter.
"""

from __future__ import annotations

from bench.types import FitContext, FitFacts
from submissions.backbones.cache import CACHE_ARGS
from submissions.backbones.cache_fitting import fit_cache
from submissions.tip_adapter.model import attach

NEEDS_BASE = True
SHARES_OUT = True
VERSION = 1
METHOD = "Tip-Adapter (training-free cache)"
ARGS = {**CACHE_ARGS}


def fit(context: FitContext) -> FitFacts:
    """Writes a submission folder with the cache into `context.output`.

    Raises:
        InputError: a class has fewer images than shots.
        UsageError: an argument is not as it must be.
    """
    return fit_cache(context, attach)
