"""Typo shifts on the captions of COCO: seconds for all of them, and the ratio to nlpaug. Run it as a script.

    taskset -c 0 python tests/benchmarks/bench_text_shifts.py coco_karpathy_test.json

Times are of the processor, so that other processes count little. Rows without a ratio have no counterpart in nlpaug,
whose augmenters run at their own defaults.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from shifts.catalogue import CATALOGUE, Shift, shift_captions

N_SAMPLE = 500


def read_captions(path: Path) -> tuple[list[str], list[str]]:
    """Every caption and its id."""
    images = json.loads(path.read_text(encoding="utf-8"))
    pairs = [(text, f"{image['image']}#{i}") for image in images for i, text in enumerate(image["caption"])]
    captions, ids = zip(*pairs, strict=True)
    return list(captions), list(ids)


def load_augmenters() -> dict[str, Callable[[str], object]]:
    """The augmenter of nlpaug that corresponds to a shift."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nlpaug.augmenter.char as char
        import nlpaug.augmenter.word as word
    return {
        "typo_keyboard": char.KeyboardAug().augment,
        "typo_ocr": char.OcrAug().augment,
        "typo_char_insert": char.RandomCharAug(action="insert").augment,
        "typo_char_replace": char.RandomCharAug(action="substitute").augment,
        "typo_char_swap": char.RandomCharAug(action="swap").augment,
        "typo_char_delete": char.RandomCharAug(action="delete").augment,
        "typo_misspelling": word.SpellingAug().augment,
    }


def seconds(call: Callable[[], object]) -> float:
    start_ns = time.process_time_ns()
    call()
    return (time.process_time_ns() - start_ns) / 1e9


def our_seconds(shift: Shift, captions: list[str], ids: list[str]) -> float:
    """For all captions at all severities, the table already read."""
    shift_captions(shift, 1, captions[:1], ids[:1], seed=0)
    return sum(seconds(lambda: shift_captions(shift, s, captions, ids, seed=0)) for s in shift.severities)  # noqa: B023


def main() -> None:
    captions, ids = read_captions(Path(sys.argv[1]))
    ours_s = {shift.name: our_seconds(shift, captions, ids) for shift in CATALOGUE if shift.family == "typo"}
    print(f"all, {len(captions)} captions at 5 severities: {sum(ours_s.values()):.2f} s")
    augmenters = load_augmenters()
    sample = captions[:N_SAMPLE]
    print(f"{'shift':<20}{'us/caption':>12}{'nlpaug us':>12}{'ratio':>9}")
    for name, total_s in ours_s.items():
        ours_us = total_s / len(captions) / 5 * 1e6
        row = f"{name:<20}{ours_us:>12.2f}"
        if augment := augmenters.get(name):
            theirs_us = seconds(lambda: [augment(caption) for caption in sample]) / N_SAMPLE * 1e6
            row += f"{theirs_us:>12.1f}{theirs_us / ours_us:>8.0f}x"
        print(row)


if __name__ == "__main__":
    main()
