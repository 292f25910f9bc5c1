"""What all recipes share: sampler, loss, schedule, validation, checkpoints and the loop around them."""

from __future__ import annotations

import copy
import io
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import InputError, UsageError
from bench.types import Collection, FitContext, FitFacts
from submissions.backbones.backbone import Backbone, count, trainable
from submissions.backbones.fitted import Attach, digest_of, load_base, write_fitted

PLAN_ARGS = {"lr": "", "batch": "", "weight_decay": ""}
LARGEST_LOG_SCALE = math.log(100)
CLIP_NORM = 1.0
VALIDATION_SHARE, MOST_VALIDATED = 0.1, 500
ENCODE_BATCH = 64
MOST_PIXEL_BYTES = 4 << 30
CHECKPOINT_S, CHECKPOINT_COST = 20.0, 20
TIMED_STEPS = 3
DECODERS = 4


@dataclass(frozen=True)
class Plan:
    """How a recipe trains.

    Args:
        epochs: passes over the images.
        batch: pairs a step.
        lr: at the top of the schedule.
        weight_decay: of matrices; vectors and scalars have none.
        optimizer: "adamw", or "sgd" with momentum 0.9.
        warmup: share of the training in which the rate rises.
        keep: the weights with the best validation R@1, or the last.
        betas: AdamW's.
    """

    epochs: int
    batch: int
    lr: float
    weight_decay: float
    optimizer: Literal["adamw", "sgd"] = "adamw"
    warmup: float = 0.1
    keep: Literal["best", "last"] = "best"
    betas: tuple[float, float] = (0.9, 0.98)

    def told(self, context: FitContext) -> Plan:
        """The same with what the user set: `--epochs`, and the arguments of `PLAN_ARGS`.

        Raises:
            UsageError: an argument is no positive number.
        """
        told: dict[str, Any] = {"epochs": context.epochs} if context.epochs is not None else {}
        for name, kind in (("lr", float), ("batch", int), ("weight_decay", float)):
            if text := context.args.get(name):
                told[name] = parse_number(name, text, kind)
        plan = replace(self, **told)
        if plan.batch < 1:
            raise UsageError(f"--recipe-arg batch is '{plan.batch}'; expected a number of at least 1.")
        return plan


def parse_number(name: str, text: str, kind: Callable[[str], Any]) -> Any:
    """The positive (or zero) number that a recipe's argument holds.

    Raises:
        UsageError: it holds something else.
    """
    try:
        value = kind(text)
    except ValueError:
        value = -1
    if not (value >= 0 and math.isfinite(value)):
        raise UsageError(f"--recipe-arg {name} is '{text}'; expected a number of at least 0.")
    return value


class Examples:
    """A collection as a backbone reads it; pixels are decoded once and kept, as many as fit into `MOST_PIXEL_BYTES`."""

    def __init__(self, collection: Collection, backbone: Backbone) -> None:
        self.collection, self._backbone = collection, backbone
        pairs = collection.positives
        self.captions_of: list[np.ndarray] = [np.empty(0, np.int64)] * len(collection.images)
        order = np.argsort(pairs[:, 0], kind="stable")
        for image, rows in zip(*_groups(pairs[order, 0]), strict=True):
            self.captions_of[image] = pairs[order][rows, 1]
        self._kept: dict[int, Tensor] = {}

    @property
    def n_images(self) -> int:
        return len(self.captions_of)

    def pixels(self, images: Sequence[int] | Int[np.ndarray, " n"]) -> Float[Tensor, "n 3 height width"]:
        """Of some images, in [0, 1]."""
        missing = [int(i) for i in images if int(i) not in self._kept]
        with ThreadPoolExecutor(DECODERS) as pool:
            decoded = list(pool.map(self._decode, missing))
        found = dict(zip(missing, decoded, strict=True))
        for index, pixels in found.items():
            if (len(self._kept) + 1) * pixels.nbytes <= MOST_PIXEL_BYTES:
                self._kept[index] = pixels
        return (
            torch.stack([self._kept[int(i)] if int(i) in self._kept else found[int(i)] for i in images]).float() / 255
        )

    def texts(self, captions: Int[np.ndarray, " n"]) -> list[str]:
        """Some captions."""
        return [self.collection.captions[int(i)] for i in captions]

    def _decode(self, index: int) -> Tensor:
        pixels = self._backbone.pixels([self.collection.images[index].decode()])[0]
        return (pixels * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class Batch:
    """Pairs of one step: each image once, with one of its captions.

    Args:
        images: indices within the examples.
        captions: indices within the examples.
        examples: what they are indices of.
        rng: of this step alone.
    """

    images: Int[np.ndarray, " n"]
    captions: Int[np.ndarray, " n"]
    examples: Examples
    rng: np.random.Generator

    @cached_property
    def pixels(self) -> Float[Tensor, "n 3 height width"]:
        return self.examples.pixels(self.images)

    @cached_property
    def texts(self) -> list[str]:
        return self.examples.texts(self.captions)

    @cached_property
    def also_true(self) -> Bool[Tensor, "n n"]:
        """Whether a caption of the batch is true of another image of the batch too, and so no negative of it."""
        rows = [np.isin(self.captions, self.examples.captions_of[i]) for i in self.images]
        return torch.from_numpy(np.stack(rows)).fill_diagonal_(False)


class Sampler:
    """Batches of whole epochs, each of which follows from seed, epoch and place alone, so any can be made again."""

    def __init__(self, examples: Examples, batch: int, seed: int) -> None:
        self._examples, self._seed = examples, seed
        self._batch = min(batch, examples.n_images)
        self.steps_an_epoch = examples.n_images // self._batch

    def batch(self, step: int) -> Batch:
        """The batch of one step of the training."""
        epoch, place = divmod(step, self.steps_an_epoch)
        order = _stream(self._seed, 0, epoch).permutation(self._examples.n_images)
        images = order[place * self._batch : (place + 1) * self._batch]
        rng = _stream(self._seed, 1, step)
        captions = np.array([rng.choice(self._examples.captions_of[i]) for i in images])
        return Batch(images, captions, self._examples, rng)


class Student:
    """A backbone that learns; vectors of a tower that does not are computed once for all examples."""

    def __init__(self, backbone: Backbone, examples: Examples) -> None:
        self.backbone, self._examples = backbone, examples
        with torch.enable_grad():
            self._images_learn = backbone.embed_pixels(examples.pixels([0])).requires_grad
            self._texts_learn = backbone.embed_texts(examples.texts(np.array([0]))).requires_grad

    def decode(self, batch: Batch) -> None:
        """Reads the batch's pixels, if they will be needed."""
        if self._images_learn:
            batch.pixels  # noqa: B018

    def image_vectors(self, batch: Batch) -> Float[Tensor, "n dim"]:
        """Of the batch's images, with gradient if their tower learns."""
        return self.backbone.embed_pixels(batch.pixels) if self._images_learn else self._all_images[batch.images]

    def text_vectors(self, batch: Batch) -> Float[Tensor, "n dim"]:
        """Of the batch's captions, with gradient if their tower learns."""
        return self.backbone.embed_texts(batch.texts) if self._texts_learn else self._all_texts[batch.captions]

    @cached_property
    def _all_images(self) -> Float[Tensor, "n_images dim"]:
        return embed_images(self.backbone, self._examples)

    @cached_property
    def _all_texts(self) -> Float[Tensor, "n_captions dim"]:
        return embed_captions(self.backbone, self._examples)


Objective = Callable[[Student, Batch], Tensor]


def contrastive(
    images: Float[Tensor, "n dim"], texts: Float[Tensor, "n dim"], log_scale: Tensor, also_true: Bool[Tensor, "n n"]
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE; a caption that is also true of another image of the batch is no negative of it.

    Args:
        images: vectors of any norm.
        texts: of their captions, row by row.
        log_scale: logarithm of the factor on cosines, at most log 100.
        also_true: rows images, columns captions; the diagonal is False.

    Source: arXiv:2103.00020, figure 3.
    """
    scale = log_scale.clamp(max=LARGEST_LOG_SCALE).exp()
    logits = scale * functional.normalize(images) @ functional.normalize(texts).T
    logits = logits.masked_fill(also_true.to(logits.device), -torch.inf)
    targets = torch.arange(len(images), device=logits.device)
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2


def retrieval_loss(student: Student, batch: Batch) -> Float[Tensor, ""]:
    """`contrastive` of a batch: the objective of every recipe that has none of its own."""
    scale = student.backbone.log_scale
    return contrastive(student.image_vectors(batch), student.text_vectors(batch), scale, batch.also_true)


def cosine_rate(progress: float, warmup: float) -> float:
    """Share of the top rate: a linear rise over `warmup` of the training, then half a cosine down to nothing."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


@torch.no_grad()
def embed_images(backbone: Backbone, examples: Examples) -> Float[Tensor, "n_images dim"]:
    """Vectors of all images."""
    rows = range(examples.n_images)
    return torch.cat([backbone.embed_pixels(examples.pixels(part)) for part in _batches(rows, ENCODE_BATCH)])


@torch.no_grad()
def embed_captions(backbone: Backbone, examples: Examples) -> Float[Tensor, "n_captions dim"]:
    """Vectors of all captions, encoded in the order of their length and given back in their own."""
    captions = examples.collection.captions
    order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
    parts = [backbone.embed_texts([captions[i] for i in part]) for part in _batches(order, ENCODE_BATCH)]
    return torch.cat(parts)[torch.from_numpy(np.argsort(order))]


def recall_at_1(backbone: Backbone, examples: Examples) -> float:
    """Mean of both directions' R@1 over the examples, in percent."""
    return recall_of(embed_images(backbone, examples), embed_captions(backbone, examples), examples)


def recall_of(
    images: Float[Tensor, "n_images dim"], texts: Float[Tensor, "n_captions dim"], examples: Examples
) -> float:
    """Mean of both directions' R@1 of such vectors, in percent."""
    cosines = (functional.normalize(images) @ functional.normalize(texts).T).cpu().numpy()
    pairs = {(int(image), int(caption)) for image, caption in examples.collection.positives}
    t2i = np.mean([(int(image), caption) in pairs for caption, image in enumerate(cosines.argmax(axis=0))])
    i2t = np.mean([(image, int(caption)) in pairs for image, caption in enumerate(cosines.argmax(axis=1))])
    return float(100 * (t2i + i2t) / 2)


def fit_on_base(
    context: FitContext,
    plan: Plan,
    attach: Attach,
    make_objective: Callable[[Backbone, Examples], Objective] = lambda base, examples: retrieval_loss,
    merge: Callable[[Backbone], None] | None = None,
    validate: Callable[[Backbone, Examples], float] = recall_at_1,
) -> FitFacts:
    """Trains what `attach` builds into the base, and writes it to `context.output`.

    Args:
        context: with a base.
        plan: the recipe's; the user's arguments go over it.
        attach: builds what learns into the base, and marks it by `requires_grad`.
        make_objective: from the base as it comes, before `attach`, and the training examples.
        merge: folds what learnt into the base's own layers; None where that cannot be.
        validate: percent, higher is better.

    Raises:
        InputError: there are fewer than two training images, or the base cannot be changed in this way.
        UsageError: an argument is not as it must be.
    """
    if context.base is None:
        raise InputError("this recipe needs a base: --base SUBMISSION.")
    plan = plan.told(context)
    torch.manual_seed(context.seed)
    backbone = load_base(context.base, context.device)
    base_sha256, n_base = digest_of(backbone.module), count(dict(backbone.module.named_parameters()))
    train, validation = (Examples(part, backbone) for part in split_collection(context))
    base_r1 = validate(backbone, validation)
    context.report({"epoch": 0, "epochs": plan.epochs, "validation_r1": base_r1})
    objective = make_objective(backbone, train)
    full_step_s = _time_full_step(backbone, train, plan, context.seed)
    backbone = attach(backbone, context.args)
    n_trainable, n_attached = count(trainable(backbone.module)), count(dict(backbone.module.named_parameters()))
    mergeable = merge is not None or n_attached == n_base
    training = _Training(backbone, train, validation, objective, validate, plan, context)
    training.run()
    write_fitted(context.output, context.base, base_sha256, context.args, backbone)
    return FitFacts(
        total=n_base,
        trainable=n_trainable,
        added=0 if mergeable else n_attached - n_base,
        mergeable=mergeable,
        epochs=training.step / training.sampler.steps_an_epoch,
        steps=training.step,
        seconds=training.seconds,
        relative_seconds=training.computed_s / (full_step_s * training.step) if training.step else None,
        validation_r1=training.kept_r1,
        base_validation_r1=base_r1,
    )


@dataclass
class _Training:
    """The loop, and its state as a checkpoint holds it."""

    backbone: Backbone
    train: Examples
    validation: Examples
    objective: Objective
    validate: Callable[[Backbone, Examples], float]
    plan: Plan
    context: FitContext
    step: int = 0
    seconds: float = 0.0
    computed_s: float = 0.0
    kept_r1: float = -1.0
    _kept: dict[str, Tensor] = field(default_factory=dict)
    _losses: list[float] = field(default_factory=list)
    _saved_at: float = 0.0

    def __post_init__(self) -> None:
        self.sampler = Sampler(self.train, self.plan.batch, self.context.seed)
        self._parameters = trainable(self.backbone.module)
        if not self._parameters:
            raise InputError("nothing in this base learns under this recipe; see `rove describe` of both.")
        self._optimizer = _optimizer(self._parameters, self.plan)
        self._student = Student(self.backbone, self.train)
        self._clock = _clock_of(self.context.device)

    @property
    def steps(self) -> int:
        return self.plan.epochs * self.sampler.steps_an_epoch

    def run(self) -> None:
        """Trains to the end of the plan or of the budget, and leaves the weights that are kept in the backbone."""
        self._resume()
        while self.step < self.steps and not self._is_over_budget():
            started = time.monotonic()
            batch = self.sampler.batch(self.step)
            self._student.decode(batch)
            computed = self._clock()
            self._losses.append(self._learn(batch))
            self.computed_s += self._clock() - computed
            self.step += 1
            self.seconds += time.monotonic() - started
            at_end = self.step % self.sampler.steps_an_epoch == 0
            if at_end:
                self._validate()
            self._save(force=at_end and self.step == self.steps)
        if self._is_over_budget() and self.step % self.sampler.steps_an_epoch:
            self._validate()
        if self.plan.keep == "best":
            self._restore(self._kept)

    def _learn(self, batch: Batch) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self.plan.lr * cosine_rate(self._progress(), self.plan.warmup)
        torch.manual_seed(int(batch.rng.integers(1 << 62)))
        loss = self.objective(self._student, batch)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters.values(), CLIP_NORM)
        self._optimizer.step()
        self.backbone.log_scale.data.clamp_(max=LARGEST_LOG_SCALE)
        return loss.item()

    def _progress(self) -> float:
        """Share of the training that is done once this step is."""
        budget = self.context.budget_s
        return max((self.step + 1) / self.steps, self.seconds / budget if budget else 0.0)

    def _is_over_budget(self) -> bool:
        return self.context.budget_s is not None and self.seconds >= self.context.budget_s

    def _validate(self) -> None:
        learning = [module for module in self.backbone.module.modules() if module.training]
        self.backbone.module.eval()
        r1 = self.validate(self.backbone, self.validation)
        for module in learning:
            module.training = True
        if self.plan.keep == "last" or r1 > self.kept_r1:
            self.kept_r1 = r1
            self._kept = {name: tensor.detach().clone() for name, tensor in self._parameters.items()}
        epoch = self.step / self.sampler.steps_an_epoch
        loss = float(np.mean(self._losses))
        self.context.report({"epoch": epoch, "epochs": self.plan.epochs, "loss": loss, "validation_r1": r1})
        self._losses = []

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in tensors.items():
                self._parameters[name].copy_(tensor)

    def _save(self, force: bool) -> None:
        """Keeps the state, unless that was lately done; it takes at most a twentieth of the time."""
        now = time.monotonic()
        if now < self._saved_at and not force:
            return
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "computed_s": self.computed_s,
            "kept_r1": self.kept_r1,
            "kept": self._kept,
            "losses": self._losses,
            "parameters": {name: tensor.detach() for name, tensor in self._parameters.items()},
            "optimizer": self._optimizer.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.context.checkpoint.write(buffer.getvalue())
        done = time.monotonic()
        self._saved_at = done + max(CHECKPOINT_S, CHECKPOINT_COST * (done - now))

    def _resume(self) -> None:
        if (saved := self.context.checkpoint.read()) is None:
            return
        state = torch.load(io.BytesIO(saved), map_location=self.context.device, weights_only=True)
        self._restore(state["parameters"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.computed_s = state["step"], state["seconds"], state["computed_s"]
        self.kept_r1 = state["kept_r1"]
        self._kept, self._losses = state["kept"], state["losses"]


def _optimizer(parameters: Mapping[str, nn.Parameter], plan: Plan) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in parameters.values() if parameter.ndim > 1]
    others = [parameter for parameter in parameters.values() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=plan.lr, betas=plan.betas)


def split_collection(context: FitContext) -> tuple[Collection, Collection]:
    """The images to learn from and those to choose by, which are held out of the train collection if none are given.

    Raises:
        InputError: there is one image only.
    """
    if len(context.train.images) < 2:
        raise InputError(f"{context.train.name} has one image; expected at least two to learn from.")
    if context.validation is not None:
        return context.train, context.validation.head(MOST_VALIDATED)
    order = _stream(context.seed, 2, 0).permutation(len(context.train.images))
    n_held_out = max(1, min(MOST_VALIDATED, round(VALIDATION_SHARE * len(order))))
    return _select(context.train, np.sort(order[n_held_out:])), _select(context.train, np.sort(order[:n_held_out]))


def _select(collection: Collection, images: Int[np.ndarray, " n"]) -> Collection:
    """Some images of a collection with the captions that go with them."""
    place = np.full(len(collection.images), -1)
    place[images] = np.arange(len(images))
    pairs = collection.positives[place[collection.positives[:, 0]] >= 0]
    kept, renumbered = np.unique(pairs[:, 1], return_inverse=True)
    return Collection(
        name=collection.name,
        images=[collection.images[int(i)] for i in images],
        captions=[collection.captions[int(i)] for i in kept],
        positives=np.stack([place[pairs[:, 0]], renumbered.reshape(-1)], axis=1),
        revision=collection.revision,
    )


def _time_full_step(backbone: Backbone, train: Examples, plan: Plan, seed: int) -> float:
    """Seconds of one step of full fine-tuning on batches like the recipe's: a copy learns, the base does not."""
    learner = copy.deepcopy(backbone)
    learner.module.requires_grad_(True)
    optimizer = _optimizer(trainable(learner.module), replace(plan, optimizer="adamw", lr=1e-6))
    sampler, student = Sampler(train, plan.batch, seed), Student(learner, train)
    clock, seconds = _clock_of(backbone.device), []
    for step in range(1 + TIMED_STEPS):
        batch = sampler.batch(step)
        student.decode(batch)
        started = clock()
        optimizer.zero_grad()
        retrieval_loss(student, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seconds.append(clock() - started)
    return statistics.median(seconds[1:])


def _clock_of(device: str) -> Callable[[], float]:
    """Seconds of computing: on a CPU those of this process alone, which other work does not lengthen."""
    return time.process_time if device == "cpu" else time.perf_counter


def _stream(*place: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(place)))


def _groups(values: Int[np.ndarray, " n"]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The distinct values of a sorted array, and the rows of each."""
    distinct, starts = np.unique(values, return_index=True)
    return distinct, np.split(np.arange(len(values)), starts[1:])


def _batches(rows: Sequence[int], size: int) -> list[list[int]]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]
