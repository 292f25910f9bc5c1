"""Images made ready ahead of need: decoded and shifted by a few threads while the submission encodes."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from bench.types import Image

Prepare = Callable[[Image], UInt8[np.ndarray, "height width 3"]]


class Pixels(NamedTuple):
    """An image as the submission gets it, and the sha256 of its size and bytes."""

    array: UInt8[np.ndarray, "height width 3"]
    sha256: bytes


def feed_batches(images: Sequence[Image], prepare: Prepare, batch_size: int) -> Iterator[list[Pixels]]:
    """Batches of prepared images in the order given, at most two batches ahead of the consumer.

    Raises:
        InputError: an image cannot be decoded; the message names it.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="rove-feed") as pool:
        waiting = iter(images)
        ahead: deque[Future[Pixels]] = deque()
        try:
            while True:
                wanted = 3 * batch_size - len(ahead)
                ahead.extend(pool.submit(_prepare, prepare, image) for image in islice(waiting, wanted))
                if not ahead:
                    return
                yield [ahead.popleft().result() for _ in range(min(batch_size, len(ahead)))]
        finally:
            for future in ahead:
                future.cancel()


def _prepare(prepare: Prepare, image: Image) -> Pixels:
    array = np.ascontiguousarray(prepare(image))
    return Pixels(array, pixels_digest(array))


def pixels_digest(array: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """The sha256 of an image's size and bytes; the array is contiguous."""
    digest = hashlib.sha256(f"{array.shape}".encode())
    digest.update(array.data)
    return digest.digest()
