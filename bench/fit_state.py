"""What a fit keeps beside its output until that is finished: which fit it is, the latest checkpoint and the log.

`.NAME.fit/` lies beside the output folder NAME. `key.json` holds every input that decides the weights; a checkpoint is
read only by a fit of the same key. A checkpoint is sealed, and begins with a line that says how long the log was: a fit
that goes on from it cuts the log there, so what it does again is not logged again.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.errors import InputError, UsageError
from bench.store import locked, seal, unseal, write_atomic

LOG_FILE = "fit.jsonl"
_KEY_FILE, _CHECKPOINT_FILE = "key.json", "checkpoint"


class FitState:
    """The state of one fit: a `bench.types.Checkpoint`, and the log.

    Args:
        folder: where it lies.
        key: whatever decides the weights, by name.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder, self._key = folder, dict(key)
        self._started = time.monotonic()

    @property
    def log(self) -> Path:
        """The JSON lines of the fit so far."""
        return self.folder / LOG_FILE

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return self._checkpoint.is_file()

    @property
    def seconds(self) -> float:
        """Since the fit began, interruptions apart, and apart from what is lost to them."""
        return time.monotonic() - self._started

    def read(self) -> bytes | None:
        """The latest state, or None; log and clock go back to when it was written.

        Raises:
            InputError: the file is damaged.
        """
        if not self.has_checkpoint:
            return None
        contents = unseal(self._checkpoint.read_bytes())
        if contents is None:
            raise InputError(f"{self._checkpoint} is damaged; fit again without --resume.")
        head, _, state = contents.partition(b"\n")
        facts = json.loads(head)
        if self.log.is_file() and self.log.stat().st_size > facts["log_bytes"]:
            os.truncate(self.log, facts["log_bytes"])
        self._started = time.monotonic() - facts["seconds"]
        return state

    def write(self, state: bytes) -> None:
        """Keeps `state` in place of the one before; a crash leaves one of them whole."""
        n_log_bytes = self.log.stat().st_size if self.log.is_file() else 0
        head = json.dumps({"log_bytes": n_log_bytes, "seconds": round(self.seconds, 3)})
        write_atomic(self._checkpoint, seal(f"{head}\n".encode(), state))

    def append(self, figures: Mapping[str, float]) -> None:
        """Logs figures as one line, with the seconds since the fit began; what is not finite becomes null."""
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**finite, "seconds": round(self.seconds, 1)}) + "\n")

    def begin(self, resume: bool, say: Callable[[str], None]) -> None:
        """Makes sure that what lies here is of this fit, or that nothing does.

        Args:
            resume: whether to go on from what is there.
            say: takes lines for a person.

        Raises:
            UsageError: what is to be resumed is of another fit.
        """
        if resume and self.has_checkpoint:
            self._check_key()
            say(f"going on from the state in {self.folder}.")
            return
        if resume:
            say(f"there is no state in {self.folder}: starting from the beginning.")
        elif self.has_checkpoint:
            say(f"discarding the state of an unfinished fit in {self.folder}; --resume would have gone on from it.")
        for path in (self._checkpoint, self.log):
            path.unlink(missing_ok=True)
        write_atomic(self._key_path, json.dumps(self._key, indent=1).encode())

    def discard(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder)

    @property
    def _checkpoint(self) -> Path:
        return self.folder / _CHECKPOINT_FILE

    @property
    def _key_path(self) -> Path:
        return self.folder / _KEY_FILE

    def _check_key(self) -> None:
        try:
            earlier = json.loads(self._key_path.read_bytes())
        except (OSError, ValueError):
            raise InputError(f"{self._key_path} is missing or damaged; fit again without --resume.") from None
        if differences := describe_differences(earlier, json.loads(json.dumps(self._key))):
            raise UsageError(
                f"--resume: the state in {self.folder} is of another fit: {differences}. "
                "Give the same command as then, or leave --resume out to start from the beginning."
            )


@contextmanager
def open_state(output: Path, key: Mapping[str, Any], resume: bool, say: Callable[[str], None]) -> Iterator[FitState]:
    """The state of the fit that makes `output`, held for this process.

    When the block ends it stays, unless it ends with an error before the first checkpoint.

    Raises:
        UsageError: another process makes the same output, or the state is of another fit.
    """
    state = FitState(state_folder(output), key)
    with locked(state.folder):
        state.begin(resume, say)
        try:
            yield state
        except BaseException:
            if not state.has_checkpoint:
                state.discard()
            raise


def state_folder(output: Path) -> Path:
    """Where the state of the fit that makes `output` lies."""
    output = output.absolute()
    return output.parent / f".{output.name}.fit"


def describe_differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which entries of two keys differ, in words: short values stand there, digests do not; "" if none do."""
    names = [name for name in {**earlier, **now} if earlier.get(name) != now.get(name)]
    return "; ".join(_describe_change(name, earlier.get(name), now.get(name)) for name in names)


def _describe_change(name: str, then: Any, now: Any) -> str:
    is_digest = any(isinstance(value, str) and len(value) == 64 for value in (then, now))
    return f"other {name}" if is_digest else f"{name} was {_brief(then)}, is {_brief(now)}"


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={text}" for key, text in value.items()) or "none"
    return "none" if value is None else str(value)
