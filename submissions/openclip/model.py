"""Zero-shot CLIP: any architecture of open_clip with any of its pretrained tags, or with a local checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import open_clip

from bench.errors import InputError
from bench.types import LoadContext
from submissions.backbones.open_clip_encoder import OpenClipEncoder


def load(context: LoadContext) -> OpenClipEncoder:
    """The model that the arguments `model` and `pretrained` (a tag or a checkpoint's path) name.

    Raises:
        InputError: there is no such architecture or tag, or its weights are neither here nor to be fetched.
    """
    name, pretrained = context.args["model"], context.args["pretrained"]
    _check_names(name, pretrained)
    if context.offline and not _is_on_hub(name, pretrained) and not Path(pretrained).is_file():
        raise InputError(_how_to_fetch(name, pretrained, RuntimeError("it is not on the hub, and --offline was given")))
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            name, pretrained=pretrained, force_quick_gelu=_uses_quick_gelu(context.args)
        )
    except Exception as error:
        if Path(pretrained).is_file():
            raise InputError(f"{pretrained} does not hold weights for {name}: {error}") from error
        raise InputError(_how_to_fetch(name, pretrained, error)) from error
    return OpenClipEncoder(model, preprocess, open_clip.get_tokenizer(name), context.device, context.dtype)


def _uses_quick_gelu(args: Mapping[str, str]) -> bool:
    """What the weights were trained with: known for a tag, stated by the argument `quick_gelu` for a checkpoint."""
    if args["quick_gelu"] not in ("auto", "yes", "no"):
        raise InputError(f"quick_gelu got '{args['quick_gelu']}'; expected auto, yes or no.")
    known = open_clip.get_pretrained_cfg(args["model"], args["pretrained"]) or {}
    return bool(known.get("quick_gelu", False)) if args["quick_gelu"] == "auto" else args["quick_gelu"] == "yes"


def _is_on_hub(name: str, pretrained: str) -> bool:
    return bool((open_clip.get_pretrained_cfg(name, pretrained) or {}).get("hf_hub"))


def _check_names(name: str, pretrained: str) -> None:
    if name not in open_clip.list_models():
        raise InputError(f"open_clip has no architecture '{name}'; `open_clip.list_models()` shows what there is.")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags and not Path(pretrained).is_file():
        known = ", ".join(tags) or "none"
        raise InputError(f"'{pretrained}' is neither a file nor a pretrained tag of {name}; its tags are: {known}.")


def _how_to_fetch(name: str, pretrained: str, error: Exception) -> str:
    source = open_clip.get_pretrained_cfg(name, pretrained)
    where = source.get("hf_hub") or source.get("url") or "its publisher"
    return (
        f"the weights of {name} '{pretrained}' are not on this machine and could not be fetched "
        f'({type(error).__name__}: {str(error)[:300]}). On a machine with network run `python -c "import open_clip; '
        f"open_clip.create_model('{name}', pretrained='{pretrained}')\"` (it fetches {where}) and copy the "
        "Hugging Face cache here (HF_HOME), or pass a checkpoint's path: --model-arg pretrained=PATH."
    )
