"""Knowledge-preserving vision tuning: the base with another image tower of the same form."""

from __future__ import annotations

from collections.abc import Mapping

from bench.types import LoadContext
from submissions.backbones.backbone import Backbone, learn
from submissions.backbones.fitted import load_fitted


def attach(backbone: Backbone, args: Mapping[str, str]) -> Backbone:
    """The base itself, in which every parameter of the image tower learns."""
    learn(backbone.module, backbone.image.stems)
    return backbone


def load(context: LoadContext) -> Backbone:
    """The base with the fitted image tower."""
    return load_fitted(context, attach)
