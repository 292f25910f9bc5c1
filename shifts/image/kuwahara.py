"""The Kuwahara filter, which makes paint of a photo: texture becomes flat, and edges become crisp."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Int32, UInt8
from numba import njit

_LONGEST_REACH_PX = 90


def kuwahara(pixels: UInt8[np.ndarray, "height width 3"], reach_px: int) -> UInt8[np.ndarray, "height width 3"]:
    """The image where each pixel has the mean colour of the calmest of nine squares around it.

    The squares have sides of 2 `reach_px` + 1, one about the pixel and eight about the points `reach_px` away from it,
    on a circle; the calmest is the one whose variance, summed over the channels, is least, and of equals the first.
    The classic filter has four squares at the corners, and leaves blocks where a circle leaves dabs. Sums are
    integers, for which `reach_px` counts as 90 if it is more. Borders are mirrored.

    Source: Kuwahara, Hachimura, Eiho and Kinoshita, "Processing of RI-angiocardiographic images" (1976).
    """
    reach_px = min(reach_px, _LONGEST_REACH_PX)
    margin = 2 * reach_px
    padded = cv2.copyMakeBorder(pixels, margin, margin, margin, margin, cv2.BORDER_REFLECT)
    wide = padded.astype(np.uint16)
    side = 2 * reach_px + 1
    sums, squares = (cv2.boxFilter(field, cv2.CV_32S, (side, side), normalize=False) for field in (wide, wide * wide))
    means, spread = _moments(sums, squares, side * side)
    return _calmest(means, spread, _circle(reach_px), margin)


def _circle(reach_px: int) -> Int32[np.ndarray, "nine 2"]:
    """(down, right) of the nine squares."""
    slant = round(reach_px * 0.7071)
    straight = [(reach_px, 0), (-reach_px, 0), (0, reach_px), (0, -reach_px)]
    slanted = [(slant, slant), (slant, -slant), (-slant, slant), (-slant, -slant)]
    return np.array([(0, 0), *straight, *slanted], np.int32)


@njit(cache=True, nogil=True)
def _moments(sums, squares, count):  # type: ignore[no-untyped-def]
    """Means, rounded, and variances, summed over the channels and times `count` squared, from sums over squares."""
    height, width, _ = sums.shape
    means = np.empty((height, width, 3), np.uint8)
    spread = np.empty((height, width), np.int64)
    for y in range(height):
        for x in range(width):
            total = np.int64(0)
            for c in range(3):
                sum_ = np.int64(sums[y, x, c])
                total += count * np.int64(squares[y, x, c]) - sum_ * sum_
                means[y, x, c] = int(sum_ / count + 0.5)
            spread[y, x] = total
    return means, spread


@njit(cache=True, nogil=True)
def _calmest(means, spread, offsets, margin):  # type: ignore[no-untyped-def]
    height, width = spread.shape[0] - 2 * margin, spread.shape[1] - 2 * margin
    chosen = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            best_y, best_x = y + margin, x + margin
            least = spread[best_y, best_x]
            for i in range(1, offsets.shape[0]):
                at_y, at_x = y + margin + offsets[i, 0], x + margin + offsets[i, 1]
                if spread[at_y, at_x] < least:
                    least, best_y, best_x = spread[at_y, at_x], at_y, at_x
            for c in range(3):
                chosen[y, x, c] = means[best_y, best_x, c]
    return chosen
