"""Paraphrases of whole captions: voice, register and frame, against sentences worked out by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from shifts.seeding import sample_rng
from shifts.text import nouns, parse, register, sentence, voice

PASSIVE = [
    ("A man riding a horse on a beach.", "A horse being ridden by a man on a beach."),
    ("Two dogs are chasing a ball.", "A ball is being chased by two dogs."),
    ("A dog is chasing two balls", "Two balls are being chased by a dog"),
    ("a woman eats a banana.", "a banana is eaten by a woman."),
    ("Two men play tennis on a court.", "Tennis is played by two men on a court."),
    ("The bride cut the cake.", "The cake was cut by the bride."),
    ("He is riding a horse.", "A horse is being ridden by him."),
    ("They are flying kites.", "Kites are being flown by them."),
    ("There is a man riding a horse.", "There is a horse being ridden by a man."),
    ("There is a man flying two kites.", "There are two kites being flown by a man."),
    ("Woman holding an umbrella", "An umbrella being held by a woman"),
    ("A boy standing in a living room holding a plastic bat.",
     "A plastic bat being held by a boy standing in a living room."),
    ("A man picks up a ball.", "A ball is picked up by a man."),
    ("A woman is holding an umbrella over her head.", "An umbrella is being held by a woman over her head."),
    ("A man is holding an umbrella and a bag.", "An umbrella and a bag are being held by a man."),
    ("A group of people flying kites in a park.", "Kites being flown by a group of people in a park."),
    ("A man is cleaning a window, and a dog is watching him.",
     "A window is being cleaned by a man, and a dog is watching him."),
]  # fmt: skip
ACTIVE = [
    ("A horse is being ridden by a man on a beach.", "A man on a beach is riding a horse."),
    ("A ball is being chased by two dogs.", "Two dogs are chasing a ball."),
    ("A horse ridden by a young girl", "A young girl riding a horse"),
    ("A dog was bitten by a man.", "A man bit a dog."),
    ("This table is covered by a blue umbrella", "A blue umbrella covers this table"),
    ("There are two dogs being walked by a woman in a park.", "There is a woman walking two dogs in a park."),
    ("an owl sitting on a branch surrounded by trees", "an owl sitting on a branch that trees surround"),
    ("They were seen by a man.", "A man saw them."),
    ("The sun surrounded by an airplane and traffic lights", "An airplane and traffic lights surrounding the sun"),
]
NOT_PASSIVE = [
    "A dog sleeping on a bed.",
    "A man holding his phone.",
    "A man rides a horse while holding a flag.",
    "A man is holding a phone and wearing a hat.",
    "A picture of a man riding a horse.",
    "A room with a cat watching the television.",
    "A kitchen has a stove and a sink.",
    "People watch a man ride a horse.",
    "A man is riding a horse. A dog is watching.",
    "",
    "🐎",
]
NOT_ACTIVE = [
    "A blue bus is parked by a strip of grass.",
    "A bench placed by a man.",
    "A dog sitting by a tree.",
    "A man riding a horse.",
    "A decorated elephant is ridden through the streets by a man in an orange shirt.",
    "A table surrounded by chairs and filled with plates.",
    "A herd of cattle walking down a road being followed by a cowboy.",
]


@pytest.mark.parametrize(("caption", "expected"), PASSIVE)
def test_an_active_clause_turns_passive(caption: str, expected: str) -> None:
    assert voice.make_passive(caption) == expected


@pytest.mark.parametrize(("caption", "expected"), ACTIVE)
def test_a_passive_clause_turns_active(caption: str, expected: str) -> None:
    assert voice.make_active(caption) == expected


@pytest.mark.parametrize("caption", NOT_PASSIVE)
def test_what_is_not_plainly_active_stays(caption: str) -> None:
    assert voice.make_passive(caption) == caption


@pytest.mark.parametrize("caption", NOT_ACTIVE)
def test_what_is_not_plainly_passive_stays(caption: str) -> None:
    assert voice.make_active(caption) == caption


def test_lone_surrogates_keep_their_place_in_the_parse() -> None:
    caption = "A \ud800 man riding a horse"
    tokens = list(parse.parse(caption))
    assert [caption[token.idx :][: len(token)] for token in tokens if token.text == "horse"] == ["horse"]


@pytest.mark.parametrize(
    ("phrase", "article"),
    [
        ("apple", "an"),
        ("old man", "an"),
        ("hour", "an"),
        ("dog", "a"),
        ("unicorn", "a"),
        ("umbrella", "an"),
        ("8", "an"),
    ],
)
def test_the_article_goes_by_the_sound(phrase: str, article: str) -> None:
    assert nouns.indefinite_article(phrase) == article


def variants(shift: str, caption: str, n_draws: int = 200) -> set[str]:
    change = getattr(sentence, shift)
    return {change(caption, 1, sample_rng(0, shift, 1, 1, str(i))) for i in range(n_draws)}


def test_formal_words_and_frame_are_drawn_and_combined() -> None:
    assert variants("sentence_formal", "A kid next to a TV") == {
        "A child next to a TV",
        "A kid beside a TV",
        "A kid next to a television",
        "A child beside a TV",
        "A child next to a television",
        "A kid beside a television",
        "A child beside a television",
        "There is a kid next to a TV.",
        "There is a child next to a TV.",
        "There is a kid beside a TV.",
        "There is a kid next to a television.",
        "There is a child beside a TV.",
        "There is a child next to a television.",
        "There is a kid beside a television.",
        "There is a child beside a television.",
    }


def test_casual_words_and_habits_are_drawn_and_combined() -> None:
    assert variants("sentence_casual", "A child runs.") == {
        "A kid runs.", "A kid runs", "a kid runs.", "a kid runs", "Kid runs.", "Kid runs", "kid runs.", "kid runs",
        "A child runs", "a child runs.", "a child runs", "Child runs.", "Child runs", "child runs.", "child runs",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A car", "An automobile"),
        ("The hot dog", None),
        ("A huge dog", "A very large dog"),
        ("Kids' bikes", "Kids' bicycles"),
    ],
)
def test_replaced_words_keep_case_and_article(caption: str, expected: str | None) -> None:
    sites = sentence._find_sites(caption, sentence._compiled("formal" if expected else "casual"))
    assert sentence._replace(caption, sites) == (expected or caption)


def test_no_rule_writes_what_it_reads() -> None:
    for pattern, text in (*register.FORMAL, *register.CASUAL):
        assert not re.fullmatch(pattern, text, re.IGNORECASE), pattern


@pytest.mark.parametrize(
    ("caption", "some"),
    [
        ("A man riding a horse.", {"There is a man riding a horse in this photo."}),
        ("two dogs on a bed", {"in this picture, there are two dogs on a bed", "you can see two dogs on a bed"}),
        ("Man riding a horse", {"A photo showing a man riding a horse"}),
        ("A man is riding a horse.", {"In this picture, a man is riding a horse."}),
        ("There is a dog.", {"In this picture, there is a dog."}),
        ("I see a dog.", {"It can be seen that I see a dog."}),
        ("Where is it?", {"Photo: Where is it?"}),
    ],
)  # fmt: skip
def test_frames_fit_phrases_and_sentences(caption: str, some: set[str]) -> None:
    made = variants("sentence_template", caption)
    assert len(made) >= 12
    assert some <= made
    assert caption not in made


@pytest.mark.parametrize("shift", ["sentence_formal", "sentence_casual", "sentence_template"])
def test_what_has_no_words_stays(shift: str) -> None:
    for caption in ("", " ", "7", "?!"):
        assert variants(shift, caption, 3) == {caption}


@pytest.mark.data
def test_shares_of_real_captions_that_change(shared_data: Path) -> None:
    rows = json.loads((shared_data / "karpathy_coco" / "coco_karpathy_test.json").read_text())
    captions = [caption for row in rows for caption in row["caption"]][::63]
    changed = {
        name: np.mean([getattr(sentence, name)(c, 1, sample_rng(0, name, 1, 1, c)) != c for c in captions])
        for name in ("sentence_passive", "sentence_formal", "sentence_casual", "sentence_template")
    }
    assert changed["sentence_passive"] > 0.08
    assert min(changed["sentence_formal"], changed["sentence_casual"]) > 0.9
    assert changed["sentence_template"] == 1
