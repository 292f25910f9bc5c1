"""WiSE-FT: full fine-tuning, then weights between the base's and the fitted ones.

The folder is a family: `--model-arg alpha=A` scores (1 - A) base + A fitted, for A from 0 to 1, and stores nothing
more than full fine-tuning does. The default is 0.5, which the authors recommend where nothing is tuned; the log has
the validation R@1 of five members.

Source: arXiv:2109.01903, section 4, equation 1.
"""

from __future__ import annotations

from bench.types import FitContext, FitFacts, LoadContext
from submissions.backbones.examples import Examples, split_collection
from submissions.backbones.retrieval import recall_at_1
from submissions.backbones.training import fit_on_base
from submissions.full import fit as full
from submissions.full.model import attach
from submissions.wise_ft.model import load

NEEDS_BASE = True
VERSION = 1
METHOD = "full fine-tuning, weights averaged with the base's (WiSE-FT)"
ARGS = full.ARGS
MODEL_ARGS = {"alpha": "0.5"}
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def fit(context: FitContext) -> FitFacts:
    """Writes a submission folder with the fitted weights into `context.output`.

    Raises:
        UsageError: an argument is not as it must be.
    """
    facts = fit_on_base(context, full.PLAN, attach)
    for alpha in SHARES:
        member = load(LoadContext(context.output, context.device, "float32", {"alpha": str(alpha)}, offline=True))
        _, validation = split_collection(context)
        context.report({"alpha": alpha, "validation_r1": recall_at_1(member, Examples(validation, member))})
    return facts
