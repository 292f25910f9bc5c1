"""`rove preview`: the sheet has every severity where it says, and any image file will do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from bench.errors import InputError, UsageError
from bench.preview import draw_sheet, list_rewordings, read_canvas, write_sheet
from shifts.catalogue import apply_shift, find_shift


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_each_severity_stands_in_its_tile() -> None:
    photo = noise(88, 176)
    shifts = [find_shift("gaussian_noise"), find_shift("jpeg_compression")]
    sheet = np.asarray(draw_sheet(shifts, photo, None, seed=0))
    assert sheet.shape == (6 + 2 * (88 + 22), 6 + 6 * (176 + 6), 3)
    for row, shift in enumerate(shifts):
        for column, severity in enumerate((0, *shift.severities)):
            top, left = 6 + row * 110 + 16, 6 + column * 182
            expected = apply_shift(shift, severity, photo, "preview", 0) if severity else photo
            np.testing.assert_array_equal(sheet[top : top + 88, left : left + 176], expected)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "LA"])
def test_files_of_other_modes_are_read_as_rgb(tmp_path: Path, mode: str) -> None:
    PIL.Image.fromarray(noise(40, 60)).convert(mode).save(tmp_path / "image.png")
    pixels = read_canvas(tmp_path / "image.png")
    assert pixels.shape == (40, 60, 3)
    assert apply_shift(find_shift("gaussian_noise"), 1, pixels, "a", 0).shape == pixels.shape


def test_large_files_come_onto_the_canvas(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (4000, 3000)).save(tmp_path / "large.jpg")
    assert read_canvas(tmp_path / "large.jpg").shape == (384, 512, 3)


def test_what_cannot_be_read_or_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InputError, match=r"text\.png"):
        read_canvas(tmp_path / "text.png")
    with pytest.raises(InputError, match=r"absent\.png"):
        read_canvas(tmp_path / "absent.png")
    with pytest.raises(UsageError, match=r"\.webp"):
        write_sheet(PIL.Image.new("RGB", (4, 4)), tmp_path / "sheet.bmp")


def test_rewordings_are_those_of_the_shift() -> None:
    rows = dict(list_rewordings([find_shift("typo_keyboard")], "a red ball", seed=0))
    assert list(rows) == [f"typo_keyboard:{severity}" for severity in range(1, 6)]
    assert rows["typo_keyboard:3"] == apply_shift(find_shift("typo_keyboard"), 3, "a red ball", "preview", 0)
