"""What attacks on a submission with a second stage are after: pairs that the second stage shall score wrongly, and the
final ranking, which fails as soon as either stage does. Images give logits and texts give losses, as against one stage,
so that every attack of the catalogue applies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from shifts.attacks.goal import TEMPERATURE, Logits, Losses, log_odds_of_failing

PAIRS_AT_ONCE = 4096
FAR_BELOW = 1e4
SPREAD = 4.0
PixelScores = Callable[
    [Float[Tensor, "batch 3 height width"], Int[Tensor, "batch k"], Int[Tensor, "batch k"]], Float[Tensor, "batch k"]
]
TextScores = Callable[[Sequence[str], Int[np.ndarray, " n_pairs"]], Float[np.ndarray, " n_pairs"]]


def choose_candidates(
    scores: Float[Tensor, "n_items n_others"], own: Bool[Tensor, "n_items n_others"], n_candidates: int
) -> tuple[Int[Tensor, "n_items k"], Bool[Tensor, "n_items k"]]:
    """For each item all that go with it and the strongest rivals, and which of these go with it.

    Args:
        scores: of the stage that says which rivals are strong, without attack.
        n_candidates: at least as many as any item's own; fewer where there are not so many.
    """
    shown = scores.masked_fill(own, torch.inf)
    candidates = shown.topk(min(n_candidates, scores.shape[1]), dim=1).indices
    return candidates, own.gather(1, candidates)


@dataclass(frozen=True, eq=False)
class PoolGoal:
    """What a first stage shall lose where a second one follows: queries whose own are no longer among the k best.

    `Goal` asks for place 1, which is lost much sooner. As one of both stages it then draws an attack towards images
    that lose place 1 and stay in the pool; what counts here is the lead over the k-th rival.

    Args:
        others: unit vectors of the gallery.
        own: which of them go with each query of the batch, at least one a row.
        k: size of the pool.
    """

    others: Float[Tensor, "n dim"]
    own: Bool[Tensor, "batch n"]
    k: int

    def logits(self, vectors: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch 2"]:
        """Two classes, the first "found"; differentiable.

        Args:
            vectors: embeddings of the batch, of any norm.
        """
        scores = functional.normalize(vectors) @ self.others.T
        found = _without(scores / TEMPERATURE, ~self.own).logsumexp(dim=1)
        return _two_classes(pool_levels(scores, self.own, self.k) - found)

    def losses(self, vectors: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        """The cross-entropy of label 0, one a query: what an attack raises."""
        return functional.softplus(self.logits(vectors)[:, 1])

    def take(self, rows: Int[Tensor, " n_rows"]) -> PoolGoal:
        """The goal of those rows of the batch, in that order; a row may be asked for several times."""
        return replace(self, own=self.own[rows])


def pool_levels(
    scores: Float[Tensor, "n_queries n_items"], own: Bool[Tensor, "n_queries n_items"], k: int
) -> Float[Tensor, " n_queries"]:
    """For each query cosine / temperature of the k-th best item that is not its own; -1 / temperature if there is none.

    As the `rivals` of a `Goal`, it makes an item of the gallery leave the pools of the queries that it belongs to.
    """
    rivals = functional.pad(scores.masked_fill(own, -1.0), (0, k), value=-1.0)
    return rivals.topk(k, dim=1).values[:, -1] / TEMPERATURE


def choose_scale(scores: Float[Tensor, "n_items k"]) -> float:
    """The scale by which an item's candidates differ by SPREAD logits, in the median over items.

    Taken from the scores without attack, so that a reranker is neither protected nor exposed by the unit of its
    scores: with a large one the gradient of a soft maximum vanishes in float32, with a small one all rivals weigh the
    same.
    """
    return float(scores.std(dim=1, correction=0).median()) / SPREAD or 1.0


def rival_levels(
    scores: Float[Tensor, "n_texts k"], own: Bool[Tensor, "n_texts k"], scale: float = 1.0
) -> Float[Tensor, " n_texts"]:
    """For each text the soft maximum of score / scale over the images of its pool that are not its own."""
    return _without(scores / scale, own).logsumexp(dim=1)


@dataclass(frozen=True, eq=False)
class PairGoal:
    """What a second stage shall get wrong about the images of one batch.

    Args:
        score: `score(pixels, rows, candidates)`: how well `pixels[rows]` go with those texts, one score for each
            element of the two index arrays, differentiable.
        candidates: the texts that each image is scored with: its own and the strongest rivals.
        own: which of the candidates go with the image, at least one a row.
        rivals: None where the images are queries. Where they stand in the gallery: the level of every text that
            `candidates` may name, as `rival_levels` of this module gives it with the same scale.
        scale: divides scores, which have no common unit among rerankers; see `choose_scale`.
    """

    score: PixelScores
    candidates: Int[Tensor, "batch k"]
    own: Bool[Tensor, "batch k"]
    rivals: Float[Tensor, " n_texts"] | None = None
    scale: float = 1.0

    def logits(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 2"]:
        """Two classes, the first "found", as `Goal.logits` but from the scores of pairs; differentiable."""
        rows = torch.arange(len(pixels), device=pixels.device)[:, None].expand_as(self.candidates)
        scores = self.score(pixels, rows, self.candidates) / self.scale
        if self.rivals is None:
            return _two_classes(_missed(scores, self.own))
        held = functional.softplus(scores - self.rivals[self.candidates]).masked_fill(~self.own, 0.0)
        return _two_classes(-held.sum(dim=1) / self.own.sum(dim=1))


@dataclass(frozen=True, eq=False)
class QueryTextGoal:
    """What a second stage shall get wrong about the texts that ask.

    Args:
        score: `score(texts, images)`: how well each text goes with the image beside it; asked for at most
            PAIRS_AT_ONCE pairs.
        candidates: the images that each attacked text is scored with: its own and the strongest rivals.
        own: which of the candidates go with the text, at least one a row.
        scale: divides scores, as for `PairGoal`.
    """

    score: TextScores
    candidates: Int[np.ndarray, "n_texts k"]
    own: Bool[np.ndarray, "n_texts k"]
    scale: float = 1.0

    def losses(self, texts: Sequence[str], rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """How far each candidate text is from finding its images, (n,) float32; higher is better for the attacker.

        Args:
            rows: which of the attacked texts each candidate replaces.
        """
        scores = torch.from_numpy(self._score(texts, self.candidates[rows]) / np.float32(self.scale))
        return functional.softplus(_missed(scores, torch.from_numpy(self.own[rows]))).numpy()

    def _score(self, texts: Sequence[str], images: Int[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        scores = np.empty(images.size, dtype=np.float32)
        askers = np.repeat(np.arange(len(texts)), images.shape[1])
        for start in range(0, images.size, PAIRS_AT_ONCE):
            part = slice(start, start + PAIRS_AT_ONCE)
            scores[part] = self.score([texts[asker] for asker in askers[part]], images.reshape(-1)[part])
        return scores.reshape(images.shape)


def either_stage(first: Logits, second: Logits) -> Logits:
    """Logits whose cross-entropy of label 0 is the sum of both stages' losses: "found" only where both find it.

    The first is best a `PoolGoal`'s, or a `Goal`'s with `pool_levels`, and the second's candidates the pool.

    With o = the odds of failing, 1 + o = (1 + o1)(1 + o2) gives log o = log(o1 + o2 + o1 o2), which needs no
    exponential of a loss: nothing overflows or is cancelled where a stage is certain, either way.
    """

    def logits(pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 2"]:
        one, two = log_odds_of_failing(first(pixels)), log_odds_of_failing(second(pixels))
        failing = torch.stack([one, two, one + two], dim=1).logsumexp(dim=1)
        return _two_classes(failing)

    return logits


def either_stage_losses(first: Losses, second: Losses) -> Losses:
    """The sum of both stages' losses of a text, as `either_stage` for an image."""
    return lambda texts, rows: first(texts, rows) + second(texts, rows)


def pixel_scores(score_pixels: Callable[[Tensor, Sequence[str]], Tensor], texts: Sequence[str]) -> PixelScores:
    """`score(pixels, rows, candidates)` over `texts`, from a reranker's `score_pixels`, called once for all.

    The images are repeated, each for all of its candidates: the interface scores whole pairs.
    """

    def score(
        pixels: Float[Tensor, "batch 3 height width"], rows: Int[Tensor, "batch k"], candidates: Int[Tensor, "batch k"]
    ) -> Float[Tensor, "batch k"]:
        beside = [texts[candidate] for candidate in candidates.reshape(-1).tolist()]
        return score_pixels(pixels[rows.reshape(-1)], beside).view(rows.shape)

    return score


def text_scores(
    score_pairs: Callable[[np.ndarray, Sequence[str]], np.ndarray | Tensor], tokens: np.ndarray
) -> TextScores:
    """`score(texts, images)` over the images whose `image_tokens` those are, from a reranker's `score_pairs`."""
    return lambda texts, images: np.asarray(score_pairs(tokens[images], texts))


def _missed(scores: Float[Tensor, "batch k"], own: Bool[Tensor, "batch k"]) -> Float[Tensor, " batch"]:
    """The soft maximum of everything else, less that of the query's own: the log odds of missing them."""
    return _without(scores, own).logsumexp(dim=1) - _without(scores, ~own).logsumexp(dim=1)


def _without(scores: Float[Tensor, "batch k"], left_out: Bool[Tensor, "batch k"]) -> Float[Tensor, "batch k"]:
    """The scores, with those left out too far below the others to count, and finite."""
    return torch.where(left_out, scores.detach().amin(dim=1, keepdim=True) - FAR_BELOW, scores)


def _two_classes(missed: Float[Tensor, " batch"]) -> Float[Tensor, "batch 2"]:
    return functional.pad(missed[:, None], (1, 0))
