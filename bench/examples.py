"""Adversarial examples of a collection: made batch by batch against one victim, each batch brought back inside the
budget and written to disk at once, so that the same command goes on after an interruption with the same examples.

A batch's result depends on its items, the attack and the seed alone, never on what was done before it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import Float, Int, UInt8

from bench.bundle import Results
from bench.errors import InputError, RoveError
from bench.feed import Prepare, pixels_digest
from bench.records import AttackReport, Cell, digest_of
from bench.shifted import prepare_clean
from bench.store import seal, set_aside, sha256_of, unseal, write_atomic
from bench.types import Collection, Image
from shifts.attacks.catalogue import parse_attack

EXAMPLES = "examples"
N_EXAMINED = 24
Role = Literal["query", "gallery", "distractor", "both"]
NO_IMAGES = np.empty((0, 0, 0, 3), np.uint8)
NO_CAPTIONS = np.empty(0, np.int64)
NO_VECTORS = np.empty((0, 0), np.float32)


@dataclass(frozen=True, eq=False)
class Batch:
    """What was made of the items of one batch.

    Args:
        items: which images (or captions, for a text attack) of the collection, (n,) int64.
        images: in whole levels, (n, height, width, 3) uint8; none of a text attack. Where they were read from disk,
            they are mapped and not held in memory.
        captions: which captions were attacked, (n_captions,) int64; none of an image attack.
        texts: what became of them.
        unrounded: the victim's vectors of the attacked images before rounding, (n, dim) float32; none of a text attack.
        n_broken: images in which the attack left a value that is not finite, and which is the original's there.
    """

    items: Int[np.ndarray, " n"]
    images: UInt8[np.ndarray, "n height width 3"] = field(default_factory=lambda: NO_IMAGES)
    captions: Int[np.ndarray, " n_captions"] = field(default_factory=lambda: NO_CAPTIONS)
    texts: Sequence[str] = ()
    unrounded: Float[np.ndarray, "n dim"] = field(default_factory=lambda: NO_VECTORS)
    n_broken: int = 0


class StoredImage(NamedTuple):
    """An image of a batch, as `bench.types.Image`."""

    id: str
    sha256: str
    pixels: UInt8[np.ndarray, "height width 3"]

    def decode(self) -> PIL.Image.Image:
        return PIL.Image.fromarray(self.pixels)


@dataclass(frozen=True, eq=False)
class Examples:
    """All attacked items of a collection.

    Args:
        images: in the collection's order; none of a text attack.
        captions: the collection's captions, the attacked ones replaced.
        unrounded: as in `Batch`, in the collection's order.
        n_broken: as in `Batch`, of all.
        sha256: of images and captions.
    """

    images: tuple[StoredImage, ...]
    captions: tuple[str, ...]
    unrounded: Float[np.ndarray, "n dim"]
    n_broken: int
    sha256: str


def make_examples(
    folder: Path,
    key: str,
    batches: Sequence[Int[np.ndarray, " n"]],
    attack: Callable[[Int[np.ndarray, " n"], int], Batch],
    done: Callable[[int], None],
) -> Iterator[Batch]:
    """Every batch of a plan, read from `folder` where it lies there, else made by `attack` and written.

    Args:
        folder: of these examples.
        key: hash of everything that decides them; what was made under another key is thrown away.
        batches: the items of each batch.
        attack: makes the batch of that number of those items.
        done: is told how many items are finished.
    """
    claim_examples(folder, key)
    for number, items in enumerate(batches):
        path = folder / f"{number:05d}"
        batch = _read(path)
        if batch is None:
            for damaged in files_of_batch(path):
                set_aside(damaged, f"{damaged} is of a batch of examples that is damaged.")
            _write(path, attack(items, number))
            batch = _read(path)
        if batch is None:
            raise RoveError(f"{path} changed while it was written; is another process at work there?")
        done(len(items))
        yield batch


def find_damaged(folder: Path) -> list[Path]:
    """The batches that lie in `folder` and are not as they were written, as `files_of_batch` takes them."""
    batches = sorted(path.with_suffix("") for path in folder.glob("*.npz"))
    return [batch for batch in batches if _read(batch) is None]


def files_of_batch(path: Path) -> list[Path]:
    """The files of a finished batch, damaged or not; none where its last one is not there."""
    files = [path.with_suffix(suffix) for suffix in (".npz", ".npy")]
    return [file for file in files if file.exists()] if files[0].exists() else []


def role_of(cell: Cell) -> Role:
    """What the attacked items of a cell are in its retrieval."""
    roles: dict[str, Role] = {"query": "query", "distractor": "distractor", "both": "both"}
    return roles.get(cell.threat_model, "gallery")


def slug_of(shift: str, role: Role, stage: str, seed: int) -> str:
    """What the examples of an attack such as `pgd:2` are called."""
    parts = (shift.replace(":", "-"), role, stage, f"seed-{seed}" if seed else "")
    return "-".join(part for part in parts if part)


def folder_name(collection: str, n_images: int, slug: str) -> str:
    """Where in a run's examples those of that slug lie."""
    return f"{collection.replace('/', '-')}-{n_images}-{slug}"


def name_examples(cell: Cell, n_images: int, changes_images: bool) -> set[str]:
    """The folders of the examples that an attacked cell of so many images is scored on."""
    names = {folder_name(cell.collection, n_images, slug_of(cell.shift, role_of(cell), cell.stage, cell.seed))}
    if changes_images:
        names.add(folder_name(cell.collection, n_images, "crops"))
    if cell.threat_model == "distractor":
        names.add(folder_name(f"{cell.collection}-beside", n_images, "crops"))
    return names


def name_examination(collection: str, n_images: int, by_text: bool) -> str:
    """The file of what was found about the victim of attacks on a collection's captions, or on its images."""
    return folder_name(collection, n_images, f"examination-{'texts' if by_text else 'images'}")


def read_examples(folder: Path) -> list[Batch]:
    """The batches of finished examples.

    Raises:
        InputError: there are none, or one is damaged.
    """
    paths = sorted(path.with_suffix("") for path in folder.glob("*.npz"))
    if not paths:
        raise InputError(f"{folder} holds no adversarial examples; expected the folder of a run that attacked.")
    batches = [_read(path) for path in paths]
    damaged = next((path for path, batch in zip(paths, batches, strict=True) if batch is None), None)
    if damaged:
        raise InputError(f"{damaged} is damaged; run the attack again.")
    return [batch for batch in batches if batch is not None]


def join(batches: Sequence[Batch], image_ids: Sequence[str], captions: Sequence[str]) -> Examples:
    """The batches as a whole, in the collection's order."""
    order = np.argsort(np.concatenate([batch.items for batch in batches]))
    pixels = [image for batch in batches for image in batch.images]
    texts = list(captions)
    for batch in batches:
        for caption, text in zip(batch.captions, batch.texts, strict=True):
            texts[caption] = text
    images = tuple(_stored(image_ids[item], pixels[place]) for item, place in enumerate(order)) if pixels else ()
    vectors = np.concatenate([batch.unrounded for batch in batches])
    return Examples(
        images=images,
        captions=tuple(texts),
        unrounded=vectors[order] if len(vectors) else vectors,
        n_broken=sum(batch.n_broken for batch in batches),
        sha256=digest_of([image.sha256 for image in images], texts),
    )


def _stored(image_id: str, pixels: UInt8[np.ndarray, "height width 3"]) -> StoredImage:
    return StoredImage(image_id, pixels_digest(np.ascontiguousarray(pixels)).hex(), pixels)


def claim_examples(folder: Path, key: str) -> None:
    """Leaves in `folder` only what was made under `key`."""
    path = folder / "key"
    if path.is_file() and path.read_bytes() == key.encode():
        return
    for stale in folder.glob("*.np?"):
        stale.unlink()
    write_atomic(path, key.encode())


def _write(path: Path, batch: Batch) -> None:
    """Images in a file that can be mapped, then everything else, whose presence says that the batch is whole."""
    pixels = _npy(batch.images)
    if batch.images.size:
        write_atomic(path.with_suffix(".npy"), pixels)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        items=batch.items,
        pixels=np.array(hashlib.sha256(pixels).hexdigest() if batch.images.size else ""),
        captions=batch.captions,
        texts=np.frombuffer(json.dumps(list(batch.texts)).encode(), np.uint8),
        unrounded=batch.unrounded,
        n_broken=np.array(batch.n_broken),
    )
    write_atomic(path.with_suffix(".npz"), seal(buffer.getvalue()))


def _read(path: Path) -> Batch | None:
    """A batch as `_write` left it; None if there is none, or if it is damaged."""
    if not path.with_suffix(".npz").is_file():
        return None
    data = unseal(path.with_suffix(".npz").read_bytes())
    if data is None:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        images = _read_images(path.with_suffix(".npy"), str(file["pixels"]))
        texts = json.loads(file["texts"].tobytes())
        if images is None:
            return None
        return Batch(file["items"], images, file["captions"], texts, file["unrounded"], int(file["n_broken"]))


def _read_images(path: Path, sha256: str) -> np.ndarray | None:
    if not sha256:
        return NO_IMAGES
    return np.load(path, mmap_mode="r") if path.is_file() and sha256_of(path) == sha256 else None


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def n_attacked(cell: Cell, collection: Collection) -> int:
    """How many items the cell's attack works on, one after the other."""
    is_text = parse_attack(cell.shift)[0].modality == "text"
    return len(collection.captions) if is_text else len(collection.images)


def find_report(source: Results, cell: Cell) -> AttackReport:
    """What another run tells of the attack of a cell.

    Raises:
        InputError: it has not finished that cell.
    """
    own = cell.model_copy(update={"victim": ""})
    found = next((record.attack for record in source.records if record.cell == own), None)
    if found is None:
        raise InputError(f"{source.folder} has no finished cell {own.id}; run it there first.")
    return found


def pixels_of(collection: Collection, examples: Examples | None) -> tuple[Sequence[Image], Prepare, object]:
    """The examples' images, or the collection's on the canvas; how each is made ready, and what says so."""
    images = collection.images if examples is None else examples.images
    return images, prepare_clean(canvas=examples is None), [examples is None, []]
