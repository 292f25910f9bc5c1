"""How much the first stage counts beside the joint encoder: two numbers, chosen on validation pairs."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from jaxtyping import Float

from submissions.backbones.reranking import Candidates
from submissions.edje.features import Features
from submissions.edje.model import PAIRS_AT_ONCE, Reranking

WEIGHTS = np.geomspace(1, 300, 24)
HUB_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def calibrate(
    candidates: Candidates,
    logits: Float[np.ndarray, " n_pairs"],
    cosines: Float[np.ndarray, " n_pairs"],
    hubs: Float[np.ndarray, " n_pairs"],
) -> tuple[float, float]:
    """The weight of the first stage and the share of its hubs by which right items come first.

    By the mean reciprocal rank, which is less coarse than R@1; of equals the first, which is the smallest.

    Args:
        candidates: validation pairs.
        logits: the joint encoder's.
        cosines: the first stage's.
        hubs: of each pair, both items' together.
    """
    shares = HUB_SHARES if hubs.any() else (0.0,)
    tried = list(product(WEIGHTS.tolist(), shares))
    found = [candidates.reciprocal_rank(logits + weight * (cosines - share * hubs)) for weight, share in tried]
    return tried[int(np.argmax(found))]


@torch.no_grad()
def score_candidates(model: Reranking, features: Features, candidates: Candidates) -> Float[np.ndarray, " n_pairs"]:
    """The joint encoder's logits of all pairs."""
    images = np.arange(features.examples.n_images)
    stage, captions = model.stage, features.examples.collection.captions
    with model.autocast():
        parts = np.array_split(images, -(-len(images) // PAIRS_AT_ONCE))
        tokens = torch.cat([stage.compress(features.states(part)) for part in parts])
    pairs = candidates.pairs
    order = np.argsort([len(captions[caption]) for caption in pairs[:, 1]], kind="stable")
    logits = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        rows = order[start : start + PAIRS_AT_ONCE]
        asked, places = np.unique(pairs[rows, 1], return_inverse=True)
        with model.autocast():
            words = stage.encoder.read(*model.tokenizer([captions[one] for one in asked], model.device))
            found = stage.logits(words.pick(torch.from_numpy(places)), tokens[torch.from_numpy(pairs[rows, 0])])
        logits[rows] = found.float().cpu().numpy()
    return logits


@torch.no_grad()
def find_hubs(model: Reranking, features: Features, candidates: Candidates) -> Float[np.ndarray, " n_pairs"]:
    """The sum of both items' hubs of every pair; zeros where no bank is kept."""
    pairs, bank = candidates.pairs, model.stage.bank
    if bank is None:
        return np.zeros(len(pairs), np.float32)
    images, texts = bank.hubs(features.images, bank.texts), bank.hubs(features.texts, bank.images)
    return (images.cpu().numpy()[pairs[:, 0]] + texts.cpu().numpy()[pairs[:, 1]]).astype(np.float32)
