"""Bottleneck adapters: a small network behind each block's feed-forward network, and behind its attention if asked."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import UsageError
from bench.types import LoadContext
from submissions.backbones.backbone import Backbone
from submissions.backbones.fitted import load_fitted
from submissions.backbones.peft_layers import find_layers
from submissions.backbones.plan import parse_count, parse_number

PLACES = {"1": ("down",), "2": ("out", "down")}


class Adapted(nn.Module):
    """A frozen linear layer and the adapter of its output: x + scale W_up ReLU(W_down x), with biases.

    The paper draws both matrices near zero; here W_up is zero and W_down Kaiming-uniform, as in AdaptFormer's code, so
    that the vectors are exactly the base's at first.

    Args:
        layer: any whose output's width is `out_features`.
        rank: width between W_down and W_up.
        scale: one in the paper.

    Source: arXiv:1902.00751, section 2.1; initialisation: arXiv:2205.13535, and its code, ShoufaChen/AdaptFormer
    (`models/adapter.py`).
    """

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        width, weight = layer.out_features, layer.weight
        self.layer, self.scale = layer, scale
        self.down = nn.Linear(width, rank, device=weight.device, dtype=weight.dtype)
        self.up = nn.Linear(rank, width, device=weight.device, dtype=weight.dtype)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, states: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch width"]:
        """The adapted output of the layer."""
        output = self.layer(states)
        correction: Tensor = self.up(functional.relu(self.down(output)))
        return output + self.scale * correction


def attach(backbone: Backbone, args: Mapping[str, str]) -> Backbone:
    """The backbone with an adapter behind the feed-forward network of every block, or behind the attention too.

    Two places are Houlsby's (arXiv:1902.00751, figure 2), one is Pfeiffer's (arXiv:2005.00247). Written by hand: peft
    (0.21) has no bottleneck adapters, and the adapters library (1.3) adapts models of the transformers library, which
    open_clip's are not.

    Raises:
        InputError: the base has no transformer blocks.
        UsageError: an argument is not as it must be.
    """
    rank, scale = parse_count("rank", args["rank"]), parse_number("scale", args["scale"], float)
    if args["places"] not in PLACES:
        raise UsageError(f"--recipe-arg places is '{args['places']}'; expected {' or '.join(PLACES)}.")
    if args["places"] == "2":
        backbone.split_attention()
    backbone.module.requires_grad_(False)
    for path, layer in find_layers(backbone, PLACES[args["places"]], args["towers"]).items():
        backbone.module.set_submodule(path, Adapted(layer, rank, scale))
    return backbone


def load(context: LoadContext) -> Backbone:
    """The base with its fitted adapters, which no weight of the base can take up: they are nonlinear."""
    return load_fitted(context, attach)
