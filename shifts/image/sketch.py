"""A scene in pencil: straight strokes along its edges, hatching for its tones."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8
from numba import njit

from shifts.canvas import MAX_SHORTER_SIDE_PX
from shifts.image.paper import paper_grain

_N_DIRECTIONS = 8
_HATCH_PX = 9
_HATCH_CONTRAST = 0.22
_PAPER_DARKNESS = 0.05
_BUSY_PX = 10
_BUSY_FLOOR = 60


class _Pencil(NamedTuple):
    """How a drawing is made at one severity.

    Lengths in pixels at a shorter side of 384; `faintest_edge` in gradient, of which a step from black to white has
    1020; the tones `darkest_line` and `shading` in [0, 1].
    """

    smooth_px: float
    stroke_px: float
    faintest_edge: float
    pressure: float
    darkest_line: float
    shading: float


_PENCILS = (
    _Pencil(0, 2, 10, 0.28, 0.60, 0.75),
    _Pencil(1, 3, 15, 0.36, 0.70, 0.60),
    _Pencil(2, 4, 20, 0.44, 0.80, 0.42),
    _Pencil(3, 5, 28, 0.50, 0.85, 0.22),
    _Pencil(4, 6, 36, 0.55, 0.85, 0.00),
)


def sketch(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image as a pencil drawing: straight strokes along its edges, hatching for its tones; `rng` is not used.

    Severity 1 is a shaded drawing with all detail. With each step the shading fades and a median, which keeps edges,
    takes more detail away, until severity 5 has bare contours on white paper. Everything up to the last shading is
    done on integers: OpenCV's floating point depends on threads, on the processor and on where an array lies in
    memory, and here a last bit can turn a stroke.

    Source: strokes by direction after Lu, Xu and Jia, "Combining Sketch and Tone for Pencil Drawing Production"
    (NPAR 2012), section 3.1; the hatching is ours.
    """
    pencil = _PENCILS[severity - 1]
    unit = min(pixels.shape[:2]) / MAX_SHORTER_SIDE_PX
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    grey = cv2.medianBlur(grey, 2 * round(pencil.smooth_px * unit) + 1)
    strokes = _strokes(grey, max(2, round(pencil.stroke_px * unit)))
    busy = cv2.GaussianBlur(strokes.astype(np.uint16), (0, 0), max(2.0, _BUSY_PX * unit))
    touch = np.array([pencil.faintest_edge, _BUSY_FLOOR, pencil.pressure, pencil.darkest_line], np.float32)
    return _drawn(strokes, busy, _shading(grey, pencil, unit), touch)


@njit(cache=True, nogil=True)
def _drawn(strokes, busy, shading, touch):  # type: ignore[no-untyped-def]
    """The shading with the strokes over it; where much is going on, each stroke is drawn more lightly."""
    faintest, floor, pressure, darkest = touch
    height, width = strokes.shape
    drawing = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            strength = max(strokes[y, x] - faintest, np.float32(0)) / (np.float32(busy[y, x]) + floor)
            line = np.float32(1) - min(strength * pressure, darkest)
            drawing[y, x, :] = np.uint8(np.rint(line * shading[y, x] * np.float32(255)))
    return drawing


def _strokes(grey: UInt8[np.ndarray, "height width"], reach_px: int) -> Float32[np.ndarray, "height width"]:
    """Edge strength redrawn with straight strokes: every pixel gives its gradient to the direction that fits best."""
    gradient = np.pad(_gradient(grey), reach_px, mode="symmetric")
    offsets = [_line_offsets(reach_px, math.pi * i / _N_DIRECTIONS) for i in range(_N_DIRECTIONS)]
    ends = np.cumsum([len(line) for line in offsets])
    return _redrawn(gradient, np.concatenate(offsets), ends, reach_px)


def _gradient(grey: UInt8[np.ndarray, "height width"]) -> Int32[np.ndarray, "height width"]:
    """Length of the Sobel gradient, rounded; a step from black to white has 1020."""
    across = cv2.Sobel(grey, cv2.CV_16S, 1, 0).astype(np.float32)
    down = cv2.Sobel(grey, cv2.CV_16S, 0, 1).astype(np.float32)
    gradient: np.ndarray = np.rint(np.sqrt(across**2 + down**2)).astype(np.int32)
    return gradient


def _shading(
    grey: UInt8[np.ndarray, "height width"], pencil: _Pencil, unit: float
) -> Float32[np.ndarray, "height width"]:
    """White paper with the tones hatched on it: one direction in the lights, a second over it in the darks."""
    darkness = 1 - grey.astype(np.float32) / 255
    if pencil.shading == 0:
        return np.ones_like(darkness)
    grain = paper_grain(*grey.shape)
    reach_px = max(3, round(_HATCH_PX * unit))
    hatching = _hatch(grain, reach_px, math.pi / 4)
    hatching += _hatch(grain, reach_px, math.pi / 9) * np.clip(2 * darkness - 1, 0, 1)
    tone = darkness * (1 + _HATCH_CONTRAST * hatching) - _PAPER_DARKNESS
    shading: np.ndarray = 1 - pencil.shading * np.clip(tone, 0, 1)
    return shading


def _hatch(
    grain: Int32[np.ndarray, "height width"], reach_px: int, angle: float
) -> Float32[np.ndarray, "height width"]:
    """Paper grain drawn out along one direction, mean 0 and variance 1."""
    n_pixels = len(_line_offsets(reach_px, angle))
    uniform_std = 2**16 / math.sqrt(12)
    hatch: np.ndarray = _mean_along(grain, reach_px, angle) * (math.sqrt(n_pixels) / uniform_std)
    return hatch


def _mean_along(
    field: Int32[np.ndarray, "height width"], reach_px: int, angle: float
) -> Float32[np.ndarray, "height width"]:
    """Mean over the straight line through each pixel, `reach_px` to both sides; mirrored at the borders."""
    padded = np.pad(field, reach_px, mode="symmetric")
    return _line_means(padded, _line_offsets(reach_px, angle), reach_px)


def _line_offsets(reach_px: int, angle: float) -> Int64[np.ndarray, "n_pixels 2"]:
    """The (down, right) steps to the pixels of a straight line, each pixel once; the angle counter-clockwise."""
    steps = range(-reach_px, reach_px + 1)
    pixels = {(-round(step * math.sin(angle)), round(step * math.cos(angle))) for step in steps}
    return np.array(sorted(pixels), np.int64)


@njit(cache=True, nogil=True)
def _line_sums(padded, offsets, y, reach_px, sums):  # type: ignore[no-untyped-def]
    """Into `sums`, for row `y` of the field inside the padding, the sum over the line through each of its pixels."""
    sums[:] = 0
    for k in range(offsets.shape[0]):
        left = reach_px + offsets[k, 1]
        line = padded[y + reach_px + offsets[k, 0], left : left + sums.size]
        for x in range(sums.size):
            sums[x] += line[x]


@njit(cache=True, nogil=True)
def _line_means(padded, offsets, reach_px):  # type: ignore[no-untyped-def]
    height, width = padded.shape[0] - 2 * reach_px, padded.shape[1] - 2 * reach_px
    means = np.empty((height, width), np.float32)
    sums = np.empty(width, np.int32)
    for y in range(height):
        _line_sums(padded, offsets, y, reach_px, sums)
        for x in range(width):
            means[y, x] = np.float32(sums[x]) / np.float32(offsets.shape[0])
    return means


@njit(cache=True, nogil=True)
def _redrawn(padded, offsets, ends, reach_px):  # type: ignore[no-untyped-def]
    """What `_strokes` returns for a padded gradient; the lines of direction i are `offsets` up to `ends[i]`."""
    height, width = padded.shape[0] - 2 * reach_px, padded.shape[1] - 2 * reach_px
    best = np.zeros(padded.shape, np.uint8)
    strongest = np.empty(width, np.float32)
    sums = np.empty(width, np.int32)
    for y in range(height):
        strongest[:] = -1
        for i in range(ends.size):
            line = offsets[ends[i - 1] if i else 0 : ends[i]]
            _line_sums(padded, line, y, reach_px, sums)
            for x in range(width):
                mean = np.float32(sums[x]) / np.float32(line.shape[0])
                if mean > strongest[x]:
                    strongest[x], best[y + reach_px, x + reach_px] = mean, i
    _mirror(best, reach_px)
    strokes = np.zeros((height, width), np.float32)
    for i in range(ends.size):
        line = offsets[ends[i - 1] if i else 0 : ends[i]]
        given = padded * (best == i)
        for y in range(height):
            _line_sums(given, line, y, reach_px, sums)
            for x in range(width):
                strokes[y, x] += np.float32(sums[x]) / np.float32(line.shape[0])
    return strokes


@njit(cache=True, nogil=True)
def _mirror(padded, reach_px):  # type: ignore[no-untyped-def]
    """Fill the padding with what lies inside the border."""
    for k in range(reach_px):
        padded[:, reach_px - 1 - k] = padded[:, reach_px + k]
        padded[:, padded.shape[1] - reach_px + k] = padded[:, padded.shape[1] - reach_px - 1 - k]
    for k in range(reach_px):
        padded[reach_px - 1 - k] = padded[reach_px + k]
        padded[padded.shape[0] - reach_px + k] = padded[padded.shape[0] - reach_px - 1 - k]
