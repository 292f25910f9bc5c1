"""Other ways to depict the same scene: the domain shifts."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Int32, UInt8

_CANVAS_PX = 384
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
    unit = min(pixels.shape[:2]) / _CANVAS_PX
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    grey = cv2.medianBlur(grey, 2 * round(pencil.smooth_px * unit) + 1)
    paper = _lines(grey, pencil, unit) * _shading(grey, pencil, unit)
    return np.repeat(np.rint(paper * 255).astype(np.uint8)[..., np.newaxis], 3, axis=2)


def _lines(
    grey: UInt8[np.ndarray, "height width"], pencil: _Pencil, unit: float
) -> Float32[np.ndarray, "height width"]:
    """White paper with the contours on it; where much is going on, each stroke is drawn more lightly."""
    strokes = _strokes(grey, max(2, round(pencil.stroke_px * unit)))
    busy = cv2.GaussianBlur(strokes.astype(np.uint16), (0, 0), max(2.0, _BUSY_PX * unit)).astype(np.float32)
    strength = np.maximum(strokes - pencil.faintest_edge, 0) / (busy + _BUSY_FLOOR)
    lines: np.ndarray = 1 - np.clip(strength * pencil.pressure, 0, pencil.darkest_line)
    return lines


def _strokes(grey: UInt8[np.ndarray, "height width"], reach_px: int) -> Float32[np.ndarray, "height width"]:
    """Edge strength redrawn with straight strokes: every pixel gives its gradient to the direction that fits best."""
    gradient = _gradient(grey)
    angles = [math.pi * i / _N_DIRECTIONS for i in range(_N_DIRECTIONS)]
    best = np.argmax([_mean_along(gradient, reach_px, angle) for angle in angles], axis=0)
    strokes = np.zeros(grey.shape, np.float32)
    for i, angle in enumerate(angles):
        strokes += _mean_along(gradient * (best == i), reach_px, angle)
    return strokes


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
    grain = _paper_grain(*grey.shape)
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


def _paper_grain(height: int, width: int) -> Int32[np.ndarray, "height width"]:
    """White noise in [-2^15, 2^15), a hash of the coordinates: the paper is no random choice of the shift."""
    y, x = np.indices((height, width), dtype=np.uint32, sparse=True)
    mixed = x * np.uint32(374761393) + y * np.uint32(668265263)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(1274126177)
    mixed ^= mixed >> np.uint32(16)
    grain: np.ndarray = (mixed & np.uint32(0xFFFF)).astype(np.int32) - 2**15
    return grain


def _mean_along(
    field: Int32[np.ndarray, "height width"], reach_px: int, angle: float
) -> Float32[np.ndarray, "height width"]:
    """Mean over the straight line through each pixel, `reach_px` to both sides; mirrored at the borders."""
    height, width = field.shape
    padded = np.pad(field, reach_px, mode="symmetric")
    total = np.zeros_like(field)
    offsets = _line_offsets(reach_px, angle)
    for down, right in offsets:
        top, left = reach_px + down, reach_px + right
        total += padded[top : top + height, left : left + width]
    return total.astype(np.float32) / np.float32(len(offsets))


def _line_offsets(reach_px: int, angle: float) -> list[tuple[int, int]]:
    """The (down, right) steps to the pixels of a straight line, each pixel once; the angle counter-clockwise."""
    steps = range(-reach_px, reach_px + 1)
    return sorted({(-round(step * math.sin(angle)), round(step * math.cos(angle))) for step in steps})
