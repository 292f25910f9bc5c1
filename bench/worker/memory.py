"""The memory that processes take, and who started whom, as the kernel of Linux tells it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROCESSES = Path("/proc")


def peak_bytes_of(pid: int | str) -> int | None:
    """The largest resident memory of a running process, pages of mapped files among it; None if nobody tells.

    Source: VmHWM in proc(5).
    """
    return _field(PROCESSES / str(pid) / "status", "VmHWM:")


def resident_bytes_of(pid: int) -> int | None:
    """The resident memory of a running process now; None if nobody tells.

    Source: VmRSS in proc(5).
    """
    return _field(PROCESSES / str(pid) / "status", "VmRSS:")


def proportional_bytes_of(pid: int) -> int | None:
    """The same with every page divided by the number of processes that have it: slower to find; None if nobody tells.

    Source: Pss in proc_pid_smaps(5).
    """
    return _field(PROCESSES / str(pid) / "smaps_rollup", "Pss:")


def peak_bytes_of_all(pids: Iterator[int] | list[int]) -> int | None:
    """The sum over processes of each one's largest; pages that they share count for every one of them."""
    peaks = [peak for pid in pids if (peak := peak_bytes_of(pid)) is not None]
    return sum(peaks) if peaks else None


def descendants_of(pid: int) -> list[int]:
    """Everything that a process has started, and those in turn; those that ended count until somebody takes leave."""
    children: dict[int, list[int]] = {}
    for path in PROCESSES.glob("[0-9]*/stat"):
        try:
            # The name of the program may hold blanks and brackets; behind it follow state and parent.
            parent = path.read_text(errors="replace").rpartition(")")[2].split()[1]
        except (OSError, IndexError):
            continue
        children.setdefault(int(parent), []).append(int(path.parent.name))
    found, ahead = [], [pid]
    while ahead:
        own = children.get(ahead.pop(), [])
        found += own
        ahead += own
    return found


def _field(path: Path, field: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(field)]
    return int(found[0]) << 10 if found else None
