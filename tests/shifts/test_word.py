"""Words replaced, moved and lost: how many, where, and that punctuation, spaces and capitals stay as they should."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shifts.catalogue import apply_shift, find_shift
from shifts.text import masked_lm, word, wordnet
from shifts.text.parse import parse

CAPTION = "A large dog, near the big couch, watches two small children eating donuts on an airplane outside."
SEVERITIES = (1, 2, 3, 4, 5)


def shifted(name: str, caption: str, severity: int, sample_id: str = "a") -> str:
    return apply_shift(find_shift(f"word_{name}"), severity, caption, sample_id, seed=0)


def cores(caption: str) -> list[str]:
    return re.findall(r"\w+", caption.lower())


def share(n: int, percent: int) -> int:
    return math.ceil(round(n * percent / 100, 9))


def caption_of(n_words: int) -> str:
    return " ".join(f"w{i}" for i in range(n_words))


def is_subsequence(short: list[str], long: list[str]) -> bool:
    ahead = iter(long)
    return all(item in ahead for item in short)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("n_words", [2, 3, 10, 21])
def test_the_stated_share_of_words_goes_and_the_rest_keeps_its_order(n_words: int, severity: int) -> None:
    before = cores(caption_of(n_words))
    after = cores(shifted("delete", caption_of(n_words), severity))
    assert len(after) == max(1, n_words - share(n_words, 10 * severity))
    assert is_subsequence(after, before)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("n_words", [2, 3, 10, 21])
def test_words_are_swapped_with_neighbours_in_the_stated_number_of_pairs(n_words: int, severity: int) -> None:
    after = shifted("swap", caption_of(n_words), severity).split()
    places = [int(core[1:]) for core in (item.lower() for item in after)]
    assert sorted(places) == list(range(n_words))
    moved = [i for i, place in enumerate(places) if place != i]
    assert len(moved) == 2 * min(n_words // 2, math.ceil(round(n_words * severity / 20, 9)))
    assert all(places[places[i]] == i and abs(places[i] - i) == 1 for i in moved)


def test_every_set_of_neighbouring_pairs_is_as_likely() -> None:
    swap = word.word_swap
    rng = np.random.default_rng(0)
    counts: dict[str, int] = {}
    for _ in range(3000):
        found = swap("b c d e f", 5, rng)
        counts[found] = counts.get(found, 0) + 1
    assert set(counts) == {"c b e d f", "c b d f e", "b d c f e"}
    assert all(900 < count < 1100 for count in counts.values())


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("n_words", [2, 9, 21])
def test_marks_go_between_words_and_nothing_else_changes(n_words: int, severity: int) -> None:
    after = shifted("insert_punctuation", caption_of(n_words), severity).split(" ")
    marks = [i for i, item in enumerate(after) if item in set(".;?:!,")]
    assert len(marks) == min(n_words - 1, math.ceil(round(n_words * severity / 15, 9)))
    assert [item for item in after if item not in set(".;?:!,")] == caption_of(n_words).split()
    assert all(0 < i < len(after) - 1 and i + 1 not in marks for i in marks)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_only_stop_words_are_dropped(severity: int) -> None:
    caption = "The man is on the beach with a dog and he is near the water."
    gone = len(cores(caption)) - len(cores(shifted("stopword_drop", caption, severity)))
    assert gone == share(11, 15 * severity)
    content = [item for item in cores(caption) if item not in word.STOP_WORDS]
    for i in range(20):
        after = cores(shifted("stopword_drop", caption, severity, str(i)))
        assert [item for item in after if item not in word.STOP_WORDS] == content


@pytest.mark.parametrize(
    ("deleted", "expected"),
    [
        (0, 'Big dog, "red" (cat) runs.'),
        (2, 'A big, "red" (cat) runs.'),
        (3, "A big dog, (cat) runs."),
        (5, 'A big dog, "red" (cat).'),
    ],
)
def test_punctuation_stays_and_the_capital_moves_on(deleted: int, expected: str) -> None:
    caption = 'A big dog, "red" (cat) runs.'
    words = word._split(caption)
    assert word._join(word._without(words, [deleted]), caption) == expected


def test_a_swap_keeps_punctuation_in_place_and_the_capital_in_front() -> None:
    assert shifted("swap", "Dogs, run.", 1) == "Run, dogs."
    assert shifted("swap", "I run.", 1) == "Run I."


@given(st.text(max_size=60), st.integers(1, 5))
@settings(max_examples=60)
def test_split_loses_nothing(caption: str, severity: int) -> None:
    assert word._text(word._split(caption)) == caption
    for name in ("swap", "delete", "insert_punctuation", "stopword_drop"):
        assert isinstance(shifted(name, caption, severity), str)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_synonyms_are_as_many_as_stated_and_share_a_meaning(severity: int) -> None:
    for i in range(10):
        after = shifted("synonym_replace", CAPTION, severity, str(i))
        pairs = [(a, b) for a, b in zip(cores(CAPTION), cores(after), strict=True) if a != b and {a, b} != {"a", "an"}]
        n_replaceable = sum(bool(word._synonym_forms(token)) for token in parse(CAPTION))
        assert len(pairs) == min(n_replaceable, share(len(cores(CAPTION)), 10 * severity))
        assert all(have_a_common_synset(*pair) for pair in pairs)


def have_a_common_synset(a: str, b: str) -> bool:
    return any(
        {sense.synset for sense in wordnet.senses(wordnet.base_form(a, pos) or a, pos)}
        & {sense.synset for sense in wordnet.senses(wordnet.base_form(b, pos) or b, pos)}
        for pos in ("noun", "verb", "adj", "adv")
    )


@pytest.mark.parametrize(
    ("caption", "synonyms"),
    [
        ("A couch.", {"A sofa."}),
        ("Two couches", {"Two sofas"}),
        ("She rides on an airplane.", {"She rides on a plane.", "She rides on an aeroplane."}),
        ("The man is jumping.", {"The man is leaping."}),
        ("A red table.", {"A red table."}),
        ("A cell phone", {"A cell phone"}),
        ("", {""}),
    ],
)
def test_number_case_and_article_follow_the_synonym(caption: str, synonyms: set[str]) -> None:
    assert {shifted("synonym_replace", caption, 5, str(i)) for i in range(12)} == synonyms


def test_the_lists_of_pairs_are_about_real_synonyms() -> None:
    for pair in word._READ_AS_GOOD:
        assert have_a_common_synset(*pair.split(">")), pair
    assert not word._READ_AS_GOOD & word._READ_AS_BAD


@pytest.mark.parametrize(
    ("noun", "article"),
    [
        ("apple", "an"),
        ("dog", "a"),
        ("hour", "an"),
        ("unicorn", "a"),
        ("umbrella", "an"),
        ("uniform", "a"),
        ("ewe", "a"),
    ],
)
def test_articles_go_by_sound(noun: str, article: str) -> None:
    assert word.article_of(noun) == article


@pytest.mark.data
def test_a_third_of_real_captions_has_a_synonym(shared_data: Path) -> None:
    images = json.loads((shared_data / "karpathy_coco" / "coco_karpathy_test.json").read_text())
    captions = [image["caption"][0] for image in images[::50]]
    changed = sum(shifted("synonym_replace", caption, 1) != caption for caption in captions)
    assert changed >= len(captions) / 4


@pytest.mark.parametrize("severity", SEVERITIES)
def test_the_stated_share_of_words_is_asked_of_the_language_model(
    severity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masked_lm, "insert_words", lambda caption, n_words, rng: f"{n_words} {caption}")
    rng = np.random.default_rng(0)
    assert word.word_insert("a b, c d - e f g h", severity, rng).startswith(f"{share(8, 10 * severity)} a b")
