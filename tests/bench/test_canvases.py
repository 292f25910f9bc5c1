"""Canvases that are kept: the same pixels, each image decoded once while there is room."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import PIL.Image
import pytest

from bench.shifted import Canvases, Change, prepare_clean, prepare_shifted
from bench.types import Collection
from shifts.catalogue import find_shift

SIDE = 40
BYTES = SIDE * SIDE * 3


@dataclass
class Counted:
    """An image that counts how often it is decoded."""

    id: str
    decoded: list[str] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        return f"of {self.id}"

    def decode(self) -> PIL.Image.Image:
        self.decoded.append(self.id)
        pixels = np.random.default_rng(int(self.id)).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        return PIL.Image.fromarray(pixels)


def collection_of(n_images: int) -> Collection:
    pairs = np.repeat(np.arange(n_images)[:, None], 2, axis=1)
    return Collection("made/test", [Counted(str(i)) for i in range(n_images)], ["a thing"] * n_images, pairs)


@pytest.mark.parametrize(("room", "decoded_again"), [(5 * BYTES, 0), (2 * BYTES + 1, 3), (0, 5)])
def test_each_is_decoded_once_while_there_is_room(room: int, decoded_again: int) -> None:
    collection, others, canvases = collection_of(5), collection_of(5), Canvases(room)
    for name in ("gaussian_noise", "glass_blur", "greyscale"):
        change = Change(find_shift(name), 1, seed=0)
        kept, fresh = prepare_shifted(change, collection, canvases), prepare_shifted(change, others)
        for image, other in zip(collection.images, others.images, strict=True):
            np.testing.assert_array_equal(kept(image), fresh(other))
    times = sum(len(image.decoded) for image in collection.images)  # type: ignore[attr-defined]
    assert times == 5 + 2 * decoded_again


def test_what_is_kept_cannot_be_changed() -> None:
    image, canvases = Counted("1"), Canvases()
    first = canvases(image)
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0, 0] = 0
    np.testing.assert_array_equal(canvases(image), prepare_clean(canvas=True)(image))
