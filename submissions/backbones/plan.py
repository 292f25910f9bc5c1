"""How a recipe trains: its plan, the user's arguments over it, the schedule and the optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from bench.errors import UsageError
from bench.types import FitContext

PLAN_ARGS = {"lr": "", "batch": "", "weight_decay": ""}


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
        clip_norm: longest gradient over all parameters; longer ones are shortened to it.
        objective_lr: `lr` of the objective's own parameters; None is the others'.
    """

    epochs: int
    batch: int
    lr: float
    weight_decay: float
    optimizer: Literal["adamw", "sgd"] = "adamw"
    warmup: float = 0.1
    keep: Literal["best", "last"] = "best"
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    objective_lr: float | None = None

    def told(self, context: FitContext) -> Plan:
        """The same with what the user set: `--epochs`, and the arguments of `PLAN_ARGS`.

        Raises:
            UsageError: an argument is no positive number.
        """
        told: dict[str, Any] = {"epochs": context.epochs} if context.epochs is not None else {}
        for name in ("lr", "weight_decay"):
            if text := context.args.get(name):
                told[name] = parse_number(name, text, float)
        if text := context.args.get("batch"):
            told["batch"] = parse_count("batch", text)
        return replace(self, **told)


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


def parse_count(name: str, text: str) -> int:
    """The whole number, at least one, that a recipe's argument holds.

    Raises:
        UsageError: it holds something else.
    """
    value: int = parse_number(name, text, int)
    if value < 1:
        raise UsageError(f"--recipe-arg {name} is '{text}'; expected a whole number of at least 1.")
    return value


def parse_yes(name: str, text: str) -> bool:
    """Whether an argument says yes.

    Raises:
        UsageError: it says neither yes nor no.
    """
    if text not in ("yes", "no"):
        raise UsageError(f"--recipe-arg {name} is '{text}'; expected yes or no.")
    return text == "yes"


def cosine_rate(progress: float, warmup: float) -> float:
    """Share of the top rate: a linear rise over `warmup` of the training, then half a cosine down to nothing."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], plan: Plan, own: Mapping[str, nn.Parameter] | None = None
) -> torch.optim.Optimizer:
    """The plan's optimiser; only matrices decay.

    Args:
        parameters: of the model.
        plan: the recipe's.
        own: the objective's parameters; each group's `top` is its rate at the top of the schedule.
    """
    groups = _groups(parameters, plan.weight_decay, plan.lr)
    if own:
        groups += _groups(own, plan.weight_decay, plan.lr if plan.objective_lr is None else plan.objective_lr)
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=plan.lr, betas=plan.betas)


def _groups(parameters: Mapping[str, nn.Parameter], weight_decay: float, top: float) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in parameters.values() if parameter.ndim > 1]
    others = [parameter for parameter in parameters.values() if parameter.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay, "top": top},
        {"params": others, "weight_decay": 0.0, "top": top},
    ]
