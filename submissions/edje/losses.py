"""EDJE's losses on a batch: matching, masked words, the base's text vector, the teacher's view of each pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from submissions.backbones.examples import Batch
from submissions.backbones.retrieval import Student, match_pairs
from submissions.edje.features import Features
from submissions.edje.joint import Words
from submissions.edje.model import Reranking

MASKED_SHARE = 0.5
LOSSES = ("itm", "mlm", "text", "distill", "align")


class Scored(NamedTuple):
    """Pairs of a batch that are scored: each image with its own caption and the hardest others, and the reverse.

    Args:
        rows: of their images.
        columns: of their captions.
        by_image: which captions stand against each other for an image, (images, captions).
        by_text: which images do for a caption, (images, captions).
    """

    rows: Int[Tensor, " n_pairs"]
    columns: Int[Tensor, " n_pairs"]
    by_image: Bool[Tensor, "n n"]
    by_text: Bool[Tensor, "n n"]


class Losses(nn.Module):
    """The mean of the losses that are asked for, with the heads that serve them alone and are not kept.

    Each loss is weighted equally, as in the paper. The text loss reads the state of [CLS] beside its own image
    [inferred]; masked words are chosen among those that occur in the training captions.

    Args:
        names: some of `LOSSES`.
        features: of the training examples.
        model: what learns, for its sizes.
        n_negatives: hardest ones a pair, in either direction; the paper's is one.
        teacher: what `distill` learns from.

    Source: arXiv:2510.06820, section 4.3.
    """

    def __init__(
        self, names: Sequence[str], features: Features, model: Reranking, n_negatives: int, teacher: Reranking | None
    ) -> None:
        super().__init__()
        self._names, self._features, self._n_negatives, self._teacher = names, features, n_negatives, teacher
        self._device, width = model.device, model.stage.encoder.size.width
        captions = features.examples.collection.captions
        ids, seen = model.tokenizer(captions, "cpu")
        self._pieces = torch.unique(ids[seen]).to(self._device)
        self.unmask = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)).to(self._device)
        self.to_text = nn.Linear(width, features.texts.shape[1]).to(self._device)
        if "mlm" not in names:
            self.unmask.requires_grad_(False)
        if "text" not in names:
            self.to_text.requires_grad_(False)

    def forward(self, student: Student, batch: Batch) -> Float[Tensor, ""]:
        """The mean of the losses of one batch."""
        model = cast(Reranking, student.backbone)
        with model.autocast():
            tokens = model.stage.compress(self._features.states(batch.images))
            ids, seen = model.tokenizer(batch.texts, model.device)
            words = model.stage.encoder.read(ids, seen)
            scored = self._choose(batch)
            found: dict[str, Callable[[], Tensor]] = {}
            if {"itm", "distill", "text"} & set(self._names):
                picked = words.pick(scored.columns)
                first = model.stage.encoder.join(picked, tokens[scored.rows], 1)[:, 0]
                logits = model.stage.judge(picked, tokens[scored.rows], first).float()
                own = first[scored.rows == scored.columns]
                found["itm"] = lambda: matching_loss(logits, scored)
                found["text"] = lambda: self._text_loss(own, batch)
                found["distill"] = lambda: self._distill_loss(logits, scored, batch)
            found["mlm"] = lambda: self._mlm_loss(model, tokens, ids, seen)
            found["align"] = lambda: align_loss(model, words, tokens, batch.also_true)
            losses = [found[name]() for name in self._names]
        return torch.stack(losses).mean()

    def _choose(self, batch: Batch) -> Scored:
        """The pairs that are hardest by the first stage."""
        images = self._features.images[torch.from_numpy(batch.images)]
        texts = self._features.texts[torch.from_numpy(batch.captions)]
        cosines = images @ texts.T
        return choose_pairs(cosines.masked_fill(batch.also_true.to(cosines.device), -torch.inf), self._n_negatives)

    def _mlm_loss(
        self,
        model: Reranking,
        tokens: Float[Tensor, "n n_tokens width"],
        ids: Int[Tensor, "n length"],
        seen: Bool[Tensor, "n length"],
    ) -> Float[Tensor, ""]:
        """Cross-entropy of masked pieces, from the rest of the caption and its own image."""
        tokenizer, encoder = model.tokenizer, model.stage.encoder
        masked = seen & (ids != tokenizer.start) & (ids != tokenizer.end)
        masked &= torch.rand(ids.shape, device=ids.device) < MASKED_SHARE
        words = encoder.read(ids.masked_fill(masked, tokenizer.mask), seen)
        states = self.unmask(encoder.join(words, tokens, ids.shape[1])[masked])
        logits = states @ encoder.words.weight[self._pieces].to(states.dtype).T
        return functional.cross_entropy(logits.float(), torch.searchsorted(self._pieces, ids[masked]))

    def _text_loss(self, own: Float[Tensor, "n width"], batch: Batch) -> Float[Tensor, ""]:
        """One minus the cosine of what [CLS] says of the caption's vector and that vector."""
        targets = self._features.texts[torch.from_numpy(batch.captions)]
        return (1 - functional.cosine_similarity(self.to_text(own).float(), targets)).mean()

    def _distill_loss(self, logits: Float[Tensor, " n_pairs"], scored: Scored, batch: Batch) -> Float[Tensor, ""]:
        """Cross-entropy of each pair's probability with the teacher's."""
        if self._teacher is None:
            return logits.new_zeros(())
        with torch.no_grad():
            stage = self._teacher.stage
            tokens = stage.compress(self._features.states(batch.images))
            words = stage.encoder.read(*self._teacher.tokenizer(batch.texts, self._device))
            targets = stage.logits(words.pick(scored.columns), tokens[scored.rows]).float().sigmoid()
        return functional.binary_cross_entropy_with_logits(logits, targets)


def choose_pairs(cosines: Float[Tensor, "n n"], n_negatives: int) -> Scored:
    """Of every image and every caption its own partner and the `n_negatives` others of the highest cosine.

    Args:
        cosines: rows images, columns captions, the diagonal their own; minus infinity for what is no negative.
        n_negatives: at most; fewer where there are not so many.
    """
    own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    others = cosines.masked_fill(own, -torch.inf)
    n_others = min(n_negatives, len(cosines) - 1)
    by_image = own.scatter(1, others.topk(n_others, dim=1).indices, True) & (own | others.isfinite())
    by_text = own.scatter(0, others.topk(n_others, dim=0).indices, True) & (own | others.isfinite())
    rows, columns = (by_image | by_text).nonzero(as_tuple=True)
    return Scored(rows, columns, by_image, by_text)


def matching_loss(logits: Float[Tensor, " n_pairs"], scored: Scored) -> Float[Tensor, ""]:
    """Mean of both ways' cross-entropy of the own partner among those that were chosen for an item."""
    table = logits.new_full(scored.by_image.shape, -torch.inf).index_put((scored.rows, scored.columns), logits)
    targets = torch.arange(len(table), device=table.device)
    by_image = functional.cross_entropy(table.masked_fill(~scored.by_image, -torch.inf), targets)
    by_text = functional.cross_entropy(table.masked_fill(~scored.by_text, -torch.inf).T, targets)
    return (by_image + by_text) / 2


def align_loss(
    model: Reranking, words: Words, tokens: Float[Tensor, "n n_tokens width"], also_true: Bool[Tensor, "n n"]
) -> Float[Tensor, ""]:
    """Cross-entropy, both ways, of every caption with every image of the batch by words' likeness to tokens alone."""
    aligned = model.stage.aligned
    if aligned is None:
        return tokens.new_zeros(())
    return match_pairs(aligned.table(words, tokens).float(), also_true)
