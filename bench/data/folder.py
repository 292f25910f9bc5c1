"""A folder of images with a `metadata.jsonl`, the form that the `datasets` library calls an image folder.

`folder:PATH[/SPLIT]`: the file lies in PATH/SPLIT or in PATH itself. A line is an object with `file_name`, with
`captions` (a list) or one string as `caption` or `text`, and optionally with `label` (all strings or all integers).
"""

from __future__ import annotations

import io
import os
from pathlib import Path

from bench.data.files import digest, image_file, name_of, parse_json, read_bytes, unknown_split
from bench.data.rows import Row, collect, take
from bench.errors import InputError
from bench.types import Collection

METADATA = "metadata.jsonl"


def is_root(path: Path) -> bool:
    """Whether `path` is a data set of this form, so that what follows it names a split."""
    return (path / METADATA).is_file() or bool(_splits(path))


def load(path: Path, split: str | None = None) -> Collection:
    """The images of one metadata file, in its order; image ids are `file_name`.

    Raises:
        InputError: a line is malformed, or an image is missing; the message gives the line or the name.
        UsageError: there is no such split.
    """
    folder = _folder(path, split)
    data = read_bytes(folder / METADATA)
    rows = [
        _row(line, folder, f"{folder / METADATA}, line {number}")
        for number, line in enumerate(io.BytesIO(data), start=1)
        if line.strip()
    ]
    return collect(name_of(path, split), rows, digest(data))


def _splits(path: Path) -> list[str]:
    return [file.parent.name for file in path.glob(f"*/{METADATA}")] if path.is_dir() else []


def _folder(path: Path, split: str | None) -> Path:
    if split and not os.path.isfile(path / split / METADATA):
        raise unknown_split("folder", path, split, _splits(path))
    folder = path / split if split else path
    if not (folder / METADATA).is_file():
        names = ", ".join(sorted(_splits(path))) or "none"
        raise InputError(
            f"{path}: expected a {METADATA}; splits that have one: {names}. Name one: folder:{path}/SPLIT."
        )
    return folder


def _row(line: bytes, folder: Path, where: str) -> Row:
    entry = parse_json(line, where)
    image = image_file(folder, take(entry, "file_name", str, where), where)
    fields = entry if isinstance(entry, dict) else {}
    return Row(image, _captions(fields, where), fields.get("label"))


def _captions(fields: dict, where: str) -> list:
    given = [key for key in ("captions", "caption", "text") if key in fields]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise InputError(f"{where}: expected one of 'captions', 'caption' and 'text', got {found}.")
    if given == ["captions"]:
        return take(fields, "captions", list, where)
    return [take(fields, given[0], str, where)]
