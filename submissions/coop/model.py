"""CoOp: context vectors stand before every caption's words, behind its start token."""

from __future__ import annotations

from collections.abc import Mapping

from bench.types import LoadContext
from submissions.backbones.backbone import Backbone
from submissions.backbones.fitted import load_fitted
from submissions.backbones.plan import parse_count
from submissions.backbones.prompts import Tokens, add_prompts, depth_of


def attach(backbone: Backbone, args: Mapping[str, str]) -> Backbone:
    """The base with `n_prompts` tokens that learn, (1, n_prompts, text width), before the text tower's first block.

    Raises:
        InputError: the text tower has no blocks.
        UsageError: an argument is not as it must be.
    """
    depth = depth_of(backbone.text, "text", most=1)
    prompts = Tokens(depth, parse_count("n_prompts", args["n_prompts"]), backbone.text.width, backbone.device)
    return add_prompts(backbone, prompts, texts=prompts.forward)


def load(context: LoadContext) -> Backbone:
    """The base with its fitted context."""
    return load_fitted(context, attach)
