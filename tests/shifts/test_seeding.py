"""The generator of a sample depends on its five keys, on all of them, and on nothing else."""

from __future__ import annotations

import itertools

import numpy as np

from shifts.seeding import sample_rng

KEYS = (0, "gaussian_noise", 1, 3, "000000000139.jpg")


def draws(*key: object) -> tuple[int, ...]:
    return tuple(sample_rng(*key).integers(0, 2**63, size=4).tolist())


def test_it_is_a_philox_whose_stream_is_pinned() -> None:
    assert isinstance(sample_rng(*KEYS).bit_generator, np.random.Philox)
    assert sample_rng(*KEYS).bit_generator.random_raw(2).tolist() == [13486694132183505368, 13863861386713880573]


def test_two_generators_of_one_key_are_independent_objects() -> None:
    first, second = sample_rng(*KEYS), sample_rng(*KEYS)
    first.random(1000)
    assert second.random() == sample_rng(*KEYS).random()


def test_every_key_counts() -> None:
    changed = (1, "shot_noise", 2, 4, "000000000285.jpg")
    variants = [KEYS, *((*KEYS[:i], changed[i], *KEYS[i + 1 :]) for i in range(len(KEYS)))]
    assert len({draws(*variant) for variant in variants}) == len(variants)


def test_no_two_tuples_are_written_alike() -> None:
    numbers = (1, 11, 111, -1)
    texts = ("", "1", "a", 'a","b', "a,1", "a\0", "\ud800", "\\ud800", "é", "e\u0301")
    keys = list(itertools.product(numbers, texts, numbers[:2], numbers[:2], texts))
    assert len({draws(*key) for key in keys}) == len(keys)
