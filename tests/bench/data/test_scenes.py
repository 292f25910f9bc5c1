"""The embedded scenes: counts, graphs, captions, positives and the bytes of the pictures."""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from bench.data.scenes import SCENES, grammar, graph, list_scenes, load_facts, load_scenes, paraphrase
from bench.data.scenes.domains import DOMAINS
from bench.data.scenes.render import place_things, render_scene
from bench.data.scenes.shapes import SHAPES
from bench.errors import UsageError

VARIANTS = ("sketch", "cartoon", "painting", "night")
SPLITS = ("train", "val", "test")
GOLDEN_PIXELS = {
    "scenes": "74550d635444020a",
    "scenes-sketch": "e2322484e31b8df8",
    "scenes-cartoon": "3b975e5cf1239892",
    "scenes-painting": "a690f6c9dd568c1b",
    "scenes-night": "b1572fed88141767",
    "scenes-objects": "60ce4a59bc4ac913",
    "scenes-objects-sketch": "b77e373c676b99db",
    "scenes-objects-cartoon": "9fcecc3e3173da46",
    "scenes-objects-painting": "d4d969aa205e3166",
    "scenes-objects-night": "6926f2c8d0ba0004",
}
GOLDEN_CAPTIONS = {
    "scenes/val": "cbb93101615c5369",
    "scenes/test": "4ec1fee4dbc66f0c",
    "scenes-objects/val": "f63ac3a9665f2660",
    "scenes-objects/test": "c1ae812d02eccd80",
}
BALL = graph.Thing("ball", "red", "large", "rubber")
MUG = graph.Thing("mug", "blue", "small", "metal", pose=1)
LOOK = ("scenes", "test", 0)


def _digest(texts):
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


@pytest.mark.parametrize("dataset", list(SCENES))
def test_pixels_are_pinned(dataset):
    images = load_scenes(dataset, "test").images
    assert _digest([images[i].sha256 for i in (0, 3, 10, 21, 44, 101, 102)]) == GOLDEN_PIXELS[dataset]


@pytest.mark.parametrize("dataset", ["scenes", "scenes-objects"])
def test_captions_and_graphs_are_pinned(dataset):
    found = {
        split: _digest([*load_scenes(dataset, split).captions, *map(repr, list_scenes(dataset, split))])
        for split in ("val", "test")
    }
    assert found == {split: GOLDEN_CAPTIONS[f"{dataset}/{split}"] for split in found}


def test_an_image_decodes_to_what_its_hash_covers():
    image = load_scenes("scenes-cartoon", "val").images[7]
    pixels = np.asarray(image.decode())
    assert image.id == "scenes-cartoon/val/00007"
    assert pixels.shape == (256, 256, 3)
    assert image.sha256 == hashlib.sha256(b"(256, 256, 3)" + pixels.tobytes()).hexdigest()


@pytest.mark.parametrize("family", ["scenes", "scenes-objects"])
def test_graphs_are_distinct_within_and_across_splits(family):
    graphs = [scene for split in SPLITS for scene in list_scenes(family, split)]
    assert [len(list_scenes(family, split)) for split in SPLITS] == [SCENES[family].splits[split] for split in SPLITS]
    assert len(set(graphs)) == len(graphs)


@pytest.mark.parametrize("split", SPLITS)
def test_a_scene_can_stand_in_its_own_split_only(split):
    assert {graph.find_split(scene) for scene in list_scenes("scenes", split)} == {split}


def test_split_sizes_and_caption_counts():
    assert [len(load_scenes("scenes", split).captions) for split in SPLITS] == [20000, 2500, 2500]
    assert {dataset: chosen.splits for dataset, chosen in SCENES.items() if "objects" in dataset} == {
        f"scenes-objects{suffix}": {"train": 2160, "val": 720, "test": 720}
        for suffix in ("", *(f"-{variant}" for variant in VARIANTS))
    }


def _describe_pairwise(scene):
    """The scene as a plain dictionary, in which things are known by pose."""
    told = {"background": scene.background}
    for thing in scene.things:
        told |= {(thing.pose, name): getattr(thing, name) for name in ("kind", "colour", "size", "material")}
    for i, relation, j in scene.relations:
        a, b = scene.things[i].pose, scene.things[j].pose
        told[min(a, b), max(a, b)] = relation if a < b else f"inverse of {relation}"
    return told


def _list_differences(one, other):
    one, other = _describe_pairwise(one), _describe_pairwise(other)
    return [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]


@pytest.mark.parametrize("split", SPLITS)
def test_half_of_the_scenes_have_a_twin_beside_them(split):
    scenes = list_scenes("scenes", split)
    differences = [_list_differences(scenes[i], scenes[i + 1]) for i in range(0, len(scenes), 2)]
    edits = [found[0] for found in differences if len(found) == 1]
    assert 0.4 <= len(edits) / len(differences) <= 0.65
    names = ["background" if e == "background" else e[1] if isinstance(e[1], str) else "relation" for e in edits]
    shares = {name: names.count(name) / len(names) for name in graph.EDITS}
    assert min(shares.values()) > 0.08, shares


def test_scenes_vary_as_described():
    scenes = list_scenes("scenes", "train")
    assert 0.35 < np.mean([len(scene.things) == 3 for scene in scenes]) < 0.45
    assert {thing.kind for scene in scenes for thing in scene.things} == set(graph.KINDS) == set(SHAPES)
    assert {thing.colour for scene in scenes for thing in scene.things} == set(graph.COLOURS)
    assert {scene.background for scene in scenes} == set(graph.BACKGROUNDS)
    assert {scene.stacking for scene in scenes} == {"", *graph.STACKINGS}


_NOUNS = {word: kind for kind, words in grammar.KIND_NOUNS.items() for word in words}
_FIRST_MENTION = re.compile(
    r"\ban? (?:(small|little|large|big) )?(?:(" + "|".join(graph.COLOURS) + r") )"
    r"(?:(rubber|metal|glass|wooden) )?(" + "|".join(_NOUNS) + r")\b(?: made of (rubber|metal|glass|wood)\b)?"
)
_SIZES = {"small": "small", "little": "small", "large": "large", "big": "large"}


def _read_mentions(caption):
    text = caption[0].lower() + caption[1:]
    found = set()
    for size, colour, before, noun, after in _FIRST_MENTION.findall(text):
        material = before or {"wood": "wooden"}.get(after, after) or None
        found.add((_NOUNS[noun], colour, _SIZES.get(size), material))
    return found


def _read_background(caption):
    hits = [
        name
        for name, phrases in grammar.BACKGROUND_PHRASES.items()
        if any(re.search(rf"\b{phrase}\b", caption, re.IGNORECASE) for phrase in phrases)
    ]
    return hits[0] if hits else None


def test_captions_state_their_facts():
    captions, facts = load_scenes("scenes", "val").captions, load_facts("scenes", "val")
    for caption, stated in zip(captions, facts, strict=True):
        assert _read_mentions(caption) == {(m.kind, m.colour, m.size, m.material) for m in stated.things}, caption
        assert _read_background(caption) == stated.background, caption
        assert re.fullmatch(r"[A-Z][a-z,: ]+\.", caption), caption
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", caption), caption


def _drop_background(caption):
    for phrase in sorted(itertools.chain(*grammar.BACKGROUND_PHRASES.values()), key=len, reverse=True):
        caption = re.sub(rf"\b{phrase}\b", "", caption, flags=re.IGNORECASE)
    return caption


def _reads_as(text, first, relation, second):
    """Whether a two-thing caption says that `first` stands so to `second`, by the order of its words."""
    place = {name: text.index(name) for name in (first, second)}
    wordings = [*grammar.VERBS[relation], *grammar.ADVERBIALS[relation]]
    between = text[min(place.values()) : max(place.values())]
    after, before = text[max(place.values()) :], text[: min(place.values())]
    if place[first] < place[second]:
        return any(f" {words} a" in between for words in wordings)
    of_it = [f" {words}" for words in grammar.ADVERBIALS_OF_IT[relation]]
    return any(words in after for words in of_it) or grammar.ADVERBIALS[relation][0] in before.lower()


def test_two_thing_captions_state_their_relation_and_no_other():
    captions, facts = load_scenes("scenes", "val").captions, load_facts("scenes", "val")
    inverses = graph.INVERSES | {inverse: name for name, inverse in graph.INVERSES.items()}
    for caption, stated in zip(captions, facts, strict=True):
        if len(stated.things) != 2 or len({thing.colour for thing in stated.things}) != 2:
            continue
        (i, relation, j), names = stated.relations[0], [thing.colour for thing in stated.things]
        text = _drop_background(caption)
        told = _reads_as(text, names[i], relation, names[j])
        assert told or _reads_as(text, names[j], inverses[relation], names[i]), (caption, stated)


def _read_clause(clause, names):
    """The relation between the two things of "a ... is left of the ..."."""
    relation = next(r for r, verbs in grammar.VERBS.items() if any(f" {verb} " in clause for verb in verbs))
    first, second = sorted((name for name in names if f"{name[0]} " in clause), key=lambda name: clause.index(name[0]))
    inverses = {inverse: name for name, inverse in graph.INVERSES.items()}
    return (second, inverses[relation], first) if relation in inverses else (first, relation, second)


def test_three_thing_captions_state_both_relations():
    n_read = 0
    captions, facts = load_scenes("scenes", "val").captions, load_facts("scenes", "val")
    for caption, stated in zip(captions, facts, strict=True):
        names = [thing.name for thing in stated.things]
        clauses = re.fullmatch(r"(.*), while (.*)\.", _drop_background(caption))
        if clauses and len({colour for colour, _ in names}) == 3:
            told = {(names[i], relation, names[j]) for i, relation, j in stated.relations}
            assert {_read_clause(clause, names) for clause in clauses.groups()} == told, caption
            n_read += 1
    assert n_read > 50


def _entails(scene, stated):
    """Whether a caption is true of a scene, by trying every assignment of its things to the scene's."""
    relations = {(i, relation, j) for i, relation, j in scene.relations}
    relations |= {(i, "above", j) for i, relation, j in relations if relation == "on top of"}
    if stated.background not in (None, scene.background):
        return False
    for order in itertools.permutations(range(len(scene.things)), len(stated.things)):
        fits = all(
            (thing := scene.things[k]).name == said.name
            and said.size in (None, thing.size)
            and said.material in (None, thing.material)
            for k, said in zip(order, stated.things, strict=True)
        )
        if fits and all((order[i], relation, order[j]) in relations for i, relation, j in stated.relations):
            return True
    return False


def test_positives_equal_brute_force_entailment():
    collection, scenes, facts = load_scenes("scenes", "val"), list_scenes("scenes", "val"), load_facts("scenes", "val")
    told = [
        (image, caption)
        for caption in range(0, len(facts), 7)
        for image in range(len(scenes))
        if _entails(scenes[image], facts[caption])
    ]
    table = {(int(image), int(caption)) for image, caption in collection.positives}
    assert sorted(told) == sorted(pair for pair in table if pair[1] % 7 == 0)
    assert {(caption // 5, caption) for caption in range(len(facts))} <= table
    assert len(table) > len(facts)


def test_on_top_of_is_above_but_not_the_other_way_round():
    on_top = graph.Scene((BALL, MUG), "2", "on top of", "beach")
    above = replace(on_top, stacking="above")
    said = [
        graph.Facts(tuple(graph.Mention(t.kind, t.colour, None, None) for t in (BALL, MUG)), ((0, relation, 1),), None)
        for relation in ("on top of", "above")
    ]
    assert graph.match_captions([on_top, above], said).tolist() == [[0, 0], [0, 1], [1, 1]]


def test_a_paraphrase_states_the_same_facts_in_other_words():
    captions, facts = load_scenes("scenes", "test").captions[:300], load_facts("scenes", "test")[:300]
    rng = np.random.Generator(np.random.Philox(5))
    for caption, stated in zip(captions, facts, strict=True):
        other = paraphrase(stated, rng, caption)
        assert other != caption
        assert _read_mentions(other) == _read_mentions(caption)
        assert _read_background(other) == stated.background


def _place(scene, look_index=0):
    rng = graph.open_stream("scenes", "test", look_index, "look")
    return {placed.thing.name: placed for placed in place_things(scene, rng)}


@pytest.mark.parametrize("look_index", range(5))
@pytest.mark.parametrize("sizes", list(itertools.product(graph.SIZES, repeat=2)))
def test_relations_show_in_the_layout(sizes, look_index):
    things = replace(BALL, size=sizes[0]), replace(MUG, size=sizes[1])
    row = _place(graph.Scene(things, "11", "", "beach"), look_index)
    a, b = row[BALL.name], row[MUG.name]
    assert a.x + a.radius < b.x - b.radius
    for stacking in graph.STACKINGS:
        placed = _place(graph.Scene(things, "2", stacking, "beach"), look_index)
        a, b = placed[BALL.name], placed[MUG.name]
        gap = (b.y + SHAPES["mug"].top * b.radius) - (a.y + a.radius)
        if stacking == "in front of":
            assert list(placed) == [MUG.name, BALL.name]
            assert a.ground > b.ground + 10
            assert b.y < a.y
        else:
            assert abs(a.x - b.x) < 1
            assert (gap > 8) if stacking == "above" else (-5 < gap <= 0)


def test_everything_is_inside_the_frame_and_large_enough():
    for index, scene in enumerate(list_scenes("scenes", "val")):
        for placed in _place(scene, index).values():
            assert placed.radius >= (0.10 if placed.thing.size == "small" else 0.14) * 256
            assert placed.x - placed.radius >= 0
            assert placed.x + placed.radius <= 256
            assert placed.y - placed.radius >= 0
            assert placed.y + placed.radius <= 256


@pytest.mark.parametrize("domain", list(DOMAINS))
@pytest.mark.parametrize("change", [{"colour": "green"}, {"kind": "star"}, {"material": "wooden"}])
def test_a_changed_attribute_changes_that_thing_only(domain, change):
    if domain == "sketch" and "colour" in change:
        pytest.skip("a pencil sketch has no colour")
    scene = graph.Scene((BALL, MUG), "11", "", "meadow")
    other = replace(scene, things=(BALL, replace(MUG, **change)))
    before, after = (render_scene(each, LOOK, domain).astype(int) for each in (scene, other))
    changed = np.abs(before - after).max(axis=2) > 12
    placed = _place(scene)[MUG.name]
    y, x = np.nonzero(changed)
    near = (np.abs(x - placed.x) < placed.radius * 1.35) & (np.abs(y - placed.y) < placed.radius * 1.35)
    assert changed.sum() > 0.2 * placed.radius**2
    assert near.mean() > 0.97


@pytest.mark.parametrize("domain", list(DOMAINS))
def test_the_thing_behind_stays_visible(domain):
    for rear in graph.KINDS[:6]:
        scene = graph.Scene((BALL, graph.Thing(rear, "blue", "small", "rubber", pose=1)), "2", "in front of", "snow")
        hidden = replace(scene, things=(BALL, replace(scene.things[1], kind="house", colour="yellow")))
        seen = np.abs(render_scene(scene, LOOK, domain).astype(int) - render_scene(hidden, LOOK, domain)).max(axis=2)
        assert (seen > 12).sum() > 150


@pytest.mark.parametrize("family", ["scenes", "scenes-objects"])
def test_variants_share_everything_but_the_pictures(family):
    base = load_scenes(family, "test")
    for variant in VARIANTS:
        other = load_scenes(f"{family}-{variant}", "test")
        assert other.captions == base.captions
        assert np.array_equal(other.positives, base.positives)
        difference = np.asarray(base.images[4].decode()).astype(int) - np.asarray(other.images[4].decode())
        assert np.abs(difference).mean() > 8
        assert other.images[4].id == f"{family}-{variant}/test/00004"


def test_a_sketch_has_no_colour():
    pixels = np.asarray(load_scenes("scenes-sketch", "test").images[0].decode()).astype(int)
    assert (pixels.max(axis=2) - pixels.min(axis=2)).max() < 20


def test_object_classes():
    collection = load_scenes("scenes-objects", "test")
    scenes = list_scenes("scenes-objects", "test")
    labels, names = collection.labels, collection.label_names
    assert len(set(names)) == 72
    assert np.bincount(labels).tolist() == [10] * 72
    assert [names[label] for label in labels] == [f"{s.things[0].pattern} {s.things[0].kind}" for s in scenes]
    assert np.array_equal(collection.positives[:, 1], labels)
    assert collection.captions[labels[100]] == f"A picture of a {names[labels[100]]}."
    for label in range(72):
        colours = {scene.things[0].colour for scene, own in zip(scenes, labels, strict=True) if own == label}
        assert len(colours) >= 3


@pytest.mark.parametrize(("dataset", "split", "hint"), [("scene", "test", "scenes"), ("scenes", "tets", "test")])
def test_an_unknown_name_is_refused_with_the_nearest_one(dataset, split, hint):
    with pytest.raises(UsageError, match=f"Did you mean '{hint}'"):
        load_scenes(dataset, split)


def test_objects_state_no_facts():
    with pytest.raises(UsageError, match="scenes-objects"):
        load_facts("scenes-objects", "test")
