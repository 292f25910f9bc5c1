"""What the sources on disk share: JSON with positions in its errors, image files found by name, names and digests."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from bench.data.images import MAX_IMAGE_BYTES, EncodedImage
from bench.errors import InputError, UsageError, unknown_name
from bench.records import read_plain, unique_keys

MAX_ANNOTATION_BYTES = 512 << 20  # COCO's with Karpathy's splits has 144 MB
MAX_NAME = 4096  # of a path, on Linux
_MOST_SPLITS = 20


class Document(NamedTuple):
    """A parsed file and the digest of its bytes."""

    content: object
    revision: str


def read_json(path: Path) -> Document:
    """The JSON file at `path`.

    Raises:
        InputError: it cannot be read or is malformed; the message gives line and column.
    """
    data = read_bytes(path)
    return Document(parse_json(data, str(path)), digest(data))


def parse_json(data: bytes, where: str) -> object:
    """`data` as JSON.

    Raises:
        InputError: it is malformed or has a key twice; the message begins with `where` and gives the position.
    """
    try:
        return json.loads(data, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{where} is malformed JSON at {place}: {error.msg}. Fetch it again or repair it.") from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"{where} is malformed JSON: {error}. Fetch it again or repair it.") from error


def read_bytes(path: Path) -> bytes:
    """The bytes of an annotation file.

    Raises:
        InputError: it cannot be read, is no plain file, or is larger than MAX_ANNOTATION_BYTES.
    """
    try:
        return read_plain(path, MAX_ANNOTATION_BYTES)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}. Check the path of the data set.") from error


def digest(data: bytes) -> str:
    """The revision that stands for `data`: "sha256:" and the hex digest."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def image_file(folder: Path, name: str, where: str) -> EncodedImage:
    """The image `name` below `folder`, which must be there; its bytes are read later.

    Raises:
        InputError: it is missing, or its name leads out of the folder.
    """
    check_inside(name, where)
    path = folder / name
    if not os.path.isfile(path):
        raise InputError(f"{where}: image {name} is missing from {folder}. Restore it, or remove its entry.")
    return EncodedImage(name, partial(read_plain, path, MAX_IMAGE_BYTES))


def check_inside(name: str, where: str) -> None:
    """Refuses a name that is not a plain relative path.

    Raises:
        InputError: it is empty, too long, absolute, or has `..` or NUL in it.
    """
    if len(name) > MAX_NAME:
        raise InputError(f"{where}: {name[:60]!r}... has {len(name):,} letters; expected at most {MAX_NAME:,}.")
    if not name or "\0" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise InputError(f"{where}: {name!r} leads out of its folder; expected a plain relative path.")


def find_folder(candidates: Sequence[Path], name: str, where: str) -> Path:
    """The first of the folders in which the image `name` lies.

    Raises:
        InputError: it lies in none of them.
    """
    check_inside(name, where)
    for folder in candidates:
        if os.path.isfile(folder / name):
            return folder
    looked = ", ".join(str(folder) for folder in candidates)
    raise InputError(f"{where}: image {name} is missing; looked in {looked}. Put the photos into one of them.")


def name_of(path: Path, split: str | None) -> str:
    """A collection's name from its folder or file, without the rest of this machine's path."""
    stem = path.resolve().name if path.is_dir() else path.stem
    return f"{stem}/{split}" if split else stem


def unknown_split(source: str, path: Path, split: str, known: Iterable[str]) -> UsageError:
    """An error for a split that the data at `path` does not have."""
    names = sorted(known)
    shown = ",".join(names[:_MOST_SPLITS]) + (",..." if len(names) > _MOST_SPLITS else "")
    return unknown_name(f"split of {path}", split, names, f"{source}:{path}" + (f"/{{{shown}}}" if names else ""))
