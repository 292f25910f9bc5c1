"""The same scene by another light, another sensor or another hold of the camera."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from numba import njit
from PIL import Image

from shifts.canvas import MAX_SHORTER_SIDE_PX

_IRON = (
    (0.00, (0, 0, 10)),
    (0.12, (30, 0, 110)),
    (0.28, (115, 0, 155)),
    (0.45, (195, 25, 135)),
    (0.60, (232, 82, 45)),
    (0.75, (250, 150, 5)),
    (0.90, (255, 222, 75)),
    (1.00, (255, 255, 246)),
)
"""Control points of the palette: where in [0, 1], and which colour."""

_LIGHTS_SHARE = 0.005
_BRIGHT = 180
_BRIGHTER = 80
_AROUND_PX = 24
_SPOT_PX = 9
_GLOW_PX = 6
_MOONLIGHT = (0.62, 0.78, 1.0)
_LAMPLIGHT = (1.0, 0.86, 0.62)


class _Night(NamedTuple):
    """What the dark leaves of light and colour, as shares, and the noise.

    `read_noise` is a standard deviation in levels, `shot_noise` the variance that each level of light adds.
    """

    exposure: float
    colour: float
    read_noise: float
    shot_noise: float


_NIGHTS = (
    _Night(0.68, 0.70, 3.0, 0.35),
    _Night(0.53, 0.55, 4.0, 0.50),
    _Night(0.41, 0.42, 5.0, 0.65),
    _Night(0.31, 0.30, 6.0, 0.80),
    _Night(0.23, 0.20, 7.0, 0.95),
)

_ANGLES_DEGREES = (5, 10, 20, 30, 45)
_UNSTEADY = 0.1
_SHORTER_SIDES_PX = (96, 64, 48, 32, 24)


def greyscale(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image's luma on all three channels, 0.299 R + 0.587 G + 0.114 B; `rng` is not used.

    Source: ITU-R BT.601.
    """
    return np.repeat(_luma(pixels)[..., np.newaxis], 3, axis=2)


def negative(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image as on a colour film: 255 minus every value; `rng` is not used."""
    return 255 - pixels


def thermal_palette(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image's luma in the colours that thermal cameras show: black, violet, red, orange, white; `rng` is not used.

    Looks like a thermal image and is none: a dark cup of hot tea stays dark. The palette is of the kind called
    ironbow; its own luma never falls, so that what was brighter still is.
    """
    return _iron_palette()[_luma(pixels)]


def night(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The scene by moonlight, taken by a camera that sees little: dark, bluish, grainy, with a few lights on.

    Colours fade and turn blue, highlights are compressed, and noise of sensor and photons comes on top. Small spots
    that are brighter than what surrounds them, at most 1 % of the pixels, stay lit, turn warm and glow; a bright sky
    is no small spot.

    Source: blue shift after Jensen, Premože, Shirley, Thompson, Ferwerda and Stark, "Night Rendering"
    (University of Utah, UUCS-00-016), section 4; the lights are ours.
    """
    dusk = _NIGHTS[severity - 1]
    luma = _luma(pixels)
    scene = _moonlit(pixels, luma, dusk)
    scene += _lamps(luma, min(luma.shape) / MAX_SHORTER_SIDE_PX)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    noise *= np.sqrt(dusk.read_noise**2 + dusk.shot_noise * scene)
    scene += noise
    np.clip(scene, 0, 255, out=scene)
    return np.rint(scene).astype(np.uint8)


def rotation(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image turned about its centre by about 5, 10, 20, 30 or 45 degrees, to either side; bilinear.

    The side is drawn from `rng`, and so is the angle, up to a tenth more or less. The size stays. Corners are filled
    with the image mirrored at its border: black ones would be a second shift, since a model may react to them instead
    of to the turn. On integers, with weights of 1/256.

    Source: up to 30 degrees as Engstrom, Tran, Tsipras, Schmidt and Madry, arXiv 1712.02779, section 4; 45 is ours.
    """
    angle = math.radians(_ANGLES_DEGREES[severity - 1]) * rng.uniform(1 - _UNSTEADY, 1 + _UNSTEADY)
    angle *= 1 - 2 * int(rng.integers(2))
    copy = np.array(pixels, order="C")  # one kind of array: a read-only one would be compiled for again
    return _turn(copy, round(math.cos(angle) * 2**16), round(math.sin(angle) * 2**16))


def low_resolution(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image as from a thumbnail: reduced by averaging, enlarged again by bicubic interpolation; `rng` is not used.

    The shorter side goes down to 96, 64, 48, 32 or 24 pixels if it is 384, and in proportion otherwise. `pixelate`
    leaves squares with hard borders, which are new detail; here detail is only missing.
    """
    height, width = pixels.shape[:2]
    part = _SHORTER_SIDES_PX[severity - 1] / MAX_SHORTER_SIDE_PX
    small = (max(1, round(width * part)), max(1, round(height * part)))
    reduced = Image.fromarray(pixels).resize(small, Image.Resampling.BOX)
    return np.array(reduced.resize((width, height), Image.Resampling.BICUBIC))


def _luma(pixels: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width"]:
    luma: np.ndarray = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    return luma


def _iron_palette() -> UInt8[np.ndarray, "256 3"]:
    places, colours = zip(*_IRON, strict=True)
    levels = [np.interp(np.arange(256) / 255, places, channel) for channel in zip(*colours, strict=True)]
    return np.rint(np.stack(levels, axis=1)).astype(np.uint8)


def _moonlit(
    pixels: UInt8[np.ndarray, "height width 3"], luma: UInt8[np.ndarray, "height width"], dusk: _Night
) -> Float32[np.ndarray, "height width 3"]:
    """Light of the scene in levels, without lamps: colours towards grey, highlights compressed, then tinted."""
    levels = np.arange(256, dtype=np.float32) / 255
    curve = np.float32(255 * dusk.exposure) * levels * (levels + np.float32(0.3)) / (levels * 6 + 7) * 10
    moonlit: np.ndarray = curve[pixels]
    grey = curve[luma][..., np.newaxis]
    moonlit -= grey
    moonlit *= np.float32(dusk.colour)
    moonlit += grey
    moonlit *= np.array(_MOONLIGHT, np.float32)
    return moonlit


def _lamps(luma: UInt8[np.ndarray, "height width"], unit: float) -> Float32[np.ndarray, "height width 3"]:
    """What lamps add, in levels: the spots themselves, and their glow, which is wider."""
    side = 2 * max(1, round(_AROUND_PX * unit)) + 1
    around: np.ndarray = cv2.boxFilter(luma, cv2.CV_32S, (side, side), normalize=False) // side**2
    spot_px = 2 * max(1, round(_SPOT_PX * unit)) + 1
    spots = cv2.morphologyEx(luma, cv2.MORPH_TOPHAT, np.ones((spot_px, spot_px), np.uint8))
    excess = np.where(luma >= _BRIGHT, np.minimum(luma - around, spots), 0).clip(0)
    brightest = np.cumsum(np.bincount(excess.ravel(), minlength=256)[::-1])
    threshold = max(_BRIGHTER, 256 - int(np.searchsorted(brightest, _LIGHTS_SHARE * luma.size)))
    lamps = np.where(excess >= threshold, luma, 0).astype(np.uint16) << 6
    lit = cv2.GaussianBlur(lamps, (0, 0), max(0.6, unit))
    glow = cv2.GaussianBlur(lit, (0, 0), max(1.0, _GLOW_PX * unit))
    light = (lit.astype(np.float32) + 2 * glow.astype(np.float32)) / 64
    return light[..., np.newaxis] * np.array(_LAMPLIGHT, np.float32)


@njit(cache=True, nogil=True)
def _mirrored(position, side):  # type: ignore[no-untyped-def]
    """The index inside [0, side) that a mirror at each border shows at `position`."""
    position %= 2 * side
    return position if position < side else 2 * side - 1 - position


@njit(cache=True, nogil=True)
def _turn(pixels, cosine, sine):  # type: ignore[no-untyped-def]
    """Bilinear rotation by an angle whose cosine and sine are given in units of 2^-16."""
    height, width, _ = pixels.shape
    turned = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            right, down = 2 * x - (width - 1), 2 * y - (height - 1)
            fine_x = (cosine * right + sine * down + ((width - 1) << 16) + (1 << 8)) >> 9
            fine_y = (cosine * down - sine * right + ((height - 1) << 16) + (1 << 8)) >> 9
            left, top = _mirrored(fine_x >> 8, width), _mirrored(fine_y >> 8, height)
            next_left, next_top = _mirrored((fine_x >> 8) + 1, width), _mirrored((fine_y >> 8) + 1, height)
            part_x, part_y = fine_x & 255, fine_y & 255
            for c in range(3):
                above = pixels[top, left, c] * (256 - part_x) + pixels[top, next_left, c] * part_x
                below = pixels[next_top, left, c] * (256 - part_x) + pixels[next_top, next_left, c] * part_x
                turned[y, x, c] = (above * (256 - part_y) + below * part_y + (1 << 15)) >> 16
    return turned
