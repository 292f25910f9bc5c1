"""A scene in watercolour: washes of thin paint that runs, settles in the paper and dries darker at its rims."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from numba import njit

from shifts.canvas import MAX_SHORTER_SIDE_PX
from shifts.image.kuwahara import kuwahara
from shifts.image.paper import paper_grain, stains

_PAPER = np.array([250, 248, 241], np.int64)
_FULL = 1 << 8
_CLOUD_PX = 60
_BLOT_PX = 14
_HAND_PX = 16
_VIVID_PERCENT = 140


class _Wash(NamedTuple):
    """How a watercolour is painted at one severity.

    Lengths in pixels at a shorter side of 384. `paint` is the share of paint in the water and `dry` the luma from
    which the paper begins to stay bare, both of 256.
    """

    flat_px: float
    sway_px: float
    margin_px: float
    paint: int
    dry: int


_WASHES = (
    _Wash(2.0, 1.0, 6, 226, 252),
    _Wash(2.8, 2.0, 9, 206, 246),
    _Wash(3.6, 3.0, 12, 186, 240),
    _Wash(4.8, 4.2, 16, 166, 233),
    _Wash(6.0, 5.5, 21, 146, 226),
)


def watercolour(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image as a watercolour, paler and looser with severity; `rng` is not used.

    Flat washes with swaying contours; their rims are darker, where water carries pigment as it dries. Paint runs into
    clouds and settles in the hollows of the paper. Lights and an uneven margin stay bare. The paper is a hash of the
    coordinates, and everything is done on integers.

    Source: swaying contours, dark rims, and density of pigment from turbulence, dispersion and paper after Bousseau,
    Kaplan, Thollot and Sillion, "Interactive Watercolor Rendering with Temporal Coherence and Abstraction"
    (NPAR 2006), section 3; margin and bare lights are ours.
    """
    wash = _WASHES[severity - 1]
    height, width = pixels.shape[:2]
    unit = min(height, width) / MAX_SHORTER_SIDE_PX
    flat = kuwahara(_swayed(pixels, wash.sway_px * unit, _HAND_PX * unit), max(1, round(wash.flat_px * unit)))
    clouds = stains(height, width, _CLOUD_PX * unit, sheet=1)
    blots = stains(height, width, _BLOT_PX * unit, sheet=2)
    margin_px = max(1, round(wash.margin_px * unit))
    return _painted(
        flat, _rims(flat, unit), clouds, blots, _relief(height, width, unit), margin_px, wash.paint, wash.dry, _PAPER
    )


def _swayed(
    pixels: UInt8[np.ndarray, "height width 3"], sway_px: float, hand_px: float
) -> UInt8[np.ndarray, "height width 3"]:
    """The image as an unsteady hand would trace it: every pixel taken from up to `sway_px` away."""
    height, width = pixels.shape[:2]
    reach = round(2 * sway_px * _FULL)
    down, right = (stains(height, width, hand_px, sheet).astype(np.int32) - 128 for sheet in (3, 4))
    y, x = np.indices((height, width), dtype=np.int32, sparse=True)
    rows = np.clip(y + (down * reach + 2**15 >> 16), 0, height - 1)
    columns = np.clip(x + (right * reach + 2**15 >> 16), 0, width - 1)
    return pixels[rows, columns]


def _rims(flat: UInt8[np.ndarray, "height width 3"], unit: float) -> UInt8[np.ndarray, "height width"]:
    """How steep the picture is at each pixel: where washes end."""
    soft = cv2.GaussianBlur(cv2.cvtColor(flat, cv2.COLOR_RGB2GRAY), (0, 0), max(0.6, unit))
    side = 2 * max(1, round(unit)) + 1
    rims: np.ndarray = cv2.morphologyEx(soft, cv2.MORPH_GRADIENT, np.ones((side, side), np.uint8))
    return rims


def _relief(height: int, width: int, unit: float) -> UInt8[np.ndarray, "height width"]:
    """The height of the paper, with a mean of 128: felt marks with fine grain on them."""
    grain = (paper_grain(height, width, sheet=5) + 2**15 >> 8).astype(np.uint8)
    felt = cv2.GaussianBlur(grain, (0, 0), max(0.7, 1.1 * unit)).astype(np.int32)
    return np.clip(128 + (felt - 128) * 2 + (grain.astype(np.int32) - 128 >> 2), 0, 255).astype(np.uint8)


@njit(cache=True, nogil=True)
def _painted(flat, rims, clouds, blots, relief, margin_px, paint, dry, paper):  # type: ignore[no-untyped-def]
    """The washes on the paper; `density` is how much pigment lies there, `wet` how much of the paint there is."""
    height, width, _ = flat.shape
    picture = np.empty((height, width, 3), np.uint8)
    colour = np.empty(3, np.int64)
    for y in range(height):
        for x in range(width):
            for c in range(3):
                colour[c] = flat[y, x, c]
            luma = (77 * colour[0] + 150 * colour[1] + 29 * colour[2]) >> 8
            hollow = 128 - np.int64(relief[y, x])
            cloud, blot = np.int64(clouds[y, x]) - 128, np.int64(blots[y, x]) - 128
            rim = np.int64(min(rims[y, x], 80))
            inside = min(x, y, width - 1 - x, height - 1 - y)
            depth = inside * _FULL // margin_px + cloud + blot // 2 - _FULL
            drying = max(0, 96 - abs(depth - 96)) // 2
            density = _FULL + cloud * 2 // 3 + blot // 3 + 4 * rim + hollow * 2 // 5 + drying
            wet = min(max(depth * 4, 0), _FULL)
            wet = wet * min(max((dry + blot // 6 + hollow // 12 - luma) * 16, 40), _FULL) >> 8
            for c in range(3):
                vivid = min(255, max(0, luma + (colour[c] - luma) * _VIVID_PERCENT // 100))
                dense = vivid - ((vivid * (255 - vivid) * (density - _FULL)) >> 16)
                cover = wet * paint >> 8
                thin = 255 - ((255 - min(255, max(0, dense))) * cover >> 8)
                picture[y, x, c] = min(255, max(0, (thin * paper[c] >> 8) - hollow // 12 + 1))
    return picture
