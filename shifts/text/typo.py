"""Slips of people who type and of machines that read: edits of single characters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from shifts.resources import package_file

_KEYBOARD_PERCENT = (2, 4, 8, 12, 20)


def typo_keyboard(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with some letters replaced by a letter of a neighbouring key, in the same case.

    Severities 1 to 5 replace 2, 4, 8, 12 and 20 % of the letters a-z, rounded up: any caption with a letter gets at
    least one typo. Digits, punctuation, spaces and other alphabets stay. `nlpaug.KeyboardAug`, as MM_Robustness uses
    it, draws words first, up to 25 % of them, and may type digits and symbols and change case; at severity 1 both
    come to one or two typos in a caption of COCO.

    Source: keyboard table of nlpaug 1.1.11 (US layout); strengths set against arXiv 2212.08044.
    """
    neighbours = _keyboard_neighbours()
    letters = [position for position, character in enumerate(caption) if character in neighbours]
    n_edits = -(-len(letters) * _KEYBOARD_PERCENT[severity - 1] // 100)
    typed = list(caption)
    for drawn in rng.permutation(len(letters))[:n_edits]:
        position = letters[drawn]
        keys = neighbours[typed[position]]
        typed[position] = keys[rng.integers(len(keys))]
    return "".join(typed)


@cache
def _keyboard_neighbours() -> Mapping[str, str]:
    """The letters around each letter, lower and upper case, in the table's order.

    What is not another single letter is left out: digits, symbols, and two slips of the table, which has a beside a
    and " t" beside u.
    """
    table = json.loads(_nlpaug_table("char/keyboard/en.json").read_text(encoding="utf-8"))
    lower = {
        key: "".join(value for value in values if len(value) == 1 and value.isalpha() and value != key)
        for key, values in table.items()
        if key.isalpha()
    }
    return lower | {key.upper(): keys.upper() for key, keys in lower.items()}


def _nlpaug_table(path: str) -> Path:
    """A data file of nlpaug, whose augmenters take 20 s to import."""
    return package_file("nlpaug", f"res/{path}", "typo shifts read the tables of nlpaug", "nlpaug")
