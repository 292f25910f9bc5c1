"""On real photos: each severity of an image shift distorts more than the one below, by 1 - SSIM, averaged."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from skimage.metrics import structural_similarity

from shifts.catalogue import CATALOGUE, Shift, apply_shift

NOT_ORDERED = {
    "saturate": "severities 1 and 2 take colour away, 3 to 5 add it",
    "glass_blur": "severity 4 moves pixels further than 3, but once less often",
    "zoom_blur": "severity 3 averages half as many steps as 2 over a longer way",
    "snow": "severity 3 has other flakes than 2: more, larger, and sharper",
    "sketch": "bare paper, at severities 4 and 5, has less structure that could be wrong than hatching",
}
N_PHOTOS = 8
IMAGE_SHIFTS = [s for s in CATALOGUE if s.modality == "image" and len(s.severities) > 1]


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> list[np.ndarray]:
    paths = sorted((shared_data / "flickr8k" / "images").glob("*.jpg"))
    return [np.asarray(PIL.Image.open(path).convert("RGB")) for path in paths[:: len(paths) // N_PHOTOS][:N_PHOTOS]]


def distortion(photo: np.ndarray, shifted: np.ndarray) -> float:
    grey = [np.asarray(PIL.Image.fromarray(pixels).convert("L")) for pixels in (photo, shifted)]
    return 1 - float(structural_similarity(*grey))


@pytest.mark.data
@pytest.mark.parametrize("shift", [pytest.param(shift, id=shift.name) for shift in IMAGE_SHIFTS])
def test_distortion_rises_with_severity(shift: Shift, photos: list[np.ndarray]) -> None:
    means = [
        np.mean([distortion(photo, apply_shift(shift, s, photo, str(i), 0)) for i, photo in enumerate(photos)])
        for s in shift.severities
    ]
    rises = all(low < high for low, high in itertools.pairwise(means))
    assert rises == (shift.name not in NOT_ORDERED), np.round(means, 3)
