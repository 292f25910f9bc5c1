"""Folders and files appear whole or not at all, whatever fails on the way, and a changed bit never goes unnoticed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import InputError, RoveError, UsageError
from bench.store import (
    check_proof,
    is_held,
    is_intact,
    locked,
    new_folder,
    read_sealed,
    replacing,
    seal,
    set_aside,
    unseal,
    write_atomic,
    write_with_proof,
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip(path: Path, place: int, bit: int = 0) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1 << bit
    path.write_bytes(raw)


def test_a_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    output = tmp_path / "made"
    with new_folder(output, "marker", overwrite=False) as folder:
        (folder / "marker").write_text("first")
    with pytest.raises(TypeError), new_folder(output, "marker", overwrite=True) as folder:
        (folder / "marker").write_bytes("not bytes")
    assert (output / "marker").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    with new_folder(output, "marker", overwrite=True) as folder:
        (folder / "marker").write_text("third")
    assert (output / "marker").read_text() == "third"
    assert names_in(tmp_path) == ["made"]


def test_only_its_own_kind_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"dear")
    for overwrite, words in ((False, "not empty"), (True, "holds no marker")):
        with pytest.raises(UsageError, match=words), new_folder(tmp_path, "marker", overwrite):
            pass
    assert (tmp_path / "photo.jpg").read_bytes() == b"dear"


def test_a_failed_write_names_the_path_and_keeps_the_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "file", b"old")
    with pytest.raises(RoveError, match="file/below"):
        write_atomic(tmp_path / "a" / "file" / "below", b"new")
    assert (tmp_path / "a" / "file").read_bytes() == b"old"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_with_proof(tmp_path / "file", b"old")

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    make = tempfile.mkstemp
    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(tempfile, "mkstemp", lambda **places: _instead(make(**places), "/dev/full"))
        else:
            patch.setattr(os, call, fail)
        for write in (write_atomic, write_with_proof):
            with pytest.raises(RoveError, match=r"cannot write .*file.*No space left on device"):
                write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert is_intact(tmp_path / "file")
    assert names_in(tmp_path) == [".file.sha256", "file"]


def _instead(made: tuple[int, str], device: str) -> tuple[int, str]:
    """A temporary file, with a descriptor of something else."""
    os.close(made[0])
    return os.open(device, os.O_WRONLY), made[1]


def test_a_folder_where_the_file_shall_be_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "photo").write_bytes(b"dear")
    with pytest.raises(RoveError, match=r"cannot write .*file: Is a directory"):
        write_atomic(tmp_path / "file", b"new")
    assert (tmp_path / "file" / "photo").read_bytes() == b"dear"
    assert names_in(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RoveError, match=rf"cannot write {tmp_path}/file: Permission denied"):
        write_atomic(tmp_path / "file", b"new")
    tmp_path.chmod(0o700)
    assert not names_in(tmp_path)


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UsageError, match="another run"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_what_is_being_written_is_told_from_what_a_killed_process_left(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from bench.store import replacing\n"
    code += "with replacing(Path(sys.argv[1])) as file: file.write(b'half'); file.flush(); time.sleep(60)"
    with replacing(tmp_path / "mine"):
        (mine,) = tmp_path.glob(".mine.*.tmp")
        assert is_held(mine)
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "file")])
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in tmp_path.glob(".file.*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.01)
    (temporary,) = tmp_path.glob(".file.*.tmp")
    assert is_held(temporary)
    process.kill()
    process.wait()
    assert not is_held(temporary)
    assert not is_held(tmp_path / "nothing")


def test_a_scratch_folder_outlives_nobody(tmp_path: Path) -> None:
    make = "from bench.store import Scratch; scratch = Scratch('test'); (scratch.path / 'file').touch(); "
    stay, leave = make + "print(scratch.path.name, flush=True); input()", make + "scratch.close()"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    (tmp_path / "scratch-of-somebody-else").mkdir()

    def start(code: str) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes)

    with start(stay) as killed, start(stay) as alive:
        left, held = killed.stdout.readline().strip(), alive.stdout.readline().strip()
        killed.kill()
        killed.wait()
        assert names_in(tmp_path) == sorted([left, held, "scratch-of-somebody-else"])
        with start(leave) as next_one:
            next_one.communicate()
        assert next_one.returncode == 0
        assert names_in(tmp_path) == sorted([held, "scratch-of-somebody-else"])
        assert names_in(tmp_path / held) == ["file"]
        alive.communicate("\n")


@settings(deadline=None)
@given(parts=st.lists(st.binary(max_size=40), max_size=3), place=st.integers(0), bit=st.integers(0, 7))
def test_a_seal_breaks_with_any_bit(parts: list[bytes], place: int, bit: int) -> None:
    sealed = seal(*parts)
    assert unseal(sealed) == b"".join(parts)
    flipped = bytearray(sealed)
    flipped[place % len(sealed)] ^= 1 << bit
    assert unseal(bytes(flipped)) is None
    assert unseal(sealed[: place % len(sealed)]) is None
    assert unseal(sealed + b"\0") is None


def test_a_broken_seal_is_set_aside_and_nothing_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "cached"
    assert read_sealed(path) is None
    assert not caplog.text
    for place in (0, 31, 32, -1):
        write_atomic(path, seal(b"what was costly to make"))
        assert read_sealed(path) == b"what was costly to make"
        flip(path, place)
        assert read_sealed(path) is None
        assert not path.exists()
    assert names_in(tmp_path) == ["cached.2.bad", "cached.3.bad", "cached.4.bad", "cached.bad"]
    assert caplog.text.count("set aside as cached") == 4
    path.mkdir()
    assert read_sealed(path) is None
    assert "Is a directory" in caplog.text


def test_a_file_with_a_proof_is_checked_against_it(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert not is_intact(path)
    write_with_proof(path, b'{"wall_s": 1.0}')
    write_with_proof(path, b'{"wall_s": 2.0}')
    assert is_intact(path)
    for place in range(len(path.read_bytes())):
        flip(path, place)
        with pytest.raises(InputError, match=r"record\.json has changed since it was written"):
            check_proof(path)
        flip(path, place)
    check_proof(path)
    for place in range(64):  # the digest of what is there now
        flip(tmp_path / ".record.json.sha256", place)
        with pytest.raises(InputError, match=r"\.record\.json\.sha256"):
            check_proof(path)
        flip(tmp_path / ".record.json.sha256", place)
    flip(path, 3)
    assert not is_intact(path)
    assert names_in(tmp_path) == [".record.json.sha256", "record.json.bad"]
    path.write_bytes(b"without a proof")
    (tmp_path / ".record.json.sha256").unlink()
    assert is_intact(path)


def test_a_crash_between_proof_and_file_leaves_a_proven_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, replace = tmp_path / "run.json", os.replace
    write_with_proof(path, b"old")

    def die(source: str, target: Path) -> None:
        if Path(target) == path:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_with_proof(path, b"new")
    assert path.read_bytes() == b"old"
    assert is_intact(path)


def test_what_is_set_aside_keeps_its_name_and_its_bytes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cell.json", "cell.parquet"):
        (tmp_path / name).write_text(name)
        set_aside(tmp_path / name, f"{name} is damaged.")
        assert (tmp_path / f"{name}.bad").read_text() == name
    assert "cell.parquet is damaged. It is set aside as cell.parquet.bad" in caplog.text
