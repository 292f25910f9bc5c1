"""Typos: how many, where, and which; the tables are nlpaug's."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.errors import InputError
from shifts.catalogue import CATALOGUE, apply_shift, find_shift
from shifts.text import typo

CAPTION = "Two dogs, 1 cat and a BIG Horse stand near the blue garage door at 5 o'clock."
PERCENT = {1: 2, 2: 4, 3: 8, 4: 12, 5: 20}
WORD_PERCENT = {1: 5, 2: 10, 3: 20, 4: 30, 5: 50}
TYPOS = [shift.name for shift in CATALOGUE if shift.family == "typo"]


def nlpaug_file(path: str) -> str:
    spec = importlib.util.find_spec("nlpaug")
    return Path(spec.submodule_search_locations[0], "res", path).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def keyboard() -> dict[str, list[str]]:
    return json.loads(nlpaug_file("char/keyboard/en.json"))


def edited(name: str, caption: str, severity: int, sample_id: str = "a") -> str:
    return apply_shift(find_shift(name), severity, caption, sample_id, seed=0)


def edits(before: str, after: str) -> list[tuple[str, str]]:
    return [(x, y) for x, y in zip(before, after, strict=True) if x != y]


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text)


def n_of(share: dict[int, int], severity: int, n: int) -> int:
    return math.ceil(round(n * share[severity] / 100, 9))


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_every_keyboard_edit_is_a_neighbour_in_the_table_in_the_same_case(
    severity: int, keyboard: dict[str, list[str]]
) -> None:
    for i in range(200):
        for before, after in edits(CAPTION, edited("typo_keyboard", CAPTION, severity, str(i))):
            assert after.lower() in keyboard[before.lower()]
            assert after.isalpha()
            assert after.isupper() == before.isupper()


def test_every_ocr_edit_is_a_confusion_of_the_table_read_either_way_and_all_are_made() -> None:
    table = json.loads(nlpaug_file("char/ocr/en.json"))
    allowed = {(a, b) for key, values in table.items() for v in values for a, b in ((key, v), (v, key)) if a.isalpha()}
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    made = {pair for i in range(300) for pair in edits(alphabet, edited("typo_ocr", alphabet, 5, str(i)))}
    assert made == allowed


def test_every_misspelling_is_one_of_the_table_and_no_word_that_it_spells_correctly() -> None:
    allowed: dict[str, set[str]] = {}
    for line in nlpaug_file("word/spelling/spelling_en.txt").splitlines():
        word, *spellings = line.lower().split(" ")
        allowed.setdefault(word, set()).update(spellings)
    caption = "The people stand beside a beautiful building, because DIFFERENT children like their neighbours."
    changed = [
        pair
        for i in range(100)
        for pair in zip(words(caption), words(edited("typo_misspelling", caption, 5, str(i))), strict=True)
        if pair[0] != pair[1]
    ]
    assert len({before for before, _ in changed}) > 6
    for before, after in changed:
        assert after.lower() in allowed[before.lower()]
        assert after.lower() not in allowed
        assert (after[0].isupper(), after.isupper()) == (before[0].isupper(), before.isupper())


def test_the_spelling_table_keeps_words_and_loses_slips() -> None:
    table = typo._misspellings()
    assert "freind" in table["friend"]
    assert "do'nt" in table["don't"]
    assert "like" not in table["luck"]
    assert "tu" not in table["the"]
    assert "a" not in table
    assert len(table) > 9000


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("n_letters", [1, 2, 7, 25, 50, 100, 333])
@pytest.mark.parametrize("name", ["typo_keyboard", "typo_char_replace", "typo_casing"])
def test_the_stated_share_of_letters_is_edited_rounded_up(name: str, n_letters: int, severity: int) -> None:
    caption = "qwerty asdfgh, 12 " * 40
    letters = [i for i, character in enumerate(caption) if character.isalpha()]
    caption = caption[: letters[n_letters - 1] + 1]
    assert len(edits(caption, edited(name, caption, severity))) == n_of(PERCENT, severity, n_letters)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["typo_ocr", "typo_homoglyph"])
def test_the_share_is_one_of_all_letters_while_there_are_any_that_can_be_edited(name: str, severity: int) -> None:
    enough, few = "solo fff ttt mmm " * 10, "o" + " fftt" * 20
    assert len(edits(enough, edited(name, enough, severity))) == n_of(PERCENT, severity, 130)
    assert len(edits(few, edited(name, few, severity))) == 1


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_inserts_and_deletes_come_in_the_stated_number(severity: int) -> None:
    n_edits = n_of(PERCENT, severity, 56)
    assert sum(map(str.isalpha, CAPTION)) == 56
    for i in range(50):
        longer, shorter = (edited(f"typo_char_{how}", CAPTION, severity, str(i)) for how in ("insert", "delete"))
        assert len(longer) - len(CAPTION) == len(CAPTION) - len(shorter) == n_edits
        assert is_subsequence(CAPTION, longer)
        assert is_subsequence(shorter, CAPTION)


def is_subsequence(short: str, long: str) -> bool:
    rest = iter(long)
    return all(character in rest for character in short)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_no_word_vanishes_when_letters_are_deleted(severity: int) -> None:
    caption = "I am on a bus to an old zoo, o'er é naïve x1 " * 5
    for i in range(50):
        shorter = edited("typo_char_delete", caption, severity, str(i))
        assert len(re.findall("[A-Za-z]+", shorter)) == len(re.findall("[A-Za-z]+", caption))
    assert edited("typo_char_delete", "a b c", severity) == "a b c"


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_swaps_exchange_different_neighbours_once(severity: int) -> None:
    for i in range(100):
        swapped = edited("typo_char_swap", CAPTION, severity, str(i))
        places = [place for place, (a, b) in enumerate(zip(CAPTION, swapped, strict=True)) if a != b]
        assert len(places) == 2 * n_of(PERCENT, severity, 56)
        for left, right in zip(places[::2], places[1::2], strict=True):
            assert right == left + 1
            assert CAPTION[left : right + 1] == swapped[left : right + 1][::-1]
            assert CAPTION[left : right + 1].isalpha()
            assert CAPTION[left].lower() != CAPTION[right].lower()


def test_what_looks_the_same_to_a_reader_is_not_swapped() -> None:
    assert edited("typo_char_swap", "aaa Oo a b c", 5) == "aaa Oo a b c"


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_misspelt_words_and_broken_or_joined_ones_come_in_the_stated_number(severity: int) -> None:
    caption = " ".join(["people", "friend"] * 25)
    misspelt = edited("typo_misspelling", caption, severity)
    changed = [a for a, b in zip(caption.split(" "), misspelt.split(" "), strict=True) if a != b]
    assert len(changed) == n_of(WORD_PERCENT, severity, 50)
    respaced = edited("typo_whitespace", caption, severity)
    assert respaced.replace(" ", "") == caption.replace(" ", "")
    before, after = ([len(run) for run in spaces_before_letters(text)] for text in (caption, respaced))
    assert sum(x != y for x, y in zip(before, after, strict=True)) == n_of(WORD_PERCENT, severity, 50)


def spaces_before_letters(text: str) -> list[str]:
    return re.findall(r"( *)[^ ]", text)


def test_spaces_are_lost_doubled_and_put_into_words() -> None:
    typos = Counter(edited("typo_whitespace", "big dogs", 1, str(i)) for i in range(400))
    assert typos.keys() == {"bigdogs", "big  dogs", "b ig dogs", "bi g dogs", "big d ogs", "big do gs", "big dog s"}
    assert 90 < typos["bigdogs"] + typos["big  dogs"] < 180


@pytest.mark.parametrize("caption", ["1 2", "7", " ", "a", " a ", "a  b", "12:30", "犬 が", "e\u0301 \u0301e"])
def test_numbers_and_margins_keep_their_spaces(caption: str) -> None:
    assert edited("typo_whitespace", caption, 5) == caption


def test_every_letter_of_a_caption_can_be_hit_and_every_choice_made() -> None:
    assert {edited("typo_keyboard", "U", 1, str(i)) for i in range(200)} == set("IHJK")
    assert {edited("typo_char_replace", "b", 1, str(i)) for i in range(400)} == set("acdefghijklmnopqrstuvwxyz")
    assert {edited("typo_char_insert", "B", 1, str(i)) for i in range(400)} == {
        f"B{letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    }
    for name in ("typo_keyboard", "typo_char_replace", "typo_casing"):
        hits = Counter(edits("abcdef", edited(name, "abcdef", 1, str(i)))[0][0] for i in range(600))
        assert hits.keys() == set("abcdef")
        assert max(hits.values()) < 150
    assert {edited("typo_char_delete", "abc", 1, str(i)) for i in range(100)} == {"bc", "ac", "ab"}
    assert {edited("typo_char_swap", "abc", 1, str(i)) for i in range(100)} == {"bac", "acb"}


def test_homoglyphs_are_letters_of_another_alphabet_in_the_same_case() -> None:
    for latin, others in typo._LOOK_ALIKES.items():
        for other in others:
            assert unicodedata.name(other).split()[0] in ("CYRILLIC", "GREEK")
            assert unicodedata.category(other) == unicodedata.category(latin)
            assert unicodedata.normalize("NFKC", other) != latin


@pytest.mark.parametrize("name", TYPOS)
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_a_caption_that_can_be_edited_always_is(name: str, severity: int) -> None:
    for i in range(300):
        for caption in ("people", "Blue sky", CAPTION):
            assert edited(name, caption, severity, str(i)) != caption


@pytest.mark.parametrize("name", TYPOS)
@settings(deadline=None)
@given(caption=st.text(), severity=st.integers(1, 5))
@example(caption="🐕‍🦺 1️⃣ e\u0301a\u0301o\u0301 كلب 犬が naïve 12:30", severity=5)
@example(caption="\ud800x people\0", severity=5)
def test_all_but_plain_letters_and_spaces_survive(name: str, caption: str, severity: int) -> None:
    shifted = edited(name, caption, severity)
    foreign = [character for character in shifted if not character.isascii()]
    if name == "typo_homoglyph":
        foreign = [character for character in foreign if character not in "".join(typo._LOOK_ALIKES.values())]
        kept = [c for c in caption if not c.isascii() and c not in "".join(typo._LOOK_ALIKES.values())]
    else:
        kept = [c for c in caption if not c.isascii()]
    assert foreign == kept
    added = Counter(shifted) - Counter(caption)
    lost = Counter(caption) - Counter(shifted)
    assert all((c.isalpha() and c.isascii()) or c in " '" for c in lost)
    assert all(c.isalpha() or c in " '" or (name == "typo_ocr" and c.isdigit()) for c in added)


@pytest.mark.parametrize("name", TYPOS)
@pytest.mark.parametrize("mark", ["\u0301", "\u200d", "\u20dd", "\ufe0f"])
def test_a_letter_that_carries_a_mark_is_left_alone(name: str, mark: str) -> None:
    caption = "".join(letter + mark for letter in "people")
    assert edited(name, caption, 5) == caption
    beside = edited(name, f"{caption} people", 5)
    assert beside.startswith(caption)


GOLDEN = {
    "typo_keyboard": "8a4a851eabe772f6",
    "typo_ocr": "1b186023f027ad89",
    "typo_char_insert": "3b257e17335df488",
    "typo_char_replace": "93b73f48b140026b",
    "typo_char_swap": "277b563d7afb1fe1",
    "typo_char_delete": "98faa6222db1dd43",
    "typo_misspelling": "048cf248ae66b607",
    "typo_homoglyph": "85df68c0b7d55951",
    "typo_casing": "12dfca7e1f2bd2c9",
    "typo_whitespace": "20fbed4da459390e",
}


@pytest.mark.parametrize("name", TYPOS)
def test_golden_bytes(name: str) -> None:
    shifted = "\n".join(edited(name, CAPTION, severity) for severity in range(1, 6))
    assert hashlib.sha256(shifted.encode()).hexdigest()[:16] == GOLDEN[name]


def test_nlpaug_is_read_but_not_imported() -> None:
    edited("typo_keyboard", CAPTION, 1)
    assert "nlpaug.augmenter" not in sys.modules


def test_without_nlpaug_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    typo._keyboard_neighbours.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install 'nlpaug'"):
        edited("typo_keyboard", CAPTION, 1)


@pytest.mark.data
def test_real_captions_are_edited_whatever_they_say(shared_data: Path) -> None:
    path = shared_data / "karpathy_coco" / "coco_karpathy_test.json"
    captions = [caption for image in json.loads(path.read_text())[:60] for caption in image["caption"]]
    for name in TYPOS:
        unchanged = [c for i, c in enumerate(captions) if edited(name, c, 1, str(i)) == c]
        assert len(unchanged) <= (3 if name == "typo_misspelling" else 0)
