"""Multimodal adversarial training: the base with other towers of the same form."""

from __future__ import annotations

from collections.abc import Mapping

from bench.types import LoadContext
from submissions.backbones.backbone import Backbone, learn
from submissions.backbones.fitted import load_fitted


def attach(backbone: Backbone, args: Mapping[str, str]) -> Backbone:
    """The base itself, in which every parameter of both towers learns."""
    learn(backbone.module, backbone.image.stems + backbone.text.stems)
    return backbone


def load(context: LoadContext) -> Backbone:
    """The base with both fitted towers."""
    return load_fitted(context, attach)
