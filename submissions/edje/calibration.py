"""How much the first stage counts beside the joint encoder: three numbers, chosen on validation pairs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from submissions.backbones.reranking import Candidates
from submissions.edje.features import Features
from submissions.edje.model import PAIRS_AT_ONCE, Reranking, soften

WEIGHTS = np.geomspace(1, 300, 24)
HUB_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
HUB_SCALES = np.geomspace(1 / 8, 1, 7)
"""Of the base's own scale: the smaller, the more of a bank's vectors make a hub."""


class Mix(NamedTuple):
    """What stands beside the joint encoder's logit: weight x (cosine - share x hubs).

    Args:
        weight: of the first stage.
        share: of the hubs that its cosines lose.
        scale: at which hubs are found; None without a bank.
    """

    weight: float
    share: float
    scale: float | None

    def add(
        self,
        logits: Float[np.ndarray, " n_pairs"],
        cosines: Float[np.ndarray, " n_pairs"],
        hubs: Float[np.ndarray, " n_pairs"],
    ) -> Float[np.ndarray, " n_pairs"]:
        """The scores of pairs; `hubs` are both items' together, at `scale`."""
        return logits + self.weight * (cosines - self.share * hubs)


def calibrate(
    candidates: Candidates,
    logits: Float[np.ndarray, " n_pairs"],
    cosines: Float[np.ndarray, " n_pairs"],
    hubs: Mapping[float | None, Float[np.ndarray, " n_pairs"]],
) -> Mix:
    """The mix by which right items come first.

    By the mean reciprocal rank, which is less coarse than R@1; of equals the first, which has the smallest weight.

    Args:
        candidates: validation pairs.
        logits: the joint encoder's.
        cosines: the first stage's.
        hubs: of each pair, both items' together, by the scale; zeros under None where no bank is kept.
    """
    shares = (0.0,) if None in hubs else HUB_SHARES
    tried = [Mix(*mix) for mix in product(WEIGHTS.tolist(), shares, hubs)]
    found = [candidates.reciprocal_rank(mix.add(logits, cosines, hubs[mix.scale])) for mix in tried]
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
def find_hubs(
    model: Reranking, features: Features, candidates: Candidates
) -> dict[float | None, Float[np.ndarray, " n_pairs"]]:
    """The sum of both items' hubs of every pair by the scale; zeros under None where no bank is kept."""
    pairs, bank = candidates.pairs, model.stage.bank
    if bank is None:
        return {None: np.zeros(len(pairs), np.float32)}
    near = features.images @ bank.texts.float().T, features.texts @ bank.images.float().T
    found: dict[float | None, Float[np.ndarray, " n_pairs"]] = {}
    for scale in (HUB_SCALES * float(model.log_scale.exp())).tolist():
        images, texts = (soften(cosines, scale).cpu().numpy() for cosines in near)
        found[scale] = (images[pairs[:, 0]] + texts[pairs[:, 1]]).astype(np.float32)
    return found
