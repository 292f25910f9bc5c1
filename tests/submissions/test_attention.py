"""Split attention is torch's fused attention, and fusing undoes splitting."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from fitting import tiny_base
from torch import nn

from bench.data.scenes import load_scenes
from submissions.backbones.attention import SplitAttention, fuse_attention, split_attention
from submissions.backbones.fitted import load_base


@pytest.fixture
def fused() -> nn.MultiheadAttention:
    """With biases, which torch leaves at zero."""
    torch.manual_seed(0)
    module = nn.MultiheadAttention(48, 4, batch_first=True).eval()
    nn.init.normal_(module.in_proj_bias)
    nn.init.normal_(module.out_proj.bias)
    return module


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_split_attention_is_torch_s(fused: nn.MultiheadAttention, causal: bool, grad: bool) -> None:
    mask = torch.full((7, 7), -torch.inf).triu(1) if causal else None
    found = torch.randn(3, 7, 48).requires_grad_(grad)
    expected = found.detach().clone().requires_grad_(grad)
    split = SplitAttention(fused)
    with torch.set_grad_enabled(grad):
        after, _ = split(found, found, found, need_weights=False, attn_mask=mask)
        before, _ = fused(expected, expected, expected, need_weights=False, attn_mask=mask)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    if grad:
        after.square().sum().backward()
        before.square().sum().backward()
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-5)


def test_fusing_gives_back_what_was_split(fused: nn.MultiheadAttention) -> None:
    model = nn.Sequential(nn.Linear(48, 48), fused).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    split_attention(model)
    assert {name for name, _ in model[1].named_children()} == {"query", "key", "value", "out"}
    fuse_attention(model)
    assert type(model[1]) is nn.MultiheadAttention
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model[1].training


def test_splitting_leaves_both_towers_vectors() -> None:
    backbone, scenes = load_base(tiny_base(), "cpu"), load_scenes("scenes", "test").head(6)
    images = [image.decode() for image in scenes.images]

    def vectors() -> np.ndarray:
        return np.concatenate([backbone.encode_images(images), backbone.encode_texts(scenes.captions)])

    before = vectors()
    backbone.split_attention()
    after = vectors()
    assert sum(isinstance(module, SplitAttention) for module in backbone.module.modules()) == 11
    assert np.all(np.linalg.norm(after - before, axis=1) <= 1e-6 * np.linalg.norm(before, axis=1))
    backbone.fuse_attention()
    np.testing.assert_array_equal(vectors(), before)
