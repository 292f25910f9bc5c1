"""Slips of people who type and of machines that read: edits of single characters, and words as people misspell them.

Only what is plain is edited: the letters a-z in either case and, for whitespace, spaces. Digits, punctuation, emoji,
other alphabets and letters that carry a combining mark stay as they are. Captions come by the ten thousand, so each
one costs a single bulk draw and no loop over its characters in Python.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import compress
from pathlib import Path
from string import ascii_letters, ascii_lowercase

import numpy as np

from shifts.resources import package_file

_LETTER_PERCENT = (2, 4, 8, 12, 20)
_WORD_PERCENT = (5, 10, 20, 30, 50)


def _marked(characters: str) -> bytes:
    """A table for `bytes.translate` that turns these characters into 1 and all others into 0."""
    return bytes(chr(code) in characters for code in range(256))


_IS_LETTER = _marked(ascii_letters)
_FOLDED = bytes(ord(chr(code).lower()) if _IS_LETTER[code] else 0 for code in range(256))
_JOINERS = frozenset("\u200c\u200d\uff9e\uff9f" + "".join(map(chr, range(0x1F3FB, 0x1F400))))
_WORD = re.compile(r"([^\s!-&(-/:-@\[-`{-~]+)")
_SPELLING = re.compile(r"[a-z]+(?:'[a-z]+)?")

# Pairs of Unicode's confusables.txt that look alike in common fonts, Cyrillic first, Greek after it; and the palochka
# for l, known from a spoofed apple.com.
_LOOK_ALIKES = {
    "a": "аα", "c": "с", "d": "ԁ", "e": "е", "h": "һ", "i": "іι", "j": "јϳ", "l": "ӏ", "o": "оο", "p": "рρ", "q": "ԛ",
    "s": "ѕ", "u": "υ", "v": "ѵν", "w": "ԝ", "x": "х", "y": "уγ",
    "A": "АΑ", "B": "ВΒ", "C": "СϹ", "E": "ЕΕ", "G": "Ԍ", "H": "НΗ", "I": "ІΙ", "J": "ЈͿ", "K": "КΚ", "M": "МΜ",
    "N": "Ν", "O": "ОΟ", "P": "РΡ", "S": "Ѕ", "T": "ТΤ", "V": "Ѵ", "W": "Ԝ", "X": "ХΧ", "Y": "ҮΥ", "Z": "Ζ",
}  # fmt: skip


def typo_keyboard(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with some letters replaced by a letter of a neighbouring key, in the same case.

    Severities 1 to 5 replace 2, 4, 8, 12 and 20 % of the letters a-z, rounded up: any caption with a letter gets at
    least one typo. `nlpaug.KeyboardAug`, as MM_Robustness uses it, draws words first, up to 25 % of them, and may
    type digits and symbols and change case; at severity 1 both come to one or two typos in a caption of COCO.

    Source: keyboard table of nlpaug 1.1.11 (US layout); strengths set against arXiv 2212.08044.
    """
    return _substituted(caption, _keyboard_neighbours(), severity, rng)


def typo_ocr(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with some letters replaced by the letter or digit that a scanner takes them for: o by 0, l by 1.

    As many as in `typo_keyboard`, a share of all letters, but only of those that have a confusion in the table,
    b g k l o q r s u z and B C D E G I O S U Z; fewer where a caption has fewer of them. Digits stay, unlike in
    `nlpaug.OcrAug`, since another number is another meaning.

    Source: OCR table of nlpaug 1.1.11, read in both directions as there; strengths set against arXiv 2212.08044.
    """
    return _substituted(caption, _ocr_confusions(), severity, rng)


def typo_char_replace(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with some letters replaced by any other letter, in the same case; as many as in `typo_keyboard`.

    Source: strengths set against arXiv 2212.08044, whose `RandomCharAug` may draw the letter that was there.
    """
    return _substituted(caption, _other_letters(), severity, rng)


def typo_homoglyph(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with some letters replaced by Cyrillic or Greek ones that look the same, in the same case.

    As many as in `typo_keyboard`, a share of all letters, but none of b f g k m n r t z D F L Q R U: the table has no
    look-alike of them.
    None of the replacements is mapped back by Unicode normalisation.

    Source: Unicode Technical Standard 39, confusables.txt; an excerpt of our own.
    """
    return _substituted(caption, _homoglyphs(), severity, rng)


def typo_char_insert(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with a random letter typed after some of its letters, in their case.

    After as many letters as `typo_keyboard` replaces. The new letter may repeat the one before it.
    """
    places = _places(_plain(caption), _IS_LETTER)
    n_edits = _share(len(places), _LETTER_PERCENT[severity - 1])
    edited = list(caption)
    for place, choice in _drawn(places, n_edits, rng):
        letter = ascii_lowercase[int(choice * 26)]
        edited[place] += letter.upper() if edited[place].isupper() else letter
    return "".join(edited)


def typo_char_swap(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with some neighbouring letters of a word exchanged; each keeps its case and moves only once.

    As many exchanges as `typo_keyboard` replaces letters, while there are pairs left. The two differ, and not in case
    alone: "dogs" may become "odgs", but the o's of "food" are never exchanged.
    """
    plain = _plain(caption)
    folded = bytearray(plain.translate(_FOLDED) + b"\0")
    places = _places(plain, _IS_LETTER)
    left = _share(len(places), _LETTER_PERCENT[severity - 1])
    edited = list(caption)
    for place, _ in _drawn(places, len(places), rng):
        if not folded[place] or not folded[place + 1] or folded[place] == folded[place + 1]:
            continue
        edited[place], edited[place + 1] = edited[place + 1], edited[place]
        folded[place] = folded[place + 1] = 0
        left -= 1
        if not left:
            break
    return "".join(edited)


def typo_char_delete(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with some letters missing, as many as `typo_keyboard` replaces.

    A letter is deleted only beside another one that is still there: no word vanishes, and a word of a single letter
    such as "a" stays.
    """
    plain = _plain(caption)
    present = bytearray(plain.translate(_IS_LETTER) + b"\0")
    places = _places(plain, _IS_LETTER)
    left = _share(len(places), _LETTER_PERCENT[severity - 1])
    edited = list(caption)
    for place, _ in _drawn(places, len(places), rng):
        if not present[place - 1] and not present[place + 1]:
            continue
        edited[place] = ""
        present[place] = 0
        left -= 1
        if not left:
            break
    return "".join(edited)


def typo_misspelling(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with some words as people have misspelt them; capitals at the start or throughout are kept.

    Severities 1 to 5 misspell 5, 10, 20, 30 and 50 % of the words, rounded up, while there are words in the table,
    which knows 72 % of the words in COCO's captions. A word runs to the next space or ASCII punctuation, apostrophes
    included.

    Source: spelling table of nlpaug 1.1.11 (misspellings of learners, from arXiv 1711.02173).
    """
    table = _misspellings()
    parts = _WORD.split(caption)
    places = [place for place in range(1, len(parts), 2) if parts[place].lower() in table]
    n_edits = min(_share(len(parts) // 2, _WORD_PERCENT[severity - 1]), len(places))
    for place, choice in _drawn(places, n_edits, rng):
        spellings = table[parts[place].lower()]
        parts[place] = _in_case_of(parts[place], spellings[int(choice * len(spellings))])
    return "".join(parts)


def typo_casing(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with some letters in the other case, as many as `typo_keyboard` replaces.

    A model that lowers its input never sees it.
    """
    places = _places(_plain(caption), _IS_LETTER)
    n_edits = _share(len(places), _LETTER_PERCENT[severity - 1])
    edited = list(caption)
    for place, _ in _drawn(places, n_edits, rng):
        edited[place] = edited[place].swapcase()
    return "".join(edited)


def typo_whitespace(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with some spaces between words lost or doubled, and some words broken by a space.

    Severities 1 to 5 make 5, 10, 20, 30 and 50 edits for 100 words, rounded up, while there are places. Words and the
    spaces between them are equally likely: a word breaks between any two of its letters, a space is lost as often as
    doubled. Only single spaces between visible ASCII characters count, and not between two digits: "2 3" must not
    become 23.
    """
    words = caption.split(" ")
    parts = [" "] * (2 * len(words) - 1)
    parts[::2] = words
    left = _share(len(words), _WORD_PERCENT[severity - 1])
    for place, choice in _drawn(list(range(len(parts))), len(parts), rng):
        edited = _respaced(parts, place, choice) if place % 2 else _broken(parts[place], choice)
        if edited is None:
            continue
        parts[place] = edited
        left -= 1
        if not left:
            break
    return "".join(parts)


def keyboard_slips(caption: str) -> list[tuple[int, str]]:
    """All that `typo_keyboard` may do: the place of a letter and a letter of a neighbouring key, in the same case."""
    plain, neighbours = _plain(caption), _keyboard_neighbours()
    return [(i, key) for i in _places(plain, neighbours.editable) for key in neighbours.by_code[plain[i]]]


@dataclass(frozen=True)
class _Substitutes:
    """What may stand for each letter: `by_code` under its code point, and 1 in `editable` where there is anything."""

    by_code: Mapping[int, str]
    editable: bytes

    @classmethod
    def of(cls, table: Mapping[str, str]) -> _Substitutes:
        return cls({ord(letter): choices for letter, choices in table.items()}, _marked("".join(table)))


def _substituted(caption: str, substitutes: _Substitutes, severity: int, rng: np.random.Generator) -> str:
    """The caption with a share of all its letters replaced, drawn among those that have a substitute."""
    plain = _plain(caption)
    places = _places(plain, substitutes.editable)
    n_edits = min(_share(plain.translate(_IS_LETTER).count(1), _LETTER_PERCENT[severity - 1]), len(places))
    edited = list(caption)
    for place, choice in _drawn(places, n_edits, rng):
        choices = substitutes.by_code[plain[place]]
        edited[place] = choices[int(choice * len(choices))]
    return "".join(edited)


def _plain(caption: str) -> bytes:
    """A byte for each character: the plain ones as they are, NUL for the rest."""
    if caption.isascii():
        return caption.encode("ascii")
    following = f"{caption[1:]} "
    return bytes(
        ord(character) if character.isascii() and not _extends(after) else 0
        for character, after in zip(caption, following, strict=True)
    )


def _extends(character: str) -> bool:
    """Whether the character belongs to the one before it: combining marks and joiners."""
    return not character.isascii() and (unicodedata.category(character)[0] == "M" or character in _JOINERS)


def _places(plain: bytes, table: bytes) -> list[int]:
    """The positions that `table` marks."""
    return list(compress(range(len(plain)), plain.translate(table)))


def _respaced(parts: Sequence[str], place: int, choice: float) -> str | None:
    """No space or two for the one there; None where it does not stand between two words."""
    left, right = parts[place - 1][-1:], parts[place + 1][:1]
    if not "!" <= left <= "~" or not "!" <= right <= "~" or (left.isdigit() and right.isdigit()):
        return None
    return "" if choice < 0.5 else "  "


def _broken(word: str, choice: float) -> str | None:
    """The word with a space between two of its letters; None if it has no two side by side."""
    letters = _plain(word).translate(_IS_LETTER)
    if b"\1\1" not in letters:
        return None
    breaks = [end for end in range(1, len(word)) if letters[end - 1] and letters[end]]
    end = breaks[int(choice * len(breaks))]
    return f"{word[:end]} {word[end:]}"


def _share(n: int, percent: int) -> int:
    """That share of n, rounded up."""
    return -(-n * percent // 100)


def _drawn(places: list[int], n: int, rng: np.random.Generator) -> Iterator[tuple[int, float]]:
    """n of the places, each at most once and in random order, with a number in [0, 1) to choose by; uses up the list.

    One draw gives both, the place by its whole and the choice by its fractional part: the product of a draw and the
    number of places is rounded once and taken apart exactly, and of its 53 bits a place takes a dozen.
    """
    n_left = len(places)
    for draw in rng.random(n).tolist():
        scaled = draw * n_left
        drawn = int(scaled)
        place = places[drawn]
        n_left -= 1
        places[drawn] = places[n_left]
        yield place, scaled - drawn


def _in_case_of(word: str, spelling: str) -> str:
    if word.islower():
        return spelling
    return spelling.upper() if len(word) > 1 and word.isupper() else spelling.capitalize()


@cache
def _keyboard_neighbours() -> _Substitutes:
    """The letters around each letter, lower and upper case, in the table's order.

    What is not another single letter is left out: digits, symbols, and two slips of the table, which has a beside a
    and " t" beside u.
    """
    table = _read_json("char/keyboard/en.json")
    lower = {
        key: "".join(value for value in values if len(value) == 1 and value.isalpha() and value != key)
        for key, values in table.items()
        if key.isalpha()
    }
    return _Substitutes.of(lower | {key.upper(): keys.upper() for key, keys in lower.items()})


@cache
def _ocr_confusions() -> _Substitutes:
    """The letters and digits that each letter is read as: the table's own, and its keys for their values."""
    table = _read_json("char/ocr/en.json")
    pairs = [(key, value) for key, values in table.items() for value in values]
    read_as: dict[str, str] = {}
    for letter, other in pairs + [(value, key) for key, value in pairs]:
        if letter.isalpha() and other not in read_as.get(letter, ""):
            read_as[letter] = read_as.get(letter, "") + other
    return _Substitutes.of(read_as)


@cache
def _other_letters() -> _Substitutes:
    lower = {letter: ascii_lowercase.replace(letter, "") for letter in ascii_lowercase}
    return _Substitutes.of(lower | {letter.upper(): others.upper() for letter, others in lower.items()})


@cache
def _homoglyphs() -> _Substitutes:
    return _Substitutes.of(_LOOK_ALIKES)


@cache
def _misspellings() -> Mapping[str, Sequence[str]]:
    """Wrong spellings of each word, lower case, in the table's order.

    Left out is what makes no typo: real words ("like" for luck: any that the table itself spells correctly), other
    words and languages ("tu" for the: fewer than half of the letters are common to both), remains of mark-up;
    and words of one letter.
    """
    found: dict[str, dict[str, None]] = {}
    for line in _nlpaug_table("word/spelling/spelling_en.txt").read_text(encoding="utf-8").lower().splitlines():
        word, *spellings = line.split()
        if len(word) > 1 and _SPELLING.fullmatch(word):
            found.setdefault(word, {}).update(dict.fromkeys(spellings))
    kept = {
        word: tuple(s for s in spellings if s not in found and _SPELLING.fullmatch(s) and _alike(word, s))
        for word, spellings in found.items()
    }
    return {word: spellings for word, spellings in kept.items() if spellings}


def _alike(a: str, b: str) -> bool:
    return 2 * len(set(a) & set(b)) >= len(set(a) | set(b))


def _read_json(path: str) -> Mapping[str, Sequence[str]]:
    table: Mapping[str, Sequence[str]] = json.loads(_nlpaug_table(path).read_text(encoding="utf-8"))
    return table


def _nlpaug_table(path: str) -> Path:
    """A data file of nlpaug, whose augmenters take 20 s to import."""
    return package_file("nlpaug", f"res/{path}", "typo shifts read the tables of nlpaug", "nlpaug")
