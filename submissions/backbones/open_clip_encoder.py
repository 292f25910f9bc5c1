"""An encoder over any open_clip model, shared by the submissions that are one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import open_clip
import PIL.Image
import torch
from jaxtyping import Float, Int
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize

from bench.errors import InputError
from submissions.backbones import attention
from submissions.backbones.backbone import Backbone, Block, Prompts, Tower, map_images

SHORTEST = 8  # start, end, and a few words between them


class OpenClipEncoder(Backbone):
    """Implements `bench.types.Encoder`, `Differentiable` and `Backbone` with an open_clip model and all around it.

    Args:
        model: has `encode_image` and `encode_text`.
        preprocess: PIL image to (3, height, width) tensor; where the last of its steps normalises, `embed_pixels` does.
        tokenize: texts and, if asked, a context length to (n_texts, context_length) token ids; it truncates.
        device: torch's name of the device.
        dtype: torch's name of the floating type to compute in.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocess: Callable[[PIL.Image.Image], Tensor],
        tokenize: Callable[..., Tensor],
        device: str,
        dtype: str,
    ) -> None:
        self.device, self._dtype = device, getattr(torch, dtype)
        self.module: Any = model.eval().requires_grad_(False).to(device=device, dtype=self._dtype)
        self._preprocess, self.tokenize = preprocess, tokenize
        self._to_pixels, self._normalize = _split(preprocess)
        self.log_scale = cast(nn.Parameter, self.module.logit_scale)
        self.image, self.text = _towers(self.module)

    def preprocess_batch(self, images: Sequence[PIL.Image.Image]) -> Tensor:
        """What the model is fed, (n_images, 3, height, width) float32."""
        return torch.stack(map_images(self._preprocess, images))

    def pixels(self, images: Sequence[PIL.Image.Image]) -> Float[Tensor, "n_images 3 height width"]:
        """Resized and cropped, before normalisation, in [0, 1]; an image of the model's own size stays as it is."""
        return torch.stack(map_images(self._to_pixels, images))

    def embed_pixels(self, pixels: Float[Tensor, "n 3 height width"], prompts: Prompts = ()) -> Float[Tensor, "n dim"]:
        """As `Backbone.embed_pixels`, which only a vision transformer with named blocks can do with prompts."""
        normalized = self._normalize(pixels).to(device=self.device, dtype=self._dtype)
        if not prompts:
            return self.module.encode_image(normalized).float()
        self._check_blocks(self.image, "image")
        visual = self.module.visual
        states = visual._embeds(normalized)
        length = states.shape[1]
        states = _run_blocks(visual.transformer.resblocks, states, prompts, start=length, mask=None)
        return _pool(visual, states[:, :length])

    def embed_texts(self, texts: Sequence[str], prompts: Prompts = ()) -> Float[Tensor, "n dim"]:
        """As `Backbone.embed_texts`, which only a causal text tower can do with prompts."""
        if _is_causal(self.module):
            return self._embed_causal(texts, prompts).float()
        if prompts:
            raise InputError("this text tower takes no prompts; expected open_clip's causal one.")
        return self.module.encode_text(self.tokenize(list(texts)).to(self.device)).float()

    def embed_with_states(
        self, pixels: Float[Tensor, "n 3 height width"]
    ) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n n_states width"]]:
        """Of ViTs alone; states are the patches' after the last block and the final norm, without the class token's."""
        visual = self.module.visual
        if not isinstance(visual, VisionTransformer):
            raise InputError(
                f"an image tower of class {type(visual).__name__} gives no states of patches; expected one of "
                "open_clip's own vision transformers, such as ViT-B-32."
            )
        normalized = self._normalize(pixels).to(device=self.device, dtype=self._dtype)
        states = visual.transformer(visual._embeds(normalized))
        patches = states if visual.attn_pool is not None else visual.ln_post(states)
        return _pool(visual, states), patches[:, 1:].float()

    def split_attention(self) -> None:
        """Query, key, value and output projections of both towers become linear layers."""
        attention.split_attention(self.module)

    def fuse_attention(self) -> None:
        """Undoes `split_attention`."""
        attention.fuse_attention(self.module)

    def _embed_causal(self, texts: Sequence[str], prompts: Prompts) -> Float[Tensor, "n dim"]:
        """What `encode_text` gives, without the padding that nothing looks at: of 77 places captions fill about 20."""
        model = self.module
        n_prompts = prompts[0].shape[-2] if prompts else 0
        tokens = self._tokens(texts, model.context_length - n_prompts)
        ends = tokens.argmax(dim=1)
        dtype = model.transformer.get_cast_dtype()
        states = model.token_embedding(tokens[:, : int(ends.max()) + 1]).to(dtype)
        if prompts:
            states = _insert(states, prompts[0], start=1)
        length = states.shape[1]
        states = states + model.positional_embedding[:length].to(dtype)
        mask = model.attn_mask[:length, :length]
        if prompts:
            self._check_blocks(self.text, "text")
            blocks = model.transformer.resblocks
            states = _run_blocks([blocks[0]], states, (), start=1, mask=mask)
            states = _run_blocks(blocks[1:], states, prompts[1:], start=1, mask=mask, replace=True)
        else:
            states = model.transformer(states, attn_mask=mask)
        last = model.ln_final(states)[torch.arange(len(tokens), device=tokens.device), ends + n_prompts]
        projection = model.text_projection
        if projection is None:
            return last
        return projection(last) if isinstance(projection, nn.Linear) else last @ projection

    def _tokens(self, texts: Sequence[str], length: int) -> Int[Tensor, "n_texts length"]:
        if length < SHORTEST:
            raise InputError(
                f"the prompts leave {length} of {self.module.context_length} places to the text; expected at least "
                f"{SHORTEST}. Take fewer."
            )
        if length == self.module.context_length:
            return self.tokenize(list(texts)).to(self.device)
        return self.tokenize(list(texts), length).to(self.device)

    def _check_blocks(self, tower: Tower, name: str) -> None:
        if not tower.blocks:
            raise InputError(f"this {name} tower takes no prompts; expected open_clip's own transformer blocks.")


def _pool(visual: Any, states: Float[Tensor, "n length width"]) -> Float[Tensor, "n dim"]:
    pooled, _ = visual._pool(states)
    return (pooled if visual.proj is None else pooled @ visual.proj).float()


def _run_blocks(
    blocks: Any, states: Tensor, prompts: Prompts, start: int, mask: Tensor | None, replace: bool = False
) -> Tensor:
    """`states` after `blocks`, before the first of which (or in its place, with `replace`) each prompt is set in."""
    for index, block in enumerate(blocks):
        if index < len(prompts):
            if index or replace:
                stop = start + prompts[index].shape[-2]
                states = torch.cat([states[:, :start], states[:, stop:]], dim=1)
            states = _insert(states, prompts[index], start)
        states = block(states, attn_mask=mask)
    return states


def _insert(states: Tensor, prompt: Tensor, start: int) -> Tensor:
    """`states` (n, length, width) with `prompt` ((n_prompts, width), or one for each item) from `start` on."""
    tokens = prompt.to(states.dtype).expand(len(states), *prompt.shape[-2:])
    return torch.cat([states[:, :start], tokens, states[:, start:]], dim=1)


def _towers(model: Any) -> tuple[Tower, Tower]:
    if isinstance(model, open_clip.CLIP):
        text = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
        return _tower(model.visual, "visual.", ("visual.",)), _tower(model, "", text)
    return _tower(model.visual, "visual.", ("visual.",)), _tower(model.text, "text.", ("text.",))


def _tower(module: Any, path: str, stems: tuple[str, ...]) -> Tower:
    blocks = getattr(getattr(module, "transformer", None), "resblocks", ())
    if not all(isinstance(getattr(block, "attn", None), nn.MultiheadAttention) for block in blocks):
        blocks = ()
    names = [_name_layers(f"{path}transformer.resblocks.{index}") for index in range(len(blocks))]
    return Tower(tuple(names), blocks[0].attn.embed_dim if blocks else 0, stems)


def _name_layers(block: str) -> Block:
    query, key, value, out = (f"{block}.attn.{name}" for name in ("query", "key", "value", "out"))
    return Block(query, key, value, out, up=f"{block}.mlp.c_fc", down=f"{block}.mlp.c_proj")


def _is_causal(model: nn.Module) -> bool:
    """Whether no token sees those behind it, and the vector is that of the end-of-text token."""
    return isinstance(model, open_clip.CLIP) and model.attn_mask is not None and model.text_pool_type == "argmax"


def _split(preprocess: Callable[[PIL.Image.Image], Tensor]) -> tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]:
    """What comes before normalisation, and normalisation, which may be nothing."""
    steps = getattr(preprocess, "transforms", [preprocess])
    if not isinstance(steps[-1], Normalize):
        return preprocess, nn.Identity()
    return Compose(steps[:-1]), steps[-1]
