"""Distractors: one noun is wrong and nothing else; a blend and a patch are exactly as much of the partner as stated."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from imagecorruptions_oracle import synthetic_photo

from shifts import gallery
from shifts.catalogue import apply_shift, find_shift
from shifts.text import wordnet
from shifts.text.word import article_of, main_sense

KINDS = ("same_concept", "diff_concept", "rand_voca", "danger")
CAPTIONS = (
    "A dog runs on the beach.",
    "Two Horses and an elephant eat an apple near a bus",
    "A cat.",
    "People sit on benches in front of a church.",
)
SHARE = {1: 50, 2: 60, 3: 70, 4: 80, 5: 90}


def distractor(kind: str, caption: str, sample_id: str = "a") -> str:
    return apply_shift(find_shift(f"gallery_{kind}"), 1, caption, sample_id, seed=0)


def replaced(before: str, after: str) -> tuple[str, str]:
    words = zip(re.findall(r"\w+", before), re.findall(r"\w+", after), strict=True)
    ((old, new),) = [(a, b) for a, b in words if a != b and {a.lower(), b.lower()} != {"a", "an"}]
    return old, new


def kinds_above(word: str) -> set[wordnet.Synset]:
    lemma = wordnet.base_form(word, "noun")
    return {kind for sense in wordnet.senses(lemma, "noun") for kind in wordnet.hypernyms(sense.synset)}


def synset_of(lemma: str) -> wordnet.Synset:
    return main_sense(lemma, "noun").synset


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("caption", CAPTIONS)
def test_one_word_is_replaced_with_case_number_and_article(kind: str, caption: str) -> None:
    for i in range(12):
        found = distractor(kind, caption, str(i))
        old, new = replaced(caption, found)
        assert old[0].isupper() == new[0].isupper()
        assert all(article.lower() == article_of(word) for article, word in re.findall(r"\b([Aa]n?) (\w+)", found))
        if old in ("Horses", "People", "benches") and kind != "rand_voca":
            assert wordnet.base_form(new, "noun") != new.lower()


@pytest.mark.parametrize("kind", KINDS)
def test_what_replaces_a_noun_is_not_true_of_what_the_noun_names(kind: str) -> None:
    for i in range(40):
        _, new = replaced("A dog.", distractor(kind, "A dog.", str(i)))
        lemma = wordnet.base_form(new, "noun")
        assert lemma is None or synset_of("dog") not in kinds_above(lemma)
        assert lemma is None or not {sense.synset for sense in wordnet.senses(lemma, "noun")} & kinds_above("dog")


def test_the_concept_stays_or_goes_as_the_name_says() -> None:
    animal = synset_of("animal")
    for i in range(30):
        _, same = replaced("A cat.", distractor("same_concept", "A cat.", str(i)))
        _, other = replaced("A cat.", distractor("diff_concept", "A cat.", str(i)))
        assert animal in wordnet.hypernyms(synset_of(same))
        assert animal not in wordnet.hypernyms(synset_of(other))


def test_a_danger_is_a_weapon_a_poison_or_a_criminal() -> None:
    dangers = {replaced("A cat.", distractor("danger", "A cat.", str(i)))[1] for i in range(150)}
    assert {"gun", "bomb", "thief"} < dangers
    roots = {synset_of(name) for name in ("weapon", "poison", "criminal")} | {
        wordnet.senses("explosive_device", "noun")[0].synset
    }
    assert all(wordnet.hypernyms(synset_of(name)) & roots for name in dangers)


def test_people_who_may_be_the_same_are_not_exchanged_but_opposites_are() -> None:
    assert gallery._may_both_be_true("girl", "lady")
    assert gallery._may_both_be_true("woman", "person")
    assert gallery._may_both_be_true("dog", "poodle")
    assert not gallery._may_both_be_true("man", "woman")
    assert not gallery._may_both_be_true("dog", "cat")


def test_a_word_of_the_caption_is_not_brought_in_again() -> None:
    caption = "A cat and a dog and a horse and a cow and a sheep and a bird."
    for i in range(40):
        _, new = replaced(caption, distractor("same_concept", caption, str(i)))
        assert new not in caption


def test_nouns_outside_compounds_and_not_before_of_are_taken_first() -> None:
    caption = "A train conductor and a piece of pizza on a horse"
    assert {replaced(caption, distractor("danger", caption, str(i)))[0] for i in range(25)} <= {"pizza", "horse"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("caption", ["", " ", "?!", "Running quickly.", "\ud800", "犬が走る"], ids=ascii)
def test_without_a_noun_there_is_no_distractor(kind: str, caption: str) -> None:
    assert distractor(kind, caption) == ""


@pytest.mark.data
@pytest.mark.parametrize("kind", KINDS)
def test_real_captions_seldom_have_no_distractor(kind: str, shared_data: Path) -> None:
    images = json.loads((shared_data / "karpathy_coco" / "coco_karpathy_test.json").read_text())
    captions = [image["caption"][0] for image in images[::50]]
    found = [distractor(kind, caption) for caption in captions]
    assert sum(not text for text in found) <= len(captions) / 20
    assert all(a != b for a, b in zip(captions, found, strict=True))


def pair(partner_size: tuple[int, int] = (80, 120)) -> tuple[np.ndarray, np.ndarray]:
    return synthetic_photo(96, 128), synthetic_photo(*partner_size, seed=1)


@pytest.mark.parametrize("severity", SHARE)
def test_a_blend_is_the_stated_mean_rounded_to_nearest(severity: int) -> None:
    sample, partner = pair((96, 128))
    found = apply_shift(find_shift("gallery_mix"), severity, (sample, partner), "a", 0)
    weight = SHARE[severity]
    expected = (weight * sample.astype(float) + (100 - weight) * partner.astype(float)) / 100
    assert np.abs(found - expected).max() <= 0.5


@pytest.mark.parametrize("severity", SHARE)
@pytest.mark.parametrize("sample_id", ["a", "b"])
def test_a_patch_is_one_rectangle_of_the_stated_area_inside_the_photo(severity: int, sample_id: str) -> None:
    sample, partner = np.zeros((100, 200, 3), np.uint8), np.full((60, 40, 3), 255, np.uint8)
    found = apply_shift(find_shift("gallery_patch"), severity, (sample, partner), sample_id, 0)
    rows, columns = np.nonzero(found[..., 0])
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert set(np.unique(found)) == {0, 255}
    assert len(rows) == height * width
    assert height * width / 20_000 == pytest.approx(1 - SHARE[severity] / 100, rel=0.02)
    assert width / height == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize("name", ["gallery_mix", "gallery_patch"])
def test_the_higher_the_severity_the_more_like_the_sample(name: str) -> None:
    sample, partner = pair()
    changes = [
        np.abs(apply_shift(find_shift(name), severity, (sample, partner), "a", 0).astype(int) - sample).mean()
        for severity in SHARE
    ]
    assert changes == sorted(set(changes), reverse=True)


@pytest.mark.parametrize("size", [(32, 32), (33, 517), (517, 33), (1, 1), (64, 48)])
@pytest.mark.parametrize("name", ["gallery_mix", "gallery_patch"])
def test_a_partner_of_any_size_and_layout_covers_the_sample(name: str, size: tuple[int, int]) -> None:
    sample = synthetic_photo(64, 80)
    partner = np.full((*size, 3), 200, np.uint8)
    views = (partner, np.asfortranarray(partner), partner[::-1, ::-1])
    found = [apply_shift(find_shift(name), 2, (sample, view), "a", 0) for view in views]
    assert all(np.array_equal(one, found[0]) for one in found)
    assert found[0].shape == sample.shape
    assert found[0].flags.writeable
    blended = (60 * sample.astype(int) + 40 * 200 + 50) // 100
    assert np.array_equal(found[0], blended) or name == "gallery_patch"


def test_the_partner_is_cropped_about_its_middle_not_squeezed() -> None:
    partner = np.zeros((50, 150, 3), np.uint8)
    partner[:, 50:100] = 255
    assert (gallery._covering(partner, (100, 100)) == 255).mean() > 0.9
