"""Ids, lookups and the errors that send people to the right name."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from bench.errors import InputError, UsageError
from shifts.catalogue import CATALOGUE, apply_shift, find_shift, parse_shift


def test_every_id_comes_back_as_its_shift_and_severity() -> None:
    for shift in CATALOGUE:
        for severity in shift.severities:
            assert parse_shift(shift.id(severity)) == (shift, severity)


def test_an_unknown_name_gets_the_nearest_and_the_list() -> None:
    with pytest.raises(UsageError, match=r"'gausian_noise'.*Did you mean 'gaussian_noise'.*rove list shifts"):
        parse_shift("gausian_noise:3")


@pytest.mark.parametrize("severity", ["0", "6", "-1", "03", "3.0", "three", "٣", "3:3", " 3"])
def test_a_severity_that_does_not_exist_is_answered_with_those_that_do(severity: str) -> None:
    with pytest.raises(UsageError, match=rf"exists at severity 1, 2, 3, 4, 5; got '{severity}'"):
        parse_shift(f"sketch:{severity}")


@pytest.mark.parametrize("shift_id", ["sketch", "sketch:"])
def test_an_id_states_its_severity(shift_id: str) -> None:
    with pytest.raises(UsageError, match=r"got none. Write sketch:5\."):
        parse_shift(shift_id)


def test_find_shift_takes_a_bare_name_only() -> None:
    assert find_shift("sketch").name == "sketch"
    with pytest.raises(UsageError, match="unknown shift 'sketch:3'"):
        find_shift("sketch:3")


def test_a_severity_is_checked_before_it_can_index_from_the_end() -> None:
    with pytest.raises(UsageError, match="got '0'"):
        apply_shift(find_shift("gaussian_noise"), 0, np.zeros((32, 32, 3), np.uint8), "a", seed=0)


@pytest.mark.parametrize(
    ("item", "got"),
    [
        (np.zeros((32, 32, 3), np.float32), r"float32 \(32, 32, 3\)"),
        (np.zeros((32, 32), np.uint8), r"uint8 \(32, 32\)"),
        (np.zeros((32, 32, 4), np.uint8), r"uint8 \(32, 32, 4\)"),
        (np.zeros((0, 32, 3), np.uint8), r"uint8 \(0, 32, 3\)"),
        ("a caption", "str"),
    ],
)
def test_what_is_not_pixels_is_refused_by_its_id(item: object, got: str) -> None:
    with pytest.raises(InputError, match=rf"sketch got {got} for image 7\.jpg; expected"):
        apply_shift(find_shift("sketch"), 1, item, "7.jpg", seed=0)


def test_what_is_not_a_caption_is_refused_by_its_id() -> None:
    with pytest.raises(InputError, match="typo_keyboard got bytes for caption 7#0"):
        apply_shift(find_shift("typo_keyboard"), 1, b"a caption", "7#0", seed=0)


def test_listing_imports_no_image_library() -> None:
    script = "import shifts.catalogue, sys; print(*{'cv2', 'PIL', 'numba', 'nlpaug', 'torch'} & sys.modules.keys())"
    listed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == []
