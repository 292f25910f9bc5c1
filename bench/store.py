"""Writing files so that a crash leaves the old one or the new one, never a part."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bench.errors import RoveError, UsageError


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, as `replacing` does.

    Raises:
        RoveError: the disk is full, the folder read-only, or the like; what was at `path` is untouched.
    """
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path` to fill; flushed to disk and renamed over it when the block ends without an error.

    Raises:
        RoveError: the disk is full, the folder read-only, or the like; what was at `path` is untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise RoveError(
            f"cannot write {path}: {error.strerror}. Earlier files are intact; free space or choose --output."
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


@contextlib.contextmanager
def new_folder(output: Path, marker: str, overwrite: bool) -> Iterator[Path]:
    """A folder to fill, which becomes `output` when the block ends without an error; until then `output` stays.

    Args:
        output: where it will be.
        marker: a file that tells one of its kind; only a folder that has it is ever replaced.
        overwrite: whether one may be replaced at all.

    Raises:
        UsageError: `output` is not empty and may not be replaced.
    """
    if output.exists() and any(output.iterdir()):
        if not overwrite:
            raise UsageError(f"{output} is not empty; choose another --output, or --overwrite to replace it.")
        if not (output / marker).is_file():
            raise UsageError(f"{output} holds no {marker}; it is not overwritten.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        unfinished = Path(folder) / output.name
        unfinished.mkdir()
        yield unfinished
        if output.exists():
            shutil.rmtree(output)
        unfinished.rename(output)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds `folder` for this process; the system lets go of it when the process ends, however it ends.

    Raises:
        UsageError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another run is writing to {folder}; wait for it, or choose another --output.") from None
        yield


def cache_folder() -> Path:
    """Where embeddings are kept between runs: $ROVE_CACHE, or `rove` in the user's cache folder."""
    if "ROVE_CACHE" in os.environ:
        return Path(os.environ["ROVE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rove"


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
