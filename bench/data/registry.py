"""Every collection by name: `NAME[/SPLIT]` for the known data sets, `FORMAT:PATH[/SPLIT]` for anything on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from bench.data import classes, coco_json, folder, hub, karpathy, wds
from bench.data.scenes import SCENES, load_scenes
from bench.errors import InputError, UsageError, unknown_name
from bench.types import Collection

LIST_COMMAND = "rove list datasets"
SPLIT_NAMES = frozenset({"train", "val", "validation", "dev", "test"})


class Counts(NamedTuple):
    """How many images and captions a split has; captions are None where only images are counted."""

    images: int
    captions: int | None = None

    def __str__(self) -> str:
        captions = "" if self.captions is None else f" and {self.captions:,} captions"
        return f"{self.images:,} images{captions}"

    def agree_with(self, found: Counts) -> bool:
        """Whether `found` has as many of what is counted here."""
        return self.images == found.images and self.captions in (None, found.captions)


@dataclass(frozen=True)
class Dataset:
    """What is known about a data set.

    Args:
        title: display name.
        splits: expected counts; None where copies differ, and then they are not checked.
        license: of the photos, then of the captions.
        homepage: where it comes from.
        notes: what a user should know before relying on it.
        hub: where the hub has it; None for data that Rove renders itself.
    """

    title: str
    splits: Mapping[str, Counts | None]
    license: str
    homepage: str
    notes: str
    hub: hub.HubSource | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """A parsed DATASET argument.

    Args:
        source: a known data set's name, or a format.
        path: where the data lies; None for a known data set.
        split: as given; None if none was.
    """

    source: str
    path: Path | None = None
    split: str | None = None


class Format(NamedTuple):
    """A form in which data sets lie on disk: how to recognise one, how to load a split, and what it looks like."""

    is_root: Callable[[Path], bool]
    load: Callable[[Path, str | None], Collection]
    expects: str


FORMATS: Mapping[str, Format] = {
    "wds": Format(wds.is_root, wds.load, "a folder with *.tar or SPLIT/*.tar"),
    "karpathy": Format(karpathy.is_root, karpathy.load, "a dataset_*.json, or a folder with one"),
    "coco_json": Format(coco_json.is_root, coco_json.load, "a captions*.json, or a folder with one"),
    "folder": Format(folder.is_root, folder.load, "a folder with metadata.jsonl or SPLIT/metadata.jsonl"),
    "classes": Format(classes.is_root, classes.load, "a folder with CLASS/ or DOMAIN/CLASS/ folders of images"),
}

KARPATHY_NOTE = "Splits are Karpathy's (arXiv:1412.2306); counts of train and val differ between copies."

PHOTOS: Mapping[str, Dataset] = {
    "flickr30k": Dataset(
        title="Flickr30K",
        splits={"train": None, "val": None, "test": Counts(1_000, 5_000)},
        license="photos: Flickr's terms, research only; captions: research only",
        homepage="https://shannon.cs.illinois.edu/DenotationGraph/",
        notes=f"{KARPATHY_NOTE} The hub copy has train and test.",
        hub=hub.HubSource("clip-benchmark/wds_flickr30k", "f8af3ceee1b944bf761340682621dfafd23974d2"),
    ),
    "coco": Dataset(
        title="COCO Captions",
        splits={"train": None, "val": None, "test": Counts(5_000, 25_010)},
        license="photos: Flickr's terms; captions: CC-BY-4.0",
        homepage="https://cocodataset.org/",
        notes=f"{KARPATHY_NOTE} Ten test images have six captions. The hub copy has train and test.",
        hub=hub.HubSource("clip-benchmark/wds_mscoco_captions", "3bf9ad5d280b03126293bcc691585015e29ce691"),
    ),
    "flickr8k": Dataset(
        title="Flickr8k",
        splits={"train": None, "val": None, "test": Counts(1_000, 5_000)},
        license="photos: Flickr's terms, research only; captions: research only",
        homepage="https://hockenmaier.cs.illinois.edu/8k-pictures.html",
        notes=f"{KARPATHY_NOTE} The hub copy has train and test.",
        hub=hub.HubSource("clip-benchmark/wds_flickr8k"),  # its commit is not known in full
    ),
}

RENDERED: Mapping[str, Dataset] = {
    name: Dataset(
        title=f"Scenes: {scenes.description}",
        splits={split: Counts(n_images) for split, n_images in scenes.splits.items()},
        license="MIT: rendered by Rove",
        homepage="",
        notes="Drawn on this machine from seeds; needs no download and no network.",
    )
    for name, scenes in SCENES.items()
}

DATASETS: Mapping[str, Dataset] = {**PHOTOS, **RENDERED}


def load_collection(dataset: str, *, data_dirs: Mapping[str, str] | None = None, offline: bool = False) -> Collection:
    """The collection that `dataset` names: `NAME[/SPLIT]` (split `test` unless given) or `FORMAT:PATH[/SPLIT]`.

    Args:
        dataset: what to load.
        data_dirs: local copies of known data sets, `NAME` to `FORMAT:PATH` (SPLIT is looked for below PATH) or
            `NAME/SPLIT` to `FORMAT:PATH[/SPLIT]` (read as it stands). Counts are checked, and the name stays.
        offline: fetch nothing.

    Raises:
        UsageError: an unknown data set, format or split.
        InputError: the data are absent, damaged, or not as many as they should be.
    """
    spec = parse_dataset(dataset)
    if spec.path is not None:
        return FORMATS[spec.source].load(spec.path, spec.split)
    split = spec.split or "test"
    known = DATASETS[spec.source]
    if split not in known.splits:
        raise unknown_name(f"split of {spec.source}", split, known.splits, f"rove describe {spec.source}")
    collection = _load_known(spec.source, split, _local_copy(spec.source, split, data_dirs or {}), offline=offline)
    _check_counts(collection, known.splits[split], spec.source)
    return collection


def parse_dataset(text: str) -> DatasetSpec:
    """A DATASET argument as its parts; what exists on disk decides whether PATH ends in a split.

    Raises:
        UsageError: an unknown data set or format.
        InputError: nothing of that format lies at PATH.
    """
    source, colon, path = text.partition(":")
    if colon:
        if source not in FORMATS:
            raise unknown_name("format", source, FORMATS, LIST_COMMAND)
        return DatasetSpec(source, *_locate(source, Path(os.path.expanduser(path)).absolute()))
    name, _, split = text.partition("/")
    _check_known(name)
    return DatasetSpec(name, split=split or None)


def describe(name: str) -> dict[str, object]:
    """What is known about the data set `name`, as plain values; nothing is loaded or fetched.

    Raises:
        UsageError: an unknown data set.
    """
    _check_known(name)
    known = DATASETS[name]
    return {
        "name": name,
        "title": known.title,
        "splits": {split: counts and counts._asdict() for split, counts in known.splits.items()},
        "license": known.license,
        "homepage": known.homepage,
        "notes": known.notes,
        "hub": known.hub and known.hub.repository,
        "commit": known.hub and known.hub.commit,
        "local": [f"--data-dir {name}={form}:PATH" for form in FORMATS if form != "classes"] if known.hub else [],
    }


def _check_known(name: str) -> None:
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS, LIST_COMMAND)


def _locate(source: str, path: Path) -> tuple[Path, str | None]:
    readings: list[tuple[Path, str | None]] = [(path, None), (path.parent, path.name)]
    if path.name in SPLIT_NAMES:
        readings.reverse()
    try:
        for root, split in readings:
            if FORMATS[source].is_root(root):
                return root, split
    except (OSError, ValueError) as error:
        raise InputError(f"{source}:{str(path)[:500]} cannot be opened: {error}. Check the path.") from None
    state = "holds nothing of that form" if os.path.exists(path) else "does not exist"
    raise InputError(f"{source}:{path} {state}; expected {FORMATS[source].expects}. Check the path.")


def _local_copy(name: str, split: str, data_dirs: Mapping[str, str]) -> DatasetSpec | None:
    for key in data_dirs:
        _check_known(key.partition("/")[0])
    exact = data_dirs.get(f"{name}/{split}")
    value = exact or data_dirs.get(name)
    if value is None:
        return None
    spec = parse_dataset(value)
    if spec.path is None:
        raise UsageError(f"--data-dir {name}={value} names no local data; expected {name}=FORMAT:PATH.")
    if exact:
        return spec
    if spec.split not in (None, split):
        remedy = f"Write --data-dir {name}/{spec.split}={value} if only that split is there."
        raise UsageError(f"--data-dir {name}={value} gives split '{spec.split}' where '{split}' is asked for. {remedy}")
    return replace(spec, split=split)


def _load_known(name: str, split: str, local: DatasetSpec | None, *, offline: bool) -> Collection:
    if local is not None and local.path is not None:
        return replace(FORMATS[local.source].load(local.path, local.split), name=f"{name}/{split}")
    source = DATASETS[name].hub
    if source is None:
        return load_scenes(name, split)
    return hub.load(source, name, split, offline=offline)


def _check_counts(collection: Collection, expected: Counts | None, name: str) -> None:
    found = Counts(len(collection.images), len(collection.captions))
    if expected is not None and not expected.agree_with(found):
        remedy = f"Complete the copy, or fetch the data again (`rove describe {name}`)."
        raise InputError(f"{collection.name} has {found}; expected {expected}. {remedy}")
