"""Keyboard typos: how many, where, and which letters; the table is nlpaug's."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import InputError
from shifts.catalogue import apply_shift, find_shift
from shifts.seeding import sample_rng
from shifts.text import typo

CAPTION = "Two dogs, 1 cat and a BIG Horse stand near the blue garage door at 5 o'clock."
PERCENT = {1: 2, 2: 4, 3: 8, 4: 12, 5: 20}


@pytest.fixture(scope="module")
def table() -> dict[str, list[str]]:
    spec = importlib.util.find_spec("nlpaug")
    return json.loads(Path(spec.submodule_search_locations[0], "res/char/keyboard/en.json").read_text())


def typed(caption: str, severity: int, sample_id: str = "a") -> str:
    return apply_shift(find_shift("typo_keyboard"), severity, caption, sample_id, seed=0)


def edits(before: str, after: str) -> list[tuple[str, str]]:
    return [(x, y) for x, y in zip(before, after, strict=True) if x != y]


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_every_edit_is_a_neighbour_in_the_table_in_the_same_case(severity: int, table: dict[str, list[str]]) -> None:
    for i in range(200):
        for before, after in edits(CAPTION, typed(CAPTION, severity, str(i))):
            assert after.lower() in table[before.lower()]
            assert after.isalpha()
            assert after.isupper() == before.isupper()


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("n_letters", [1, 2, 7, 25, 50, 100, 333])
def test_the_stated_share_of_letters_is_edited_rounded_up(n_letters: int, severity: int) -> None:
    caption = "qwerty asdfgh, 12 " * 40
    letters = [i for i, character in enumerate(caption) if character.isalpha()]
    caption = caption[: letters[n_letters - 1] + 1]
    expected = math.ceil(round(n_letters * PERCENT[severity] / 100, 9))
    assert len(edits(caption, typed(caption, severity))) == expected


def test_every_letter_of_a_caption_can_be_hit_and_every_neighbour_typed() -> None:
    typos = {typed("U", 1, str(i)) for i in range(200)}
    assert typos == set("IHJK")
    places = {edits("abcdef", typed("abcdef", 1, str(i)))[0][0] for i in range(200)}
    assert places == set("abcdef")


@given(st.text(), st.integers(1, 5))
def test_only_latin_letters_change(caption: str, severity: int) -> None:
    shifted = typo.typo_keyboard(caption, severity, sample_rng(0, "typo_keyboard", 1, severity, "a"))
    assert all(before.isascii() and before.isalpha() for before, _ in edits(caption, shifted))


def test_golden_bytes() -> None:
    shifted = "\n".join(typed(CAPTION, severity) for severity in range(1, 6))
    assert (
        hashlib.sha256(shifted.encode()).hexdigest()
        == "fca2b3b4d686968a1b52f94ff806d8235cee93b29a68adf5969e809a85acffcd"
    )


def test_nlpaug_is_read_but_not_imported() -> None:
    typed(CAPTION, 1)
    assert "nlpaug.augmenter" not in sys.modules


def test_without_nlpaug_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    typo._keyboard_neighbours.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install 'nlpaug'"):
        typed(CAPTION, 1)
