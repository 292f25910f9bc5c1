"""The same caption said in another way: in the other voice, in another register, inside another phrase.

Every rule here is about English captions. A caption that no rule fits comes back as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from shifts.text import register, voice
from shifts.text.nouns import indefinite_article, is_plural, with_article
from shifts.text.parse import parse

if TYPE_CHECKING:
    from spacy.tokens import Doc, Token

Frame = Literal["phrase", "sentence", "unknown"]

_PHRASE_FRAMES = (
    "A photo showing {}",
    "An image of {}",
    "In this picture, there {is} {}",
    "You can see {}",
    "This is a photo of {}",
    "The picture shows {}",
    "Here we see {}",
    "The scene contains {}",
    "What the camera caught {is} {}",
    "There {is} {} in this photo",
    "Someone took a picture of {}",
    "Visible in this image {is} {}",
    "The photographer captured {}",
    "We are looking at {}",
)
_SENTENCE_FRAMES = (
    "A photo in which {}",
    "In this picture, {}",
    "You can see that {}",
    "The picture shows that {}",
    "Here we see how {}",
    "As the photo shows, {}",
    "This is an image in which {}",
    "In the scene before us, {}",
    "It can be seen that {}",
    "What the camera caught is that {}",
    "According to this photo, {}",
    "The photographer captured a moment in which {}",
    "We are looking at a scene where {}",
    "The photo makes clear that {}",
)
_UNKNOWN_FRAMES = (
    "Photo: {}",
    "In this picture: {}",
    "The image shows the following: {}",
    "Seen here: {}",
    "What the camera caught: {}",
    "Picture caption: {}",
    "Here is what you can see: {}",
    "A photo, described as follows: {}",
    "Shown in this image: {}",
    "The scene before us: {}",
    "A snapshot: {}",
    "The photographer's subject: {}",
)


def sentence_passive(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with its active clause turned passive: "A man riding a horse." as "A horse being ridden by a man."

    Only a caption that is one transitive clause or noun phrase is converted, about one in nine of COCO's; `rng` is
    not used.
    """
    return voice.make_passive(caption)


def sentence_active(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption with its passive clause turned active: "A horse ridden by a man." as "A man riding a horse."

    Few captions are passive with a named doer, about one in 250 of COCO's; `rng` is not used.
    """
    return voice.make_active(caption)


def sentence_formal(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption in formal words: "A kid next to a TV" as "There is a child beside a television."

    Of the changes that fit the caption, each is made with probability 1/2 and at least one is made: words of
    `register.FORMAL`, and a full sentence where there was a phrase.
    """
    sites = _find_sites(caption, _compiled("formal"))
    kind = _frame_of(caption)
    changes = _draw(len(sites) + (kind != "unknown"), rng)
    worded = _replace(caption, [site for site, change in zip(sites, changes, strict=False) if change])
    if kind == "unknown" or not changes[-1]:
        return worded
    frame = "There {is} {}" if kind == "phrase" else "It may be observed that {}"
    framed = _fill(frame, caption, worded, kind)
    return framed if framed.endswith((".", "!", "?", '"')) else f"{framed}."


def sentence_casual(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption in casual words: "A woman is sitting near two dogs." as "lady's sitting close to two doggies"

    Of the changes that fit the caption, each is made with probability 1/2 and at least one is made: words of
    `register.CASUAL`, no article at the beginning, no capital there, no full stop.
    """
    sites = _find_sites(caption, _compiled("casual"))
    habits = [habit for habit in (_drop_article, _drop_capital, _drop_stop) if habit(caption) != caption]
    changes = _draw(len(sites) + len(habits), rng)
    said = _replace(caption, [site for site, change in zip(sites, changes, strict=False) if change])
    for habit, change in zip(habits, changes[len(sites) :], strict=True):
        said = habit(said) if change else said
    return said


def sentence_template(caption: str, severity: int, rng: np.random.Generator) -> str:
    """The caption inside another phrase, drawn among twelve or more: "In this picture, there is a man on a horse."

    Noun phrases, whole sentences and captions that the parse leaves unclear have frames of their own. Captions without
    a letter stay as they are.
    """
    if not any(character.isalpha() for character in caption):
        return caption
    kind = _frame_of(caption)
    frames = {"phrase": _PHRASE_FRAMES, "sentence": _SENTENCE_FRAMES, "unknown": _UNKNOWN_FRAMES}[kind]
    text = caption.strip()
    return _fill(frames[rng.integers(len(frames))], text, text, kind)


class _Site(NamedTuple):
    """A place in the caption, and what a rule would write there."""

    start: int
    stop: int
    text: str


@cache
def _compiled(name: Literal["formal", "casual"]) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """One pattern of all rules, a group each, and their replacements."""
    rules = register.FORMAL if name == "formal" else register.CASUAL
    pattern = "|".join(f"({words})" for words, _ in rules)
    return re.compile(rf"(?:(?<![\w-])|(?= is))(?:{pattern})(?![\w-]|'(?!s))", re.IGNORECASE), tuple(
        text for _, text in rules
    )


def _find_sites(caption: str, rules: tuple[re.Pattern[str], tuple[str, ...]]) -> list[_Site]:
    """Where rules apply, from left to right, no two in the same place."""
    pattern, replacements = rules
    sites = []
    for match in pattern.finditer(caption):
        text = replacements[(match.lastindex or 1) - 1]
        start, stop = match.span()
        article = re.search(r"\b(a|an|the)\s+$", caption[:start], re.IGNORECASE)
        if article and text.startswith("a "):
            continue
        if article and article[1].lower() != "the":
            text = indefinite_article(text) + caption[article.end(1) : start] + text
            start = article.start()
        if caption[start].isupper():
            text = text[:1].upper() + text[1:]
        sites.append(_Site(start, stop, text))
    return sites


def _draw(n_changes: int, rng: np.random.Generator) -> list[bool]:
    """Which changes to make: each with probability 1/2, and one drawn among them in any case."""
    drawn = (rng.random(n_changes) < 0.5).tolist()
    if n_changes:
        drawn[rng.integers(n_changes)] = True
    return drawn


def _replace(caption: str, sites: Sequence[_Site]) -> str:
    for site in reversed(sites):
        caption = caption[: site.start] + site.text + caption[site.stop :]
    return caption


def _drop_article(caption: str) -> str:
    shorter = re.sub(r"^\s*(a|an|the)\s+(?!few |lot |couple |bunch )(?=\w)", "", caption, flags=re.IGNORECASE)
    return shorter[:1].upper() + shorter[1:] if caption.lstrip()[:1].isupper() else shorter


def _drop_capital(caption: str) -> str:
    first = caption.split(" ", 1)[0]
    return caption[:1].lower() + caption[1:] if first[1:] == first[1:].lower() and first != "I" else caption


def _drop_stop(caption: str) -> str:
    return re.sub(r"(?<=[\w\"')])\.\s*$", "", caption)


def _frame_of(caption: str) -> Frame:
    """Whether the caption is a noun phrase or a whole sentence, by the root of its parse; "unknown" if unclear."""
    text = caption.strip()
    if not text or text.endswith("?"):
        return "unknown"
    doc = parse(text)
    sentence = next(iter(doc.sents))
    root = sentence.root
    finite = ("VBZ", "VBP", "VBD", "MD")
    has_subject = any(child.dep_ in ("nsubj", "nsubjpass", "expl", "csubj") for child in root.lefts)
    if has_subject and (root.tag_ in finite or any(c.tag_ in finite for c in root.lefts if c.dep_[:3] == "aux")):
        return "sentence"
    phrase_root = _phrase_head(doc)
    if phrase_root is None or any(token.tag_ in finite and not _is_inside(token, root) for token in sentence):
        return "unknown"
    return "phrase"


def _phrase_head(doc: Doc) -> Token | None:
    """The noun that a caption without a finite verb is about: "dog" in "A dog on a bed" and in "dog sleeping"."""
    root = next(iter(doc.sents)).root
    if root.tag_ in ("NN", "NNS", "NNP", "NNPS"):
        return None if any(child.dep_ == "nsubj" for child in root.lefts) else root
    subjects = [child for child in root.lefts if child.dep_ in ("nsubj", "nsubjpass")]
    if root.tag_ in ("VBG", "VBN") and len(subjects) == 1 and subjects[0].tag_.startswith("NN"):
        return subjects[0]
    return None


def _is_inside(token: Token, root: Token) -> bool:
    """Whether the token belongs to a clause that hangs on a noun or verb: "a dog that runs"."""
    chain = [token, *token.ancestors]
    return any(link.dep_ in ("relcl", "advcl", "ccomp", "acl", "pcomp") for link in chain if link != root)


def _fill(frame: str, caption: str, worded: str, kind: Frame) -> str:
    """The frame with the caption's words in it, in the case and with the article that this place needs.

    Args:
        frame: with {} for the words, and {is} for the verb that agrees with them.
        caption: as it was parsed.
        worded: the words to use, which begin as the caption does.
        kind: what the caption is.
    """
    worded = worded.strip()
    if kind == "unknown":
        return frame.replace("{}", worded)
    doc = parse(caption.strip())
    starts_lower = caption.strip()[:1].islower()
    words = voice.lower_first(worded, doc[0])
    be = "is"
    head = _phrase_head(doc) if kind == "phrase" else None
    if head is not None:
        words = with_article(words, head) if head.left_edge.i == 0 else words
        be = "are" if is_plural(head) else "is"
    before, after = frame.replace("{is}", be).split("{}")
    if after:
        end = re.search(r"\s*[.!]*$", words)
        cut = end.start() if end else len(words)
        words, after = words[:cut], after + words[cut:]
    filled = before + words + after
    return filled[:1].lower() + filled[1:] if starts_lower else filled
