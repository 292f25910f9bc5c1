"""Adversarial recipes: their inner searches against naive references, their losses, and a whole fit of each."""

from __future__ import annotations

import importlib
from itertools import product
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from fitting import make_context, tiny_base
from safetensors.torch import load_file
from torch.nn import functional

from bench.data.scenes import load_scenes
from bench.errors import UsageError
from bench.types import Collection, LoadContext
from submissions.backbones.backbone import Backbone, count, trainable
from submissions.backbones.examples import Batch, Examples, Sampler
from submissions.backbones.fitted import WEIGHTS_FILE, load_base
from submissions.backbones.open_clip_encoder import OpenClipEncoder
from submissions.backbones.perturb import (
    CHARACTERS,
    PixelSearch,
    TextSearch,
    edit,
    n_slots,
    perturb_pixels,
    perturb_texts,
    squared_distance,
)
from submissions.backbones.retrieval import Student, contrastive, recall_at_1
from submissions.fare import fit as fare
from submissions.leaf import fit as leaf
from submissions.mat import fit as mat
from submissions.tecoa import fit as tecoa

RECIPES = ("fare", "tecoa", "leaf", "mat")
QUICK = {"eps": "8", "steps": "2", "step_size": "3", "rho": "4", "k": "1"}


def few_scenes() -> Collection:
    return load_scenes("scenes", "train").head(8)


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_base(tiny_base(), "cpu")


@pytest.fixture(scope="module")
def examples(tiny: Backbone) -> Examples:
    return Examples(few_scenes(), tiny)


def one_batch(examples: Examples, size: int = 4) -> Batch:
    """The same at every call, with a fresh rng."""
    return Sampler(examples, size, seed=0).batch(0)


def naive_pgd(x: np.ndarray, peak: np.ndarray, search: PixelSearch, start: np.ndarray) -> np.ndarray:
    """RobustVLM's update written on the perturbation, value by value, for the loss -sum (x + delta - peak)^2."""
    result = x.copy()
    for place in np.ndindex(x.shape):
        delta, velocity = min(max(x[place] + start[place], 0), 1) - x[place], 0.0
        for _ in range(search.steps):
            gradient = np.sign(-2 * (x[place] + delta - peak[place]))
            velocity = np.sign(0.9 * velocity + gradient)
            delta = min(max(delta + search.step_size * velocity, -search.eps), search.eps)
            delta = min(max(x[place] + delta, 0), 1) - x[place]
        result[place] = x[place] + delta
    return result


def test_pixels_take_the_published_steps() -> None:
    rng = np.random.default_rng(0)
    x, peak = rng.random((2, 3, 4, 5)), rng.uniform(-0.2, 1.2, (2, 3, 4, 5))
    search = PixelSearch(eps=0.1, steps=7, step_size=0.03)
    start = 0.1 * (2 * np.random.default_rng(1).random(x.shape, dtype=np.float32).astype(np.float64) - 1)

    def loss(pixels: torch.Tensor) -> torch.Tensor:
        return -(pixels - torch.from_numpy(peak)).square().sum()

    moved = perturb_pixels(loss, torch.from_numpy(x), search, np.random.default_rng(1))
    np.testing.assert_allclose(moved.numpy(), naive_pgd(x, peak, search, start), atol=1e-7)


def test_pixels_stay_within_the_budget_and_do_more_harm_than_one_step(tiny: Backbone, examples: Examples) -> None:
    pixels = one_batch(examples).pixels
    targets = tiny.embed_pixels(pixels)

    def loss(changed: torch.Tensor) -> torch.Tensor:
        return squared_distance(tiny.embed_pixels(changed), targets).mean()

    eps = 4 / 255
    searches = {"drawn": (0, eps), "one step": (1, eps), "six steps": (6, eps / 3)}
    moved = {
        name: perturb_pixels(loss, pixels, PixelSearch(eps, steps, size), np.random.default_rng(0))
        for name, (steps, size) in searches.items()
    }
    harms = {name: float(loss(changed)) for name, changed in moved.items()}
    assert harms["drawn"] < harms["one step"] < harms["six steps"]
    assert all(parameter.grad is None for parameter in tiny.module.parameters())
    for changed in moved.values():
        assert float((changed - pixels).abs().max()) <= eps + 1e-7
        assert 0 <= float(changed.min()) <= float(changed.max()) <= 1


def levenshtein(one: str, other: str) -> int:
    """The textbook table."""
    table = np.zeros((len(one) + 1, len(other) + 1), dtype=int)
    table[:, 0], table[0] = np.arange(len(one) + 1), np.arange(len(other) + 1)
    for i, j in product(range(1, len(one) + 1), range(1, len(other) + 1)):
        changed = table[i - 1, j - 1] + (one[i - 1] != other[j - 1])
        table[i, j] = min(changed, table[i - 1, j] + 1, table[i, j - 1] + 1)
    return int(table[-1, -1])


def test_edits_are_all_texts_one_character_away() -> None:
    alphabet, text = "ab ", "ab a"
    found = {edit(text, slot, character) for slot in range(n_slots(text)) for character in ["", *alphabet]}
    lengths = range(len(text) - 1, len(text) + 2)
    strings = {"".join(letters) for n in lengths for letters in product(alphabet, repeat=n)}
    assert found == {string for string in strings if levenshtein(text, string) <= 1}


def test_text_search_is_exhaustive_where_the_budget_allows(tiny: Backbone) -> None:
    texts = ["a red cat", "two dogs"]
    targets = tiny.embed_texts(texts)

    def harm(vectors: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
        return squared_distance(vectors, targets[owners])

    found = perturb_texts(tiny.embed_texts, harm, texts, TextSearch(k=1, rho=10_000), np.random.default_rng(0))
    for owner, text in enumerate(texts):

        def harms_of(candidates: list[str], owner: int = owner) -> list[float]:
            return harm(tiny.embed_texts(candidates), torch.full((len(candidates),), owner)).tolist()

        slot = int(np.argmax(harms_of([edit(text, slot, " ") for slot in range(n_slots(text))])))
        at_slot = harms_of([edit(text, slot, character) for character in CHARACTERS])
        everywhere = harms_of([edit(text, slot, c) for slot in range(n_slots(text)) for c in CHARACTERS])
        (harm_found,) = harms_of([found[owner]])
        assert harm_found == pytest.approx(max(at_slot), rel=1e-4)
        assert harm_found > np.median(everywhere)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_text_search_keeps_its_budget_and_beats_chance(tiny: Backbone, examples: Examples, k: int) -> None:
    texts = one_batch(examples).texts
    targets = tiny.embed_texts(texts)

    def harm(vectors: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
        return squared_distance(vectors, targets[owners])

    found, random = (
        perturb_texts(tiny.embed_texts, harm, texts, TextSearch(k, rho), np.random.default_rng(0)) for rho in (20, 1)
    )
    distances = [levenshtein(text, changed) for text, changed in zip(texts, found, strict=True)]
    assert max(distances) <= k
    if k:
        found_harm, random_harm = (squared_distance(tiny.embed_texts(t), targets).mean() for t in (found, random))
        assert found_harm > 2 * random_harm


def test_fare_and_leaf_cost_the_base_nothing_without_a_budget(tiny: Backbone, examples: Examples) -> None:
    student = Student(tiny, examples)
    for objective in (
        fare.make_objective(tiny, PixelSearch(0, 2, 1 / 255)),
        leaf.make_objective(tiny, TextSearch(k=0, rho=5)),
    ):
        assert float(objective(student, one_batch(examples))) == pytest.approx(0, abs=1e-9)


def test_tecoa_is_cross_entropy_over_captions_that_are_not_true_too() -> None:
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(2, 4, 6)) + 3
    also_true = np.zeros((4, 4), dtype=bool)
    also_true[0, 2] = also_true[3, 1] = True
    expected = []
    for i, image in enumerate(images):
        cosines = [float(image @ text) / np.linalg.norm(image) / np.linalg.norm(text) for text in texts]
        rivals = [np.exp(100 * (cosines[j] - cosines[i])) for j in range(4) if not also_true[i, j]]
        expected.append(np.log(np.sum(rivals)))
    loss = tecoa.matching_loss(torch.from_numpy(images), torch.from_numpy(texts), torch.from_numpy(also_true))
    assert float(loss) == pytest.approx(np.mean(expected))


def test_mat_without_a_budget_is_the_clean_loss_and_with_one_exceeds_it(tiny: Backbone, examples: Examples) -> None:
    student, batch = Student(tiny, examples), one_batch(examples)
    images, texts = tiny.embed_pixels(batch.pixels), tiny.embed_texts(batch.texts)
    clean = float(contrastive(images, texts, tiny.log_scale, batch.also_true))
    still = mat.make_objective(PixelSearch(0, 1, 0), TextSearch(0, 1))(student, one_batch(examples))
    only_pixels, only_texts = PixelSearch(8 / 255, 3, 3 / 255), TextSearch(1, 8)
    assert float(still) == pytest.approx(clean, rel=1e-5)
    for searches in ((only_pixels, TextSearch(0, 1)), (PixelSearch(0, 1, 0), only_texts)):
        assert float(mat.make_objective(*searches)(student, one_batch(examples))) > clean


def test_mat_drives_captions_away_from_their_own_images(tiny: Backbone, examples: Examples) -> None:
    batch = one_batch(examples)
    images = tiny.embed_pixels(batch.pixels)
    changed = mat.drive_away(tiny, batch, images, TextSearch(1, 20))
    before, after = (functional.cosine_similarity(tiny.embed_texts(t), images) for t in (batch.texts, changed))
    assert bool((after < before).all())


def adversarial_loss(recipe: str, base: Backbone, learnt: Backbone, examples: Examples) -> float:
    """Of one batch, perturbed against `learnt`."""
    pixels, texts = PixelSearch.told(QUICK), TextSearch.told(QUICK)
    objective = {
        "fare": fare.make_objective(base, pixels),
        "tecoa": tecoa.make_objective(pixels),
        "leaf": leaf.make_objective(base, texts),
        "mat": mat.make_objective(pixels, texts),
    }[recipe]
    return float(objective(Student(learnt, examples), one_batch(examples, 8)))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_fit_lowers_the_adversarial_loss_and_changes_its_tower_alone(
    recipe: str, tmp_path: Path, tiny: Backbone, examples: Examples
) -> None:
    module, model = (importlib.import_module(f"submissions.{recipe}.{part}") for part in ("fit", "model"))
    args = {name: QUICK.get(name, value) for name, value in module.ARGS.items()} | {"lr": "2e-4", "batch": "8"}
    context = make_context(tmp_path / recipe, args, train=few_scenes(), epochs=4)
    facts = module.fit(context)
    loaded = model.load(LoadContext(context.output, "cpu", "float32", {}, offline=True))

    towers = {"fare": "i", "tecoa": "i", "leaf": "t", "mat": "it"}[recipe]
    stems = (tiny.image.stems if "i" in towers else ()) + (tiny.text.stems if "t" in towers else ())
    before, after = dict(tiny.module.named_parameters()), dict(loaded.module.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= set(load_file(context.output / WEIGHTS_FILE)) == {n for n in before if n.startswith(stems)}
    assert len(changed) > 0.9 * sum(name.startswith(stems) for name in before)
    assert "logit_scale" not in changed
    assert (facts.added, facts.steps) == (0, 4)
    assert adversarial_loss(recipe, tiny, loaded, examples) < adversarial_loss(recipe, tiny, tiny, examples)
    assert context.validation is not None
    assert facts.validation_r1 == recall_at_1(loaded, Examples(context.validation, loaded))


def test_perturbations_follow_from_the_batch_alone(tiny: Backbone, examples: Examples) -> None:
    objective, losses = mat.make_objective(PixelSearch.told(QUICK), TextSearch.told(QUICK)), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        losses.append(float(objective(Student(tiny, examples), one_batch(examples))))
    assert losses[0] == losses[1]


def test_what_learns_in_vit_b_32_are_its_towers() -> None:
    with torch.device("meta"):
        vision = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
        model = open_clip.CLIP(512, vision, {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8})
    backbone = OpenClipEncoder(model, lambda image: torch.empty(3), lambda texts: texts, "meta", "float32")
    counts = {}
    for recipe in RECIPES:
        attach = importlib.import_module(f"submissions.{recipe}.model").attach
        counts[recipe] = count(trainable(attach(backbone, {}).module))
    towers = 151_277_313 - 1  # all of CLIP but the factor on cosines
    assert counts["mat"] == towers
    assert counts["fare"] == counts["tecoa"] == 87_849_216
    assert counts["leaf"] == towers - 87_849_216


@pytest.mark.parametrize(("name", "text"), [("rho", "0"), ("k", "-1"), ("eps", "two"), ("steps", "1.5")])
def test_arguments_out_of_range_are_named(tmp_path: Path, name: str, text: str) -> None:
    context = make_context(tmp_path, {**mat.ARGS, name: text})
    with pytest.raises(UsageError, match=f"--recipe-arg {name} is '{text}'"):
        mat.fit(context)
