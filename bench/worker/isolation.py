"""How far a submission's process is kept from everything else: four levels, found out by trying them.

| level | what holds |
| --- | --- |
| L0 | a fresh interpreter, a cleared environment, its own session and scratch folder, limits, no process left behind |
| L1 | and a limit of the memory that it and its children take |
| L2 | and no files but its own and the installed packages, no sockets, no look into other processes (Linux) |
| L3 | and namespaces of its own: other processes and mounts are not even there (bubblewrap) |

Each level holds all before it.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import site
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.errors import UsageError
from bench.store import Scratch
from bench.worker.sandbox import landlock_version

Mode = Literal["auto", "none", "process", "strict"]
Level = Literal["L0", "L1", "L2", "L3"]
MODES: tuple[Mode, ...] = ("auto", "none", "process", "strict")
PROBE_S = 20.0
PROBES = 3
SOURCE = Path(__file__).resolve().parents[2]
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/etc", "/sys", "/proc")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
_PROBE = (
    "import socket, sys\n"
    "try:\n"
    "    socket.socket()\n"
    "except OSError:\n"
    "    try:\n"
    "        open(sys.argv[1])\n"
    "    except OSError:\n"
    "        open(sys.argv[2], 'w').write('confined')\n"
)


@dataclass(frozen=True)
class Isolation:
    """A level, and whether images and captions are encoded by processes that know nothing of each other."""

    level: Level
    separate: bool = False

    def __str__(self) -> str:
        return f"{self.level} separate" if self.separate else self.level

    @property
    def confined(self) -> bool:
        """Whether files, sockets and other processes are out of reach."""
        return self.level in ("L2", "L3")


@dataclass(frozen=True)
class Reach:
    """What a confined process may touch beside the installed packages.

    Args:
        read: files and folders that it may read.
        write: and those in which it may write, its scratch folder first.
        network: whether it may open sockets: while it fetches its weights, before it is given anything.
        device: torch's name of the device.
    """

    read: tuple[Path, ...]
    write: tuple[Path, ...]
    network: bool = False
    device: str = "cpu"


def choose_isolation(mode: str) -> Isolation:
    """What `--isolation` asks for, on this machine.

    Raises:
        UsageError: there is no such mode, or `strict` cannot be had here.
    """
    if mode not in MODES:
        raise UsageError(f"--isolation got '{mode}'; expected one of {', '.join(MODES)}.")
    if mode in ("none", "process"):
        return Isolation("L0" if mode == "none" else "L1")
    best = best_level()
    if mode == "strict" and not Isolation(best).confined:
        raise UsageError(
            "--isolation strict needs Linux with Landlock and seccomp; here a process cannot be confined. "
            "--isolation process runs without; the record will say so."
        )
    return Isolation(best, separate=mode == "strict")


@functools.cache
def best_level() -> Level:
    """The highest level that works on this machine: each is tried on a process that tries to break out."""
    levels: tuple[Level, ...] = ("L3", "L2")
    return next((level for level in levels if _holds(level)), "L1")


def confine(level: Level, reach: Reach, command: Sequence[str]) -> list[str]:
    """The command that runs `command` at a level.

    Args:
        command: of Python, with absolute paths.
    """
    if level not in ("L2", "L3"):
        return list(command)
    read = [*_readable(), *reach.read, *_accelerators(reach.device)]
    write = [*map(Path, _DEVICES), *_accelerators(reach.device), *reach.write]
    sandbox = [sys.executable, "-P", "-m", "bench.worker.sandbox", *(["--network"] if reach.network else [])]
    sandbox += [f"--read={path}" for path in read] + [f"--write={path}" for path in write]
    sandbox += [f"--list={SOURCE}", "--", *command]  # to import from a folder is to look what is in it
    return sandbox if level == "L2" else [*_own_namespaces(read, reach), *sandbox]


def homes_of_hubs() -> dict[str, Path]:
    """The folders in which the hubs' clients keep what they have fetched, by the variables that name them."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    usual = {"HF_HOME": cache / "huggingface", "TORCH_HOME": cache / "torch"}
    return {name: Path(os.environ.get(name) or place) for name, place in usual.items()}


def _own_namespaces(read: Iterable[Path], reach: Reach) -> list[str]:
    """bubblewrap's part of the command: everything that may be read is mounted, for reading alone."""
    shared = ["--share-net"] if reach.network else []
    mounts = [*(f"--ro-bind-try\0{path}\0{path}" for path in _outermost(read) if path not in map(Path, _KERNELS))]
    mounts += ["--proc\0/proc", "--dev\0/dev", "--ro-bind-try\0/sys\0/sys"]
    mounts += [f"--dev-bind-try\0{path}\0{path}" for path in _accelerators(reach.device)]
    mounts += [f"--bind-try\0{path}\0{path}" for path in reach.write]
    options = [part for mount in mounts for part in mount.split("\0")]
    return [_bubblewrap(), "--unshare-all", *shared, "--die-with-parent", *options, "--"]


_KERNELS = ("/proc", "/sys")


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """`paths` without those that lie in another of them."""
    known = dict.fromkeys(paths)
    return [path for path in known if not any(parent in known for parent in path.parents)]


def _readable() -> list[Path]:
    """The system, Python, the installed packages, and of Rove's source what submissions are made of."""
    pythons = [sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages(), site.getusersitepackages()]
    libraries = [part for part in os.environ.get("LD_LIBRARY_PATH", "").split(":") if part]
    own = [SOURCE / name for name in ("bench", "shifts", "submissions")]
    real = [Path(os.path.realpath(sys.executable)).parents[1]]
    return [*map(Path, (*_SYSTEM, *pythons, *libraries)), *own, *real]


def _accelerators(device: str) -> list[Path]:
    if device == "cpu":
        return []
    return sorted(Path("/dev").glob("nvidia*")) + [
        path for path in (Path("/dev/kfd"), Path("/dev/dri")) if path.exists()
    ]


def _bubblewrap() -> str:
    return shutil.which("bwrap") or "bwrap"


def _holds(level: Level) -> bool:
    """Whether a process at that level runs, and can neither open a socket nor read a file that is not its own.

    One that was killed, or that a busy machine let wait too long, has shown nothing, and another one is tried: what a
    run is confined to must not depend on that.
    """
    if landlock_version() == 0 or (level == "L3" and shutil.which("bwrap") is None):
        return False
    return next((held for _ in range(PROBES) if (held := _probe(level)) is not None), False)


def _probe(level: Level) -> bool | None:
    """Whether one process at that level is confined; None where it ended before it could tell."""
    with Scratch("probe") as folder:
        scratch, secret = folder / "scratch", folder / "secret"
        scratch.mkdir()
        secret.touch()
        told = scratch / "told"
        probe = [sys.executable, "-P", "-c", _PROBE, str(secret), str(told)]
        command = confine(level, Reach((), (scratch,)), probe)
        environment = {"PYTHONPATH": str(SOURCE)}
        try:
            ended = subprocess.run(command, env=environment, cwd=scratch, capture_output=True, timeout=PROBE_S)
        except subprocess.TimeoutExpired:
            return None
        except OSError:
            return False
        killed = ended.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)  # the latter is what bubblewrap says
        return None if killed else told.exists()
