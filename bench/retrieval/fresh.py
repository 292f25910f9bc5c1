"""Inputs that were never asked before, as large as real ones: a submission that remembers its answers gains nothing.
Everything follows from the seed, whatever the sizes in which it is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import count, islice

import numpy as np
from jaxtyping import UInt8

from bench.errors import InputError

N_TRIES = 8
"""How many random variants are tried before a number makes one new; a caption of one word has none."""


class FreshTexts:
    """The captions in random order, then again and again with their words in random order, which costs the same.

    Args:
        captions: any number of them may be equal.
        seed: of both orders.

    Raises:
        InputError: there is no caption.
    """

    def __init__(self, captions: Sequence[str], seed: int) -> None:
        _need_some(captions, "captions")
        self._captions, self._given = captions, set[str]()
        self._rng = np.random.default_rng(seed)
        self._stream = self._iterate()

    def take(self, n: int) -> list[str]:
        """`n` texts, none of which was given before; one whose variants have run out ends with a number."""
        return list(islice(self._stream, n))

    def _iterate(self) -> Iterator[str]:
        for n_passes, row in _passes(len(self._captions), self._rng):
            text = next(text for text in self._variants(self._captions[row], n_passes) if text not in self._given)
            self._given.add(text)
            yield text

    def _variants(self, caption: str, n_passes: int) -> Iterator[str]:
        if not n_passes:
            yield caption
        words = caption.split()
        for _ in range(N_TRIES):
            yield " ".join(words[place] for place in self._rng.permutation(len(words)))
        for number in count(n_passes):
            yield f"{caption} {number}"


class FreshImages:
    """The images in random order, then again and again, each rolled by a random offset over both axes.

    Args:
        images: read one at a time, so that they may be decoded when asked for.
        seed: of the order and the offsets.

    Raises:
        InputError: there is no image.
    """

    def __init__(self, images: Sequence[UInt8[np.ndarray, "h w 3"]], seed: int) -> None:
        _need_some(images, "images")
        self._images, self._given = images, set[bytes]()
        self._rng = np.random.default_rng(seed)
        self._stream = self._iterate()

    def take(self, n: int) -> list[UInt8[np.ndarray, "h w 3"]]:
        """`n` images, each different from all that were given before; read only, since the first may be the originals.

        An image that is the same however it is rolled has a number in its first bytes.
        """
        return list(islice(self._stream, n))

    def _iterate(self) -> Iterator[np.ndarray]:
        for n_passes, row in _passes(len(self._images), self._rng):
            for image in self._variants(self._images[row], n_passes):
                digest = _digest(image)
                if digest not in self._given:
                    break
            self._given.add(digest)
            yield image

    def _variants(self, image: np.ndarray, n_passes: int) -> Iterator[np.ndarray]:
        if not n_passes:
            yield image
        for _ in range(N_TRIES):
            yield np.roll(image, self._rng.integers(image.shape[:2]), axis=(0, 1))
        for number in count(n_passes):
            yield _numbered(image, number)


def _passes(n_items: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Rows without end, each once a pass, in a new order every time; beside them the number of earlier passes."""
    for n_passes in count():
        for row in rng.permutation(n_items).tolist():
            yield n_passes, row


def _numbered(image: np.ndarray, number: int) -> np.ndarray:
    """The image with `number` in place of its first three bytes."""
    numbered = image.copy()
    numbered.reshape(-1)[:3] = list(number.to_bytes(8, "little")[:3])
    return numbered


def _digest(image: np.ndarray) -> bytes:
    return blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def _need_some(items: Sequence[object], kind: str) -> None:
    if not len(items):
        raise InputError(f"there are no {kind} to ask with; expected at least one. Choose a collection that has some.")
