"""Knowledge-preserving tuning: its losses against naive ones, its batches, what is chosen by, and what is kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fitting import make_context, tiny_base
from safetensors.torch import load_file

from bench.data.scenes import load_scenes
from bench.errors import InputError, UsageError
from bench.types import Collection, FitContext, LoadContext
from submissions.backbones.backbone import Backbone
from submissions.backbones.examples import Batch, Examples
from submissions.backbones.fitted import load_base
from submissions.backbones.plan import Plan, make_optimizer
from submissions.backbones.retrieval import Student, recall_at_1
from submissions.knowledge_keep import fit as keep
from submissions.knowledge_keep.fit import Alternating, Objective, Penalties, Task, drift, normface, recall_among_images
from submissions.knowledge_keep.model import attach, load

N = 12


def objects(split: str, n: int = N) -> Collection:
    """Two images of each of a few classes."""
    whole = load_scenes("scenes-objects", split)
    assert whole.labels is not None
    rows = np.concatenate([np.flatnonzero(whole.labels == label)[:2] for label in range(n // 2)])
    return replace(
        whole,
        images=[whole.images[row] for row in rows],
        captions=[f"class {label}" for label in range(n // 2)],
        positives=np.stack([np.arange(n), np.arange(n) // 2], axis=1),
        labels=whole.labels[rows],
    )


@pytest.fixture(scope="module")
def base() -> Backbone:
    return load_base(tiny_base(), "cpu")


@pytest.fixture(scope="module")
def target(base: Backbone) -> Examples:
    return Examples(objects("train"), base)


@pytest.fixture(scope="module")
def generic(target: Examples) -> Examples:
    return target.beside(load_scenes("scenes", "train").head(6))


def batch_of(examples: Examples, images: list[int]) -> Batch:
    captions = np.array([examples.captions_of[image][0] for image in images])
    return Batch(np.array(images), captions, examples, np.random.Generator(np.random.Philox(0)))


def context_of(output: Path, args: dict[str, str] | None = None, generic: bool = True, **changes: object) -> FitContext:
    given = make_context(output, {**keep.ARGS, "batch": "4", **(args or {})}, None, objects("train"), objects("val", 6))
    known = {
        "generic": load_scenes("scenes", "train").head(6),
        "generic_validation": load_scenes("scenes", "val").head(5),
    }
    return replace(given, **(known if generic else {}), **changes)  # type: ignore[arg-type]


def test_normface_is_the_cross_entropy_of_sixteen_times_the_cosine() -> None:
    rng = np.random.Generator(np.random.Philox(1))
    vectors, classifier, classes = rng.normal(size=(3, 5)), rng.normal(size=(4, 5)), [2, 0, 3]
    losses = []
    for vector, right in zip(vectors, classes, strict=True):
        scores = [
            math.exp(16 * float(vector @ row) / math.sqrt(float(vector @ vector) * float(row @ row)))
            for row in classifier
        ]
        losses.append(-math.log(scores[right] / sum(scores)))
    found = normface(torch.from_numpy(vectors), torch.from_numpy(classifier), torch.tensor(classes))
    assert float(found) == pytest.approx(np.mean(losses))


def test_drift_counts_large_and_small_tensors_alike() -> None:
    before = {"a": torch.zeros(100), "b": torch.zeros(2, 1)}
    assert float(drift({"a": torch.full((100,), 2.0), "b": torch.tensor([[1.0], [3.0]])}, before)) == 4.0 + 5.0


@pytest.mark.parametrize("of_target", [True, False])
def test_the_loss_of_a_batch_is_its_kinds_and_the_drift(
    base: Backbone, target: Examples, generic: Examples, of_target: bool
) -> None:
    learner = attach(load_base(tiny_base(), "cpu"), {})
    objective = Objective(base, target, generic, Penalties(1000, 100))
    change = 0.01 * torch.randn(learner.module.visual.proj.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        learner.module.visual.proj += change
    batch = batch_of(target if of_target else generic, [4, 1, 5])
    found = float(objective(Student(learner, target), batch).detach())
    vectors, was = (
        backbone.encode_images([batch.examples.collection.images[i].decode() for i in (4, 1, 5)])
        for backbone in (learner, base)
    )
    vectors, was = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (vectors, was))
    rows = objective.classifier.detach().numpy()
    scores = 16 * vectors @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
    chosen = [scores[i, label] - np.log(np.exp(scores[i]).sum()) for i, label in enumerate((2, 0, 2))]
    kind = -np.mean(chosen) if of_target else 1000 * np.mean((vectors - was) ** 2)
    assert kind > 0.005
    assert found == pytest.approx(kind + 100 * float(change.square().mean()), rel=1e-3)


def test_the_penalty_pulls_every_weight_back(base: Backbone, target: Examples, generic: Examples) -> None:
    learner = attach(load_base(tiny_base(), "cpu"), {})
    weight = learner.module.visual.proj
    with torch.no_grad():
        weight += 0.5
    Objective(base, target, generic, Penalties(0, 100))(Student(learner, target), batch_of(generic, [0])).backward()
    torch.testing.assert_close(weight.grad, torch.full_like(weight, 2 * 100 * 0.5 / weight.numel()))


def test_naive_tuning_has_no_penalty(base: Backbone, target: Examples) -> None:
    learner = attach(load_base(tiny_base(), "cpu"), {})
    objective = Objective(base, target, None, Penalties(1000, 100_000))
    before = float(objective(Student(learner, target), batch_of(target, [0])).detach())
    with torch.no_grad():
        learner.module.visual.positional_embedding += 10
    assert 0 < float(objective(Student(learner, target), batch_of(target, [0])).detach()) < before + 32


def test_batches_alternate_and_an_epoch_is_a_pass_over_the_target(target: Examples, generic: Examples) -> None:
    sampler = Alternating(target, generic, 4, seed=0)
    batches = [sampler.batch(step) for step in range(sampler.steps_an_epoch)]
    assert [batch.examples is target for batch in batches] == [True, False] * 3
    seen = np.concatenate([batch.images for batch in batches[::2]])
    assert sorted(seen) == list(range(N))
    assert max(batch.images.max() for batch in batches[1::2]) < 6


def test_recall_among_images_leaves_the_image_itself_and_loners_out() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 3.0], [1.0, 0.02], [0.0, -1.0]])
    labels = np.array([0, 0, 1, 2, 0, 2])
    # 0 finds 4, 1 finds 4, 4 finds 0; 3 finds 2 and 5 finds 0, both of another class; 2 is alone in its class.
    assert recall_among_images(vectors, labels) == pytest.approx(100 * 3 / 5)
    with pytest.raises(InputError, match="no two validation images"):
        recall_among_images(vectors[:2], np.array([0, 1]))


def test_what_is_chosen_by_is_the_mean_of_both_collections(base: Backbone, target: Examples) -> None:
    known = load_scenes("scenes", "train").head(4), load_scenes("scenes", "val").head(20)
    naive = Task(Penalties(1, 1), None).validate(base, target)
    vectors = base.encode_images([image.decode() for image in target.collection.images])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T - 9 * np.eye(N)
    assert naive == pytest.approx(100 * np.mean(cosines.argmax(axis=1) // 2 == np.arange(N) // 2))
    image_text = recall_at_1(base, target.beside(known[1]))
    assert 0 < image_text < 100
    assert Task(Penalties(1, 1), known).validate(base, target) == pytest.approx((naive + image_text) / 2)


def test_the_classifier_learns_at_its_own_rate() -> None:
    model, own = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(3, 2))
    plan = Plan(epochs=1, batch=1, lr=1e-3, weight_decay=0, objective_lr=0.1)
    groups = make_optimizer({"a": model}, plan, {"b": own}).param_groups
    assert {id(part): group["top"] for group in groups for part in group["params"]} == {id(model): 1e-3, id(own): 0.1}


def test_a_fit_changes_the_image_tower_alone_and_keeps_no_classifier(tmp_path: Path) -> None:
    facts = keep.fit(context_of(tmp_path / "out"))
    assert facts.steps == 2 * N / 4
    tensors = load_file(tmp_path / "out" / "weights.safetensors")
    assert all(name.startswith("visual.") for name in tensors)
    assert facts.trainable == sum(tensor.numel() for tensor in tensors.values())
    fitted, was = load(LoadContext(tmp_path / "out", "cpu", "float32", {}, True)), load_base(tiny_base(), "cpu")
    few = load_scenes("scenes", "val").head(2)
    images = [image.decode() for image in few.images]
    assert np.abs(fitted.encode_images(images) - was.encode_images(images)).max() > 1e-5
    np.testing.assert_array_equal(fitted.encode_texts(few.captions), was.encode_texts(few.captions))


@pytest.mark.parametrize(
    ("args", "generic", "words"),
    [
        ({}, False, "give --generic DATASET"),
        ({"keep": "no"}, True, "leave --generic out"),
        ({"keep": "maybe"}, True, "expected yes or no"),
        ({"weights_weight": "-1"}, True, "weights_weight is '-1'"),
    ],
)
def test_what_does_not_go_together_is_explained(
    tmp_path: Path, args: dict[str, str], generic: bool, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        keep.fit(context_of(tmp_path / "out", args, generic))


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="images have no labels"):
        keep.fit(context_of(tmp_path / "out", train=load_scenes("scenes", "train").head(4)))


@pytest.mark.parametrize(("n_images", "batch"), [(100_000, 128), (8192, 128), (2160, 33), (20, 16)])
def test_few_images_make_small_batches(n_images: int, batch: int) -> None:
    assert keep.choose_batch(n_images) == batch
