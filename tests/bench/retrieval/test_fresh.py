"""Inputs are never given twice, cost what the originals cost, and follow from the seed."""

from __future__ import annotations

import numpy as np
import pytest

from bench.errors import InputError
from bench.retrieval.fresh import FreshImages, FreshTexts

CAPTIONS = ["a red dog runs over the field", "two men  and a ball", "dog", "two men  and a ball", "a dog", ""]


def test_texts_are_new_and_have_the_captions_words() -> None:
    captions = [f"{word} and {i} more of them" for i, word in enumerate(["one", "two", "three"] * 10)]
    texts = FreshTexts(captions, 3).take(600)
    assert len(set(texts)) == 600
    assert sorted(texts[:30]) == sorted(captions)
    assert texts[:30] != captions
    sorted_words = sorted(sorted(caption.split()) for caption in captions)
    for start in range(0, 600, 30):
        assert sorted(sorted(text.split()) for text in texts[start : start + 30]) == sorted_words


def test_captions_without_variants_are_numbered_in_the_end() -> None:
    texts = FreshTexts(CAPTIONS, 0).take(300)
    assert len(set(texts)) == 300
    of_dog = [text for text in texts if text.startswith("dog") and "a" not in text.split()]
    assert of_dog[:3] == ["dog", "dog 1", "dog 2"]
    assert not any(text[-1].isdigit() for text in texts if "red" in text)


def test_texts_depend_on_the_seed_and_not_on_how_they_are_taken() -> None:
    one, other = FreshTexts(CAPTIONS, 5), FreshTexts(CAPTIONS, 5)
    whole = one.take(40)
    assert [*other.take(1), *other.take(30), *other.take(9)] == whole
    assert FreshTexts(CAPTIONS, 6).take(40) != whole
    assert not set(one.take(40)) & set(whole)


def photos() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(256, size=(h, w, 3), dtype=np.uint8) for h, w in ((5, 7), (7, 5), (6, 6))]


def identity(image: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return image.shape, image.tobytes()


def test_images_are_new_and_have_the_originals_pixels() -> None:
    originals = photos()
    taken = FreshImages(originals, 1).take(60)
    assert len({identity(image) for image in taken}) == 60
    assert sorted(map(identity, taken[:3])) == sorted(map(identity, originals))
    by_shape = {image.shape: image for image in originals}
    for image in taken:
        own = by_shape[image.shape]
        assert image.dtype == np.uint8
        assert any(
            np.array_equal(np.roll(own, (down, right), axis=(0, 1)), image)
            for down in range(own.shape[0])
            for right in range(own.shape[1])
        )


@pytest.mark.parametrize("plain", [np.full((4, 4, 3), 9, np.uint8), np.zeros((1, 1, 3), np.uint8)])
def test_images_that_look_alike_however_rolled_still_differ(plain: np.ndarray) -> None:
    before = plain.copy()
    taken = FreshImages([plain, plain.copy(), np.ascontiguousarray(photos()[0][:, ::-1])], 2).take(90)
    assert len({identity(image) for image in taken}) == 90
    assert all(np.count_nonzero(image != plain) <= 3 for image in taken if image.shape == plain.shape)
    assert np.array_equal(plain, before)


def test_images_depend_on_the_seed_and_not_on_how_they_are_taken() -> None:
    one, other = FreshImages(photos(), 5), FreshImages(photos(), 5)
    whole = [identity(image) for image in one.take(20)]
    assert [identity(image) for image in [*other.take(3), *other.take(17)]] == whole
    assert [identity(image) for image in FreshImages(photos(), 6).take(20)] != whole


def test_nothing_to_ask_with_is_an_error() -> None:
    with pytest.raises(InputError, match="no captions"):
        FreshTexts([], 0)
    with pytest.raises(InputError, match="no images"):
        FreshImages([], 0)
