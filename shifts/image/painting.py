"""A scene in oil: brush strokes laid one over another, broad ones first."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int64, UInt8
from numba import njit

from shifts.canvas import MAX_SHORTER_SIDE_PX
from shifts.image.flow import DIRECTIONS, SHIFT, UNIT, contour_directions
from shifts.image.paper import paper_grain

_FLOW_WIDTHS = 1.5
_DOME = 96


class _Brush(NamedTuple):
    """The finest brush of a painter and the care taken with it.

    The width in pixels at a shorter side of 384; two broader brushes come before. `tolerance` is the mean difference
    from the photo, in levels, up to which an area is left as a broader brush has painted it; `thickness` of the paint
    is the light that its slopes give or take, in levels per 64 units of height.
    """

    width_px: float
    tolerance: int
    thickness: int


_BRUSHES = (_Brush(3.0, 6, 5), _Brush(4.0, 8, 7), _Brush(5.5, 10, 9), _Brush(7.5, 12, 11), _Brush(10.0, 14, 13))
_BROADER = (3, 2, 1)
_LENGTH_WIDTHS = 3
_STEP_WIDTHS = 0.7


def painting(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image painted in oil with brushes that get broader with severity; `rng` is not used.

    Strokes are straight, have the colour of the place where they begin and lie along the contours there; at an edge
    they end. First a broad brush covers the canvas, then two finer ones correct what differs from the photo. Hairs
    leave grooves in the paint, lit from the upper left. Order and place of the strokes are a hash of the coordinates,
    and everything is done on integers, but for square roots, which are exact to the last bit everywhere.

    Source: layers after Hertzmann, "Painterly Rendering with Curved Brush Strokes of Multiple Sizes" (SIGGRAPH 1998),
    section 2; strokes that end at edges after Litwinowicz, "Processing Images and Video for an Impressionist Effect"
    (SIGGRAPH 1997); grooves after Hertzmann, "Fast Paint Texture" (NPAR 2002).
    """
    brush = _BRUSHES[severity - 1]
    unit = min(pixels.shape[:2]) / MAX_SHORTER_SIDE_PX
    pixels = np.ascontiguousarray(pixels)
    directions = _stroke_directions(pixels, brush.width_px * unit)
    height, width = pixels.shape[:2]
    canvas = np.zeros((height, width, 4), np.uint8)
    hair = max(UNIT, round(unit * UNIT))
    for layer, broader in enumerate(_BROADER):
        width_px = max(1.0, brush.width_px * broader * unit)
        seen = cv2.GaussianBlur(pixels, (0, 0), max(0.6, width_px / 4))
        spots = _spots(height, width, max(2, round(width_px * _STEP_WIDTHS)), layer)
        tolerance = brush.tolerance if layer else -1
        _lay_strokes(canvas, seen, directions, DIRECTIONS, spots, round(width_px * UNIT), hair, tolerance)
    return _lit(canvas, brush.thickness)


def _stroke_directions(
    pixels: UInt8[np.ndarray, "height width 3"], width_px: float
) -> UInt8[np.ndarray, "height width"]:
    """Along the contours as they appear to someone who squints until all that a brush cannot paint is gone."""
    grey = cv2.GaussianBlur(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (0, 0), max(0.6, width_px / 2))
    return contour_directions(grey, max(1, round(_FLOW_WIDTHS * width_px)))


def _spots(height: int, width: int, step_px: int, layer: int) -> Int64[np.ndarray, "n_strokes 3"]:
    """(y, x, hash) of the places where strokes may begin, in the order of painting: a grid, shaken and shuffled."""
    rows, columns = -(-height // step_px), -(-width // step_px)
    drawn = (paper_grain(rows, columns, layer) + 2**15).astype(np.int64).ravel()
    y, x = np.divmod(np.arange(rows * columns), columns)
    y = np.minimum(y * step_px + drawn % step_px, height - 1)
    x = np.minimum(x * step_px + drawn // 64 % step_px, width - 1)
    order = np.argsort((drawn * 40503).astype(np.uint16), kind="stable")
    return np.stack([y, x, drawn], axis=1)[order]


@njit(cache=True, nogil=True)
def _lay_strokes(canvas, seen, directions, vectors, spots, width, hair, tolerance):  # type: ignore[no-untyped-def]
    """Paint one layer onto `canvas`: three channels of colour, one of the paint's height.

    The widths of the brush and of a hair are in units of a pixel / `UNIT`.
    """
    reach = (width // 2 >> SHIFT) + 1
    longest = _LENGTH_WIDTHS * width // 2 >> SHIFT
    for i in range(spots.shape[0]):
        y, x, drawn = spots[i]
        if _difference(canvas, seen, y, x, reach) > tolerance:
            k = directions[y, x]
            right, down = vectors[k, 0], vectors[k, 1]
            ahead = _length(seen, y, x, right, down, longest)
            behind = _length(seen, y, x, -right, -down, longest)
            _stroke(canvas, seen[y, x], y, x, right, down, ahead, behind, width // 2, hair, drawn)


@njit(cache=True, nogil=True)
def _difference(canvas, seen, y, x, reach):  # type: ignore[no-untyped-def]
    """Mean difference between canvas and photo on nine points around, in levels."""
    total, count = np.int64(0), 0
    for at_y in (y - reach, y, y + reach):
        for at_x in (x - reach, x, x + reach):
            if 0 <= at_y < seen.shape[0] and 0 <= at_x < seen.shape[1]:
                count += 3
                for c in range(3):
                    total += abs(np.int64(canvas[at_y, at_x, c]) - np.int64(seen[at_y, at_x, c]))
    return total // count


@njit(cache=True, nogil=True)
def _length(seen, y, x, right, down, longest):  # type: ignore[no-untyped-def]
    """How far a stroke can go from (y, x) before the photo has another colour."""
    for step in range(1, longest + 1):
        at_x, at_y = x + (right * step + UNIT // 2 >> SHIFT), y + (down * step + UNIT // 2 >> SHIFT)
        if at_x < 0 or at_y < 0 or at_x >= seen.shape[1] or at_y >= seen.shape[0]:
            return step - 1
        difference = np.int64(0)
        for c in range(3):
            difference += abs(np.int64(seen[at_y, at_x, c]) - np.int64(seen[y, x, c]))
        if difference > 60:
            return step - 1
    return longest


@njit(cache=True, nogil=True)
def _stroke(canvas, colour, y, x, right, down, ahead, behind, radius, hair, drawn):  # type: ignore[no-untyped-def]
    """One stroke with round ends, softened at its rim; hairs differ in tone, and the paint is higher in the middle."""
    rim = radius + UNIT // 2
    per_hair = (1 << 20) // hair
    slope = (_DOME << 20) // radius
    shade = drawn % 17 - 12
    from_y, to_y = _extent(down, ahead, behind, rim)
    from_x, to_x = _extent(right, ahead, behind, rim)
    for at_y in range(max(0, y + from_y), min(canvas.shape[0], y + to_y + 1)):
        for at_x in range(max(0, x + from_x), min(canvas.shape[1], x + to_x + 1)):
            across = (at_y - y) * right - (at_x - x) * down
            if abs(across) >= rim:
                continue
            along = (at_x - x) * right + (at_y - y) * down
            beyond = max(along - ahead * UNIT, -along - behind * UNIT)
            distance = abs(across) if beyond <= 0 else np.int64(np.sqrt(float(beyond * beyond + across * across)))
            if distance >= rim:
                continue
            cover = min(rim - distance, UNIT)
            groove = ((((across + rim) * per_hair >> 20) * 7919 + drawn * 31) * 40503 >> 9) & 63
            for c in range(3):
                old = np.int64(canvas[at_y, at_x, c])
                new = min(255, max(0, np.int64(colour[c]) + shade + (groove >> 3)))
                canvas[at_y, at_x, c] = old + ((new - old) * cover >> SHIFT)
            old = np.int64(canvas[at_y, at_x, 3])
            paint = 190 + groove - (distance * slope >> 20)
            canvas[at_y, at_x, 3] = old + ((paint - old) * cover >> SHIFT)


@njit(cache=True, nogil=True)
def _extent(forwards, ahead, behind, rim):  # type: ignore[no-untyped-def]
    """The first and last pixel that a stroke can touch on one axis, relative to where it began."""
    ends = (ahead * forwards, -behind * forwards)
    return (min(ends) - rim) >> SHIFT, (max(ends) + rim + UNIT - 1) >> SHIFT


@njit(cache=True, nogil=True)
def _lit(canvas, thickness):  # type: ignore[no-untyped-def]
    """The colours, lighter on slopes towards the upper left and darker behind them."""
    height, width, _ = canvas.shape
    picture = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            above = canvas[max(y - 1, 0), max(x - 1, 0), 3]
            slope = (np.int64(canvas[y, x, 3]) - np.int64(above)) * thickness >> 6
            for c in range(3):
                picture[y, x, c] = min(255, max(0, np.int64(canvas[y, x, c]) + slope))
    return picture
