"""What storing and processing do to an image: compression, contrast, colour, resolution, distortion."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple, cast

import cv2
import numpy as np
from jaxtyping import Float32, Float64, Int32, UInt8, UInt32, UInt64
from numba import njit

from shifts.image.random import random_words

_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
_SATURATION_FACTOR_AND_OFFSET = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))
_ELASTIC_SHARE_OF_HEIGHT = (0.0625, 0.08125, 0.10625, 0.125, 0.15)
_ELASTIC_SIGMA_SHARE = 0.01
_ELASTIC_TRUNCATE_SIGMA = 3
_PIXELATE_SCALE = (0.6, 0.5, 0.4, 0.3, 0.25)
_JPEG_QUALITY = (25, 18, 15, 10, 7)

_UNIT = np.arange(256) / 255.0
_FRACTION_BITS = 11
_FRACTION_ONE = np.uint32(2**_FRACTION_BITS)
_FRACTION_MASK = np.uint32(2**_FRACTION_BITS - 1)
_WEIGHT_BITS = np.uint32(2 * _FRACTION_BITS)
_SHARE_BITS = np.uint32(22)
_HALF = np.uint32(2**21)
_ONE, _TWO, _THREE = np.uint64(1), np.uint64(2), np.uint64(3)


def contrast(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with every channel drawn towards its own mean; `rng` is not used.

    The means come from sums of integers, the package's from sums of rounded floats: a value that falls on a whole
    level may differ by one.

    Source: arXiv 1903.12261, section 3; factors and truncation as in imagecorruptions 1.1.2.
    """
    contiguous = np.ascontiguousarray(pixels)
    mean = np.array(cv2.sumElems(contiguous)[:3]) / (255 * pixels.shape[0] * pixels.shape[1])
    drawn_in = (_UNIT[:, np.newaxis] - mean) * _CONTRAST[severity - 1] + mean
    level_after = (np.clip(drawn_in, 0, 1) * 255).astype(np.uint8)
    changed: np.ndarray = cv2.LUT(contiguous, level_after[np.newaxis])
    return changed


def saturate(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with the saturation of HSV scaled: greyer at severities 1 and 2, gaudier above; `rng` is not used.

    Grey has hue 0: the offset of severities 4 and 5 turns it reddish.

    Source: arXiv 1903.12261, appendix B; bytes as imagecorruptions 1.1.2.
    """
    factor, offset = _SATURATION_FACTOR_AND_OFFSET[severity - 1]
    saturated = np.empty(pixels.shape, np.uint8)
    _saturate(_read_only(pixels), _UNIT, factor, offset, saturated)
    return saturated


@njit(cache=True, nogil=True)
def _saturate(
    pixels: UInt8[np.ndarray, "height width 3"],
    unit: Float64[np.ndarray, " 256"],
    factor: float,
    offset: float,
    saturated: UInt8[np.ndarray, "height width 3"],
) -> None:
    """To HSV and back in one go, each step in the order of scikit-image's.

    The results are truncated and often fall on whole levels, where the last bit of every step counts.
    """
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            red, green, blue = unit[pixels[y, x, 0]], unit[pixels[y, x, 1]], unit[pixels[y, x, 2]]
            value = max(red, green, blue)
            chroma = value - min(red, green, blue)
            hue, saturation = 0.0, 0.0
            if chroma > 0:
                saturation = chroma / value
                if blue == value:
                    hue = (4 + (red - green) / chroma) / 6
                elif green == value:
                    hue = (2 + (blue - red) / chroma) / 6
                else:
                    hue = (green - blue) / chroma / 6
                if hue < 0:
                    hue += 1
            saturation = min(saturation * factor + offset, 1.0)
            sextant = int(hue * 6)
            position = hue * 6 - sextant
            top = np.uint8(value * 255)
            bottom = np.uint8(value * (1 - saturation) * 255)
            falling = np.uint8(value * (1 - position * saturation) * 255)
            rising = np.uint8(value * (1 - (1 - position) * saturation) * 255)
            if sextant == 0:
                rgb = top, rising, bottom
            elif sextant == 1:
                rgb = falling, top, bottom
            elif sextant == 2:
                rgb = bottom, top, rising
            elif sextant == 3:
                rgb = bottom, falling, top
            elif sextant == 4:
                rgb = rising, bottom, top
            else:
                rgb = top, bottom, falling
            saturated[y, x, 0], saturated[y, x, 1], saturated[y, x, 2] = rgb


def elastic_transform(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with every pixel fetched from a place nearby, where smoothed noise says; borders are mirrored.

    Both directions move in proportion to the height, as in the package. Displacements are rounded to 1/2048 px and
    levels are interpolated in integers; on the same draws at most one level away from the package.

    Source: arXiv 1903.12261, section 3; fields and truncation as in imagecorruptions 1.1.2.
    """
    reach_px = _ELASTIC_SHARE_OF_HEIGHT[severity - 1] * pixels.shape[0]
    across, down = (_displacements(_uniform(rng, *pixels.shape[:2]), reach_px) for _ in range(2))
    warped = np.empty(pixels.shape, np.uint8)
    _warp(_read_only(pixels), across, down, warped)
    return warped


def _uniform(rng: np.random.Generator, height: int, width: int) -> Float32[np.ndarray, "height width"]:
    """Independent noise, uniform in [-1, 1]."""
    words = random_words(rng, height * width).reshape(height, width)
    uniform: np.ndarray = words.view(np.int32) * np.float32(2**-31)
    return uniform


def _displacements(noise: Float32[np.ndarray, "height width"], reach_px: float) -> Int32[np.ndarray, "height width"]:
    """The noise smoothed over 1 % of the sides and stretched, in 1/2048 px."""
    smooth_down, smooth_across = (_half_gaussian(_ELASTIC_SIGMA_SHARE * side) for side in noise.shape)
    displacements = np.empty(noise.shape, np.int32)
    _smooth(noise, smooth_down, smooth_across * np.float32(reach_px * 2**_FRACTION_BITS), displacements)
    return displacements


def _half_gaussian(sigma: float) -> Float32[np.ndarray, " radius_plus_1"]:
    """The weights of a Gaussian from its centre outwards; with the other half they sum to 1."""
    radius = int(_ELASTIC_TRUNCATE_SIGMA * sigma + 0.5)
    weights = np.array([math.exp(-0.5 * (step / sigma) ** 2) for step in range(radius + 1)])
    return (weights / (2 * weights.sum() - 1)).astype(np.float32)


@njit(cache=True, nogil=True)
def _smooth(
    noise: Float32[np.ndarray, "height width"],
    smooth_down: Float32[np.ndarray, " radius_down_plus_1"],
    smooth_across: Float32[np.ndarray, " radius_across_plus_1"],
    smoothed: Int32[np.ndarray, "height width"],
) -> None:
    """Weighted sums down, then across, rounded; always added in the same order, so that every processor agrees."""
    height, width = noise.shape
    margin = smooth_across.size - 1
    padded = np.empty(width + 2 * margin, np.float32)
    row = padded[margin : margin + width]
    total = np.empty(width, np.float32)
    for y in range(height):
        for x in range(width):
            row[x] = smooth_down[0] * noise[y, x]
        for step in range(1, smooth_down.size):
            _add_pair(row, smooth_down[step], noise[_mirrored(y - step, height)], noise[_mirrored(y + step, height)])
        for step in range(margin):
            padded[margin - 1 - step] = row[_mirrored(step, width)]
            padded[margin + width + step] = row[_mirrored(width + step, width)]
        for x in range(width):
            total[x] = smooth_across[0] * row[x]
        for step in range(1, smooth_across.size):
            _add_pair(total, smooth_across[step], padded[margin - step :], padded[margin + step :])
        for x in range(width):
            smoothed[y, x] = np.int32(np.rint(total[x]))


@njit(cache=True, nogil=True)
def _add_pair(
    total: Float32[np.ndarray, " width"],
    weight: np.float32,
    before: Float32[np.ndarray, " width_or_more"],
    after: Float32[np.ndarray, " width_or_more"],
) -> None:
    for x in range(total.size):
        total[x] += weight * (before[x] + after[x])


@njit(cache=True, nogil=True)
def _warp(
    pixels: UInt8[np.ndarray, "height width 3"],
    across: Int32[np.ndarray, "height width"],
    down: Int32[np.ndarray, "height width"],
    warped: UInt8[np.ndarray, "height width 3"],
) -> None:
    """Every pixel from its displaced place, between the four pixels around it, truncated."""
    height, width, _ = pixels.shape
    values = pixels.ravel()
    for y in range(height):
        for x in range(width):
            left, right = x + (across[y, x] >> _FRACTION_BITS), x + (across[y, x] >> _FRACTION_BITS) + 1
            top, bottom = y + (down[y, x] >> _FRACTION_BITS), y + (down[y, x] >> _FRACTION_BITS) + 1
            if left < 0 or right >= width or top < 0 or bottom >= height:
                left, right = _mirrored(left, width), _mirrored(right, width)
                top, bottom = _mirrored(top, height), _mirrored(bottom, height)
            to_right, to_bottom = np.uint32(across[y, x]) & _FRACTION_MASK, np.uint32(down[y, x]) & _FRACTION_MASK
            to_left, to_top = _FRACTION_ONE - to_right, _FRACTION_ONE - to_bottom
            for channel in range(3):
                level = values[np.uint64(3 * (top * width + left) + channel)] * (to_left * to_top)
                level += values[np.uint64(3 * (top * width + right) + channel)] * (to_right * to_top)
                level += values[np.uint64(3 * (bottom * width + left) + channel)] * (to_left * to_bottom)
                level += values[np.uint64(3 * (bottom * width + right) + channel)] * (to_right * to_bottom)
                warped[y, x, channel] = level >> _WEIGHT_BITS


@njit(cache=True, nogil=True)
def _mirrored(place: int, size: int) -> int:
    """The index that a place outside of 0..size-1 shows when the axis is mirrored at its ends, again and again."""
    place %= 2 * size
    return min(place, 2 * size - 1 - place)


def pixelate(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image averaged over boxes to fewer pixels and enlarged by repetition; `rng` is not used.

    Always averaged across first. Pillow 13 begins with the columns where an image is more than twice as high as wide:
    there, some values differ by one level.

    Source: arXiv 1903.12261, section 3; bytes as imagecorruptions 1.1.2, that is, as Pillow's BOX and NEAREST.
    """
    height, width, _ = pixels.shape
    scale = _PIXELATE_SCALE[severity - 1]
    rows, row_shares, row_of = _boxes(height, int(height * scale))
    columns, column_shares, column_of = _boxes(width, int(width * scale))
    narrow = np.empty((height, 3 * len(columns)), np.uint8)
    _average_across(_read_only(pixels).reshape(height, 3 * width), columns, column_shares, narrow)
    small = np.empty((len(rows), 3 * len(columns)), np.uint8)
    _average_down(narrow, rows, row_shares, small)
    pixelated = np.empty((height, 3 * width), np.uint8)
    _enlarge(small, row_of, column_of, pixelated)
    return pixelated.reshape(pixels.shape)


class _Boxes(NamedTuple):
    """How the pixels along one side are put into boxes.

    Args:
        bounds: the first pixel of each box and the one after its last.
        shares: what each pixel of the box counts, in 2^-22.
        shown: the box that each pixel shows when the image is enlarged again.
    """

    bounds: UInt64[np.ndarray, "n_boxes 2"]
    shares: UInt32[np.ndarray, " n_boxes"]
    shown: UInt64[np.ndarray, " n_pixels"]


@lru_cache(maxsize=64)
def _boxes(n_pixels: int, n_boxes: int) -> _Boxes:
    """A pixel counts for the box that its centre lies in, and shows the box that its centre lies in.

    Pillow asks the first twice, for a range of pixels and for the weights in it. Where a centre falls on the end of a
    box, rounding may put it into the range and give it no weight: it does not count. For the second, Pillow adds up
    steps, one by one.
    """
    size = n_pixels / n_boxes
    centre = (np.arange(n_boxes) + 0.5) * size
    first = (centre - size * 0.5 + 0.5).astype(np.int64)
    end = np.minimum((centre + size * 0.5 + 0.5).astype(np.int64), n_pixels)
    end -= (end - 1 - centre + 0.5) * (1 / size) > 0.5
    shares = 0.5 + 1 / (end - first) * 2**22
    step = n_boxes / n_pixels
    shown = np.add.accumulate(np.r_[step * 0.5, np.full(n_pixels - 1, step)])
    return _Boxes(np.stack([first, end], axis=1).astype(np.uint64), shares.astype(np.uint32), shown.astype(np.uint64))


@njit(cache=True, nogil=True)
def _average_across(
    pixels: UInt8[np.ndarray, "height 3*width"],
    columns: UInt64[np.ndarray, "n_columns 2"],
    shares: UInt32[np.ndarray, " n_columns"],
    narrow: UInt8[np.ndarray, "height 3*n_columns"],
) -> None:
    """Means over each box of each row, rounded; unsigned indices spare the test for negative ones."""
    for y in range(len(pixels)):
        row, means = pixels[y], narrow[y]
        for i in range(shares.size):
            place, end = columns[i, 0] * _THREE, columns[i, 1] * _THREE
            red, green, blue = np.uint32(0), np.uint32(0), np.uint32(0)
            while place < end:
                red += row[place]
                green += row[place + _ONE]
                blue += row[place + _TWO]
                place += _THREE
            mean = np.uint64(i) * _THREE
            means[mean] = (red * shares[i] + _HALF) >> _SHARE_BITS
            means[mean + _ONE] = (green * shares[i] + _HALF) >> _SHARE_BITS
            means[mean + _TWO] = (blue * shares[i] + _HALF) >> _SHARE_BITS


@njit(cache=True, nogil=True)
def _average_down(
    narrow: UInt8[np.ndarray, "height n_values"],
    rows: UInt64[np.ndarray, "n_rows 2"],
    shares: UInt32[np.ndarray, " n_rows"],
    small: UInt8[np.ndarray, "n_rows n_values"],
) -> None:
    """Means over the rows of each box, rounded."""
    totals = np.empty(narrow.shape[1], np.uint32)
    for i in range(shares.size):
        for x in range(totals.size):
            totals[x] = 0
        for y in range(rows[i, 0], rows[i, 1]):
            row = narrow[y]
            for x in range(totals.size):
                totals[x] += row[x]
        means, share = small[i], shares[i]
        for x in range(totals.size):
            means[x] = (totals[x] * share + _HALF) >> _SHARE_BITS


@njit(cache=True, nogil=True)
def _enlarge(
    small: UInt8[np.ndarray, "n_rows 3*n_columns"],
    row_of: UInt64[np.ndarray, " height"],
    column_of: UInt64[np.ndarray, " width"],
    pixelated: UInt8[np.ndarray, "height 3*width"],
) -> None:
    """Every pixel repeated; a row like the one before is copied."""
    for y in range(row_of.size):
        row, enlarged = small[row_of[y]], pixelated[y]
        if y > 0 and row_of[y] == row_of[y - 1]:
            above = pixelated[y - 1]
            for place in range(above.size):
                enlarged[place] = above[place]
        else:
            for x in range(column_of.size):
                shown, start = column_of[x] * _THREE, np.uint64(x) * _THREE
                enlarged[start] = row[shown]
                enlarged[start + _ONE] = row[shown + _ONE]
                enlarged[start + _TWO] = row[shown + _TWO]


def jpeg_compression(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image after one round through a JPEG file of low quality; `rng` is not used.

    By OpenCV, which copies less than Pillow. The bytes are those of the libjpeg that OpenCV was built with; the wheels
    of OpenCV 5.0 and Pillow 13 hold different releases of libjpeg-turbo and gave the same bytes on every image tried.

    Source: arXiv 1903.12261, section 3; bytes as imagecorruptions 1.1.2.
    """
    settings = (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY[severity - 1])
    _, file = cv2.imencode(".jpg", cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR), settings)
    decoded = cast(np.ndarray, cv2.imdecode(file, cv2.IMREAD_COLOR))
    compressed: np.ndarray = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB, dst=decoded)
    return compressed


def _read_only(pixels: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels in the one layout and with the one writeability that the loops here are compiled for."""
    contiguous = np.ascontiguousarray(pixels).view()
    contiguous.flags.writeable = False
    return contiguous
