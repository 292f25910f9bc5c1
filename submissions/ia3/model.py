"""(IA)^3: a learned factor on each key, each value and each hidden unit, folded into the weights for inference."""

from __future__ import annotations

from collections.abc import Mapping

from bench.types import LoadContext
from submissions.backbones.backbone import Backbone
from submissions.backbones.fitted import load_fitted
from submissions.backbones.peft_layers import find_layers, fold, inject, match_paths


def attach(backbone: Backbone, args: Mapping[str, str]) -> Backbone:
    """The backbone with peft's (IA)^3 in every block of the named towers; only the factors learn, ones at first.

    They stand on the outputs of key and value, and on the input of the feed-forward network's second layer, which is
    where the paper puts them: behind the nonlinearity.

    Raises:
        InputError: the base has no transformer blocks there.
        UsageError: the argument `towers` names none.

    Source: arXiv:2205.05638, section 3.3.
    """
    from peft import IA3Config

    backbone.split_attention()
    scaled_after = find_layers(backbone, ("key", "value"), args["towers"])
    scaled_before = find_layers(backbone, ("down",), args["towers"])
    config = IA3Config(
        target_modules=match_paths([*scaled_after, *scaled_before]), feedforward_modules=match_paths(scaled_before)
    )
    return inject(backbone, config)


def load(context: LoadContext) -> Backbone:
    """The base with the factors folded into its weights: as many parameters and operations as the base has."""
    return load_fitted(context, attach, fold)
