"""The process between the harness and a submission: it starts the submission, watches it, and leaves nothing of it.

`python -m bench.worker.guard --lifeline FD [--scratch FOLDER --held FD] [--memory BYTES [--address-space]] -- COMMAND`
runs the command in a session of its own and ends it with everything that it started, orphans too, when it ends by
itself, when it takes too much memory, or when the harness closes the lifeline or dies. Then it takes the scratch folder
away, which it holds by a descriptor, and reports over the lifeline. The submission has neither descriptor, so that no
exit status can pass for another. Only the standard library is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence

from bench.worker.memory import descendants_of, proportional_bytes_of, resident_bytes_of

POLL_S = 1.0
SWEEP_S = 10.0
FILE_BYTES, FILES = 64 << 30, 4096
RESERVED_BYTES = 8 << 30
"""What libraries, threads and allocators map without using it."""
_PR_SET_CHILD_SUBREAPER = 36


def guard(
    lifeline: socket.socket, memory_bytes: int | None, address_bytes: int | None, command: Sequence[str]
) -> dict[str, object]:
    """Runs the command to one of its ends; what the harness is told about it.

    Args:
        lifeline: to the harness.
        memory_bytes: what the command and all that it starts may have resident together, looked at every `POLL_S`.
        address_bytes: what each of them may map, so that one large request fails at once.
        command: with absolute paths.

    Returns:
        "status" as os.waitpid gives it, None if the command was running; "resident_bytes" if that was too much;
        "left", processes that could not be ended.
    """
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    child = _start(command, lifeline, address_bytes)
    lifeline.sendall(json.dumps({"pid": child}).encode() + b"\n")
    report: dict[str, object] = {"status": None, "resident_bytes": None}
    while True:
        descriptors = [lifeline.fileno(), woken]
        ready, _, _ = select.select(descriptors, [], [], None if memory_bytes is None else POLL_S)
        if woken in ready:
            os.read(woken, 4096)
        status = _reap(child)
        if status is not None or lifeline.fileno() in ready:
            report["status"] = status
            break
        if memory_bytes is not None and (taken := _bytes_above(memory_bytes)) is not None:
            report["resident_bytes"] = taken
            break
    return {**report, "left": sweep(child)}


def sweep(child: int) -> int:
    """Ends the group of `child`, everything that this process has started, and those in turn; how many it could not."""
    deadline = time.monotonic() + SWEEP_S
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    while time.monotonic() < deadline:
        found = descendants_of(os.getpid())
        # Stopped first: what is being killed one by one could fork faster.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in found:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
        _reap(0)
        if not found:
            return 0
        time.sleep(0.002)
    return len(descendants_of(os.getpid()))


def _start(command: Sequence[str], lifeline: socket.socket, address_bytes: int | None) -> int:
    """The process of the command, in its own session and within its limits, without the lifeline."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        lifeline.set_inheritable(False)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: FILE_BYTES, resource.RLIMIT_NOFILE: FILES}
        if address_bytes is not None:
            limits[resource.RLIMIT_AS] = address_bytes
        for limit, most in limits.items():
            hard = resource.getrlimit(limit)[1]
            least = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(limit, (least, least))
        os.execv(command[0], list(command))
    finally:
        os._exit(127)


def _reap(child: int) -> int | None:
    """Takes leave of all that have ended; the status of `child`, if it is among them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                status = ended[1]
    return status


def _bytes_above(most: int) -> int | None:
    """The memory that everything started takes together, if it is more than `most`.

    What processes share counts for each of them at first, which is quick to find, and once where that is too much.
    """
    pids = descendants_of(os.getpid())
    if sum(resident_bytes_of(pid) or 0 for pid in pids) <= most:
        return None
    taken = sum(proportional_bytes_of(pid) or 0 for pid in pids)
    return taken if taken > most else None


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def main() -> None:
    """Entry point: the lifeline comes by number."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lifeline", type=int, required=True)
    parser.add_argument("--scratch")
    parser.add_argument("--held", type=int)
    parser.add_argument("--memory", type=int)
    parser.add_argument("--address-space", action="store_true")
    parser.add_argument("command", nargs="+")
    told = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the harness says when it is over
    _adopt_orphans()
    if told.held is not None:
        os.set_inheritable(told.held, False)
    with socket.socket(fileno=told.lifeline) as lifeline:
        address_bytes = told.memory + RESERVED_BYTES if told.address_space else None
        report = guard(lifeline, told.memory, address_bytes, told.command)
        if told.scratch:
            shutil.rmtree(told.scratch, ignore_errors=True)
        with contextlib.suppress(OSError):
            lifeline.sendall(json.dumps(report).encode() + b"\n")


if __name__ == "__main__":
    main()
