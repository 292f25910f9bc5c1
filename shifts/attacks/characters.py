"""Single characters typed, replaced or deleted where that hurts the victim most: searches by scores alone.

A text of L characters has 2 L + 1 places, the characters and the gaps before, between and after them, and one edit
puts a symbol into one place. Every round makes one edit more, so that a text is never further than `budget` edits from
where it started. All texts advance together and none looks at another: the same strings come back whether texts are
attacked at once or one by one. No string is scored twice for the same text.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from shifts.attacks.goal import Losses
from shifts.text.typo import keyboard_slips

ALPHABET = "l op,cktgeaisrnhudmwbyfvjqxz.'-"
"""Everything that may be typed; the first of a kind foretell best what the rest of them do."""

_DELETION = ""
_SYMBOLS = (*ALPHABET, _DELETION)
_N_STRINGS_AT_ONCE = 4096

_Known = dict[str, float]


class _Stage(NamedTuple):
    """The symbols that it puts into a share of a text's places, and into `most` at most, the best so far."""

    symbols: Sequence[str]
    share: float
    most: int = sys.maxsize

    def n_places(self, n_all: int) -> int:
        return min(math.ceil(self.share * n_all), self.most)


_STAGES = (_Stage(_SYMBOLS[:2], 1.0), _Stage(_SYMBOLS[2:7], 0.25, 24), _Stage(_SYMBOLS[7:], 0.08, 5))


def charmer(losses: Losses, texts: Sequence[str], budget: int, rng: np.random.Generator) -> list[str]:
    """The texts with up to `budget` characters inserted, replaced or deleted; nothing is drawn at random.

    A round tries a letter and a space in every place, five symbols more in those where that raised the loss most, and
    the whole alphabet in the best few of them. Of all strings tried so far, the text itself included, the worst for the
    victim stays. For a text of 50 characters that is some 430 strings a round, of 3,200 that there are.

    Charmer tests every place with a space alone, goes on with a fixed number of places, and types any character that
    the data set has. A letter foretells better what letters do; the step in between, with a comma among its symbols,
    keeps more of the best edits for as many strings; and one alphabet serves all data sets.

    Args:
        losses: how bad each candidate is for the victim, higher is better for the attacker, with the row of `texts`
            that it would replace; it is called with up to 4,096 strings. A loss that is NaN counts as the lowest.
        texts: any strings.
        budget: Levenshtein distance in code points.

    Source: arXiv 2405.04346, algorithm 1; places and deletion as in github.com/LIONS-EPFL/Charmer.
    """
    known = _begin(losses, texts)
    for _ in range(budget):
        _try_edits(losses, known)
    return [_worst(some) for some in known]


def typo_greedy(losses: Losses, texts: Sequence[str], budget: int, rng: np.random.Generator) -> list[str]:
    """The texts with up to `budget` letters replaced by those of neighbouring keys, in the same case.

    Each round tries all slips of the letters that stood there first, about 210 in a caption of 50 characters, and keeps
    the worst for the victim. The keyboard is that of the shift `typo_keyboard`, which draws the letters instead.
    Nothing is drawn at random.

    Args: as for `charmer`.

    Raises:
        InputError: the package that has the keyboard is not installed.
    """
    known = _begin(losses, texts)
    slips = [keyboard_slips(text) for text in texts]
    for _ in range(budget):
        current = [_worst(some) for some in known]
        tries = [[text[:i] + key + text[i + 1 :] for i, key in some] for text, some in zip(current, slips, strict=True)]
        _score(losses, known, tries)
    return [_worst(some) for some in known]


def _begin(losses: Losses, texts: Sequence[str]) -> list[_Known]:
    """For each text what is known before the first edit: its own loss."""
    known: list[_Known] = [{} for _ in texts]
    _score(losses, known, [[text] for text in texts])
    return known


def _try_edits(losses: Losses, known: Sequence[_Known]) -> None:
    """Scores single edits of the worst string of each text, in fewer and fewer places."""
    current = [_worst(some) for some in known]
    ranked = [list(range(2 * len(text) + 1)) for text in current]
    n_all = [len(places) for places in ranked]
    for stage in _STAGES:
        places = [some[: stage.n_places(n)] for some, n in zip(ranked, n_all, strict=True)]
        _score(losses, known, [list(_edits(t, some, stage.symbols)) for t, some in zip(current, places, strict=True)])
        ranked = [_by_harm(*row, stage.symbols) for row in zip(known, current, places, strict=True)]


def _by_harm(known: _Known, text: str, places: Sequence[int], symbols: Sequence[str]) -> list[int]:
    """The places with the most harmful edit first; of equals the left one."""
    return sorted(places, key=lambda place: -max(known[edit] for edit in _edits(text, [place], symbols)))


def _edits(text: str, places: Sequence[int], symbols: Sequence[str]) -> Iterator[str]:
    return (_edited(text, place, symbol) for place in places for symbol in symbols)


def _edited(text: str, place: int, symbol: str) -> str:
    """The text with a symbol in a gap (even places) or instead of a character (odd ones).

    The character that stands there already is deleted instead, so that a test with one symbol changes every place.
    """
    index, is_character = divmod(place, 2)
    if is_character and text[index] == symbol:
        symbol = _DELETION
    return text[:index] + symbol + text[index + is_character :]


def _worst(known: _Known) -> str:
    """The string with the highest loss; of equals the one that was tried first, hence the fewest edits."""
    return max(known, key=known.__getitem__)


def _score(losses: Losses, known: Sequence[_Known], strings: Sequence[Sequence[str]]) -> None:
    """Asks for the losses of each text's strings that are not known, and adds them."""
    wanted = [(row, string) for row, some in enumerate(strings) for string in dict.fromkeys(some)]
    unknown = [(row, string) for row, string in wanted if string not in known[row]]
    for start in range(0, len(unknown), _N_STRINGS_AT_ONCE):
        part = unknown[start : start + _N_STRINGS_AT_ONCE]
        scores = np.asarray(losses([string for _, string in part], np.array([row for row, _ in part], np.int64)))
        lowest = np.where(np.isnan(scores), -np.inf, scores).tolist()
        for (row, string), score in zip(part, lowest, strict=True):
            known[row][string] = score
