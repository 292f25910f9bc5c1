"""Two submissions as one: vectors of an encoder for the first stage, pair scores of a reranker for the second.

Both are loaded by their own `load`, so each is what it is by itself; what the harness keeps of the encoder's vectors
serves here too.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.errors import InputError
from bench.types import Differentiable, DifferentiableReranker, Encoder, LoadContext, Reranker, Shared
from submissions.backbones.fitted import import_model

MANIFEST = "submission.toml"
PROBE_SIZES = ((64, 48), (97, 97), (300, 400))


class Hybrid:
    """Implements `Encoder` and `Shared` by one submission, `Reranker` by another.

    Args:
        encoder: gives the vectors.
        reranker: scores the pairs; may be the same object.
    """

    def __init__(self, encoder: Any, reranker: Any) -> None:
        self._encoder, self._reranker = encoder, reranker
        parts = [encoder] if encoder is reranker else [encoder, reranker]
        held = [nn.ModuleList(modules_of(part)) for part in parts]
        if len(held) > 1:
            share_equal(*held)
        self.module = nn.ModuleList(held) if any(map(len, held)) else None

    def encode_images(self, images: Sequence[PIL.Image.Image]) -> Float[np.ndarray, "n_images dim"]:
        """The encoder's vectors."""
        return self._encoder.encode_images(images)

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n_texts dim"]:
        """The encoder's vectors."""
        return self._encoder.encode_texts(texts)

    def tower_ids(self) -> Mapping[str, str]:
        """The encoder's, where it has any: its vectors need not be computed again."""
        return self._encoder.tower_ids() if isinstance(self._encoder, Shared) else {}

    def image_tokens(self, images: Sequence[PIL.Image.Image]) -> np.ndarray:
        """What the reranker keeps of images."""
        return self._reranker.image_tokens(images)

    def score_pairs(self, tokens: np.ndarray, texts: Sequence[str]) -> Float[np.ndarray, " n_pairs"]:
        """The reranker's scores."""
        return self._reranker.score_pairs(tokens, texts)


class DifferentiableHybrid(Hybrid):
    """One whose first stage has a gradient; the second stage is attacked through its scores."""

    def pixels(self, images: Sequence[PIL.Image.Image]) -> Float[Tensor, "n_images 3 height width"]:
        """Those of the encoder."""
        return self._encoder.pixels(images)

    def embed_pixels(self, pixels: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n dim"]:
        """The encoder's vectors."""
        return self._encoder.embed_pixels(pixels)


class DifferentiableThroughout(DifferentiableHybrid):
    """One whose second stage has a gradient too, in the same pixels."""

    def score_pixels(self, pixels: Float[Tensor, "n 3 height width"], texts: Sequence[str]) -> Float[Tensor, " n"]:
        """The reranker's scores."""
        return self._reranker.score_pixels(pixels, texts)


def load(context: LoadContext) -> Hybrid:
    """The submissions that the arguments `encoder` and `reranker` name, as one.

    Raises:
        InputError: one of them is no submission, or cannot do what it is there for.
    """
    folders = {name: find_folder(name, context) for name in ("encoder", "reranker")}
    loaded = {folder: _load_part(folder, context) for folder in dict.fromkeys(folders.values())}
    encoder, reranker = loaded[folders["encoder"]], loaded[folders["reranker"]]
    if not isinstance(encoder, Encoder):
        raise InputError(_lacks("encoder", folders, "encode_images and encode_texts"))
    if not isinstance(reranker, Reranker):
        raise InputError(_lacks("reranker", folders, "image_tokens and score_pairs, as tiny-cocoop has them"))
    if not isinstance(encoder, Differentiable):
        return Hybrid(encoder, reranker)
    if isinstance(reranker, DifferentiableReranker) and read_same_pixels(encoder, reranker):
        return DifferentiableThroughout(encoder, reranker)
    return DifferentiableHybrid(encoder, reranker)


def find_folder(name: str, context: LoadContext) -> Path:
    """The folder of the part that an argument names: a shipped submission's, or a path from the manifest.

    Raises:
        InputError: there is none, or it is the hybrid's own.
    """
    value = context.args[name]
    start = context.folder if "/" in value else Path(__file__).parents[1]
    folder = (start / Path(value).expanduser()).resolve()
    if not (folder / MANIFEST).is_file():
        raise InputError(
            f"{name} got '{value}'; expected the name of a shipped submission, or the path of a folder with {MANIFEST} "
            "and model.py (./NAME for one that lies here)."
        )
    if folder == context.folder.resolve():
        raise InputError(f"{name} got '{value}', which is the hybrid itself; expected another submission.")
    return folder


def read_same_pixels(first: Differentiable, second: object) -> bool:
    """Whether both see the same of a picture, tried on noise of several sizes: then one gradient is of both."""
    if not isinstance(second, Differentiable):
        return False
    rng = np.random.Generator(np.random.Philox(0))
    drawn = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in PROBE_SIZES]
    pairs = [(first.pixels([image]), second.pixels([image])) for image in map(PIL.Image.fromarray, drawn)]
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


def share_equal(first: nn.Module, second: nn.Module) -> None:
    """Lets `second` hold the very parameters of `first` that have the same name and the same values as its own."""
    known = dict(first.named_parameters())
    for name, module in second.named_modules():
        for key, own in list(module.named_parameters(recurse=False)):
            other = known.get(f"{name}.{key}")
            if other is not None and other.dtype == own.dtype and torch.equal(other, own):
                setattr(module, key, other)


def modules_of(part: object) -> list[nn.Module]:
    """The torch modules that a submission is or holds as attributes."""
    return [value for value in (part, *vars(part).values()) if isinstance(value, nn.Module)]


def _load_part(folder: Path, context: LoadContext) -> Any:
    """What its own `load` gives, with its manifest's arguments."""
    manifest = tomllib.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return import_model(folder / "model.py").load(replace(context, folder=folder, args=manifest.get("args", {})))


def _lacks(name: str, folders: Mapping[str, Path], expected: str) -> str:
    return f"{name} got {folders[name].name}, whose load(context) gives no such thing; expected one with {expected}."
