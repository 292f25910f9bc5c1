"""Cache models against loops over their formulae; how they are filled, searched and trained; a whole fit of each."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from fitting import Deadly, Kept, Killed, make_context, tiny_base
from safetensors.torch import load_file
from torch.nn import functional

from bench.data.scenes import load_scenes
from bench.errors import InputError, UsageError
from bench.types import Collection, FitContext, LoadContext
from submissions.backbones import cache_fitting, frozen
from submissions.backbones.backbone import Backbone, count
from submissions.backbones.cache import CACHE_ARGS, FUSION_ARGS, Cached, ClassCache, Fusion, PairCache
from submissions.backbones.cache_fitting import (
    PLAN,
    ClassTask,
    FewShots,
    Pairs,
    PairTask,
    draw_crop,
    draw_shots,
    encode_views,
    make_keys,
    match_each,
    train_cache,
    weigh_hard,
)
from submissions.backbones.examples import Examples, select_images
from submissions.backbones.fitted import STORED_FILE, WEIGHTS_FILE, load_base
from submissions.backbones.frozen import Frozen
from submissions.backbones.plan import PLAN_ARGS
from submissions.backbones.retrieval import match_pairs, recall_at_1
from submissions.tip_adapter_f.fit import fit as fit_f

RECIPES = ("tip_adapter", "tip_adapter_f", "xmadapter")
N_CLASSES, SHOTS, DIM = 4, 3, 6
ARGS = {**CACHE_ARGS, **FUSION_ARGS, **PLAN_ARGS, "shots": "2", "cache": "5"}


def unit_rows(*shape: int, seed: int = 0) -> torch.Tensor:
    drawn = np.random.default_rng(seed).standard_normal(shape)
    return functional.normalize(torch.from_numpy(drawn), dim=-1)


def filled_class_cache(gamma: float | None = None, fused: bool = False) -> ClassCache:
    """Keys longer and shorter than 1, as training leaves them; float64."""
    torch.manual_seed(0)
    fusion = Fusion(DIM, gamma) if fused else None
    cache = ClassCache(N_CLASSES, SHOTS, DIM, 30.0, learns=True, fusion=fusion).double()
    lengths = torch.linspace(0.8, 1.4, N_CLASSES * SHOTS, dtype=torch.float64).view(N_CLASSES, SHOTS, 1)
    with torch.no_grad():
        cache.keys.copy_(lengths * unit_rows(N_CLASSES, SHOTS, DIM, seed=1))
        cache.prompts.copy_(unit_rows(N_CLASSES, DIM, seed=2))
        if fusion is not None:
            fusion.image_to_text.weight.mul_(torch.rand_like(fusion.image_to_text.weight))
    cache.alpha, cache.beta = 2.5, 3.0
    return cache


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def naive_logits(cache: ClassCache, image: np.ndarray, gamma: float) -> list[float]:
    """100 f W + alpha sum_i exp(-beta (1 - A_i)) L_i, with one-hot rows L, entry by entry; the 100 is `scale`."""
    keys, prompts = cache.keys.detach().numpy().reshape(-1, DIM), cache.prompts.detach().numpy()
    labels = np.repeat(np.eye(N_CLASSES), SHOTS, axis=0)
    logits = cache.scale * prompts @ image
    for key, label in zip(keys, labels, strict=True):
        affinity = float(key @ image)
        if cache.fusion is not None:
            image_map, text_map = (
                layer.weight.detach().numpy() for layer in (cache.fusion.image_to_text, cache.fusion.meta)
            )
            affinity = gamma * affinity + (1 - gamma) * cosine(image_map @ image, text_map @ (label @ prompts))
        logits = logits + cache.alpha * np.exp(-cache.beta * (1 - affinity)) * label
    return logits.tolist()


@pytest.mark.parametrize(("fused", "gamma", "shown"), [(False, None, 1.0), (True, 0.3, 0.3), (True, None, 0.5)])
def test_cosines_of_the_vectors_are_the_published_logits(fused: bool, gamma: float | None, shown: float) -> None:
    cache, images = filled_class_cache(gamma, fused), unit_rows(9, DIM, seed=3)
    expected = np.array([naive_logits(cache, image, shown) for image in images.numpy()])
    np.testing.assert_allclose(cache.logits(images).detach().numpy(), expected, rtol=1e-12)
    image_vectors = cache.of_images(7.0 * images).detach()
    text_vectors = cache.of_texts(0.1 * cache.prompts.detach())
    norms = image_vectors.norm(dim=1)
    torch.testing.assert_close(norms, norms[0].expand_as(norms), rtol=1e-12, atol=0)
    cosines = functional.normalize(image_vectors) @ functional.normalize(text_vectors).T
    np.testing.assert_allclose(cosines.numpy() * norms[0].item() * np.sqrt(2), expected, rtol=1e-9)


def test_padding_holds_for_the_image_that_all_keys_agree_with() -> None:
    cache = filled_class_cache()
    with torch.no_grad():
        cache.keys.copy_(unit_rows(1, DIM)[0].expand_as(cache.keys) * 1.3)
    vectors = cache.of_images(torch.stack([unit_rows(1, DIM)[0], -unit_rows(1, DIM)[0]]))
    assert vectors[0, -1].item() > 0
    torch.testing.assert_close(vectors[0].norm(), vectors[1].norm(), rtol=1e-12, atol=0)


def test_a_text_has_the_class_of_its_nearest_prompt_and_its_own_vector() -> None:
    cache = filled_class_cache()
    changed = cache.prompts.detach() + 0.1 * unit_rows(N_CLASSES, DIM, seed=5)
    vectors = cache.of_texts(changed)
    torch.testing.assert_close(vectors[:, :DIM], functional.normalize(changed))
    torch.testing.assert_close(vectors[:, DIM:-1], torch.eye(N_CLASSES, dtype=torch.float64))


def filled_pair_cache(n_pairs: int = 5, gamma: float | None = None) -> PairCache:
    torch.manual_seed(0)
    cache = PairCache(n_pairs, DIM, learns=True, fusion=None if gamma is None else Fusion(DIM, gamma)).double()
    with torch.no_grad():
        for seed, keys in enumerate((cache.images, cache.texts, cache.image_keys, cache.text_keys)):
            keys.copy_(unit_rows(n_pairs, DIM, seed=10 + seed))
    cache.alpha, cache.tau = 0.7, 0.2
    return cache


def naive_moved(cache: PairCache, query: np.ndarray, own: int, side: str) -> np.ndarray:
    """norm(f + alpha softmax(A / tau) values) of one query, without its own entry."""
    images, texts, image_keys, text_keys = (
        keys.detach().numpy() for keys in (cache.images, cache.texts, cache.image_keys, cache.text_keys)
    )
    keys, across, values = (image_keys, text_keys, texts) if side == "image" else (text_keys, image_keys, images)
    weights = []
    for key, other in zip(keys, across, strict=True):
        affinity = float(key @ query)
        if cache.fusion is not None:
            maps = [layer.weight.detach().numpy() for layer in (cache.fusion.image_to_text, cache.fusion.meta)]
            to_query, to_other = maps if side == "image" else maps[::-1]
            gamma = cache.fusion.gamma.item()
            affinity = gamma * affinity + (1 - gamma) * cosine(to_query @ query, to_other @ other)
        weights.append(np.exp(affinity / cache.tau))
    weights[own] = 0.0
    moved = query + cache.alpha * np.array(weights) @ values / np.sum(weights)
    return moved / np.linalg.norm(moved)


@pytest.mark.parametrize("gamma", [None, 0.4])
def test_vectors_move_towards_the_other_modality_of_what_is_alike(gamma: float | None) -> None:
    cache, queries = filled_pair_cache(gamma=gamma), unit_rows(3, DIM, seed=4)
    own = functional.one_hot(torch.tensor([4, 0, 2]), 5).bool()
    for side, move in (("image", cache.of_images), ("text", cache.of_texts)):
        expected = [naive_moved(cache, q, o, side) for q, o in zip(queries.numpy(), (4, 0, 2), strict=True)]
        np.testing.assert_allclose(move(3.0 * queries, own).detach().numpy(), np.array(expected), rtol=1e-9)


def test_hard_items_weigh_more_and_the_mean_stays() -> None:
    gaps = torch.tensor([0.1, 0.3, 0.8], requires_grad=True)
    weights = weigh_hard(gaps)
    assert not weights.requires_grad
    torch.testing.assert_close(weights, torch.tensor([0.25, 0.75, 2.0]))
    cache, images = filled_class_cache(0.3, fused=True), unit_rows(2, DIM, seed=3)
    assert cache.fusion is not None
    texts = cache.fusion.affinity(images, cache.prompts)
    to_images = torch.einsum("nd,csd->ncs", images, cache.keys)
    expected = (to_images - texts[:, :, None]).abs().mean(dim=(1, 2))
    torch.testing.assert_close(cache.disagreement(images), expected)


def test_losses_of_pairs_have_the_mean_of_the_shared_loss() -> None:
    logits = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 5)))
    torch.testing.assert_close(match_each(logits).mean(), match_pairs(logits, torch.zeros(5, 5, dtype=torch.bool)))


def few_shots(noise: float = 0.5, n_validation: int = 40) -> FewShots:
    """Classes round centres, whose prompts are no better than chance."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((N_CLASSES, DIM))

    def drawn(labels: np.ndarray) -> torch.Tensor:
        points = centres[labels] + noise * rng.standard_normal((len(labels), DIM))
        return functional.normalize(torch.from_numpy(points), dim=1).float()

    entries = np.repeat(np.arange(N_CLASSES), SHOTS)
    views = torch.stack([drawn(entries) for _ in range(2)])
    labels = rng.integers(N_CLASSES, size=n_validation)
    keys = make_keys(views).view(N_CLASSES, SHOTS, DIM)
    return FewShots(views, keys, unit_rows(N_CLASSES, DIM, seed=9).float(), drawn(labels), torch.from_numpy(labels))


def test_search_takes_the_first_best_of_the_grid() -> None:
    few, grids = few_shots(noise=0.9), {"beta": (0.5, 2.0, 8.0), "alpha": (0.2, 3.0, 30.0)}
    cache, task = ClassCache(N_CLASSES, SHOTS, DIM, 30.0, learns=False), ClassTask(few, 30.0, 8, 0)
    task.fill(cache)
    accuracies = {}
    for beta in grids["beta"]:
        for alpha in grids["alpha"]:
            cache.alpha, cache.beta = alpha, beta
            found = cache.logits(few.images).argmax(dim=1).numpy()
            accuracies[alpha, beta] = np.mean(found == few.labels.numpy())
    task.search(cache, grids)
    assert (cache.alpha, cache.beta) == max(accuracies, key=lambda knobs: accuracies[knobs])
    assert len(set(accuracies.values())) > 2
    assert task.validate(cache).choice == pytest.approx(100 * max(accuracies.values()))


@pytest.mark.parametrize("hard", [False, True])
def test_keys_and_fusion_learn_and_the_best_epoch_is_kept(hard: bool) -> None:
    torch.manual_seed(0)
    few = few_shots()
    cache = ClassCache(N_CLASSES, SHOTS, DIM, 5.0, learns=True, fusion=Fusion(DIM, None))
    task, reports = ClassTask(few, 5.0, 5, 0, hard), list[dict[str, float]]()
    task.fill(cache)
    before = sum(task.loss(cache, step).item() for step in range(task.steps_an_epoch))
    done = train_cache(cache, task, replace(PLAN, epochs=6, lr=1e-2), reports.append)
    assert done.steps == 6 * 3
    assert [report["epoch"] for report in reports] == list(range(1, 7))
    assert sum(task.loss(cache, step).item() for step in range(task.steps_an_epoch)) < before
    assert not torch.allclose(cache.keys, few.keys)
    torch.testing.assert_close(cache.prompts.detach(), few.prompts)
    assert task.validate(cache).r1 in [report["validation_r1"] for report in reports]


def test_gamma_turns_to_the_modality_that_tells_classes_apart() -> None:
    few = few_shots(noise=0.1)
    centres = functional.normalize(few.keys.mean(dim=1), dim=1)
    noisy_keys = few._replace(keys=unit_rows(N_CLASSES, SHOTS, DIM, seed=20).float(), prompts=centres)
    gammas = []
    for data in (few, noisy_keys):
        torch.manual_seed(0)
        cache = ClassCache(N_CLASSES, SHOTS, DIM, 1.0, learns=True, fusion=Fusion(DIM, None))
        task = ClassTask(data, 1.0, 12, 0)
        task.fill(cache)
        train_cache(cache, task, replace(PLAN, epochs=10))
        assert cache.fusion is not None
        gammas.append(cache.fusion.gamma.item())
    assert gammas[0] > 0.5 > gammas[1]


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_base(tiny_base(), "cpu")


def class_prompts(split: str, n_each: int) -> Collection:
    """Three classes of the embedded objects."""
    collection = load_scenes("scenes-objects", split)
    assert collection.labels is not None
    rows = [np.flatnonzero(collection.labels == label)[:n_each] for label in (0, 13, 38)]
    return select_images(collection, np.concatenate(rows))


def test_shots_are_balanced_and_fewer_are_the_first_of_more() -> None:
    collection = class_prompts("train", 6)
    four, two = draw_shots(collection, 4, seed=1), draw_shots(collection, 2, seed=1)
    np.testing.assert_array_equal(four[:, :2], two)
    caption_of = dict(collection.positives.tolist())
    assert [[caption_of[image] for image in row] for row in four] == [[0] * 4, [1] * 4, [2] * 4]
    assert len(np.unique(four)) == 12
    assert not np.array_equal(four, draw_shots(collection, 4, seed=2))
    with pytest.raises(InputError, match=r"6 images of 'A picture of .*shots=6"):
        draw_shots(collection, 7, seed=1)


def test_crops_are_within_the_picture_and_as_large_as_published() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        left, top, width, height = draw_crop(200, 150, rng)
        assert 0 <= left <= 200 - width
        assert 0 <= top <= 150 - height
        assert width * height >= 0.49 * 200 * 150
        assert 0.74 < width / height < 1.35
    assert draw_crop(500, 20, rng) == (0, 0, 500, 20)


def test_views_are_an_images_own_and_keys_their_mean(tiny: Backbone) -> None:
    images = load_scenes("scenes", "train").images[:2]
    views = encode_views(Frozen(tiny), images, seed=0, n_views=3)
    torch.testing.assert_close(views, encode_views(Frozen(tiny), images, seed=0, n_views=3), rtol=0, atol=0)
    whole = tiny.embed_pixels(tiny.pixels([image.decode() for image in images])).detach()
    alike = functional.cosine_similarity(views, whole, dim=2)
    other = functional.cosine_similarity(views, whole.flip(0), dim=2)
    assert float(alike.max()) < 0.9999
    assert float(alike.mean()) > float(other.mean())
    expected = views.numpy().mean(axis=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(make_keys(views).numpy(), expected, atol=1e-6)


def pair_data(tiny: Backbone) -> Pairs:
    """Six scenes with drawn vectors, three of them in the cache."""
    examples = Examples(load_scenes("scenes", "train").head(6), tiny)
    n_captions = len(examples.collection.captions)
    images, captions = unit_rows(6, DIM, seed=30).float(), unit_rows(n_captions, DIM, seed=31).float()
    cached = np.array([(row, examples.captions_of[row][0]) for row in (1, 3, 4)])
    return Pairs(examples, images, captions, cached, examples, images, captions)


def test_a_pair_does_not_see_itself_while_it_learns(tiny: Backbone) -> None:
    pairs = pair_data(tiny)
    cache, task = PairCache(3, DIM, learns=True), PairTask(pairs, 20.0, 6, seed=0)
    task.fill(cache)
    torch.testing.assert_close(cache.image_keys.detach(), pairs.images[[1, 3, 4]])
    cache.alpha, cache.tau = 1.0, 1e-3  # the nearest entry alone
    loss = task.loss(cache, 0)
    batch = task._sampler.batch(0)
    moved = []
    for image, caption in zip(batch.images, batch.captions, strict=True):
        rows = [row for row, (cached, _) in enumerate(pairs.cached) if cached != image]
        sides = []
        for query, keys, values in (
            (pairs.images[image], cache.images, cache.texts),
            (pairs.captions[caption], cache.texts, cache.images),
        ):
            nearest = max(rows, key=lambda row, q=query, k=keys: float(k[row] @ q))
            sides.append(functional.normalize(query + values[nearest].detach(), dim=0))
        moved.append(sides)
    images, texts = (torch.stack(side) for side in zip(*moved, strict=True))
    assert loss.item() == pytest.approx(float(match_pairs(20.0 * images @ texts.T, batch.also_true)), rel=1e-4)


def test_pairs_are_searched_by_recall_and_an_idle_cache_is_the_base(tiny: Backbone) -> None:
    pairs = pair_data(tiny)
    cache, task = PairCache(3, DIM, learns=False), PairTask(pairs, 20.0, 6, seed=0)
    task.fill(cache)
    grids = {"alpha": (0.0, 0.5, 1.0), "tau": (0.05, 0.5)}
    task.search(cache, {**grids, "alpha": (0.0,)})
    assert task.validate(cache).r1 == task.validate_base()
    found = []
    for cache.alpha in grids["alpha"]:
        for cache.tau in grids["tau"]:
            found.append(((cache.alpha, cache.tau), task.validate(cache).r1))
    task.search(cache, grids)
    assert (cache.alpha, cache.tau) == max(found, key=lambda one: one[1])[0]


def fit(recipe: str, output: Path, args: Mapping[str, str], form: str) -> tuple[FitContext, Cached]:
    """A small fit, and the submission that it left."""
    module, model = (importlib.import_module(f"submissions.{recipe}.{part}") for part in ("fit", "model"))
    parts = [
        class_prompts(split, 3) if form == "classes" else load_scenes("scenes", split) for split in ("train", "val")
    ]
    train, validation = parts[0].head(12), parts[1].head(9)
    context = make_context(output, {name: {**ARGS, **args}[name] for name in module.ARGS}, None, train, validation)
    facts = module.fit(context)
    loaded = model.load(LoadContext(output, "cpu", "float32", {}, offline=True))
    assert facts.validation_r1 == pytest.approx(recall_at_1(loaded, Examples(validation, loaded)))
    n_learnt, n_stored = (
        sum(tensor.numel() for tensor in load_file(output / name).values()) for name in (WEIGHTS_FILE, STORED_FILE)
    )
    assert (facts.trainable, facts.added) == (n_learnt, n_learnt + n_stored)
    assert count(dict(loaded.module.named_parameters())) == facts.total + facts.added
    return context, loaded


@pytest.mark.parametrize("form", ["classes", "pairs"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_fit_writes_the_cache_that_it_was_chosen_with(
    recipe: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_fitting, "VIEWS", 2)
    context, loaded = fit(recipe, tmp_path / "fitted", {}, form)
    dim = 256
    keys = {"classes": (3, 2, dim), "pairs": (5, dim)}[form]
    learnt = {name.removeprefix("cache."): t for name, t in load_file(context.output / WEIGHTS_FILE).items()}
    fixed = {name.removeprefix("cache."): t for name, t in load_file(context.output / STORED_FILE).items()}
    if form == "classes":
        assert {**learnt, **fixed}["keys"].shape == keys
        assert set(fixed) == {"prompts"} | ({"keys"} if recipe == "tip_adapter" else set())
    else:
        assert set(fixed) == {"images", "texts"}
        assert fixed["images"].shape == keys
    assert bool(learnt) == (recipe != "tip_adapter")
    assert ("fusion.gamma_logit" in learnt) == (recipe == "xmadapter")
    pictures = [context.train.images[i].decode() for i in range(2)]
    pixels = loaded.pixels(pictures).requires_grad_()
    vectors = loaded.embed_pixels(pixels)
    np.testing.assert_allclose(vectors.detach().numpy(), loaded.encode_images(pictures), rtol=1e-4, atol=1e-4)
    vectors.square()[:, :dim].sum().backward() if form == "pairs" else vectors[:, dim:-1].sum().backward()
    assert pixels.grad is not None
    assert bool(pixels.grad.isfinite().all())
    if form == "classes":
        assert float(pixels.grad.abs().max()) > 0


@pytest.mark.parametrize(
    ("form", "last", "module", "done"),
    [("classes", 3, cache_fitting, "encode_views"), ("pairs", 2, frozen, "embed_captions")],
    ids=["classes", "pairs"],
)
def test_a_fit_that_was_killed_computes_nothing_twice_and_ends_with_the_same_weights(
    form: str, last: int, module: ModuleType, done: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_fitting, "VIEWS", 1)
    whole, _ = fit("tip_adapter_f", tmp_path / "whole", {}, form)
    dies, left = Deadly(last), Kept()
    with pytest.raises(Killed):
        fit_f(replace(whole, output=tmp_path / "cut", checkpoint=dies))
    left.states = dies.states[-1:]
    calls = record_calls(module, done, monkeypatch)
    (tmp_path / "resumed").mkdir()
    fit_f(replace(whole, output=tmp_path / "resumed", checkpoint=left))
    assert len(calls) == {"classes": 0, "pairs": 1}[form]  # the training's captions are left to do
    weights = [(tmp_path / name / WEIGHTS_FILE).read_bytes() for name in ("whole", "resumed")]
    assert weights[0] == weights[1]


def record_calls(module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The results of a function, as `module` calls it from now on."""
    calls, function = [], getattr(module, name)

    def call(*args: Any) -> object:
        calls.append(function(*args))
        return calls[-1]

    monkeypatch.setattr(module, name, call)
    return calls


def test_a_fixed_gamma_does_not_learn_and_given_knobs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_fitting, "VIEWS", 1)
    context, loaded = fit("xmadapter", tmp_path / "fitted", {"gamma": "1", "alpha": "1.17", "beta": "2"}, "classes")
    assert "cache.fusion.gamma_logit" not in load_file(context.output / WEIGHTS_FILE)
    assert (loaded.cache.alpha, getattr(loaded.cache, "beta", None)) == (1.17, 2.0)


def test_a_folder_without_its_cache_is_refused(tmp_path: Path) -> None:
    fit("tip_adapter", tmp_path / "fitted", {"alpha": "1", "tau": "0.1"}, "pairs")
    (tmp_path / "fitted" / STORED_FILE).unlink()
    model = importlib.import_module("submissions.tip_adapter.model")
    with pytest.raises(InputError, match=r"stored\.safetensors is missing"):
        model.load(LoadContext(tmp_path / "fitted", "cpu", "float32", {}, offline=True))


def test_shots_are_not_what_choices_are_made_on(tiny: Backbone, tmp_path: Path) -> None:
    context = replace(make_context(tmp_path, ARGS, None, class_prompts("train", 4)), validation=None)
    rows = draw_shots(context.train, 2, context.seed)
    chosen = cache_fitting._choose_validation(context, rows)
    shots = {context.train.images[i].id for i in rows.flat}
    assert {image.id for image in chosen.images} == {image.id for image in context.train.images} - shots
    everything = draw_shots(context.train, 4, context.seed)
    with pytest.raises(InputError, match="Set fewer shots"):
        cache_fitting._choose_validation(context, everything)


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [("gamma", "1.5", "classes"), ("hard", "maybe", "classes"), ("tau", "0", "pairs"), ("shots", "0", "classes")],
)
def test_arguments_out_of_range_are_named(tmp_path: Path, name: str, text: str, form: str) -> None:
    with pytest.raises(UsageError, match=f"--recipe-arg {name} is '{text}'"):
        fit("xmadapter", tmp_path / "fitted", {name: text}, form)
