"""The pencil sketch: grey, lines where edges are, tones that fade with severity, detail that goes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from imagecorruptions_oracle import synthetic_photo

from shifts.catalogue import apply_shift, find_shift

SEVERITIES = [1, 2, 3, 4, 5]


def drawn(pixels: np.ndarray, severity: int) -> np.ndarray:
    drawing = apply_shift(find_shift("sketch"), severity, pixels, "a", seed=0)
    np.testing.assert_array_equal(drawing[..., 0], drawing[..., 1])
    np.testing.assert_array_equal(drawing[..., 0], drawing[..., 2])
    return drawing[..., 0].astype(float)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_contour_is_drawn_darker_than_both_sides(severity: int) -> None:
    square = np.full((128, 128, 3), 210, np.uint8)
    square[40:90, 40:90] = 120
    drawing = drawn(square, severity)
    contour = drawing[50:80, 39:41].mean()
    assert contour < drawing[50:80, 55:75].mean() - 25
    assert contour < drawing[50:80, 5:25].mean() - 50


def test_shading_follows_tone_and_fades_with_severity() -> None:
    flat = [np.full((96, 96, 3), level, np.uint8) for level in (40, 128, 220)]
    means = np.array([[drawn(pixels, severity).mean() for pixels in flat] for severity in SEVERITIES])
    assert (np.diff(means[:4], axis=1) > 0).all()
    assert (np.diff(means, axis=0) > 0).all()
    assert (means[4] == 255).all()


@pytest.mark.parametrize("severity", [1, 2, 3, 4])
def test_tones_are_hatched_not_filled(severity: int) -> None:
    assert drawn(np.full((96, 96, 3), 90, np.uint8), severity).std() > 2


def test_detail_goes_before_contours() -> None:
    rng = np.random.default_rng(0)
    texture = np.clip(rng.normal(200, 5, (128, 128, 1)), 0, 255).astype(np.uint8).repeat(3, axis=2)
    assert (drawn(texture, 5) > 250).mean() > 0.95
    assert (drawn(synthetic_photo(384, 512), 5) < 128).mean() > 0.005


def test_lengths_follow_the_size_of_the_image() -> None:
    small = synthetic_photo(192, 256)
    large = small.repeat(2, axis=0).repeat(2, axis=1)
    for severity in SEVERITIES:
        assert drawn(large, severity).mean() == pytest.approx(drawn(small, severity).mean(), abs=12)


def test_golden_bytes() -> None:
    y, x = np.indices((120, 160))
    pattern = np.stack([(x * y // 40) % 256, (x // 9 + y // 7) % 2 * 180, y * 2], axis=-1).astype(np.uint8)
    drawings = b"".join(drawn(pattern, severity).astype(np.uint8).tobytes() for severity in SEVERITIES)
    assert hashlib.sha256(drawings).hexdigest() == "3c9c8b521517d31a517d7515a230d597f7ae9a6de14b37557fe092a4899812bd"
