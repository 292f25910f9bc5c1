"""Knowledge-preserving vision tuning: images learn their classes, and stay where texts find them; needs no text.

For image-to-image retrieval of fine classes the image tower learns `Collection.labels` with NormFace, while three
things hold it back: on generic images (`--generic`) its unit vectors stay near the base's, its parameters stay near the
base's, and the checkpoint is chosen on both collections. Batches of target and generic images alternate. `keep=no` is
the control, naive fine-tuning: no generic images, no penalty, chosen on the target alone, as the source's baseline is.

The weights of the losses, Adam, batches of 128, and the rates, 1e-3 of the classifier and 1e-5 of the tower, are the
source's; it holds rates constant, and ours rise and fall, and where there are fewer than 8,192 images batches are
smaller, so that a pass makes 64 steps [inferred]. The tower's rate is for a hundred million parameters; smaller ones
may need a higher one, and `--search` tries three. The source chooses by the mean of mAP@20 on both validation
collections; here it is the mean of R@1 among the target's images and of the generic images' R@1 with their captions,
both ways [inferred]. Images are not augmented.

Source: arXiv:2508.12137; checked against nikosips/infusing (`scripts/full_method.sh`, `scripts/baseline.sh`,
`universal_embedding/loss_utils.py`, `embedding_head.py` and `classification_with_knn_eval_trainer.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import InputError, UsageError
from bench.types import Collection, FitContext, FitFacts
from submissions.backbones.backbone import Backbone, trainable
from submissions.backbones.examples import Batch, Examples, Sampler, split_collection
from submissions.backbones.plan import PLAN_ARGS, Plan, parse_number, parse_yes
from submissions.backbones.retrieval import Student, embed_captions, embed_images, recall_of
from submissions.backbones.training import fit_on_base
from submissions.knowledge_keep.model import attach

NEEDS_BASE = True
TAKES_GENERIC = True
VERSION = 1
METHOD = "knowledge-preserving fine-tuning of the image tower"
ARGS = {"keep": "yes", "vectors_weight": "1000", "weights_weight": "100000", "classifier_lr": "1e-3", **PLAN_ARGS}
SEARCH = {"lr": ["1e-5", "1e-4", "3e-4"], "weights_weight": ["100000", "1000"]}
PLAN = Plan(
    epochs=10,
    batch=128,
    lr=1e-5,
    weight_decay=1e-6,
    betas=(0.9, 0.999),
    clip_norm=math.inf,
)
STEPS_AN_EPOCH, SMALLEST_BATCH = 64, 16
SCALE = 16.0


class Penalties(NamedTuple):
    """What holds the image tower back.

    Args:
        vectors: weight of how far unit vectors of generic images move.
        weights: weight of how far parameters move.
    """

    vectors: float
    weights: float

    @staticmethod
    def told(args: Mapping[str, str]) -> Penalties:
        """Those that the recipe's arguments give.

        Raises:
            UsageError: an argument is no number of at least zero.
        """
        return Penalties(*(parse_number(name, args[name], float) for name in ("vectors_weight", "weights_weight")))


def fit(context: FitContext) -> FitFacts:
    """Writes a submission folder with the fitted image tower into `context.output`.

    Raises:
        InputError: the images to learn from, or those to choose by, have no labels.
        UsageError: an argument is not as it must be, or the generic images are missing or not wanted.
    """
    if context.train.labels is None or (context.validation is not None and context.validation.labels is None):
        raise InputError(
            f"{context.train.name}: images have no labels, or those of --val have none; expected classes to learn, as "
            "scenes-objects or classes:PATH have them."
        )
    task = Task(Penalties.told(context.args), split_generic(context))
    classifier_lr = parse_number("classifier_lr", context.args["classifier_lr"], float)
    plan = replace(PLAN, batch=choose_batch(len(context.train.images)), objective_lr=classifier_lr)
    return fit_on_base(
        context, plan, attach, task.make_objective, validate=task.validate, make_sampler=task.make_sampler
    )


def choose_batch(n_images: int) -> int:
    """The source's 128, or fewer where that would make few steps of a pass."""
    return min(PLAN.batch, max(SMALLEST_BATCH, n_images // STEPS_AN_EPOCH))


def split_generic(context: FitContext) -> tuple[Collection, Collection] | None:
    """The generic images to be kept in memory and those to choose by; None for naive fine-tuning.

    Raises:
        UsageError: `keep` is neither yes nor no, or there are generic images exactly where there should be none.
    """
    keep = parse_yes("keep", context.args["keep"])
    if keep and context.generic is None:
        raise UsageError(
            "knowledge_keep needs images of what the base knows already: give --generic DATASET, such as what the base "
            "has learnt from, or --recipe-arg keep=no for naive fine-tuning."
        )
    if not keep and context.generic is not None:
        raise UsageError(
            "--recipe-arg keep=no is naive fine-tuning, which sees no generic images; leave --generic out."
        )
    if context.generic is None:
        return None
    return split_collection(replace(context, train=context.generic, validation=context.generic_validation))


class Task:
    """The objective, the batches and the validation of one fit, which share the generic images.

    Args:
        penalties: on change.
        generic: images to be kept in memory, and those to choose by; None for naive fine-tuning.
    """

    def __init__(self, penalties: Penalties, generic: tuple[Collection, Collection] | None) -> None:
        self._penalties, self._collections = penalties, generic
        self._generic: Examples | None = None
        self._chosen_by: Examples | None = None
        self._captions: Tensor | None = None

    def make_objective(self, base: Backbone, target: Examples) -> Objective:
        """The losses of both kinds of batches."""
        return Objective(base, target, self._read(target), self._penalties)

    def make_sampler(self, target: Examples, batch: int, seed: int) -> Sampler | Alternating:
        """Target and generic batches by turns; target batches alone in naive fine-tuning."""
        generic = self._read(target)
        return Sampler(target, batch, seed) if generic is None else Alternating(target, generic, batch, seed)

    def validate(self, backbone: Backbone, target: Examples) -> float:
        """R@1 in percent: among the target's images, and the mean of that and the generic image-text R@1 if kept."""
        found = recall_among_images(embed_images(backbone, target), labels_of(target))
        if self._collections is None:
            return found
        if self._chosen_by is None:
            self._chosen_by = target.beside(self._collections[1])
        if self._captions is None:  # the text tower never changes
            self._captions = embed_captions(backbone, self._chosen_by)
        return (found + recall_of(embed_images(backbone, self._chosen_by), self._captions, self._chosen_by)) / 2

    def _read(self, target: Examples) -> Examples | None:
        if self._generic is None and self._collections is not None:
            self._generic = target.beside(self._collections[0])
        return self._generic


class Alternating:
    """Batches of target and of generic images by turns; an epoch is a pass over the target's images."""

    def __init__(self, target: Examples, generic: Examples, batch: int, seed: int) -> None:
        self._samplers = Sampler(target, batch, seed), Sampler(generic, batch, seed)
        self.steps_an_epoch = 2 * self._samplers[0].steps_an_epoch

    def batch(self, step: int) -> Batch:
        """The batch of one step of the training: the target's first."""
        return self._samplers[step % 2].batch(step // 2)


class Objective(nn.Module):
    """The loss of a batch; its classifier learns with the image tower and is no part of the fitted submission.

    Args:
        base: stays as it is.
        target: has labels.
        generic: whose vectors by the base are computed once; None where no batch is generic, and nothing is penalised.
        penalties: on change.
    """

    def __init__(self, base: Backbone, target: Examples, generic: Examples | None, penalties: Penalties) -> None:
        super().__init__()
        self._target, self._penalties = target, penalties if generic else None
        self._classes = torch.from_numpy(np.unique(labels_of(target), return_inverse=True)[1].reshape(-1))
        self._base = dict(base.module.named_parameters())
        dim = embed_images(base, target.beside(target.collection.head(1))).shape[1]
        self.classifier = nn.Parameter(torch.empty(int(self._classes.max()) + 1, dim, device=base.device))
        nn.init.uniform_(self.classifier, -math.sqrt(3 / dim), math.sqrt(3 / dim))  # LeCun's
        self._before = functional.normalize(embed_images(base, generic)) if generic else None

    def forward(self, student: Student, batch: Batch) -> Float[Tensor, ""]:
        """Of target images the classification, of generic ones the change of vectors, and that of the parameters."""
        vectors = functional.normalize(student.backbone.embed_pixels(batch.pixels))
        if batch.examples is self._target or self._before is None:
            loss = normface(vectors, self.classifier, self._classes[batch.images].to(vectors.device))
        else:
            loss = self._vectors_weight * functional.mse_loss(vectors, self._before[batch.images])
        return loss if self._penalties is None else loss + self._penalties.weights * self._drift(student.backbone)

    @property
    def _vectors_weight(self) -> float:
        return 0.0 if self._penalties is None else self._penalties.vectors

    def _drift(self, backbone: Backbone) -> Float[Tensor, ""]:
        return drift(trainable(backbone.module), self._base)


def normface(
    vectors: Float[Tensor, "n dim"], classifier: Float[Tensor, "n_classes dim"], classes: Int[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the cosines with each class's weights, times 16.

    Source: arXiv:1704.06369; the scale is that of arXiv:2508.12137.
    """
    cosines = functional.normalize(vectors) @ functional.normalize(classifier).T
    return functional.cross_entropy(SCALE * cosines, classes)


def drift(parameters: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """The mean squared change of each tensor's elements, summed over the tensors, large and small alike."""
    return torch.stack([functional.mse_loss(tensor, before[name]) for name, tensor in parameters.items()]).sum()


def labels_of(examples: Examples) -> Int[np.ndarray, " n_images"]:
    """The class of each image.

    Raises:
        InputError: they have none.
    """
    if examples.collection.labels is None:
        raise InputError(f"{examples.collection.name} has no labels; expected classes to learn.")
    return examples.collection.labels


def recall_among_images(vectors: Float[Tensor, "n dim"], labels: Int[np.ndarray, " n"]) -> float:
    """R@1 in percent of each image among the others, one of its class being right; loners ask nothing.

    Raises:
        InputError: no class has two images.
    """
    unit = functional.normalize(vectors)
    nearest = (unit @ unit.T).fill_diagonal_(-torch.inf).argmax(dim=1).cpu().numpy()
    asking = np.bincount(labels)[labels] > 1
    if not asking.any():
        raise InputError("no two validation images are of one class; expected some that can find each other.")
    return float(100 * (labels[nearest] == labels)[asking].mean())
