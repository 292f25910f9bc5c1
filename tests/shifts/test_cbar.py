"""ImageNet-C-bar: each corruption against the original's formulae, written out naively and fed the same draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from imagecorruptions_oracle import synthetic_photo
from PIL import Image
from scipy.ndimage import gaussian_filter

from shifts.catalogue import CATALOGUE, apply_shift, find_shift
from shifts.image import cbar

# imagenet_c_bar.csv of the original
LEVELS = {
    "caustic_refraction": (2.35, 3.2, 4.9, 6.6, 9.15),
    "inverse_sparkles": (1.0, 2.0, 4.0, 9.0, 10.0),
    "sparkles": (1.0, 2.0, 3.0, 5.0, 6.0),
    "perlin_noise": (4.6, 5.2, 5.8, 7.6, 8.8),
    "blue_noise_sample": (0.8, 1.6, 2.4, 4.0, 5.6),
    "plasma_noise": (4.75, 7.0, 8.5, 9.25, 10.0),
    "checkerboard_cutout": (2.0, 3.0, 4.0, 5.0, 6.0),
    "cocentric_sine_waves": (3.0, 5.0, 8.0, 9.0, 10.0),
    "single_frequency_greyscale": (1.0, 1.5, 2.0, 4.5, 5.0),
    "brownish_noise": (1.0, 2.0, 3.0, 4.0, 5.0),
}
SEVERITIES = (1, 2, 3, 4, 5)
SIDE = 224
TAU = 2 * math.pi

Reference = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def level_of(maximum: float, level: float) -> float:
    return level * maximum / 10


def grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(float)
    return y, x


def radius_of_frequency() -> np.ndarray:
    """Distance from the middle of the plane, where the original puts frequency 0."""
    y, x = grid()
    return np.sqrt((x - SIDE / 2) ** 2 + (y - SIDE / 2) ** 2)


def noise_of(power: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The original's noise, its spectrum laid out with frequency 0 in the middle, but every phase drawn on its own."""
    half, inner = SIDE // 2 + 1, SIDE // 2 - 1
    phases = np.empty((SIDE, SIDE))
    phases[:, :half] = rng.integers(0, 2**16, (SIDE, half), dtype=np.uint16)
    of_negatives = rng.integers(0, 2**16, (SIDE, inner), dtype=np.uint16)
    for k in range(1, half - 1):
        phases[:, SIDE - k] = of_negatives[-np.arange(SIDE) % SIDE, k - 1]
    phases = np.fft.fftshift(phases) * TAU / 2**16
    waves = power * (np.cos(phases) + 1j * np.sin(phases))
    noise = np.real(np.fft.ifft2(np.roll(waves, (SIDE // 2, SIDE // 2), axis=(0, 1))))
    return noise / np.std(noise)


def blue_noise_sample(image: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    kept = noise_of(radius_of_frequency(), rng) > level_of(3.0, level) - 2.5
    return image * kept[..., None]


def brownish_noise(image: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    power = 1 / (radius_of_frequency() ** 2 + 1)
    noise = np.stack([noise_of(power, rng) for _ in range(3)], axis=2)
    return image + level_of(64, level) * noise


def caustics(size: float, time: float) -> np.ndarray:
    y, x = grid()
    p = np.stack([y, x]) / size % 1 * 6.28318530718 - 250
    i, c = p.copy(), np.ones((SIDE, SIDE))
    for n in range(5):
        t = time * (1 - 3.5 / (n + 1))
        i = p + np.stack([np.cos(t - i[0]) + np.sin(t + i[1]), np.sin(t - i[1]) + np.cos(t + i[0])])
        c += 1 / np.hypot(p[0] / (np.sin(i[0] + t) / 0.005), p[1] / (np.cos(i[1] + t) / 0.005))
    return gaussian_filter(np.clip(np.abs(1.17 - (c / 5) ** 1.4) ** 8, 0, 1), 1)


def refract(normal: np.ndarray) -> np.ndarray:
    """Snell's law for a ray along z at index 4, rotated into the plane of ray and normal."""
    incident = np.array([0.0, 0.0, 1.0])
    if normal[2] >= 1 - 1e-3:
        return incident
    angle = math.asin(math.sin(math.acos(normal[2])) / 4)
    axis = np.cross(incident, normal)
    axis /= np.linalg.norm(axis)
    frame = np.stack([normal, np.cross(normal, axis), axis])
    return np.linalg.inv(frame) @ np.array([math.cos(angle), math.sin(angle), 0])


def caustic_refraction(image: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    time, size = rng.uniform(0.5, 2.0), rng.uniform(0.75, 1.25) * SIDE
    pattern = np.pad(caustics(size, time), 1)
    padded = np.pad(image.astype(float) / 255, ((SIDE, SIDE), (SIDE, SIDE), (0, 0)))
    out = np.empty(image.shape)
    for y, x in np.ndindex(SIDE, SIDE):
        east_west = pattern[y + 2, x + 1] - pattern[y, x + 1]
        south_north = pattern[y + 1, x + 2] - pattern[y + 1, x]
        normal = np.array([east_west, south_north, 1])
        offset = np.round(refract(normal / np.linalg.norm(normal)) * level_of(0.5 * SIDE, level), 3)
        top, left = math.floor(y + offset[0]), math.floor(x + offset[1])
        down, right = y + offset[0] - top, x + offset[1] - left
        corners = padded[SIDE + top : SIDE + top + 2, SIDE + left : SIDE + left + 2]
        weights = np.outer([1 - down, down], [1 - right, right])
        lit = (corners * weights[..., None]).sum((0, 1)) + (east_west - south_north) * level_of(2.0, level)
        out[y, x] = np.clip(lit, 0, 1) * 255
    return out


def checkerboard_cutout(image: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    scale, angle = rng.uniform(0.1, 0.25) * SIDE, rng.uniform(0, TAU)
    squares = rng.uniform(size=(int(4 * SIDE // scale),) * 2) < level_of(1.0, level)
    out = image.copy()
    for y, x in np.ndindex(SIDE, SIDE):
        ny = (math.cos(angle) * y + math.sin(angle) * x) / scale
        nx = (-math.sin(angle) * y + math.cos(angle) * x) / scale
        if int(ny % 2) == int(nx % 2) and squares[int(ny), int(nx)]:
            out[y, x] = 128
    return out


def cocentric_sine_waves(image: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    x0, y0 = rng.uniform(0, SIDE), rng.uniform(0, SIDE)
    frequency, amplitude, ring = rng.uniform(0, 10), rng.uniform(0, SIDE / 10), (1 - rng.uniform()) * SIDE / 10
    y, x = grid()
    angle = np.arctan2(x - x0, y - y0) * frequency
    distance = (np.hypot(x - x0, y - y0) + np.sin(angle) * amplitude) % ring / ring - 0.5
    return image + level_of(128, level) * distance[..., None]


def rays_around(centre: np.ndarray, lengths: np.ndarray, exponent: float) -> np.ndarray:
    y, x = grid()
    d = (np.arctan2(x - centre[1], y - centre[0]) + math.pi) / TAU * len(lengths)
    i = d.astype(int)
    f = d - i
    length = lengths[i % len(lengths)] + f * (lengths[(i + 1) % len(lengths)] - lengths[i % len(lengths)])
    glow = (length**2 / ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 + 1e-4)) ** exponent
    return np.clip((1 - (f - 0.5) ** 2) * glow, 0, 1)[..., None]


def inverse_sparkles(image: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    centre, n_rays = rng.uniform(0.25, 0.75, 2) * SIDE, rng.integers(50, 200)
    radius, amount = 0.25 * SIDE, 100 - level_of(65, level)
    lengths = radius + 25 / 100 * radius * rng.standard_normal(n_rays)
    return 255 + rays_around(centre, lengths, (100 - amount) / 50) * (image - 255.0)


def sparkles(image: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    centres, radius = rng.uniform(size=(5, 2)) * SIDE, level_of(0.1, level) * SIDE
    out = image.astype(float)
    for centre, n_rays in zip(centres, rng.integers(50, 200, 5), strict=True):
        lengths = np.maximum(1, radius + 25 / 100 * radius * rng.standard_normal(n_rays))
        out += rays_around(centre, lengths, (100 - 50) / 50) * (255 - out)
    return out


def perlin_noise(image: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    alpha = level_of(0.5, level)
    order = np.tile(rng.permutation(256), 2)
    gradients = rng.integers(-256, 256, (256, 2)) / 256
    gradients /= np.linalg.norm(gradients, axis=1)[:, None]
    gradients = np.tile(gradients, (2, 1))
    clouds = np.zeros((SIDE, SIDE))
    for octave in (1, 2, 4, 8, 16):
        a, b = (octave * axis / 32 for axis in grid())
        a0, b0 = a.astype(int) % 256, b.astype(int) % 256
        a1, b1 = (a0 + 1) % 256, (b0 + 1) % 256
        ra, rb = a % 1, b % 1
        sa, sb = (t**2 * (3 - 2 * t) for t in (ra, rb))

        def dot(i: np.ndarray, j: np.ndarray, da: np.ndarray, db: np.ndarray) -> np.ndarray:
            gradient = gradients[order[order[i] + j]]
            return da * gradient[..., 0] + db * gradient[..., 1]

        near = dot(a0, b0, ra, rb) * (1 - sa) + dot(a1, b0, ra - 1, rb) * sa
        far = dot(a0, b1, ra, rb - 1) * (1 - sa) + dot(a1, b1, ra - 1, rb - 1) * sa
        clouds += np.abs(1.5 * (near * (1 - sb) + far * sb)) / octave
    return (1 - alpha) * image + 255 * alpha * np.clip(0.5 * clouds + 0.5, 0, 1)[..., None]


def plasma_noise(image: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    time, n_steps, sharpness = rng.uniform(0, 6 * math.pi), rng.integers(4, 7), rng.uniform(0.5, 1)
    scale, intensity = rng.uniform(0.075, 0.2) * SIDE, level_of(64, level)
    y, x = (axis / scale for axis in grid())
    for n in range(n_steps):
        bend = np.stack([np.cos(y * 1.93**n + time / 1.15**n), np.sin(x * 1.93**n + time / 1.15**n)])
        bend /= (2.25 - sharpness) ** n
        bend += 0.3 * np.stack([-bend[1], bend[0]])
        x, y = x + bend[0], y + bend[1]
    noise = np.stack([np.sin(x - time), np.sin((x + y + math.sin(time)) * 0.5), np.sin(y + time)], axis=2)
    return (1 - intensity / 255) * image + intensity * noise


def single_frequency_greyscale(image: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    larger = rng.uniform(-math.pi, math.pi)
    frequency = np.array([larger, rng.uniform(-abs(larger), abs(larger))])[rng.permutation(2)]
    y, x = grid()
    noise = np.sin(x * frequency[0] + y * frequency[1] + rng.uniform(0, TAU))
    return image + level_of(196, level) * noise[..., None]


REFERENCES: dict[str, Reference] = {
    "blue_noise_sample": blue_noise_sample,
    "brownish_noise": brownish_noise,
    "caustic_refraction": caustic_refraction,
    "checkerboard_cutout": checkerboard_cutout,
    "cocentric_sine_waves": cocentric_sine_waves,
    "inverse_sparkles": inverse_sparkles,
    "perlin_noise": perlin_noise,
    "plasma_noise": plasma_noise,
    "single_frequency_greyscale": single_frequency_greyscale,
    "sparkles": sparkles,
}
EXACT = ("blue_noise_sample", "checkerboard_cutout")
SLOW_REFERENCES = ("caustic_refraction", "checkerboard_cutout")


def test_every_cbar_shift_has_a_reference() -> None:
    assert sorted(REFERENCES) == sorted(shift.name for shift in CATALOGUE if shift.family == "cbar")


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", REFERENCES)
def test_same_draws_give_what_the_original_gives(name: str, severity: int) -> None:
    image = synthetic_photo(SIDE, SIDE)
    for seed in (severity,) if name in SLOW_REFERENCES else (severity, 10 + severity):
        ours = getattr(cbar, name)(image, severity, np.random.default_rng(seed)).astype(int)
        theirs = REFERENCES[name](image, LEVELS[name][severity - 1], np.random.default_rng(seed))
        difference = np.abs(ours - np.clip(theirs, 0, 255).astype(np.uint8))
        assert difference.max() <= (0 if name in EXACT else 1)
        assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "caustic_refraction",
        "checkerboard_cutout",
        "inverse_sparkles",
        "perlin_noise",
        "plasma_noise",
        "sparkles",
    ],
)
def test_the_picture_is_the_same_on_a_larger_canvas(name: str) -> None:
    ramp = np.linspace(40, 215, 4)[:, None, None].astype(np.uint8)
    small, large = (
        getattr(cbar, name)(
            np.broadcast_to(ramp.repeat(side // 4, axis=0), (side, 2 * side, 3)), 5, np.random.default_rng(3)
        ).astype(float)
        for side in (112, 448)
    )
    reduced = large.reshape(112, 4, 224, 4, 3).mean((1, 3))
    assert np.corrcoef(small.ravel(), reduced.ravel())[0, 1] > 0.9
    assert small.std() == pytest.approx(reduced.std(), rel=0.15)


@pytest.mark.parametrize("size", [(200, 320), (321, 203)])
@pytest.mark.parametrize(("severity", "threshold"), [(1, -2.26), (2, -2.02), (3, -1.78), (4, -1.3), (5, -0.82)])
def test_blue_noise_drops_the_published_share_but_seldom_neighbours(
    severity: int, threshold: float, size: tuple[int, int]
) -> None:
    white = np.full((*size, 3), 255, np.uint8)
    dropped = apply_shift(find_shift("blue_noise_sample"), severity, white, "a", seed=0)[..., 0] == 0
    share = 0.5 * (1 + math.erf(threshold / math.sqrt(2)))
    assert dropped.mean() == pytest.approx(share, rel=0.05)
    assert (dropped[:, 1:] & dropped[:, :-1]).mean() < 0.7 * share**2


@pytest.mark.parametrize("size", [(192, 384), (301, 203), (96, 99)])
def test_brownish_noise_falls_with_the_frequency_alike_in_all_directions(size: tuple[int, int]) -> None:
    grey = np.full((*size, 3), 128, np.uint8)
    shift, shorter = find_shift("brownish_noise"), min(size)
    noise = np.concatenate([apply_shift(shift, 1, grey, str(i), 0) for i in range(12)], axis=2) - 128.0
    assert noise.std(axis=(0, 1)).mean() == pytest.approx(6.4, rel=0.05)
    power = (np.abs(np.fft.fft2(noise, axes=(0, 1))) ** 2).mean(axis=2)
    y, x = np.fft.fftfreq(size[0])[:, None] * shorter, np.fft.fftfreq(size[1]) * shorter
    octaves = [(np.hypot(y, x) > low) & (np.hypot(y, x) <= 1.5 * low) for low in (2, 8)]
    expected = [np.mean(1 / (np.hypot(y, x)[octave] ** 2 + 1) ** 2) for octave in octaves]
    measured = [power[octave].mean() for octave in octaves]
    assert measured[0] / measured[1] == pytest.approx(expected[0] / expected[1], rel=0.3)
    across, along = (power[octaves[1] & wedge].mean() for wedge in (np.abs(x) > np.abs(y), np.abs(x) < np.abs(y)))
    assert across == pytest.approx(along, rel=0.35)


@pytest.mark.parametrize("name", ["_sine", "_angle"])
def test_own_functions_of_the_circle_are_those_of_the_library(name: str) -> None:
    angles = np.random.default_rng(0).uniform(-1000, 1000, 2000)
    if name == "_sine":
        ours = [cbar._sine(angle) for angle in angles]
        np.testing.assert_allclose(ours, np.sin(angles), atol=1e-11)
    else:
        points = [*np.stack([np.sin(angles), np.cos(angles)], axis=1), (0.0, 0.0), (0.0, 3.0), (2.0, 0.0), (-2.0, 0.0)]
        ours = [cbar._angle(y, x) for y, x in points]
        np.testing.assert_allclose(ours, [math.atan2(y, x) for y, x in points], atol=1e-7)


@pytest.mark.data
@pytest.mark.parametrize("name", REFERENCES)
def test_severity_rises_on_photos(name: str, shared_data: Path) -> None:
    files = sorted((shared_data / "flickr8k" / "images").glob("*.jpg"))[:4]
    photos = [np.array(Image.open(file).convert("RGB").resize((96, 96))) for file in files]
    shift = find_shift(name)
    changes = [
        np.mean(
            [
                np.abs(photo.astype(int) - apply_shift(shift, severity, photo, f"{i} {j}", 0)).mean()
                for i, photo in enumerate(photos)
                for j in range(25)
            ]
        )
        for severity in SEVERITIES
    ]
    assert changes == sorted(changes)
    assert changes[4] > 1.2 * changes[0]
