"""What a confined process may touch, enforced by Linux without any privileges: Landlock for files, seccomp for calls.

`python -m bench.worker.sandbox --read PATH --list PATH --write PATH [--network] -- COMMAND` gives up everything else,
for good, and becomes the command. Only the standard library is imported: a thread that ran already would stay free.

Sources: landlock(7), seccomp(2), <linux/landlock.h>, <linux/audit.h> and the system call tables of Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 24, 38, 22, 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULESET_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _CONTROL_DEVICE = 1 << 14, 1 << 15
_MAKE_DEVICES = 1 << 6 | 1 << 11
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _CONTROL_DEVICE
_READ = _EXECUTE | _READ_FILE | _READ_FOLDER
_RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15}
_LATEST_RIGHTS = 16
_BIND_AND_CONNECT, _SIGNALS_AND_ABSTRACT_SOCKETS = 0b11, 0b11

# (x86_64, aarch64)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_SOCKETS = {"socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202)}
_FORBIDDEN = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),  # does what the others forbid, out of the filter's sight
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_X32 = 0x40000000


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def landlock_version() -> int:
    """The version of Landlock's interface that the kernel offers; 0 without it."""
    if sys.platform != "linux":
        return 0
    return max(0, ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _RULESET_VERSION))


def drop_capabilities() -> None:
    """Leaves the command that this process becomes without what root may do beyond others; others have none of it."""
    for capability in range(64):
        with contextlib.suppress(OSError):
            _prctl(_PR_CAPBSET_DROP, capability, 0)


def confine_files(read: Iterable[Path], listed: Iterable[Path], write: Iterable[Path], network: bool) -> None:
    """Leaves this process, and all that it starts, these files and folders alone; of those absent nothing.

    On newer kernels also no signals to processes that are not confined with it and, without `network`, no TCP.

    Args:
        read: may be read and executed, with what is in them.
        listed: folders whose names may be read, and those of the folders in them.
        write: everything may be done with them but making devices.
        network: whether TCP stays.

    Raises:
        OSError: the kernel refuses.
    """
    version = landlock_version()
    handled = (1 << _RIGHTS_BY_VERSION.get(version, _LATEST_RIGHTS)) - 1
    ruleset = _Ruleset(handled, 0, _SIGNALS_AND_ABSTRACT_SOCKETS if version >= 6 else 0)
    if version >= 4 and not network:
        ruleset.network = _BIND_AND_CONNECT
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    descriptor = _call(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), 0)
    try:
        for paths, rights in ((read, _READ), (listed, _READ_FOLDER), (write, handled & ~_MAKE_DEVICES)):
            for path in paths:
                _allow(descriptor, path, rights & handled)
        _forbid_new_privileges()
        _call(_RESTRICT_SELF, descriptor, 0)
    finally:
        os.close(descriptor)


def forbid_calls(network: bool) -> None:
    """Refuses system calls that reach other processes, the kernel's inside or, without `network`, any socket.

    Raises:
        OSError: the kernel refuses.
    """
    filter_ = calls_filter(platform.machine(), network)
    memory = ctypes.create_string_buffer(filter_, len(filter_))
    # struct sock_fprog: the number of instructions, and where they are.
    program = struct.pack("HxxxxxxP", len(filter_) // 8, ctypes.addressof(memory))
    _forbid_new_privileges()
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(program))


def calls_filter(machine: str, network: bool) -> bytes:
    """The filter as a program of classic BPF, 8 bytes an instruction.

    Raises:
        OSError: nothing is known of this kind of processor.
    """
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    column, architecture = _ARCHITECTURES[machine]
    refused = [*_FORBIDDEN.values(), *([] if network else _SOCKETS.values())]
    numbers = [pair[column] for pair in refused]
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _REFUSE | errno.ENOSYS),
        (_JUMP_EQUAL, 0, 1, _CLONE3[column]),
        (
            _RETURN,
            0,
            0,
            _REFUSE | errno.ENOSYS,
        ),  # its flags lie in memory, out of sight: C libraries fall back to clone
    ]
    for number in numbers:
        lines += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE | errno.EPERM)]
    lines += [
        (_JUMP_EQUAL, 0, 3, _CLONE[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_ANY_BIT, 0, 1, _NEW_NAMESPACES),
        (_RETURN, 0, 0, _REFUSE | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        beneath = _PathBeneath(rights if path.is_dir() else rights & _ON_FILES, parent)
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(beneath), 0)
    finally:
        os.close(parent)


def _forbid_new_privileges() -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0)


def _prctl(option: int, first: int, second: object) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, ctypes.c_ulong(first), second, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def _call(number: int, *arguments: object) -> int:
    found: int = ctypes.CDLL(None, use_errno=True).syscall(number, *arguments)
    if found < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}: {os.strerror(ctypes.get_errno())}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: gives everything up but what is named, and becomes the command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--read", action="append", default=[], type=Path)
    parser.add_argument("--list", action="append", default=[], type=Path)
    parser.add_argument("--write", action="append", default=[], type=Path)
    parser.add_argument("--network", action="store_true")
    parser.add_argument("command", nargs="+")
    told = parser.parse_args(arguments)
    drop_capabilities()
    confine_files(told.read, told.list, told.write, told.network)
    forbid_calls(told.network)
    os.execv(told.command[0], told.command)


if __name__ == "__main__":
    main()
