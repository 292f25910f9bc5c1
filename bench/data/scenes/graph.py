"""Scene graphs: what stands in a scene, how it is arranged, and which facts a caption states about it.

A scene is a row of one to three columns; at most one column holds two objects, which stand above, on top of or in front
of one another. So every pair of objects has exactly one relation, and a scene has exactly one way to be written down:
two scenes are the same if and only if they are equal. Which split may use a scene is decided by the scene's own hash,
so no scene can stand in two splits.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

VERSION = 1

KINDS = ("ball", "cube", "cone", "star", "heart", "ring", "mug", "house", "tree", "fish", "boat", "mushroom")
COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "white")
SIZES = ("small", "large")
MATERIALS = ("rubber", "metal", "glass", "wooden")
PATTERNS = ("plain", "striped", "dotted", "checked", "zigzag", "ringed")
BACKGROUNDS = ("beach", "meadow", "desert", "snow", "lake", "wall", "floor", "sunset")
INVERSES = {"left of": "right of", "above": "below", "on top of": "underneath", "in front of": "behind"}
RELATIONS = (*INVERSES, *INVERSES.values())
STACKINGS = ("above", "on top of", "in front of")
EDITS = ("kind", "colour", "size", "material", "relation", "background")

SPLIT_COUNTS = {"train": 4000, "val": 500, "test": 500}
_SPLIT_OF_BUCKET = ("train",) * 6 + ("val",) * 2 + ("test",) * 2
_TWIN_SHARE = 0.54
_FAMILIES = ("scenes", "scenes-objects")
_STREAMS = ("graph", "captions", "look")

Layout = Literal["1", "2", "11", "12", "21", "111"]
Relation = tuple[int, str, int]


@dataclass(frozen=True)
class Thing:
    """One object of a scene; `pose` numbers its place in the look's randomness and is no part of the graph."""

    kind: str
    colour: str
    size: str
    material: str
    pattern: str = "plain"
    pose: int = field(default=0, compare=False)

    @property
    def name(self) -> tuple[str, str]:
        """What identifies it within its scene: colour and kind."""
        return self.colour, self.kind


@dataclass(frozen=True)
class Scene:
    """A scene graph.

    Args:
        things: column by column from left to right; within a column of two, the one above, on top or in front first.
        layout: how many things each column holds, such as "12".
        stacking: how the first thing of the column of two stands to the second; empty where there is no such column.
        background: one of `BACKGROUNDS`.
    """

    things: tuple[Thing, ...]
    layout: Layout
    stacking: str
    background: str

    @property
    def columns(self) -> tuple[tuple[int, ...], ...]:
        """The indices of each column's things, from left to right."""
        starts = [sum(map(int, self.layout[:k])) for k in range(len(self.layout))]
        return tuple(tuple(range(s, s + int(n))) for s, n in zip(starts, self.layout, strict=True))

    @property
    def relations(self) -> tuple[Relation, ...]:
        """The one relation of every pair of things, as (index, relation, index)."""
        column_of = {i: c for c, members in enumerate(self.columns) for i in members}
        pairs = [(i, j) for i in range(len(self.things)) for j in range(i + 1, len(self.things))]
        return tuple((i, self.stacking if column_of[i] == column_of[j] else "left of", j) for i, j in pairs)


@dataclass(frozen=True)
class Mention:
    """What a caption says of one thing; None where it is silent."""

    kind: str
    colour: str
    size: str | None
    material: str | None

    @property
    def name(self) -> tuple[str, str]:
        """What identifies it within its scene: colour and kind."""
        return self.colour, self.kind


@dataclass(frozen=True)
class Facts:
    """What a caption states: things, relations between them (never an inverse one) and perhaps the background."""

    things: tuple[Mention, ...]
    relations: tuple[Relation, ...]
    background: str | None


Atom = tuple[object, ...]
_T = TypeVar("_T")


def list_atoms(graph: Scene | Facts) -> frozenset[Atom]:
    """The single facts of a scene or of a caption; what stands on top of a thing is above it, too."""
    names = [thing.name for thing in graph.things]
    atoms: set[Atom] = {("exists", name) for name in names}
    for thing in graph.things:
        atoms |= {(thing.name, said) for said in (thing.size, thing.material) if said}
    for i, relation, j in graph.relations:
        atoms.add((names[i], relation, names[j]))
        if relation == "on top of" and isinstance(graph, Scene):
            atoms.add((names[i], "above", names[j]))
    if graph.background:
        atoms.add(("background", graph.background))
    return frozenset(atoms)


def match_captions(scenes: Sequence[Scene], facts: Sequence[Facts]) -> NDArray[np.int64]:
    """Which captions are true of which scenes: rows (scene index, caption index), (n_pairs, 2) int64.

    A caption is true of every scene that entails all the facts that it states.
    """
    scenes_with: dict[Atom, set[int]] = defaultdict(set)
    for index, scene in enumerate(scenes):
        for atom in list_atoms(scene):
            scenes_with[atom].add(index)
    pairs = []
    for caption, stated in enumerate(facts):
        holders = sorted((scenes_with[atom] for atom in list_atoms(stated)), key=len)
        pairs += [(index, caption) for index in sorted(holders[0].intersection(*holders[1:]))]
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def open_stream(family: str, split: str, index: int, stream: str) -> np.random.Generator:
    """The generator of one purpose of one item: the same for the same names, whatever was drawn before."""
    place = [VERSION, _FAMILIES.index(family), tuple(SPLIT_COUNTS).index(split), index, _STREAMS.index(stream)]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(place)))


def pick(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    """One of `choices`, each as likely."""
    return choices[int(rng.integers(len(choices)))]


def draw_pair(split: str, index: int) -> tuple[Scene, Scene]:
    """The scenes 2 * `index` and 2 * `index` + 1 of a split: about half of the pairs differ in one attribute only."""
    rng = open_stream("scenes", split, index, "graph")
    if rng.random() >= _TWIN_SHARE:
        return _draw_member(rng, split), _draw_member(rng, split)
    edit = pick(rng, EDITS)
    while True:
        scene = _draw_member(rng, split)
        twins = [twin for twin in list_twins(scene, edit) if find_split(twin) == split]
        if twins:
            return scene, pick(rng, twins)


def _draw_member(rng: np.random.Generator, split: str) -> Scene:
    while True:
        scene = _draw_scene(rng)
        if find_split(scene) == split:
            return scene


def _draw_scene(rng: np.random.Generator) -> Scene:
    layouts: tuple[Layout, ...] = ("12", "21", "111") if rng.random() < 0.4 else ("11", "2", "2", "2")
    layout = pick(rng, layouts)
    stacking = pick(rng, STACKINGS) if "2" in layout else ""
    n_things = sum(map(int, layout))
    while True:
        things = tuple(_draw_thing(rng, pose) for pose in range(n_things))
        if _has_distinct_names(things):
            return Scene(things, layout, stacking, pick(rng, BACKGROUNDS))


def _draw_thing(rng: np.random.Generator, pose: int) -> Thing:
    return Thing(pick(rng, KINDS), pick(rng, COLOURS), pick(rng, SIZES), pick(rng, MATERIALS), pose=pose)


def _has_distinct_names(things: Sequence[Thing]) -> bool:
    return len({thing.name for thing in things}) == len(things)


def find_split(scene: Scene) -> str:
    """The only split that may use a scene, from the hash of its graph."""
    words = [getattr(thing, f.name) for thing in scene.things for f in fields(thing) if f.compare]
    text = "/".join([*words, scene.layout, scene.stacking, scene.background])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return _SPLIT_OF_BUCKET[int.from_bytes(digest, "big") % len(_SPLIT_OF_BUCKET)]


def list_twins(scene: Scene, edit: str) -> list[Scene]:
    """Every scene that differs from `scene` in one thing's `edit`, in the background, or in one pair's relation."""
    if edit == "background":
        return [replace(scene, background=other) for other in BACKGROUNDS if other != scene.background]
    if edit == "relation":
        return [replace(scene, **change) for change in _list_rearrangements(scene)]
    values: tuple[str, ...] = {"kind": KINDS, "colour": COLOURS, "size": SIZES, "material": MATERIALS}[edit]
    twins = []
    for index, thing in enumerate(scene.things):
        for value in values:
            change: dict[str, Any] = {edit: value}
            changed = replace(thing, **change)
            things = (*scene.things[:index], changed, *scene.things[index + 1 :])
            if changed != thing and _has_distinct_names(things):
                twins.append(replace(scene, things=things))
    return twins


def _list_rearrangements(scene: Scene) -> list[dict[str, Any]]:
    """The changes of layout after which exactly one pair of things stands in another relation."""
    changes: list[dict[str, Any]] = []
    for start in range(len(scene.things) - 1):
        first, second = scene.things[start : start + 2]
        for pair, order in (((first, second), False), ((second, first), True)):
            things = (*scene.things[:start], *pair, *scene.things[start + 2 :])
            for layout, stacking in _list_pair_layouts(scene, start):
                if order or (layout, stacking) != (scene.layout, scene.stacking):
                    changes.append({"things": things, "layout": layout, "stacking": stacking})
    return changes


def _list_pair_layouts(scene: Scene, start: int) -> list[tuple[str, str]]:
    """The layouts in which the things `start` and `start` + 1 change their relation and nothing else does."""
    column_of = [c for c, members in enumerate(scene.columns) for _ in members]
    before = scene.layout[: column_of[start]]
    after = scene.layout[column_of[start + 1] + 1 :]
    if "2" in before + after or scene.layout[column_of[start]] != scene.layout[column_of[start + 1]]:
        return []
    return [(f"{before}11{after}", ""), *((f"{before}2{after}", stacking) for stacking in STACKINGS)]
