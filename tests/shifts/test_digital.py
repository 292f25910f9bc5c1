"""Digital corruptions against the package: the same bytes, or the same draws and at most one level."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from imagecorruptions_oracle import load_imagecorruptions, synthetic_photo
from PIL import Image

from shifts.catalogue import apply_shift, find_shift
from shifts.image.digital import _uniform, elastic_transform

SEVERITIES = [1, 2, 3, 4, 5]
SIZES = [(32, 32), (33, 65), (101, 97), (33, 517), (480, 640), (32, 4000)]


@pytest.fixture(scope="module")
def oracle() -> ModuleType:
    return load_imagecorruptions()


def shifted(name: str, severity: int, pixels: np.ndarray) -> np.ndarray:
    return apply_shift(find_shift(name), severity, pixels, "photo", seed=0)


def both_elastic(
    oracle: ModuleType, pixels: np.ndarray, severity: int, patch: pytest.MonkeyPatch
) -> tuple[np.ndarray, np.ndarray]:
    """Ours and the package's, which gets our draws, in our order."""
    rng = np.random.default_rng(severity)
    draws: Iterator[np.ndarray] = iter([_uniform(rng, *pixels.shape[:2]).astype(np.float64) for _ in range(2)])
    patch.setattr("numpy.random.uniform", lambda low, high, size: next(draws) * high)
    ours = elastic_transform(pixels, severity, np.random.default_rng(severity))
    return ours, oracle.corrupt(pixels, severity, "elastic_transform")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", ["contrast", "saturate", "pixelate"])
def test_deterministic_corruptions_give_the_same_bytes(
    oracle: ModuleType, name: str, severity: int, size: tuple[int, int]
) -> None:
    photo = synthetic_photo(*size)
    np.testing.assert_array_equal(shifted(name, severity, photo), oracle.corrupt(photo, severity, name))


@pytest.mark.data
@pytest.mark.parametrize("name", ["contrast", "saturate", "pixelate", "jpeg_compression"])
def test_real_photos_give_the_same_bytes(oracle: ModuleType, name: str, shared_data: Path) -> None:
    for path in sorted(shared_data.glob("coco_sample/images/*"))[::30]:
        photo = np.array(Image.open(path).convert("RGB"))
        for severity in SEVERITIES:
            np.testing.assert_array_equal(shifted(name, severity, photo), oracle.corrupt(photo, severity, name))


@pytest.mark.parametrize("level", [0, 1, 100, 127, 254, 255])
def test_flat_images_keep_their_level_under_contrast(oracle: ModuleType, level: int) -> None:
    flat = np.full((40, 50, 3), level, np.uint8)
    for severity in SEVERITIES:
        ours = shifted("contrast", severity, flat).astype(int)
        assert np.abs(ours - level).max() <= 1
        assert np.abs(ours - oracle.corrupt(flat, severity, "contrast")).max() <= 1


@pytest.mark.parametrize("severity", SEVERITIES)
def test_saturate_agrees_on_colours_of_every_hue_and_on_every_grey(oracle: ModuleType, severity: int) -> None:
    steps = np.arange(0, 256, 5, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(52, -1, 3)
    greys = np.tile(np.arange(256, dtype=np.uint8)[:, np.newaxis], (32, 1, 3))
    for pixels in (colours, greys):
        np.testing.assert_array_equal(
            shifted("saturate", severity, pixels), oracle.corrupt(pixels, severity, "saturate")
        )


def test_boxes_whose_bounds_fall_on_centres_are_pillow_s(oracle: ModuleType) -> None:
    rng = np.random.default_rng(0)
    for width in range(40, 400, 7):
        noise = rng.integers(0, 256, (max(32, width // 2), width, 3), dtype=np.uint8)
        for severity in SEVERITIES:
            np.testing.assert_array_equal(
                shifted("pixelate", severity, noise), oracle.corrupt(noise, severity, "pixelate")
            )


@pytest.mark.parametrize("size", [(517, 33), (4000, 32)])
def test_very_tall_images_are_pixelated_within_a_level(oracle: ModuleType, size: tuple[int, int]) -> None:
    photo = synthetic_photo(*size)
    for severity in SEVERITIES:
        difference = np.abs(
            shifted("pixelate", severity, photo).astype(int) - oracle.corrupt(photo, severity, "pixelate")
        )
        assert difference.max() <= 1


@pytest.mark.parametrize("size", [(32, 32), (33, 517), (517, 33), (384, 512)])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_elastic_transform_agrees_on_the_same_draws(
    oracle: ModuleType, severity: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = both_elastic(oracle, synthetic_photo(*size), severity, monkeypatch)
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


def test_elastic_transform_draws_evenly_from_minus_one_to_one() -> None:
    noise = _uniform(np.random.default_rng(0), 300, 400)
    counts = np.histogram(noise, bins=50, range=(-1, 1))[0]
    assert counts.sum() == noise.size
    assert ((counts - noise.size / 50) ** 2).sum() / (noise.size / 50) < 100
    assert not np.array_equal(*(_uniform(rng, 32, 32) for rng in [np.random.default_rng(0)] * 2))


@pytest.mark.parametrize("level", [0, 1, 100, 254, 255])
def test_flat_images_stay_as_they_are_when_stretched(level: int) -> None:
    flat = np.full((64, 80, 3), level, np.uint8)
    for severity in SEVERITIES:
        np.testing.assert_array_equal(shifted("elastic_transform", severity, flat), flat)
