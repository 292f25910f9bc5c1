"""LoRA, (IA)^3 and adapters: published counts, the base at first, what learns, and what is folded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import open_clip
import pytest
import torch
from fitting import make_context, tiny_base
from safetensors.torch import load_file
from torch import nn

from bench.data.scenes import load_scenes
from bench.errors import InputError, UsageError
from bench.types import LoadContext
from submissions.adapter import fit as adapter
from submissions.adapter import model as adapter_model
from submissions.adapter.model import Adapted
from submissions.backbones.backbone import Backbone, Tower, count, trainable
from submissions.backbones.fitted import load_base
from submissions.backbones.open_clip_encoder import OpenClipEncoder
from submissions.backbones.peft_layers import fold
from submissions.ia3 import fit as ia3
from submissions.ia3 import model as ia3_model
from submissions.lora import fit as lora
from submissions.lora import model as lora_model

VIT_B_32 = 151_277_313
VISION = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
ALL = {"rank": "3", "targets": "all"}
METHODS = [(lora, {}), (lora, ALL), (ia3, {}), (adapter, {}), (adapter, {"places": "2"})]
FOLDED = [(lora, {}), (lora, ALL), (ia3, {})]


def attached(recipe: ModuleType, args: Mapping[str, str], backbone: Backbone | None = None) -> Backbone:
    """What the recipe makes of `tiny`, or of another backbone, out of training mode."""
    torch.manual_seed(0)
    backbone = recipe.attach(backbone or load_base(tiny_base(), "cpu"), {**recipe.ARGS, **args})
    backbone.module.eval()
    return backbone


def disturb(backbone: Backbone) -> None:
    """Moves all that learns away from where it started."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable(backbone.module).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def vectors(backbone: Backbone) -> np.ndarray:
    """Of a few images and captions, of norm one."""
    scenes = load_scenes("scenes", "test").head(3)
    images = backbone.encode_images([image.decode() for image in scenes.images])
    found = np.concatenate([images, backbone.encode_texts(scenes.captions)])
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def classes(module: nn.Module) -> dict[str, type]:
    return {name: type(part) for name, part in module.named_modules()}


@pytest.mark.parametrize(
    ("recipe", "args", "expected"),
    [
        (lora, {}, 184_320),
        (lora, {"rank": "8", "targets": "q,v"}, 491_520),
        (lora, {"rank": "8", "targets": "all"}, 2_211_840),
        (lora, {"rank": "16", "targets": "all"}, 4_423_680),
        (ia3, {}, 92_160),
        (adapter, {}, 1_982_976),
        (adapter, {"places": "2"}, 3_965_952),
    ],
)
def test_published_counts_on_vit_b_32(recipe: ModuleType, args: Mapping[str, str], expected: int) -> None:
    with torch.device("meta"):
        model = open_clip.CLIP(512, VISION, TEXT)
    backbone = OpenClipEncoder(model, lambda image: image, lambda texts: texts, "meta", "float32")
    assert count(dict(model.named_parameters())) == VIT_B_32
    attached(recipe, args, backbone)
    assert count(trainable(model)) == expected
    assert count(dict(model.named_parameters())) == VIT_B_32 + expected
    assert not backbone.log_scale.requires_grad


@pytest.mark.parametrize(("recipe", "args"), METHODS)
def test_what_is_attached_leaves_the_vectors_until_it_learns(recipe: ModuleType, args: Mapping[str, str]) -> None:
    before = vectors(load_base(tiny_base(), "cpu"))
    backbone = attached(recipe, args)
    assert np.abs(vectors(backbone) - before).max() < 1e-6
    disturb(backbone)
    moved = np.abs(vectors(backbone) - before).max(axis=1)
    assert moved[:3].min() > 1e-3
    assert moved[3:].min() > 1e-3


@pytest.mark.parametrize(("recipe", "args"), FOLDED)
def test_folding_gives_the_base_s_modules_and_the_same_vectors(recipe: ModuleType, args: Mapping[str, str]) -> None:
    base, backbone = load_base(tiny_base(), "cpu"), attached(recipe, args)
    disturb(backbone)
    before = vectors(backbone)
    fold(backbone)
    assert np.abs(vectors(backbone) - before).max() < 1e-5
    assert shapes(backbone.module) == shapes(base.module)
    assert classes(backbone.module) == classes(base.module)
    assert not hasattr(backbone.module, "peft_config")


def test_a_folded_lora_is_its_formula() -> None:
    backbone = attached(lora, {"rank": "3", "alpha": "2", "targets": "v,down"})
    disturb(backbone)
    weights = {name: parameter.detach().numpy().copy() for name, parameter in backbone.module.named_parameters()}
    fold(backbone)
    block = backbone.module.visual.transformer.resblocks[5]
    found = {"attn.value": block.attn.in_proj_weight.detach().numpy()[2 * 192 :], "mlp.c_proj": block.mlp.c_proj.weight}
    for part, weight in found.items():
        path = f"visual.transformer.resblocks.5.{part}"
        a, b = (weights[f"{path}.lora_{name}.default.weight"] for name in "AB")
        expected = weights[f"{path}.base_layer.weight"] + 2 / np.sqrt(3) * b @ a
        np.testing.assert_allclose(np.asarray(weight.data), expected, rtol=0, atol=1e-6)


def test_a_folded_ia3_is_its_formula() -> None:
    base, backbone = load_base(tiny_base(), "cpu"), attached(ia3, {})
    disturb(backbone)
    block = "transformer.resblocks.1"
    factors = {name: parameter.detach().numpy().copy() for name, parameter in trainable(backbone.module).items()}
    fold(backbone)
    before, after = (
        {name: tensor.numpy() for name, tensor in each.module.state_dict().items()} for each in (base, backbone)
    )
    by_output = np.concatenate(
        [np.ones((160, 1)), *(factors[f"{block}.attn.{part}.ia3_l.default"] for part in ("key", "value"))]
    )
    by_input = factors[f"{block}.mlp.c_proj.ia3_l.default"]
    expected = {
        "attn.in_proj_weight": by_output * before[f"{block}.attn.in_proj_weight"],
        "attn.in_proj_bias": by_output[:, 0] * before[f"{block}.attn.in_proj_bias"],
        "mlp.c_proj.weight": before[f"{block}.mlp.c_proj.weight"] * by_input,
        "mlp.c_proj.bias": before[f"{block}.mlp.c_proj.bias"],
    }
    for name, tensor in expected.items():
        np.testing.assert_allclose(after[f"{block}.{name}"], tensor, rtol=1e-6, atol=1e-7)


def test_an_adapter_is_its_formula() -> None:
    torch.manual_seed(0)
    adapted = Adapted(nn.Linear(5, 4), rank=3, scale=0.5).requires_grad_(False)
    for parameter in adapted.parameters():
        nn.init.normal_(parameter)
    inputs = torch.randn(7, 5)
    weights = {name: parameter.numpy() for name, parameter in adapted.named_parameters()}
    x = inputs.numpy() @ weights["layer.weight"].T + weights["layer.bias"]
    hidden = np.maximum(x @ weights["down.weight"].T + weights["down.bias"], 0)
    expected = x + 0.5 * (hidden @ weights["up.weight"].T + weights["up.bias"])
    np.testing.assert_allclose(adapted(inputs).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "load", "ends"),
    [
        (lora, lora_model.load, (".lora_A.default.weight", ".lora_B.default.weight")),
        (ia3, ia3_model.load, (".ia3_l.default",)),
        (adapter, adapter_model.load, (".down.weight", ".down.bias", ".up.weight", ".up.bias")),
    ],
)
def test_a_fit_changes_what_learns_alone_and_its_folder_gives_the_trained_vectors(
    recipe: ModuleType, load: object, ends: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Backbone, dict[str, torch.Tensor]]] = []
    attach = recipe.attach

    def watched(backbone: Backbone, args: Mapping[str, str]) -> Backbone:
        attach(backbone, args)
        seen.append((backbone, {name: value.detach().clone() for name, value in backbone.module.named_parameters()}))
        return backbone

    monkeypatch.setattr(recipe, "attach", watched)
    facts = recipe.fit(make_context(tmp_path / "fitted", {**recipe.ARGS, "batch": "8", "lr": "0.01"}))
    [(backbone, before)] = seen
    backbone.module.eval()
    learns = trainable(backbone.module)
    moved = {
        name for name, value in backbone.module.named_parameters() if not torch.equal(value.detach(), before[name])
    }
    assert moved
    assert moved <= set(learns)
    assert set(load_file(tmp_path / "fitted" / "weights.safetensors")) == set(learns)
    assert all(name.endswith(ends) for name in learns)
    assert facts.trainable == count(learns)
    assert facts.added == (facts.trainable if recipe is adapter else 0)
    fitted = load(LoadContext(tmp_path / "fitted", "cpu", "float32", {}, True))  # type: ignore[operator]
    assert np.abs(vectors(fitted) - vectors(backbone)).max() < 1e-5
    assert np.abs(vectors(fitted) - vectors(load_base(tiny_base(), "cpu"))).max() > 1e-4
    assert not trainable(fitted.module)


def test_lora_s_dropout_is_active_while_it_learns() -> None:
    backbone = lora.attach(load_base(tiny_base(), "cpu"), lora.ARGS)
    disturb(backbone)
    pixels = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        assert not torch.equal(backbone.embed_pixels(pixels), backbone.embed_pixels(pixels))
        backbone.module.eval()
        assert torch.equal(backbone.embed_pixels(pixels), backbone.embed_pixels(pixels))


@pytest.mark.parametrize("tower", ["image", "text"])
def test_lora_on_one_tower_leaves_the_other(tower: str) -> None:
    learns = trainable(attached(lora, {"towers": tower}).module)
    assert {name.startswith("visual.") for name in learns} == {tower == "image"}
    assert len(learns) == 2 * 3 * {"image": 8, "text": 3}[tower]


@pytest.mark.parametrize(
    ("recipe", "args"),
    [
        (lora, {"rank": "0"}),
        (lora, {"rank": "161"}),
        (lora, {"rank": "two"}),
        (lora, {"alpha": "0"}),
        (lora, {"dropout": "1"}),
        (lora, {"targets": "q,qkv"}),
        (lora, {"targets": ""}),
        (lora, {"towers": "vision"}),
        (adapter, {"rank": "0"}),
        (adapter, {"scale": "-1"}),
        (adapter, {"places": "3"}),
    ],
)
def test_an_argument_that_cannot_be_is_named(recipe: ModuleType, args: Mapping[str, str]) -> None:
    with pytest.raises(UsageError, match=f"--recipe-arg {next(iter(args))} is .*; expected"):
        attached(recipe, args)


@pytest.mark.parametrize(("recipe", "args"), METHODS)
def test_a_tower_without_blocks_is_named_and_left_when_asked(recipe: ModuleType, args: Mapping[str, str]) -> None:
    backbone = load_base(tiny_base(), "cpu")
    backbone.image = Tower((), 0, ("visual.",))
    with pytest.raises(InputError, match=r"image tower has no transformer blocks.*towers=text"):
        attached(recipe, args, backbone)
    text = attached(recipe, {**args, "towers": "text"}, backbone)
    assert not any(name.startswith("visual.") for name in trainable(text.module))


@pytest.mark.parametrize(
    ("name", "expected"), [("ViT-L-14", 405_504), ("ViT-H-14-CLIPA", 786_432), ("coca_ViT-B-32", 184_320)]
)
def test_other_open_clip_models_are_backbones_too(name: str, expected: int) -> None:
    """3 projections x rank 2 x (width in + width out) x blocks of both towers, whatever else the model has."""
    config = {key: value for key, value in open_clip.get_model_config(name).items() if key != "custom_text"}
    with torch.device("meta"):
        model = (open_clip.CoCa if "multimodal_cfg" in config else open_clip.CLIP)(**config)
    backbone = OpenClipEncoder(model, lambda image: image, lambda texts: texts, "meta", "float32")
    assert count(trainable(attached(lora, {}, backbone).module)) == expected


def test_layers_with_adapters_are_no_place_for_others() -> None:
    with pytest.raises(InputError, match="Adapted; expected a linear layer"):
        attached(ia3, {}, attached(adapter, {}))


@pytest.mark.parametrize(("recipe", "expected"), [(lora, 27_648), (ia3, 13_824), (adapter, 297_600)])
def test_pocket_s_text_tower_can_be_adapted(recipe: ModuleType, expected: int) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra [pocket]")
    from submissions.pocket.model import Pocket, build_heads

    heads = build_heads("linear")
    backbone = Pocket(heads["images"], heads["texts"], "cpu")
    names, texts = set(shapes(backbone.module)), ["a dog in the snow", "two cats"]
    before = backbone.encode_texts(texts)
    attached(recipe, {"towers": "text"}, backbone)
    assert count(trainable(backbone.module)) == expected
    assert np.abs(backbone.encode_texts(texts) - before).max() < 1e-6
    disturb(backbone)
    moved = backbone.encode_texts(texts)
    assert np.abs(moved - before).max() > 1e-3
    if recipe is not adapter:
        fold(backbone)
        assert np.abs(backbone.encode_texts(texts) - moved).max() < 1e-5
        assert set(shapes(backbone.module)) == names
