"""One random generator per shifted sample, so that a result never depends on order, batch, workers or subset."""

from __future__ import annotations

import hashlib
import json

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
    identity = json.dumps([seed, shift_name, version, severity, sample_id]).encode("ascii")
    key = hashlib.blake2b(identity, digest_size=16, person=b"rove shift").digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
