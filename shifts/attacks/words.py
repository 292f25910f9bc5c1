"""Words replaced by others that fit, where that hurts the victim most: BERT-Attack as a search by scores alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from shifts.attacks.candidates import Slot, find_slots
from shifts.attacks.goal import Losses

N_WORDS = 4

_N_TEXTS_AT_ONCE = 64


@dataclass
class _Search:
    """The state of one text: its words by importance, and the replacements chosen so far by slot."""

    text: str
    row: int
    loss: float
    slots: Sequence[Slot]
    chosen: dict[int, str] = field(default_factory=dict)

    def edited(self) -> str:
        return _edited(self.text, self.slots, self.chosen)

    def tries(self) -> list[dict[int, str]]:
        """What one edit more could be: a candidate of one of the `N_WORDS` most important words that are left."""
        left = [i for i in range(len(self.slots)) if i not in self.chosen][:N_WORDS]
        return [{**self.chosen, i: word} for i in left for word in self.slots[i].words]


def bert_attack(losses: Losses, texts: Sequence[str], budget: int, rng: np.random.Generator) -> list[str]:
    """The texts with up to `budget` words replaced; see `replace_words`, which draws nothing at random."""
    return replace_words(losses, texts, budget)


def replace_words(losses: Losses, texts: Sequence[str], budget: int) -> list[str]:
    """The texts with up to `budget` words replaced so that their losses are as high as a greedy search finds.

    A word is as important as the loss is high without it. Of the `N_WORDS` most important words of a text all
    candidates are tried, and the best replaces its word if it raises the loss; with a budget of 2 the same follows
    for the remaining words. At most 1 + n_words + budget x 48 strings a text are scored.

    The word is deleted to see its importance: how a "[MASK]" or "[UNK]" reads depends on the victim's tokenizer, and
    most, CLIP's among them, take it for brackets and letters. BERT-Attack (`[UNK]` in the code of Co-Attack and SGA)
    stops at the first word that it can change, and lets several pieces of a word vary.

    Args:
        losses: how bad each candidate is for the victim, higher is better for the attacker, with the row of `texts`
            that it would replace; it is called with thousands of strings at a time.
        texts: any strings.
        budget: how many words may change.

    Raises:
        MissingError: a package that proposes candidates is not installed.

    Source: arXiv 2004.09984, algorithm 1.
    """
    edited: list[str] = []
    for start in range(0, len(texts), _N_TEXTS_AT_ONCE):
        searches = _begin(losses, texts[start : start + _N_TEXTS_AT_ONCE], start)
        active = searches
        for _ in range(budget):
            active = _advance(losses, active)
        edited += [search.edited() for search in searches]
    return edited


def _begin(losses: Losses, texts: Sequence[str], first_row: int) -> list[_Search]:
    """The unchanged texts with their losses, the slots of each in order of importance."""
    slots = [find_slots(text) for text in texts]
    strings = [[text, *(_without(text, slot) for slot in some)] for text, some in zip(texts, slots, strict=True)]
    rows = range(first_row, first_row + len(texts))
    searches = []
    for row, text, some, scores in zip(rows, texts, slots, _score(losses, strings, rows), strict=True):
        order = np.argsort(-scores[1:], kind="stable")
        searches.append(_Search(text, row, float(scores[0]), [some[i] for i in order]))
    return searches


def _advance(losses: Losses, searches: Sequence[_Search]) -> list[_Search]:
    """Makes the best next edit in each text; those that had one come back."""
    tries = [search.tries() for search in searches]
    strings = [
        [_edited(search.text, search.slots, chosen) for chosen in some]
        for search, some in zip(searches, tries, strict=True)
    ]
    improved = []
    for search, some, scores in zip(
        searches, tries, _score(losses, strings, [search.row for search in searches]), strict=True
    ):
        best = int(np.argmax(scores)) if some else -1
        if some and scores[best] > search.loss:
            search.chosen, search.loss = some[best], float(scores[best])
            improved.append(search)
    return improved


def _score(losses: Losses, strings: Sequence[Sequence[str]], rows: Sequence[int]) -> list[np.ndarray]:
    """The losses of each text's strings, all from one call."""
    sizes = [len(some) for some in strings]
    flat = [string for some in strings for string in some]
    scores = np.asarray(losses(flat, np.repeat(np.array(rows, np.int64), sizes))) if flat else np.empty(0)
    return np.split(scores, np.cumsum(sizes)[:-1]) if sizes else []


def _edited(text: str, slots: Sequence[Slot], chosen: Mapping[int, str]) -> str:
    for i in sorted(chosen, key=lambda i: slots[i].start, reverse=True):
        text = text[: slots[i].start] + chosen[i] + text[slots[i].end :]
    return text


def _without(text: str, slot: Slot) -> str:
    return f"{text[: slot.start].rstrip()}{text[slot.end :]}".lstrip()
