"""What an attack is after at either stage: margins of the first, and pairs that the second shall score wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from bench.retrieval.rerank import PairScores
from bench.second import Indices, Readings
from bench.victim import Victim
from shifts.attacks.budget import to_levels
from shifts.attacks.goal import Goal, Logits, Losses
from shifts.attacks.rerank import (
    PairGoal,
    PixelScores,
    PoolGoal,
    QueryTextGoal,
    choose_candidates,
    choose_scale,
    either_stage,
    either_stage_losses,
    pixel_scores,
    rival_levels,
    text_scores,
)

_TEXTS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs that a second stage shall score wrongly: each attacked item with its own and the strongest rivals.

    Args:
        attacked: which side of the pairs.
        readings: of the clean items.
        candidates: items of the other modality.
        own: which of them go with the attacked item.
        scale: as for `PairGoal`.
        rivals: as for `PairGoal`; None where the attacked items ask.
    """

    attacked: Literal["images", "captions"]
    readings: Readings
    candidates: Int[Tensor, "n_items k"]
    own: Bool[Tensor, "n_items k"]
    scale: float
    rivals: Float[Tensor, " n_captions"] | None = None

    def goal(self, score: PixelScores, rows: Int[Tensor, " n"] | slice = slice(None)) -> PairGoal:
        """What those rows shall lose."""
        return PairGoal(score, self.candidates[rows], self.own[rows], self.rivals, self.scale)

    def losses(self, readings: Readings) -> Float[Tensor, " n_items"]:
        """What an attack raises, of items that are now read like that."""
        rows = torch.arange(len(self.candidates))[:, None].expand_as(self.candidates)
        pairs = (rows, self.candidates) if self.attacked == "images" else (self.candidates, rows)
        scores = torch.from_numpy(readings.score(*(part.reshape(-1).numpy() for part in pairs))).view(rows.shape)
        logits = self.goal(lambda *_: scores).logits(torch.empty(len(rows), 0))
        return functional.softplus(logits[:, 1])


def choose_pairs(
    attacked: Literal["images", "captions"],
    asking: bool,
    cosines: Float[Tensor, "n_items n_others"],
    own: Bool[Tensor, "n_items n_others"],
    k: int,
    readings: Readings,
) -> Pairs:
    """The pairs for all items of the attacked side.

    Args:
        asking: whether the attacked items are queries; else they stand in the gallery.
        cosines: of the first stage, on clean items.
        own: which of the others go with each item.
        k: size of the pool.
        readings: of the clean items.
    """

    def score(askers: Indices, items: Indices) -> np.ndarray:
        return readings.score(askers, items) if (attacked == "images") == asking else readings.score(items, askers)

    if asking:
        candidates, are_own, scores = _score_pools(cosines, own, k, score)
        return Pairs(attacked, readings, candidates, are_own, choose_scale(scores))
    _, are_own, scores = _score_pools(cosines.T, own.T, k, score)
    scale = choose_scale(scores)
    levels = rival_levels(scores, are_own, scale)
    return Pairs(attacked, readings, *choose_candidates(cosines, own, _most_own(own)), scale, levels)


def _score_pools(
    cosines: Float[Tensor, "n_askers n"], own: Bool[Tensor, "n_askers n"], k: int, score: PairScores
) -> tuple[Int[Tensor, "n_askers k"], Bool[Tensor, "n_askers k"], Float[Tensor, "n_askers k"]]:
    """For each query its own and at least k - 1 rivals, which are its own, and all their scores at the second stage."""
    candidates, are_own = choose_candidates(cosines, own, k + _most_own(own) - 1)
    askers = torch.arange(len(candidates))[:, None].expand_as(candidates)
    scores = score(askers.reshape(-1).numpy(), candidates.reshape(-1).numpy())
    return candidates, are_own, torch.from_numpy(scores).view(candidates.shape)


def _most_own(own: Bool[Tensor, "n_items n_others"]) -> int:
    return int(own.sum(dim=1).max())


@dataclass(frozen=True, eq=False)
class Aim:
    """What an attack is after, one row for each item.

    Args:
        first: at the first stage; None where it is left alone.
        second: at the second stage; None where it is left alone.
    """

    first: Goal | PoolGoal | None
    second: Pairs | None = None

    def logits(self, victim: Victim, items: Int[np.ndarray, " n"]) -> Logits:
        """What attacks on a batch of those images ascend; differentiable as far as the victim is."""
        rows, parts = torch.from_numpy(items), []
        if self.first is not None:
            goal = self.first.take(rows)
            parts.append(lambda pixels: goal.logits(victim.embed_pixels(pixels)))
        if self.second is not None:
            parts.append(self.second.goal(_score_pixels(victim, self.second.readings.captions), rows).logits)
        return either_stage(parts[0], parts[1]) if len(parts) > 1 else parts[0]

    def losses(self, victim: Victim, items: Int[np.ndarray, " n"]) -> Losses:
        """How bad texts are for the victim, each in the place of one of those captions."""
        parts: list[Losses] = []
        if self.first is not None:
            parts.append(_first_losses(self.first, victim, items))
        if self.second is not None:
            pairs, rows = self.second, torch.from_numpy(items)
            score = text_scores(victim.score_pairs, pairs.readings.tokens)
            kept = pairs.candidates[rows].numpy(), pairs.own[rows].numpy()
            parts.append(QueryTextGoal(score, *kept, pairs.scale).losses)
        return either_stage_losses(parts[0], parts[1]) if len(parts) > 1 else parts[0]

    def mean_loss(self, vectors: Float[Tensor, "n_items dim"], readings: Readings | None) -> float:
        """What the attack raises, averaged over all items, from what both stages make of them."""
        first = 0.0 if self.first is None else float(self.first.losses(vectors).mean())
        second = 0.0 if self.second is None or readings is None else float(self.second.losses(readings).mean())
        return first + second


def _first_losses(goal: Goal | PoolGoal, victim: Victim, items: Int[np.ndarray, " n"]) -> Losses:
    def losses(texts: Sequence[str], rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        found = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            part = slice(start, start + _TEXTS_AT_ONCE)
            wanted = goal.take(torch.from_numpy(items[rows[part]]))
            found.append(wanted.losses(victim.encode_texts(texts[part])).double().numpy())
        return np.concatenate(found) if found else np.empty(0)

    return losses


def _score_pixels(victim: Victim, captions: Sequence[str]) -> PixelScores:
    """By `score_pixels`; of a submission that has none by the tokens of whole levels, without gradient."""
    if victim.differentiable_reranker:
        return pixel_scores(victim.score_pixels, captions)

    def score(pixels: Tensor, rows: Tensor, candidates: Tensor) -> Tensor:
        tokens = victim.image_tokens(list(to_levels(pixels)))[rows.reshape(-1).numpy()]
        texts = [captions[candidate] for candidate in candidates.reshape(-1).tolist()]
        return victim.score_pairs(tokens, texts).view(rows.shape)

    return score
