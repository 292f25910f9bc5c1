"""The search for the most harmful word edits: its limits, and against trying everything."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
import pytest

from shifts.attacks import words
from shifts.attacks.candidates import N_CANDIDATES, find_slots
from shifts.attacks.words import N_WORDS, bert_attack, replace_words
from shifts.text.word import STOP_WORDS

CAPTIONS = (
    "A brown dog, running on the beach.",
    "Two young girls play soccer in a green field while an old man watches the game from a wooden bench",
    "PEOPLE stand near a tall black building at night!",
    "the of and",
    "",
    "Dogs (small) sleep",
)


def hashed(text: str, row: int) -> float:
    """A loss that every word has its own share in, another for each row."""
    return sum(zlib.crc32(f"{row} {word}".encode()) % 1000 for word in re.findall(r"\w+", text)) / 1000


class Spy:
    """Losses that note what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def __call__(self, texts: Sequence[str], rows: np.ndarray) -> np.ndarray:
        assert len(texts) == len(rows)
        self.asked += zip(texts, rows.tolist(), strict=True)
        return np.array([hashed(text, row) for text, row in zip(texts, rows.tolist(), strict=True)], np.float32)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def changed_words(before: str, after: str) -> list[tuple[str, str]]:
    return [(a, b) for a, b in zip(before.split(), after.split(), strict=True) if a != b]


@pytest.mark.parametrize("budget", [1, 2])
def test_the_budget_and_the_stop_words_are_kept(budget: int) -> None:
    for before, after in zip(CAPTIONS, bert_attack(Spy(), CAPTIONS, budget, rng()), strict=True):
        changes = changed_words(before, after)
        assert len(changes) <= budget
        assert len(changes) == budget or not find_slots(before)
        for old, new in changes:
            assert re.sub(r"\w", "", old) == re.sub(r"\w", "", new)
            assert {re.sub(r"\W", "", word).lower() for word in (old, new)}.isdisjoint(STOP_WORDS)
            assert old.isupper() == new.isupper()
            assert old.strip("(")[0].isupper() == new.strip("(")[0].isupper()


def test_one_edit_is_the_best_of_all_where_few_words_can_change() -> None:
    texts = ["A brown dog, running on the beach.", "Dogs (small) sleep"]
    for row, (text, after) in enumerate(zip(texts, replace_words(Spy(), texts, 1), strict=True)):
        slots = find_slots(text)
        assert len(slots) <= N_WORDS
        every = [text[: slot.start] + word + text[slot.end :] for slot in slots for word in slot.words]
        best = max(every, key=lambda edited: hashed(edited, row))
        assert hashed(after, row) == pytest.approx(hashed(best, row))


def test_only_the_words_whose_absence_hurts_most_are_tried() -> None:
    spy = Spy()
    text = CAPTIONS[1]
    replace_words(spy, [text], 1)
    slots = find_slots(text)
    absent = {slot: hashed(text[: slot.start] + text[slot.end :], 0) for slot in slots}
    wanted = set(sorted(slots, key=lambda slot: -absent[slot])[:N_WORDS])
    every = {slot: {text[: slot.start] + word + text[slot.end :] for word in slot.words} for slot in slots}
    asked = {string for string, _ in spy.asked}
    assert {slot for slot in slots if every[slot] & asked} == wanted
    assert len(slots) > N_WORDS


def test_the_loss_never_falls_and_rises_with_the_budget() -> None:
    losses = np.array(
        [[hashed(text, row) for row, text in enumerate(replace_words(Spy(), CAPTIONS, budget))] for budget in range(4)]
    )
    assert (np.diff(losses, axis=0) >= 0).all()
    assert losses[0] == pytest.approx([hashed(text, row) for row, text in enumerate(CAPTIONS)])
    assert losses[1].sum() < losses[2].sum() < losses[3].sum()


def test_nothing_changes_where_nothing_helps() -> None:
    assert replace_words(lambda texts, rows: np.zeros(len(texts)), CAPTIONS, 2) == list(CAPTIONS)


def test_a_text_is_attacked_alike_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_text(texts: Sequence[str], rows: np.ndarray) -> np.ndarray:
        return np.array([hashed(text, 7) for text in texts])

    together = replace_words(by_text, CAPTIONS, 2)
    assert [replace_words(by_text, [text], 2)[0] for text in CAPTIONS] == together
    monkeypatch.setattr(words, "_N_TEXTS_AT_ONCE", 4)
    assert replace_words(by_text, CAPTIONS, 2) == together


def test_every_string_is_scored_for_the_text_that_it_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_N_TEXTS_AT_ONCE", 4)
    spy = Spy()
    replace_words(spy, CAPTIONS, 1)
    for string, row in spy.asked:
        original = re.findall(r"\w+", CAPTIONS[row])
        edited = re.findall(r"\w+", string)
        assert len(edited) in (len(original), len(original) - 1)
        assert len(set(original) - set(edited)) <= 1
    counts = np.bincount([row for _, row in spy.asked], minlength=len(CAPTIONS))
    slots = np.array([len(find_slots(text)) for text in CAPTIONS])
    assert (counts <= 1 + slots + N_WORDS * N_CANDIDATES).all()
