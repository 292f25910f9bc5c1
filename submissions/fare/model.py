"""FARE: the base with another image tower of the same form."""

from __future__ import annotations

from collections.abc import Mapping

from bench.types import LoadContext
from submissions.backbones.backbone import Backbone
from submissions.backbones.fitted import load_fitted


def attach(backbone: Backbone, args: Mapping[str, str]) -> Backbone:
    """The base itself, in which every parameter of the image tower learns."""
    for name, parameter in backbone.module.named_parameters():
        parameter.requires_grad_(name.startswith(backbone.image.stems))
    return backbone


def load(context: LoadContext) -> Backbone:
    """The base with the fitted image tower."""
    return load_fitted(context, attach)
