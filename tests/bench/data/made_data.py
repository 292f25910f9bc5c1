"""Small real data sets: the same photos and captions, written in every form that Rove reads."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image


class Photo(NamedTuple):
    stem: str
    data: bytes
    captions: list[str]


def encode(pixels: np.ndarray, form: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def make_photos(count: int, seed: int = 0) -> list[Photo]:
    """Photos of distinct content and size, with 1, 2, 7, 1, ... captions."""
    rng = np.random.default_rng(seed)
    photos = []
    for i in range(count):
        pixels = rng.integers(0, 256, (8 + i % 5, 12, 3), dtype=np.uint8)
        captions = [f" caption {k} of photo {i}, “naïve” 🐕 " for k in range((1, 2, 7)[i % 3])]
        photos.append(Photo(f"photo_{i:04d}", encode(pixels), captions))
    return photos


def write_tar(path: Path, files: Sequence[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def tar_files(photos: Sequence[Photo]) -> list[tuple[str, bytes]]:
    return [
        file
        for photo in photos
        for file in ((f"{photo.stem}.jpg", photo.data), (f"{photo.stem}.txt", "\n".join(photo.captions).encode()))
    ]


def write_images(folder: Path, photos: Sequence[Photo]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for photo in photos:
        (folder / f"{photo.stem}.jpg").write_bytes(photo.data)


def write_wds(root: Path, photos: Sequence[Photo], split: str = "test", shards: int = 2) -> str:
    size = -(-len(photos) // shards)
    for i in range(shards):
        write_tar(root / split / f"{i}.tar", tar_files(photos[i * size : (i + 1) * size]))
    (root / split / "nshards.txt").write_text(f"{shards}\n")
    return f"wds:{root}"


def write_karpathy(root: Path, photos: Sequence[Photo], split: str = "test") -> str:
    write_images(root / "images", photos)
    images = [
        {"filename": f"{p.stem}.jpg", "split": split, "sentences": [{"raw": text} for text in p.captions]}
        for p in photos
    ]
    (root / "dataset_made.json").write_text(json.dumps({"images": images}))
    return f"karpathy:{root}"


def write_coco_json(root: Path, photos: Sequence[Photo]) -> str:
    write_images(root / "images", photos)
    document = {
        "images": [{"id": 1000 - i, "file_name": f"{p.stem}.jpg"} for i, p in enumerate(photos)],
        "annotations": [{"image_id": 1000 - i, "caption": text} for i, p in enumerate(photos) for text in p.captions],
    }
    (root / "captions.json").write_text(json.dumps(document))
    return f"coco_json:{root}"


def write_folder(root: Path, photos: Sequence[Photo]) -> str:
    write_images(root, photos)
    lines = [json.dumps({"file_name": f"{p.stem}.jpg", "captions": p.captions}) for p in photos]
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return f"folder:{root}"


WRITERS: dict[str, Callable[[Path, Sequence[Photo]], str]] = {
    "wds": write_wds,
    "karpathy": write_karpathy,
    "coco_json": write_coco_json,
    "folder": write_folder,
}
