"""Active captions turned passive and back: the one clause of a caption, read from its parse and put together anew.

Only what the parse makes plain is converted: one sentence, one object or agent, nothing after it that could lose the
one it speaks of. Everything else is left to stay as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from shifts.text.nouns import is_animate, is_collective, is_depiction, is_plural, read_words, with_article
from shifts.text.parse import parse

if TYPE_CHECKING:
    from spacy.tokens import Doc, Token

_NEVER_PASSIVE = read_words("voice", "never_passive")
_NO_OBJECT = read_words("voice", "no_object")
_STATIVE = read_words("voice", "stative")
_LASTING = read_words("voice", "lasting")
_MOVES_THINGS = read_words("voice", "moves_things")
_PARTICLE_VERBS = read_words("voice", "particle_verbs")
_PLACED = read_words("voice", "placed")
_DONE_TO_LIVING = read_words("voice", "done_to_living")
_OBJECT_PRONOUNS = {"he": "him", "she": "her", "they": "them", "we": "us", "i": "me"}
_CLOSE_PREPOSITIONS = read_words("voice", "close_prepositions")
_lock = threading.Lock()
_CLAUSE_PARTS = frozenset(("advcl", "relcl", "ccomp", "xcomp", "csubj", "mark", "appos", "parataxis", "dep", "pcomp"))


class Clause(NamedTuple):
    """A transitive clause that takes up a whole caption, as the surface text of its parts.

    Args:
        opening: "There" where the caption says that there is something, else "".
        first: the phrase before the verb, as it stands.
        verb: the lemma.
        be: the finite form of "be" or of the verb, as a tag: "VBZ", "VBP", "VBD"; "" for a participle.
        progressive: whether the clause is under way: "is riding", "riding", "is being ridden", "being ridden".
        adverb: what stands right before the verb.
        particle: "up" of "picks up".
        second: the phrase after the verb.
        rest: what follows, up to the final punctuation.
        end: final punctuation and space.
    """

    opening: str
    first: Phrase
    verb: str
    be: str
    progressive: bool
    adverb: str
    particle: str
    second: Phrase
    rest: str
    end: str


class Phrase(NamedTuple):
    text: str
    head: Token
    starts_caption: bool


def make_passive(caption: str) -> str:
    """The caption with its active clause turned passive, or the caption itself where that is not safe."""
    text = caption.strip()
    doc = parse(text)
    for verb in doc:
        clause = _read_active(text, doc, verb)
        if clause is not None:
            return _write_passive(clause)
    return caption


def make_active(caption: str) -> str:
    """The caption with its passive clause turned active, or the caption itself where that is not safe.

    A passive inside the caption becomes a relative clause: "sits on a lawn surrounded by trees" becomes "sits on a
    lawn that trees surround".
    """
    text = caption.strip()
    doc = parse(text)
    for verb in doc:
        clause = _read_passive(text, doc, verb)
        if clause is not None:
            return _write_active(clause)
    for verb in doc:
        inner = _write_active_inside(text, doc, verb)
        if inner:
            return inner
    return caption


def _read_active(caption: str, doc: Doc, verb: Token) -> Clause | None:
    lemma = _verb_lemma(verb)
    done_to = _only_child(verb, "dobj")
    if verb.tag_ not in ("VBG", "VBZ", "VBP", "VBD") or lemma in _NEVER_PASSIVE or done_to is None:
        return None
    if _children(verb, "auxpass", "dative", "oprd", "neg", "agent") or done_to.lemma_.lower() in _NO_OBJECT:
        return None
    aux = _children(verb, "aux")
    if not aux and verb.tag_ in ("VBZ", "VBP") and not _agrees(verb):
        return None
    if len(aux) > 1 or (aux and (aux[0].lemma_ != "be" or verb.tag_ != "VBG")):
        return None
    clause = _read_clause(caption, doc, verb, aux, done_to, after_verb=verb.i + 1)
    if clause is None or not _can_act(clause.first, verb) or not done_to.tag_.startswith("NN"):
        return None
    return clause


def _read_passive(caption: str, doc: Doc, verb: Token) -> Clause | None:
    doer = _find_doer(verb)
    if doer is None:
        return None
    aux = _children(verb, "aux", "auxpass")
    forms = [token.lower_ for token in aux]
    if [form for form in forms if form not in ("is", "are", "was", "were", "being")] or len(forms) > 2:
        return None
    if not aux and _verb_lemma(verb) not in _STATIVE | _MOVES_THINGS | _LASTING:
        return None
    return _read_clause(caption, doc, verb, aux, doer, after_verb=doer.left_edge.i)


def _find_doer(verb: Token) -> Token | None:
    """The noun after "by", if it does what the passive participle says; most things after "by" are only near."""
    by = _only_child(verb, "agent")
    doer = None if by is None else _only_child(by, "pobj")
    if verb.tag_ not in ("VBN", "VBD") or by is None or doer is None or not doer.tag_.startswith("NN"):
        return None
    lemma = _verb_lemma(verb)
    acts = is_animate(doer) or lemma in _STATIVE | _MOVES_THINGS
    between = by.i - verb.i - 1 - len(_children(verb, "prt"))
    if not acts or lemma in _PLACED or between or doer.left_edge.i != by.i + 1:
        return None
    return doer


def _write_active_inside(caption: str, doc: Doc, verb: Token) -> str:
    """The caption with "... surrounded by trees" made "... that trees surround"; "" if that is not safe."""
    doer = _find_doer(verb)
    done_to = verb.head
    if doer is None or verb.dep_ not in ("acl", "relcl") or not done_to.tag_.startswith("NN"):
        return ""
    before = [token for token in verb.lefts if not token.is_punct]
    start, stop = min([verb.i, *(token.i for token in before)]), _phrase_end(doer)
    being = any(token.lower_ == "being" for token in before)
    lasts = being or _verb_lemma(verb) in _STATIVE | _MOVES_THINGS | _LASTING
    known = all(token.lower_ in ("that", "which", "is", "are", "being") or token.dep_ == "advmod" for token in before)
    if _children(verb, "conj") or not (
        known and lasts and len(before) == verb.i - start and doer.left_edge.i == verb.i + 2
    ):
        return ""
    if start == 0 or doc[start - 1].is_punct or not _is_plain_second(doc[verb.i + 2 : stop]):
        return ""
    if _verb_lemma(verb) in _DONE_TO_LIVING and not is_animate(done_to):
        return ""
    adverb = " ".join(token.text for token in before if token.dep_ == "advmod")
    phrase = _slice(caption, doc, verb.i + 2, stop)
    tag = "VBP" if is_plural(doer) else "VBZ"
    verbs = (_be(doer, "VBZ"), _inflect(_verb_lemma(verb), "VBG")) if being else ("", _inflect(_verb_lemma(verb), tag))
    clause = _join("that", phrase, verbs[0], adverb, verbs[1])
    return caption[: doc[start].idx] + clause + caption[_end_offset(doc, stop - 1) :]


def _read_clause(
    caption: str, doc: Doc, verb: Token, aux: list[Token], second: Token, after_verb: int
) -> Clause | None:
    """The parts around `verb`, if they are all that the caption has and stand in plain order."""
    start, stop = _opening_length(doc), _clause_end(doc, verb)
    head = _first_head(verb, start)
    adverbs = [token for token in _children(verb, "advmod") if start < token.i < verb.i]
    group = [*aux, *adverbs, verb]
    begin = min(token.i for token in group)
    is_one_sentence = next(iter(doc.sents)).end == len(doc)
    is_compact = is_one_sentence and len(group) == verb.i - begin + 1 and len(adverbs) < 2
    if head is None or not is_compact or not all(token.lower_.endswith("ly") for token in adverbs):
        return None
    second_to = _phrase_end(second)
    particle = _read_particle(verb, second.left_edge.i, second_to, after_verb)
    if particle is None or begin <= start:
        return None
    rest_from = second_to + bool(particle and second_to < len(doc) and doc[second_to].dep_ == "prt")
    first = Phrase(_slice(caption, doc, start, begin).rstrip(" ,"), head, starts_caption=start == 0)
    if not (
        _is_plain_first(doc[start:begin], head, verb)
        and _is_plain_second(doc[second.left_edge.i : second_to])
        and _is_plain_rest(doc[rest_from:stop], verb)
    ):
        return None
    return Clause(
        opening=_slice(caption, doc, 0, start - 1),
        first=first,
        verb=_verb_lemma(verb),
        be=_finite_tag(verb, aux),
        progressive=verb.tag_ == "VBG" or any(token.lower_ == "being" for token in aux),
        adverb=" ".join(token.text for token in adverbs),
        particle=particle,
        second=Phrase(_slice(caption, doc, second.left_edge.i, second_to), second, starts_caption=False),
        rest=_slice(caption, doc, rest_from, stop),
        end=caption[_end_offset(doc, stop - 1) :],
    )


def _finite_tag(verb: Token, aux: list[Token]) -> str:
    """The tag of what carries tense and number, or "" if nothing does."""
    if aux:
        return aux[0].tag_ if aux[0].tag_ in ("VBZ", "VBP", "VBD") else ""
    is_participle = verb.dep_ != "ROOT" or bool(_children(verb, "agent"))
    return "" if is_participle or verb.tag_ not in ("VBZ", "VBP", "VBD") else verb.tag_


def _read_particle(verb: Token, second_from: int, second_to: int, after_verb: int) -> str | None:
    """The verb's particle, "" if it has none; None if something else stands between verb and phrase."""
    particles = _children(verb, "prt")
    if not particles:
        return "" if second_from == after_verb else None
    known = len(particles) == 1 and f"{_verb_lemma(verb)} {particles[0].lower_}" in _PARTICLE_VERBS
    early = particles[0].i == verb.i + 1 and second_from in (after_verb, after_verb + 1) and second_from > verb.i + 1
    late = particles[0].i == second_to and second_from == after_verb
    return particles[0].text if known and (early or late) else None


def _clause_end(doc: Doc, verb: Token) -> int:
    """Where the clause ends: before the final punctuation, or before "and" and a clause with its own subject."""
    stop = len(doc)
    while stop > 1 and (doc[stop - 1].is_space or doc[stop - 1].text in (".", "!", "...", "..")):
        stop -= 1
    others = _children(verb, "conj")
    if verb.dep_ != "ROOT" or len(others) != 1 or not _children(others[0], "nsubj", "nsubjpass"):
        return stop
    other = others[0]
    joint = other.left_edge.i - 1
    if doc[joint].dep_ != "cc" or doc[joint].head != verb or other.right_edge.i + 1 < stop:
        return stop
    return joint - (doc[joint - 1].text == ",")


def _first_head(verb: Token, n_opening: int) -> Token | None:
    """The noun that the phrase before the verb is about, or None if the verb does not speak of a phrase there."""
    subjects = [token for token in verb.lefts if token.dep_ in ("nsubj", "nsubjpass")]
    if subjects:
        return subjects[0] if verb.dep_ == "ROOT" and n_opening == 0 and len(subjects) == 1 else None
    if verb.dep_ != "acl" or not verb.head.tag_.startswith("NN"):
        return None
    head = verb.head
    while head.dep_ == "conj" or (head.dep_ == "pobj" and is_collective(head.head.head)):
        head = head.head if head.dep_ == "conj" else head.head.head
    return head if head.dep_ == ("attr" if n_opening else "ROOT") else None


def _can_act(first: Phrase, verb: Token) -> bool:
    """Whether the phrase is plainly the doer; a thing with anything attached is too often not: "a bed with a cat"."""
    last = verb.head if verb.dep_ == "acl" else first.head
    if first.head.lower_ in _OBJECT_PRONOUNS or is_animate(first.head) or is_collective(first.head):
        return True
    return last == first.head and not [token for token in first.head.rights if token.i < verb.i and token.dep_ != "aux"]


def _agrees(verb: Token) -> bool:
    """Whether verb and subject agree in number; where they do not, the parse is wrong more often than the writer."""
    subject = _only_child(verb, "nsubj")
    return subject is not None and is_plural(subject) == (verb.tag_ == "VBP")


def _is_plain_first(tokens: Iterable[Token], head: Token, verb: Token) -> bool:
    inside = list(tokens)
    if is_depiction(head) or any(token.tag_ in ("WP", "WDT", "EX", "WRB") for token in inside):
        return False
    top = verb if head.dep_ in ("nsubj", "nsubjpass") else head
    return all(token == head or head in token.ancestors or token.head == top for token in inside) and not any(
        token.dep_ in ("advcl", "ccomp", "appos", "relcl")
        or token.tag_ in ("VBZ", "VBP", "VBD", "MD")
        or token.lower_ in (":", "-", "--")
        for token in inside
    )


def _is_plain_second(tokens: Iterable[Token]) -> bool:
    inside = list(tokens)
    return not any(
        token.dep_ in _CLAUSE_PARTS
        or (token.dep_ == "acl" and token.tag_ != "VBN")
        or token.tag_ in ("PRP", "PRP$", "WDT", "WP", "EX", "WRB", "TO")
        or (token.dep_ == "conj" and not token.tag_.startswith(("NN", "JJ", "CD")))
        or token.lower_ in ("each", "themselves", "itself", "himself", "herself", ":", "-", "--", "while", "as")
        for token in inside
    )


def _is_plain_rest(tokens: Iterable[Token], verb: Token) -> bool:
    inside = list(tokens)
    if inside and inside[0].text == ",":
        del inside[0]
    if inside and (inside[0].dep_ not in ("prep", "advmod", "npadvmod") or inside[-1].tag_ in ("IN", "RP")):
        return False
    on_top = [token.lower_ for token in inside[:3]]
    if on_top[:2] == ["on", "top"] and on_top[2:] != ["of"]:
        return False
    if inside and inside[0].lower_ == "with" and any(token.tag_ == "PRP$" for token in inside):
        return False
    return not any(
        token.dep_ in _CLAUSE_PARTS
        or token.tag_ in ("VBG", "VBZ", "VBP", "VBD", "VB", "TO", "WDT", "WP", "WRB", "EX", "PRP")
        or (token.head == verb and token.dep_ not in ("prep", "advmod", "npadvmod"))
        or token.lower_ in (",", ";", ":", "-", "--", "while", "as", "like", "without", "own")
        for token in inside
    )


def _write_passive(clause: Clause) -> str:
    doer = clause.first.text
    if clause.first.head.lower_ in _OBJECT_PRONOUNS:
        doer = _OBJECT_PRONOUNS[clause.first.head.lower_]
    done = _inflect(clause.verb, "VBN")
    be = _be(clause.second.head, clause.be)
    being = "being" if clause.progressive and not (clause.verb in _STATIVE and not clause.be) else ""
    verb = (be if clause.be else "", being, clause.adverb, done, clause.particle, "by")
    there = (clause.opening, _be(clause.second.head, "VBZ")) if clause.opening else ()
    subject = clause.second.text if clause.opening else _as_opening(clause.second.text, clause.first)
    return _join(*there, subject, *verb, _inside(doer, clause.first), clause.rest) + clause.end


def _write_active(clause: Clause) -> str:
    doer = clause.second.text if clause.opening else _as_opening(clause.second.text, clause.first)
    done_to = clause.first.text
    if clause.first.head.lower_ in _OBJECT_PRONOUNS:
        done_to = _OBJECT_PRONOUNS[clause.first.head.lower_]
    if not clause.be:
        verb = ("", _inflect(clause.verb, "VBG"))
    elif clause.progressive:
        verb = (_be(clause.second.head, clause.be), _inflect(clause.verb, "VBG"))
    else:
        plural = is_plural(clause.second.head)
        verb = ("", _inflect(clause.verb, "VBD" if clause.be == "VBD" else "VBP" if plural else "VBZ"))
    there = (clause.opening, _be(clause.second.head, "VBZ")) if clause.opening else ()
    done_to = _inside(done_to, clause.first)
    return _join(*there, doer, verb[0], clause.adverb, verb[1], clause.particle, done_to, clause.rest) + clause.end


def _inside(text: str, phrase: Phrase) -> str:
    """The phrase as it stands inside a sentence: no capital of a first word, and an article where one was dropped."""
    if not phrase.starts_caption:
        return text
    return with_article(lower_first(text, phrase.head.doc[0]), phrase.head)


def lower_first(text: str, first: Token) -> str:
    """The text without the capital that only its place at the beginning gave it."""
    word = text.split(" ", 1)[0]
    is_name = first.tag_ in ("NNP", "NNPS") and not is_animate(first)
    if is_name or first.text == "I" or (len(word) > 1 and word[1:] != word[1:].lower()):
        return text
    return text[:1].lower() + text[1:]


def _as_opening(text: str, replaced: Phrase) -> str:
    """The text as the caption's first words, with a capital where the words it replaces had one."""
    return text[:1].upper() + text[1:] if replaced.text[:1].isupper() else text


def _be(head: Token, tag: str) -> str:
    plural = is_plural(head)
    if tag == "VBD":
        return "were" if plural else "was"
    return "are" if plural else "is"


def _phrase_end(head: Token) -> int:
    """Where the phrase ends; a phrase such as "over her head" is left out, as it speaks of the doer."""
    for child in head.rights:
        speaks_of_doer = any(token.tag_ in ("PRP", "PRP$") for token in child.subtree)
        if child.dep_ == "prep" and child.lower_ in _CLOSE_PREPOSITIONS and speaks_of_doer:
            return child.i
    return head.right_edge.i + (head.right_edge.dep_ != "punct")


def _slice(caption: str, doc: Doc, start: int, stop: int) -> str:
    return caption[doc[start].idx : _end_offset(doc, stop - 1)] if stop > start else ""


def _end_offset(doc: Doc, last: int) -> int:
    return doc[last].idx + len(doc[last])


def _opening_length(doc: Doc) -> int:
    """2 if the caption opens with "There is", else 0."""
    return 2 if len(doc) > 2 and doc[0].lower_ == "there" and doc[1].lower_ in ("is", "are") else 0


def _children(token: Token, *relations: str) -> list[Token]:
    return [child for child in token.children if child.dep_ in relations]


def _only_child(token: Token, relation: str) -> Token | None:
    found = _children(token, relation)
    return found[0] if len(found) == 1 else None


def _verb_lemma(verb: Token) -> str:
    return _lemma(verb.lower_)


@lru_cache(maxsize=8192)
def _lemma(form: str) -> str:
    """The infinitive; lemminflect reads its tables when first asked, which two threads must not do at once."""
    import lemminflect

    with _lock:
        lemmas: tuple[str, ...] = lemminflect.getLemma(form, "VERB")
    return lemmas[0] if lemmas else form


@lru_cache(maxsize=8192)
def _inflect(lemma: str, tag: str) -> str:
    import lemminflect

    with _lock:
        forms: tuple[str, ...] = lemminflect.getInflection(lemma, tag)
    return forms[0] if forms else lemma


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part).replace(" , ", ", ")
