"""LoRA: low-rank corrections of the attention's query, key and value, folded into the weights for inference.

CLIP-LoRA's setting through the peft library: both towers, all blocks, rank 2, dropout .25 before A, AdamW at 2e-4 with
weight decay .01, batches of 32, a cosine schedule without warm-up. The published runs are counted in steps of few-shot
classification; ten epochs, and keeping the one with the best validation R@1, are ours [inferred], as is the contrastive
loss over captions in place of cross-entropy over class prompts.

Source: arXiv:2405.18541, and its code, MaxZanella/CLIP-LoRA (`run_utils.py`, `lora.py`).
"""

from __future__ import annotations

from bench.types import FitContext, FitFacts
from submissions.backbones.peft_layers import fold
from submissions.backbones.plan import PLAN_ARGS, Plan
from submissions.backbones.training import fit_on_base
from submissions.lora.model import attach

NEEDS_BASE = True
VERSION = 1
METHOD = "LoRA"
REQUIRES = ["peft"]
ARGS = {"rank": "2", "alpha": "1", "dropout": "0.25", "targets": "q,k,v", "towers": "both", **PLAN_ARGS}
PLAN = Plan(epochs=10, batch=32, lr=2e-4, weight_decay=0.01, warmup=0.0, betas=(0.9, 0.999))


def fit(context: FitContext) -> FitFacts:
    """Writes a submission folder with the fitted A and B into `context.output`.

    Raises:
        InputError: the base has no transformer blocks where they should go.
        UsageError: an argument is not as it must be.
    """
    return fit_on_base(context, PLAN, attach, merge=fold)
