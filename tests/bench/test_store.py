"""Folders and files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import RoveError, UsageError
from bench.store import locked, new_folder, write_atomic


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


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UsageError, match="another run"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
