"""Same inputs, same bytes, for good: one sha256 for every shift and severity.

A change here is a change of the shift: raise its version in the catalogue, then rewrite the table with
`python tests/shifts/test_golden.py`. Shifts whose model has to be fetched from the hub are not in the table.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
from imagecorruptions_oracle import synthetic_photo

from shifts.catalogue import CATALOGUE, Shift, apply_shift, find_missing

TABLE = Path(__file__).with_name("golden.json")
CAPTIONS = (
    "A man in a blue shirt is cleaning the window of an old house, near the sea.",
    "Two brown dogs chase a red ball.",
    "a cat sleeping on top of a laptop computer",
    "A ball is being thrown by a young girl to her brother at the park.",
    "There's 3 kids; one of them isn't wearing a hat!",
)


def digest(shift: Shift, severity: int) -> str:
    if shift.modality.endswith("text"):
        texts = [apply_shift(shift, severity, text, f"{i}.jpg#0", seed=0) for i, text in enumerate(CAPTIONS)]
        return hashlib.sha256("\n".join(texts).encode()).hexdigest()
    photo, partner = synthetic_photo(97, 131), synthetic_photo(90, 70, seed=1)
    item = (photo, partner) if shift.modality == "gallery_image" else photo
    return hashlib.sha256(apply_shift(shift, severity, item, "0.jpg", seed=0).tobytes()).hexdigest()


@pytest.mark.parametrize("shift", [pytest.param(shift, id=shift.name) for shift in CATALOGUE])
def test_bytes_are_those_of_the_table(shift: Shift) -> None:
    if reason := find_missing(shift.name):
        pytest.skip(reason)
    expected = json.loads(TABLE.read_text())
    for severity in shift.severities:
        key = f"{shift.id(severity)} version {shift.version}"
        assert digest(shift, severity) == expected.get(key), f"{key} gives other bytes; see the head of this file"


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    runnable = [shift for shift in CATALOGUE if not find_missing(shift.name)]
    table = {
        f"{s.id(severity)} version {s.version}": digest(s, severity) for s in runnable for severity in s.severities
    }
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
    sys.stdout.write(f"{len(table)} digests\n")


if __name__ == "__main__":
    main()
