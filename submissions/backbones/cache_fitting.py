"""How cache models are fitted: every vector is computed once, then keys are drawn, learn, and two numbers are searched.

Computing the vectors is almost all of the time, so they are what a checkpoint holds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, Protocol

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import InputError
from bench.types import Collection, FitContext, FitFacts, Image
from submissions.backbones.backbone import Backbone, count, trainable
from submissions.backbones.cache import (
    CLASSES,
    PAIRS,
    SEARCHED,
    Cached,
    ClassCache,
    PairCache,
    knobs_of,
    parse_knob,
)
from submissions.backbones.examples import (
    MOST_VALIDATED,
    Examples,
    Sampler,
    open_stream,
    select_images,
    split_collection,
)
from submissions.backbones.fitted import digest_of, load_base, write_fitted
from submissions.backbones.frozen import Frozen
from submissions.backbones.plan import Plan, cosine_rate, make_optimizer, parse_count
from submissions.backbones.retrieval import LARGEST_LOG_SCALE, recall_of
from submissions.backbones.training import read_state, write_state

PLAN = Plan(epochs=20, batch=256, lr=1e-3, weight_decay=0.01, warmup=0.0, betas=(0.9, 0.999))
ADAM_EPS = 1e-4
GAMMA_RATE = 100  # times the others': a scalar that one rate would leave where it begins
VIEWS, LEAST_AREA, MOST_RATIO = 10, 0.5, 4 / 3
GRIDS = {
    "beta": tuple(0.1 + 12.9 * step / 40 for step in range(40)),
    "alpha": tuple(0.1 + 12.9 * step / 20 for step in range(20)),
}
PAIR_GRIDS = {"alpha": (0.0, 0.1, 0.2, 0.5, 1.0, 2.0), "tau": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)}
SHOTS_STREAM, VIEWS_STREAM, VALIDATION_STREAM, PAIRS_STREAM = 3, 4, 5, 6
Attach = Callable[[Backbone, Mapping[str, str]], Cached]
Grids = Mapping[str, Sequence[float]]
Report = Callable[[dict[str, float]], None]


class FewShots(NamedTuple):
    """The vectors that a `ClassCache` is fitted to, all normalised.

    Args:
        views: of the training images under changes of crop, class by class, as many of each.
        keys: of the entries, as many as the images or fewer.
        prompts: of the classes.
        images: of the validation.
        labels: their classes.
    """

    views: Float[Tensor, "n_views n_images dim"]
    keys: Float[Tensor, "n_classes shots dim"]
    prompts: Float[Tensor, "n_classes dim"]
    images: Float[Tensor, "n dim"]
    labels: Int[Tensor, " n"]


class Pairs(NamedTuple):
    """The vectors that a `PairCache` is fitted to, all normalised.

    Args:
        train: what can be drawn from.
        images: of `train`.
        captions: of `train`.
        cached: rows (image, caption) of `train` that are entries.
        validation: what choices are made on.
        validation_images: its vectors.
        validation_captions: its vectors.
    """

    train: Examples
    images: Float[Tensor, "n_images dim"]
    captions: Float[Tensor, "n_captions dim"]
    cached: Int[np.ndarray, "n_pairs 2"]
    validation: Examples
    validation_images: Float[Tensor, "n dim"]
    validation_captions: Float[Tensor, "m dim"]


class Task(Protocol):
    """What a cache of one form is filled from, learns by and is chosen by."""

    steps_an_epoch: int

    def fill(self, cache: Any) -> None:
        """Sets keys and values."""

    def loss(self, cache: Any, step: int) -> Tensor:
        """Of one step's batch."""

    def validate(self, cache: Any) -> Validated:
        """On the validation images."""

    def validate_base(self) -> float:
        """The base's own mean of both directions' R@1 on them, in percent."""

    def search(self, cache: Any, grids: Grids) -> None:
        """Sets the cache's knobs to the best of the grids, the first of equals."""


class Validated(NamedTuple):
    """Percent, on the validation images.

    Args:
        choice: what choices are made on: accuracy (image-to-text R@1) over class prompts, `r1` over captions.
        r1: mean of both directions' R@1.
    """

    choice: float
    r1: float


class ClassTask:
    """Class prompts: entries' views are classified; alpha and beta are chosen by accuracy, as in the released code.

    Each epoch sees every training image under one of its views, which the released code draws anew.

    Args:
        few: vectors.
        scale: the base's factor on cosines.
        batch: images a step.
        seed: of the order.
        hard: whether losses are weighted by the disagreement of affinities.
    """

    def __init__(self, few: FewShots, scale: float, batch: int, seed: int, hard: bool = False) -> None:
        self._few, self._scale, self._batch, self._seed, self._hard = few, scale, batch, seed, hard
        n_classes, n_images = len(few.prompts), few.views.shape[1]
        self._classes = torch.arange(n_classes, device=few.prompts.device).repeat_interleave(n_images // n_classes)
        self.steps_an_epoch = math.ceil(n_images / batch)

    def fill(self, cache: ClassCache) -> None:
        with torch.no_grad():
            cache.keys.copy_(self._few.keys)
            cache.prompts.copy_(self._few.prompts)

    def loss(self, cache: ClassCache, step: int) -> Float[Tensor, ""]:
        epoch, place = divmod(step, self.steps_an_epoch)
        order = open_stream(self._seed, 0, epoch).permutation(len(self._classes))
        rows = torch.from_numpy(order[place * self._batch : (place + 1) * self._batch])
        images = self._few.views[epoch % len(self._few.views), rows]
        losses = functional.cross_entropy(cache.logits(images), self._classes[rows], reduction="none")
        return (losses * weigh_hard(cache.disagreement(images))).mean() if self._hard else losses.mean()

    @torch.no_grad()
    def validate(self, cache: ClassCache) -> Validated:
        return self._score(cache.logits(self._few.images))

    def validate_base(self) -> float:
        return self._score(self._zero_shot()).r1

    @torch.no_grad()
    def search(self, cache: ClassCache, grids: Grids) -> None:
        affinity, zero_shot = cache.affinity(self._few.images), self._zero_shot()
        best = -1.0
        for beta in grids["beta"]:
            evidence = torch.exp(beta * (affinity - 1)).sum(dim=2)
            for alpha in grids["alpha"]:
                found = torch.add(zero_shot, evidence, alpha=alpha).argmax(dim=1)
                accuracy = (found == self._few.labels).float().mean().item()
                if accuracy > best:
                    best, cache.alpha, cache.beta = accuracy, alpha, beta

    def _zero_shot(self) -> Float[Tensor, "n n_classes"]:
        return self._scale * self._few.images @ self._few.prompts.T

    def _score(self, logits: Float[Tensor, "n n_classes"]) -> Validated:
        """Of logits; a class without a validation image asks for none."""
        labels = self._few.labels
        i2t = (logits.argmax(dim=1) == labels).float().mean().item()
        asked = torch.unique(labels)
        t2i = (labels[logits.argmax(dim=0)[asked]] == asked).float().mean().item()
        return Validated(100 * i2t, 50 * (i2t + t2i))


class PairTask:
    """Captions: InfoNCE over the batch; alpha and tau are chosen by the mean of both directions' R@1.

    A training image that is in the cache would find itself there, at a distance of nothing, with its own caption: the
    loss would be small whatever the keys are. So an item's own entry is masked while it learns [inferred].

    Args:
        pairs: vectors.
        scale: the base's factor on cosines.
        batch: pairs a step.
        seed: of the batches.
        hard: whether losses are weighted by the disagreement of affinities.
    """

    def __init__(self, pairs: Pairs, scale: float, batch: int, seed: int, hard: bool = False) -> None:
        self._pairs, self._scale, self._hard = pairs, min(scale, math.exp(LARGEST_LOG_SCALE)), hard
        self._sampler = Sampler(pairs.train, batch, seed)
        self.steps_an_epoch = self._sampler.steps_an_epoch

    def fill(self, cache: PairCache) -> None:
        images, captions = (torch.from_numpy(column) for column in self._pairs.cached.T)
        with torch.no_grad():
            for keys in (cache.images, cache.image_keys):
                keys.copy_(self._pairs.images[images])
            for keys in (cache.texts, cache.text_keys):
                keys.copy_(self._pairs.captions[captions])

    def loss(self, cache: PairCache, step: int) -> Float[Tensor, ""]:
        batch = self._sampler.batch(step)
        images, texts = self._pairs.images[batch.images], self._pairs.captions[batch.captions]
        own = torch.from_numpy(batch.images[:, None] == self._pairs.cached[None, :, 0]).to(images.device)
        logits = self._scale * cache.of_images(images, own) @ cache.of_texts(texts, own).T
        losses = match_each(logits.masked_fill(batch.also_true.to(logits.device), -torch.inf))
        return (losses * weigh_hard(cache.disagreement(images, texts, own))).mean() if self._hard else losses.mean()

    @torch.no_grad()
    def validate(self, cache: PairCache) -> Validated:
        pairs = self._pairs
        images, texts = cache.of_images(pairs.validation_images), cache.of_texts(pairs.validation_captions)
        r1 = recall_of(images, texts, pairs.validation)
        return Validated(r1, r1)

    def validate_base(self) -> float:
        pairs = self._pairs
        return recall_of(pairs.validation_images, pairs.validation_captions, pairs.validation)

    def search(self, cache: PairCache, grids: Grids) -> None:
        best, chosen = -1.0, (cache.alpha, cache.tau)
        for cache.alpha, cache.tau in product(grids["alpha"], grids["tau"]):
            r1 = self.validate(cache).r1
            if r1 > best:
                best, chosen = r1, (cache.alpha, cache.tau)
        cache.alpha, cache.tau = chosen


def match_each(logits: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """Mean of both ways' cross-entropy of each pair, where the diagonal is the answer."""
    targets = torch.arange(len(logits), device=logits.device)
    ways = [functional.cross_entropy(way, targets, reduction="none") for way in (logits, logits.T)]
    return (ways[0] + ways[1]) / 2


def weigh_hard(disagreement: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Weights of mean 1, without gradient: what looks otherwise to images than to texts is hard, and counts more.

    Source: arXiv:2404.12588, section 3.3; the mean over entries and the scaling are [inferred].
    """
    gaps = disagreement.detach()
    return gaps / gaps.mean().clamp(min=1e-12)


@dataclass
class Trained:
    """What a training took."""

    steps: int = 0
    seconds: float = 0.0


def train_cache(
    cache: ClassCache | PairCache,
    task: Task,
    plan: Plan,
    report: Report = lambda figures: None,
    budget_s: float | None = None,
) -> Trained:
    """Trains what learns in a filled cache, and leaves the epoch that is best on the validation images.

    AdamW at 1e-3 with eps 1e-4, half a cosine, 20 epochs of batches of 256: the released code's, which chooses the
    epoch on the test images.

    Source: `main.py` of github.com/gaopengcuhk/Tip-Adapter.
    """
    parameters, done = trainable(cache), Trained()
    optimizer, steps = _make_optimizer(parameters, plan), plan.epochs * task.steps_an_epoch
    best, kept, losses = -1.0, {}, []
    while done.steps < steps and (budget_s is None or done.seconds < budget_s):
        started = time.monotonic()
        progress = max((done.steps + 1) / steps, done.seconds / budget_s if budget_s else 0.0)
        losses.append(_step(task.loss(cache, done.steps), optimizer, cosine_rate(progress, plan.warmup)))
        done.steps += 1
        done.seconds += time.monotonic() - started
        ended = budget_s is not None and done.seconds >= budget_s
        if done.steps % task.steps_an_epoch == 0 or ended:
            found = task.validate(cache)
            epoch = done.steps / task.steps_an_epoch
            loss = float(np.mean(losses))
            report({"epoch": epoch, "epochs": plan.epochs, "loss": loss, "validation_r1": found.r1})
            losses = []
            if found.choice > best:
                best, kept = found.choice, {name: tensor.detach().clone() for name, tensor in parameters.items()}
    with torch.no_grad():
        for name, tensor in kept.items():
            parameters[name].copy_(tensor)
    return done


def _make_optimizer(parameters: dict[str, nn.Parameter], plan: Plan) -> torch.optim.Optimizer:
    optimizer = make_optimizer(parameters, plan)
    for group in optimizer.param_groups:
        group["eps"] = ADAM_EPS
        group["top"] *= GAMMA_RATE if all(tensor.ndim == 0 for tensor in group["params"]) else 1
    return optimizer


def _step(loss: Tensor, optimizer: torch.optim.Optimizer, rate: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = group["top"] * rate
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def fit_cache(context: FitContext, attach: Attach, plan: Plan | None = None, hard: bool = False) -> FitFacts:
    """Fits a cache on the base, and writes it to `context.output`.

    Classes where every training image has one caption and the collection has labels, pairs otherwise. The two numbers
    are searched on the validation images before the training, which then runs at them in place of the values that the
    released code sets for each data set [inferred], and again after it. What it reports is the mean of both
    directions' R@1 in either form, also where it chooses by accuracy.

    Args:
        context: with a base.
        attach: builds an empty cache into it.
        plan: of the training; None where nothing learns.
        hard: whether losses are weighted by `weigh_hard`.

    Raises:
        InputError: there is no base, a class has fewer images than shots, or there is nothing to choose on.
        UsageError: an argument is not as it must be.
    """
    if context.base is None:
        raise InputError("this recipe needs a base: --base SUBMISSION.")
    plan = plan and plan.told(context)
    grids = parse_grids(context.args, is_class_prompts(context.train))
    torch.manual_seed(context.seed)
    base = load_base(context.base, context.device)
    base_sha256, n_base = digest_of(base.module), count(dict(base.module.named_parameters()))
    task, size = _make_task(context, base, plan, hard)
    backbone = attach(base, {**context.args, **size})
    task.fill(backbone.cache)
    base_r1 = task.validate_base()
    context.report({"epoch": 0, "epochs": plan.epochs if plan else 0, "validation_r1": base_r1})
    done = _fit_filled(backbone.cache, task, grids, plan, context)
    found = {name: repr(float(getattr(backbone.cache, name))) for name in knobs_of(backbone.cache)}
    n_trainable = count(trainable(backbone.module))
    write_fitted(context.output, context.base, base_sha256, {**context.args, **size, **found}, backbone)
    return FitFacts(
        total=n_base,
        trainable=n_trainable,
        added=count(dict(backbone.module.named_parameters())) - n_base,
        mergeable=False,
        epochs=done.steps / task.steps_an_epoch,
        steps=done.steps,
        seconds=done.seconds,
        relative_seconds=None,
        validation_r1=task.validate(backbone.cache).r1,
        base_validation_r1=base_r1,
    )


def _fit_filled(
    cache: ClassCache | PairCache, task: Task, grids: Grids, plan: Plan | None, context: FitContext
) -> Trained:
    """Searches, trains at what was found, and searches again; a cache without weight would learn nothing."""
    if plan is None:
        task.search(cache, grids)
        return Trained()
    weighty = [alpha for alpha in grids["alpha"] if alpha] or grids["alpha"]
    task.search(cache, {**grids, "alpha": weighty})
    done = train_cache(cache, task, plan, context.report, context.budget_s)
    task.search(cache, grids)
    return done


def parse_grids(args: Mapping[str, str], classes: bool) -> Grids:
    """What each number is chosen from: a grid, or what the user gave.

    Beta and alpha as in the released code, from 0.1 to 13, in 40 x 20 values where it takes 200 x 20.

    Raises:
        UsageError: an argument is not as it must be.
    """
    grids = GRIDS if classes else PAIR_GRIDS
    return {name: grid if args[name] == SEARCHED else (parse_knob(name, args[name]),) for name, grid in grids.items()}


def is_class_prompts(collection: Collection) -> bool:
    """Whether images have labels, and each has one caption, which is its class's."""
    return collection.labels is not None and len(collection.positives) == len(collection.images)


def _make_task(context: FitContext, base: Backbone, plan: Plan | None, hard: bool) -> tuple[Task, dict[str, str]]:
    """The task of the form that fits the collection, and the arguments that state its cache's size."""
    scale, batch, seed = float(base.log_scale.exp()), plan.batch if plan else 1, context.seed
    if is_class_prompts(context.train):
        few = compute_few_shots(context, base)
        n_classes, shots, _ = few.keys.shape
        size = {"form": CLASSES, "n_classes": str(n_classes), "shots": str(shots)}
        return ClassTask(few, scale, batch, seed, hard), size
    pairs = compute_pairs(context, base, all_images=plan is not None)
    return PairTask(pairs, scale, batch, seed, hard), {"form": PAIRS, "n_pairs": str(len(pairs.cached))}


class Computed:
    """The vectors that a fit has computed, by name: its checkpoint holds them, and one that goes on takes them there.

    Each is written with those before it: the largest are asked for last.

    Args:
        context: the fit's.
    """

    def __init__(self, context: FitContext) -> None:
        self._checkpoint = context.checkpoint
        self._kept: dict[str, Tensor] = read_state(context.checkpoint, context.device) or {}

    def get(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` returns, or has returned to an earlier part of this fit."""
        if name not in self._kept:
            self._kept[name] = compute()
            write_state(self._checkpoint, self._kept)
        return self._kept[name]


def compute_few_shots(context: FitContext, base: Backbone) -> FewShots:
    """Draws the shots and what choices are made on, and computes their vectors.

    Without a validation collection, training images that are no shots are held out, at most `MOST_VALIDATED`.

    Raises:
        InputError: a class has fewer images than shots, nothing is left to choose on, or the validation has a class
            that the training does not.
    """
    train, shots = context.train, parse_count("shots", context.args["shots"])
    rows = draw_shots(train, shots, context.seed)
    chosen = _choose_validation(context, rows)
    class_of = {prompt: index for index, prompt in enumerate(train.captions)}
    unknown = next((prompt for prompt in chosen.captions if prompt not in class_of), None)
    if unknown is not None:
        raise InputError(f"{chosen.name} has the prompt {unknown!r}, which {train.name} has not; expected its classes.")
    labels = [class_of[chosen.captions[index]] for index in classes_of(chosen)]
    computed, frozen, shot = Computed(context), Frozen(base, context), [train.images[i] for i in rows.flat]
    prompts = computed.get("prompts", lambda: frozen.captions(Examples(train, base)))
    images = computed.get("images", lambda: frozen.images(Examples(chosen, base)))
    views = computed.get("views", lambda: encode_views(frozen, shot, context.seed, VIEWS))
    return FewShots(
        views=functional.normalize(views, dim=2),
        keys=make_keys(views).view(*rows.shape, -1),
        prompts=functional.normalize(prompts),
        images=functional.normalize(images),
        labels=torch.tensor(labels, device=base.device),
    )


def compute_pairs(context: FitContext, base: Backbone, all_images: bool) -> Pairs:
    """Draws the entries, and computes the vectors of the training and the validation collection.

    Args:
        context: with a `cache` argument; of fewer images, all are entries.
        base: computes them.
        all_images: whether there is to be more than the entries: where nothing learns, nothing else is needed.
    """
    train, validation = split_collection(context)
    rng = open_stream(context.seed, PAIRS_STREAM, 0)
    rows = np.sort(rng.permutation(len(train.images))[: parse_count("cache", context.args["cache"])])
    if not all_images:
        train, rows = select_images(train, rows), np.arange(len(rows))
    examples, chosen = Examples(train, base), Examples(validation, base)
    computed, frozen = Computed(context), Frozen(base, context)
    validation_images = computed.get("validation images", lambda: frozen.images(chosen))
    validation_captions = computed.get("validation captions", lambda: frozen.captions(chosen))
    images = computed.get("images", lambda: frozen.images(examples))
    captions = computed.get("captions", lambda: frozen.captions(examples))
    return Pairs(
        train=examples,
        images=functional.normalize(images),
        captions=functional.normalize(captions),
        cached=np.array([(image, rng.choice(examples.captions_of[image])) for image in rows]),
        validation=chosen,
        validation_images=functional.normalize(validation_images),
        validation_captions=functional.normalize(validation_captions),
    )


def classes_of(collection: Collection) -> Int[np.ndarray, " n_images"]:
    """The caption of each image of a collection of class prompts."""
    pairs = collection.positives
    return pairs[np.argsort(pairs[:, 0], kind="stable"), 1]


def draw_shots(collection: Collection, shots: int, seed: int) -> Int[np.ndarray, "n_classes shots"]:
    """Images of each class; of the same seed, fewer shots are the first of more.

    Raises:
        InputError: a class has fewer images.
    """
    classes = classes_of(collection)
    counts = np.bincount(classes, minlength=len(collection.captions))
    if (fewest := int(counts.argmin())) >= 0 and counts[fewest] < shots:
        raise InputError(
            f"{collection.name} has {counts[fewest]} images of {collection.captions[fewest]!r}; expected at least "
            f"{shots}, as many of each class. Set --recipe-arg shots={counts[fewest]} or fewer."
        )
    rows = [open_stream(seed, SHOTS_STREAM, c).permutation(np.flatnonzero(classes == c)) for c in range(len(counts))]
    return np.stack([row[:shots] for row in rows])


def _choose_validation(context: FitContext, shots: Int[np.ndarray, "n_classes shots"]) -> Collection:
    source, allowed = context.train, np.setdiff1d(np.arange(len(context.train.images)), shots)
    if context.validation is not None:
        source, allowed = context.validation, np.arange(len(context.validation.images))
    if not is_class_prompts(source) or not len(allowed):
        raise InputError(
            f"{source.name} has no labelled image to choose by; expected some beside the shots. Set fewer shots, or "
            "give a collection of the same class prompts by --val."
        )
    drawn = open_stream(context.seed, VALIDATION_STREAM, 0).permutation(allowed)[:MOST_VALIDATED]
    return select_images(source, np.sort(drawn))


def encode_views(
    frozen: Frozen, images: Sequence[Image], seed: int, n_views: int
) -> Float[Tensor, "n_views n_images dim"]:
    """The base's vectors, as it gives them, of random crops of images, half of them mirrored.

    Source: torchvision's RandomResizedCrop with a scale of 0.5 to 1 and RandomHorizontalFlip, as in `main.py` of
    github.com/gaopengcuhk/Tip-Adapter, drawn from a stream of each image's own.
    """
    tasks = [(image, seed, index, n_views) for index, image in enumerate(images)]
    return torch.stack(frozen.apply(_encode_views, tasks), dim=1)


def _encode_views(backbone: Backbone, task: tuple[Image, int, int, int]) -> Float[Tensor, "n_views dim"]:
    image, seed, index, n_views = task
    rng, picture = open_stream(seed, VIEWS_STREAM, index), image.decode()
    height, width = backbone.pixels([picture]).shape[-2:]
    crops = [_draw_view(picture, (width, height), rng) for _ in range(n_views)]
    return backbone.embed_pixels(backbone.pixels(crops))


def _draw_view(picture: PIL.Image.Image, size: tuple[int, int], rng: np.random.Generator) -> PIL.Image.Image:
    left, top, width, height = draw_crop(*picture.size, rng)
    crop = picture.resize(size, PIL.Image.Resampling.BICUBIC, (left, top, left + width, top + height))
    return crop.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def draw_crop(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, width and height of a crop of half the area or more, 3:4 to 4:3; all of it where ten draws fail."""
    for _ in range(10):
        area = rng.uniform(LEAST_AREA, 1) * width * height
        ratio = math.exp(rng.uniform(-math.log(MOST_RATIO), math.log(MOST_RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    return 0, 0, width, height


def make_keys(views: Float[Tensor, "n_views n dim"]) -> Float[Tensor, "n dim"]:
    """The mean of an image's views, normalised; the views are not normalised before, as in the released `utils.py`."""
    return functional.normalize(views.mean(dim=0))
