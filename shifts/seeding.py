"""One random generator per shifted sample, so that a result never depends on order, batch, workers or subset."""

from __future__ import annotations

import hashlib
import json
from json.encoder import encode_basestring_ascii

import numpy as np


def sample_rng(seed: int, shift_name: str, version: int, severity: int, sample_id: str) -> np.random.Generator:
    """The generator that belongs to one sample under one shift: a Philox keyed by all five arguments.

    The key is 128 bits of BLAKE2b over their JSON array, in which no two different tuples look alike. Nothing
    global is read or changed; two calls give two independent objects with the same stream.

    Args:
        seed: the suite's seed.
        shift_name: such as "gaussian_noise".
        version: the shift's generator version; raising it re-draws everything.
        severity: the shift's severity.
        sample_id: the image's or caption's stable id within its collection, any string.
    """
    return SampleStreams(seed, shift_name, version, severity).of(sample_id)


class SampleStreams:
    """The generators of many samples under one shift, as `sample_rng` gives them; for one thread.

    There is one generator, which `of` re-keys: a fifth of the cost of a new one, and the one before is gone.
    """

    def __init__(self, seed: int, shift_name: str, version: int, severity: int) -> None:
        prefix = json.dumps([seed, shift_name, version, severity])[:-1] + ", "
        self._prefix = hashlib.blake2b(prefix.encode("ascii"), digest_size=16, person=b"rove shift")
        self._philox = np.random.Philox(key=0)
        self._start = self._philox.state
        self._key = np.zeros(2, "<u8")
        self._key_bytes = self._key.view(np.uint8).data
        self._start["state"]["key"] = self._key
        self._generator = np.random.Generator(self._philox)

    def of(self, sample_id: str) -> np.random.Generator:
        """The generator at the start of the stream of `sample_id`."""
        hashed = self._prefix.copy()
        hashed.update(encode_basestring_ascii(sample_id).encode("ascii") + b"]")
        self._key_bytes[:] = hashed.digest()
        self._philox.state = self._start
        return self._generator
