"""What the head of a noun phrase tells about it: whether it can act, is a picture, is plural, lacks an article."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spacy.tokens import Token


def read_words(section: str, name: str) -> frozenset[str]:
    """A list of `words.toml`: words between spaces, or expressions between commas."""
    text = _word_lists()[section][name]
    return frozenset(part.strip() for part in text.split("," if "," in text else None))


@cache
def _word_lists() -> dict[str, dict[str, str]]:
    return tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))


_PEOPLE = read_words("nouns", "people")
_ANIMALS = read_words("nouns", "animals")
_ANIMATE = _PEOPLE | _ANIMALS
_COLLECTIVES = read_words("nouns", "collectives")
_PLURAL_QUANTITIES = read_words("nouns", "plural_quantities")
_DEPICTIONS = read_words("nouns", "depictions")
_MASS = read_words("nouns", "mass")
_IRREGULAR_PLURALS = read_words("nouns", "irregular_plurals")
_SAME_IN_PLURAL = read_words("nouns", "same_in_plural")


def is_animate(head: Token) -> bool:
    """Whether the noun is a person or an animal of the kinds that captions name."""
    if head.lemma_.lower() in _ANIMATE or head.lower_ in _ANIMATE:
        return True
    return is_collective(head) and any(
        of.lower_ == "of" and any(is_animate(inner) for inner in of.children if inner.dep_ == "pobj")
        for of in head.rights
    )


def is_collective(head: Token) -> bool:
    """Whether the noun only counts what follows it: "a group of people"."""
    return head.lemma_.lower() in _COLLECTIVES and any(child.lower_ == "of" for child in head.rights)


def is_depiction(head: Token) -> bool:
    """Whether the noun is a picture or likeness of what follows it, which itself does nothing."""
    return head.lemma_.lower() in _DEPICTIONS or head.lower_ in _DEPICTIONS


def is_plural(head: Token) -> bool:
    """Whether a verb after the phrase is plural."""
    if any(child.dep_ == "conj" for child in head.rights) and any(child.lower_ == "and" for child in head.rights):
        return True
    if head.tag_ in ("NNS", "NNPS") or head.lower_ in _IRREGULAR_PLURALS:
        return True
    if head.lower_ in _PLURAL_QUANTITIES and is_collective(head):
        return True
    return any(child.dep_ == "nummod" and child.lower_ not in ("one", "1") for child in head.lefts)


def with_article(phrase: str, head: Token) -> str:
    """The phrase with "a" or "an" in front, if its head is a singular that can be counted and has none."""
    determined = any(child.dep_ in ("det", "poss", "nummod", "predet", "nmod") for child in head.lefts)
    is_common = head.tag_ == "NN" or head.lower_ in _ANIMATE
    if determined or not is_common or head.lower_ in _MASS | _IRREGULAR_PLURALS | _SAME_IN_PLURAL:
        return phrase
    return f"{indefinite_article(phrase)} {phrase}"


def indefinite_article(phrase: str) -> str:
    """ "a" or "an", by the sound of the first word as far as spelling tells."""
    word = phrase.split(" ", 1)[0].lower()
    if word.startswith(("uni", "use", "eu", "one", "ukulele", "utens")):
        return "a"
    return "an" if word.startswith(("a", "e", "i", "o", "u", "hour", "honest", "8", "11", "18")) else "a"
