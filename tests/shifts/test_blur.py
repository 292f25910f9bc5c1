"""Blurs against the imagecorruptions package, on the same draws where they draw; and what it leaves undefined."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from imagecorruptions_oracle import load_imagecorruptions, synthetic_photo

from shifts.catalogue import apply_shift, find_shift
from shifts.image.blur import glass_blur, motion_blur, zoom_axis

SEVERITIES = [1, 2, 3, 4, 5]
SIZES = ((32, 32), (33, 317), (317, 33), (201, 300))


@pytest.fixture(scope="module")
def oracle() -> ModuleType:
    return load_imagecorruptions()


def blurred(name: str, severity: int, pixels: np.ndarray) -> np.ndarray:
    return apply_shift(find_shift(name), severity, pixels, "a", seed=0)


def furthest(ours: np.ndarray, theirs: np.ndarray) -> int:
    return int(np.abs(ours.astype(int) - theirs).max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "zoom_blur"])
def test_one_level_at_most_from_the_package(
    oracle: ModuleType, name: str, severity: int, size: tuple[int, int]
) -> None:
    photo = synthetic_photo(*size)
    ours, theirs = blurred(name, severity, photo), oracle.corrupt(photo, severity, name)
    assert furthest(ours, theirs) <= 1
    assert (ours != theirs).mean() < 0.2


@pytest.mark.data
@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "zoom_blur"])
def test_real_photos_are_one_level_at_most_from_the_package(oracle: ModuleType, name: str, shared_data: Path) -> None:
    for i, file in enumerate(sorted((shared_data / "flickr8k" / "images").glob("*.jpg"))[:10]):
        photo = cv2.imread(str(file))
        severity = SEVERITIES[i % 5]
        assert furthest(blurred(name, severity, photo), oracle.corrupt(photo, severity, name)) <= 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_motion_blur_agrees_for_the_same_angle(
    oracle: ModuleType, severity: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = synthetic_photo(*size)
    for seed in range(4):
        angles = np.random.default_rng(seed)
        monkeypatch.setattr("numpy.random.uniform", angles.uniform)
        theirs = oracle.corrupt(photo, severity, "motion_blur")
        assert furthest(motion_blur(photo, severity, np.random.default_rng(seed)), theirs) <= 1


@pytest.mark.parametrize("size", [(32, 40), (51, 33)])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_glass_blur_agrees_on_the_same_draws(
    oracle: ModuleType, severity: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = synthetic_photo(*size)
    reach, n_rounds = ((1, 2), (2, 1), (2, 3), (3, 2), (4, 2))[severity - 1]
    draws = np.random.default_rng(7)
    shape = (size[0] - 2 * reach, size[1] - 2 * reach, 2)
    steps = [step for _ in range(n_rounds) for step in draws.integers(-reach, reach, shape, np.int8).reshape(-1, 2)]
    remaining = iter(steps)
    monkeypatch.setattr("numpy.random.randint", lambda low, high, size: next(remaining))
    theirs = oracle.corrupt(photo, severity, "glass_blur")
    assert next(remaining, None) is None
    ours = glass_blur(photo, severity, np.random.default_rng(7))
    assert furthest(ours, theirs) <= 1
    assert (ours != theirs).mean() < 0.05


@pytest.mark.parametrize("level", [0, 1, 100, 128, 254, 255])
def test_flat_areas_keep_their_level(level: int) -> None:
    flat = np.full((64, 90, 3), level, np.uint8)
    for severity in SEVERITIES:
        for name in ("gaussian_blur", "glass_blur", "motion_blur", "zoom_blur"):
            assert (blurred(name, severity, flat) == level).all()
        gain = 1.01 if severity >= 4 else 1
        assert (blurred("defocus_blur", severity, flat) == min(255, int(gain * level))).all()


@pytest.mark.parametrize("size", [(32, 4000), (4000, 32)])
@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"])
def test_long_images_blur_too(name: str, size: tuple[int, int]) -> None:
    photo = synthetic_photo(*size)
    for severity in (1, 5):
        result = blurred(name, severity, photo)
        assert result.shape == photo.shape
        assert abs(result.mean() - photo.mean()) < 8


@pytest.mark.parametrize("factor", [1.01, 1.3, 2, 4.5])
def test_an_enlarged_axis_runs_from_the_first_position_to_the_last(factor: float) -> None:
    for side in range(32, 400):
        axis = zoom_axis(side, factor)
        n_source = int(np.ceil(side / factor))
        position = axis.source + axis.far
        assert len(position) >= side
        assert position[0] == (side - n_source) // 2
        assert position[-1] == pytest.approx(position[0] + n_source - 1, abs=1e-9) or axis.near[-1] == 0
        assert (axis.source + 1 < side).all()
