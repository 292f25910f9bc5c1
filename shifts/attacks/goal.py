"""What an attack is after, as a classification that it tries to make wrong: column 0 stands for "found".

Every attack on a single item maximises the cross-entropy of label 0 over these logits, whichever optimiser it is, so
that attacks made for classifiers apply to retrieval, where an item has several right answers.

There are two columns, 0 and how far the wrong answers are above the right ones, not one column for every wrong answer:
the cross-entropy is the same, but its gradient keeps its direction in float32 until the right ones lead by 87
temperatures (over many columns the right ones' half of it is lost from 17 on).

`TEMPERATURE` is what cosines are divided by, whatever the model's own is: a smaller one loses rank 1 to the nearest
rival sooner, a larger one pushes further down the ranking. Measured with PGD on image queries over the whole gallery of
captions, at .01 / .02 / .05, as the share of those found that are lost: `tiny`, 128 scenes, eps 1: .333 / .314 / .294
(.255 at .1); 64 scenes, eps 2: .608 / .588 / .627, with R@10 .891 / .875 / .797 left; `pocket`, 24 photos of Flickr8k,
eps 1, 3 steps: all are lost, with R@10 .125 / .042 / .000 left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor, no_grad
from torch.nn import functional

TEMPERATURE = 0.02
_NEVER = -1e4
_NOTHING = -1 / TEMPERATURE  # where there is no wrong answer: as if there were one, as far away as can be

Logits = Callable[[Float[Tensor, "batch 3 height width"]], Float[Tensor, "batch n_classes"]]
Losses = Callable[[Sequence[str], Int[np.ndarray, " n"]], Float[np.ndarray, " n"]]
"""How bad texts are for the victim, with the row of the attacked texts that each would replace."""


@dataclass(frozen=True, eq=False)
class Goal:
    """What the items of one batch shall lose, or win.

    Args:
        others: unit vectors of the other modality's items, (n, dim) float32.
        own: which of them go with each item of the batch, (batch, n) bool, at least one a row.
        rivals: None where the items are queries and `others` is their gallery. Where the items stand in the gallery
            and `others` are the queries: for each query the soft maximum of the scores (already divided by the
            temperature) of all that is not its own, (n,) float32, as `rival_levels` gives it.
        attract: the items are distractors that shall be found for `own`; needs `rivals`.
    """

    others: Float[Tensor, "n dim"]
    own: Bool[Tensor, "batch n"]
    rivals: Float[Tensor, " n"] | None = None
    attract: bool = False

    def logits(self, vectors: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch 2"]:
        """Two classes, the first "found": 0 against how far the item is from being found; differentiable.

        For a query that is the soft maximum over everything else, less the soft maximum over its positives, so that the
        cross-entropy is -log of the share that all its positives have together. For an item of the gallery it is minus
        its lead over the rivals, counted where it leads (soft plus), as the mean over the queries that it belongs to;
        for a distractor, minus what it lags behind them, counted where it lags.

        Args:
            vectors: embeddings of the batch, of any norm.
        """
        scores = functional.normalize(vectors) @ self.others.T / TEMPERATURE
        missed = self._missed_query(scores) if self.rivals is None else self._missed_item(scores - self.rivals)
        return functional.pad(missed[:, None], (1, 0))

    def losses(self, vectors: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        """The cross-entropy of label 0, one an item: what an attack raises."""
        return cross_entropies(self.logits(vectors))

    def take(self, rows: Int[Tensor, " n_rows"]) -> Goal:
        """The goal of those rows of the batch, in that order; a row may be asked for several times."""
        return replace(self, own=self.own[rows])

    def _missed_query(self, scores: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
        found = scores.masked_fill(~self.own, _NEVER).logsumexp(dim=1)
        return scores.masked_fill(self.own, _NOTHING).logsumexp(dim=1) - found

    def _missed_item(self, leads: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
        held = functional.softplus(-leads if self.attract else leads).masked_fill(~self.own, 0)
        return -held.sum(dim=1) / self.own.sum(dim=1)


def cross_entropies(logits: Float[Tensor, "batch n_classes"]) -> Float[Tensor, " batch"]:
    """The cross-entropy of label 0 in each row."""
    return logits.logsumexp(dim=1) - logits[:, 0]


def log_odds_of_failing(logits: Float[Tensor, "batch n_classes"]) -> Float[Tensor, " batch"]:
    """The lead of all other columns together over column 0; unlike the cross-entropy it is not flat near 0."""
    return logits[:, 1:].logsumexp(dim=1) - logits[:, 0]


@no_grad()
def rival_levels(scores: Float[Tensor, "n_queries n_items"], own: Bool[Tensor, "n_queries n_items"]) -> Tensor:
    """For each query the soft maximum of cosine / temperature over the items that are not its own, (n_queries,)."""
    return (scores / TEMPERATURE).masked_fill(own, _NOTHING).logsumexp(dim=1)
