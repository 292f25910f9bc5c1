"""What the parameter-efficient recipes share: the layers that they change, and the peft library put in and folded.

The library is imported where it is called: with transformers behind it, that takes seconds which listing and describing
recipes need not wait for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from bench.errors import InputError, UsageError
from submissions.backbones.backbone import Backbone

if TYPE_CHECKING:
    from peft import PeftConfig

TOWERS = ("both", "image", "text")


def find_layers(backbone: Backbone, parts: Sequence[str], towers: str) -> dict[str, nn.Linear]:
    """Linear layers of all blocks, by their paths.

    Args:
        backbone: with split attention if a projection is among the parts.
        parts: fields of `Block`.
        towers: one of `TOWERS`.

    Raises:
        InputError: a tower has no such blocks, or what lies at a path is no linear layer.
        UsageError: there are no such towers.
    """
    if towers not in TOWERS:
        raise UsageError(f"--recipe-arg towers is '{towers}'; expected {', '.join(TOWERS)}.")
    named = {"image": backbone.image, "text": backbone.text}
    sides = named if towers == "both" else {towers: named[towers]}
    for name, side in sides.items():
        if not side.blocks:
            other = "text" if name == "image" else "image"
            raise InputError(
                f"the base's {name} tower has no transformer blocks whose layers have names, as open_clip's own vision "
                f"transformers have. --recipe-arg towers={other} changes the other tower alone."
            )
    paths = [getattr(block, part) for side in sides.values() for block in side.blocks for part in parts]
    return {path: _linear_at(backbone, path) for path in paths}


def _linear_at(backbone: Backbone, path: str) -> nn.Linear:
    layer = backbone.module.get_submodule(path)
    if not isinstance(layer, nn.Linear):
        raise InputError(
            f"the base's {path} is of class {type(layer).__name__}; expected a linear layer: start from a base "
            "without adapters, or from one into which they are folded."
        )
    return layer


def match_paths(paths: Iterable[str]) -> str:
    """A regular expression for these paths alone; in a list, peft takes each for the end of longer paths too.

    open_clip's text tower is the model's own `transformer`, its image tower `visual.transformer`.
    """
    return "|".join(map(re.escape, paths))


def inject(backbone: Backbone, config: PeftConfig) -> Backbone:
    """The backbone with the layers that `config` describes; nothing else learns.

    Their dropout is active until the module is put in eval mode.
    """
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, backbone.module)
    return backbone


def fold(backbone: Backbone) -> None:
    """Folds peft's layers into those that they wrap, and fuses the attention: the base's modules, with new weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, layer in list(backbone.module.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            backbone.module.set_submodule(path, layer.get_base_layer())
    del backbone.module.peft_config
    backbone.fuse_attention()
