"""MaPLe: text tokens at the first blocks, and image tokens that are linear maps of them."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from bench.types import LoadContext
from submissions.backbones.backbone import Backbone
from submissions.backbones.fitted import load_fitted
from submissions.backbones.plan import parse_count
from submissions.backbones.prompts import Tokens, add_prompts, depth_of


class Coupled(nn.Module):
    """Text tokens of the first `depth` blocks, and for each of these blocks a layer that makes image tokens of them.

    Source: arXiv:2210.03117, section 3.2.3 (one coupling function a block).
    """

    def __init__(self, depth: int, n_prompts: int, text_width: int, image_width: int, device: str) -> None:
        super().__init__()
        self.texts = Tokens(depth, n_prompts, text_width, device)
        self.to_image = nn.ModuleList(nn.Linear(text_width, image_width, device=device) for _ in range(depth))

    def images(self) -> list[Float[Tensor, "n_prompts image_width"]]:
        """One tensor a block."""
        return [layer(tokens) for layer, tokens in zip(self.to_image, self.texts(), strict=True)]


def attach(backbone: Backbone, args: Mapping[str, str]) -> Backbone:
    """The base with `Coupled` tokens that learn at the first `depth` blocks, or all of the tower that has fewer.

    Raises:
        InputError: a tower has no blocks.
        UsageError: an argument is not as it must be.
    """
    depth = parse_count("depth", args["depth"])
    for kind, tower in (("text", backbone.text), ("image", backbone.image)):
        depth = depth_of(tower, kind, most=depth)
    n_prompts = parse_count("n_prompts", args["n_prompts"])
    prompts = Coupled(depth, n_prompts, backbone.text.width, backbone.image.width, backbone.device)
    return add_prompts(backbone, prompts, images=prompts.images, texts=prompts.texts.forward)


def load(context: LoadContext) -> Backbone:
    """The base with its fitted tokens."""
    return load_fitted(context, attach)
