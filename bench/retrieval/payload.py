"""The tokens that a second stage keeps of every image, in one memory-mapped file of 16-bit numbers: an .npy file, so
that anything can read it.
"""

from __future__ import annotations

import hashlib
import io
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Float, Float16, Int

from bench.errors import InputError
from bench.retrieval.page_cache import drop_from_page_cache, read_into_page_cache
from bench.store import replacing

CHUNK_BYTES = 64 << 20


def write_payload(path: Path, tokens: Float[np.ndarray, "n_items ..."]) -> None:
    """Writes the tokens of all items as float16; `path` is the old file or the complete new one, at any moment.

    Args:
        path: where the file will be.
        tokens: float16 or float32; may be memory-mapped, as only a part is converted at a time.

    Raises:
        InputError: dtype or shape do not fit, or a value is not finite as float16; the message names the item.
        RoveError: the file cannot be written.
    """
    with replacing(path) as file:
        for chunk in _iterate_chunks(tokens):
            file.write(chunk)


def payload_sha256(tokens: Float[np.ndarray, "n_items ..."]) -> str:
    """The sha256 that the file of these tokens has; raises as `write_payload`."""
    digest = hashlib.sha256()
    for chunk in _iterate_chunks(tokens):
        digest.update(chunk)
    return digest.hexdigest()


class Payload:
    """The tokens of a collection's images; `open_payload` opens one.

    Args:
        path: the file.
        tokens: its content, memory-mapped, (n_items, ...) float16.
    """

    def __init__(self, path: Path, tokens: np.memmap) -> None:
        self._path = path
        self._mapped = tokens
        self._tokens = np.asarray(tokens)

    @property
    def n_items(self) -> int:
        return len(self._tokens)

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one item's tokens."""
        return self._tokens.shape[1:]

    @property
    def item_bytes(self) -> int:
        """Size of one item's tokens as they are stored."""
        return self._tokens.nbytes // self.n_items

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return self._mapped.offset + self._tokens.nbytes

    def fetch(self, rows: Int[np.ndarray, ...]) -> Float16[np.ndarray, "n_rows ..."]:
        """A copy of the tokens of `rows`, flattened.

        Rows beyond the last item begin again at the first: synthetic items share the real ones' tokens.

        Raises:
            InputError: a row is negative or no integer.
        """
        rows = np.asarray(rows)
        if rows.dtype.kind not in "iu" or (rows.size and rows.min() < 0):
            found = rows.min() if rows.dtype.kind == "i" else rows.dtype
            raise InputError(
                f"tokens of row {found} were asked for; expected integers of at least 0. "
                "An index gives -1 where it found too few items: leave those out."
            )
        return self._tokens[rows.ravel() % self.n_items]

    def drop_cached(self) -> None:
        """Drops the tokens from memory and the page cache, so that the next fetch reads the disk."""
        if hasattr(mmap, "MADV_DONTNEED"):
            # Pages that a process has mapped are not dropped from the cache.
            cast(mmap.mmap, self._mapped.base).madvise(mmap.MADV_DONTNEED)
        drop_from_page_cache(self._path)

    def warm(self) -> None:
        """Reads the whole file once, so that fetches find it in the page cache if it has room there."""
        read_into_page_cache(self._path)


def open_payload(path: Path) -> Payload:
    """A payload whose tokens are read from the file only when fetched.

    Raises:
        InputError: the file is missing, is no payload, or is not as long as it says.
    """
    remedy = "Remove it and encode the collection again."
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(
            f"{path} cannot be opened: {error}; expected an .npy file of whole float16 tokens. {remedy}"
        ) from error
    if not isinstance(tokens, np.memmap) or tokens.dtype != np.float16 or tokens.ndim < 2 or not tokens.size:
        raise InputError(f"{path} holds no tokens; expected an .npy file of float16 (n_items, ...). {remedy}")
    expected, found = tokens.offset + tokens.nbytes, path.stat().st_size
    if found != expected or not tokens.flags.c_contiguous:
        raise InputError(f"{path} has {found:,} bytes; expected {expected:,} for {tokens.shape}. {remedy}")
    return Payload(path, tokens)


def _iterate_chunks(tokens: Float[np.ndarray, "n_items ..."]) -> Iterator[bytes | memoryview]:
    """The file's bytes, a part at a time."""
    if tokens.dtype not in (np.float16, np.float32) or tokens.ndim < 2 or not tokens.size:
        raise InputError(
            f"tokens are {tokens.dtype} {tokens.shape}; expected float16 or float32 (n_items, ...), not empty."
        )
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": tokens.shape})
    yield header.getvalue()
    n_chunk = max(1, CHUNK_BYTES // (tokens.nbytes // len(tokens)))
    for start in range(0, len(tokens), n_chunk):
        yield _halve(tokens[start : start + n_chunk], start).data


def _halve(tokens: Float[np.ndarray, "n_chunk ..."], first: int) -> Float16[np.ndarray, "n_chunk ..."]:
    """The tokens of items from `first` on as float16."""
    with np.errstate(over="ignore"):
        halves = np.ascontiguousarray(tokens, "<f2")
    finite = np.isfinite(halves).reshape(len(halves), -1).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        largest = np.abs(tokens[row]).max()
        raise InputError(
            f"the tokens of item {first + row} reach {largest:.6g}; expected finite values of at most 65504, which "
            "float16 can hold. Scale them in the submission."
        )
    return halves
