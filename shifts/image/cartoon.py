"""A scene as a cartoon: few colours, each of them flat, and dark outlines."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from numba import njit

from shifts.canvas import MAX_SHORTER_SIDE_PX
from shifts.image.flow import DIRECTIONS, contour_directions, mean_along
from shifts.image.kuwahara import kuwahara

_ROUNDS = 6
_VIVID_PERCENT = 130
_INK = 24
_FLOW_PX = 3
_LINE_REACH_PX = 5
_SHORTEST_LINE_PX = 14
_LEVEL = 64
_FAINTEST_EDGE = 3 * _LEVEL


class _Pen(NamedTuple):
    """How a cartoon is drawn at one severity.

    Lengths in pixels at a shorter side of 384.
    """

    flat_px: float
    n_colours: int
    line_px: float


_PENS = (
    _Pen(2, 32, 0.9),
    _Pen(3, 20, 1.1),
    _Pen(4, 14, 1.3),
    _Pen(5, 10, 1.6),
    _Pen(7, 6, 2.0),
)


def cartoon(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image in few flat, vivid colours inside dark outlines; `rng` is not used.

    With severity areas get larger and colours fewer, from 32 to 6, and outlines broader. The colours are the image's
    own, found by k-means; the outlines are what a difference of Gaussians finds, averaged along the contours so that
    they are clean, without those that are too short. Everything is done on integers.

    Source: abstraction, then quantised colours and DoG lines after Winnemöller, Olsen and Gooch, "Real-Time Video
    Abstraction" (SIGGRAPH 2006); lines along the flow after Kang, Lee and Chui, "Coherent Line Drawing" (NPAR 2007).
    """
    pen = _PENS[severity - 1]
    unit = min(pixels.shape[:2]) / MAX_SHORTER_SIDE_PX
    flat_px = max(1, round(pen.flat_px * unit))
    fine = kuwahara(np.ascontiguousarray(pixels), max(1, flat_px // 2))
    lines = _outlines(cv2.cvtColor(fine, cv2.COLOR_RGB2GRAY), pen, unit)
    return _inked(_in_few_colours(kuwahara(fine, flat_px), pen.n_colours, flat_px), lines)


def _outlines(grey: UInt8[np.ndarray, "height width"], pen: _Pen, unit: float) -> UInt8[np.ndarray, "height width"]:
    """How much ink lies on each pixel, 255 for a full line."""
    sigma = max(0.5, pen.line_px * unit)
    fine = grey.astype(np.uint16) * _LEVEL
    narrow, wide = (cv2.GaussianBlur(fine, (0, 0), sigma * factor).astype(np.int32) for factor in (1, 1.6))
    directions = contour_directions(grey, max(1, round(_FLOW_PX * unit)))
    reach_px = max(1, round(_LINE_REACH_PX * unit))
    dark = mean_along(wide - narrow, _FAINTEST_EDGE // 2, directions, DIRECTIONS, reach_px)
    lines = np.clip((dark - _FAINTEST_EDGE) * 2, 0, 255).astype(np.uint8)
    return _without_specks(lines, round(_SHORTEST_LINE_PX * unit * sigma))


def _without_specks(lines: UInt8[np.ndarray, "height width"], least_px: int) -> UInt8[np.ndarray, "height width"]:
    """The lines without connected pieces of fewer than `least_px` pixels."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats((lines > 0).astype(np.uint8), connectivity=8)
    kept = statistics[:, cv2.CC_STAT_AREA] >= least_px
    return lines * kept[labels]


def _in_few_colours(
    pixels: UInt8[np.ndarray, "height width 3"], n_colours: int, tidy_px: int
) -> UInt8[np.ndarray, "height width 3"]:
    """The image in its own `n_colours` main colours, made vivid, without shreds narrower than about `tidy_px`.

    k-means on a histogram of 32 x 32 x 32 bins; it starts from the fullest bin and then from those that most pixels
    are furthest from, and no draw is needed. Bins weigh by the root of their pixels, or small things would lose their
    colours to large skies and walls. The colours are numbered by luma, so that a median of numbers tidies up.
    """
    bins, counts, sums = _histogram(pixels)
    filled = np.flatnonzero(counts)
    weights = np.sqrt(counts[filled]).astype(np.int64)
    nearest, colours = _k_means(sums[filled] // counts[filled, np.newaxis], weights, n_colours, _ROUNDS)
    luma = colours @ np.array([77, 150, 29]) // 256
    order = np.argsort(luma, kind="stable")
    numbers = np.zeros(counts.size, np.uint8)
    numbers[filled] = np.argsort(order)[nearest]
    grey = luma[order, np.newaxis]
    vivid = np.clip(grey + (colours[order] - grey) * _VIVID_PERCENT // 100, 0, 255).astype(np.uint8)
    return vivid[cv2.medianBlur(numbers[bins], 2 * tidy_px + 1)]


@njit(cache=True, nogil=True)
def _histogram(pixels):  # type: ignore[no-untyped-def]
    """Each pixel's bin of 32 x 32 x 32, how many pixels each has, and the sums of their channels."""
    height, width, _ = pixels.shape
    bins = np.empty((height, width), np.int32)
    counts = np.zeros(1 << 15, np.int64)
    sums = np.zeros((1 << 15, 3), np.int64)
    for y in range(height):
        for x in range(width):
            i = 0
            for c in range(3):
                i = (i << 5) + (pixels[y, x, c] >> 3)
            bins[y, x] = i
            counts[i] += 1
            for c in range(3):
                sums[i, c] += pixels[y, x, c]
    return bins, counts, sums


@njit(cache=True, nogil=True)
def _k_means(points, weights, n_colours, rounds):  # type: ignore[no-untyped-def]
    """For each point the number of its colour, and the colours, (n_colours, 3) int64."""
    n_points = points.shape[0]
    colours = np.zeros((n_colours, 3), np.int64)
    nearest = np.zeros(n_points, np.int64)
    distance = np.full(n_points, 1 << 20, np.int64)
    for k in range(n_colours):
        colours[k] = points[np.argmax(weights * distance)]
        for i in range(n_points):
            distance[i] = min(distance[i], _square(points[i], colours[k]))
    for _ in range(rounds):
        sums = np.zeros((n_colours, 4), np.int64)
        for i in range(n_points):
            least = 1 << 20
            for k in range(n_colours):
                square = _square(points[i], colours[k])
                if square < least:
                    least, nearest[i] = square, k
            for c in range(3):
                sums[nearest[i], c] += weights[i] * points[i, c]
            sums[nearest[i], 3] += weights[i]
        for k in range(n_colours):
            for c in range(3):
                if sums[k, 3] > 0:
                    colours[k, c] = sums[k, c] // sums[k, 3]
    return nearest, colours


@njit(cache=True, nogil=True)
def _square(a, b):  # type: ignore[no-untyped-def]
    """Squared distance of two colours, green weighing most and blue least."""
    return 2 * (a[0] - b[0]) ** 2 + 4 * (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2


@njit(cache=True, nogil=True)
def _inked(pixels, lines):  # type: ignore[no-untyped-def]
    height, width, _ = pixels.shape
    picture = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            ink = np.int64(lines[y, x])
            for c in range(3):
                picture[y, x, c] = (pixels[y, x, c] * (255 - ink) + _INK * ink + 127) // 255
    return picture
