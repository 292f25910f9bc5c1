"""What a base that does not learn makes of many items: computed here, or shared out to the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from bench.errors import InputError
from bench.types import Base, FitContext, Image
from submissions.backbones.backbone import Backbone
from submissions.backbones.examples import Examples, read_pixels
from submissions.backbones.fitted import digest_of, load_base
from submissions.backbones.retrieval import ENCODE_BATCH, batches_of, embed_captions

Task = TypeVar("Task")
Result = TypeVar("Result", Tensor, tuple[Tensor, ...])


class _Where(NamedTuple):
    """The base that a node is to load, and the sha256 of the weights that it is to find."""

    name: str
    folder: Path
    args: tuple[tuple[str, str], ...]
    shipped: bool
    device: str
    sha256: str


class Frozen:
    """A base that does not learn, and where it is to encode.

    Args:
        backbone: the base, as it is loaded here.
        context: of the fit that starts from it, which may have a cluster; None for here.
    """

    def __init__(self, backbone: Backbone, context: FitContext | None = None) -> None:
        self.backbone, self._map = backbone, context.map if context else None
        if self._map and context and (base := context.base):
            sha256 = digest_of(backbone.module)
            self._where = _Where(base.name, base.folder, (*base.args.items(),), base.shipped, context.device, sha256)

    def images(self, examples: Examples) -> Float[Tensor, "n_images dim"]:
        """Vectors of all images."""
        return torch.cat(self.apply(_encode_images, batches_of(examples.collection.images, ENCODE_BATCH)))

    def captions(self, examples: Examples) -> Float[Tensor, "n_captions dim"]:
        """Vectors of all captions."""
        return embed_captions(self.backbone, examples, lambda batches: self.apply(_encode_texts, batches))

    @torch.no_grad()
    def apply(self, function: Callable[[Backbone, Task], Result], tasks: Sequence[Task]) -> list[Result]:
        """What `function(backbone, task)` returns of each task, on the backbone's device.

        Args:
            function: of an installed module.
        """
        if self._map is None:
            return [function(self.backbone, task) for task in tasks]
        return [_move(found, self.backbone.device) for found in self._map(_apply, (function, self._where), tasks)]


def _apply(held: tuple[Callable[[Backbone, Any], Any], _Where], task: object) -> Any:
    """Runs on a node."""
    function, where = held
    with torch.no_grad():
        return _move(function(_load(where), task), "cpu")


@lru_cache(maxsize=1)
def _load(where: _Where) -> Backbone:
    base = Base(where.name, where.folder, dict(where.args), where.shipped)
    backbone = load_base(base, where.device)
    found = digest_of(backbone.module)
    if found != where.sha256:
        raise InputError(
            f"a node's base {base.name} at {base.folder} has other weights (sha256 {found[:12]}) than where the fit "
            f"was started ({where.sha256[:12]}); expected the same on every node."
        )
    return backbone


def _move(found: Any, device: str) -> Any:
    return found.to(device) if isinstance(found, Tensor) else tuple(part.to(device) for part in found)


def _encode_images(backbone: Backbone, images: Sequence[Image]) -> Tensor:
    return backbone.embed_pixels(read_pixels(backbone, images))


def _encode_texts(backbone: Backbone, texts: Sequence[str]) -> Tensor:
    return backbone.embed_texts(texts)
