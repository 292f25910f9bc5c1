"""What every shift does, for the site to show: `python -m bench.shift_pictures` draws all of it anew.

There are two photos with two captions each, as a collection of their own, so that everything is made exactly as in a
run: the canonical canvas, the partners of gallery shifts, the check that a paraphrase keeps its meaning, one random
stream per sample. Collections that stand in for `scenes` show one scene in each of their manners.

`leaderboard/static/shifts/` then holds a picture per shift and severity, and `examples.json`, which goes by the names
of a suite's lock:

    pictures   name -> before: a file, after: severity -> file (a stand-in collection has "1" alone)
    captions   name -> severity -> two of before, after (empty where no distractor can be made)
    left_out   name -> why there is neither
    credits    of the photos: title, author, license, url, files
    width_px   of the pictures
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import PIL.Image
import typer

from bench.data.images import EncodedImage
from bench.data.scenes import SCENES, load_scenes
from bench.errors import RoveError
from bench.shifted import Change, prepare_clean, prepare_shifted, reword
from bench.store import write_atomic
from bench.types import Collection, Image
from shifts.catalogue import CATALOGUE, Shift
from shifts.resources import package_file

FOLDER = Path(__file__).parents[1] / "leaderboard" / "static" / "shifts"
INDEX = "examples.json"
WIDTH_PX = 256
SEED = 0
N_SHOWN = 2
LEFT_OUT: Mapping[str, str] = {
    "word_insert": "Needs a language model (BERT) that has to be fetched from the hub.",
    "sentence_back_translation": "Needs two translation models (Marian) that have to be fetched from the hub.",
}
_CAPTIONS = (
    "A cat with green eyes watches a small bird in the garden.",
    "A tabby cat is being stroked by an old man.",
    "Two women drink coffee at a big wooden table.",
    "A red cup is being filled by a waiter.",
)
_WEBP: Mapping[str, Any] = {"format": "WEBP", "quality": 86, "method": 6}


@dataclass(frozen=True)
class Photo:
    """A photo inside the wheel of scikit-image, with what its documentation says of its origin."""

    file: str
    title: str
    author: str
    picture: str

    @property
    def credit(self) -> dict[str, object]:
        """What `examples.json` says of it."""
        url = "https://scikit-image.org/docs/stable/api/skimage.data.html"
        return {"title": self.title, "author": self.author, "license": "CC0-1.0", "url": url, "files": self.picture}

    def read(self) -> bytes:
        """Its encoded bytes."""
        return package_file("skimage", f"data/{self.file}", "pictures show its photos", "scikit-image").read_bytes()


PHOTOS = (
    Photo("chelsea.png", "Chelsea the cat", "Stefan van der Walt", "original.webp"),
    Photo("coffee.png", "Coffee cup", "Rachel Michetti", "partner.webp"),
)


@cache
def load_examples() -> Collection:
    """The photos with their captions; image shifts show the first, gallery shifts blend the second into it."""
    return Collection(
        name="examples",
        images=[EncodedImage(photo.file, photo.read) for photo in PHOTOS],
        captions=_CAPTIONS,
        positives=np.array([[0, 0], [0, 1], [1, 2], [1, 3]]),
    )


def draw_shift(shift: Shift, severity: int) -> PIL.Image.Image:
    """The first photo under a shift of images, or the distractor made of it, at the width of the site's pictures."""
    examples = load_examples()
    return _shrink(prepare_shifted(Change(shift, severity, SEED), examples)(examples.images[0]))


def list_rewordings(shift: Shift) -> dict[str, list[dict[str, str]]]:
    """By severity, what a text shift makes of two captions: the first ones that its highest severity changes."""
    examples = load_examples()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            severity: reword(Change(shift, severity, SEED), examples, Path(folder)).captions
            for severity in shift.severities
        }
    strongest = zip(examples.captions, found[shift.severities[-1]], strict=True)
    untouched = [after in ("", before) for before, after in strongest]
    shown = sorted(range(len(untouched)), key=untouched.__getitem__)[:N_SHOWN]
    return {
        str(severity): [{"before": examples.captions[i], "after": captions[i]} for i in shown]
        for severity, captions in found.items()
    }


def draw_originals() -> Iterator[tuple[str, PIL.Image.Image]]:
    """The photos on the canvas without a shift, each under its file name."""
    for photo, image in zip(PHOTOS, load_examples().images, strict=True):
        yield photo.picture, _draw_clean(image)


def draw_scenes() -> Iterator[tuple[str, PIL.Image.Image]]:
    """One scene as `scenes` and every collection that stands in for it show it, by the data set's name."""
    for name, scenes in SCENES.items():
        if scenes.family == "scenes":
            yield name, _draw_clean(load_scenes(name, "test").images[0])


def write_pictures(folder: Path) -> dict[str, Any]:
    """Draws all pictures into `folder`, writes `examples.json` beside them and returns its contents."""
    pictures = dict(_write_shifts(folder)) | _write_scenes(folder)
    for file, image in draw_originals():
        write_atomic(folder / file, encode_webp(image))
    texts = [shift for shift in CATALOGUE if not _is_of_images(shift) and shift.name not in LEFT_OUT]
    contents = {
        "pictures": pictures,
        "captions": {shift.name: list_rewordings(shift) for shift in texts},
        "left_out": dict(LEFT_OUT),
        "credits": [photo.credit for photo in PHOTOS],
        "width_px": WIDTH_PX,
    }
    write_atomic(folder / INDEX, (json.dumps(contents, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode())
    return contents


def encode_webp(image: PIL.Image.Image) -> bytes:
    """The bytes of the picture's file; the same ones for the same pixels and version of Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, **_WEBP)
    return buffer.getvalue()


def main(output: Annotated[Path, typer.Option(help="The folder of the pictures.")] = FOLDER) -> None:
    """Draws what every shift does."""
    try:
        contents = write_pictures(output)
    except RoveError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None
    sizes = [path.stat().st_size for path in output.glob("*.webp")]
    texts = len(contents["captions"])
    typer.echo(f"{output}: {len(sizes)} pictures, {sum(sizes) / 1e6:.2f} MB; captions of {texts} shifts")


def _write_shifts(folder: Path) -> Iterator[tuple[str, dict[str, object]]]:
    for shift in CATALOGUE:
        if _is_of_images(shift):
            after = {str(severity): f"{shift.name}-{severity}.webp" for severity in shift.severities}
            for severity, file in after.items():
                write_atomic(folder / file, encode_webp(draw_shift(shift, int(severity))))
            yield shift.name, {"before": PHOTOS[0].picture, "after": after}


def _write_scenes(folder: Path) -> dict[str, dict[str, object]]:
    files = {}
    for name, image in draw_scenes():
        files[name] = f"{name}.webp"
        write_atomic(folder / files[name], encode_webp(image))
    before = files.pop("scenes")
    return {f"{name}/test": {"before": before, "after": {"1": file}} for name, file in files.items()}


def _is_of_images(shift: Shift) -> bool:
    return shift.modality in ("image", "gallery_image")


def _draw_clean(image: Image) -> PIL.Image.Image:
    return _shrink(prepare_clean(canvas=True)(image))


def _shrink(pixels: np.ndarray) -> PIL.Image.Image:
    image = PIL.Image.fromarray(pixels)
    height = round(image.height * WIDTH_PX / image.width)
    return image.resize((WIDTH_PX, height), PIL.Image.Resampling.LANCZOS)


if __name__ == "__main__":
    typer.run(main)
