"""A submission's second stage in a run: what it reads of a collection's items, how that orders the best items of the
first stage, and which of the stages an attack is after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float32, Int

from bench.errors import RoveError
from bench.records import Cell, Objective
from bench.retrieval.rerank import PairScores, SecondStage
from bench.types import Collection
from bench.worker.host import Loaded
from shifts.attacks.catalogue import Attack

Indices = Int[np.ndarray, " n_pairs"]


class NotApplicable(RoveError):
    """The cell's attack cannot be run against the submission; the message says why."""


@dataclass(frozen=True, eq=False)
class Readings:
    """What a second stage reads of images and captions.

    Args:
        tokens: of the images, in the submission's own type.
        score_pairs: `score_pairs(tokens, images, texts)`: the scores of `tokens[images]` with the texts beside them.
    """

    tokens: Float[np.ndarray, "n_images ..."]
    captions: Sequence[str]
    score_pairs: Callable[[np.ndarray, Indices, Sequence[str]], Float32[np.ndarray, " n_pairs"]]

    @property
    def token_bytes(self) -> int:
        """What is kept of one image."""
        return self.tokens.nbytes // len(self.tokens)

    def score(self, images: Indices, captions: Indices) -> Float32[np.ndarray, " n_pairs"]:
        """The scores of those images with the captions beside them."""
        return self.score_pairs(self.tokens, images, [self.captions[caption] for caption in captions.tolist()])

    def with_distractors(self, more: Readings) -> Readings:
        """These, with the images of `more` behind their own."""
        return replace(self, tokens=np.concatenate([self.tokens, more.tokens]))


def in_both_directions(k: int, score: PairScores) -> SecondStage:
    """The second stage over the k best items, by `score(images, captions)` whoever asks."""
    return SecondStage(k, {"t2i": score, "i2t": score})


def score_stand_ins(clean: Readings, changed: Readings, collection: Collection) -> PairScores:
    """Scores by which an item is read as in `changed` by those that it is right for, and as in `clean` by all others.

    The query of such a pair is the same in both.
    """
    n_captions = len(collection.captions)
    own = collection.positives @ np.array([n_captions, 1])

    def score(images: Indices, captions: Indices) -> Float32[np.ndarray, " n_pairs"]:
        right = np.isin(images * n_captions + captions, own)
        scores = np.empty(len(images), np.float32)
        for part, readings in ((right, changed), (~right, clean)):
            if part.any():
                scores[part] = readings.score(images[part], captions[part])
        return scores

    return score


def find_objective(cell: Cell, attack: Attack, loaded: Loaded, label: str) -> Objective:
    """What the attack on a cell's stage is really after: at the second one only what has a goal there.

    Raises:
        NotApplicable: the stage does not exist, or the attack cannot reach it.
    """
    if not loaded.reranker:
        if cell.stage:
            raise NotApplicable(f"{label} has one stage; there is no {cell.stage} to be attacked by itself.")
        return "retrieval"
    obstacle = _find_obstacle(cell, attack, loaded, label)
    if cell.stage == "reranking":
        if obstacle:
            raise NotApplicable(obstacle)
        return "reranking"
    return "retrieval" if cell.stage == "retrieval" or obstacle else "both stages"


def _find_obstacle(cell: Cell, attack: Attack, loaded: Loaded, label: str) -> str:
    """Why the attack has no goal at the second stage; "" if it has one."""
    captions_found = attack.modality == "text" and cell.threat_model != "query"
    if captions_found or cell.threat_model in ("both", "distractor"):
        return (
            f"{attack.name} with the threat model {cell.threat_model} has no goal at the second stage; "
            "give the cell the stage retrieval, or none."
        )
    if attack.access == "white" and not loaded.differentiable_reranker:
        return (
            f"{attack.name} needs a gradient of the second stage, which {label} does not give (it implements no "
            "score_pixels); only black-box attacks reach its reranking. See submissions/README.md."
        )
    return ""
