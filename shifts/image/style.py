"""Other ways to depict the same scene: the domain shifts."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

_CANVAS_PX = 384
_N_DIRECTIONS = 8
_HATCH_PX = 9
_HATCH_CONTRAST = 0.22
_PAPER_DARKNESS = 0.05
_BUSY_PX = 10
_BUSY_FLOOR = 0.06


class _Pencil(NamedTuple):
    """How a drawing is made at one severity; lengths in pixels at a shorter side of 384, tones in [0, 1]."""

    smooth_px: float
    smooth_tone: float
    stroke_px: float
    faintest_edge: float
    pressure: float
    darkest_line: float
    shading: float


_PENCILS = (
    _Pencil(1.0, 0.04, 2, 0.010, 0.28, 0.60, 0.75),
    _Pencil(1.5, 0.07, 3, 0.015, 0.36, 0.70, 0.60),
    _Pencil(2.0, 0.10, 4, 0.020, 0.44, 0.80, 0.42),
    _Pencil(2.7, 0.15, 5, 0.028, 0.50, 0.85, 0.22),
    _Pencil(3.5, 0.20, 6, 0.036, 0.55, 0.85, 0.00),
)


def sketch(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image as a pencil drawing: straight strokes along its edges, hatching for its tones; `rng` is not used.

    Severity 1 is a shaded drawing with all detail. With each step the shading fades and an edge-preserving filter
    takes more detail away, until severity 5 has bare contours on white paper.

    Source: strokes by direction after Lu, Xu and Jia, "Combining Sketch and Tone for Pencil Drawing Production"
    (NPAR 2012), section 3.1; the hatching is ours.
    """
    pencil = _PENCILS[severity - 1]
    unit = min(pixels.shape[:2]) / _CANVAS_PX
    grey: np.ndarray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    grey = cv2.bilateralFilter(grey, -1, pencil.smooth_tone, max(1.0, pencil.smooth_px * unit))
    paper = _lines(grey, pencil, unit) * _shading(grey, pencil, unit)
    return np.repeat(np.rint(paper * 255).astype(np.uint8)[..., np.newaxis], 3, axis=2)


def _lines(
    grey: Float32[np.ndarray, "height width"], pencil: _Pencil, unit: float
) -> Float32[np.ndarray, "height width"]:
    """White paper with the contours on it; where much is going on, each stroke is drawn more lightly."""
    strokes = _strokes(grey, max(2, round(pencil.stroke_px * unit)))
    busy = cv2.GaussianBlur(strokes, (0, 0), max(2.0, _BUSY_PX * unit))
    strength = np.maximum(strokes - pencil.faintest_edge, 0) / (busy + _BUSY_FLOOR)
    lines: np.ndarray = 1 - np.clip(strength * pencil.pressure, 0, pencil.darkest_line)
    return lines


def _strokes(grey: Float32[np.ndarray, "height width"], reach_px: int) -> Float32[np.ndarray, "height width"]:
    """Edge strength redrawn with straight strokes: every pixel gives its gradient to the direction that fits best."""
    gradient = cv2.magnitude(
        cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=0.25),
        cv2.Sobel(grey, cv2.CV_32F, 0, 1, scale=0.25),
    )
    kernels = [_line_kernel(reach_px, math.pi * i / _N_DIRECTIONS) for i in range(_N_DIRECTIONS)]
    best = np.argmax([cv2.filter2D(gradient, -1, kernel) for kernel in kernels], axis=0)
    strokes = np.zeros_like(grey)
    for i, kernel in enumerate(kernels):
        strokes += cv2.filter2D(gradient * (best == i), -1, kernel)
    return strokes


def _shading(
    grey: Float32[np.ndarray, "height width"], pencil: _Pencil, unit: float
) -> Float32[np.ndarray, "height width"]:
    """White paper with the tones hatched on it: one direction in the lights, a second over it in the darks."""
    if pencil.shading == 0:
        return np.ones_like(grey)
    grain = _paper_grain(*grey.shape)
    reach_px = max(3, round(_HATCH_PX * unit))
    darkness = 1 - grey
    hatching = _hatch(grain, reach_px, math.pi / 4)
    hatching += _hatch(grain, reach_px, math.pi / 9) * np.clip(2 * darkness - 1, 0, 1)
    tone = darkness * (1 + _HATCH_CONTRAST * hatching) - _PAPER_DARKNESS
    shading: np.ndarray = 1 - pencil.shading * np.clip(tone, 0, 1)
    return shading


def _hatch(
    grain: Float32[np.ndarray, "height width"], reach_px: int, angle: float
) -> Float32[np.ndarray, "height width"]:
    """Paper grain drawn out along one direction, mean 0 and variance 1."""
    kernel = _line_kernel(reach_px, angle)
    hatch: np.ndarray = cv2.filter2D(grain, -1, kernel) * math.sqrt(np.count_nonzero(kernel))
    return hatch


def _line_kernel(reach_px: int, angle: float) -> Float32[np.ndarray, "side side"]:
    """A straight line through the centre of a (2 reach + 1)-sided square, summing to 1; angle in radians."""
    along = np.arange(-reach_px, reach_px + 1)
    kernel = np.zeros((2 * reach_px + 1, 2 * reach_px + 1), np.float32)
    rows = reach_px - np.rint(along * np.sin(angle)).astype(int)
    columns = reach_px + np.rint(along * np.cos(angle)).astype(int)
    kernel[rows, columns] = 1
    kernel /= kernel.sum()
    return kernel


def _paper_grain(height: int, width: int) -> Float32[np.ndarray, "height width"]:
    """White noise of mean 0 and variance 1, a hash of the coordinates: paper is no random choice of the shift."""
    y, x = np.indices((height, width), dtype=np.uint32, sparse=True)
    mixed = x * np.uint32(374761393) + y * np.uint32(668265263)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(1274126177)
    uniform = ((mixed ^ (mixed >> np.uint32(16))) & np.uint32(0xFFFF)).astype(np.float32) / 0xFFFF
    grain: np.ndarray = (uniform - 0.5) * math.sqrt(12)
    return grain
