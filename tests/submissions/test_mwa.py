"""MultiWay-Adapter: published counts, the base at first, the formula, what is shared, and what learns."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from fitting import make_context, tiny_base
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import nn

from bench.data.scenes import load_scenes
from bench.errors import InputError, UsageError
from bench.types import LoadContext
from submissions.backbones.backbone import Backbone, count, trainable
from submissions.backbones.examples import Examples, Sampler
from submissions.backbones.fitted import load_base
from submissions.backbones.open_clip_encoder import OpenClipEncoder
from submissions.backbones.retrieval import Student, retrieval_loss
from submissions.mwa import fit as mwa
from submissions.mwa.model import Bottleneck, attach, count_parameters, load, make_enhancer

WIDTH, BASE_TOTAL, LARGE_TOTAL = 64, 222_167_041, 674_799_617


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_base(tiny_base(), "cpu")


def attached(base: Backbone, **args: str) -> Backbone:
    torch.manual_seed(0)
    return attach(copy.deepcopy(base), {**mwa.ARGS, **args})


def make_open_clip(text_width: int, text_layers: int, layer_scale: float | None = None) -> OpenClipEncoder:
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, "width": WIDTH, "head_width": 16, "layers": 2}
    vision["ls_init_value"] = layer_scale
    text = {"context_length": 8, "vocab_size": 16, "width": text_width, "heads": 2, "layers": text_layers}
    preprocess = image_transform_v2(PreprocessCfg(size=(32, 32)), is_train=False)
    return OpenClipEncoder(open_clip.CLIP(16, vision, text), preprocess, read_ids, "cpu", "float32")


def read_ids(texts: list[str], length: int = 8) -> torch.Tensor:
    """Each letter a token, the last one the end of the text."""
    rows = [[ord(letter) - ord("a") + 1 for letter in text] + [15] for text in texts]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


def fill(module: nn.Module) -> None:
    """Random numbers in everything that learns, zeros too, and no dropout."""
    for parameter in trainable(module).values():
        nn.init.normal_(parameter, std=0.1)
    module.eval()


@pytest.mark.parametrize(
    ("width", "layers", "expected", "of", "share"),
    [(768, 12, 5_929_728, BASE_TOTAL, 2.67), (1024, 24, 15_810_048, LARGE_TOTAL, 2.34)],
)
def test_counts_that_the_abstracts_share_follows_from(
    width: int, layers: int, expected: int, of: int, share: float
) -> None:
    with torch.device("meta"):
        built = nn.ModuleList()
        for _ in range(layers):
            built.extend([Bottleneck(width, 64), Bottleneck(width, 64), make_enhancer(width, mwa.ARGS)])
    assert count_parameters(width, layers, 64, 192) == expected
    assert sum(parameter.numel() for parameter in built.parameters()) == expected
    assert round(100 * expected / of, 2) == share


def test_the_released_enhancer_is_26_percent_of_beit_3_base() -> None:
    with torch.device("meta"):
        wide = make_enhancer(768, {**mwa.ARGS, "enhancer": "ffn"})
    each = sum(parameter.numel() for parameter in wide.parameters())
    expected = count_parameters(768, 12, 64, 4 * 768)
    assert each == 2 * 768 * 3072 + 3072 + 768
    assert expected == 12 * each + 12 * 2 * (2 * 768 * 64 + 64 + 768)
    assert round(100 * expected / BASE_TOTAL, 1) == 26.6


def test_towers_of_one_width_and_depth_get_as_many_parameters_as_are_counted() -> None:
    backbone = attached(make_open_clip(WIDTH, 2))
    assert count(trainable(backbone.module)) == count_parameters(WIDTH, 2, 64, 192)
    blocks = backbone.module.visual.transformer.resblocks, backbone.module.transformer.resblocks
    for image, text in zip(*blocks, strict=True):
        assert image.mlp.enhancer is text.mlp.enhancer
        assert image.mlp.extractor is not text.mlp.extractor


@pytest.mark.parametrize("args", [{}, {"enhancer": "ffn"}, {"towers": "image"}, {"towers": "text"}])
def test_at_first_it_is_the_base(tiny: Backbone, args: dict[str, str]) -> None:
    backbone, few = attached(tiny, **args), load_scenes("scenes", "val").head(3)
    images, captions = [image.decode() for image in few.images], list(few.captions)
    np.testing.assert_allclose(backbone.encode_images(images), tiny.encode_images(images), rtol=0, atol=1e-6)
    np.testing.assert_allclose(backbone.encode_texts(captions), tiny.encode_texts(captions), rtol=0, atol=1e-6)


@pytest.mark.parametrize("layer_scale", [None, 0.5])
def test_a_block_is_its_formula(layer_scale: float | None) -> None:
    base = make_open_clip(WIDTH, 2, layer_scale)
    block = copy.deepcopy(base.module.visual.transformer.resblocks[0])
    backbone = attached(base, scale="0.3")
    fill(backbone.module)
    found = backbone.module.visual.transformer.resblocks[0]
    states = torch.randn(2, 5, WIDTH)
    normed = block.ln_1(states)
    states_1 = states + block.ls_1(block.attn(normed, normed, normed, need_weights=False)[0])

    def network(part: Bottleneck, inside: torch.Tensor) -> torch.Tensor:
        hidden = torch.clamp(inside @ part.down.weight.T + part.down.bias, min=0)
        return hidden @ part.up.weight.T + part.up.bias

    added = block.ls_2(block.mlp(block.ln_2(states_1))) + 0.3 * network(found.mlp.extractor, states_1)
    expected = states_1 + added + network(found.mlp.enhancer, states_1 + added)
    torch.testing.assert_close(found(states), expected, rtol=1e-4, atol=1e-5)


def test_texts_of_another_width_pass_the_same_enhancers_projected() -> None:
    base = make_open_clip(32, 1)
    backbone = attached(base)
    image, text = (part[0].mlp.enhancer for part in (base_blocks(backbone, "visual."), base_blocks(backbone, "")))
    assert text.enhancer is image
    assert base_blocks(backbone, "visual.")[1].mlp.enhancer is None  # the text tower has one block alone
    torch.testing.assert_close(text.back.weight @ text.into.weight, torch.eye(32))  # there and back is the identity
    fill(backbone.module)
    states = torch.randn(3, 32)
    through = image.up(torch.relu(image.down(states @ text.into.weight.T)))
    torch.testing.assert_close(text(states), through @ text.back.weight.T)
    before = backbone.embed_texts(["abc"])
    with torch.no_grad():
        image.up.bias += 1
    assert (backbone.embed_texts(["abc"]) - before).abs().max() > 1e-3


def base_blocks(backbone: Backbone, path: str) -> nn.Module:
    """The blocks of one tower."""
    blocks: nn.Module = backbone.module.get_submodule(f"{path}transformer.resblocks")
    return blocks


def test_after_one_step_every_new_parameter_has_a_gradient_and_no_other(tiny: Backbone) -> None:
    backbone = attached(tiny)
    examples = Examples(load_scenes("scenes", "train").head(6), tiny)
    student, batch = Student(backbone, examples), Sampler(examples, 6, 0).batch(0)
    learning = trainable(backbone.module)
    optimizer = torch.optim.SGD(learning.values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        retrieval_loss(student, batch).backward()
        optimizer.step()
    without = [name for name, parameter in learning.items() if not parameter.grad.abs().max() > 0]
    assert without == []
    assert all(parameter.grad is None for parameter in set(backbone.module.parameters()) - set(learning.values()))
    assert {name.split(".mlp.")[1].split(".")[0] for name in learning} == {"extractor", "enhancer"}


def test_a_fitted_folder_gives_what_was_fitted(tmp_path: Path) -> None:
    facts = mwa.fit(make_context(tmp_path / "out", {**mwa.ARGS, "batch": "8"}))
    assert facts.added == facts.trainable
    assert not facts.mergeable
    loaded = load(LoadContext(tmp_path / "out", "cpu", "float32", {}, offline=True))
    total = sum(parameter.numel() for parameter in loaded.module.parameters())
    assert total == facts.total + facts.added
    few = load_scenes("scenes", "val").head(2)
    changed = loaded.encode_texts(few.captions) - load_base(tiny_base(), "cpu").encode_texts(few.captions)
    assert np.abs(changed).max() > 1e-5


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"enhancer": "wide"}, "expected bottleneck or ffn"),
        ({"rank": "0"}, "rank is '0'"),
        ({"enhancer_rank": "x"}, "enhancer_rank is 'x'"),
        ({"scale": "-1"}, "scale is '-1'"),
        ({"towers": "all"}, "towers is 'all'"),
    ],
)
def test_bad_arguments_are_explained(tiny: Backbone, args: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        attached(tiny, **args)


def test_it_is_attached_once(tiny: Backbone) -> None:
    with pytest.raises(InputError, match="no other mwa in it"):
        attached(attached(tiny))
