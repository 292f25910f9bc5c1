"""Fits small enough for a test: a few scenes, one of the shipped bases, a context that keeps what is reported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import submissions
from bench.data.scenes import load_scenes
from bench.types import Base, Collection, FitContext

SUBMISSIONS = Path(submissions.__path__[0])


class Kept:
    """A checkpoint in memory."""

    def __init__(self) -> None:
        self.states: list[bytes] = []

    def read(self) -> bytes | None:
        return self.states[-1] if self.states else None

    def write(self, state: bytes) -> None:
        self.states.append(state)


class Killed(Exception):
    """Stands for the end of the process."""


class Deadly(Kept):
    """A checkpoint whose process ends right after the n-th state was written."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self._last = last

    def write(self, state: bytes) -> None:
        super().write(state)
        if len(self.states) == self._last:
            raise Killed


def tiny_base() -> Base:
    """The shipped `tiny`, to start from."""
    return Base("tiny", SUBMISSIONS / "tiny", {}, shipped=True)


def make_context(
    output: Path,
    args: Mapping[str, str] | None = None,
    base: Base | None = None,
    train: Collection | None = None,
    validation: Collection | None = None,
    seed: int = 0,
    epochs: int | None = 1,
    checkpoint: Kept | None = None,
    reports: list[dict[str, float]] | None = None,
    budget_s: float | None = None,
) -> FitContext:
    """What a recipe is given: 16 scenes to learn from and 8 to choose by, unless said otherwise."""
    output.mkdir(parents=True, exist_ok=True)
    return FitContext(
        train=train or load_scenes("scenes", "train").head(16),
        validation=validation or load_scenes("scenes", "val").head(8),
        output=output,
        seed=seed,
        epochs=epochs,
        args=dict(args or {}),
        device="cpu",
        report=(reports if reports is not None else []).append,
        checkpoint=checkpoint or Kept(),
        base=base or tiny_base(),
        budget_s=budget_s,
    )
