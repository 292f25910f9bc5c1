"""Where a brush or pen goes: the direction of the contours around every pixel, and the mean along it."""

from __future__ import annotations

import math

import cv2
import numpy as np
from jaxtyping import Int32, Int64, UInt8
from numba import njit

N_DIRECTIONS = 16
SHIFT = 10
UNIT = 1 << SHIFT


def _unit_vectors(turn: float) -> Int64[np.ndarray, "n_directions 2"]:
    """(right, down) of `N_DIRECTIONS` directions over `turn` radians, each of length `UNIT`."""
    angles = [turn * i / N_DIRECTIONS for i in range(N_DIRECTIONS)]
    return np.array([[round(UNIT * math.cos(angle)), round(UNIT * math.sin(angle))] for angle in angles], np.int64)


DIRECTIONS = _unit_vectors(math.pi)
_DOUBLED = _unit_vectors(2 * math.pi)


def contour_directions(grey: UInt8[np.ndarray, "height width"], reach_px: int) -> UInt8[np.ndarray, "height width"]:
    """The index into `DIRECTIONS` of the way along the contours around each pixel; 0, to the right, where it is flat.

    Perpendicular to the main axis of the structure tensor, which is a mean over `reach_px` to all sides, taken twice.
    Everything is done on integers, and the angle is found among the directions, not computed: by its last bit it would
    fall to one side or the other of a border between two directions, and turn a whole stroke.

    Source: as a guide for strokes Kyprianidis and Döllner, "Image Abstraction by Structure Adaptive Filtering"
    (TPCG 2008), section 3.1.
    """
    across, down = (cv2.Sobel(grey, cv2.CV_16S, *order).astype(np.int32) for order in ((1, 0), (0, 1)))
    stretch, shear = across * across - down * down, 2 * across * down
    for _ in range(2):
        stretch, shear = (_mean_around(part, reach_px) for part in (stretch, shear))
    return _best_directions(stretch, shear, _DOUBLED)


def _mean_around(field: Int32[np.ndarray, "height width"], reach_px: int) -> Int32[np.ndarray, "height width"]:
    """The floor of the mean over a square, along each axis in turn; sums along one axis cannot overflow."""
    side = 2 * reach_px + 1
    for size in ((side, 1), (1, side)):
        field = cv2.boxFilter(field, cv2.CV_32S, size, normalize=False) // side
    return field


@njit(cache=True, nogil=True)
def _best_directions(stretch, shear, doubled):  # type: ignore[no-untyped-def]
    """Which direction's doubled angle is nearest to that of the tensor, turned by half a circle: along, not across."""
    height, width = stretch.shape
    best = np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            top = 0
            for i in range(doubled.shape[0]):
                fit = -(stretch[y, x] * doubled[i, 0] + shear[y, x] * doubled[i, 1])
                if fit > top:
                    top, best[y, x] = fit, i
    return best


@njit(cache=True, nogil=True)
def mean_along(field, least, directions, vectors, reach_px):  # type: ignore[no-untyped-def]
    """The mean over the streamline through each pixel, `reach_px` steps to both sides or up to the border.

    Args:
        field: (height, width) int32.
        least: pixels below keep their value, which saves most of the work where only the peaks are of interest.
        directions: as `contour_directions` gives them.
        vectors: `DIRECTIONS`.
        reach_px: in pixels.

    Returns:
        (height, width) int32, rounded down.
    """
    height, width = field.shape
    means = np.empty((height, width), np.int32)
    for y in range(height):
        for x in range(width):
            total, count = np.int64(field[y, x]), 1
            if total < least:
                means[y, x] = total
                continue
            for sense in (-1, 1):
                right, down = vectors[directions[y, x], 0] * sense, vectors[directions[y, x], 1] * sense
                fine_x, fine_y = x * UNIT + UNIT // 2, y * UNIT + UNIT // 2
                for _ in range(reach_px):
                    fine_x += right
                    fine_y += down
                    at_x, at_y = fine_x >> SHIFT, fine_y >> SHIFT
                    if at_x < 0 or at_y < 0 or at_x >= width or at_y >= height:
                        break
                    total += field[at_y, at_x]
                    count += 1
                    next_right, next_down = vectors[directions[at_y, at_x], 0], vectors[directions[at_y, at_x], 1]
                    turn = 1 if next_right * right + next_down * down >= 0 else -1
                    right, down = next_right * turn, next_down * turn
            means[y, x] = total // count
    return means
