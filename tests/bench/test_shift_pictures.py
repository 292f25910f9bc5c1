"""The site's pictures of shifts: what is committed is what the code draws, and nothing that suites use is missing."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import PIL.Image
import pytest

from bench.locks import list_locks
from bench.shift_pictures import (
    FOLDER,
    INDEX,
    WIDTH_PX,
    draw_originals,
    draw_scenes,
    draw_shift,
    encode_webp,
    list_rewordings,
    load_examples,
)
from shifts.catalogue import CATALOGUE, apply_shift, find_missing, find_shift

PICTURED = ("image", "gallery_image", "collection")


@pytest.fixture(scope="module")
def index() -> dict[str, Any]:
    return json.loads((FOLDER / INDEX).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "severity"), [("gaussian_noise", 5), ("rotation", 3), ("greyscale", 1), ("gallery_patch", 2)]
)
def test_pictures_are_what_the_shift_draws(name: str, severity: int, index: dict[str, Any]) -> None:
    file = index["pictures"][name]["after"][str(severity)]
    drawn = encode_webp(draw_shift(find_shift(name), severity))
    np.testing.assert_array_equal(_pixels(io.BytesIO(drawn)), _pixels(FOLDER / file))


def test_originals_and_scenes_are_drawn_without_a_shift() -> None:
    drawn = dict(draw_originals()) | {f"{name}.webp": image for name, image in draw_scenes()}
    assert {"original.webp", "partner.webp", "scenes.webp", "scenes-night.webp", "scenes-sketch.webp"} <= set(drawn)
    for file, image in drawn.items():
        np.testing.assert_array_equal(_pixels(io.BytesIO(encode_webp(image))), _pixels(FOLDER / file))


@pytest.mark.parametrize("name", ["typo_keyboard", "word_delete", "sentence_passive", "gallery_danger"])
def test_captions_are_what_the_shift_makes_of_them(name: str, index: dict[str, Any]) -> None:
    shift = find_shift(name)
    if missing := find_missing(name):
        pytest.skip(missing)
    assert index["captions"][name] == list_rewordings(shift)
    places = {caption: f"{photo}#{n}" for photo, n, caption in _captions()}
    for severity, pairs in index["captions"][name].items():
        for pair in pairs:
            sample = places[pair["before"]]
            assert pair["after"] == apply_shift(shift, int(severity), pair["before"], sample, seed=0)
            assert pair["after"] != pair["before"]


def test_every_shift_has_pictures_captions_or_a_reason(index: dict[str, Any]) -> None:
    expected = {shift.name: {str(severity) for severity in shift.severities} for shift in CATALOGUE}
    shown = {name: set(entry["after"]) for name, entry in index["pictures"].items() if not name.startswith("scenes")}
    shown |= {name: set(entry) for name, entry in index["captions"].items()}
    assert shown == {name: severities for name, severities in expected.items() if name not in index["left_out"]}
    assert set(index["left_out"]) == {"word_insert", "sentence_back_translation"}


@pytest.mark.parametrize("label", sorted(list_locks()))
def test_nothing_that_a_suite_changes_is_missing(label: str, index: dict[str, Any]) -> None:
    for name, change in list_locks()[label].changes.items():
        if change.kind == "attack" or name in index["left_out"]:
            continue
        shown = index["pictures"][name]["after"] if change.kind in PICTURED else index["captions"][name]
        assert {str(strength) for strength in change.strengths or [1]} <= set(shown), name


def test_the_folder_holds_the_index_s_pictures_and_no_others(index: dict[str, Any]) -> None:
    entries = index["pictures"].values()
    named = {entry["before"] for entry in entries} | {file for entry in entries for file in entry["after"].values()}
    named |= {credit["files"] for credit in index["credits"]}
    found = list(FOLDER.glob("*.webp"))
    assert {path.name for path in found} == named
    assert sum(path.stat().st_size for path in found) < 2.5e6
    for path in found:
        with PIL.Image.open(path) as image:
            assert image.width == index["width_px"] == WIDTH_PX
    assert all(credit["license"] == "CC0-1.0" and credit["author"] for credit in index["credits"])


def _captions() -> list[tuple[str, int, str]]:
    """Photo, place among its captions, caption."""
    examples = load_examples()
    return [(examples.images[i // 2].id, i % 2, caption) for i, caption in enumerate(examples.captions)]


def _pixels(file: Any) -> np.ndarray:
    with PIL.Image.open(file) as image:
        return np.asarray(image.convert("RGB"))
