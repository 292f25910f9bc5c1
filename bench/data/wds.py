"""Webdataset tars on disk, indexed once and read lazily; nothing is ever extracted or unpickled.

`wds:PATH[/SPLIT]`, where the tars lie in PATH/SPLIT (the form of the hub's `clip-benchmark/wds_*` data sets, in which
`nshards.txt` gives their number), in PATH/test or in PATH itself. Members that share a key make a row: an image, and a
`.txt` with one caption per line. Lines are kept verbatim: clip_benchmark writes a line break inside a caption as a
backslash and an n, and so it stays, as it does in published results.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.data.files import check_inside, digest, name_of, read_bytes, unknown_split
from bench.data.images import MAX_IMAGE_BYTES, EncodedImage
from bench.data.rows import Row, collect
from bench.errors import InputError
from bench.types import Collection

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp")
KEY_AND_FIELD = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # webdataset's own rule
TEXT_LIMIT_BYTES = 1 << 20
HEADER_LIMIT_BYTES = 1 << 20
BLOCK_BYTES = 512


@dataclass(frozen=True)
class Member:
    """Where a regular file lies within a tar."""

    shard: Path
    name: str
    offset: int
    size_bytes: int

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            OSError: the tar is gone or shorter than it was.
        """
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size_bytes)
        if len(data) != self.size_bytes:
            raise OSError(f"{self.shard} ends within {self.name}")
        return data


class HeaderReader(io.FileIO):
    """A tar for `tarfile` to walk, which reads nothing but headers: one may state that it has gigabytes."""

    def read(self, size: int | None = -1) -> bytes:
        """As any file.

        Raises:
            tarfile.ReadError: no header is that long.
        """
        if size is None or not 0 <= size <= HEADER_LIMIT_BYTES:
            raise tarfile.ReadError(f"a header states that it has {size} bytes")
        return super().read(size)


@dataclass
class Sample:
    """The members of one key that matter here."""

    images: list[Member] = field(default_factory=list)
    texts: list[Member] = field(default_factory=list)


def is_root(path: Path) -> bool:
    """Whether `path` holds tars, or splits that hold tars."""
    return path.is_dir() and (any(path.glob("*.tar")) or bool(_splits(path)))


def load(path: Path, split: str | None = None) -> Collection:
    """The rows of one folder of tars, shards in numerical order; image ids are the keys.

    Raises:
        InputError: a tar is damaged, has a link or an unsafe name in it, or a key lacks its image or captions.
        UsageError: there is no such split.
    """
    folder, split = _folder(path, split)
    rows: list[Row] = []
    listing: list[str] = []
    for shard in list_shards(folder):
        for key, sample in _samples(shard).items():
            row, entry = _row(shard, key, sample)
            rows.append(row)
            listing.append(entry)
    return collect(name_of(path, split), rows, digest("\n".join(listing).encode("utf-8", errors="surrogateescape")))


def list_shards(folder: Path) -> list[Path]:
    """The tars of a folder in numerical order, as many as its `nshards.txt` says where there is one.

    Raises:
        InputError: there are none, or not that many, or one is no plain file.
    """
    shards = sorted(folder.glob("*.tar"), key=_natural_order)
    strange = next((shard for shard in shards if not os.path.isfile(shard)), None)
    if strange:
        raise InputError(f"{strange} is no plain file; expected only tars of that name. Restore or remove it.")
    if not shards:
        raise InputError(f"{folder} has no *.tar in it; expected webdataset shards. Fetch them, or check the path.")
    if (folder / "nshards.txt").is_file():
        stated = read_bytes(folder / "nshards.txt").strip()
        if stated != str(len(shards)).encode():
            found = f"got {len(shards)}"
            raise InputError(f"{folder}: nshards.txt states {stated!r} shards, {found}. Fetch the missing ones.")
    return shards


def split_captions(text: str) -> list[str]:
    """The captions of a row's text: one a line, verbatim; a line break at the very end begins no further caption."""
    return text.removesuffix("\n").split("\n") if text else []


def _splits(path: Path) -> list[str]:
    return sorted({shard.parent.name for shard in path.glob("*/*.tar")})


def _folder(path: Path, split: str | None) -> tuple[Path, str | None]:
    known = _splits(path)
    if split is None and any(path.glob("*.tar")):
        return path, None
    split = split or "test"
    if split not in known:
        raise unknown_split("wds", path, split, known)
    return path / split, split


def _natural_order(path: Path) -> list[tuple[int, str]]:
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", path.stem)]


def _samples(shard: Path) -> dict[str, Sample]:
    samples: dict[str, Sample] = {}
    for member in _members(shard):
        match = KEY_AND_FIELD.fullmatch(member.name)
        if match is None:
            continue
        key, extension = match[1], match[2].lower()
        if extension in IMAGE_FIELDS:
            samples.setdefault(key, Sample()).images.append(member)
        elif extension == "txt":
            samples.setdefault(key, Sample()).texts.append(member)
    return samples


def _members(shard: Path) -> Iterator[Member]:
    end = 0
    try:
        with HeaderReader(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for entry in tar:
                if entry.size < 0:  # the walk would go backwards, and never end
                    raise tarfile.ReadError(f"member {entry.name} has less than no bytes")
                end = entry.offset_data + -(-entry.size // BLOCK_BYTES) * BLOCK_BYTES
                if not entry.isdir():
                    yield _member(shard, entry)
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        raise _damaged(shard, str(error)) from error
    _check_end(shard, end)


def _member(shard: Path, entry: tarfile.TarInfo) -> Member:
    if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or entry.issparse():
        raise InputError(f"{shard}: member {entry.name} is a link or special file; expected plain files only.")
    check_inside(entry.name, str(shard))
    return Member(shard, entry.name, entry.offset_data, entry.size)


def _check_end(shard: Path, end: int) -> None:
    """Refuses a tar without its end mark: `tarfile` takes a damaged header for the end and says nothing."""
    with shard.open("rb") as file:
        file.seek(end)
        if file.read(BLOCK_BYTES) != bytes(BLOCK_BYTES):
            raise _damaged(shard, f"it has no end mark after byte {end}")


def _damaged(shard: Path, reason: str) -> InputError:
    return InputError(f"{shard} is no whole tar: {reason}. Fetch it again; compressed tars are not read.")


def _row(shard: Path, key: str, sample: Sample) -> tuple[Row, str]:
    for kind, members in (("image", sample.images), (".txt", sample.texts)):
        if len(members) != 1:
            raise InputError(f"{shard}: key {key} has {len(members)} {kind} members; expected one. Rebuild the shard.")
    image = sample.images[0]
    if image.size_bytes > MAX_IMAGE_BYTES:
        size = f"{image.size_bytes:,} bytes"
        raise InputError(f"{shard}: {image.name} has {size}; expected an image of at most {MAX_IMAGE_BYTES:,}.")
    text = _read_text(sample.texts[0])
    row = Row(EncodedImage(key, image.read), split_captions(text))
    return row, f"{shard.name}\t{image.name}\t{image.offset}\t{image.size_bytes}\t{text}"


def _read_text(member: Member) -> str:
    if member.size_bytes > TEXT_LIMIT_BYTES:
        size = f"{member.size_bytes:,} bytes"
        raise InputError(
            f"{member.shard}: {member.name} has {size}; expected at most {TEXT_LIMIT_BYTES:,} of captions."
        )
    try:
        return member.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{member.shard}: {member.name} is not UTF-8: {error.reason} at byte {error.start}. Rebuild the shard."
        ) from error
