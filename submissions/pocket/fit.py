"""Fits `pocket`'s head: both towers stay frozen, so their features are computed once and training takes seconds.

The loss is a symmetric InfoNCE whose targets are softened by how similar the images' captions are to one another: in a
few thousand photos many captions nearly fit many images. The number of epochs is chosen by R@1 on images held out of
the train collection (or on the validation collection); then the head is fitted once more on all of the train images.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import InputError
from bench.types import FitContext
from submissions.pocket.features import Features, extract
from submissions.pocket.model import (
    HEAD_FILE,
    MEMBERS,
    Ensemble,
    HeadKind,
    build_heads,
)

SHARES_OUT = True
ARGS = {"head": "mlp"}
DROPOUT = 0.5
BATCH, EPOCHS = 500, (30, 60)
PEAK_LR, WEIGHT_DECAY = 1e-3, 0.05
SOFTNESS, SOFT_TEMPERATURE = 0.3, 0.05
HELD_OUT = 0.125


def fit(context: FitContext) -> None:
    """Writes a submission folder with the fitted head into `context.output`."""
    _head_kind(context)
    features = extract(context.train, context)
    learn, choose = _learn_and_choose(features, context)
    epochs = context.epochs or max(EPOCHS, key=lambda epochs: _held_out_recall(epochs, learn, choose, context))
    context.report({"epochs_chosen": epochs})
    heads = _train(features, epochs, context)
    _write_submission(heads, context.output)


def _learn_and_choose(features: Features, context: FitContext) -> tuple[Features, Features]:
    if context.validation is not None:
        return features, extract(context.validation, context)
    order = np.random.Generator(np.random.Philox(context.seed)).permutation(len(features.images))
    n_held_out = max(1, round(HELD_OUT * len(order)))
    return features.part(order[n_held_out:]), features.part(order[:n_held_out])


def _held_out_recall(epochs: int, learn: Features, choose: Features, context: FitContext) -> float:
    """Mean of both directions' R@1, in percent."""
    heads = _train(learn, epochs, context)
    recall = 100 * _recall_at_1(heads, choose)
    context.report({"candidate_epochs": epochs, "held_out_r1": recall})
    return recall


def _train(data: Features, epochs: int, context: FitContext) -> nn.ModuleDict:
    torch.manual_seed(context.seed)
    rng = np.random.Generator(np.random.Philox(context.seed))
    heads = build_heads(_head_kind(context), DROPOUT).to(context.device).train()
    log_scales = nn.Parameter(torch.full((MEMBERS,), 3.0, device=context.device))
    batch = min(BATCH, len(data.images))
    steps = epochs * (len(data.images) // batch)
    optimizer = torch.optim.AdamW([*heads.parameters(), log_scales], PEAK_LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps + 1, pct_start=0.1)
    meaning = functional.normalize(torch.stack([data.texts[rows].mean(dim=0) for rows in data.captions_of]))
    for epoch in range(epochs):
        losses = []
        for rows in rng.permutation(len(data.images))[: steps // epochs * batch].reshape(-1, batch):
            captions = [rng.choice(data.captions_of[i]) for i in rows]
            members = zip(_members(heads, "images"), _members(heads, "texts"), log_scales, strict=True)
            loss = torch.stack(
                [
                    _loss(of_images(data.images[rows]), of_texts(data.texts[captions]), log_scale, meaning[rows])
                    for of_images, of_texts, log_scale in members
                ]
            ).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        context.report({"epoch": epoch + 1, "epochs": epochs, "loss": float(np.mean(losses)) / MEMBERS})
    return heads.eval()


def _head_kind(context: FitContext) -> HeadKind:
    """What `--recipe-arg head=` asks for."""
    match context.args["head"]:
        case "linear" | "mlp" as kind:
            return kind
        case other:
            raise InputError(f"pocket's recipe argument head is '{other}'; expected linear or mlp.")


def _members(heads: nn.ModuleDict, tower: str) -> list[nn.Module]:
    ensemble = heads[tower]
    return list(ensemble.members) if isinstance(ensemble, Ensemble) else []


def _loss(images: Tensor, texts: Tensor, log_scale: Tensor, meaning: Tensor) -> Tensor:
    scale = log_scale.exp().clamp(max=100)
    logits = scale * functional.normalize(images) @ functional.normalize(texts).T
    alike = functional.softmax(meaning @ meaning.T / SOFT_TEMPERATURE, dim=1)
    targets = (1 - SOFTNESS) * torch.eye(len(images), device=images.device) + SOFTNESS * alike
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2


@torch.inference_mode()
def _recall_at_1(heads: nn.ModuleDict, data: Features) -> float:
    own = np.concatenate(data.captions_of)
    image_of = np.repeat(np.arange(len(data.images)), [len(rows) for rows in data.captions_of])
    images = functional.normalize(heads["images"](data.images))
    texts = functional.normalize(heads["texts"](data.texts[own]))
    scores = (images @ texts.T).cpu().numpy()
    t2i = (scores.argmax(axis=0) == image_of).mean()
    i2t = (image_of[scores.argmax(axis=1)] == np.arange(len(scores))).mean()
    return float(t2i + i2t) / 2


def _write_submission(heads: nn.ModuleDict, output: Path) -> None:
    folder = Path(__file__).parent
    for name in ("submission.toml", "model.py", "README.md"):
        shutil.copyfile(folder / name, output / name)
    save_file({name: tensor.cpu().contiguous() for name, tensor in heads.state_dict().items()}, output / HEAD_FILE)
