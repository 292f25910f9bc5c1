"""Suites: their id follows what decides a score, and a wrong file says where it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import InputError, RoveError
from bench.suites import list_suites, read_suite


@pytest.mark.parametrize("name", ["demo-core", "flickr8k-core"])
def test_a_core_suite_is_small_and_has_both_clean_cells(name: str) -> None:
    suite = list_suites()[name]
    shifts = [cell.shift for cell in suite.cells]
    assert {"clean", "clean_canvas"} <= set(shifts)
    wanted = ("gaussian_noise", "defocus_blur", "jpeg_compression", "sketch", "typo_keyboard")
    assert {f"{shift}:{severity}" for shift in wanted for severity in (1, 3, 5)} <= set(shifts)
    assert sum(not shift.startswith(("clean", "typo")) for shift in shifts) <= 25
    assert suite.seeds == (0,)


def test_rewording_keeps_the_id_and_changing_a_cell_does_not(suite_file: Path, tmp_path: Path) -> None:
    text, copy = suite_file.read_text(), tmp_path / "small.toml"
    copy.write_text(text.replace("For a test.", "For another reason."))
    assert read_suite(copy).id == read_suite(suite_file).id
    for old, new in (("severities = [3]", "severities = [4]"), ("seeds = [0]", "seeds = [1]"), ("= 24", "= 23")):
        copy.write_text(text.replace(old, new))
        assert read_suite(copy).id != read_suite(suite_file).id


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("typo_keyboard", "typo_kyboard", "Did you mean 'typo_keyboard'"),
        ("severities = [3]", "severities = [6]", "severities"),
        ("typo_keyboard", "Typo Keyboard", "shift"),
        ("severities = [1, 5]", "severities = [1, 1]", "stands twice"),
        ('baseline = "scenes/test"', 'baseline = "scenes/val"', "no clean_canvas cell"),
        ('"scenes-night/test" = 24', "", "no entry in"),
        ("version = 1", "version = 'one'", "field version"),
        ("[collections]", "[collection]", "field"),
        ("seeds = [0]", "seeds = ", "cannot be read"),
    ],
)
def test_a_wrong_file_says_where(old: str, new: str, words: str, suite_file: Path, tmp_path: Path) -> None:
    text = suite_file.read_text()
    assert old in text
    path = tmp_path / "wrong.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(RoveError, match=words):
        read_suite(path)


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.toml"):
        read_suite(tmp_path / "nothing.toml")
