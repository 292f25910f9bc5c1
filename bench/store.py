"""Writing files so that a crash leaves the old one or the new one, never a part, and reading them so that a changed bit
is noticed: files of a cache are sealed, those whose bytes others read as they are have their proof beside them.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bench.errors import InputError, RoveError, UsageError

_log = logging.getLogger("rove")
_SCRATCH = "rove-scratch-"


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

    It is held until then, so that what a killed process left can be told from what is being written.

    Raises:
        RoveError: the disk is full, the folder read-only, or the like; what was at `path` is untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            with contextlib.suppress(OSError):  # not every file system has locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise RoveError(
            f"cannot write {path}: {error.strerror or error}. Earlier files are intact; free space or choose --output."
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def seal(*parts: bytes) -> bytes:
    """The parts in one, behind their sha256."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return b"".join((digest.digest(), *parts))


def unseal(contents: bytes) -> bytes | None:
    """What was sealed; None if `contents` is not as `seal` left it."""
    digest, data = contents[:32], contents[32:]
    return data if hashlib.sha256(data).digest() == digest else None


def read_sealed(path: Path) -> bytes | None:
    """The data of a sealed file; None if there is none that can be read whole. A damaged one is set aside."""
    try:
        contents = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("%s cannot be read and is made again: %s.", path, error.strerror)
        return None
    data = unseal(contents)
    if data is None:
        with contextlib.suppress(OSError):
            set_aside(path, f"{path} does not have the sha256 that it begins with.")
    return data


def set_aside(path: Path, problem: str) -> None:
    """Renames a damaged file to NAME.bad, or to NAME.2.bad where there is one already, and logs why."""
    places = (path.with_name(f"{path.name}{'' if n == 1 else f'.{n}'}.bad") for n in itertools.count(1))
    target = next(place for place in places if not place.exists())
    _log.warning("%s It is set aside as %s, and made again when it is needed.", problem, target.name)
    path.rename(target)


def write_with_proof(path: Path, data: bytes) -> None:
    """Writes `data` as `write_atomic` does, for a file whose bytes are its own: its sha256 lies beside it.

    The proof is written first, and names what was there before too: whichever a crash leaves is proven.

    Raises:
        RoveError: as `write_atomic`.
    """
    earlier = [sha256_of(path)] if path.is_file() else []
    write_atomic(proof_of(path), "\n".join([hashlib.sha256(data).hexdigest(), *earlier]).encode())
    write_atomic(path, data)


def proof_of(path: Path) -> Path:
    """Where the sha256 of a file lies that was written with its proof."""
    return path.with_name(f".{path.name}.sha256")


def check_proof(path: Path) -> None:
    """Nothing, if a file is as it was written, or if it has no proof.

    Raises:
        InputError: it is not.
    """
    proof = proof_of(path)
    if proof.is_file() and sha256_of(path).encode() not in proof.read_bytes().split():
        raise InputError(f"{path} has changed since it was written: its sha256 is not the one in {proof.name}.")


def is_intact(path: Path) -> bool:
    """Whether a file is there and as it was written; one that has changed is set aside."""
    try:
        check_proof(path)
    except FileNotFoundError:
        return False
    except InputError as error:
        set_aside(path, str(error))
    return path.is_file()


def is_held(path: Path) -> bool:
    """Whether a process holds a file: what `replacing` fills, or the `.lock` of a folder; True where none can tell."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


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
            output.rename(Path(folder) / "earlier")
        unfinished.rename(output)
        _flush_folder(output.parent)


class Scratch:
    """A temporary folder that goes when it is closed, or once nobody is left: whoever uses it holds a lock on it, and
    a process that makes its first one removes those that no process holds any more, because theirs was killed.

    Args:
        purpose: a word for the folder's name.

    Attributes:
        path: of the folder.
        descriptor: what holds it; a process that inherits it holds the folder too.
    """

    def __init__(self, purpose: str) -> None:
        _sweep(tempfile.gettempdir())
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{purpose}-"))
            with contextlib.suppress(FileNotFoundError):  # swept before it was held
                self.descriptor = os.open(self.path, os.O_RDONLY)
                with contextlib.suppress(OSError):  # where nothing can be locked, nothing is ever swept either
                    fcntl.flock(self.descriptor, fcntl.LOCK_SH)
                if self.path.exists():
                    return
                os.close(self.descriptor)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes it, and what is left in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.descriptor)


@functools.cache
def _sweep(temporary: str) -> None:
    for folder in Path(temporary).glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError):
            _remove_unheld(folder)


def _remove_unheld(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(descriptor)


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
