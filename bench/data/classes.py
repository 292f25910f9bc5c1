"""Folders of classes, whose captions are class prompts: PACS, ImageNet-Sketch and their like.

`classes:PATH[/DOMAIN]`: the folder holds one folder of images per class. A class has one caption, "a photo of a {}."
with its name in it, and all its images go with that caption; so image-to-text R@1 is zero-shot accuracy. Beside the
class folders, or one level above them, `templates.txt` may give another prompt (`{}` or `{c}` stands for the class;
only the first line is used, because an encoder is asked for texts and never for averages of prompts), and
`classes.json` may map folder names to display names; without it `_` becomes a space.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from bench.data.files import digest, read_bytes, read_json, unknown_split
from bench.data.images import MAX_IMAGE_BYTES, EncodedImage
from bench.data.rows import check_unicode, take
from bench.errors import InputError
from bench.records import read_plain
from bench.types import Collection

TEMPLATE = "a photo of a {}."
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})


def is_root(path: Path) -> bool:
    """Whether `path` holds classes, or domains that hold classes."""
    return bool(_domains(path)) or bool(_classes(path))


def load(path: Path, split: str | None = None) -> Collection:
    """The images of one domain, labelled, with one prompt per class; image ids are `CLASS/FILE`.

    Raises:
        InputError: there is no class folder, what is called an image is no plain file, a name is no Unicode, or
            `templates.txt` or `classes.json` is wrong.
        UsageError: there is no such domain.
    """
    folder = path / split if split else path
    if split and split not in _domains(path):
        raise unknown_split("classes", path, split, _domains(path))
    names = _classes(folder)
    if not names:
        domains = ", ".join(_domains(folder)) or "none"
        raise InputError(
            f"{folder} has no class folders with images; domains: {domains}. Name one: classes:{folder}/DOMAIN."
        )
    files = [(label, file) for label, name in enumerate(names) for file in _image_names(folder / name)]
    labels = np.array([label for label, _ in files], dtype=np.int64)
    ids = [f"{names[label]}/{file}" for label, file in files]
    display = _display_names(folder, names)
    prompts = [_template(folder).replace("{c}", "{}").replace("{}", name) for name in display]
    for text in (*ids, *prompts):
        check_unicode(text, f"{folder}: a name")
    strange = next((image_id for image_id in ids if not os.path.isfile(folder / image_id)), None)
    if strange:
        raise InputError(f"{folder / strange} is no plain file; expected an image. Restore or remove it.")
    return Collection(
        name="/".join(part for part in folder.resolve().parts[-2:] if part != os.sep),
        images=[EncodedImage(image_id, partial(read_plain, folder / image_id, MAX_IMAGE_BYTES)) for image_id in ids],
        captions=prompts,
        positives=np.stack([np.arange(len(labels)), labels], axis=1),
        labels=labels,
        label_names=tuple(display),
        revision=_revision(folder, ids, prompts),
    )


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []


def _classes(path: Path) -> list[str]:
    return [folder.name for folder in _folders(path) if any(_image_names(folder))]


def _domains(path: Path) -> list[str]:
    return [folder.name for folder in _folders(path) if _classes(folder)]


def _image_names(folder: Path) -> Iterator[str]:
    yield from sorted(name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in SUFFIXES)


def _template(folder: Path) -> str:
    file = _beside(folder, "templates.txt")
    if file is None:
        return TEMPLATE
    template = read_bytes(file).decode("utf-8", errors="replace").split("\n", 1)[0].rstrip("\r")
    if template.count("{}") + template.count("{c}") != 1:
        raise InputError(f"{file}, line 1: expected a prompt with one {{}} in it, got {template!r}.")
    return template


def _display_names(folder: Path, names: list[str]) -> list[str]:
    file = _beside(folder, "classes.json")
    if file is None:
        return [name.replace("_", " ") for name in names]
    mapping = read_json(file).content
    return [take(mapping, name, str, str(file)) for name in names]


def _beside(folder: Path, name: str) -> Path | None:
    return next((file for file in (folder / name, folder.parent / name) if file.is_file()), None)


def _revision(folder: Path, ids: list[str], prompts: list[str]) -> str:
    listing = [f"{image_id}\t{(folder / image_id).stat().st_size}" for image_id in ids]
    return digest("\n".join([*prompts, *listing]).encode("utf-8", errors="surrogateescape"))
