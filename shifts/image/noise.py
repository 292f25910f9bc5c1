"""Noise of sensors and transmission, which strikes each channel of each pixel on its own.

Such noise is nothing but a law for every level that a value can have: how likely it comes out as 0, 1, ... or 255. The
laws are written down below as functions, turned into tables of exact probabilities once for each severity, and drawn
from with one random word and one look-up per value, whatever the noise.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float64, Int64, UInt8, UInt32
from numba import njit
from scipy.special import ndtr, pdtr

from shifts.image.random import fill_words, stream_seed

_GAUSSIAN_STD = (0.08, 0.12, 0.18, 0.26, 0.38)
_PHOTONS_OF_WHITE = (60, 25, 12, 5, 3)
_IMPULSE_AMOUNT = (0.03, 0.06, 0.09, 0.17, 0.27)
_SPECKLE_STD = (0.15, 0.2, 0.35, 0.45, 0.6)

_LEVEL = np.arange(256.0)[:, np.newaxis]
_BOUND = np.arange(1.0, 256.0)
_WORD_VALUES = 2**32
_SLOT_VALUES = 2**24
_PAIRS_AT_A_TIME = 2048


def gaussian_noise(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with independent normal noise on every channel of every pixel, clipped and truncated to 8 bits.

    Source: arXiv 1903.12261, section 3; standard deviations and truncation as in imagecorruptions 1.1.2.
    """
    return _drawn(pixels, _gaussian_table(severity), rng)


@cache
def _gaussian_table(severity: int) -> UInt32[np.ndarray, "256 256"]:
    return _alias_table(ndtr((_BOUND - _LEVEL) / (255 * _GAUSSIAN_STD[severity - 1])))


def shot_noise(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image as counts of photons, Poisson in every channel of every pixel; white has 60 down to 3 of them.

    Source: arXiv 1903.12261, section 3; counts and truncation as in imagecorruptions 1.1.2.
    """
    return _drawn(pixels, _shot_table(severity), rng)


@cache
def _shot_table(severity: int) -> UInt32[np.ndarray, "256 256"]:
    photons = _PHOTONS_OF_WHITE[severity - 1]
    fewest_at_bound = np.ceil(_BOUND * photons / 255)
    return _alias_table(pdtr(fewest_at_bound - 1, _LEVEL * photons / 255))


def impulse_noise(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with some values, of single channels, replaced by 0 or 255 at equal odds.

    Source: arXiv 1903.12261, section 3; amounts as in imagecorruptions 1.1.2.
    """
    return _drawn(pixels, _impulse_table(severity), rng)


@cache
def _impulse_table(severity: int) -> UInt32[np.ndarray, "256 256"]:
    pepper = _IMPULSE_AMOUNT[severity - 1] / 2
    return _alias_table(np.where(_BOUND <= _LEVEL, pepper, 1 - pepper))


def speckle_noise(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with normal noise in proportion to each value, clipped and truncated to 8 bits; black stays black.

    Source: arXiv 1903.12261, section 3; standard deviations and truncation as in imagecorruptions 1.1.2.
    """
    return _drawn(pixels, _speckle_table(severity), rng)


@cache
def _speckle_table(severity: int) -> UInt32[np.ndarray, "256 256"]:
    with np.errstate(divide="ignore"):
        return _alias_table(ndtr((_BOUND / _LEVEL - 1) / _SPECKLE_STD[severity - 1]))


def _alias_table(below: Float64[np.ndarray, "256 255"]) -> UInt32[np.ndarray, "256 256"]:
    """Alias tables of 256 laws, to draw a level from each with one word.

    A slot holds its alias in the low 8 bits and, above them, how many of its 2^24 chances are its own.
    Probabilities are multiples of 2^-32, rounded so that those of a law sum to 1.

    Args:
        below: the chance that level v comes out below w, for v = 0..255 and w = 1..255.

    Source: A. J. Walker, "An efficient method for generating discrete random variables with general distributions"
    (ACM TOMS 1977), by giving from the richest slot to the poorest.
    """
    chances = _chances(below)
    aliases = np.tile(np.arange(256), (256, 1))
    own = np.zeros((256, 256), np.int64)
    laws = np.arange(256)
    while laws.size:
        poorest, richest = chances[laws].argmin(axis=1), chances[laws].argmax(axis=1)
        held = chances[laws, poorest]
        own[laws, poorest], aliases[laws, poorest] = held, richest
        chances[laws, poorest] = _SLOT_VALUES
        chances[laws, richest] -= _SLOT_VALUES - held
        laws = laws[(chances[laws] != _SLOT_VALUES).any(axis=1)]
    return (own << 8 | aliases).astype(np.uint32)


def _chances(below: Float64[np.ndarray, "256 255"]) -> Int64[np.ndarray, "256 256"]:
    """How many of 2^32 words shall give each level, for every level before: rows sum to 2^32."""
    bounds = np.zeros((256, 257), np.int64)
    bounds[:, 1:-1] = np.rint(below * _WORD_VALUES)
    bounds[:, -1] = _WORD_VALUES
    return np.diff(bounds, axis=1)


def _drawn(
    pixels: UInt8[np.ndarray, "height width 3"], table: UInt32[np.ndarray, "256 256"], rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """Every value replaced by a draw from the law of its level."""
    values = pixels.ravel()
    values.flags.writeable = False
    drawn = np.empty(pixels.shape, np.uint8)
    _draw(values, table, stream_seed(rng), drawn.reshape(-1))
    return drawn


@njit(cache=True, nogil=True)
def _draw(
    values: UInt8[np.ndarray, " count"],
    table: UInt32[np.ndarray, "256 256"],
    seed: np.uint64,
    drawn: UInt8[np.ndarray, " count"],
) -> None:
    """Draws block by block, so that the words of a block stay in the processor's cache."""
    pairs = np.empty(_PAIRS_AT_A_TIME, np.uint64)
    words = pairs.view(np.uint32)
    for start in range(0, values.size, words.size):
        end = start + words.size
        fill_words(seed, start // 2, pairs)
        _look_up(values[start:end], words, table.ravel(), drawn[start:end])


@njit(cache=True, nogil=True)
def _look_up(
    values: UInt8[np.ndarray, " count"],
    words: UInt32[np.ndarray, " count_or_more"],
    table: UInt32[np.ndarray, " 65536"],
    drawn: UInt8[np.ndarray, " count"],
) -> None:
    """The low 8 bits of a word choose a slot of the law, the other 24 between the slot's own level and its alias."""
    for i in range(values.size):
        word = words[i]
        entry = table[np.uint32(values[i]) << np.uint32(8) | word & np.uint32(255)]
        drawn[i] = np.uint8(word) if word >> np.uint32(8) < entry >> np.uint32(8) else np.uint8(entry)
