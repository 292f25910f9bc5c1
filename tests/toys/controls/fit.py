"""Makes the `weights.safetensors` beside it, in two minutes on one core: `python tests/toys/controls/fit.py`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from model import WEIGHTS, Towers, read_pixels, words_of
from safetensors.torch import save_file
from torch.nn import functional

from bench.data.registry import load_collection
from bench.types import Collection

N_IMAGES, EPOCHS, BATCH, TEMPERATURE = 3000, 40, 100, 0.07


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    train = load_collection("scenes/train").head(N_IMAGES)
    words = frequent_words(train)
    towers = fit(train, words)
    tensors = {name: tensor.half().contiguous() for name, tensor in towers.state_dict().items()}
    save_file(tensors, Path(__file__).parent / WEIGHTS, {"words": " ".join(words)})


def frequent_words(collection: Collection) -> list[str]:
    """Words of at least ten captions."""
    counts = Counter(word for caption in collection.captions for word in set(words_of(caption)))
    return sorted(word for word, count in counts.items() if count >= 10)


def fit(train: Collection, words: list[str]) -> Towers:
    """Both towers, by a symmetric InfoNCE over one caption an image."""
    rng = np.random.Generator(np.random.Philox(0))
    pixels = read_pixels([image.decode() for image in train.images])
    captions: list[list[str]] = [[] for _ in train.images]
    for image, caption in train.positives:
        captions[image].append(train.captions[caption])
    towers = Towers(words)
    optimizer = torch.optim.AdamW(towers.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=EPOCHS * (len(pixels) // BATCH))
    for _ in range(EPOCHS):
        for rows in rng.permutation(len(pixels)).reshape(-1, BATCH):
            texts = [captions[row][rng.integers(len(captions[row]))] for row in rows]
            top, left = rng.integers(-3, 4, 2)
            shifted = torch.roll(pixels[rows], (int(top), int(left)), (2, 3))
            images = functional.normalize(towers.embed_pixels(shifted))
            logits = images @ functional.normalize(towers.embed_texts(texts)).T / TEMPERATURE
            targets = torch.arange(len(rows))
            loss = functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return towers


if __name__ == "__main__":
    main()
