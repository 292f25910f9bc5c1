"""XMAdapter: the base with a cache that is asked through images and texts at once."""

from __future__ import annotations

from collections.abc import Mapping

from bench.types import LoadContext
from submissions.backbones.backbone import Backbone
from submissions.backbones.cache import Cached, attach_cache
from submissions.backbones.fitted import load_fitted


def attach(backbone: Backbone, args: Mapping[str, str]) -> Cached:
    """The base with an empty cache of the size that `args` state, whose keys and fusion of affinities learn.

    Raises:
        UsageError: an argument is not as it must be.
    """
    return attach_cache(backbone, args, learns=True, fused=True)


def load(context: LoadContext) -> Backbone:
    """The base with its cache."""
    return load_fitted(context, attach)
