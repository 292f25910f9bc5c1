"""Random words for compiled loops: millions of them at a tenth of what NumPy's generators cost."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt32, UInt64
from numba import njit

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_MIX_SECOND = np.uint64(0x94D049BB133111EB)
_SHIFT_FIRST, _SHIFT_SECOND, _SHIFT_LAST = np.uint64(30), np.uint64(27), np.uint64(31)


def stream_seed(rng: np.random.Generator) -> np.uint64:
    """The seed of a stream of words, drawn from `rng`, so that the stream belongs to the sample as `rng` does."""
    return rng.integers(2**64, dtype=np.uint64)


def random_words(rng: np.random.Generator, count: int) -> UInt32[np.ndarray, " count"]:
    """Independent words, uniform over all 32 bits; `rng` is asked for 64 bits, whatever the count."""
    pairs = np.empty(-(-count // 2), np.uint64)
    fill_words(stream_seed(rng), 0, pairs)
    return pairs.view(np.uint32)[:count]


@njit(cache=True, nogil=True)
def fill_words(seed: np.uint64, first: int, words: UInt64[np.ndarray, " count"]) -> None:
    """Writes the words number `first`, `first` + 1, ... of the stream of `seed`, each a function of seed and number.

    Streams of other seeds are other stretches of one cycle of 2^64 words. With a million images of half a million words
    each, the chance that any two stretches overlap is 3 %, and then the words fall on other places of the images.

    Source: SplitMix64; Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).
    """
    for i in range(words.size):
        word = seed + np.uint64(first + i + 1) * _STEP
        word = (word ^ (word >> _SHIFT_FIRST)) * _MIX_FIRST
        word = (word ^ (word >> _SHIFT_SECOND)) * _MIX_SECOND
        words[i] = word ^ (word >> _SHIFT_LAST)
