"""Rows of a data set (an image and its captions), checked and put together as a collection."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from bench.data.images import EncodedImage
from bench.errors import InputError
from bench.types import Collection

T = TypeVar("T")

KINDS = {str: "a string", int: "an integer", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Row:
    """An image, the captions that are true of it, and optionally its class."""

    image: EncodedImage
    captions: Sequence[object]
    label: object = None


def collect(name: str, rows: Sequence[Row], revision: str) -> Collection:
    """The collection of `rows`, in their order; labels that are strings are numbered in alphabetical order.

    Raises:
        InputError: an image has no caption, a caption is not a string or not Unicode, an id stands twice, or labels are
            incomplete.
    """
    captions = [caption for row in rows for caption in _captions_of(name, row)]
    counts = [len(row.captions) for row in rows]
    positives = np.stack([np.repeat(np.arange(len(rows)), counts), np.arange(len(captions))], axis=1)
    labels, label_names = _labels_of(name, rows)
    images = [row.image for row in rows]
    for image in images:
        check_unicode(image.id, f"{name}: an image's name")
    return Collection(name, images, captions, positives.astype(np.int64), labels, label_names, revision)


def take(entry: object, key: str, kind: type[T], where: str) -> T:
    """`entry[key]`, which must be of exactly this kind.

    Raises:
        InputError: `entry` is no object, lacks the key, or holds another kind there; `where` names it.
    """
    value = entry.get(key) if isinstance(entry, dict) else None
    if type(value) is not kind:
        found = "nothing" if value is None else reprlib.repr(value)
        raise InputError(f"{where}: expected {KINDS[kind]} as '{key}', got {found}.")
    return value


def check_unicode(text: str, where: str) -> None:
    """Refuses half a character: no file takes a lone surrogate, and no tokenizer does.

    Raises:
        InputError: there is one; the message begins with `where`.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"a lone surrogate as letter {error.start + 1} of {reprlib.repr(text)}"
        raise InputError(f"{where} is no Unicode: {found}. Repair or remove it.") from None


def _captions_of(name: str, row: Row) -> list[str]:
    if not row.captions:
        raise InputError(f"{name}: image {row.image.id} has no caption; expected at least one. Caption or remove it.")
    for caption in row.captions:
        if not isinstance(caption, str):
            found = reprlib.repr(caption)
            raise InputError(
                f"{name}: image {row.image.id} has a caption that is no string: {found}. Repair or remove it."
            )
        check_unicode(caption, f"{name}: a caption of image {row.image.id}")
    return [caption for caption in row.captions if isinstance(caption, str)]


def _labels_of(name: str, rows: Sequence[Row]) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    labels = [row.label for row in rows]
    if all(label is None for label in labels):
        return None, None
    if all(type(label) is int for label in labels):
        return _whole_numbers(name, labels), None
    for row in rows:
        if not isinstance(row.label, str):
            found = "nothing" if row.label is None else reprlib.repr(row.label)
            raise InputError(
                f"{name}: image {row.image.id} has {found} as label; expected all strings or all integers."
            )
    names, indices = np.unique(np.array(labels, dtype=object), return_inverse=True)
    return indices.astype(np.int64), tuple(names)


def _whole_numbers(name: str, labels: Sequence[object]) -> np.ndarray:
    try:
        return np.array(labels, dtype=np.int64)
    except OverflowError:
        raise InputError(f"{name}: a label has more than 64 bits; expected smaller integers, or strings.") from None
