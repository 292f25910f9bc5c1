"""Milliseconds per image: our corruptions beside the imagecorruptions package's. Run it as a script."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "shifts"))
from imagecorruptions_oracle import load_imagecorruptions, synthetic_photo

from shifts.catalogue import apply_shift, find_shift

SEVERITY = 3
N_REPEATS = 15


def median_ms(call: Callable[[], object]) -> float:
    call()
    times_ns = []
    for _ in range(N_REPEATS):
        start_ns = time.perf_counter_ns()
        call()
        times_ns.append(time.perf_counter_ns() - start_ns)
    return statistics.median(times_ns) / 1e6


def main() -> None:
    oracle = load_imagecorruptions()
    print(f"{'shift':<18}{'size':>10}{'ours ms':>10}{'theirs ms':>11}{'ratio':>8}")
    for name in ("gaussian_noise", "defocus_blur", "jpeg_compression"):
        shift = find_shift(name)
        for height, width in ((224, 224), (480, 640)):
            photo = synthetic_photo(height, width)
            ours = median_ms(lambda: apply_shift(shift, SEVERITY, photo, "photo", seed=0))  # noqa: B023
            theirs = median_ms(lambda: oracle.corrupt(photo, SEVERITY, name))  # noqa: B023
            print(f"{name:<18}{f'{width}x{height}':>10}{ours:>10.2f}{theirs:>11.2f}{theirs / ours:>7.1f}x")


if __name__ == "__main__":
    main()
