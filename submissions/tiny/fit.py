"""Trains `tiny` from nothing on the captions and images of one collection.

Two losses on every batch: symmetric InfoNCE in which a caption that is also true of another image of the batch is no
negative, and, on the image alone, which frequent word sequences its captions contain (a multi-label classification,
whose layer is thrown away). The second gives the image tower a denser signal than one caption does, which is what
lets it learn from a few thousand images; its weight falls to nothing over the training. Weights are averaged over the
last steps and stored in half precision.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bench.errors import InputError
from bench.types import Collection, FitContext
from submissions.backbones.retrieval import LARGEST_LOG_SCALE, contrastive
from submissions.tiny.model import (
    IMAGE_PX,
    MERGES_FILE,
    PREPROCESS,
    WEIGHTS_FILE,
    build_model,
    build_tokenizer,
)

EPOCHS = 36
BATCH = 64
PEAK_LR, WEIGHT_DECAY, WARMUP_STEPS = 1e-3, 0.1, 150
VOCABULARY = 1200
NGRAM_WORDS, MIN_IMAGES, MAX_NGRAMS, NGRAM_WEIGHT = 4, 25, 2000, 0.05
MARGIN_PX = 8
AVERAGING = 0.995


class Examples(NamedTuple):
    """A collection as tensors."""

    pixels: Tensor  # (n_images, 3, side, side) uint8, a margin larger than the model's input
    tokens: Tensor  # (n_captions, context) int64
    ngrams: Tensor  # (n_images, n_ngrams) bool
    captions_of: list[np.ndarray]  # caption indices of each image
    true_of: Tensor  # (n_images, n_captions) bool


def fit(context: FitContext) -> None:
    """Writes a submission folder with the trained weights into `context.output`."""
    if len(context.train.images) < BATCH:
        raise InputError(f"{context.train.name} has {len(context.train.images)} images; tiny needs at least {BATCH}.")
    torch.manual_seed(context.seed)
    rng = np.random.Generator(np.random.Philox(context.seed))
    merges = learn_merges(context.train.captions)
    tokenizer = build_tokenizer(merges)
    train = _examples(context.train, tokenizer)
    model = build_model(tokenizer.vocab_size).to(context.device)
    averaged = _train(model, train, context, rng)
    _write_submission(averaged, merges, context.output)


def learn_merges(captions: Sequence[str]) -> list[str]:
    """Byte-pair merges that suit the captions' words, most useful first, as rows "left right"."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator((caption.lower() for caption in captions), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [" ".join(pair) for pair in merges]


def frequent_ngrams(captions_by_image: Sequence[Sequence[str]]) -> np.ndarray:
    """Which frequent word sequences each image's captions contain, (n_images, n_ngrams) bool."""
    found = [set().union(*map(_ngrams, captions)) for captions in captions_by_image]
    counts = Counter(ngram for ngrams in found for ngram in ngrams)
    useful = [n for n, count in counts.most_common() if MIN_IMAGES <= count <= 0.9 * len(found)][:MAX_NGRAMS]
    return np.array([[ngram in ngrams for ngram in useful] for ngrams in found], dtype=bool)


def _ngrams(caption: str) -> set[str]:
    words = re.findall(r"[a-z]+", caption.lower())
    return {" ".join(words[i : i + n]) for n in range(1, NGRAM_WORDS + 1) for i in range(len(words) - n + 1)}


def _examples(collection: Collection, tokenizer: Any) -> Examples:
    n_images, n_captions = len(collection.images), len(collection.captions)
    true_of = np.zeros((n_images, n_captions), dtype=bool)
    true_of[collection.positives[:, 0], collection.positives[:, 1]] = True
    captions_of = [np.flatnonzero(row) for row in true_of]
    side = (IMAGE_PX + MARGIN_PX, IMAGE_PX + MARGIN_PX)
    pixels = [np.asarray(image.decode().resize(side, PIL.Image.Resampling.BICUBIC)) for image in collection.images]
    return Examples(
        pixels=torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(),
        tokens=tokenizer(list(collection.captions)),
        ngrams=torch.from_numpy(frequent_ngrams([[collection.captions[int(i)] for i in row] for row in captions_of])),
        captions_of=captions_of,
        true_of=torch.from_numpy(true_of),
    )


def _train(model: Any, data: Examples, context: FitContext, rng: np.random.Generator) -> Any:
    epochs = EPOCHS if context.epochs is None else context.epochs
    steps_an_epoch = len(data.captions_of) // BATCH
    classifier = nn.Linear(model.visual.output_dim, data.ngrams.shape[1]).to(context.device)
    optimizer = torch.optim.AdamW([*model.parameters(), *classifier.parameters()], PEAK_LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, epochs * steps_an_epoch))
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGING))  # type: ignore[no-untyped-call]
    for epoch in range(epochs):
        losses = []
        ngram_weight = NGRAM_WEIGHT * (1 - epoch / epochs)
        for images in rng.permutation(len(data.captions_of))[: steps_an_epoch * BATCH].reshape(-1, BATCH):
            loss = _loss(model, classifier, data, images, ngram_weight, rng, context.device)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            model.logit_scale.data.clamp_(max=LARGEST_LOG_SCALE)
            averaged.update_parameters(model)
            losses.append(loss.item())
        context.report({"epoch": epoch + 1, "epochs": epochs, "loss": float(np.mean(losses))})
    return averaged.module


def _loss(
    model: Any,
    classifier: nn.Linear,
    data: Examples,
    images: np.ndarray,
    ngram_weight: float,
    rng: np.random.Generator,
    device: str,
) -> Tensor:
    captions = np.array([rng.choice(data.captions_of[i]) for i in images])
    pixels = _augmented(data.pixels[images], rng).to(device)
    image_vectors = model.encode_image(pixels)
    text_vectors = model.encode_text(data.tokens[captions].to(device))
    also_true = data.true_of[images][:, captions].fill_diagonal_(False)
    pairs = contrastive(image_vectors, text_vectors, model.logit_scale, also_true)
    words = functional.binary_cross_entropy_with_logits(
        classifier(image_vectors), data.ngrams[images].float().to(device), reduction="none"
    )
    return pairs + ngram_weight * words.sum(dim=1).mean()


def _augmented(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Random crops of the model's size with a little change of brightness and contrast, normalised."""
    top, left = rng.integers(0, MARGIN_PX + 1, size=2)
    crop = pixels[:, :, top : top + IMAGE_PX, left : left + IMAGE_PX].float() / 255
    gain, offset = (torch.from_numpy(rng.uniform(-0.1, 0.1, (2, len(crop), 1, 1, 1))).float()).unbind()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (PREPROCESS.mean, PREPROCESS.std))
    return ((crop - 0.5) * (1 + gain) + 0.5 + offset - mean) / std


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to nothing."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)))


def _write_submission(model: Any, merges: list[str], output: Path) -> None:
    folder = Path(__file__).parent
    for name in ("submission.toml", "model.py", "README.md"):
        shutil.copyfile(folder / name, output / name)
    (output / MERGES_FILE).write_text("\n".join(merges) + "\n", encoding="utf-8")
    save_file({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, output / WEIGHTS_FILE)
