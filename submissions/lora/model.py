"""LoRA: a low-rank correction W + s B A of chosen linear layers, folded into them for inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from bench.errors import UsageError
from bench.types import LoadContext
from submissions.backbones.backbone import Backbone
from submissions.backbones.fitted import load_fitted
from submissions.backbones.peft_layers import find_layers, fold, inject, match_paths
from submissions.backbones.plan import parse_count, parse_number

PARTS = {"q": "query", "k": "key", "v": "value", "o": "out", "up": "up", "down": "down"}


class Settings(NamedTuple):
    """What the recipe's arguments say."""

    rank: int
    alpha: int
    dropout: float
    parts: tuple[str, ...]
    towers: str


def attach(backbone: Backbone, args: Mapping[str, str]) -> Backbone:
    """The backbone with peft's LoRA on the layers that `targets` and `towers` name; only A and B learn.

    A is drawn Kaiming-uniform with a = sqrt(5) and B is zero, so the vectors are the base's at first. The scale is
    alpha / sqrt(rank), rsLoRA's (arXiv:2312.03732), and not the alpha / rank of the first LoRA, because CLIP-LoRA's
    code has it so.

    Raises:
        InputError: the base has no transformer blocks there.
        UsageError: an argument is not as it must be.

    Source: CLIP-LoRA, arXiv:2405.18541, and its code, MaxZanella/CLIP-LoRA (`loralib/layers.py`).
    """
    settings = read_settings(args)
    backbone.split_attention()
    layers = find_layers(backbone, settings.parts, settings.towers)
    _check_rank(settings.rank, layers)
    from peft import LoraConfig

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=True,
        target_modules=match_paths(layers),
    )
    return inject(backbone, config)


def load(context: LoadContext) -> Backbone:
    """The base with the corrections folded into its weights: as many parameters and operations as the base has."""
    return load_fitted(context, attach, fold)


def read_settings(args: Mapping[str, str]) -> Settings:
    """What the arguments say.

    Raises:
        UsageError: one of them is not as it must be.
    """
    dropout = parse_number("dropout", args["dropout"], float)
    if dropout >= 1:
        raise UsageError(f"--recipe-arg dropout is '{args['dropout']}'; expected a number of at least 0 and below 1.")
    rank, alpha = parse_count("rank", args["rank"]), parse_count("alpha", args["alpha"])
    return Settings(rank, alpha, dropout, _read_targets(args["targets"]), args["towers"])


def _read_targets(text: str) -> tuple[str, ...]:
    """Fields of `Block`, each once, in its order."""
    named = set(PARTS) if text == "all" else {part.strip() for part in text.split(",")}
    if not named <= set(PARTS):
        raise UsageError(
            f"--recipe-arg targets is '{text}'; expected 'all', or some of {', '.join(PARTS)} with commas between them."
        )
    return tuple(field for name, field in PARTS.items() if name in named)


def _check_rank(rank: int, layers: Mapping[str, nn.Linear]) -> None:
    for path, layer in layers.items():
        largest = min(layer.in_features, layer.out_features)
        if rank > largest:
            raise UsageError(
                f"--recipe-arg rank is {rank}, but {path} is {layer.in_features} x {layer.out_features}; expected a "
                f"rank of at most {largest}."
            )
