"""Blur of optics and motion; its filters also draw out snow and round drops."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int64, Num, UInt8
from numba import njit

_GAUSSIAN_STD_PX = (1, 2, 3, 4, 6)
_DEFOCUS_RADIUS_PX_AND_EDGE_STD = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
_GLASS_STD_PX_REACH_PX_ROUNDS = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
_MOTION_RADIUS_PX_AND_STD = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
_MOTION_DEGREES = (-45, 45)
_ZOOM_END_AND_STEP = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
_NO_WEIGHT = np.float32(1e-6)
LIFT = np.float32(2**-10)
"""Added before a sum is truncated, so that rounding in float32 cannot take a whole level from a flat area."""


def gaussian_blur(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image convolved with a normal density, its borders repeated, truncated to 8 bits; `rng` is not used.

    Source: arXiv 1903.12261, section 3; imagecorruptions 1.1.2, at most one level away.
    """
    return _smoothed_pixels(pixels, _GAUSSIAN_STD_PX[severity - 1])


def defocus_blur(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image convolved with a disk, as a lens out of focus would; borders are mirrored; `rng` is not used.

    Source: arXiv 1903.12261, section 3; imagecorruptions 1.1.2, at most one level away.
    """
    disk = _disk(*_DEFOCUS_RADIUS_PX_AND_EDGE_STD[severity - 1])
    reach = len(disk) // 2
    inside = disk > disk.max() - _NO_WEIGHT
    half_heights = inside.sum(axis=0)[inside.any(axis=0)] // 2
    rim = np.where(inside | (disk < _NO_WEIGHT), 0, disk)[reach:, reach:]
    rim[0] /= 2
    rim[:, 0] /= 2
    padded = cv2.copyMakeBorder(pixels, reach, reach, reach, reach, cv2.BORDER_REFLECT_101)
    blurred = np.empty(pixels.shape, np.uint8)
    _convolve_disk(flat_rows(padded), half_heights, disk.max(), rim, flat_rows(blurred))
    return blurred


def glass_blur(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image smoothed, with every pixel replaced by a near one, and smoothed again.

    Meant as a swap of two pixels, but in the reference the second assignment reads what the first one wrote: a copy.
    Its bounds are kept too: neighbours lie from `-reach` to `reach - 1`, and a frame stays, wider at the top left.

    Source: arXiv 1903.12261, section 3; imagecorruptions 1.1.2, on the same draws at most one level away.
    """
    std_px, reach_px, n_rounds = _GLASS_STD_PX_REACH_PX_ROUNDS[severity - 1]
    glass = _smoothed_pixels(pixels, std_px)
    height, width = (max(0, side - 2 * reach_px) for side in pixels.shape[:2])
    for _ in range(n_rounds):
        _copy_neighbours(glass, rng.integers(-reach_px, reach_px, (height, width, 2), np.int8), reach_px)
    return _smoothed_pixels(glass, std_px)


def motion_blur(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image drawn out along one direction within 45 degrees of the horizontal, the more faintly the farther.

    On sides shorter than the path its end is cut off, which darkens a little: kept from the reference.

    Source: arXiv 1903.12261, section 3; imagecorruptions 1.1.2, for the same angle at most one level away.
    """
    radius_px, std_px = _MOTION_RADIUS_PX_AND_STD[severity - 1]
    blurred = np.empty(pixels.shape, np.uint8)
    draw_out(pixels, radius_px, std_px, rng.uniform(*_MOTION_DEGREES), blurred, LIFT)
    return blurred


def zoom_blur(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The mean of the image and of ever closer views of its middle; `rng` is not used.

    The image itself counts twice, as it also is the first view.

    Source: arXiv 1903.12261, section 3; imagecorruptions 1.1.2, at most one level away.
    """
    end, step = _ZOOM_END_AND_STEP[severity - 1]
    factors = np.arange(1, end, step)
    down, across = (_zoom_axes(side, factors[1:]) for side in pixels.shape[:2])
    blurred = np.empty(pixels.shape, np.uint8)
    _mean_of_views(flat_rows(np.ascontiguousarray(pixels)), down, across, flat_rows(blurred))
    return blurred


def smooth(
    image: Num[np.ndarray, "height width *channels"], std_px: float, out: np.ndarray, lift: float | np.float32 = 0
) -> None:
    """Fill `out` with the image convolved with a normal density, cut at 4 std as in scikit-image; borders repeated.

    Args:
        image: any strides.
        std_px: of the density.
        out: C-contiguous, of the image's shape; its type is what the sums, plus `lift`, are cast to, and where that
            is float64 the sums are too, else float32.
        lift: added to each sum.
    """
    reach = int(4 * std_px + 0.5)
    density = np.exp(-0.5 * (np.arange(reach + 1) / std_px) ** 2)
    density /= 2 * density.sum() - density[0]
    density[0] /= 2
    precision = np.float64 if out.dtype == np.float64 else np.float32
    padded = cv2.copyMakeBorder(image, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
    _convolve_twice(flat_rows(padded), density.astype(precision), image[0, 0].size, precision(lift), flat_rows(out))


def draw_out(
    image: Num[np.ndarray, "height width *channels"],
    radius_px: int,
    std_px: float,
    degrees: float,
    out: np.ndarray,
    lift: float | np.float32 = 0,
) -> None:
    """Fill `out` with the image smeared along a straight path, whose weights fall off as half a normal density.

    Args:
        image: any strides; it goes on beyond its borders with the values there.
        radius_px: the path has twice as many pixels, and one.
        std_px: of the weights.
        degrees: direction of the path, 0 along a row.
        out: C-contiguous, of the image's shape; its type is what the sums, plus `lift`, are cast to.
        lift: added to each sum.
    """
    height, width = image.shape[:2]
    n_steps = 2 * radius_px + 1
    weights = np.exp(-0.5 * (np.arange(n_steps) / std_px) ** 2)
    weights /= weights.sum()
    down = [-math.ceil(i * math.sin(math.radians(degrees)) - 0.5) for i in range(n_steps)]
    right = [-math.ceil(i * math.cos(math.radians(degrees)) - 0.5) for i in range(n_steps)]
    n_inside = next((i for i in range(n_steps) if abs(down[i]) >= height or abs(right[i]) >= width), n_steps)
    down, right = down[:n_inside], right[:n_inside]
    top, left = max(down), max(right)
    padded = cv2.copyMakeBorder(image, top, -min(down), left, -min(right), cv2.BORDER_REPLICATE)
    rows = top - np.array(down)
    columns = (left - np.array(right)) * image[0, 0].size
    _sum_of_moved(
        flat_rows(padded), rows, columns, weights[:n_inside].astype(np.float32), np.float32(lift), flat_rows(out)
    )


def flat_rows(image: Num[np.ndarray, "height width *channels"]) -> Num[np.ndarray, "height row"]:
    """A view with one flat row for each row of pixels."""
    return image.reshape(len(image), -1)


class ZoomAxis(NamedTuple):
    """Where each position of an enlarged axis lies on the original: between `source` and the one after.

    `near` and `far` are the weights of the two. Both are 0 where rounding puts the last position beyond the end:
    SciPy's zoom leaves it black, and the reference with it.
    """

    source: Int64[np.ndarray, "*views n"]
    near: Float[np.ndarray, "*views n"]
    far: Float[np.ndarray, "*views n"]


def zoom_axis(side_px: int, factor: float) -> ZoomAxis:
    """The middle part of an axis enlarged by `factor`, to `side_px` positions or a few more."""
    n_source = math.ceil(side_px / factor)
    n_zoomed = round(n_source * factor)
    start = (side_px - n_source) // 2
    position = np.arange(n_zoomed) * ((n_source - 1) / (n_zoomed - 1))
    index = np.minimum(position.astype(np.int64), n_source - 2)
    inside = position <= n_source - 1
    far = (position - index) * inside
    return ZoomAxis(start + index, inside - far, far)


def _zoom_axes(side_px: int, factors: Float[np.ndarray, " n_factors"]) -> ZoomAxis:
    """Every zoom of one axis, cut to its length: each field is (n_factors, side_px), the weights float32."""
    index, near, far = (
        np.stack([field[:side_px] for field in fields])
        for fields in zip(*(zoom_axis(side_px, factor) for factor in factors), strict=True)
    )
    return ZoomAxis(index, near.astype(np.float32), far.astype(np.float32))


def _smoothed_pixels(pixels: UInt8[np.ndarray, "height width 3"], std_px: float) -> UInt8[np.ndarray, "height width 3"]:
    smoothed = np.empty(pixels.shape, np.uint8)
    smooth(pixels, std_px, smoothed, LIFT)
    return smoothed


def _disk(radius: int, edge_std: float) -> Float32[np.ndarray, "side side"]:
    """A disk with softened edge; up to radius 8 on 17 x 17, where the softening mirrors at the border.

    At radius 8 and above it therefore sums to 1.01, not 1: kept, for parity.
    """
    reach, softening = (8, 3) if radius <= 8 else (radius, 5)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.float32)
    disk /= disk.sum()
    softened: np.ndarray = cv2.GaussianBlur(disk, (softening, softening), edge_std)
    return softened


@njit(cache=True, nogil=True)
def _convolve_disk(padded, half_heights, weight_inside, rim, out):  # type: ignore[no-untyped-def]
    """Convolution with a disk of one weight, whose sum slides down the image, and with a rim, summed pixel by pixel.

    Args:
        padded: the image and `rim.shape[0] - 1` pixels around it.
        half_heights: of each column of the disk, without its middle.
        weight_inside: of the pixels of the disk.
        rim: the lower right quarter of the weights around the disk, which mirror both ways; its axes are halved.
        out: filled.
    """
    reach = rim.shape[0] - 1
    n = out.shape[1]
    left = 3 * (reach - half_heights.size // 2)
    inside = np.zeros(n, np.int32)
    change = np.empty(n, np.int16)
    pair = np.empty(padded.shape[1], np.float32)
    total = np.empty(n, np.float32)
    down, across = np.nonzero(rim)
    for column in range(half_heights.size):
        for y in range(reach - half_heights[column], reach + half_heights[column] + 1):
            inside += padded[y, left + 3 * column : left + 3 * column + n]
    for y in range(out.shape[0]):
        for i in range(n):
            total[i] = LIFT + weight_inside * np.float32(inside[i])
        _add_rim(padded, y + reach, rim, down, across, pair, total)
        for i in range(n):
            out[y, i] = min(total[i], np.float32(255))
        if y + 1 < out.shape[0]:
            _change_below(padded, y + reach, left, half_heights, change)
            inside += change


@njit(cache=True, nogil=True)
def _add_rim(padded, y, rim, down, across, pair, total):  # type: ignore[no-untyped-def]
    """Add to `total` the weighted sums of the rim around row `y`; `pair` is room for the sum of two rows.

    `down` and `across` say where the rim has weights, in the order of rows.
    """
    reach = rim.shape[0] - 1
    for k in range(down.size):
        if k == 0 or down[k] != down[k - 1]:
            upper, lower = padded[y - down[k]], padded[y + down[k]]
            for i in range(pair.size):
                pair[i] = np.float32(upper[i]) + np.float32(lower[i])
        _add_mirrored(pair, 3 * reach, 3 * across[k], rim[down[k], across[k]], total)


@njit(cache=True, nogil=True)
def _change_below(padded, y, left, half_heights, change):  # type: ignore[no-untyped-def]
    """Fill `change` with what enters the disk around row `y` when it moves down by one, less what leaves it."""
    change[:] = 0
    for column in range(half_heights.size):
        enters = padded[y + 1 + half_heights[column], left + 3 * column :]
        leaves = padded[y - half_heights[column], left + 3 * column :]
        for i in range(change.size):
            change[i] += np.int16(enters[i]) - np.int16(leaves[i])


@njit(cache=True, nogil=True)
def _add_mirrored(row, middle, distance, weight, total):  # type: ignore[no-untyped-def]
    """Add to `total` the row from `distance` before the middle on, and from as far behind it, times `weight`."""
    before, after = row[middle - distance :], row[middle + distance :]
    for i in range(total.size):
        total[i] += weight * (before[i] + after[i])


@njit(cache=True, nogil=True)
def _convolve_twice(padded, density, n_channels, lift, out):  # type: ignore[no-untyped-def]
    """Convolution down and then across with half a symmetric density, its middle halved."""
    reach = density.size - 1
    n = out.shape[1]
    column = np.empty(padded.shape[1], density.dtype)
    total = np.empty(n, density.dtype)
    kind = density.dtype.type
    for y in range(out.shape[0]):
        column[:] = 0
        for k in range(reach + 1):
            weight = density[k]
            upper, lower = padded[y + reach - k], padded[y + reach + k]
            for i in range(column.size):
                column[i] += weight * (kind(upper[i]) + kind(lower[i]))
        total[:] = lift
        for k in range(reach + 1):
            _add_mirrored(column, n_channels * reach, n_channels * k, density[k], total)
        for i in range(n):
            out[y, i] = total[i]


@njit(cache=True, nogil=True)
def _sum_of_moved(padded, rows, columns, weights, lift, out):  # type: ignore[no-untyped-def]
    """The weighted sum of parts of `padded` that begin at the given places."""
    n = out.shape[1]
    total = np.empty(n, np.float32)
    for y in range(out.shape[0]):
        total[:] = lift
        for k in range(weights.size):
            moved = padded[y + rows[k], columns[k] :]
            weight = weights[k]
            for i in range(n):
                total[i] += weight * np.float32(moved[i])
        for i in range(n):
            out[y, i] = total[i]


@njit(cache=True, nogil=True)
def _copy_neighbours(pixels, steps, reach):  # type: ignore[no-untyped-def]
    """From the bottom right on, each pixel becomes what its neighbour, `steps` = (right, down) away, is by then."""
    height, width = pixels.shape[:2]
    for i in range(steps.shape[0]):
        y = height - reach - i
        for j in range(steps.shape[1]):
            x = width - reach - j
            from_y, from_x = y + steps[i, j, 1], x + steps[i, j, 0]
            for channel in range(3):
                pixels[y, x, channel] = pixels[from_y, from_x, channel]


@njit(cache=True, nogil=True)
def _mean_of_views(pixels, down, across, out):  # type: ignore[no-untyped-def]
    """The mean of the pixels, twice, and of their zooms."""
    n_views, width = across.source.shape
    blend = np.empty(pixels.shape[1], np.float32)
    total = np.empty(pixels.shape[1], np.float32)
    scale = np.float32(1 / (n_views + 2))
    for y in range(pixels.shape[0]):
        for i in range(total.size):
            total[i] = np.float32(2) * np.float32(pixels[y, i])
        for view in range(n_views):
            upper, lower = pixels[down.source[view, y]], pixels[down.source[view, y] + 1]
            near, far = down.near[view, y], down.far[view, y]
            for i in range(total.size):
                blend[i] = near * np.float32(upper[i]) + far * np.float32(lower[i])
            for x in range(width):
                i = 3 * across.source[view, x]
                near, far = across.near[view, x], across.far[view, x]
                total[3 * x] += near * blend[i] + far * blend[i + 3]
                total[3 * x + 1] += near * blend[i + 1] + far * blend[i + 4]
                total[3 * x + 2] += near * blend[i + 2] + far * blend[i + 5]
        for i in range(total.size):
            out[y, i] = total[i] * scale + LIFT
