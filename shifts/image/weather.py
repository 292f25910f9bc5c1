"""Weather in front of the lens and on it: snow, frost, fog, glare, drops and mud."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8
from numba import njit

from bench.errors import InputError
from shifts.image.blur import LIFT, draw_out, flat_rows, smooth, zoom_axis
from shifts.resources import package_file


class _Snow(NamedTuple):
    """How much falls, how large and how fast, and how white the scene is; values in [0, 1] but for lengths."""

    mean: float
    std: float
    zoom: float
    threshold: float
    path_radius_px: int
    path_std_px: float
    colour_kept: float


class _Spatter(NamedTuple):
    """How much sticks to the lens: normal noise, smoothed, is wet above a threshold; then water or mud."""

    mean: float
    std: float
    drop_std_px: float
    threshold: float
    strength: float = 1
    edge_std_px: float = 0


_SNOW = (
    _Snow(0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    _Snow(0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    _Snow(0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    _Snow(0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    _Snow(0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
_SNOW_DEGREES = (-135, -45)
_FROST_SHARE_OF_IMAGE_AND_ICE = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
_FROST_FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
_FROST_MARGIN = 1.1
_FROST_KEPT_PX = 2_000_000
_FOG_THICKNESS_AND_DECAY = ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))
_BRIGHTNESS_TENTHS = (1, 2, 3, 4, 5)
_SPATTER = (
    _Spatter(0.65, 0.3, 4, 0.69, strength=0.6),
    _Spatter(0.65, 0.3, 3, 0.68, strength=0.6),
    _Spatter(0.65, 0.3, 2, 0.68, strength=0.5),
    _Spatter(0.65, 0.3, 1, 0.65, edge_std_px=1.5),
    _Spatter(0.67, 0.4, 1, 0.65, edge_std_px=1.5),
)
_WATER = (175, 238, 238)
_MUD = (63, 42, 20)
_MUD_EDGE = 0.8
_EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32)


def snow(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image paled, with flakes falling in one direction over it, and the same flakes turned by 180 degrees.

    Flakes are noise, enlarged, thresholded and drawn out. Only the middle part that is enlarged is drawn.

    Source: arXiv 1903.12261, section 3; imagecorruptions 1.1.2, on the same draws at most one level away.
    """
    weather = _SNOW[severity - 1]
    height, width = pixels.shape[:2]
    down, across = zoom_axis(height, weather.zoom), zoom_axis(width, weather.zoom)
    noise = rng.standard_normal([math.ceil(side / weather.zoom) for side in (height, width)], np.float32)
    flakes = np.empty((len(down.source), len(across.source)), np.float32)
    _enlarge_flakes(weather.mean + weather.std * noise.astype(np.float64), down, across, weather.threshold, flakes)
    falling = np.empty(flakes.shape, np.uint8)
    degrees = rng.uniform(*_SNOW_DEGREES)
    draw_out(flakes, weather.path_radius_px, weather.path_std_px, degrees, falling, lift=0.5)
    snowed = np.empty(pixels.shape, np.uint8)
    kept = np.float32(weather.colour_kept)
    _snow_over(flat_rows(np.ascontiguousarray(pixels)), falling[:height, :width], kept, flat_rows(snowed))
    return snowed


def frost(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image mixed with a random part of one of five photos of ice, which are enlarged where they are too small.

    The reference has six photos and never picks the last; they are read from its installed package.

    Source: arXiv 1903.12261, section 3; imagecorruptions 1.1.2, on the same draws at most one level away.
    """
    height, width = pixels.shape[:2]
    ice = _ice_that_covers(_FROST_FILES[rng.integers(len(_FROST_FILES))], height, width)
    top = int(rng.integers(len(ice) - height))
    left = int(rng.integers(ice.shape[1] - width))
    frosted = np.empty(pixels.shape, np.uint8)
    of_image, of_ice = np.array(_FROST_SHARE_OF_IMAGE_AND_ICE[severity - 1], np.float32)
    _mix(flat_rows(np.ascontiguousarray(pixels)), flat_rows(ice), top, 3 * left, of_image, of_ice, flat_rows(frosted))
    return frosted


def fog(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with a fractal of light laid over, scaled so that its brightest value stays what it was.

    The fractal is as large as the reference's, a square whose side is a power of 2: its extremes set the scale.

    Source: arXiv 1903.12261, section 3; imagecorruptions 1.1.2, on the same draws at most one level away.
    """
    thickness, decay = _FOG_THICKNESS_AND_DECAY[severity - 1]
    drifts = _plasma(max(pixels.shape[:2]), decay, rng)
    brightest = float(pixels.max())
    lowest, highest = drifts.min(), drifts.max()
    light = np.float32(255 * thickness / float(highest - lowest))
    kept = np.float32(brightest / (brightest + 255 * thickness))
    fogged = np.empty(pixels.shape, np.uint8)
    _fog_over(flat_rows(np.ascontiguousarray(pixels)), drifts, lowest, light, kept, flat_rows(fogged))
    return fogged


def brightness(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with its value, as in HSV, raised: each pixel scaled until its largest channel has risen.

    `rng` is not used.

    Source: arXiv 1903.12261, section 3; imagecorruptions 1.1.2, at most one level away.
    """
    bright = np.empty(pixels.shape, np.uint8)
    _look_up(np.ascontiguousarray(pixels), _brightened(_BRIGHTNESS_TENTHS[severity - 1]), bright)
    return bright


def spatter(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image through drops of water that light it up, from severity 4 on through specks of mud that hide it.

    A small image may stay without a drop, and then as it is.

    Source: arXiv 1903.12261, section 3; imagecorruptions 1.1.2, on the same draws at most one level away.
    """
    weather = _SPATTER[severity - 1]
    liquid = _noise(rng, pixels.shape[:2], weather.mean, weather.std)
    wet = np.empty_like(liquid)
    smooth(liquid, weather.drop_std_px, wet)
    wet *= wet >= weather.threshold
    is_mud = weather.edge_std_px > 0
    cover = _mud(wet > weather.threshold, weather.edge_std_px) if is_mud else _drops(wet, weather.strength)
    colour = np.array(_MUD if is_mud else _WATER, np.float32)
    spattered = np.empty(pixels.shape, np.uint8)
    _lay_over(flat_rows(np.ascontiguousarray(pixels)), cover, colour, np.float32(is_mud), flat_rows(spattered))
    return spattered


@lru_cache(maxsize=len(_FROST_FILES))
def _ice(file: str) -> UInt8[np.ndarray, "height width 3"]:
    path = package_file(
        "imagecorruptions", f"frost/{file}", "frost reads the photos of imagecorruptions", "imagecorruptions>=1.1.2"
    )
    photo = cv2.imread(str(path))
    if photo is None:
        raise InputError(f"{path} is no image that OpenCV can read. Install imagecorruptions anew.")
    return cv2.cvtColor(photo, cv2.COLOR_BGR2RGB)


def _ice_that_covers(file: str, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """The photo, a tenth larger than it is or than it must be."""
    ice = _ice(file)
    scale = max(1, height / len(ice), width / ice.shape[1]) * _FROST_MARGIN
    size = (int(np.ceil(ice.shape[1] * scale)), int(np.ceil(len(ice) * scale)))
    return _enlarged_ice(file, size) if size[0] * size[1] <= _FROST_KEPT_PX else _resized_ice(file, size)


def _resized_ice(file: str, size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    return cv2.resize(_ice(file), size, interpolation=cv2.INTER_CUBIC)


@lru_cache(maxsize=16)
def _enlarged_ice(file: str, size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    return _resized_ice(file, size)


def _plasma(side: int, decay: float, rng: np.random.Generator) -> Float32[np.ndarray, "power power"]:
    """A fractal landscape that repeats itself, of at least `side`: diamonds and squares, in ever smaller steps."""
    n_levels = (side - 1).bit_length()
    draws = _random_words(rng, 4**n_levels, np.uint16)
    landscape = np.zeros((1, 1), np.float32)
    for level in range(n_levels):
        below, above = 4**level - 1, 4 ** (level + 1) - 1
        height = np.float32(1e4 / decay ** (2 * level))
        landscape = _refine(landscape, draws[below:above].reshape(3, *landscape.shape), height)
    return landscape


def _random_words(rng: np.random.Generator, count: int, kind: type[np.unsignedinteger]) -> np.ndarray:
    """Uniform unsigned integers, cut from words of 64 bits: a third of the time of draws in [0, 1)."""
    n_bytes = count * np.dtype(kind).itemsize
    words = rng.integers(2**64, size=-(-n_bytes // 8), dtype=np.uint64)
    return words.astype("<u8", copy=False).view(np.dtype(kind).newbyteorder("<"))[:count]


@lru_cache(maxsize=len(_BRIGHTNESS_TENTHS))
def _brightened(tenths: int) -> UInt8[np.ndarray, "256 256"]:
    """By the largest channel of a pixel and a channel's own value, what that becomes when the largest is raised."""
    largest, own = np.ogrid[:256, :256]
    table = own * np.minimum(10 * largest + 255 * tenths, 2550) // np.maximum(10 * largest, 1)
    table[0] = 255 * tenths // 10
    return np.minimum(table, 255).astype(np.uint8)


def _noise(
    rng: np.random.Generator, shape: tuple[int, ...], mean: float, std: float
) -> Float64[np.ndarray, "height width"]:
    """White noise, each value a sum of four random bytes: smoothed, it is as good as normal, and far cheaper."""
    noise = np.empty(shape)
    unit = std / math.sqrt(4 * (256**2 - 1) / 12)
    _sum_bytes(_random_words(rng, noise.size, np.uint32), mean - 4 * 127.5 * unit, unit, noise.reshape(-1))
    return noise


def _drops(wet: Float64[np.ndarray, "height width"], strength: float) -> Float32[np.ndarray, "height width"]:
    """How much light each pixel gets from drops, embossed along their rims; at most `strength`."""
    depth = (wet * 255).astype(np.uint8)
    to_rim = cv2.distanceTransform(255 - cv2.Canny(depth, 50, 150), cv2.DIST_L2, 5)
    to_rim = cv2.blur(np.minimum(to_rim, 20), (3, 3)).astype(np.uint8)
    relief = cv2.filter2D(cv2.equalizeHist(to_rim), cv2.CV_8U, _EMBOSS)
    light = depth * cv2.blur(relief, (3, 3)).astype(np.float32)
    light *= np.float32(strength) / max(light.max(), np.float32(1))
    return light


def _mud(is_wet: np.ndarray, edge_std_px: float) -> Float32[np.ndarray, "height width"]:
    """How much each pixel is hidden, 0 or nearly 1."""
    hidden = np.empty(is_wet.shape, np.float32)
    smooth(is_wet.astype(np.float32), edge_std_px, hidden)
    hidden[hidden < _MUD_EDGE] = 0
    return hidden


@njit(cache=True, nogil=True)
def _enlarge_flakes(noise, down, across, threshold, out):  # type: ignore[no-untyped-def]
    """The noise enlarged, 0 where below the threshold, at most 1; then times 255."""
    blend = np.empty(noise.shape[1])
    for y in range(out.shape[0]):
        i = down.source[y] - down.source[0]
        for x in range(blend.size):
            blend[x] = down.near[y] * noise[i, x] + down.far[y] * noise[i + 1, x]
        for x in range(out.shape[1]):
            i = across.source[x] - across.source[0]
            flake = across.near[x] * blend[i] + across.far[x] * blend[i + 1]
            out[y, x] = 255 * min(flake, 1) if flake >= threshold else 0


@njit(cache=True, nogil=True)
def _sum_bytes(words, offset, unit, out):  # type: ignore[no-untyped-def]
    for i in range(out.size):
        word = words[i]
        total = (word & 255) + ((word >> 8) & 255) + ((word >> 16) & 255) + (word >> 24)
        out[i] = offset + unit * total


@njit(cache=True, nogil=True)
def _snow_over(rows, flakes, colour_kept, out):  # type: ignore[no-untyped-def]
    """The pixels drawn towards a pale grey where they are darker, and under the flakes and the flakes turned."""
    height, width = flakes.shape
    pale, fallen = np.empty(rows.shape[1], np.float32), np.empty(rows.shape[1], np.float32)
    paleness = np.float32(1) - colour_kept
    for y in range(height):
        row = rows[y]
        for x in range(width):
            red, green, blue = np.float32(row[3 * x]), np.float32(row[3 * x + 1]), np.float32(row[3 * x + 2])
            grey = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
            flake = np.float32(flakes[y, x]) + np.float32(flakes[height - 1 - y, width - 1 - x])
            for channel in range(3):
                pale[3 * x + channel] = grey * np.float32(1.5) + np.float32(127.5)
                fallen[3 * x + channel] = flake + LIFT
        for i in range(rows.shape[1]):
            value = np.float32(row[i])
            value = colour_kept * value + paleness * max(value, pale[i]) + fallen[i]
            out[y, i] = min(value, np.float32(255))


@njit(cache=True, nogil=True)
def _mix(rows, ice, top, left, share_of_rows, share_of_ice, out):  # type: ignore[no-untyped-def]
    for y in range(rows.shape[0]):
        part = ice[top + y, left:]
        for i in range(rows.shape[1]):
            mixed = share_of_rows * np.float32(rows[y, i]) + share_of_ice * np.float32(part[i])
            out[y, i] = min(mixed + LIFT, np.float32(255))


@njit(cache=True, nogil=True)
def _refine(coarse, draws, height):  # type: ignore[no-untyped-def]
    """Twice as many points each way: each new one the mean of its four neighbours and a draw from +- `height`.

    The draws have 16 bits: first those of the points between four, then of those between two in a row, then of those
    between two in a column.
    """
    n = coarse.shape[0]
    fine = np.empty((2 * n, 2 * n), np.float32)
    quarter, step = np.float32(0.25), height / np.float32(2**15)
    lowest = step / np.float32(2) - height
    for y in range(n):
        below = (y + 1) % n
        for x in range(n):
            right = (x + 1) % n
            around = coarse[y, x] + coarse[y, right] + (coarse[below, x] + coarse[below, right])
            fine[2 * y, 2 * x] = coarse[y, x]
            fine[2 * y + 1, 2 * x + 1] = quarter * around + (lowest + step * np.float32(draws[0, y, x]))
    for y in range(n):
        below = (y + 1) % n
        for x in range(n):
            right = (x + 1) % n
            between_rows = fine[2 * y + 1, 2 * x + 1] + fine[2 * y - 1, 2 * x + 1]
            between_columns = fine[2 * y + 1, 2 * x + 1] + fine[2 * y + 1, 2 * x - 1]
            in_row = between_rows + (coarse[y, x] + coarse[y, right])
            in_column = between_columns + (coarse[y, x] + coarse[below, x])
            fine[2 * y, 2 * x + 1] = quarter * in_row + (lowest + step * np.float32(draws[1, y, x]))
            fine[2 * y + 1, 2 * x] = quarter * in_column + (lowest + step * np.float32(draws[2, y, x]))
    return fine


@njit(cache=True, nogil=True)
def _fog_over(rows, drifts, lowest, light, kept, out):  # type: ignore[no-untyped-def]
    veil = np.empty(rows.shape[1], np.float32)
    for y in range(rows.shape[0]):
        for x in range(rows.shape[1] // 3):
            for channel in range(3):
                veil[3 * x + channel] = (drifts[y, x] - lowest) * light * kept + LIFT
        for i in range(rows.shape[1]):
            out[y, i] = np.float32(rows[y, i]) * kept + veil[i]


@njit(cache=True, nogil=True)
def _look_up(pixels, table, out):  # type: ignore[no-untyped-def]
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            row = table[max(pixels[y, x, 0], pixels[y, x, 1], pixels[y, x, 2])]
            for channel in range(3):
                out[y, x, channel] = row[pixels[y, x, channel]]


@njit(cache=True, nogil=True)
def _lay_over(rows, cover, colour, opacity, out):  # type: ignore[no-untyped-def]
    """The colour times `cover` over the pixels, of which `opacity` times `cover` is taken away."""
    kept, light = np.empty(rows.shape[1], np.float32), np.empty(rows.shape[1], np.float32)
    for y in range(rows.shape[0]):
        for x in range(cover.shape[1]):
            for channel in range(3):
                kept[3 * x + channel] = np.float32(1) - opacity * cover[y, x]
                light[3 * x + channel] = colour[channel] * cover[y, x] + LIFT
        for i in range(rows.shape[1]):
            out[y, i] = min(np.float32(rows[y, i]) * kept[i] + light[i], np.float32(255))
