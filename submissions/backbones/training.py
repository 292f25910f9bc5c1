"""The loop that all recipes on a base share: validation, checkpoints, budget, and what is reported of it."""

from __future__ import annotations

import copy
import io
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import InputError
from bench.types import Checkpoint, FitContext, FitFacts
from submissions.backbones.backbone import Backbone, count, trainable
from submissions.backbones.examples import Batch, Examples, Sampler, split_collection
from submissions.backbones.fitted import Attach, digest_of, load_base, write_fitted
from submissions.backbones.plan import Plan, cosine_rate, make_optimizer
from submissions.backbones.retrieval import LARGEST_LOG_SCALE, Objective, Student, recall_at_1, retrieval_loss

CHECKPOINT_S, CHECKPOINT_COST = 20.0, 20
TIMED_STEPS = 3
OBJECTIVE = "objective"  # the stem of its own parameters' names in a checkpoint


class Batches(Protocol):
    """Where the loop takes its batches from."""

    @property
    def steps_an_epoch(self) -> int:
        """How many make up a pass over the training images."""

    def batch(self, step: int) -> Batch:
        """The batch of one step of the training."""


def fit_on_base(
    context: FitContext,
    plan: Plan,
    attach: Attach,
    make_objective: Callable[[Backbone, Examples], Objective] = lambda base, examples: retrieval_loss,
    merge: Callable[[Backbone], None] | None = None,
    validate: Callable[[Backbone, Examples], float] = recall_at_1,
    make_sampler: Callable[[Examples, int, int], Batches] = Sampler,
) -> FitFacts:
    """Trains what `attach` builds into the base, and writes it to `context.output`.

    Args:
        context: with a base.
        plan: the recipe's; the user's arguments go over it.
        attach: builds what learns into the base, and marks it by `requires_grad`.
        make_objective: from the base, which stays as it is, and the training examples; parameters of its own, if it is
            a module, learn with the others and are not kept.
        merge: folds what learnt into the base's own layers; None where that cannot be.
        validate: percent, higher is better.
        make_sampler: of the training examples, the batch size and the seed.

    Raises:
        InputError: there are fewer than two training images, or the base cannot be changed in this way.
        UsageError: an argument is not as it must be.
    """
    if context.base is None:
        raise InputError("this recipe needs a base: --base SUBMISSION.")
    plan = plan.told(context)
    torch.manual_seed(context.seed)
    base = load_base(context.base, context.device)
    base_sha256, n_base = digest_of(base.module), count(dict(base.module.named_parameters()))
    backbone = attach(copy.deepcopy(base), context.args)
    train, validation = (Examples(part, base) for part in split_collection(context))
    base_r1 = validate(base, validation)
    context.report({"epoch": 0, "epochs": plan.epochs, "validation_r1": base_r1})
    objective = make_objective(base, train)
    full_step_s = _time_full_step(base, train, plan, context.seed)
    n_trainable, n_attached = count(trainable(backbone.module)), count(dict(backbone.module.named_parameters()))
    mergeable = merge is not None or n_attached == n_base
    sampler = make_sampler(train, plan.batch, context.seed)
    training = _Training(backbone, train, validation, sampler, objective, validate, plan, context)
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


def train_aside(backbone: Backbone, train: Examples, objective: Objective, plan: Plan, context: FitContext) -> float:
    """Seconds of training what learns in `backbone`, in the same loop, to the last weights and without validation.

    For what a recipe learns from but does not keep, such as a teacher.
    """
    sampler = Sampler(train, plan.batch, context.seed)
    training = _Training(
        backbone, train, train, sampler, objective, lambda *_: 0.0, replace(plan, keep="last"), context
    )
    training.run()
    return training.seconds


def write_state(checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
    """Keeps tensors and plain values in place of the state before."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    checkpoint.write(buffer.getvalue())


def read_state(checkpoint: Checkpoint, device: str) -> dict[str, Any] | None:
    """What `write_state` kept last, on that device; None if there is nothing."""
    saved = checkpoint.read()
    return None if saved is None else torch.load(io.BytesIO(saved), map_location=device, weights_only=True)


@dataclass
class _Training:
    """The loop, and its state as a checkpoint holds it."""

    backbone: Backbone
    train: Examples
    validation: Examples
    sampler: Batches
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
    _save_from: float = 0.0

    def __post_init__(self) -> None:
        learning = trainable(self.backbone.module)
        if not learning:
            raise InputError("nothing in this base learns under this recipe; see `rove describe` of both.")
        own = trainable(self.objective) if isinstance(self.objective, nn.Module) else {}
        self._parameters = learning | {f"{OBJECTIVE}.{name}": parameter for name, parameter in own.items()}
        self._optimizer = make_optimizer(learning, self.plan, own)
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
            group["lr"] = group["top"] * cosine_rate(self._progress(), self.plan.warmup)
        torch.manual_seed(int(batch.rng.integers(1 << 62)))
        loss = self.objective(self._student, batch)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters.values(), self.plan.clip_norm)
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
        if now < self._save_from and not force:
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
        write_state(self.context.checkpoint, state)
        done = time.monotonic()
        self._save_from = done + max(CHECKPOINT_S, CHECKPOINT_COST * (done - now))

    def _resume(self) -> None:
        if (state := read_state(self.context.checkpoint, self.context.device)) is None:
            return
        self._restore(state["parameters"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.computed_s = state["step"], state["seconds"], state["computed_s"]
        self.kept_r1 = state["kept_r1"]
        self._kept, self._losses = state["kept"], state["losses"]


def _time_full_step(backbone: Backbone, train: Examples, plan: Plan, seed: int) -> float:
    """Seconds of one step of full fine-tuning on batches like the recipe's: a copy learns, the base does not."""
    learner = copy.deepcopy(backbone)
    learner.module.requires_grad_(True)
    optimizer = make_optimizer(trainable(learner.module), replace(plan, optimizer="adamw", lr=1e-6))
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
