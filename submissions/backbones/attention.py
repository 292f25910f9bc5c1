"""open_clip's fused attention as four linear layers, which adaptation libraries can address by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class SplitAttention(nn.Module):
    """`nn.MultiheadAttention` (batch first, one input, with biases) with a linear layer for each projection.

    Args:
        fused: whose weights it takes over.

    Source: the outputs are those of `torch.nn.MultiheadAttention`.
    """

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        width, self.heads = fused.embed_dim, fused.num_heads
        device, dtype = fused.in_proj_weight.device, fused.in_proj_weight.dtype
        layers = [nn.Linear(width, width, device=device, dtype=dtype) for _ in range(4)]
        self.query, self.key, self.value, self.out = layers
        weights = [*fused.in_proj_weight.chunk(3), fused.out_proj.weight]
        biases = [*fused.in_proj_bias.chunk(3), fused.out_proj.bias]
        with torch.no_grad():
            for layer, weight, bias in zip(layers, weights, biases, strict=True):
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
        self.requires_grad_(fused.in_proj_weight.requires_grad).train(fused.training)

    def forward(
        self,
        query: Float[Tensor, "n length width"],
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Float[Tensor, "n length width"], None]:
        """What `nn.MultiheadAttention` gives for the same arguments; weights are never returned."""
        heads = [self._heads(states) for states in (self.query(query), self.key(key), self.value(value))]
        mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=attn_mask)
        return self.out(mixed.transpose(1, 2).flatten(-2)), None

    def _heads(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:-1], self.heads, -1).transpose(1, 2)

    def fused(self) -> nn.MultiheadAttention:
        """The same as one fused module."""
        weight = self.out.weight
        fused = nn.MultiheadAttention(
            weight.shape[0], self.heads, batch_first=True, device=weight.device, dtype=weight.dtype
        )
        with torch.no_grad():
            fused.in_proj_weight.copy_(torch.cat([self.query.weight, self.key.weight, self.value.weight]))
            fused.in_proj_bias.copy_(torch.cat([self.query.bias, self.key.bias, self.value.bias]))
            fused.out_proj.load_state_dict(self.out.state_dict())
        return fused.requires_grad_(weight.requires_grad).train(self.training)


def split_attention(module: nn.Module) -> None:
    """Replaces every `nn.MultiheadAttention` within `module` by its split form, unless its inputs differ in width."""
    _replace(module, nn.MultiheadAttention, lambda fused: SplitAttention(fused) if fused._qkv_same_embed_dim else fused)


def fuse_attention(module: nn.Module) -> None:
    """Undoes `split_attention`."""
    _replace(module, SplitAttention, SplitAttention.fused)


def _replace(module: nn.Module, kind: type, made: Callable[[Any], nn.Module]) -> None:
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kind):
                setattr(parent, name, made(child))
