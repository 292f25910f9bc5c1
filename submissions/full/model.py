"""Full fine-tuning: every parameter of the base learns."""

from __future__ import annotations

from collections.abc import Mapping

from bench.errors import UsageError
from bench.types import LoadContext
from submissions.backbones.backbone import Backbone, learn
from submissions.backbones.fitted import load_fitted

TOWERS = ("both", "image", "text")


def attach(backbone: Backbone, args: Mapping[str, str]) -> Backbone:
    """The base itself; what learns is every parameter, or those of the one tower that the argument `towers` names.

    Raises:
        UsageError: it names no tower.
    """
    towers = args["towers"]
    if towers not in TOWERS:
        raise UsageError(f"--recipe-arg towers is '{towers}'; expected {', '.join(TOWERS)}.")
    stems = {"both": ("",), "image": backbone.image.stems, "text": backbone.text.stems}[towers]
    learn(backbone.module, stems)
    return backbone


def load(context: LoadContext) -> Backbone:
    """The base with all of its weights fitted."""
    return load_fitted(context, attach)
