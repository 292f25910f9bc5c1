"""Attacked items of a collection: made by the attacks of `shifts` against one submission, in a worker of its own, and
brought back inside the budget here. What decides a batch is its items, the plan and the victim, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from bench.aim import Aim, choose_pairs
from bench.examples import NO_IMAGES, Batch, Examples, Role, folder_name, join, make_examples, slug_of
from bench.records import Objective, digest_of
from bench.second import Readings
from bench.shifted import Canvases, source_digest
from bench.submission import Submission
from bench.types import Collection, Stage
from bench.victim import Victim
from bench.worker.host import Worker, WorkerSettings
from shifts.attacks.budget import clip_pixels, enforce_pixels, enforce_text, find_broken, to_levels, to_pixels
from shifts.attacks.catalogue import STEPS, Attack
from shifts.attacks.goal import Goal, Logits, rival_levels
from shifts.attacks.rerank import PoolGoal, pool_levels
from shifts.seeding import sample_rng

CAPTIONS_A_BATCH = 64
_VERSION = 1
Done = Callable[[int], None]


@dataclass(frozen=True)
class Plan:
    """An attack within a budget, and what its items are in the retrieval: threat models share examples by role.

    Args:
        objective: what it is after, of what `stage` asks for.
        rerank_k: how many items the victim's second stage orders; None if it has none.
    """

    attack: Attack
    budget: int
    role: Role
    stage: Stage | Literal[""]
    seed: int
    steps: int = STEPS
    objective: Objective = "retrieval"
    rerank_k: int | None = None

    @property
    def slug(self) -> str:
        """What its examples are called."""
        return slug_of(self.attack.id(self.budget), self.role, self.stage, self.seed)

    @property
    def identity(self) -> list[object]:
        """What, beside items and victim, decides the examples."""
        two_stages = [] if self.rerank_k is None else [self.rerank_k, self.objective]
        asked = [self.attack.name, self.attack.version, self.budget, self.role, self.stage, self.seed, self.steps]
        return [*asked, candidate_source(self.attack), *two_stages]


class Sides(NamedTuple):
    """Unit vectors of a collection's clean items, (n_images, dim) and (n_captions, dim) float32."""

    images: Float[Tensor, "n_images dim"]
    texts: Float[Tensor, "n_captions dim"]


def candidate_source(attack: Attack) -> str:
    """Where an attack's replacements for words come from on this machine; "" of one that replaces none."""
    if attack.modality == "image" or attack.edit_unit != "words":
        return ""
    from shifts.attacks.candidates import source

    return source()


class Crafter:
    """Makes and keeps the attacked items of one submission's run; closes its worker when it is closed."""

    def __init__(
        self, submission: Submission, settings: WorkerSettings, batch_size: int, folder: Path, surroundings: object
    ) -> None:
        """`folder` takes the examples; `surroundings` is what else decides them, such as library versions.

        Whatever a submission is scored in, it is attacked in float32.
        """
        self._submission, self._batch_size = submission, batch_size
        self._settings = replace(settings, dtype="float32")
        self._folder, self._surroundings = folder, surroundings
        self._worker: Worker | None = None
        self._victim: Victim | None = None

    @property
    def victim(self) -> Victim:
        """The submission in the worker that is attacked, started when first needed.

        Raises:
            SubmissionError: it cannot be loaded.
        """
        if self._victim is None:
            self._worker = Worker(self._submission, self._settings)
            self._victim = Victim(self._worker, self._batch_size)
        return self._victim

    def close(self) -> None:
        """Ends the worker, if there is one; the next attack starts a fresh one."""
        if self._worker is not None:
            self._worker.close()
            self._worker = self._victim = None

    def crops(self, collection: Collection) -> Examples:
        """The canvas images as the victim sees them: at its own size and in whole levels, not attacked."""
        canvas = Canvases()

        def crop(items: np.ndarray, number: int) -> Batch:
            pixels = [canvas(collection.images[item]) for item in items]
            if self.victim.differentiable:
                return Batch(items, images=to_levels(self.victim.pixels(pixels)))
            return Batch(items, images=np.stack(pixels))

        size = self._batch_size
        if self.victim.differentiable:
            batches = _chunks(np.arange(len(collection.images)), size)
        else:
            batches = _by_shape([canvas(image).shape for image in collection.images], size)
        return self._make("crops", ["crops"], collection, batches, crop, lambda count: None)

    def attack(self, plan: Plan, collection: Collection, crops: Examples | None, aim: Aim, done: Done) -> Examples:
        """All items of `collection` that the plan changes, attacked.

        Args:
            crops: what image attacks start from, as many as the collection has images.
            aim: what the plan's attack is after.
            done: is told how many items are finished.

        Raises:
            SubmissionError: the victim failed.
            MissingError: a package that the attack needs is missing.
        """
        task = _Task(plan, collection, crops, aim)
        make = {"image": self._image_batch, "text": self._text_batch, "joint": self._joint_batch}[plan.attack.modality]

        def attack(items: np.ndarray, number: int) -> Batch:
            self.victim.forget_texts()  # in which company a text was encoded decides its last bits
            return make(task, items, task.rng(items))

        if plan.attack.modality == "text":
            batches = _chunks(np.arange(len(collection.captions)), CAPTIONS_A_BATCH)
        else:
            batches = _by_shape(task.shapes, self._batch_size)
        started_from = crops.sha256 if crops else ""
        return self._make(plan.slug, [*plan.identity, started_from], collection, batches, attack, done)

    def attack_queries(
        self, plan: Plan, crops: UInt8[np.ndarray, "n height width 3"], goal: Goal
    ) -> UInt8[np.ndarray, "n height width 3"]:
        """Images that ask, attacked for an examination: in batches, nothing is kept."""
        made, aim = [], Aim(goal)
        for rows in _chunks(np.arange(len(crops)), self._batch_size):
            rng = sample_rng(plan.seed, plan.attack.name, plan.attack.version, plan.budget, f"examined {rows.tolist()}")
            attacked = _attack_images(plan, crops[rows], aim.logits(self.victim, rows), rng)
            made.append(enforce_pixels(attacked, crops[rows], plan.budget))
        return np.concatenate(made)

    def identity(self, collection: Collection) -> list[object]:
        """What, beside a plan, decides the examples of a collection."""
        loaded = self.victim.loaded
        facts = [loaded.weights_sha256, loaded.versions, loaded.device_name, self._settings.dtype, self._batch_size]
        return [_VERSION, self._submission.fingerprint, *facts, self._surroundings, source_digest(collection)]

    def _image_batch(self, task: _Task, items: np.ndarray, rng: np.random.Generator) -> Batch:
        attacked = _attack_images(task.plan, task.pixels(items), task.aim.logits(self.victim, items), rng)
        return self._bounded(task, items, attacked)

    def _text_batch(self, task: _Task, items: np.ndarray, rng: np.random.Generator) -> Batch:
        attack, budget = task.plan.attack, task.plan.budget
        originals = [task.collection.captions[item] for item in items]
        attacked = attack.run(task.aim.losses(self.victim, items), originals, budget, rng)
        pairs = zip(attacked, originals, strict=True)
        return Batch(items, captions=items, texts=[enforce_text(*pair, budget, attack.edit_unit) for pair in pairs])

    def _joint_batch(self, task: _Task, items: np.ndarray, rng: np.random.Generator) -> Batch:
        captions, owners = _captions_of(task.collection, items)
        originals = [task.collection.captions[caption] for caption in captions]
        pixels, eps = to_pixels(task.pixels(items)), task.plan.budget / 255
        images, attacked = task.plan.attack.run(self.victim, pixels, originals, owners, eps, task.plan.steps, rng)
        texts = [enforce_text(*pair, 1, "words") for pair in zip(attacked, originals, strict=True)]
        return replace(self._bounded(task, items, images), captions=captions, texts=texts)

    @torch.no_grad()
    def _bounded(self, task: _Task, items: np.ndarray, attacked: Tensor) -> Batch:
        """An attack's images inside the budget, and the vectors that they would have if they were not rounded."""
        crops, budget = task.pixels(items), task.plan.budget
        return Batch(
            items,
            images=enforce_pixels(attacked, crops, budget),
            unrounded=self.victim.embed_pixels(clip_pixels(attacked, crops, budget)).numpy(),
            n_broken=int(find_broken(attacked).sum()),
        )

    def _make(
        self,
        slug: str,
        identity: Sequence[object],
        collection: Collection,
        batches: Sequence[np.ndarray],
        attack: Callable[[np.ndarray, int], Batch],
        done: Done,
    ) -> Examples:
        key = digest_of(identity, self.identity(collection))
        folder = self._folder / folder_name(collection.name, len(collection.images), slug)
        made = list(make_examples(folder, key, batches, attack, done))
        return join(made, [image.id for image in collection.images], collection.captions)


@dataclass(frozen=True, eq=False)
class _Task:
    """What all batches of a plan have in common."""

    plan: Plan
    collection: Collection
    crops: Examples | None
    aim: Aim

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [image.pixels.shape for image in self.crops.images] if self.crops else []

    def pixels(self, items: np.ndarray) -> UInt8[np.ndarray, "batch height width 3"]:
        return np.stack([self.crops.images[item].pixels for item in items]) if self.crops else NO_IMAGES

    def rng(self, items: np.ndarray) -> np.random.Generator:
        """The stream of one batch: of which items it is made decides, not its number."""
        plan = self.plan
        batch = f"{self.collection.name} {plan.role} {items.tolist()}"
        return sample_rng(plan.seed, plan.attack.name, plan.attack.version, plan.budget, batch)


def _attack_images(
    plan: Plan, crops: UInt8[np.ndarray, "batch height width 3"], logits: Logits, rng: np.random.Generator
) -> Float[Tensor, "batch 3 height width"]:
    attacked: Tensor = plan.attack.run(logits, to_pixels(crops), plan.budget / 255, plan.steps, rng)
    return attacked


def make_aim(plan: Plan, collection: Collection, sides: Sides, readings: Readings | None = None) -> Aim:
    """What the plan's attack is after, one row for each image (for each caption, if it changes captions).

    At the first stage of two, queries shall lose their own from the pool, not just from the first place.

    Args:
        sides: vectors of the clean items, those of the images as an attack on them would start.
        readings: of the same items by the second stage; None if it is left alone.
    """
    goal = make_goal(plan, collection, sides)
    if plan.rerank_k is None:
        return Aim(goal)
    first = PoolGoal(goal.others, goal.own, plan.rerank_k) if plan.role == "query" else goal
    if plan.objective == "retrieval" or readings is None:
        return Aim(first)
    attacked: Literal["images", "captions"] = "captions" if plan.attack.modality == "text" else "images"
    vectors = sides.texts if attacked == "captions" else sides.images
    pairs = choose_pairs(attacked, plan.role == "query", vectors @ goal.others.T, goal.own, plan.rerank_k, readings)
    return Aim(None if plan.objective == "reranking" else first, pairs)


def make_goal(plan: Plan, collection: Collection, sides: Sides) -> Goal:
    """What it is after at the first stage, one row for each image (for each caption, if it changes captions).

    Of a joint attack, which has its own objective, the goal as of queries.
    """
    own = torch.zeros((len(collection.images), len(collection.captions)), dtype=torch.bool)
    own[tuple(torch.from_numpy(collection.positives).T)] = True
    levels = rival_levels if plan.rerank_k is None else partial(pool_levels, k=plan.rerank_k)
    if plan.attack.modality == "text":
        rivals = None if plan.role == "query" else levels(sides.images @ sides.texts.T, own)
        return Goal(sides.images, own.T.contiguous(), rivals)
    if plan.role == "distractor":
        everyone = rival_levels(sides.texts @ sides.images.T, torch.zeros_like(own.T))
        return Goal(sides.texts, own, everyone, attract=True)
    rivals = levels(sides.texts @ sides.images.T, own.T) if plan.role == "gallery" else None
    return Goal(sides.texts, own, rivals)


def _captions_of(collection: Collection, items: np.ndarray) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """The captions that belong to these images, and whose each is, as a place in `items`.

    A caption belongs to the first image that it goes with: it is attacked once.
    """
    pairs = collection.positives[np.lexsort(collection.positives.T)]
    captions, first = np.unique(pairs[:, 1], return_index=True)
    images = pairs[first, 0]
    places = {item: place for place, item in enumerate(items.tolist())}
    chosen = np.isin(images, items)
    return captions[chosen], np.array([places[image] for image in images[chosen].tolist()], np.int64)


def _chunks(items: np.ndarray, size: int) -> list[np.ndarray]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _by_shape(shapes: Sequence[tuple[int, ...]], size: int) -> list[np.ndarray]:
    """Items in batches of one shape, in their order."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for item, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(item)
    return [batch for members in groups.values() for batch in _chunks(np.array(members), size)]
