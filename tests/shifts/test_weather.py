"""Weather against the imagecorruptions package on the same draws; its statistics, with those of the drawn blurs."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from imagecorruptions_oracle import load_imagecorruptions, synthetic_photo

from shifts.catalogue import apply_shift, find_shift
from shifts.image.weather import fog, frost, snow, spatter

SEVERITIES = [1, 2, 3, 4, 5]
SIZES = ((32, 32), (33, 317), (317, 33), (201, 300))
DRAWN = ["glass_blur", "motion_blur", "snow", "frost", "fog", "spatter"]
SNOW_ZOOM = (3, 2, 4, 4.5, 2.5)


@pytest.fixture(scope="module")
def oracle() -> ModuleType:
    return load_imagecorruptions()


def shifted(name: str, severity: int, pixels: np.ndarray, sample_id: str = "a") -> np.ndarray:
    return apply_shift(find_shift(name), severity, pixels, sample_id, seed=0)


def differences(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return np.abs(ours.astype(int) - theirs)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_is_one_level_at_most_from_the_package(oracle: ModuleType, severity: int) -> None:
    largest, own = np.mgrid[:256, :256].astype(np.uint8)
    colours = np.stack([largest, np.minimum(own, largest), np.minimum(own[:, ::-1], largest)], axis=-1)
    for channels in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        pixels = colours[..., channels]
        assert (
            differences(shifted("brightness", severity, pixels), oracle.corrupt(pixels, severity, "brightness")).max()
            <= 1
        )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_snow_agrees_on_the_same_draws(
    oracle: ModuleType, severity: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package also draws around the part that it enlarges; there it is given a blizzard that must not show."""
    photo = synthetic_photo(*size)
    rng = np.random.default_rng(7)
    drawn = [math.ceil(side / SNOW_ZOOM[severity - 1]) for side in size]
    top, left = ((side - part) // 2 for side, part in zip(size, drawn, strict=True))
    draws = np.full(size, 1e3)
    draws[top : top + drawn[0], left : left + drawn[1]] = rng.standard_normal(drawn, np.float32)
    monkeypatch.setattr("numpy.random.normal", lambda size, loc, scale: loc + scale * draws)
    monkeypatch.setattr("numpy.random.uniform", rng.uniform)
    theirs = oracle.corrupt(photo, severity, "snow")
    difference = differences(snow(photo, severity, np.random.default_rng(7)), theirs)
    assert difference.max() <= 1
    assert difference.mean() < 0.05


@pytest.mark.parametrize("size", [*SIZES, (330, 720), (720, 330), (640, 960)])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_frost_agrees_on_the_same_draws(
    oracle: ModuleType, severity: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = synthetic_photo(*size)
    for seed in range(3):
        monkeypatch.setattr("numpy.random.randint", np.random.default_rng(seed).integers)
        theirs = oracle.corrupt(photo, severity, "frost")
        assert differences(frost(photo, severity, np.random.default_rng(seed)), theirs).max() <= 1


@pytest.mark.parametrize("size", [*SIZES, (130, 129), (32, 520)])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_fog_agrees_on_the_same_draws(
    oracle: ModuleType, severity: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = synthetic_photo(*size) // 2
    n_words = 4 ** math.ceil(math.log2(max(size)))
    words = np.random.default_rng(7).integers(2**64, size=n_words // 4, dtype=np.uint64).view(np.uint16)
    uniform = iter((words + 0.5) / 2**16)

    def draw(low: float, high: float, shape: tuple[int, int]) -> np.ndarray:
        return low + (high - low) * np.fromiter(uniform, float, math.prod(shape)).reshape(shape)

    monkeypatch.setattr("numpy.random.uniform", draw)
    theirs = oracle.corrupt(photo, severity, "fog")
    difference = differences(fog(photo, severity, np.random.default_rng(7)), theirs)
    assert difference.max() <= 1
    assert difference.mean() < 0.01


@pytest.mark.parametrize("size", [(64, 64), (64, 317), (317, 64), (201, 300)])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_spatter_agrees_on_the_same_draws(
    oracle: ModuleType, severity: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = synthetic_photo(*size)
    n_values = math.prod(size)
    words = np.random.default_rng(7).integers(2**64, size=-(-n_values // 2), dtype=np.uint64)
    sums = words.view(np.uint8).reshape(-1, 4)[:n_values].sum(axis=1).reshape(size)
    draws = (sums - 4 * 127.5) / math.sqrt(4 * (256**2 - 1) / 12)
    monkeypatch.setattr("numpy.random.normal", lambda size, loc, scale: loc + scale * draws)
    theirs = oracle.corrupt(photo, severity, "spatter")
    ours = spatter(photo, severity, np.random.default_rng(7))
    assert (ours != photo).any()
    difference = differences(ours, theirs)
    assert difference.max() <= 1
    assert difference.mean() < 0.02


def test_spatter_without_a_drop_leaves_the_image_as_it_is() -> None:
    class Drought:
        def integers(self, high: int, size: int, dtype: type) -> np.ndarray:
            return np.zeros(size, dtype)

    photo = synthetic_photo(40, 50)
    for severity in SEVERITIES:
        np.testing.assert_array_equal(spatter(photo, severity, Drought()), photo)


@pytest.mark.parametrize("severity", [2, 5])
@pytest.mark.parametrize("name", DRAWN)
def test_many_images_have_the_package_s_mean_and_contrast(oracle: ModuleType, name: str, severity: int) -> None:
    """Each over independent draws of both; the bounds are four standard errors of the difference."""
    n_images = 24 if name == "glass_blur" else 200
    photos = [synthetic_photo(48, 64, seed) for seed in range(n_images)]
    np.random.seed(0)  # noqa: NPY002
    theirs = moments(lambda i: oracle.corrupt(photos[i], severity, name), n_images)
    ours = moments(lambda i: shifted(name, severity, photos[i], str(i)), n_images)
    difference = ours - theirs
    standard_error = difference.std(axis=0, ddof=1) / math.sqrt(n_images)
    assert (np.abs(difference.mean(axis=0)) <= 4 * standard_error + 0.02).all()


def moments(image: Callable[[int], np.ndarray], n_images: int) -> np.ndarray:
    """(n_images, 6) mean and standard deviation of each channel."""
    images = [image(i).reshape(-1, 3).astype(float) for i in range(n_images)]
    return np.array([[*pixels.mean(axis=0), *pixels.std(axis=0)] for pixels in images])


@pytest.mark.parametrize("size", [(32, 4000), (4000, 32)])
@pytest.mark.parametrize("name", ["snow", "frost", "fog", "brightness", "spatter"])
def test_long_images_have_weather_too(name: str, size: tuple[int, int]) -> None:
    photo = synthetic_photo(*size)
    for severity in (1, 5):
        result = shifted(name, severity, photo)
        assert result.shape == photo.shape
        halves = np.array_split(differences(result, photo), 2, axis=int(size[1] > size[0]))
        assert all((half > 0).any() for half in halves)
