"""The embedded data set: scenes that Rove renders itself, in five domains, with exact captions and positives.

`scenes` and its variants show two or three things that stand in a relation; `scenes-objects` and its variants show
one thing whose class is its pattern and kind. A variant has the same graphs, captions, positives and layout as its
base; only the pictures are drawn in another way. Nothing is stored or fetched: every item follows from its split and
number.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from bench.data.scenes import graph
from bench.data.scenes.grammar import choose_facts, describe, paraphrase
from bench.data.scenes.graph import Facts, Scene, Thing, match_captions, open_stream
from bench.data.scenes.render import render_scene
from bench.errors import unknown_name
from bench.types import Collection

__all__ = ["SCENES", "SceneImage", "list_scenes", "load_facts", "load_scenes", "paraphrase"]

CAPTIONS_PER_IMAGE = 5
_OBJECT_COUNTS = {"train": 2160, "val": 720, "test": 720}
_CLASSES = tuple((pattern, kind) for kind in graph.KINDS for pattern in graph.PATTERNS)
_MANNERS = {
    "": "",
    "sketch": " in pencil",
    "cartoon": " as a flat cartoon",
    "painting": " in oil",
    "night": " at night",
}


@dataclass(frozen=True)
class SceneSet:
    """One of the embedded data sets: what it shows, in which domain, and how many images each split has."""

    description: str
    family: str
    domain: str
    splits: dict[str, int]


def _list_sets() -> dict[str, SceneSet]:
    kinds = (
        ("scenes", "two or three things in a relation, five captions each", graph.SPLIT_COUNTS),
        ("scenes-objects", f"one thing of {len(_CLASSES)} classes (pattern and kind)", _OBJECT_COUNTS),
    )
    return {
        family + (f"-{manner}" if manner else ""): SceneSet(text + how, family, manner or "natural", counts)
        for family, text, counts in kinds
        for manner, how in _MANNERS.items()
    }


SCENES = _list_sets()


@dataclass(frozen=True)
class SceneImage:
    """A picture that is rendered when it is asked for.

    Args:
        id: data set, split and number, such as "scenes-night/test/00017".
        scene: what it shows.
        look: the random stream that poses things and shapes the landscape; twins share it.
        domain: how it is drawn.
    """

    id: str
    scene: Scene
    look: tuple[str, str, int]
    domain: str

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the picture's shape and pixels."""
        pixels = _render_cached(self.scene, self.look, self.domain)
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()

    def decode(self) -> PIL.Image.Image:
        """The picture, 256 x 256 RGB."""
        return PIL.Image.fromarray(_render_cached(self.scene, self.look, self.domain))


@lru_cache(maxsize=512)  # 100 MB: a run renders each image for its sha256 and again for its canvas
def _render_cached(scene: Scene, look: tuple[str, str, int], domain: str) -> NDArray[np.uint8]:
    return render_scene(scene, look, domain)


def load_scenes(dataset: str, split: str) -> Collection:
    """One split of an embedded data set.

    Args:
        dataset: one of `SCENES`.
        split: "train", "val" or "test".

    Raises:
        UsageError: no such data set or split.
    """
    chosen = _find(dataset, split)
    members = _list_members(chosen.family, split)
    images = [
        SceneImage(f"{dataset}/{split}/{index:05d}", scene, look, chosen.domain)
        for index, (scene, look) in enumerate(members)
    ]
    build = _collect_scenes if chosen.family == "scenes" else _collect_objects
    return build(f"{dataset}/{split}", images, split)


def list_scenes(dataset: str, split: str) -> tuple[Scene, ...]:
    """The scene graph of each image of a split, in order."""
    return tuple(scene for scene, _ in _list_members(_find(dataset, split).family, split))


@lru_cache(maxsize=4)
def load_facts(dataset: str, split: str) -> tuple[Facts, ...]:
    """What each caption of a split of `scenes` or its variants states, in the captions' order."""
    chosen = _find(dataset, split)
    if chosen.family != "scenes":
        raise unknown_name("data set with facts", dataset, _names_of("scenes"), "rove list datasets")
    return tuple(facts for facts, _ in _caption_scenes(split))


def _names_of(family: str) -> list[str]:
    return [name for name, chosen in SCENES.items() if chosen.family == family]


def _find(dataset: str, split: str) -> SceneSet:
    if dataset not in SCENES:
        raise unknown_name("data set", dataset, SCENES, "rove list datasets")
    chosen = SCENES[dataset]
    if split not in chosen.splits:
        raise unknown_name(f"split of {dataset}", split, chosen.splits, f"rove describe {dataset}")
    return chosen


Member = tuple[Scene, tuple[str, str, int]]


@lru_cache(maxsize=6)
def _list_members(family: str, split: str) -> tuple[Member, ...]:
    """Each image's scene and look; both families count on from zero."""
    if family == "scenes":
        pairs = [graph.draw_pair(split, index) for index in range(graph.SPLIT_COUNTS[split] // 2)]
        return tuple((scene, ("scenes", split, index)) for index, pair in enumerate(pairs) for scene in pair)
    return tuple((_draw_object(split, index), (family, split, index)) for index in range(_OBJECT_COUNTS[split]))


def _draw_object(split: str, index: int) -> Scene:
    """The thing of one image: its class goes round in turn, the rest comes from a shuffle that all splits share."""
    label, turn = index % len(_CLASSES), index // len(_CLASSES)
    pattern, kind = _CLASSES[label]
    before = list(_OBJECT_COUNTS)[: list(_OBJECT_COUNTS).index(split)]
    place = turn + sum(_OBJECT_COUNTS[name] for name in before) // len(_CLASSES)
    rest = int(_shuffle_rest(label)[place])
    choices = []
    for values in (graph.COLOURS, graph.SIZES, graph.MATERIALS, graph.BACKGROUNDS):
        rest, chosen = divmod(rest, len(values))
        choices.append(values[chosen])
    colour, size, material, background = choices
    return Scene((Thing(kind, colour, size, material, pattern),), "1", "", background)


@lru_cache(maxsize=len(_CLASSES))
def _shuffle_rest(label: int) -> NDArray[np.int64]:
    n_rest = len(graph.COLOURS) * len(graph.SIZES) * len(graph.MATERIALS) * len(graph.BACKGROUNDS)
    return open_stream("scenes-objects", "train", label, "graph").permutation(n_rest)


@lru_cache(maxsize=3)
def _caption_scenes(split: str) -> tuple[tuple[Facts, str], ...]:
    """Each caption of a split of `scenes` with the facts that it states, five in a row for each image."""
    captioned: list[tuple[Facts, str]] = []
    for index, (scene, _) in enumerate(_list_members("scenes", split)):
        rng = open_stream("scenes", split, index, "captions")
        sentences: dict[str, Facts] = {}
        while len(sentences) < CAPTIONS_PER_IMAGE:
            facts = choose_facts(scene, rng)
            sentences.setdefault(describe(facts, rng), facts)
        captioned += [(facts, sentence) for sentence, facts in sentences.items()]
    return tuple(captioned)


@lru_cache(maxsize=3)
def _match_split(split: str) -> NDArray[np.int64]:
    scenes = [scene for scene, _ in _list_members("scenes", split)]
    pairs = match_captions(scenes, [facts for facts, _ in _caption_scenes(split)])
    pairs.setflags(write=False)
    return pairs


def _collect_scenes(name: str, images: list[SceneImage], split: str) -> Collection:
    return Collection(
        name=name,
        images=images,
        captions=[sentence for _, sentence in _caption_scenes(split)],
        positives=_match_split(split),
        revision=f"scenes generator {graph.VERSION}",
    )


def _collect_objects(name: str, images: list[SceneImage], split: str) -> Collection:
    labels = np.arange(len(images), dtype=np.int64) % len(_CLASSES)
    names = tuple(f"{pattern} {kind}" for pattern, kind in _CLASSES)
    return Collection(
        name=name,
        images=images,
        captions=[f"A picture of a {label}." for label in names],
        positives=np.stack([np.arange(len(images), dtype=np.int64), labels], axis=1),
        labels=labels,
        label_names=names,
        revision=f"scenes generator {graph.VERSION}",
    )
