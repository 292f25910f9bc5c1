"""A small grammar of English: sentences that state given facts about a scene, and nothing else.

Every sentence names all things by colour and kind, so a listener can tell them apart, and all relations that the facts
hold, in either direction. The same facts have many sentences: `paraphrase` draws another one.
"""

from __future__ import annotations

import numpy as np

from bench.data.scenes.graph import INVERSES, Facts, Mention, Relation, Scene, pick

_MENTION_SHARE = 0.7

KIND_NOUNS = {kind: (kind,) for kind in ("cone", "star", "heart", "house", "tree", "fish", "mushroom")} | {
    "ball": ("ball", "ball", "sphere"),
    "cube": ("cube", "cube", "block"),
    "ring": ("ring", "ring", "hoop"),
    "mug": ("mug", "mug", "cup"),
    "boat": ("boat", "boat", "sailboat"),
}
SIZE_WORDS = {"small": ("small", "small", "little"), "large": ("large", "large", "big")}
SUBSTANCES = {"rubber": "rubber", "metal": "metal", "glass": "glass", "wooden": "wood"}
BACKGROUND_PHRASES = {
    "beach": ("on a beach", "on a sandy beach", "at the beach"),
    "meadow": ("in a meadow", "in a green meadow", "in a grassy meadow"),
    "desert": ("in a desert", "in the desert", "among desert dunes"),
    "snow": ("in the snow", "on snowy ground", "in a snowy landscape"),
    "lake": ("by a lake", "beside a lake", "at the shore of a lake"),
    "wall": ("by a brick wall", "near a brick wall", "beside a brick wall"),
    "floor": ("on a wooden floor", "in a room with a wooden floor", "on the floorboards of a room"),
    "sunset": ("at sunset", "at dusk", "under a setting sun"),
}
# How a thing stands to another one: as a clause's verb, as an adverbial, and as an adverbial about "it".
VERBS = {
    "left of": ("is to the left of", "stands to the left of", "is left of", "can be seen to the left of"),
    "right of": ("is to the right of", "stands to the right of", "is right of", "can be seen to the right of"),
    "above": ("is above", "floats above", "hovers over"),
    "below": ("is below", "stays below", "can be seen below"),
    "on top of": ("is on top of", "sits on top of", "rests on", "is perched on"),
    "underneath": ("is underneath", "supports", "carries"),
    "in front of": ("is in front of", "stands in front of", "partly hides"),
    "behind": ("is behind", "stands behind", "is partly hidden behind"),
}
ADVERBIALS = {
    "left of": ("to the left of", "left of", "on the left of"),
    "right of": ("to the right of", "right of", "on the right of"),
    "above": ("above", "floating above", "hovering over"),
    "below": ("below", "somewhere below"),
    "on top of": ("on top of", "resting on", "perched on"),
    "underneath": ("underneath", "supporting", "carrying"),
    "in front of": ("in front of", "partly hiding"),
    "behind": ("behind", "partly hidden behind"),
}
ADVERBIALS_OF_IT = {relation: tuple(f"{words} it" for words in ADVERBIALS[relation]) for relation in ADVERBIALS} | {
    "left of": ("to its left", "on its left"),
    "right of": ("to its right", "on its right"),
}


def choose_facts(scene: Scene, rng: np.random.Generator) -> Facts:
    """Facts of `scene` that a caption may state: all things and their relations, most of the remaining attributes."""
    things = tuple(
        Mention(thing.kind, thing.colour, _keep(rng, thing.size), _keep(rng, thing.material)) for thing in scene.things
    )
    relations = list(scene.relations)
    if len(relations) > 1:
        is_optional = [relation == "left of" for _, relation, _ in relations]
        del relations[pick(rng, [i for i, optional in enumerate(is_optional) if optional])]
    return Facts(things, tuple(relations), _keep(rng, scene.background))


def _keep(rng: np.random.Generator, value: str) -> str | None:
    return value if rng.random() < _MENTION_SHARE else None


def describe(facts: Facts, rng: np.random.Generator) -> str:
    """A sentence that states exactly `facts`."""
    relations = [_turn(relation, rng) for relation in facts.relations]
    if len(relations) == 1:
        core = _say_one(facts, relations[0], rng)
    elif rng.random() < 0.2 and _is_row(facts):
        core = _say_row(facts, rng)
    else:
        core = _say_two(facts, relations, rng)
    return _add_background(core, facts.background, rng)


def paraphrase(facts: Facts, rng: np.random.Generator, caption: str = "") -> str:
    """Another sentence than `caption` for the same facts."""
    while True:
        sentence = describe(facts, rng)
        if sentence != caption:
            return sentence


def _turn(relation: Relation, rng: np.random.Generator) -> Relation:
    i, name, j = relation
    return relation if rng.random() < 0.5 else (j, INVERSES[name], i)


def _introduce(thing: Mention, rng: np.random.Generator) -> str:
    """A first mention, such as "a small red rubber ball" or "an orange mug made of glass"."""
    size = [pick(rng, SIZE_WORDS[thing.size])] if thing.size else []
    noun = pick(rng, KIND_NOUNS[thing.kind])
    if thing.material and rng.random() < 0.25:
        words = [*size, thing.colour, noun, "made of", SUBSTANCES[thing.material]]
    else:
        words = [*size, thing.colour, *([thing.material] if thing.material else []), noun]
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def _refer(thing: Mention) -> str:
    return f"the {thing.colour} {thing.kind}"


def _say_one(facts: Facts, relation: Relation, rng: np.random.Generator) -> str:
    i, name, j = relation
    subject, thing = _introduce(facts.things[i], rng), _introduce(facts.things[j], rng)
    return pick(
        rng,
        (
            f"{subject} {pick(rng, VERBS[name])} {thing}",
            f"{subject} {pick(rng, VERBS[name])} {thing}",
            f"there is {subject} {pick(rng, ADVERBIALS[name])} {thing}",
            f"there is {thing} with {subject} {pick(rng, ADVERBIALS_OF_IT[name])}",
            f"{thing} with {subject} {pick(rng, ADVERBIALS_OF_IT[name])}",
            f"{subject} {pick(rng, ADVERBIALS[name])} {thing}",
            f"{ADVERBIALS[name][0]} {thing} is {subject}",
            f"a picture of {subject} {pick(rng, ADVERBIALS[name])} {thing}",
        ),
    )


def _say_two(facts: Facts, relations: list[Relation], rng: np.random.Generator) -> str:
    """A sentence about two relations: the first introduces two things, the second the third one."""
    first, second = relations if rng.random() < 0.5 else relations[::-1]
    known = {first[0], first[2]}
    if second[0] in known:
        second = (second[2], _invert(second[1]), second[0])
    i, name, j = first
    k, other, anchor = second
    a, b, c = (_introduce(facts.things[index], rng) for index in (i, j, k))
    the_anchor = _refer(facts.things[anchor])
    listed = f"{a}, {b} and {c}"
    the_a, the_b, the_c = (_refer(facts.things[index]) for index in (i, j, k))
    return pick(
        rng,
        (
            f"{a} {pick(rng, VERBS[name])} {b}, and {c} {pick(rng, VERBS[other])} {the_anchor}",
            f"{a} {pick(rng, VERBS[name])} {b}, while {c} {pick(rng, VERBS[other])} {the_anchor}",
            f"there is {a} {pick(rng, ADVERBIALS[name])} {b}, with {c} {pick(rng, ADVERBIALS[other])} {the_anchor}",
            f"{a} {pick(rng, ADVERBIALS[name])} {b}, and {c} {pick(rng, ADVERBIALS[other])} {the_anchor}",
            f"{listed}: {the_a} {pick(rng, VERBS[name])} {the_b}, and {the_c} {pick(rng, VERBS[other])} {the_anchor}",
            f"a picture of {listed}, {the_a} {pick(rng, ADVERBIALS[name])} {the_b} "
            f"and {the_c} {pick(rng, ADVERBIALS[other])} {the_anchor}",
        ),
    )


def _invert(relation: str) -> str:
    back = {inverse: name for name, inverse in INVERSES.items()}
    return (INVERSES | back)[relation]


def _is_row(facts: Facts) -> bool:
    return facts.relations == ((0, "left of", 1), (1, "left of", 2))


def _say_row(facts: Facts, rng: np.random.Generator) -> str:
    a, b, c = (_introduce(thing, rng) for thing in facts.things)
    return pick(
        rng, (f"from left to right there are {a}, {b} and {c}", f"{a}, {b} and {c} in a row from left to right")
    )


def _add_background(core: str, background: str | None, rng: np.random.Generator) -> str:
    if background:
        phrase = pick(rng, BACKGROUND_PHRASES[background])
        leads = rng.random() < 0.4 and not core.startswith("a picture")
        core = f"{phrase}, {core}" if leads else f"{core}{', ' if ',' in core else ' '}{phrase}"
    return f"{core[0].upper()}{core[1:]}."
