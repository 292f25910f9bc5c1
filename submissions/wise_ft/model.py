"""WiSE-FT: weights on the line between a base and its fine-tuned self."""

from __future__ import annotations

import math

import torch

from bench.errors import InputError
from bench.types import LoadContext
from submissions.backbones.backbone import Backbone
from submissions.backbones.fitted import load_base_of, load_fitted
from submissions.full.model import attach


def load(context: LoadContext) -> Backbone:
    """The base with weights (1 - alpha) base + alpha fitted, alpha as the argument says.

    Raises:
        InputError: `alpha` is no number from 0 to 1.
    """
    alpha = parse_alpha(context.args["alpha"])
    fitted = load_fitted(context, attach)
    interpolate(fitted, load_base_of(context), 1 - alpha)
    return fitted


def parse_alpha(text: str) -> float:
    """The share of the fitted weights.

    Raises:
        InputError: it is no number from 0 to 1.
    """
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is '{text}'; expected a number from 0 (the base) to 1 (fully fine-tuned).")
    return alpha


@torch.no_grad()
def interpolate(backbone: Backbone, other: Backbone, share: float) -> None:
    """Moves every parameter of `backbone` by `share` of the way to the one of the same name in `other`."""
    there = dict(other.module.named_parameters())
    for name, parameter in backbone.module.named_parameters():
        parameter.lerp_(there[name], share)
