"""Words that a masked language model expects in a caption."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from shifts.text import hub_models
from shifts.text.hub_models import HubModel

MODEL = HubModel("masked_lm", "google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594")
_TOP_K = 10
_MAX_TOKENS = 510
_lock = threading.Lock()


class _Words(NamedTuple):
    """The whole words of a vocabulary."""

    ids: Int64[np.ndarray, " n_words"]
    texts: Mapping[int, str]


def insert_words(caption: str, n_words: int, rng: np.random.Generator) -> str:
    """The caption with `n_words` more words, each where BERT expects one; the others keep their order and spacing.

    One after the other: a mask is put before a word or after the last, at a place drawn among all, and a word drawn
    among the ten most probable that are whole words of letters. Punctuation stays with the word it follows. Captions
    without a word, with a lone surrogate or too long for the model stay as they are.

    Args:
        caption: any string.
        n_words: how many to insert, at least 0.
        rng: draws the places and the words.

    Raises:
        MissingError: the model cannot be loaded; the message says how to fetch it.

    Source: `ContextualWordEmbsAug(action="insert")` of nlpaug 1.1.11, which samples by probability instead.
    """
    if not any(character.isalpha() for character in caption) or re.search("[\ud800-\udfff]", caption):
        return caption
    with _lock:
        for _ in range(n_words):
            longer = _insert_word(caption, rng)
            if longer == caption:
                break
            caption = longer
    return caption


def find_missing(name: str = "word_insert") -> str:
    """Why that shift cannot run here, or "" if it can or can fetch what it needs."""
    return hub_models.find_missing([MODEL])


def _insert_word(caption: str, rng: np.random.Generator) -> str:
    """The caption with one word more; at the end it goes before the final punctuation."""
    places = [word.start() for word in re.finditer(r"(?<!\S)\S*\w\S*", caption)]
    last = re.search(r"[^\w\s]*\s*$", caption)
    end = last.start() if last else len(caption)
    place = [*places, end][rng.integers(len(places) + 1)]
    words = _expected_words(caption[:place], caption[place:])
    if not words:
        return caption
    word = words[rng.integers(len(words))]
    if place == end:
        return f"{caption[:place]} {word}{caption[place:]}"
    follows = caption[place:]
    first = follows.split()[0]
    if not caption[:place].strip() and first[0].isupper() and first[1:] == first[1:].lower() and first != "I":
        word, follows = word.capitalize(), follows[0].lower() + follows[1:]
    return f"{caption[:place]}{word} {follows}"


def _expected_words(before: str, after: str) -> list[str]:
    """The most probable words at the gap, best first; ties go by the vocabulary's order."""
    import torch

    [(tokenizer, net)] = hub_models.load(MODEL)
    tokens = tokenizer(f"{before} {tokenizer.mask_token} {after}", return_tensors="pt", verbose=False)
    ids = tokens["input_ids"][0]
    gap = (ids == tokenizer.mask_token_id).nonzero()
    if len(ids) > min(_MAX_TOKENS, net.config.max_position_embeddings) or len(gap) != 1:
        return []
    with torch.inference_mode():
        scores = net(**tokens).logits[0, gap[0, 0]].numpy()
    known = _whole_words(MODEL)
    ranked = known.ids[np.argsort(-scores[known.ids], kind="stable")[:_TOP_K]]
    return [known.texts[index] for index in ranked.tolist()]


@cache
def _whole_words(model: HubModel) -> _Words:
    """The pieces of the model's vocabulary that are words of Latin letters, in its order."""
    [(tokenizer, _)] = hub_models.load(model)
    texts = {
        index: piece
        for piece, index in tokenizer.get_vocab().items()
        if piece.isalpha() and piece.isascii() and (len(piece) > 1 or piece in ("a", "i"))
    }
    return _Words(np.array(sorted(texts), np.int64), texts)
