"""The canonical canvas: when it resizes, to what, and how."""

from __future__ import annotations

import numpy as np
import pytest
from imagecorruptions_oracle import synthetic_photo
from PIL import Image

from bench.errors import InputError
from shifts.canvas import canonical_canvas


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (512, 384)),
        ((480, 640), (384, 512)),
        ((1000, 1000), (384, 384)),
        ((500, 385), (499, 384)),
        ((4000, 400), (3840, 384)),
        ((385, 385), (384, 384)),
    ],
)
def test_the_shorter_side_becomes_384_and_the_aspect_stays(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert canonical_canvas(Image.new("RGB", size)).size == expected


@pytest.mark.parametrize("width", range(385, 1200, 37))
@pytest.mark.parametrize("height", [385, 427, 640, 1001])
def test_the_longer_side_is_within_half_a_pixel(width: int, height: int) -> None:
    resized = canonical_canvas(Image.new("RGB", (width, height))).size
    assert min(resized) == 384
    assert max(resized) == pytest.approx(max(width, height) * 384 / min(width, height), abs=0.5)


@pytest.mark.parametrize("size", [(384, 384), (384, 5000), (100, 80), (1, 1)])
def test_small_images_come_back_as_they_are(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    assert canonical_canvas(image) is image


def test_it_is_antialiased() -> None:
    stripes = np.zeros((1536, 1536, 3), np.uint8)
    stripes[:, ::2] = 255
    resized = np.asarray(canonical_canvas(Image.fromarray(stripes)))[:, 8:-8].astype(int)
    assert np.abs(resized - 127.5).max() < 3


def test_it_is_idempotent_and_leaves_its_input_alone() -> None:
    image = Image.fromarray(synthetic_photo(500, 700))
    before = image.tobytes()
    once = canonical_canvas(image)
    assert canonical_canvas(once) is once
    assert image.tobytes() == before


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_other_modes_are_refused(mode: str) -> None:
    with pytest.raises(InputError, match=f"mode {mode}; expected RGB"):
        canonical_canvas(Image.new(mode, (500, 500)))
