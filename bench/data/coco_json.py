"""COCO's captions form: `images[id, file_name]`, `annotations[image_id, caption]`, and a folder of images.

`coco_json:PATH[/SPLIT]`, where PATH is the JSON or a folder that holds `captions.json` or `captions_NAME.json`, there
or in `annotations/`. A split is NAME with or without its year (`val` finds `captions_val2017.json`). Images lie in a
folder called NAME or `images`, or beside the JSON.
"""

from __future__ import annotations

import reprlib
from pathlib import Path

from bench.data.files import find_folder, image_file, name_of, read_json, unknown_split
from bench.data.rows import Row, collect, take
from bench.errors import InputError
from bench.types import Collection


def is_root(path: Path) -> bool:
    """Whether `path` is a data set of this form, so that what follows it names a split."""
    return (path.is_file() and path.suffix == ".json") or bool(_caption_files(path))


def load(path: Path, split: str | None = None) -> Collection:
    """The images of one captions file in its order, each with its captions; image ids are `file_name`.

    Raises:
        InputError: the JSON is malformed or incomplete, or an image is missing; the message names it.
        UsageError: there is no such split.
    """
    file = _annotations(path, split)
    document = read_json(file)
    entries = take(document.content, "images", list, str(file))
    names = _names(entries, file)
    captions = _captions(take(document.content, "annotations", list, str(file)), names, file)
    if not names:
        raise InputError(f"{file} lists no image; expected at least one.")
    folder = find_folder(_image_folders(file), next(iter(names.values())), str(file))
    rows = [Row(image_file(folder, name, str(file)), captions[key]) for key, name in names.items()]
    return collect(name_of(path, split), rows, document.revision)


def _caption_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted([*folder.glob("captions*.json"), *folder.glob("annotations/captions*.json")])


def _annotations(path: Path, split: str | None) -> Path:
    files = [path] if path.is_file() else _caption_files(path)
    found = [file for file in files if split is None or split in (_part(file), _part(file).rstrip("0123456789"))]
    if split and not found:
        raise unknown_split("coco_json", path, split, filter(None, map(_part, files)))
    if len(found) != 1:
        names = ", ".join(_part(file) for file in found) or "no captions*.json"
        raise InputError(f"{path}: expected one captions file, got {names}. Name it: coco_json:{path}/SPLIT.")
    return found[0]


def _part(file: Path) -> str:
    return file.stem.removeprefix("captions").removeprefix("_")


def _image_folders(file: Path) -> list[Path]:
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    part = _part(file)
    named = [root / part, root / "images" / part] if part else []
    return [*named, root / "images", root]


def _names(entries: list, file: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for position, entry in enumerate(entries):
        where = f"{file}: image at position {position}"
        key = take(entry, "id", int, where)
        if key in names:
            raise InputError(f"{file}: image id {key} stands twice; expected every id once.")
        names[key] = take(entry, "file_name", str, where)
    return names


def _captions(annotations: list, names: dict[int, str], file: Path) -> dict[int, list[str]]:
    captions: dict[int, list[str]] = {key: [] for key in names}
    for position, annotation in enumerate(annotations):
        where = f"{file}: annotation at position {position}"
        key = take(annotation, "image_id", int, where)
        if key not in captions:
            raise InputError(f"{where} names image {reprlib.repr(key)}; expected one that is listed under 'images'.")
        captions[key].append(take(annotation, "caption", str, f"{where} of image {names[key]}"))
    return captions
