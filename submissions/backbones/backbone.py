"""What a recipe needs to know of a dual encoder: its towers, where their linear layers lie, how each is run.

A `Backbone` is an encoder as the harness sees it (`bench.types.Encoder` and `Differentiable`) and, besides, a module
whose parts have names. Recipes address parts by those names, so they work on any backbone that has them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.errors import InputError

LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "transformers",
    "tokenizers",
    "efficientnet-lite-pytorch",
)
BLANK_PX = 32
Made = TypeVar("Made")
Prompts = Sequence[Float[Tensor, "*batch n_prompts width"]]


class Block(NamedTuple):
    """Paths, within the backbone's module, of one transformer block's linear layers."""

    query: str
    key: str
    value: str
    out: str
    up: str
    down: str


@dataclass(frozen=True)
class Tower:
    """One side of a dual encoder.

    Args:
        blocks: its transformer blocks in order; empty where it has none whose layers can be named.
        width: of the states between blocks.
        stems: how the names of its parameters within the backbone's module begin.
    """

    blocks: tuple[Block, ...]
    width: int
    stems: tuple[str, ...]


class Backbone(ABC):
    """A dual encoder that recipes can change.

    Attributes:
        module: holds every parameter, in eval mode and frozen when it comes.
        log_scale: logarithm of the factor on cosines; what is no parameter of `module` never learns.
        image: the tower of images.
        text: the tower of texts.
        device: torch's name of where it computes.
        unchanged: of a fitted submission, the `tower_ids` of the towers that are as they were in its base.
    """

    module: Any
    log_scale: nn.Parameter
    image: Tower
    text: Tower
    device: str
    unchanged: Mapping[str, str] | None = None

    @abstractmethod
    def pixels(self, images: Sequence[PIL.Image.Image]) -> Float[Tensor, "n_images 3 height width"]:
        """Resized and cropped, before normalisation, in [0, 1], on the CPU; an image of the model's own size stays."""

    @abstractmethod
    def embed_pixels(self, pixels: Float[Tensor, "n 3 height width"], prompts: Prompts = ()) -> Float[Tensor, "n dim"]:
        """Vectors of such pixels as the projection gives them, (n, dim) float32, differentiable.

        Args:
            pixels: in [0, 1]; moved to the device.
            prompts: tokens that stand behind the image's own at the first blocks, one tensor a block, each
                (n_prompts, width) or one such for each item; a later block sees what the one before made of them.

        Raises:
            InputError: the tower takes no such prompts.
        """

    @abstractmethod
    def embed_texts(self, texts: Sequence[str], prompts: Prompts = ()) -> Float[Tensor, "n dim"]:
        """Vectors of texts as the projection gives them, (n, dim) float32, differentiable.

        Args:
            texts: of any length; over-long ones lose their end.
            prompts: as in `embed_pixels`, behind the text's first (start) token.

        Raises:
            InputError: the tower takes no such prompts.
        """

    def embed_with_states(
        self, pixels: Float[Tensor, "n 3 height width"]
    ) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n n_states width"]]:
        """`embed_pixels`, and what the image tower knows of each place before it pools, from one pass; float32.

        Args:
            pixels: in [0, 1]; moved to the device.

        Raises:
            InputError: the tower has no such states.
        """
        raise InputError(
            f"the image tower of a {type(self).__name__} gives no states of places, which this recipe reads; expected "
            "a base such as tiny, pocket or openclip's ViT models."
        )

    def split_attention(self) -> None:  # noqa: B027
        """Makes query, key, value and output projections linear layers of their own, where they are fused."""

    def fuse_attention(self) -> None:  # noqa: B027
        """Undoes `split_attention`."""

    @torch.inference_mode()
    def encode_images(self, images: Sequence[PIL.Image.Image]) -> Float[np.ndarray, "n_images dim"]:
        """Vectors as the projection gives them, (n_images, dim) float32."""
        return self.embed_pixels(self.pixels(images)).cpu().numpy()

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n_texts dim"]:
        """Vectors as the projection gives them, (n_texts, dim) float32."""
        return self.embed_texts(texts).cpu().numpy()

    def tower_ids(self) -> dict[str, str]:
        """A hash of each tower: its parameters, all code below `submissions` and its own, the libraries' versions."""
        if self.unchanged is not None:
            return dict(self.unchanged)
        code = _digest_code(Path(type(self).embed_pixels.__code__.co_filename))
        return {"images": self._tower_id(self.image, code), "texts": self._tower_id(self.text, code)}

    def _tower_id(self, tower: Tower, code: str) -> str:
        digest = hashlib.sha256(f"{code} {type(self).__name__} {tower.width}".encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            if name.startswith(tower.stems):
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


class Changed(Backbone):
    """A backbone whose vectors are computed in another way; its parts are those of the one that it is made from.

    Args:
        base: the backbone that does the work.
        module: holds the parameters of both.
        embed_pixels: in place of the base's, from pixels; None keeps it.
        embed_texts: in place of the base's, from texts; None keeps it.
    """

    def __init__(
        self,
        base: Backbone,
        module: nn.Module,
        embed_pixels: Callable[[Tensor], Tensor] | None = None,
        embed_texts: Callable[[Sequence[str]], Tensor] | None = None,
    ) -> None:
        self.base, self.module, self.log_scale = base, module, base.log_scale
        self.image, self.text, self.device = base.image, base.text, base.device
        self._embed_pixels = embed_pixels or base.embed_pixels
        self._embed_texts = embed_texts or base.embed_texts

    def pixels(self, images: Sequence[PIL.Image.Image]) -> Float[Tensor, "n_images 3 height width"]:
        """Those of the base."""
        return self.base.pixels(images)

    def embed_pixels(self, pixels: Float[Tensor, "n 3 height width"], prompts: Prompts = ()) -> Float[Tensor, "n dim"]:
        """As `Backbone.embed_pixels`; where prompts are given, the base computes with them alone."""
        return self.base.embed_pixels(pixels, prompts) if prompts else self._embed_pixels(pixels)

    def embed_texts(self, texts: Sequence[str], prompts: Prompts = ()) -> Float[Tensor, "n dim"]:
        """As `Backbone.embed_texts`; where prompts are given, the base computes with them alone."""
        return self.base.embed_texts(texts, prompts) if prompts else self._embed_texts(texts)

    def embed_with_states(
        self, pixels: Float[Tensor, "n 3 height width"]
    ) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n n_states width"]]:
        """This backbone's vectors, and the states of the base."""
        vectors, states = self.base.embed_with_states(pixels)
        return vectors if self._embed_pixels == self.base.embed_pixels else self._embed_pixels(pixels), states

    def split_attention(self) -> None:
        """As the base does."""
        self.base.split_attention()

    def fuse_attention(self) -> None:
        """As the base does."""
        self.base.fuse_attention()

    def tower_ids(self) -> dict[str, str]:
        """Those of the base's towers that compute as they did."""
        if self.unchanged is not None:
            return dict(self.unchanged)
        same = {"images": self._embed_pixels == self.base.embed_pixels}
        same["texts"] = self._embed_texts == self.base.embed_texts
        return {tower: value for tower, value in self.base.tower_ids().items() if same[tower]}


def _digest_code(own: Path) -> str:
    """Hex sha256 over the code that vectors depend on, and over the versions of the libraries below it."""
    digest = hashlib.sha256()
    for path in [*sorted(Path(__file__).parents[1].rglob("*.py")), own]:
        digest.update(path.name.encode() + path.read_bytes())
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            digest.update(f"{name} {importlib.metadata.version(name)}".encode())
    return digest.hexdigest()


def map_images(function: Callable[[PIL.Image.Image], Made], images: Sequence[PIL.Image.Image]) -> list[Made]:
    """`function` of every image, on as many threads as torch has: Pillow and torch let other threads run meanwhile."""
    n_threads = min(torch.get_num_threads(), len(images))
    if n_threads < 2:
        return [function(image) for image in images]
    with ThreadPoolExecutor(n_threads, thread_name_prefix="rove-pixels") as pool:
        return list(pool.map(function, images))


def add_part(base: Backbone, part: nn.Module, stem: str) -> None:
    """Makes `part` a part of the base's module, under `stem` or, where an earlier recipe took that, with a number."""
    taken = sum(name.startswith(stem) for name, _ in base.module.named_children())
    base.module.add_module(f"{stem}{taken or ''}", part)


@torch.no_grad()
def dim_of(backbone: Backbone) -> int:
    """Length of its vectors: that of a blank image's, as backbones do not state it."""
    blank = PIL.Image.new("RGB", (BLANK_PX, BLANK_PX))
    return backbone.embed_pixels(backbone.pixels([blank])).shape[1]


def learn(module: nn.Module, stems: tuple[str, ...]) -> None:
    """Lets the parameters learn whose names begin with one of `stems`, and no others."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.startswith(stems))


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of `module` that learn, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def count(parameters: dict[str, nn.Parameter]) -> int:
    """How many numbers they hold."""
    return sum(parameter.numel() for parameter in parameters.values())
