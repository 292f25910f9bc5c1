"""Distractors for the gallery, made from one sample: captions with a wrong noun, photos with part of another photo.

They follow RoCOCO (arXiv 2304.10727) but not its word lists: what a noun is replaced by comes from WordNet, so that a
distractor depends on its caption and on nothing else. The captions that RoCOCO published are in lower case but for
"danger", where three words do nearly all; they put singulars for plurals, "a" for "an", and now and then change what is
no noun ("in south a winery"). These keep case, number and article, and only nouns are replaced.
"""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from shifts.resources import package_file
from shifts.text import wordnet
from shifts.text.parse import parse
from shifts.text.word import STOP_WORDS, inflected, lemma_of, main_sense, replace_tokens, stands_alone
from shifts.text.wordnet import PartOfSpeech, Synset

if TYPE_CHECKING:
    from spacy.tokens import Token

Pixels = UInt8[np.ndarray, "height width 3"]
OtherPixels = UInt8[np.ndarray, "other_height other_width 3"]

_SAMPLE_PERCENT = (50, 60, 70, 80, 90)
_CONCEPTS: Mapping[str, str] = {
    "person": "person.1",
    "animal": "animal.1",
    "food": "food.1 food.2 edible_fruit.1",
    "clothing": "clothing.1 footwear.2 headdress.1 jewelry.1",
    "furniture": "furniture.1",
    "vehicle": "vehicle.1 public_transport.1",
    "musical instrument": "musical_instrument.1",
    "sports equipment": "sports_equipment.1 game_equipment.1 toy.1",
    "room": "room.1",
    "building": "building.1",
    "structure": "structure.1",
    "tableware": "tableware.1 kitchen_utensil.1",
    "container": "container.1",
    "device": "device.1 equipment.1 home_appliance.1",
    "body part": "external_body_part.1",
    "plant": "plant.2 plant_part.1",
    "landscape": "geological_formation.1 body_of_water.1 geographical_area.1 thoroughfare.1",
    "artifact": "artifact.1",
}
_PEOPLE_TOLD_APART = (
    "adult.1 juvenile.1 worker.1 entertainer.1 serviceman.1 health_professional.1 royalty.1 clergyman.1"
)
_NOT_REPLACED = "creation.2 group.1"
_DANGERS = "weapon.1 explosive_device.1 poison.1 murderer.1 gangster.1 thief.1"
_UNSUITABLE_WORDS = """
adult aircraft bachelor beau beer bread breakable broad bung butter chick coffee commuter craft dame deb die drug
escort fellow female flour guy hit incumbent lass lay madam male milk minor miss model moderate notable official
orderly pro rice ripper shot shrink silly slug spacecraft stiff sugar tackle tea temporary tine wag whore wine
"""
_UNSUITABLE = frozenset(_UNSUITABLE_WORDS.split())
_VOCABULARY_MIN_COUNT = 5
_CLIP_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
_CLIP_MERGES = 48_894
_LOOKS_PLURAL = re.compile(r"[^su]s$")
_WORD_END = "</w>"
_PARTS_OF_SPEECH: Sequence[PartOfSpeech] = ("noun", "verb", "adj", "adv")


def gallery_same_concept(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with one noun replaced by another of its concept: a dog becomes a cat; "" if it has no such noun.

    The concepts are kinds of WordNet, such as person, animal, food and vehicle, and a noun belongs to that of its main
    meaning. The new noun is common, and neither a synonym of the old one nor above or below it in WordNet in any
    sense, since it could then still be true of the photo; it does not occur in the caption. It takes over number and
    case, and `a` or `an` follows. Parts of compounds ("cell phone") and nouns before "of" ("piece of") are replaced
    only where there is no other. Severity is ignored: there is one.

    Source: arXiv 2304.10727 and the captions published with it.
    """
    return _distractor(caption, rng, lambda noun: _concepts()[noun.concept])


def gallery_diff_concept(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with one noun replaced by one of another concept, all being equally likely: a dog becomes a train.

    Otherwise as `gallery_same_concept`.
    """

    def others(noun: _Noun) -> Sequence[str]:
        concepts = [name for name in _concepts() if name != noun.concept]
        return _concepts()[concepts[rng.integers(len(concepts))]]

    return _distractor(caption, rng, others)


def gallery_rand_voca(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with one noun replaced by any common word, of whatever part of speech.

    The words are those tagged at least five times in WordNet's corpora. Otherwise as `gallery_same_concept`.
    """
    return _distractor(caption, rng, lambda noun: _vocabulary())


def gallery_danger(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with one noun replaced by a weapon, a poison or a violent criminal.

    Otherwise as `gallery_same_concept`.
    """
    return _distractor(caption, rng, lambda noun: _dangers())


def gallery_mix(pair: tuple[Pixels, OtherPixels], severity: int, rng: np.random.Generator) -> Pixels:
    """The sample blended with its partner, which is scaled and cropped about its centre to the sample's size.

    The sample's weight is 0.5, 0.6, 0.7, 0.8 and 0.9 for severities 1 to 5: the more the blend resembles the sample,
    the harder it is to tell from it, so change *falls* as severity rises. 0.9 is RoCOCO's. Rounded to nearest, half
    up; `rng` is ignored.

    Source: arXiv 2304.10727 (`mix_images.py` of its repository, `lam` 0.9); mixup, arXiv 1710.09412.
    """
    sample, partner = pair
    weight = _SAMPLE_PERCENT[severity - 1]
    blend = sample.astype(np.uint16) * np.uint16(weight)
    blend += _covering(partner, sample.shape[:2]).astype(np.uint16) * np.uint16(100 - weight)
    blend += 50
    blend //= 100
    return blend.astype(np.uint8)


def gallery_patch(pair: tuple[Pixels, OtherPixels], severity: int, rng: np.random.Generator) -> Pixels:
    """The sample with a rectangle of its partner, which is scaled and cropped about its centre to the sample's size.

    The rectangle has the sample's aspect, any place, and 50, 40, 30, 20 and 10 % of its area for severities 1 to 5:
    as in `gallery_mix` change *falls* as severity rises. 10 % is RoCOCO's, where the rectangle may also stick out.

    Source: arXiv 2304.10727 (`mix_images.py` of its repository, `lam` 0.9); CutMix, arXiv 1905.04899, section 3.1.
    """
    sample, partner = pair
    height, width = sample.shape[:2]
    side = math.sqrt(1 - _SAMPLE_PERCENT[severity - 1] / 100)
    patch_height, patch_width = max(1, round(height * side)), max(1, round(width * side))
    top = int(rng.integers(height - patch_height + 1))
    left = int(rng.integers(width - patch_width + 1))
    rows, columns = slice(top, top + patch_height), slice(left, left + patch_width)
    patched = np.array(sample, order="C")
    patched[rows, columns] = _covering(partner, (height, width))[rows, columns]
    return patched


def _covering(
    pixels: UInt8[np.ndarray, "other_height other_width 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """The middle of an image, as much of it as has the size's aspect, at that size.

    By Pillow, whose arithmetic for 8 bits is in integers.
    """
    height, width = size
    other_height, other_width = pixels.shape[:2]
    scale = min(other_height / height, other_width / width)
    x, y = (other_width - width * scale) / 2, (other_height - height * scale) / 2
    box = (max(x, 0), max(y, 0), min(x + width * scale, other_width), min(y + height * scale, other_height))
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


class _Noun(NamedTuple):
    """A noun of a caption that can be replaced."""

    token: Token
    lemma: str
    concept: str


def _distractor(caption: str, rng: np.random.Generator, words_for: Callable[[_Noun], Sequence[str]]) -> str:
    tokens = list(parse(caption))
    present = {token.lower_ for token in tokens} | {token.lemma_.lower() for token in tokens}
    for noun in _in_drawn_order(tokens, rng):
        words = words_for(noun)
        for drawn in rng.permutation(len(words)):
            word = words[drawn]
            if word not in present and not _may_both_be_true(noun.lemma, word):
                return replace_tokens(caption, [(noun.token, _in_number_of(noun.token, word))])
    return ""


def _in_drawn_order(tokens: Sequence[Token], rng: np.random.Generator) -> Iterator[_Noun]:
    """The nouns that have a concept: those that stand alone and not before "of", then the others."""
    nouns = [_Noun(token, *found) for token in tokens if (found := _lemma_and_concept(token)) is not None]
    order = [nouns[drawn] for drawn in rng.permutation(len(nouns))]
    return iter(sorted(order, key=lambda noun: not stands_alone(noun.token) or _is_before_of(noun.token)))


def _is_before_of(token: Token) -> bool:
    return token.doc[token.i + 1 : token.i + 2].text.lower() == "of"


def _lemma_and_concept(token: Token) -> tuple[str, str] | None:
    if token.tag_ not in ("NN", "NNS") or not token.text.isalpha():
        return None
    lemma = "person" if token.lower_ == "people" else lemma_of(token, "noun")
    concept = concept_of(lemma) if lemma else None
    return (lemma, concept) if lemma and concept else None


@lru_cache(maxsize=65536)
def concept_of(lemma: str) -> str | None:
    """The first concept that the main meaning of a noun is a kind of, or None: pictures and groups have none."""
    sense = main_sense(lemma, "noun")
    if sense is None:
        return None
    kinds = wordnet.hypernyms(sense.synset)
    if kinds & _roots(_NOT_REPLACED):
        return None
    return next((name for name, roots in _CONCEPTS.items() if kinds & _roots(roots)), None)


@cache
def _roots(names: str) -> frozenset[Synset]:
    """The synsets that names such as "food.2" stand for: the second sense of "food"."""
    pairs = (name.rsplit(".", 1) for name in names.split())
    return frozenset(wordnet.senses(lemma, "noun")[int(number) - 1].synset for lemma, number in pairs)


@cache
def _concepts() -> Mapping[str, Sequence[str]]:
    """The words of each concept, in alphabetical order."""
    found: dict[str, list[str]] = {name: [] for name in _CONCEPTS}
    people = _kinds_of(_PEOPLE_TOLD_APART)
    for lemma in _common_nouns():
        concept = concept_of(lemma)
        if concept is not None and (concept != "person" or _main_synset(lemma) in people):
            found[concept].append(lemma)
    return found


@cache
def _dangers() -> Sequence[str]:
    kinds = _kinds_of(_DANGERS)
    named = {lemma for kind in kinds for lemma in kind.lemmas}
    return [
        lemma for lemma in _known_nouns() if lemma in named and _is_common_noun(lemma) and _main_synset(lemma) in kinds
    ]


@cache
def _kinds_of(names: str) -> frozenset[Synset]:
    return frozenset(kind for root in _roots(names) for kind in wordnet.hyponyms(root))


def _main_synset(lemma: str) -> Synset | None:
    sense = main_sense(lemma, "noun")
    return sense.synset if sense else None


@cache
def _common_nouns() -> Sequence[str]:
    """Nouns of one word that people know, that have a plural, and that are seldom another part of speech.

    Known means a token of its own in CLIP's vocabulary, made from captions of the web, and either tagged in its main
    meaning or with only one: WordNet's own counts are of 1961, without a laptop or a giraffe.
    """
    return [lemma for lemma in _known_nouns() if _is_common_noun(lemma)]


def _known_nouns() -> Iterator[str]:
    return (lemma for lemma in wordnet.lemmas("noun") if lemma in _clip_words())


def _is_common_noun(lemma: str) -> bool:
    sense = main_sense(lemma, "noun")
    if sense is None or lemma in _UNSUITABLE or lemma in STOP_WORDS or not (lemma.isalpha() and len(lemma) > 2):
        return False
    if lemma not in sense.synset.lemmas or (sense.n_tagged == 0 and len(wordnet.senses(lemma, "noun")) > 1):
        return False
    if sum(wordnet.n_tagged(lemma, pos) for pos in _PARTS_OF_SPEECH[1:]) > sense.n_tagged or _LOOKS_PLURAL.search(
        lemma
    ):
        return False
    return inflected(lemma, "NNS") not in (None, lemma)


@cache
def _clip_words() -> frozenset[str]:
    path = package_file("open_clip", _CLIP_VOCABULARY, "gallery shifts read CLIP's vocabulary", "open_clip_torch")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        merges = [next(lines) for _ in range(1 + _CLIP_MERGES)][1:]
    return frozenset(
        "".join(merge.split())[: -len(_WORD_END)] for merge in merges if merge.rstrip().endswith(_WORD_END)
    )


@cache
def _vocabulary() -> Sequence[str]:
    """Common words of every part of speech, in alphabetical order."""
    return sorted(lemma for lemma in _all_lemmas() if _is_common_word(lemma))


def _all_lemmas() -> set[str]:
    return {lemma for pos in _PARTS_OF_SPEECH for lemma in wordnet.lemmas(pos)}


def _is_common_word(lemma: str) -> bool:
    if not lemma.isalpha() or len(lemma) < 3 or lemma in STOP_WORDS or lemma in _UNSUITABLE:
        return False
    n_tagged = {pos: wordnet.n_tagged(lemma, pos) for pos in _PARTS_OF_SPEECH}
    if sum(n_tagged.values()) < _VOCABULARY_MIN_COUNT:
        return False
    commonest = max(_PARTS_OF_SPEECH, key=lambda pos: n_tagged[pos])
    return any(lemma in sense.synset.lemmas for sense in wordnet.senses(lemma, commonest)[:1])


def _in_number_of(token: Token, word: str) -> str:
    """The word in the plural if the token is and the word is a noun."""
    if token.tag_ != "NNS" or not wordnet.senses(word, "noun"):
        return word
    return inflected(word, "NNS") or word


def _may_both_be_true(old: str, new: str) -> bool:
    """Whether one of the nouns means the same as the other, or a kind of it, in any sense that a photo can show.

    Of people this is not enough: a girl may be a lady, and both are kinds of woman. So people of the same next kind
    count as well, unless they are opposites, as man and woman are.
    """
    if new in wordnet.antonyms(old, "noun"):
        return False
    (old_own, old_kinds), (new_own, new_kinds) = _meanings(old), _meanings(new)
    if old_own & new_kinds or new_own & old_kinds:
        return True
    people = _roots("person.1")
    return any(kind not in people for kind in _next_kinds(old) & _next_kinds(new)) and concept_of(old) == "person"


@lru_cache(maxsize=65536)
def _meanings(lemma: str) -> tuple[frozenset[Synset], frozenset[Synset]]:
    own = frozenset(sense.synset for sense in wordnet.senses(lemma, "noun"))
    return own, frozenset(kind for synset in own for kind in wordnet.hypernyms(synset))


def _next_kinds(lemma: str) -> frozenset[Synset]:
    synset = _main_synset(lemma)
    return frozenset(wordnet.related(synset, "@")) if synset else frozenset()
