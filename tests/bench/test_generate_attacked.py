"""Attacked copies on disk: whole, inside the budget, readable by `datasets`, the same after an interruption."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest

from bench.errors import IncompleteError, UsageError
from bench.generate import generate_again
from bench.generate_attacked import AttackedSettings, generate_attacked
from bench.generated import GeneratedManifest, verify_generated
from bench.submission import Submission, find_submission
from shifts.attacks.catalogue import parse_attack
from shifts.text.meaning import edit_distance

N_IMAGES = 12


class Counter:
    """Counts items, and stops after so many."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.total, self.done, self.stop_after = 0, 0, stop_after

    def planned(self, n_rows: int) -> None:
        self.total = n_rows

    def shard_done(self, shift_id: str, n_rows: int) -> None:
        self.done += n_rows
        if self.stop_after is not None and self.done >= self.stop_after:
            raise KeyboardInterrupt


def settings_for(victim: Submission, *attacks: str) -> AttackedSettings:
    chosen = tuple(parse_attack(name) for name in attacks)
    return AttackedSettings("scenes/test", chosen, victim, limit=N_IMAGES, batch_size=5)


@pytest.fixture(scope="module")
def soft(toys: Path) -> Submission:
    return find_submission(str(toys / "soft_colours"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, soft: Submission) -> tuple[Path, GeneratedManifest, Counter]:
    folder, counter = tmp_path_factory.mktemp("attacked"), Counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROVE_CACHE", str(folder / "cache"))
        manifest = generate_attacked(settings_for(soft, "pgd:2", "typo_greedy:1"), folder / "out", counter)
    return folder / "out", manifest, counter


def test_every_row_is_inside_the_budget_and_goes_with_its_crop(made: tuple[Path, GeneratedManifest, Counter]) -> None:
    folder, manifest, counter = made
    assert verify_generated(folder) == manifest
    assert manifest.plan.victim == "soft-colours"
    assert counter.done == counter.total == N_IMAGES + 5 * N_IMAGES
    crops, attacked, typos = (
        datasets.load_dataset(str(folder), name, split="train") for name in ("crops", "pgd-2", "typo_greedy-1")
    )
    assert crops["image_id"] == attacked["image_id"] == typos["image_id"]
    changes = [
        np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max()
        for a, b in zip(attacked["image"], crops["image"], strict=True)
    ]
    assert max(changes) == 2
    edits = [
        edit_distance(text, original)
        for row in typos
        for text, original in zip(row["captions"], row["original_captions"], strict=True)
    ]
    assert set(edits) <= {0, 1}
    assert sum(edits) == len(edits) - manifest.parts[2].n_unchanged
    assert attacked["victim"][0] == "soft-colours"


def test_it_goes_on_after_an_interruption_with_the_same_bytes(
    made: tuple[Path, GeneratedManifest, Counter], soft: Submission, tmp_path: Path
) -> None:
    settings, output = settings_for(soft, "pgd:2", "typo_greedy:1"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        generate_attacked(settings, output, Counter(stop_after=6))
    with pytest.raises(IncompleteError, match="unfinished"):
        verify_generated(output)
    (output / "data" / "crops" / ".00000.parquet.x1y2.tmp").write_bytes(b"half a sh")
    assert generate_attacked(settings, output, Counter()) == made[1] == verify_generated(output)
    assert not (output / "examples").exists()


def test_what_cannot_be_made_says_why(
    made: tuple[Path, GeneratedManifest, Counter], colours: Submission, soft: Submission, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="needs a gradient"):
        generate_attacked(settings_for(colours, "pgd:2"), tmp_path / "out", Counter())
    with pytest.raises(UsageError, match="begun from other inputs"):
        generate_attacked(settings_for(soft, "pgd:4"), made[0], Counter())
    with pytest.raises(UsageError, match="generate --attack"):
        generate_again(made[1], "scenes/test", {}, Counter())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        generate_attacked(settings_for(soft, "pgd:2"), tmp_path / "full", Counter())
    with pytest.raises(UsageError, match="is a file"):
        generate_attacked(settings_for(soft, "pgd:2"), tmp_path / "full" / "note.txt", Counter())
