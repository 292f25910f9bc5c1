"""MultiWay-Adapter: in every block a small network beside the feed-forward one, and behind both one for both towers.

The New Knowledge Extractor is each tower's own, the Alignment Enhancer passes images and texts alike. A block's
feed-forward part becomes

    y = x + FFN(LN x) + s Up(ReLU(Down x)),   then   y + AE(y).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import InputError, UsageError
from bench.types import LoadContext
from submissions.backbones.backbone import Backbone
from submissions.backbones.fitted import load_fitted
from submissions.backbones.peft_layers import find_layers
from submissions.backbones.plan import parse_count, parse_number

DROPOUT = 0.1
FFN_RATIO = 4


class Bottleneck(nn.Module):
    """Up(f(Down x)), with biases; Down is Kaiming-uniform and Up zero, so at first it gives zero.

    Args:
        width: of what goes in and comes out.
        hidden: width between Down and Up.
        dropout: of the hidden units, while the module is in train mode.
        activation: f.

    Source: arXiv:2309.01516, section 2; dropout and initialisation as in `adapter.py` of longkukuhi/MultiWay-Adapter.
    """

    def __init__(
        self, width: int, hidden: int, dropout: float = 0.0, activation: Callable[[Tensor], Tensor] = functional.relu
    ) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout, self._activation = dropout, activation
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """What is added to the states."""
        hidden = functional.dropout(self._activation(self.down(states)), self.dropout, self.training)
        added: Tensor = self.up(hidden)
        return added


class Projected(nn.Module):
    """A shared enhancer as the states of a tower of another width pass it: into its width, through it, and back.

    Both maps are learnt, and semi-orthogonal at first, the way back the transpose of the way in [inferred]: the paper's
    towers are of one width. As the enhancer gives zero at first, so does this.

    Args:
        enhancer: of the other width.
        into: from the tower's width to the enhancer's; one for all blocks of the tower.
        back: the other way; one for all blocks of the tower.
    """

    def __init__(self, enhancer: nn.Module, into: nn.Linear, back: nn.Linear) -> None:
        super().__init__()
        self.enhancer, self.into, self.back = enhancer, into, back

    def forward(self, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """What is added to the states."""
        added: Tensor = self.back(self.enhancer(self.into(states)))
        return added


class Extended(nn.Module):
    """A pre-norm block's feed-forward network with an extractor beside it and, where there is one, an enhancer behind.

    It takes over the block's norm and layer scale, because the extractor reads the states before that norm, as in the
    released code, where the adapter's input is the residual stream itself. The layers of the network keep their names,
    so the paths of `Block` stay valid.

    Args:
        network: the block's; its layers are run in their order.
        norm: before it.
        scale: behind it, the block's layer scale or an identity.
        extractor: of this tower and block.
        s: the factor on what it adds.
        enhancer: shared with the other tower; None where only one tower has a block of this number.

    Source: arXiv:2309.01516, section 2; `multiway_encoder.py` of longkukuhi/MultiWay-Adapter.
    """

    def __init__(
        self,
        network: nn.Sequential,
        norm: nn.Module,
        scale: nn.Module,
        extractor: Bottleneck,
        s: float,
        enhancer: nn.Module | None,
    ) -> None:
        super().__init__()
        self._layers = [name for name, _ in network.named_children()]
        for name, layer in network.named_children():
            self.add_module(name, layer)
        self.norm, self.scale, self.extractor, self.s, self.enhancer = norm, scale, extractor, s, enhancer

    def forward(self, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """All that the block adds to the states behind its attention."""
        hidden = self.norm(states)
        for name in self._layers:
            hidden = getattr(self, name)(hidden)
        added: Tensor = self.scale(hidden) + self.s * self.extractor(states)
        return added if self.enhancer is None else added + self.enhancer(states + added)


class ExtendedOutput(nn.Module):
    """The output part of a post-norm (BERT) block with an extractor beside its feed-forward network.

    Args:
        output: with `dense`, `dropout` and `LayerNorm`, as the transformers library builds it.
        extractor: of this block; it reads what the feed-forward network reads.
        s: the factor on what it adds.
    """

    def __init__(self, output: Any, extractor: Bottleneck, s: float) -> None:
        super().__init__()
        self.dense, self.dropout, self.LayerNorm = output.dense, output.dropout, output.LayerNorm
        self.extractor, self.s = extractor, s

    def forward(
        self, hidden: Float[Tensor, "*batch hidden"], states: Float[Tensor, "*batch width"]
    ) -> Float[Tensor, "*batch width"]:
        """The block's normed output."""
        normed: Tensor = self.LayerNorm(self.dropout(self.dense(hidden)) + states + self.s * self.extractor(states))
        return normed


def attach(backbone: Backbone, args: Mapping[str, str]) -> Backbone:
    """The backbone with an extractor in every block, and an enhancer wherever both towers have a block of that number.

    An enhancer that only one modality passes would align nothing; so a deeper tower's last blocks have none
    [inferred: the paper's towers are of one depth], and with `towers` image or text no block has one.

    Raises:
        InputError: the base has no transformer blocks of a known form.
        UsageError: an argument is not as it must be.
    """
    rank, s = parse_count("rank", args["rank"]), parse_number("scale", args["scale"], float)
    find_layers(backbone, ("up",), args["towers"])
    backbone.module.requires_grad_(False)
    shared = make_enhancers(backbone, args) if args["towers"] == "both" else ([], [])
    towers = {"image": backbone.image, "text": backbone.text}
    for (name, tower), enhancers in zip(towers.items(), shared, strict=True):
        for index, block in enumerate(tower.blocks if args["towers"] in ("both", name) else ()):
            enhancer = enhancers[index] if index < len(enhancers) else None
            _extend(backbone, block.up, Bottleneck(tower.width, rank, DROPOUT), s, enhancer)
    return backbone


def make_enhancers(backbone: Backbone, args: Mapping[str, str]) -> tuple[list[nn.Module], list[nn.Module]]:
    """For images and for texts, the enhancer of each block that both towers have: the very same modules.

    Theirs is the image tower's width; where the text tower has another, its side passes them projected.

    Raises:
        UsageError: there is no such enhancer, or its rank is no count.
    """
    width, other = backbone.image.width, backbone.text.width
    n_shared = min(len(backbone.image.blocks), len(backbone.text.blocks))
    enhancers: list[nn.Module] = [make_enhancer(width, args) for _ in range(n_shared)]
    if width == other:
        return enhancers, enhancers
    into, back = nn.Linear(other, width, bias=False), nn.Linear(width, other, bias=False)
    nn.init.orthogonal_(into.weight)
    with torch.no_grad():
        back.weight.copy_(into.weight.T)
    return enhancers, [Projected(enhancer, into, back) for enhancer in enhancers]


def make_enhancer(width: int, args: Mapping[str, str]) -> Bottleneck:
    """A bottleneck, or with `ffn` a network as wide as the block's own.

    The released code's is the latter, with GELU, a layer norm inside and no zero initialisation, so that it begins by
    changing what the base computes; its 26.6 % of BEiT-3 base are not the 2 to 3 % of the abstract, which a bottleneck
    of 192 makes true.

    Raises:
        UsageError: there is no such enhancer, or its rank is no count.
    """
    if args["enhancer"] == "ffn":
        return Bottleneck(width, FFN_RATIO * width, activation=functional.gelu)
    if args["enhancer"] != "bottleneck":
        raise UsageError(f"--recipe-arg enhancer is '{args['enhancer']}'; expected bottleneck or ffn.")
    return Bottleneck(width, parse_count("enhancer_rank", args["enhancer_rank"]))


def count_parameters(width: int, layers: int, rank: int, enhancer_hidden: int) -> int:
    """How many parameters it adds to two towers of one width and depth.

    Args:
        width: of both towers.
        layers: of each.
        rank: of the extractors, of which each tower has its own.
        enhancer_hidden: of the enhancers, which are shared: 192, or four times the width.
    """
    return layers * (2 * _count_two_layers(width, rank) + _count_two_layers(width, enhancer_hidden))


def _count_two_layers(width: int, hidden: int) -> int:
    return 2 * width * hidden + hidden + width


def load(context: LoadContext) -> Backbone:
    """The base with its fitted networks, which no weight of the base can take up: they are nonlinear."""
    return load_fitted(context, attach)


def _extend(backbone: Backbone, up: str, extractor: Bottleneck, s: float, enhancer: nn.Module | None) -> None:
    """Puts the networks into the block whose feed-forward network begins at the path `up`.

    Raises:
        InputError: it is neither open_clip's nor, without an enhancer, BERT's.
    """
    block: Any = backbone.module.get_submodule(up.rsplit(".", 2)[0])
    weight = cast(nn.Linear, backbone.module.get_submodule(up)).weight
    if isinstance(getattr(block, "mlp", None), nn.Sequential) and hasattr(block, "ln_2"):
        block.mlp = Extended(block.mlp, block.ln_2, block.ls_2, extractor, s, enhancer).to(weight)
        block.ln_2, block.ls_2 = nn.Identity(), nn.Identity()
    elif enhancer is None and type(getattr(block, "output", None)).__name__ == "BertOutput":
        block.output = ExtendedOutput(block.output, extractor, s).to(weight)
    else:
        raise InputError(
            f"the block around the base's {up} is of class {type(block).__name__} and not of a form that mwa knows; "
            "expected open_clip's own block, with no other mwa in it."
        )
