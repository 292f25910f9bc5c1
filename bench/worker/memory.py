"""The largest memory that a process has had in RAM, as the kernel of Linux keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROCESSES = Path("/proc")


def peak_bytes_of(pid: int | str) -> int | None:
    """The largest resident memory of a running process, pages of mapped files among it; None if nobody tells.

    Source: VmHWM in proc(5).
    """
    try:
        lines = (PROCESSES / str(pid) / "status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) << 10 if found else None


def peak_bytes_of_group(group: int) -> int | None:
    """The sum over a process group of each one's largest; pages that they share count for every one of them."""
    peaks = [peak for pid in _members(group) if (peak := peak_bytes_of(pid)) is not None]
    return sum(peaks) if peaks else None


def _members(group: int) -> Iterator[int]:
    for path in PROCESSES.glob("[0-9]*/stat"):
        try:
            # The name of the program may hold blanks and brackets; behind it follow state, parent and group.
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[2:3] == [str(group)]:
            yield int(path.parent.name)
