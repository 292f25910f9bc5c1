"""What the system keeps of files in memory: dropped before a first query, filled before all others."""

from __future__ import annotations

import os
from pathlib import Path

_CHUNK_BYTES = 8 << 20


def drop_from_page_cache(path: Path) -> None:
    """Makes the system forget what it keeps of a file in memory, where it can; what is on disk stays as it is.

    Pages that any process has mapped and touched are not dropped: close what maps the file first.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Pages that were not written yet would stay.
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def read_into_page_cache(path: Path) -> None:
    """Reads a file once from beginning to end; what the system keeps of it then is as much as it has room for."""
    buffer = bytearray(_CHUNK_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
