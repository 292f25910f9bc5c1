"""Other lights, sensors and holds of the camera: against their definitions, and SciPy's rotation."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from imagecorruptions_oracle import synthetic_photo
from scipy.ndimage import rotate

from shifts.catalogue import apply_shift, find_shift
from shifts.image.tone import rotation

SEVERITIES = [1, 2, 3, 4, 5]
REC_601 = np.array([0.299, 0.587, 0.114])
GOLDEN = {
    "night": "8600c7d922000ea87b3c9d009c9a28ab9fc2d594ce41d50f06cae60b36576c7d",
    "rotation": "942a448a8b03c933ee34f76b24eaeb77ece059397bd44d8385626ae09b957370",
    "low_resolution": "69443d1fe762348c9705c2945cd6f56ad46777b7a3b4c90119310162e8e84afa",
    "thermal_palette": "dd73b31875c9e165943749c2b5b03a09a3fd4d7cdb3bba8b7c87aa2b7694bf5c",
}


def shifted(name: str, pixels: np.ndarray, severity: int = 1, sample: str = "a") -> np.ndarray:
    return apply_shift(find_shift(name), severity, pixels, sample, seed=0)


def grey_ramp() -> np.ndarray:
    return np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)


def test_greyscale_is_the_luma_of_rec_601() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    grey = shifted("greyscale", photo)
    assert (grey == grey[..., :1]).all()
    assert np.abs(grey[..., 0] - photo @ REC_601).max() <= 0.52
    np.testing.assert_array_equal(shifted("greyscale", grey_ramp()), grey_ramp())


def test_negative_mirrors_every_value() -> None:
    photo = synthetic_photo(40, 50)
    np.testing.assert_array_equal(shifted("negative", photo).astype(int) + photo, 255)


def test_the_thermal_palette_shows_brightness_and_nothing_else() -> None:
    palette = shifted("thermal_palette", grey_ramp()).reshape(256, 3)
    assert (np.diff(palette @ REC_601) >= 0).all()
    assert len(np.unique(palette, axis=0)) > 240
    assert palette[0].max() < 20
    assert palette[255].min() > 240
    violet, orange = palette[80].astype(int), palette[190].astype(int)
    assert violet[2] > violet[0] > violet[1]
    assert orange[0] > orange[1] > orange[2]
    photo = synthetic_photo(64, 80)
    np.testing.assert_array_equal(shifted("thermal_palette", photo), palette[shifted("greyscale", photo)[..., 0]])


def test_night_is_darker_bluer_and_relatively_noisier_with_severity() -> None:
    grey = np.full((128, 128, 3), 130, np.uint8)
    means, noise = [grey.mean()], [0.0]
    for severity in SEVERITIES:
        dark = shifted("night", grey, severity).astype(float)
        assert dark[..., 2].mean() > dark[..., 1].mean() > dark[..., 0].mean()
        means.append(dark.mean())
        noise.append(float((dark.std(axis=(0, 1)) / dark.mean(axis=(0, 1))).mean()))
    assert (np.diff(means) < -3).all()
    assert (np.diff(noise) > 0.01).all()


def test_noise_of_the_night_grows_with_light_but_is_relatively_stronger_in_the_darks() -> None:
    light, dark = (
        shifted("night", np.full((96, 96, 3), level, np.uint8), 2)[..., 2].astype(float) for level in (220, 90)
    )
    assert light.std() > 1.2 * dark.std()
    assert dark.std() / dark.mean() > 1.5 * light.std() / light.mean()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_lamps_stay_lit_and_glow_but_a_bright_sky_goes_dark(severity: int) -> None:
    scene = np.full((192, 256, 3), 60, np.uint8)
    scene[:80] = 255
    scene[140:144, 100:104] = 250
    dark = shifted("night", scene, severity).astype(float).mean(axis=2)
    assert dark[140:144, 100:104].mean() > 170
    assert dark[136:148, 96:108].mean() > dark[130:160, 180:220].mean() + 20
    assert dark[5:60].mean() < 170
    assert dark[5:60].max() < 230


def test_at_most_a_hundredth_of_a_scene_is_lit() -> None:
    scene = np.full((192, 192, 3), 20, np.uint8)
    scene[::6, ::6] = scene[1::6, ::6] = 255
    dark = shifted("night", scene, 5)
    assert (dark.max(axis=2) > 150).mean() < 0.01


@pytest.mark.parametrize("size", [(96, 128), (33, 200)])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_rotation_agrees_with_scipy(severity: int, size: tuple[int, int]) -> None:
    photo = synthetic_photo(*size)
    draws = np.random.default_rng(severity)
    angle = (5, 10, 20, 30, 45)[severity - 1] * draws.uniform(0.9, 1.1) * (2 * draws.integers(2) - 1)
    expected = rotate(photo.astype(float), angle, reshape=False, order=1, mode="reflect")
    difference = np.abs(rotation(photo, severity, np.random.default_rng(severity)) - expected)
    assert difference.max() < 3
    assert difference.mean() < 0.4


def test_rotation_turns_to_both_sides_and_leaves_no_corner_black() -> None:
    stripe = np.full((101, 101, 3), 200, np.uint8)
    stripe[48:53] = 120
    columns_right_of_the_middle = []
    for i in range(12):
        turned = shifted("rotation", stripe, 4, str(i))
        assert turned.min() >= 120
        columns_right_of_the_middle.append(np.argmin(turned[:, 80, 0]) < 50)
    assert 0 < sum(columns_right_of_the_middle) < 12


@pytest.mark.parametrize("severity", SEVERITIES)
def test_low_resolution_has_no_detail_above_its_cut_off(severity: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (384, 384, 3), dtype=np.uint8)
    cut_off = (96, 64, 48, 32, 24)[severity - 1] / 384 / 2
    frequencies = np.hypot(np.fft.fftfreq(384)[:, np.newaxis], np.fft.fftfreq(384))
    smooth = shifted("low_resolution", noise, severity).astype(float)[..., 0]
    energy = np.abs(np.fft.fft2(smooth - smooth.mean())) ** 2
    assert energy[frequencies > 2.5 * cut_off].sum() < 0.02 * energy.sum()
    assert energy[frequencies < cut_off].sum() > 0.6 * energy.sum()


def test_low_resolution_is_smooth_where_pixels_were() -> None:
    ramp = np.linspace(20, 230, 384).astype(np.uint8)[np.newaxis, :, np.newaxis].repeat(384, axis=0).repeat(3, axis=2)
    small = shifted("low_resolution", ramp, 5).astype(int)
    assert np.abs(np.diff(small[100, 40:-40, 0])).max() <= 2
    assert np.abs(small - ramp)[:, 20:-20].max() <= 2


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_bytes(name: str) -> None:
    y, x = np.indices((120, 160))
    pattern = np.stack([(x * y // 40) % 256, (x // 9 + y // 7) % 2 * 180, y * 2], axis=-1).astype(np.uint8)
    pattern[50:53, 70:73] = 255
    severities = find_shift(name).severities
    drawings = b"".join(shifted(name, pattern, severity).tobytes() for severity in severities)
    assert hashlib.sha256(drawings).hexdigest() == GOLDEN[name]
