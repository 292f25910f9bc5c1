"""Words exchanged, added, moved and lost.

A word is a run of characters without white space, less the punctuation around it, which stays where it is. The
strengths are shares of a caption's words, from 10 to 50 %, as EDA (arXiv 1901.11196) tried them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from shifts.text import wordnet
from shifts.text.parse import parse
from shifts.text.wordnet import PartOfSpeech, Synset

if TYPE_CHECKING:
    from spacy.tokens import Token

_PERCENT_OF_WORDS = (10, 20, 30, 40, 50)
_PERCENT_OF_STOP_WORDS = (15, 30, 45, 60, 75)
_MARKS = ".;?:!,"

_FUNCTION_WORDS = """
a an the this that these those some any each every either neither both all such
i me my mine we us our ours you your yours he him his she her hers it its they them their theirs
himself herself itself themselves who whom whose which what
am is are was were be been being has have had having do does did doing will would shall should can could may might
must
and or but nor so yet if while as than because although though when where until since whether
of in on at by to from with into onto upon over under above below near beside between among against through across
along around about for off out up down after before during behind toward towards within there here then also too
very just
"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())

_GOOD_PAIRS = """
airplane>aeroplane bicycle>bike building>edifice bunch>cluster car>auto child>youngster clothes>apparel
cluster>bunch colorful>colourful corn>maize donut>doughnut doughnut>donut forest>woodland glasses>spectacles
harbor>seaport hit>strike luggage>baggage mustache>moustache person>individual photo>pic plane>aeroplane
racquet>racket restaurant>eatery sleep>slumber strike>hit team>squad teenager>teen television>tv tv>television
variety>assortment vegetable>veggie vegetables>veggies yogurt>yoghurt
"""
_READ_AS_GOOD = frozenset(_GOOD_PAIRS.split())
_BAD_PAIRS = """
clock>time frog>toad fuzzy>fuzzed pattern>model patterned>modeled rock>sway wedge>deposit weird>uncanny
crumble>crumple decorate>grace disc>record effect>effectuate herd>crowd look>sound rail>railing water>irrigate
adorable>endearing adult>grownup almost>near alone>exclusively alone>solely animal>beast approach>near arm>munition
away>off baby>babe backwards>rearward bake>parch bake>scorch bar>ginmill bar>saloon batter>slugger
bearded>bewhiskered being>organism bite>morsel board>plank book>volume border>surround bordering>surrounding
bottom>underside bouquet>corsage chase>dog city>metropolis classroom>schoolroom cloudy>nebulous clown>buffoon
controller>accountant counter>antagonistic cross>traverse delicious>delightful dig>delve dingy>grimy direction>way
dirty>unclean display>exhibit display>expose display>presentation dot>stud dresser>bureau enclose>envelop enjoy>bask
factory>mill fence>fencing fine>okay fisherman>fisher flat>level flat>plane flip>impudent flip>insolent float>drift
fly>wing forage>scrounge forestall>prevent freshly>fresh freshly>new full>fully fully>full furnish>provide
furnish>supply go>move go>travel goal>destination ground>land haired>hairy highly>extremely illuminate>illumine
image>icon individual>mortal individual>somebody individual>someone intersection>crossroad jump>bound jump>spring
lay>place lay>put lay>set leaf>foliage lean>tilt lid>eyelid live>populate loaded>ladened lone>lonely lush>profuse
lush>riotous market>grocery meadow>hayfield mobile>wandering mug>sucker opponent>opposite patch>plot peek>glance
perch>roost picture>envision picture>fancy picture>visualize pitcher>hurler place>spot plant>works prevent>forestall
pull>draw race>rush refrigerator>icebox review>reexamine roadside>wayside round>circular run>rivulet runner>smuggler
silly>wacky single>individual snow>snowfall soon>presently source>origin spot>spy squash>mash stoop>crouch
strip>deprive strip>divest stuff>material suited>suitable sunny>cheery sunny>gay surround>environ swinge>singe
toilet>john toilet>privy trailer>laggard travel>go twin>matching use>apply use>employ vas>vessel want>desire
wave>beckon way>direction well>good world>universe wrecked>wracked yard>grounds
"""
_READ_AS_BAD = frozenset(_BAD_PAIRS.split())
_SYNONYM_POS: Mapping[str, PartOfSpeech] = {"NOUN": "noun", "VERB": "verb", "ADJ": "adj", "ADV": "adv"}
_IRREGULAR: Mapping[tuple[str, str], str | None] = {
    ("person", "NNS"): "people",
    ("little", "JJR"): None,
    ("little", "JJS"): None,
}
_VISIBLE_FIELDS = "Tops animal artifact body food location object person phenomenon plant substance"
_VISIBLE = frozenset(f"noun.{field}" for field in _VISIBLE_FIELDS.split())
_SPELT_WITH_VOWEL_SAID_WITH_CONSONANT = re.compile(r"uni(?!n|m)|us[aeu]|ut[ei]|eu|ewe|one\b|once|ubi", re.IGNORECASE)
_SPELT_WITH_CONSONANT_SAID_WITH_VOWEL = re.compile(r"hour|honest|hono|heir", re.IGNORECASE)


def word_synonym_replace(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with some words replaced by a synonym from WordNet, inflected alike; `a` and `an` follow.

    Severities 1 to 5 replace 10, 20, 30, 40 and 50 % of the words, rounded up, but no more than have a synonym that
    `synonyms` accepts. Nouns, verbs, adjectives and adverbs are replaced; not names, auxiliaries, parts of compounds
    or verbs with a particle. EDA takes any synonym of any sense of the bare word, without part of speech.

    Source: arXiv 1901.11196, section 2 (strength); WordNet 3.0.
    """
    choices = {token.i: (token, forms) for token in parse(caption) if (forms := _synonym_forms(token))}
    words = _split(caption)
    chosen = _draw(list(choices), _share(words, _PERCENT_OF_WORDS[severity - 1]), rng)
    drawn = [(choices[i][0], choices[i][1][rng.integers(len(choices[i][1]))]) for i in chosen]
    return replace_tokens(caption, drawn)


def word_insert(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with words added that a masked language model expects there.

    Severities 1 to 5 add 10, 20, 30, 40 and 50 % of the number of words, rounded up. EDA adds synonyms of the
    caption's words at random places, which reads as noise.
    """
    from shifts.text.masked_lm import insert_words

    return insert_words(caption, _share(_split(caption), _PERCENT_OF_WORDS[severity - 1]), rng)


def word_swap(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with some words exchanged with their right neighbour; every word takes part in one pair at most.

    Severities 1 to 5 move 10, 20, 30, 40 and 50 % of the words, rounded up to pairs. All sets of so many pairs are
    equally likely. EDA swaps words any distance apart.
    """
    words = _split(caption)
    cores = _small_at_start([word.core for word in words])
    places = _places(words)
    n_pairs = min(-(-len(places) * _PERCENT_OF_WORDS[severity - 1] // 200), len(places) // 2)
    for nth, start in enumerate(_draw(range(len(places) - n_pairs), n_pairs, rng)):
        left, right = places[start + nth], places[start + nth + 1]
        cores[left], cores[right] = cores[right], cores[left]
    return _join([replace(word, core=core) for word, core in zip(words, cores, strict=True)], caption)


def word_delete(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption without some of its words; one is always left.

    Severities 1 to 5 delete 10, 20, 30, 40 and 50 % of the words, rounded up. EDA deletes each with a probability.
    """
    words = _split(caption)
    n_deleted = min(_share(words, _PERCENT_OF_WORDS[severity - 1]), len(_places(words)) - 1)
    return _join(_without(words, _draw(_places(words), n_deleted, rng)), caption)


def word_insert_punctuation(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with some of . ; ? : ! , each between two words, with white space around.

    Severities 1 to 5 add 1/15 to 5/15 of the number of words, rounded up; AEDA draws the number between one and a
    third of the words and may also put a mark before the first.

    Source: arXiv 2108.13591, section 2.
    """
    words = _split(caption)
    gaps = _places(words)[1:]
    for place in _draw(gaps, -(-(len(gaps) + 1) * severity // 15), rng):
        mark = _MARKS[rng.integers(len(_MARKS))]
        words[place] = replace(words[place], space=f" {mark}{words[place].space}")
    return _text(words)


def word_stopword_drop(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption without some of its articles, pronouns, prepositions, auxiliaries and other `STOP_WORDS`.

    Severities 1 to 5 drop 15, 30, 45, 60 and 75 % of them, rounded up; one word is always left.
    """
    words = _split(caption)
    places = [i for i in _places(words) if words[i].core.lower() in STOP_WORDS]
    n_dropped = min(-(-len(places) * _PERCENT_OF_STOP_WORDS[severity - 1] // 100), len(_places(words)) - 1)
    return _join(_without(words, _draw(places, n_dropped, rng)), caption)


def synonyms(lemma: str, pos: PartOfSpeech) -> tuple[str, ...]:
    """Single words that mean what the lemma mostly means, and themselves mostly mean that; in WordNet's order.

    The meaning is `main_sense`, and a synonym must have been tagged with it at least 5 % as often as the lemma, so
    that it is not a rarity, and must not be an opposite of the lemma in another sense. Colours have none: WordNet
    joins their shades. What is left was read on captions; pairs that read badly are out, and a few that SemCor, being
    of 1961, has no counts for are in.
    """
    sense = main_sense(lemma, pos)
    if sense is None or _is_colour(sense.synset):
        return ()
    opposites = wordnet.antonyms(lemma, pos)
    return tuple(
        name
        for name in sense.synset.lemmas
        if name.isalpha() and name.islower() and name != lemma and name not in opposites
        if _reads_well(lemma, name, sense)
    )


def _reads_well(lemma: str, name: str, sense: wordnet.Sense) -> bool:
    pair = f"{lemma}>{name}"
    return pair in _READ_AS_GOOD or (pair not in _READ_AS_BAD and _is_common_synonym(name, sense))


def _is_common_synonym(name: str, sense: wordnet.Sense) -> bool:
    own = main_sense(name, sense.synset.pos)
    return own is not None and own.synset == sense.synset and 0 < sense.n_tagged <= 20 * own.n_tagged


@lru_cache(maxsize=65536)
def main_sense(lemma: str, pos: PartOfSpeech) -> wordnet.Sense | None:
    """The meaning of at least two fifths of a lemma's tagged uses, or None.

    Of a noun only those meanings count that a photo can show, and it must have a fifth of all uses.
    """
    every = wordnet.senses(lemma, pos)
    fit = [sense for sense in every if pos != "noun" or sense.synset.lexname in _VISIBLE]
    total, fit_total = (sum(sense.n_tagged for sense in some) for some in (every, fit))
    return fit[0] if fit and 5 * fit[0].n_tagged >= 2 * fit_total and 5 * fit[0].n_tagged >= total else None


@lru_cache(maxsize=1024)
def _is_colour(synset: Synset) -> bool:
    heads = {synset, *wordnet.related(synset, "&")}
    return any(name in ("chromatic", "achromatic") for head in heads for name in head.lemmas)


def _synonym_forms(token: Token) -> list[str]:
    """The synonyms of a token, inflected as it is, or none."""
    pos = _SYNONYM_POS.get(token.pos_)
    if pos is None or token.tag_ in ("NNP", "NNPS") or token.dep_ in ("aux", "auxpass") or not stands_alone(token):
        return []
    lemma = lemma_of(token, pos)
    if lemma is None or inflected(lemma, token.tag_) != token.lower_ or token.lower_ in STOP_WORDS:
        return []
    if pos == "adv" and token.doc[token.i + 1 : token.i + 2].text == "of":
        return []
    forms = (inflected(name, token.tag_) for name in synonyms(lemma, pos))
    return [form for form in forms if form is not None]


def lemma_of(token: Token, pos: PartOfSpeech) -> str | None:
    """The lemma of WordNet that a token is a form of: spaCy's if WordNet has it."""
    lemma = token.lemma_.lower()
    return lemma if wordnet.senses(lemma, pos) else wordnet.base_form(token.text, pos)


def stands_alone(token: Token) -> bool:
    """Whether it is neither part of a compound ("cell phone", "T-shirt") nor has a particle ("sit down")."""
    if token.dep_ == "compound" or any(child.dep_ in ("compound", "prt") for child in token.children):
        return False
    before, after = token.idx - 1, token.idx + len(token.text)
    text = token.doc.text
    return token.text.isalpha() and not any(0 <= i < len(text) and text[i] in "-'’/" for i in (before, after))


def inflected(lemma: str, tag: str) -> str | None:
    """The form of a lemma that a Penn Treebank tag asks for, None if it has none (no "beautifuler") or is unknown."""
    if tag in ("NN", "VB", "VBP", "JJ", "RB"):
        return lemma
    if (lemma, tag) in _IRREGULAR:
        return _IRREGULAR[lemma, tag]
    from lemminflect import getInflection

    forms = getInflection(lemma, tag, inflect_oov=False)
    return forms[0] if forms else None


def replace_tokens(caption: str, replacements: Sequence[tuple[Token, str]]) -> str:
    """The caption with tokens of it replaced, in the same case; an article before a new word becomes `a` or `an`."""
    edits: dict[int, tuple[int, str]] = {}
    for token, word in replacements:
        edits[token.idx] = (len(token.text), _in_case_of(token.text, word))
        article = token.doc[token.i - 1] if token.i else None
        if article is not None and article.lower_ in ("a", "an"):
            edits[article.idx] = (len(article.text), _in_case_of(article.text, article_of(word)))
    for start, (length, word) in sorted(edits.items(), reverse=True):
        caption = caption[:start] + word + caption[start + length :]
    return caption


def article_of(word: str) -> str:
    """`a` or `an`, by how the word is spoken."""
    if _SPELT_WITH_VOWEL_SAID_WITH_CONSONANT.match(word):
        return "a"
    return "an" if word[0].lower() in "aeiou" or _SPELT_WITH_CONSONANT_SAID_WITH_VOWEL.match(word) else "a"


def _in_case_of(old: str, new: str) -> str:
    if len(old) > 1 and old.isupper():
        return new.upper()
    return new[0].upper() + new[1:] if old[0].isupper() else new


@dataclass(frozen=True)
class _Word:
    """A run of characters, the white space before it, and its core between punctuation; "" if it is only that."""

    space: str
    lead: str
    core: str
    trail: str


def _split(caption: str) -> list[_Word]:
    """The caption's words in order; the white space at its end is one without characters."""
    return [_Word(*match.groups()) for match in re.finditer(r"(\s*)([^\w\s]*)(\w(?:\S*\w)?|)([^\w\s]*)", caption)][:-1]


def _places(words: Sequence[_Word]) -> list[int]:
    """Where there is a word, not mere punctuation."""
    return [i for i, word in enumerate(words) if word.core]


def _share(words: Sequence[_Word], percent: int) -> int:
    return -(-len(_places(words)) * percent // 100)


def _draw(places: Sequence[int], n: int, rng: np.random.Generator) -> list[int]:
    """`n` of the places, or all if there are fewer, in order."""
    return sorted(places[i] for i in rng.permutation(len(places))[: max(n, 0)])


def _without(words: Sequence[_Word], places: Sequence[int]) -> list[_Word]:
    """The words less those at the places; what stands before one goes to the next, what stands after one stays behind.

    Punctuation on both sides of a word, such as quotation marks, goes with it.
    """
    cores = _small_at_start([word.core for word in words])
    kept: list[_Word] = []
    lead = ""
    for i, (word, core) in enumerate(zip(words, cores, strict=True)):
        alone = bool(word.lead and word.trail)
        if i not in places:
            space = word.space if kept else words[0].space
            kept.append(_Word(space, lead + word.lead, core, word.trail))
            lead = ""
        elif not alone:
            lead += word.lead
            if kept:
                kept[-1] = replace(kept[-1], trail=kept[-1].trail + word.trail)
    return kept


def _small_at_start(cores: Sequence[str]) -> list[str]:
    """The cores, the first in lower case unless it is "I" or has capitals inside: it may no longer be the first."""
    first = next((i for i, core in enumerate(cores) if core), None)
    if first is None or re.match(r"I\b|.+[A-Z]", cores[first]):
        return list(cores)
    return [core[:1].lower() + core[1:] if i == first else core for i, core in enumerate(cores)]


def _join(words: Sequence[_Word], caption: str) -> str:
    """The words as a caption that begins with a capital if `caption` does."""
    first = next((word.core for word in _split(caption) if word.core), "")
    place = next(iter(_places(words)), None)
    if place is None or not "A" <= first[:1] <= "Z":
        return _text(words)
    core = words[place].core
    return _text([*words[:place], replace(words[place], core=core[0].upper() + core[1:]), *words[place + 1 :]])


def _text(words: Sequence[_Word]) -> str:
    return "".join(word.space + word.lead + word.core + word.trail for word in words)
