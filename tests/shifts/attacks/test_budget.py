"""What the budget lets through: whole levels near the original, and texts that were edited seldom enough."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import InputError
from shifts.attacks.budget import (
    clip_pixels,
    count_edits,
    enforce_pixels,
    enforce_text,
    find_broken,
    largest_change,
    to_levels,
    to_pixels,
)

ALL_LEVELS = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)


def moved_by(levels: float) -> torch.Tensor:
    """All 256 levels, each moved by that many."""
    return to_pixels(ALL_LEVELS) + levels / 255


def test_levels_survive_the_way_to_pixels_and_back() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    pixels = to_pixels(levels)
    assert pixels.shape == (2, 3, 5, 7)
    assert pixels[1, 2, 3, 4] == np.float32(levels[1, 3, 4, 2]) / np.float32(255)
    np.testing.assert_array_equal(to_levels(pixels), levels)
    np.testing.assert_array_equal(to_levels(to_pixels(ALL_LEVELS)), ALL_LEVELS)


@pytest.mark.parametrize("eps", [1, 2, 8])
@pytest.mark.parametrize("levels", [-300.0, -8.0, -2.0, -1.0, -0.4, 0.0, 0.4, 0.6, 1.0, 1.6, 9.0, 300.0])
def test_every_level_moves_as_far_as_the_budget_allows(levels: float, eps: int) -> None:
    wanted = np.clip(ALL_LEVELS.astype(int) + int(np.clip(np.rint(levels), -eps, eps)), 0, 255)
    np.testing.assert_array_equal(enforce_pixels(moved_by(levels), ALL_LEVELS, eps), wanted)


@given(st.lists(st.floats(width=32), min_size=12, max_size=12), st.sampled_from([1, 2, 4, 8]))
def test_whatever_floats_come_back_the_budget_is_kept(values: list[float], eps: int) -> None:
    original = np.array([0, 1, 2, 127, 128, 200, 250, 253, 254, 255, 3, 77], np.uint8).reshape(1, 2, 2, 3)
    attacked = torch.tensor(values, dtype=torch.float32).reshape(1, 3, 2, 2)
    assert largest_change(enforce_pixels(attacked, original, eps), original) <= eps
    assert find_broken(attacked).item() == (not np.isfinite(values).all())


def test_values_that_are_not_finite_fall_back_and_their_image_is_reported() -> None:
    original = np.full((3, 4, 4, 3), 100, np.uint8)
    attacked = to_pixels(original) + 2 / 255
    attacked[0, 0, 0, 0], attacked[2, 1, 2, 3], attacked[2, 2, 3, 3] = torch.nan, torch.inf, -torch.inf
    enforced = enforce_pixels(attacked, original, 2)
    assert find_broken(attacked).tolist() == [True, False, True]
    assert np.argwhere(enforced == 100).tolist() == [[0, 0, 0, 0], [2, 2, 3, 1], [2, 3, 3, 2]]
    assert (enforced == 102).sum() == enforced.size - 3
    assert clip_pixels(attacked, original, 2).isfinite().all()


def test_the_float_result_is_clipped_but_not_rounded() -> None:
    clipped = clip_pixels(moved_by(1.3), ALL_LEVELS, 2)
    torch.testing.assert_close(clipped, moved_by(1.3).clamp(max=1), rtol=0, atol=1e-7)
    clipped = clip_pixels(moved_by(-7), ALL_LEVELS, 2)
    torch.testing.assert_close(clipped, moved_by(-2).clamp(min=0), rtol=0, atol=1e-7)


def test_a_result_of_another_shape_is_an_error() -> None:
    with pytest.raises(InputError, match=r"\(1, 3, 4, 4\) for images \(2, 3, 4, 4\)"):
        clip_pixels(torch.zeros(1, 3, 4, 4), np.zeros((2, 4, 4, 3), np.uint8), 1)


def test_the_largest_change_does_not_wrap_around() -> None:
    assert largest_change(np.array([[[[0, 255, 9]]]], np.uint8), np.array([[[[255, 255, 10]]]], np.uint8)) == 255


@pytest.mark.parametrize(
    ("a", "b", "unit", "edits"),
    [
        ("a red car", "a red car", "words", 0),
        ("a red car", "a  red\tcar ", "words", 0),
        ("a red car", "a  red\tcar ", "characters", 3),
        ("a red car", "a blue car", "words", 1),
        ("a red car", "a blue car", "characters", 4),
        ("a red car", "red a car", "words", 2),
        ("a car a car", "a car", "words", 2),
        ("a car a car", "car a car a", "words", 2),
        ("", "two words", "words", 2),
        ("naïve", "naive", "characters", 1),
        ("naïve 犬", "naive 犬", "words", 1),
    ],
)
def test_edits_worked_by_hand(a: str, b: str, unit: str, edits: int) -> None:
    assert count_edits(a, b, unit) == count_edits(b, a, unit) == edits


@given(st.lists(st.sampled_from("abcd"), max_size=7), st.lists(st.sampled_from("abcd"), max_size=7))
def test_word_edits_are_those_of_the_textbook(a: list[str], b: list[str]) -> None:
    table = np.add.outer(np.arange(len(a) + 1), np.arange(len(b) + 1))
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            table[i + 1, j + 1] = min(table[i, j + 1] + 1, table[i + 1, j] + 1, table[i, j] + (left != right))
    words = {letter: f"{letter}{letter}'s" for letter in "abcd"}
    joined = [" ".join(words[letter] for letter in text) for text in (a, b)]
    assert count_edits(*joined, "words") == table[-1, -1]


@pytest.mark.parametrize(
    ("attacked", "unit", "kept"),
    [
        ("a ret car", "characters", True),
        ("a rat car", "characters", False),
        ("a blue car", "words", True),
        ("one blue car", "words", False),
        ("a red ca\0", "characters", False),
        ("a red ca\ud800", "characters", False),
        (None, "characters", False),
        (b"a red car", "words", False),
    ],
)
def test_texts_over_budget_and_what_is_no_text_fall_back(attacked: object, unit: str, kept: bool) -> None:
    assert enforce_text(attacked, "a red car", 1, unit) == (attacked if kept else "a red car")
