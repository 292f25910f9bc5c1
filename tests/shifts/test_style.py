"""Cartoon, painting and watercolour: what makes each of them look like itself, and the filters under them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from imagecorruptions_oracle import synthetic_photo
from PIL import Image
from skimage.metrics import structural_similarity

from shifts.canvas import canonical_canvas
from shifts.catalogue import apply_shift, find_shift
from shifts.image.cartoon import _without_specks
from shifts.image.flow import DIRECTIONS, N_DIRECTIONS, UNIT, contour_directions, mean_along
from shifts.image.kuwahara import kuwahara
from shifts.image.painting import _length

SEVERITIES = [1, 2, 3, 4, 5]
STYLES = ["cartoon", "painting", "watercolour"]
GOLDEN = {
    "cartoon": "8f0c1c0d4076884892eb67f6bfdb199955f0eca6391e6fca2e0e2dc334486aa5",
    "painting": "47cf2be5be7504fa6e9c1e2f0d50ed35ceb0e39e0cfdf621761872a4efce43ca",
    "watercolour": "d1477b9f47a2343462cd482bb42a99879337cf95ade70c145a9b9d1f0ef08700",
}


def drawn(style: str, pixels: np.ndarray, severity: int) -> np.ndarray:
    return apply_shift(find_shift(style), severity, pixels, "a", seed=0)


def dark_square_on_light(side: int) -> np.ndarray:
    scene = np.full((side, side, 3), 190, np.uint8)
    scene[side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 110
    return scene


def naive_kuwahara(pixels: np.ndarray, reach: int) -> np.ndarray:
    slant = round(reach / 2**0.5)
    moves = [(0, 0), (reach, 0), (-reach, 0), (0, reach), (0, -reach)]
    moves += [(slant, slant), (slant, -slant), (-slant, slant), (-slant, -slant)]
    margin = 2 * reach
    padded = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric").astype(float)
    result = np.empty_like(pixels)
    for y, x in np.ndindex(pixels.shape[:2]):
        squares = [
            padded[y + margin + down - reach :, x + margin + right - reach :][: 2 * reach + 1, : 2 * reach + 1]
            for down, right in moves
        ]
        calmest = min(squares, key=lambda square: round(square.var(axis=(0, 1)).sum(), 9))
        result[y, x] = np.floor(calmest.mean(axis=(0, 1)) + 0.5)
    return result


@pytest.mark.parametrize("reach", [1, 2, 3])
def test_kuwahara_agrees_with_its_definition(reach: int) -> None:
    pixels = np.random.default_rng(reach).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    np.testing.assert_array_equal(kuwahara(pixels, reach), naive_kuwahara(pixels, reach))


def test_kuwahara_flattens_texture_and_keeps_a_step() -> None:
    scene = np.full((60, 80, 3), 70.0)
    scene[:, 40:] = 180
    noisy = np.clip(scene + np.random.default_rng(0).normal(0, 12, scene.shape), 0, 255).astype(np.uint8)
    flat = kuwahara(noisy, 3).astype(float)
    assert flat[:, :40].std() < noisy[:, :40].std() / 2
    assert np.abs(flat[:, 38:42].mean(axis=(0, 2)) - [70, 70, 180, 180]).max() < 6


@pytest.mark.parametrize("direction", range(N_DIRECTIONS))
def test_directions_follow_the_contours(direction: int) -> None:
    right, down = DIRECTIONS[direction] / UNIT
    y, x = np.indices((64, 64))
    stripes = np.rint(127 + 100 * np.sin((y * right - x * down) / 3)).astype(np.uint8)
    found = contour_directions(stripes, 3)[8:-8, 8:-8].astype(int)
    off = (found - direction + N_DIRECTIONS // 2) % N_DIRECTIONS - N_DIRECTIONS // 2
    assert np.abs(off).max() <= 1
    assert (off == 0).mean() > 0.9


def test_mean_along_straight_lines_is_a_mean_over_a_row_that_ends_at_the_border() -> None:
    field = np.random.default_rng(0).integers(0, 1000, (5, 20), dtype=np.int32)
    means = mean_along(field, 0, np.zeros(field.shape, np.uint8), DIRECTIONS, 3)
    for y, x in np.ndindex(field.shape):
        row = field[y, max(0, x - 3) : x + 4]
        assert means[y, x] == row.sum() // row.size


def test_mean_along_follows_a_bend_and_leaves_faint_pixels_alone() -> None:
    field = np.zeros((9, 9), np.int32)
    directions = np.zeros((9, 9), np.uint8)
    field[4, :5] = field[4:, 4] = 80
    directions[4:, 4] = N_DIRECTIONS // 2
    means = mean_along(field, 1, directions, DIRECTIONS, 3)
    assert (means[4, 2:4] == 80).all()
    assert (means[field == 0] == 0).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_cartoon_has_flat_colours_inside_dark_outlines(severity: int) -> None:
    cartoon = drawn("cartoon", dark_square_on_light(192), severity).astype(int)
    inside, outside = cartoon[70:120, 70:120], cartoon[4:30, 4:-4]
    assert np.ptp(inside, axis=(0, 1)).max() == np.ptp(outside, axis=(0, 1)).max() == 0
    across = cartoon[96, 40:56].mean(axis=1)
    assert across.min() < inside.mean() - 50
    assert (across < inside.mean() - 20).sum() <= 6


def test_outlines_that_are_too_short_are_left_out() -> None:
    lines = np.zeros((20, 30), np.uint8)
    lines[3, 2:20] = lines[10, 5:9] = 200
    kept = _without_specks(lines, 10)
    np.testing.assert_array_equal(kept[3], lines[3])
    assert not kept[4:].any()


def test_a_cartoon_has_ever_fewer_colours() -> None:
    photo = synthetic_photo(192, 256)
    counts = []
    for severity in SEVERITIES:
        _, pixels_of = np.unique(drawn("cartoon", photo, severity).reshape(-1, 3), axis=0, return_counts=True)
        counts.append(int((pixels_of > photo.shape[0] * photo.shape[1] / 500).sum()))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 12
    assert counts[-1] <= 6 + 1


def test_colours_of_a_cartoon_are_those_of_the_scene() -> None:
    scene = np.zeros((96, 96, 3), np.uint8)
    colours = np.array([[200, 40, 40], [40, 160, 60], [50, 60, 190]], np.uint8)
    for column, colour in enumerate(colours):
        scene[:, 32 * column : 32 * column + 32] = colour
    cartoon = drawn("cartoon", scene, 5).astype(int)
    for column, colour in enumerate(colours):
        assert np.argmax(cartoon[48, 32 * column + 16]) == np.argmax(colour)
        assert np.abs(cartoon[48, 32 * column + 16] - colour).max() < 45


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_painting_keeps_colours_and_edges_and_shows_the_brush(severity: int) -> None:
    scene = dark_square_on_light(192)
    painting = drawn("painting", scene, severity).astype(float)
    for part in (np.s_[75:115, 75:115], np.s_[5:40, 5:-5]):
        assert painting[part].mean() == pytest.approx(scene[part].mean(), abs=6)
        assert painting[part].std() > 2
    assert painting[75:115, 40:46].mean() - painting[75:115, 50:56].mean() > 60


def test_strokes_end_where_the_colour_does_and_at_the_border() -> None:
    scene = np.full((20, 50, 3), 200, np.uint8)
    scene[:, 30:] = 100
    assert _length(scene, 10, 20, UNIT, 0, 40) == 9
    assert _length(scene, 10, 20, -UNIT, 0, 40) == 20
    assert _length(scene, 10, 20, 0, UNIT, 5) == 5


def test_broader_brushes_lose_finer_lines() -> None:
    scene = np.full((192, 192, 3), 200, np.uint8)
    scene[:, 60:62] = scene[:, 120:128] = 60
    for severity, finest_is_kept in ((1, True), (5, False)):
        painting = drawn("painting", scene, severity).mean(axis=(0, 2))
        assert (painting[60:62].mean() < 120) == finest_is_kept
        assert painting[121:127].mean() < 130


def test_strokes_lie_along_the_contours() -> None:
    y, x = np.indices((192, 192))
    stripes = np.rint(127 + 40 * np.sin((x + y) / 12)).astype(np.uint8)[..., np.newaxis].repeat(3, axis=2)
    residual = drawn("painting", stripes, 4).astype(float).mean(axis=2) - stripes[..., 0]
    falling, rising = (np.abs(residual[1:, 1:] - residual[:-1, :-1]), np.abs(residual[1:, :-1] - residual[:-1, 1:]))
    assert rising[10:-10, 10:-10].mean() < 0.8 * falling[10:-10, 10:-10].mean()


def test_watercolour_gets_paler_and_leaves_a_wider_margin() -> None:
    scene = np.full((192, 256, 3), (40, 70, 120), np.uint8)
    pictures = [drawn("watercolour", scene, severity).astype(int) for severity in SEVERITIES]
    middles = [picture[60:-60, 60:-60].mean() for picture in pictures]
    margins = [(picture.min(axis=2) > 225).mean() for picture in pictures]
    assert (np.diff(middles) > 8).all()
    assert (np.diff(margins) > 0.005).all()
    assert all((picture[[0, -1]] > 225).mean() > 0.9 for picture in pictures)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_washes_are_darker_at_their_rims_and_granulate(severity: int) -> None:
    picture = drawn("watercolour", dark_square_on_light(384), severity).astype(float).mean(axis=2)
    inside, outside = picture[170:214, 170:214], picture[170:214, 50:64]
    assert inside.mean() < outside.mean() - 20
    assert inside.std() > 1.5
    assert picture[170:214, 80:120].mean(axis=0).min() < inside.mean() - 5


def test_lights_stay_bare_paper() -> None:
    picture = drawn("watercolour", np.full((192, 192, 3), 252, np.uint8), 3)
    assert picture[40:-40, 40:-40].min() > 220


@pytest.mark.parametrize("style", STYLES)
def test_lengths_follow_the_size_of_the_image(style: str) -> None:
    for severity in (3, 5):
        changes = [
            np.abs(drawn(style, scene, severity).astype(int) - scene).mean()
            for scene in (dark_square_on_light(384), dark_square_on_light(768))
        ]
        assert changes[1] == pytest.approx(changes[0], rel=0.3)


@pytest.mark.parametrize("style", STYLES)
def test_golden_bytes(style: str) -> None:
    y, x = np.indices((120, 160))
    pattern = np.stack([(x * y // 40) % 256, (x // 9 + y // 7) % 2 * 180, y * 2], axis=-1).astype(np.uint8)
    drawings = b"".join(drawn(style, pattern, severity).tobytes() for severity in SEVERITIES)
    assert hashlib.sha256(drawings).hexdigest() == GOLDEN[style]


@pytest.mark.data
@pytest.mark.parametrize("name", ["cartoon", "painting", "watercolour", "night", "low_resolution"])
def test_photos_lose_likeness_with_severity(shared_data: Path, name: str) -> None:
    for path in sorted((shared_data / "coco_sample" / "images").glob("*.jpg"))[:40:10]:
        photo = np.asarray(canonical_canvas(Image.open(path).convert("RGB")))
        likeness = [
            structural_similarity(photo, apply_shift(find_shift(name), severity, photo, path.name, 0), channel_axis=2)
            for severity in SEVERITIES
        ]
        assert likeness == sorted(likeness, reverse=True)
        assert likeness[0] < 0.97
