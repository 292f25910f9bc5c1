"""VPT-deep: tokens of their own stand beside the image's at every block of the image tower."""

from __future__ import annotations

from collections.abc import Mapping

from bench.types import LoadContext
from submissions.backbones.backbone import Backbone
from submissions.backbones.fitted import load_fitted
from submissions.backbones.plan import parse_count
from submissions.backbones.prompts import Tokens, add_prompts, depth_of


def attach(backbone: Backbone, args: Mapping[str, str]) -> Backbone:
    """The base with tokens that learn, (blocks, n_prompts, image width); each block's take the place of the last's.

    Raises:
        InputError: the image tower has no blocks.
        UsageError: an argument is not as it must be.
    """
    depth = depth_of(backbone.image, "image", most=len(backbone.image.blocks))
    prompts = Tokens(depth, parse_count("n_prompts", args["n_prompts"]), backbone.image.width, backbone.device)
    return add_prompts(backbone, prompts, images=prompts.forward)


def load(context: LoadContext) -> Backbone:
    """The base with its fitted tokens."""
    return load_fitted(context, attach)
