"""Milliseconds per image, ours beside the imagecorruptions package's, on one core in one run.

    python tests/benchmarks/bench_shifts.py [PHOTO_224] [PHOTO_640x480]

Without photos it takes made-up ones. The column "git" is the package with the inner loop of its glass_blur compiled by
numba, as its repository has it since the release; nothing else differs in speed between the two.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "shifts"))
import cv2
import numba
import numpy as np
import PIL.Image
from imagecorruptions_oracle import load_imagecorruptions, synthetic_photo

from shifts.catalogue import apply_shift, find_shift

GRID_15 = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
SIZES = ((224, 224), (480, 640))
SEVERITIES = (1, 2, 3, 4, 5)
SLOW_MS = 300


def median_ms(call: Callable[[], object], n_repeats: int = 7) -> float:
    """Median over repeats; a call that takes long is timed once, after it has been called once."""
    times_ms = []
    for _ in range(n_repeats + 1):
        started = time.perf_counter_ns()
        call()
        times_ms.append((time.perf_counter_ns() - started) / 1e6)
        if len(times_ms) == 2 and times_ms[1] > SLOW_MS:
            break
    return statistics.median(times_ms[1:])


@numba.njit
def _shuffle(pixels: np.ndarray, reach: int, rounds: int) -> None:
    height, width = pixels.shape[:2]
    for _ in range(rounds):
        for y in range(height - reach, reach, -1):
            for x in range(width - reach, reach, -1):
                dx, dy = np.random.randint(-reach, reach), np.random.randint(-reach, reach)  # noqa: NPY002
                pixels[y, x] = pixels[y + dy, x + dx]


def compiled_glass_blur(photo: np.ndarray, severity: int) -> np.ndarray:
    """The package's glass_blur with its loop compiled."""
    from skimage.filters import gaussian

    sigma, reach, rounds = [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)][severity - 1]
    pixels = np.uint8(gaussian(photo / 255.0, sigma=sigma, channel_axis=-1) * 255)
    _shuffle(pixels, reach, rounds)
    return np.clip(gaussian(pixels / 255.0, sigma=sigma, channel_axis=-1), 0, 1) * 255


def load_photos(paths: Sequence[str]) -> list[np.ndarray]:
    if not paths:
        return [synthetic_photo(*size) for size in SIZES]
    photos = [PIL.Image.open(path).convert("RGB") for path in paths]
    return [
        np.asarray(photo.resize(size[::-1], PIL.Image.Resampling.BICUBIC))
        for photo, size in zip(photos, SIZES, strict=True)
    ]


def main() -> None:
    warnings.simplefilter("ignore")
    cv2.setNumThreads(1)
    oracle = load_imagecorruptions()
    for photo in load_photos(sys.argv[1:]):
        print(f"\n{photo.shape[1]} x {photo.shape[0]}, mean over severities, ms an image")
        print(f"{'shift':<18}{'ours':>9}{'1.1.2':>10}{'ratio':>8}{'slowest severity':>18}{'git':>9}")
        ours, theirs, git = ({name: [0.0] * 5 for name in (*GRID_15, *EXTRA)} for _ in range(3))
        for name in (*GRID_15, *EXTRA):
            shift = find_shift(name)
            for i, severity in enumerate(SEVERITIES):
                ours[name][i] = median_ms(lambda: apply_shift(shift, severity, photo, "photo", seed=0))  # noqa: B023
                theirs[name][i] = median_ms(lambda: oracle.corrupt(photo, severity, name))  # noqa: B023
                git[name][i] = theirs[name][i]
                if name == "glass_blur":
                    git[name][i] = median_ms(lambda: compiled_glass_blur(photo, severity))  # noqa: B023
            ratios = [b / a for a, b in zip(ours[name], theirs[name], strict=True)]
            own, other, third = (statistics.mean(table[name]) for table in (ours, theirs, git))
            print(
                f"{name:<18}{own:>9.2f}{other:>10.2f}{other / own:>7.1f}x{min(ratios):>17.2f}x{third:>9.2f}", flush=True
            )
        for title, names in (("15 x 5", GRID_15), ("without glass", [n for n in GRID_15 if n != "glass_blur"])):
            own, other, third = (sum(sum(table[name]) for name in names) for table in (ours, theirs, git))
            print(f"{title:<18}{own:>9.1f}{other:>10.1f}{other / own:>7.1f}x{'':>18}{third:>9.1f} ({third / own:.1f}x)")


if __name__ == "__main__":
    main()
