"""Karpathy's form: one JSON with every split, and a folder of images.

`karpathy:PATH[/SPLIT]`, where PATH is the JSON or a folder that holds one `dataset_*.json`; the split is `test` unless
given. Images lie in `images/` beside the JSON, or beside it directly; COCO's `filepath` is the folder between. COCO's
`restval` images count as `train`, as in every paper that uses the split.
"""

from __future__ import annotations

from pathlib import Path

from bench.data.files import find_folder, image_file, name_of, read_json, unknown_split
from bench.data.rows import Row, collect, take
from bench.errors import InputError
from bench.types import Collection


def is_root(path: Path) -> bool:
    """Whether `path` is a data set of this form, so that what follows it names a split."""
    return (path.is_file() and path.suffix == ".json") or (path.is_dir() and any(path.glob("dataset_*.json")))


def load(path: Path, split: str | None = None) -> Collection:
    """One split of the data set at `path`; image ids are `filename`, after `filepath/` where there is one.

    Raises:
        InputError: the JSON is malformed or incomplete, or an image is missing; the message names it.
        UsageError: there is no such split.
    """
    split = split or "test"
    file = _annotations(path)
    document = read_json(file)
    entries = take(document.content, "images", list, str(file))
    chosen = [entry for position, entry in enumerate(entries) if _split_of(entry, position, file) == split]
    if not chosen:
        raise unknown_split("karpathy", path, split, {_split_of(entry, 0, file) for entry in entries})
    folder = find_folder([file.parent / "images", file.parent], _name_of(chosen[0], file), str(file))
    rows = [_row(entry, folder, file) for entry in chosen]
    return collect(name_of(path, split), rows, document.revision)


def _annotations(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("dataset_*.json"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise InputError(f"{path}: expected one dataset_*.json, got {names}. Name the file: karpathy:{path}/NAME.json.")
    return found[0]


def _split_of(entry: object, position: int, file: Path) -> str:
    split = take(entry, "split", str, f"{file}: image at position {position}")
    return "train" if split == "restval" else split


def _name_of(entry: dict, file: Path) -> str:
    name = take(entry, "filename", str, f"{file}: an image")
    return f"{take(entry, 'filepath', str, f'{file}: image {name}')}/{name}" if entry.get("filepath") else name


def _row(entry: dict, folder: Path, file: Path) -> Row:
    name = _name_of(entry, file)
    where = f"{file}: image {name}"
    sentences = take(entry, "sentences", list, where)
    captions = [take(sentence, "raw", str, f"{where}, sentence {i}") for i, sentence in enumerate(sentences)]
    return Row(image_file(folder, name, str(file)), captions)
