"""Our corruptions against the imagecorruptions package: bytes where it is deterministic, the same draws elsewhere."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest
from imagecorruptions_oracle import load_imagecorruptions, synthetic_photo

from shifts.catalogue import apply_shift, find_shift
from shifts.image.noise import gaussian_noise

SIZES = ((32, 32), (33, 517), (480, 640))


@pytest.fixture(scope="module")
def oracle() -> ModuleType:
    return load_imagecorruptions()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["jpeg_compression"])
def test_deterministic_corruptions_give_the_same_bytes(
    oracle: ModuleType, name: str, severity: int, size: tuple[int, int]
) -> None:
    photo = synthetic_photo(*size)
    ours = apply_shift(find_shift(name), severity, photo, "photo", seed=0)
    np.testing.assert_array_equal(ours, oracle.corrupt(photo, severity, name))


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_gaussian_noise_agrees_on_the_same_draws(
    oracle: ModuleType, severity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = synthetic_photo(480, 640)
    draws = np.random.default_rng(7).standard_normal(photo.shape, dtype=np.float32)
    monkeypatch.setattr("numpy.random.normal", lambda size, scale: draws.astype(np.float64) * scale)
    theirs = oracle.corrupt(photo, severity, "gaussian_noise").astype(int)
    ours = gaussian_noise(photo, severity, np.random.default_rng(7))
    difference = np.abs(ours - theirs)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-4


@pytest.mark.parametrize(("severity", "std"), [(1, 0.08), (2, 0.12), (3, 0.18), (4, 0.26), (5, 0.38)])
def test_gaussian_noise_has_the_published_strength(severity: int, std: float) -> None:
    grey = np.full((300, 300, 3), 128, np.uint8)
    noisy = apply_shift(find_shift("gaussian_noise"), severity, grey, "grey", seed=0)
    near = (noisy >= 128 - 20) & (noisy < 128 + 20)
    assert near.mean() == pytest.approx(math.erf(20 / (255 * std * math.sqrt(2))), abs=0.005)
    assert noisy.mean() == pytest.approx(127.5, abs=1)
