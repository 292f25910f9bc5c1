"""Learnt tokens that stand among those of a frozen tower: what coop, cocoop, maple and vpt share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, empty, nn

from bench.errors import InputError
from submissions.backbones.backbone import Backbone, Changed, Prompts, Tower, add_part

INIT_STD = 0.02
PART = "prompts"


class Tokens(nn.Module):
    """Tokens of a tower's first blocks, drawn from N(0, 0.02) as in the released codes of CoOp and MaPLe.

    Args:
        depth: how many blocks have tokens.
        n_prompts: tokens a block.
        width: of the tower's states.
        device: torch's name of where they lie.
    """

    def __init__(self, depth: int, n_prompts: int, width: int, device: str) -> None:
        super().__init__()
        drawn = empty(depth, n_prompts, width, device=device).normal_(std=INIT_STD)
        self.tokens = nn.Parameter(drawn)

    def forward(self) -> tuple[Float[Tensor, "n_prompts width"], ...]:
        """One tensor a block, as `Backbone.embed_pixels` and `embed_texts` take them."""
        return self.tokens.unbind()


def add_prompts(
    base: Backbone,
    prompts: nn.Module,
    images: Callable[[], Prompts] | None = None,
    texts: Callable[[], Prompts] | None = None,
) -> Changed:
    """The base, every vector of which is computed with tokens that learn.

    Args:
        base: frozen; its module is given the tokens as a part, its own parts keep their names.
        prompts: holds the tokens.
        images: makes those of the image tower; None leaves it alone.
        texts: makes those of the text tower; None leaves it alone.
    """
    add_part(base, prompts, PART)
    return Changed(
        base,
        base.module,
        embed_pixels=partial(_embed, base.embed_pixels, images) if images else None,
        embed_texts=partial(_embed, base.embed_texts, texts) if texts else None,
    )


def _embed(embed: Callable[[Any, Prompts], Tensor], make: Callable[[], Prompts], items: Any) -> Tensor:
    return embed(items, make())


def depth_of(tower: Tower, kind: str, most: int) -> int:
    """How many of the tower's blocks have tokens: the first `most`, or all where it has fewer.

    Raises:
        InputError: it has none.
    """
    if not tower.blocks:
        raise InputError(
            f"the base's {kind} tower has no transformer blocks that prompts could stand in; "
            "expected a base such as tiny or openclip's ViT models."
        )
    return min(most, len(tower.blocks))
