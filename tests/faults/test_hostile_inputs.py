"""Hostile inputs, each through the loader that a user would call: read right, or refused with an error that names it.

A case has a loader and what must come of it: a pattern of the message of a `RoveError`, or a check of the result. None
may raise anything else, take more than five seconds of processor time, or more than MAX_EXTRA_MB of memory. The last
test prints how many were tried.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import resource
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import hostile_files as made
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.bundle import BundleIndex, read_results, validate_bundle
from bench.cli import main
from bench.data.images import MAX_IMAGE_BYTES, MAX_SCANS, PIXEL_LIMIT, WEBP_PIXEL_LIMIT
from bench.data.registry import load_collection, parse_dataset
from bench.errors import InputError, RoveError, SubmissionError
from bench.evidence import read_evidence
from bench.generated import verify_generated
from bench.records import MAX_TOML_BYTES, Record, RunManifest, read_json
from bench.retrieval.index_spec import parse_index
from bench.submission import find_submission
from bench.suites import find_suite, read_suite
from bench.types import Collection
from bench.worker.host import Worker, WorkerSettings
from shifts.attacks.catalogue import parse_attack
from shifts.catalogue import parse_shift

pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::Warning:PIL")]

MAX_EXTRA_MB = 350
MAX_CPU_S = 5
REMEDY = re.compile(
    r"expected|Restore|Fetch|Check|Caption|Repair|Rebuild|Write|Put|writes|shows|There are|field|cannot|at most|to be"
)
NOT_AN_IMAGE = r"image a\.jpg is corrupt or of another format; expected"
RED, BLUE = (255, 0, 0), (0, 0, 255)
Expected = str | Callable[[object], bool]


@dataclass(frozen=True)
class Case:
    """What is tried: `run` makes its files in an empty folder, and loads them."""

    name: str
    run: Callable[[Path], object]
    expected: Expected


def decode_only(dataset: str) -> PIL.Image.Image:
    return load_collection(dataset).images[0].decode()


def caption_of(dataset: str) -> list[str]:
    return list(load_collection(dataset).captions)


def pixels_are(expected: np.ndarray) -> Callable[[object], bool]:
    return lambda image: np.array_equal(np.asarray(image), expected)


def shows(size: tuple[int, int], colour: tuple[int, int, int]) -> Callable[[object], bool]:
    """Whether an image has this size, and this colour in its corner, up to what a JPEG changes."""

    def check(image: object) -> bool:
        assert isinstance(image, PIL.Image.Image)
        corner = np.asarray(image.getpixel((0, 0)), int)
        return image.mode == "RGB" and image.size == size and bool((abs(corner - colour) < 8).all())

    return check


def is_rgb(image: object) -> bool:
    return isinstance(image, PIL.Image.Image) and image.mode == "RGB" and image.size == (made.WIDTH, made.HEIGHT)


def of_images() -> Iterator[Case]:
    whole, right = made.encode(), pixels_are(made.PIXELS)
    grey, wide = made.PIXELS[:, :, 0], np.full((8, 12), 40_000, np.uint16)
    palette = PIL.Image.fromarray(made.PIXELS).quantize(8)
    cmyk = PIL.Image.new("CMYK", (12, 8), (0, 255, 255, 0))
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    side = int(PIXEL_LIMIT**0.5)
    large = "image a.jpg is too large to decode: expected at most 32,000,000 pixels"
    images: dict[str, tuple[bytes | Callable[[], bytes], Expected]] = {
        "png of 2.5 billion pixels": (made.png(50_000, 50_000), large),
        "png one pixel high": (made.png(2**31 - 1, 1), large),
        "png just too large": (made.png(side + 1, side + 1), large),
        "png as large as may be": (
            lambda: made.encode(PIL.Image.new("P", (side, side)), transparency=0),
            shows((side, side), (0, 0, 0)),
        ),
        "png of no width": (made.png(0, 100), r"image a\.jpg is corrupt"),
        "png without pixels": (made.png(100, 100, body=b""), r"image a\.jpg is corrupt"),
        "png of more pixels than it says": (made.png(12, 8, body=bytes(50 << 20)), is_rgb),
        "gif of 4 billion pixels": (made.gif(65_535, 65_535), large),
        "gif with a frame beside its screen": (made.gif(1, 1, 65_000, 65_000), large),
        "gif of noise": (made.gif(12, 8)[:-6] + b"\x08\xff\xff\xff\xff\xff\x00;", r"image a\.jpg is corrupt"),
        "webp of the largest canvas": (made.webp(16_383, 16_383), large),
        "webp just too large": (made.webp(4_001, 4_000), "16,000,000 of WebP"),
        "webp as large as may be": (
            partial(made.webp, 4_000, WEBP_PIXEL_LIMIT // 4_000),
            lambda image: isinstance(image, PIL.Image.Image) and image.size == (4_000, 4_000),
        ),
        "bmp of 900 million pixels": (made.bmp(30_000, 30_000), large),
        "bmp of negative height": (made.bmp(12, -8), r"image a\.jpg is corrupt"),
        "bmp of negative width": (made.bmp(-12, 8), r"image a\.jpg"),
        "jpeg of 4 billion pixels": (made.jpeg_of_size(65_500, 65_500), large),
        "jpeg of no size": (made.jpeg_of_size(0, 0), r"image a\.jpg is corrupt"),
        "jpeg of thousands of scans": (
            made.jpeg_of_scans(5_000),
            f"5010 progressive scans; expected at most {MAX_SCANS}",
        ),
        "progressive jpeg": (made.encode(form="JPEG", progressive=True), is_rgb),
        "jpeg with tags that share bytes": (made.jpeg_with(*made.exif_segments(made.exif(5_000, 400_000))), is_rgb),
        "png with tags that share bytes": (made.png_with(made.chunk(b"eXIf", made.exif(5_000, 400_000))), right),
        "jpeg with exif of noise": (made.jpeg_with((0xE1, b"Exif\0\0" + bytes(range(256)) * 4)), is_rgb),
        "jpeg with six megabytes of comment": (made.jpeg_with(*[(0xFE, b"x" * 65_000)] * 100), is_rgb),
        "jpeg with a segment past its end": (made.encode(form="JPEG")[:4] + b"\xff\xff", r"image a\.jpg is corrupt"),
        "jpeg before a zip": (made.encode(form="JPEG") + made.FOREIGN["zip"], is_rgb),
        "png before a page": (whole + made.FOREIGN["html"], right),
        "png with a text bomb": (
            made.png_with(made.chunk(b"zTXt", b"a\0\0" + made.zeros(64))),
            r"image a\.jpg is corrupt",
        ),
        "png with an international text bomb": (
            made.png_with(made.chunk(b"iTXt", b"a\0\1\0\0\0" + made.zeros(64))),
            r"image a\.jpg is corrupt",
        ),
        "png with a profile bomb": (
            made.png_with(made.chunk(b"iCCP", b"a\0\0" + made.zeros(64))),
            r"image a\.jpg is corrupt",
        ),
        "png with 100,000 texts": (made.png_with(made.chunk(b"tEXt", b"a\0b") * 100_000), right),
        "png with a wrong checksum": (whole.replace(b"IDAT", b"IDAT\0", 1), r"image a\.jpg is corrupt"),
        "png with a part of 2 GB": (whole[:33] + b"\x7f\xff\xff\xffIDAT" + whole[41:], right),
        "png of 16 bits": (
            made.encode(PIL.Image.fromarray(wide)),
            r"image a\.jpg has pixel mode I;16; expected 8 bits",
        ),
        "png of a palette with transparency": (
            made.encode(palette, transparency=0),
            pixels_are(np.asarray(palette.convert("RGB"))),
        ),
        "png of one bit": (made.encode(PIL.Image.new("1", (12, 8), 1)), shows((12, 8), (255, 255, 255))),
        "png of grey": (made.encode(PIL.Image.fromarray(grey)), pixels_are(np.repeat(grey[:, :, None], 3, axis=2))),
        "png under another name": (whole, right),
        "png of one pixel": (made.encode(PIL.Image.new("RGB", (1, 1), "red")), shows((1, 1), RED)),
        "jpeg of four inks": (made.encode(cmyk, "JPEG"), shows((12, 8), (255, 1, 1))),
        "turned image": (made.encode(exif=turned), pixels_are(np.rot90(made.PIXELS, -1))),
        "two images in a jpeg": (made.frames("MPO"), shows((12, 8), (254, 0, 0))),
        "animated gif": (made.frames("GIF"), shows((12, 8), RED)),
        "animated webp": (made.frames("WEBP"), shows((12, 8), RED)),
        "animated png": (made.frames("PNG"), shows((12, 8), RED)),
        **{f"{name} as an image": (data, NOT_AN_IMAGE) for name, data in made.FOREIGN.items()},
        **{
            f"{form} cut after {share:.0%}": (data[: int(len(data) * share)], r"image a\.jpg is corrupt")
            for form in ("JPEG", "PNG", "WEBP", "BMP", "GIF")
            for share in (0.05, 0.5, 0.9)
            for data in [made.encode(PIL.Image.fromarray(np.tile(made.PIXELS, (8, 8, 1))), form)]
        },
    }
    for name, (data, expected) in images.items():
        yield Case(name, partial(_decode, data), expected)


def _decode(data: bytes | Callable[[], bytes], folder: Path) -> PIL.Image.Image:
    return decode_only(made.write_folder(folder, data if isinstance(data, bytes) else data()))


def of_files() -> Iterator[Case]:
    """What lies where an image should: in a folder with metadata, and in the folder of a class."""
    other = made.encode()

    def link(path: Path, target: object) -> None:
        path.symlink_to(str(target))

    files: dict[str, tuple[Callable[[Path], object], Expected, Expected]] = {
        "a folder": (Path.mkdir, r"image a\.jpg is missing", r"a\.jpg is no plain file"),
        "a pipe": (os.mkfifo, r"image a\.jpg is missing", r"a\.jpg is no plain file"),
        "a link to a device": (
            partial(link, target="/dev/zero"),
            r"image a\.jpg is missing",
            r"a\.jpg is no plain file",
        ),
        "a link to nothing": (partial(link, target="nothing"), r"image a\.jpg is missing", r"a\.jpg is no plain file"),
        "a link to itself": (partial(link, target="a.jpg"), r"image a\.jpg is missing", r"a\.jpg is no plain file"),
        "a link to an image elsewhere": (
            lambda path: [path.parents[2].joinpath("b.png").write_bytes(other), link(path, path.parents[2] / "b.png")],
            *[pixels_are(made.PIXELS)] * 2,
        ),
        "a link to a file that is none": (
            partial(link, target="/etc/hostname"),
            *[r"a\.jpg is corrupt or of another"] * 2,
        ),
        "eight gigabytes of nothing": (
            lambda path: made.write_sparse(path, 8 << 30, other),
            *[rf"a\.jpg cannot be read: .*expected at most {MAX_IMAGE_BYTES:,}"] * 2,
        ),
    }
    for name, (make, in_folder, in_class) in files.items():
        yield Case(f"{name} as an image", partial(_decode_beside, make), in_folder)
        yield Case(f"{name} as an image of a class", partial(_decode_in_class, make), in_class)


def _decode_beside(make: Callable[[Path], object], folder: Path) -> PIL.Image.Image:
    dataset = made.describe_folder(folder / "deep" / "set", "a.jpg", '["a caption"]')
    make(folder / "deep" / "set" / "a.jpg")
    return decode_only(dataset)


def _decode_in_class(make: Callable[[Path], object], folder: Path) -> PIL.Image.Image:
    (folder / "set" / "cat").mkdir(parents=True)
    make(folder / "set" / "cat" / "a.jpg")
    return decode_only(f"classes:{folder}/set")


def of_captions() -> Iterator[Case]:
    verbatim = {
        "a million letters": "x" * 1_000_000,
        "NUL": "a\0b",
        "composed letters": "\u00e9",
        "decomposed letters": "e\u0301",
        "reversed order": "\u202egnp.exe",
        "families of emoji": "👩‍👩‍👧‍👦" * 100,
        "nothing": "",
        "white space": " \t\u2003\u2028",
        "a line break": "two\nlines\r\n",
        "a page": "</script><script>alert(1)</script>",
        "a formula": '=HYPERLINK("https://example.org")',
        "a terminal's codes": "\x1b[31mred\x1b]0;title\x07",
        "no characters": "\ufffe\uffff",
    }
    for name, text in verbatim.items():
        yield Case(f"caption of {name}", partial(_caption, json.dumps([text])), partial(_equal, [text]))
    yield Case("caption twice", partial(_caption, '["a", "a"]'), partial(_equal, ["a", "a"]))
    refused = {
        "half a character": (r'["ab\ud800"]', r"caption of image a\.jpg is no Unicode: a lone surrogate as letter 3"),
        "the other half": (r'["\udc00"]', "lone surrogate as letter 1"),
        "a number": ("[7]", "caption that is no string: 7"),
        "null": ("[null]", "caption that is no string: None"),
        "true": ("[true]", "caption that is no string: True"),
        "a list": ('[["a"]]', "caption that is no string"),
        "an object": ('[{"__proto__": 1}]', "caption that is no string"),
        "NaN": ("[NaN]", "caption that is no string: nan"),
        "a list in 900 lists": ("[" + "[" * 900 + "]" * 900 + "]", "caption that is no string"),
        "an empty list": ("[]", r"image a\.jpg has no caption; expected at least one"),
        "no list": ('"a"', "line 1: expected a list as 'captions'"),
        "an endless number": (f"[{'1' * 5_000}]", "malformed JSON"),
    }
    for name, (value, message) in refused.items():
        yield Case(f"caption: {name}", partial(_caption, value), message)


def _caption(value: str, folder: Path) -> list[str]:
    made.write_folder(folder, made.encode())
    return caption_of(made.describe_folder(folder, "a.jpg", value))


def _equal(expected: object, found: object) -> bool:
    return found == expected


def of_names() -> Iterator[Case]:
    """Names of images, in the three forms that state them in JSON."""
    names = {
        "upwards": ("../a.jpg", "leads out of its folder"),
        "absolute": ("/etc/passwd", "leads out of its folder"),
        "inwards and out": ("b/../../a.jpg", "leads out of its folder"),
        "empty": ("", "leads out of its folder"),
        "with NUL": ("a\0.jpg", "leads out of its folder"),
        "of Windows": ("..\\..\\a.jpg", "is missing"),
        "of the folder": (".", "is missing"),
        "of 300 letters": ("a" * 300, "is missing"),
        "of a million letters": ("a/" * 500_000, "1,000,000 letters; expected at most 4,096"),
        "of half a character": ("\ud800.jpg", "is missing"),
    }
    for form, write in (("folder", _name_folder), ("karpathy", _name_karpathy), ("coco_json", _name_coco)):
        for name, (value, message) in names.items():
            yield Case(f"name {name} in {form}", partial(_load_named, write, value), message)


def _load_named(write: Callable[[Path, str], str], name: str, folder: Path) -> Collection:
    return load_collection(write(folder, name))


def _name_folder(folder: Path, name: str) -> str:
    return made.describe_folder(folder, name, '["a"]')


def _name_karpathy(folder: Path, name: str) -> str:
    entry = {"filename": name, "split": "test", "sentences": [{"raw": "a"}]}
    (folder / "dataset_x.json").write_text(json.dumps({"images": [entry]}))
    return f"karpathy:{folder}"


def _name_coco(folder: Path, name: str) -> str:
    images, annotations = [{"id": 1, "file_name": name}], [{"image_id": 1, "caption": "a"}]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return f"coco_json:{folder}"


def of_annotations() -> Iterator[Case]:
    good = {"filename": "a.jpg", "split": "test", "sentences": [{"raw": "a"}]}
    broken: dict[str, tuple[bytes, str]] = {
        "nothing": (b"", "malformed JSON at line 1, column 1"),
        "text": (b"hello", "malformed JSON at line 1"),
        "100,000 lists": (b"[" * 100_000, "malformed JSON: maximum recursion"),
        "objects in objects": (b'{"a":' * 100_000, "malformed JSON"),
        "a key twice": (b'{"images": [], "images": []}', "malformed JSON: a key stands twice"),
        "NaN": (b"NaN", "expected a list as 'images'"),
        "infinity": (b'{"images": Infinity}', "expected a list as 'images', got inf"),
        "a list": (b"[]", "expected a list as 'images', got nothing"),
        "null": (b'{"images": null}', "expected a list as 'images', got nothing"),
        "a list in 980 lists": (
            b'{"images": {"a": ' + b"[" * 980 + b"]" * 980 + b"}}",
            "expected a list as 'images'|JSON",
        ),
        "bytes that are no text": (b'{"images": "\xff"}', "malformed JSON"),
        "two values": (b"{} {}", "malformed JSON at line 1"),
        "a cut document": (b'{"images": [{"filename": "a', "malformed JSON at line 1"),
        "a comment": (b"/* */ {}", "malformed JSON"),
    }
    for form, name in (("karpathy", "dataset_x.json"), ("coco_json", "captions.json")):
        for label, (data, message) in broken.items():
            yield Case(f"{form}: {label}", partial(_annotate, form, name, data), rf"{name}.*{message}")
        yield Case(
            f"{form}: 60 MB of nothing",
            partial(_annotate_sparse, form, name, 60 << 20),
            rf"{name} is malformed JSON at line 1",
        )
        yield Case(
            f"{form}: a terabyte of nothing",
            partial(_annotate_sparse, form, name, 1 << 40),
            rf"cannot read .*{name}: it has 1,099,511,627,776 bytes; expected at most",
        )
        yield Case(f"{form}: a pipe", partial(_annotate_pipe, form, name), "holds nothing of that form|cannot read")
    entries: dict[str, tuple[list[object], str]] = {
        "an entry that is a number": ([7], "image at position 0: expected a string as 'split', got nothing"),
        "a split that is a number": ([{**good, "split": 7}], "expected a string as 'split', got 7"),
        "another split": ([{**good, "split": "tset"}], "unknown split of .* 'test'. Did you mean 'tset'"),
        "5,000 splits": ([{**good, "split": f"s{i}"} for i in range(5_000)], r"unknown split .*,\.\.\.\}"),
        "a name that is a list": ([{**good, "filename": ["a"]}], "expected a string as 'filename', got \\['a'\\]"),
        "a folder that is a number": ([{**good, "filepath": 7}], "expected a string as 'filepath', got 7"),
        "sentences that are text": ([{**good, "sentences": "a"}], r"image a\.jpg: expected a list as 'sentences'"),
        "a sentence without text": ([{**good, "sentences": [{}]}], "sentence 0: expected a string as 'raw'"),
        "no sentence": ([{**good, "sentences": []}], r"image a\.jpg has no caption"),
        "an image twice": ([good, good], r"'a\.jpg' stands twice"),
    }
    for label, (images, message) in entries.items():
        data = json.dumps({"images": images}).encode()
        yield Case(f"karpathy: {label}", partial(_annotate, "karpathy", "dataset_x.json", data), message)
    yield Case(
        "karpathy: a mark of byte order",
        partial(_annotate, "karpathy", "dataset_x.json", b"\xef\xbb\xbf" + json.dumps({"images": [good]}).encode()),
        lambda found: isinstance(found, Collection) and list(found.captions) == ["a"],
    )
    image, caption = '{"id": 1, "file_name": "a.jpg"}', '{"image_id": 1, "caption": "a"}'
    documents = {
        "an id that is true": (image.replace("1", "true"), caption, "expected an integer as 'id', got True"),
        "an id that is a fraction": (image.replace("1", "1.0"), caption, "expected an integer as 'id', got 1.0"),
        "an id of 400 digits": (image.replace("1", "1" * 400), caption, "names image 1; expected one that is listed"),
        "an id twice": (f"{image}, {image}", caption, "image id 1 stands twice"),
        "a caption of no image": (image, caption.replace("1", "2"), "names image 2; expected one that is listed"),
        "no image": ("", "", "lists no image; expected at least one"),
        "a caption that is null": (image, caption.replace('"a"', "null"), r"of image a\.jpg: expected a string"),
    }
    for label, (listed, said, message) in documents.items():
        text = f'{{"images": [{listed}], "annotations": [{said}]}}'.encode()
        yield Case(f"coco_json: {label}", partial(_annotate, "coco_json", "captions.json", text), message)
    lines = {
        "a label of 70 bits": (
            f'{{"file_name": "a.jpg", "text": "a", "label": {2**70}}}',
            "label has more than 64 bits",
        ),
        "a label that is a list": ('{"file_name": "a.jpg", "text": "a", "label": []}', "has \\[\\] as label"),
        "a million empty lines": ("\n" * 1_000_000 + "{", "line 1000001 is malformed JSON"),
        "no line": ("", "has 0 images and 0 captions; expected at least one"),
        "a key twice": ('{"file_name": "a.jpg", "file_name": "b.jpg"}', "line 1 is malformed JSON: a key stands twice"),
    }
    for label, (line, message) in lines.items():
        yield Case(f"folder: {label}", partial(_annotate, "folder", "metadata.jsonl", line.encode()), message)


def _annotate(form: str, name: str, data: bytes, folder: Path) -> Collection:
    (folder / "a.jpg").write_bytes(made.encode())
    (folder / name).write_bytes(data)
    return load_collection(f"{form}:{folder}")


def _annotate_sparse(form: str, name: str, n_bytes: int, folder: Path) -> Collection:
    made.write_sparse(folder / name, n_bytes)
    return load_collection(f"{form}:{folder}")


def _annotate_pipe(form: str, name: str, folder: Path) -> Collection:
    os.mkfifo(folder / name)
    return load_collection(f"{form}:{folder}")


def of_archives() -> Iterator[Case]:
    row, damaged = made.row("a"), r"0\.tar is no whole tar"
    link = r"0\.tar: member a\.png is a link or special file; expected plain files only"
    archives: dict[str, tuple[bytes, str]] = {
        "a name upwards": (made.tar(made.member("../a.png", b"x")), "leads out of its folder"),
        "an absolute name": (made.tar(made.member("/etc/a.png", b"x")), "leads out of its folder"),
        "a symbolic link": (made.tar(made.member("a.png", kind=tarfile.SYMTYPE, link="/etc/passwd")), link),
        "a hard link": (made.tar(made.member("a.png", kind=tarfile.LNKTYPE, link="/etc/passwd")), link),
        "a device": (made.tar(made.member("a.png", kind=tarfile.CHRTYPE)), link),
        "a pipe": (made.tar(made.member("a.png", kind=tarfile.FIFOTYPE)), link),
        "an unknown kind": (made.tar(made.member("a.png", kind=b"Z")), link),
        "a name twice": (made.tar(row, row), "key a has 2 image members; expected one"),
        "a member of 8 GB": (made.entry("a.png", 8**11 - 1), damaged),
        "a member of 2**80 bytes": (made.entry("a.png", 2**80), damaged),
        "a member of less than nothing": (made.tar(made.entry("a.png", -1024)), damaged),
        "a long name of less than nothing": (made.tar(made.entry("a", -1024, tarfile.GNUTYPE_LONGNAME)), damaged),
        "2,000 long names": (made.tar(made.member("a", b"b", tarfile.GNUTYPE_LONGNAME) * 2_000), damaged),
        "a wrong checksum": (made.tar(row.replace(b"a.png", b"b.png", 1)), damaged),
        "no end": (row, damaged),
        "half a member": (row[:700], damaged),
        "nothing": (b"", damaged),
        "zeros": (bytes(10_240), "has 0 images"),
        "gzip": (gzip.compress(made.tar(row)), "compressed tars are not read"),
        "a gzip bomb": (gzip.compress(bytes(64 << 20)), "compressed tars are not read"),
        "a path of a million letters": (
            made.tar(made.pax([("path", "a/" * 400_000)]), made.member("a.png", b"x")),
            "799,999 letters; expected at most 4,096",
        ),
        "a size that is text": (made.tar(made.pax([("size", "much")]), row), damaged + "|has 0 .txt"),
        "a sparse map of text": (made.tar(made.pax([("GNU.sparse.map", "a,b")]), row), damaged),
        "a sparse file": (made.tar(made.entry("a.png", 0, tarfile.GNUTYPE_SPARSE)), f"{link}|{damaged}"),
        "an image without text": (made.tar(made.member("a.png", b"x")), r"key a has 0 \.txt members; expected one"),
        "text without lines": (made.tar(made.row("a", b"")), "image a has no caption"),
        "text of bytes": (made.tar(made.row("a", b"\xff\xfe")), r"a\.txt is not UTF-8"),
        "text of two megabytes": (
            made.tar(made.row("a", b"x" * (2 << 20))),
            r"a\.txt has 2,097,152 bytes; expected at",
        ),
        "a name of bytes": (made.tar(made.row("\udcff")), "an image's name is no Unicode"),
    }
    for name, (data, message) in archives.items():
        yield Case(f"tar with {name}", partial(_load_tar, data), message)
    yield Case(
        "tar with other members",
        partial(_load_tar, made.tar(row, made.member("a.json", b"{"), made.member("README", b"x"))),
        lambda found: isinstance(found, Collection) and list(found.captions) == ["a caption"],
    )
    yield Case("tar with eight gigabytes of image", _load_sparse_member, r"a\.png has 8,589,934,591 bytes; expected an")
    yield Case("tar with four gigabytes of header", _load_sparse_header, "a header states that it has")
    yield Case("pipe for a tar", _load_pipe, r"0\.tar is no plain file")
    yield Case("folder for a tar", _load_folder, r"0\.tar is no plain file")


def _load_tar(data: bytes, folder: Path) -> Collection:
    return load_collection(made.write_tar(folder, data))


def _load_sparse_member(folder: Path) -> Collection:
    size, text = 8**11 - 1, made.member("a.txt", b"a")
    dataset = made.write_tar(folder, text + made.entry("a.png", size))
    made.write_sparse(folder / "0.tar", len(text) + made.BLOCK + 8**11 + 1024, text + made.entry("a.png", size))
    return load_collection(dataset)


def _load_sparse_header(folder: Path) -> Collection:
    head = made.entry("pax", 4 << 30, tarfile.XHDTYPE)
    dataset = made.write_tar(folder, head)
    made.write_sparse(folder / "0.tar", (4 << 30) + 4096, head)
    return load_collection(dataset)


def _load_pipe(folder: Path) -> Collection:
    os.mkfifo(folder / "0.tar")
    return load_collection(f"wds:{folder}")


def _load_folder(folder: Path) -> Collection:
    (folder / "0.tar").mkdir()
    return load_collection(f"wds:{folder}")


def of_classes() -> Iterator[Case]:
    names = ("<script>", "{}", "{0}", "{c}", "%s", "-rf", " ", "..hidden", "a\nb", "\u202ex", "é" * 100)
    for name in names:
        expected = [f"a photo of a {name}."]
        yield Case(f"class {ascii(name)[:20]}", partial(_load_class, name, "", b""), partial(_equal, expected))
    yield Case("class of bytes", partial(_load_class, "\udcff", "", b""), "a name is no Unicode: a lone surrogate")
    files = {
        "a template with two places": ("templates.txt", b"a {} and {}", r"templates\.txt, line 1: expected a prompt"),
        "a template of bytes": ("templates.txt", b"\xff\xfe", r"templates\.txt, line 1: expected a prompt"),
        "names that are a list": ("classes.json", b"[]", r"classes\.json: expected a string as 'cat'"),
        "names in 100,000 lists": ("classes.json", b"[" * 100_000, r"classes\.json is malformed JSON"),
        "a name of half a character": ("classes.json", b'{"cat": "\\ud800"}', "a name is no Unicode"),
    }
    for label, (file, data, message) in files.items():
        yield Case(f"classes with {label}", partial(_load_class, "cat", file, data), message)


def _load_class(name: str, file: str, data: bytes, folder: Path) -> list[str]:
    inner = folder / "set" / os.fsdecode(os.fsencode(name))
    inner.mkdir(parents=True)
    (inner / "a.jpg").write_bytes(made.encode())
    if file:
        (folder / "set" / file).write_bytes(data)
    return caption_of(f"classes:{folder}/set")


def of_manifests() -> Iterator[Case]:
    name = b'name = "a"\n'
    where = r"submission\.toml"
    texts: dict[str, tuple[bytes, Expected]] = {
        "nothing": (b"", rf"{where}: field name: Field required"),
        "a name of another type": (b"name = 7", rf"{where}: field name"),
        "a name upwards": (b'name = "../a"', rf"{where}: field name"),
        "a name of a megabyte": (
            b'name = "' + b"a" * 1_000_000 + b'"',
            rf"{where} .*it has 1,000,009 bytes; expected at",
        ),
        "a title of 100,000 letters": (name + b'title = "' + b"a" * 100_000 + b'"', rf"{where}: field title"),
        "a terminal's codes": (name + rb'title = "\u001b[31m"', rf"{where}: field title"),
        "reversed order": (name + 'title = "\u202ex"'.encode(), rf"{where}: field title"),
        "NUL": (name + b'title = "\0"', rf"{where} is not valid TOML"),
        "half a character": (name + rb'title = "\ud800"', rf"{where} is not valid TOML"),
        "a script as address": (name + b'url = "javascript:alert(1)"', rf"{where}: field url"),
        "a file as address": (name + b'url = "file:///etc/passwd"', rf"{where}: field url"),
        "a plain address": (name + b'url = "http://example.org"', rf"{where}: field url"),
        "__proto__": (name + b"__proto__ = 1", rf"{where}: field __proto__: Extra inputs"),
        "an unknown field": (name + b"size = 1", rf"{where}: field size: Extra inputs"),
        "a key twice": (name + name, rf"{where} is not valid TOML"),
        "a date": (name + b"title = 2024-01-01", rf"{where}: field title"),
        "NaN": (name + b"parameters = {total = nan}", rf"{where}: field parameters.total"),
        "a number of 5,000 digits": (name + b"rerank_k = " + b"1" * 5_000, rf"{where} is not valid TOML"),
        "a number of 80 bits": (name + b"rerank_k = " + str(2**80).encode(), rf"{where}: field rerank_k"),
        "less than nothing": (name + b"rerank_k = -1", rf"{where}: field rerank_k"),
        "10,000 authors": (name + b"authors = [" + b'"a",' * 10_000 + b"]", rf"{where}: field authors"),
        "30,000 lists": (name + b"title = " + b"[" * 30_000, rf"{where} is not valid TOML: maximum recursion"),
        "30,000 tables": (name + b"title = " + b"{a=" * 30_000, rf"{where} is not valid TOML: maximum recursion"),
        "a key of 100,000 parts": (name + b"a." * 100_000 + b"a = 1", "a key has more than 100 parts"),
        "a key of 100,000 quoted parts": (name + b'"a".' * 60_000 + b"a = 1", "a key has more than 100 parts"),
        "a header of 100,000 parts": (name + b"[" + b"a . " * 60_000 + b"a]", "a key has more than 100 parts"),
        "bytes that are no text": (name + b'title = "\xff"', rf"{where} is not valid TOML: 'utf-8'"),
        "two bytes a letter": (name.decode().encode("utf-16"), rf"{where} is not valid TOML: 'utf-8'"),
        "a mark of byte order": (b"\xef\xbb\xbf" + name, lambda found: found.name == "a"),
        "many dots in a text": (name + b'summary = "' + b"one. two, " * 150 + b'"', lambda found: found.name == "a"),
        "an argument of 400 letters": (name + b'[args]\na = "' + b"a" * 400 + b'"', lambda found: found.name == "a"),
        "an argument of nobody's home": (name + b'[args]\na = "~nobody-at-all/x"', lambda found: found.name == "a"),
    }
    for label, (data, expected) in texts.items():
        yield Case(f"manifest with {label}", partial(_find_in, data), expected)
    yield Case("manifest of 50 MB", partial(_find_sparse, 50 << 20), rf"{where} .*expected at most {MAX_TOML_BYTES:,}")
    yield Case("pipe for a manifest", partial(_find_made, os.mkfifo), f"cannot read .*{where} .*no plain file")
    yield Case("folder for a manifest", partial(_find_made, Path.mkdir), f"cannot read .*{where} .*no plain file")
    yield Case("no manifest", partial(_find_made, lambda path: None), r"has no submission\.toml; `rove new NAME`")


def _find_in(data: bytes, folder: Path) -> object:
    (folder / "model.py").write_text("def load(context): ...\n")
    (folder / "submission.toml").write_bytes(data)
    return find_submission(str(folder))


def _find_sparse(n_bytes: int, folder: Path) -> object:
    made.write_sparse(folder / "submission.toml", n_bytes)
    return find_submission(str(folder))


def _find_made(make: Callable[[Path], object], folder: Path) -> object:
    make(folder / "submission.toml")
    return find_submission(str(folder))


SUITE = """
name = "odd"
version = 1
status = "draft"
title = "Odd"
summary = "A suite."
reference = "tiny"
seeds = [0]
[collections]
"scenes/test" = 24
[[cells]]
collection = "scenes/test"
shifts = ["clean_canvas"]
reason = "For a test."
[[cells]]
collection = "scenes/test"
shifts = ["gaussian_noise"]
severities = [1]
reason = "For a test."
"""


def of_suites() -> Iterator[Case]:
    changes: dict[str, tuple[str, str, str]] = {
        "an unknown shift": (
            "gaussian_noise",
            "gausian_noise",
            r"odd\.toml: unknown shift 'gausian_noise'. Did you mean",
        ),
        "a shift of 100,000 letters": ("gaussian_noise", "x" * 100_000, r"odd\.toml: unknown shift 'x{200}\.\.\.'"),
        "severity 0": ("severities = [1]", "severities = [0]", r"odd\.toml: field cells\.1\.severities\.0"),
        "severity 99": ("severities = [1]", "severities = [99]", r"odd\.toml: field cells\.1\.severities\.0"),
        "a severity that is text": ("severities = [1]", 'severities = ["x"]', r"odd\.toml: field cells\.1\.severities"),
        "a cell twice": ("severities = [1]", "severities = [1, 1]", r"odd\.toml: cell .* stands twice"),
        "50,000 severities": (
            "severities = [1]",
            f"severities = [{'1,' * 50_000}]",
            "more than 2000 cells; expected at",
        ),
        "10,000 shifts": ('["gaussian_noise"]', "[" + '"gaussian_noise",' * 10_000 + "]", "more than 2000 cells"),
        "10,000 seeds": ("seeds = [0]", f"seeds = {list(range(10_000))}", "more than 2000 cells"),
        "no seed": ("seeds = [0]", "seeds = []", r"odd\.toml: field seeds"),
        "a seed below zero": ("seeds = [0]", "seeds = [-1]", r"odd\.toml: field seeds\.0"),
        "a seed of 80 bits": ("seeds = [0]", f"seeds = [{2**80}]", r"odd\.toml: field seeds\.0"),
        "a name upwards": ('name = "odd"', 'name = "../odd"', r"odd\.toml: field name"),
        "a terminal's codes": ('title = "Odd"', 'title = "\\u001b"', r"odd\.toml: field title"),
        "an unknown attack": (
            'shifts = ["gaussian_noise"]\nseverities = [1]',
            'attacks = ["pdg"]',
            "unknown attack 'pdg'",
        ),
        "a budget of 99": (
            'shifts = ["gaussian_noise"]\nseverities = [1]',
            'attacks = ["pgd"]\nbudgets = [99]',
            r"odd\.toml: pgd has the budgets",
        ),
        "no canvas": ("clean_canvas", "clean", r"odd\.toml: cell .* has no clean_canvas cell"),
        "another collection": ("[collections]", '[collections]\n"scenes/val" = 0', r"odd\.toml: field collections"),
        "no cells": ("[[cells]]", "[[sells]]", r"odd\.toml: field cells"),
        "a key of 200 parts": ("seeds", f"{'a.' * 200}seeds", "a key has more than 100 parts"),
    }
    for label, (old, new, message) in changes.items():
        yield Case(f"suite with {label}", partial(_read_suite, SUITE.replace(old, new)), message)
    yield Case("suite", partial(_read_suite, SUITE), lambda found: len(found.cells) == 2)
    yield Case(
        "suite of a long name", lambda folder: find_suite("x" * 5_000 + ".toml"), r"unknown suite 'x{200}\.\.\.'"
    )
    yield Case("suite of NUL", lambda folder: find_suite("a\0.toml"), "unknown suite 'a\0.toml'")


def _read_suite(text: str, folder: Path) -> object:
    (folder / "odd.toml").write_text(text)
    return read_suite(folder / "odd.toml")


def of_results() -> Iterator[Case]:
    """Records, runs, bundles, evidence and generated data sets whose files are no such; see also test_bundle_fuzz."""
    texts: dict[str, tuple[bytes, str]] = {
        "nothing": (b"", "is not valid JSON|Invalid JSON"),
        "100,000 lists": (b"[" * 100_000, "is not valid JSON"),
        "NaN": (b'{"a": NaN}', "NaN is no JSON number"),
        "a key twice": (b'{"a": 1, "a": 1}', "a key stands twice"),
        "__proto__": (b'{"__proto__": {}}', "field __proto__|Field required"),
        "bytes": (b"\xff\xfe", "is not valid JSON"),
        "half a character": (b'"\\ud800"', "x.json"),
        "a number of 5,000 digits": (b"1" * 5_000, "is not valid JSON"),
    }
    for model in (Record, RunManifest, BundleIndex):
        for label, (data, message) in texts.items():
            run = partial(_read_model, model, data)
            yield Case(f"{model.__name__} of {label}", run, rf"x\.json.*({message})|x\.json:? .*field")
    for label, make in _NO_FILES.items():
        yield Case(f"record: {label}", partial(_read_made, make), r"cannot read .*x\.json as a Record: ")
        yield Case(f"run: {label}", partial(_read_run, make), r"holds no run\.json|cannot read .*run\.json")
        yield Case(f"cell: {label}", partial(_validate_cell, make), r"bundle\.json|cells/a\.json|larger than")
        yield Case(f"evidence: {label}", partial(_read_evidence_made, make), r"x\.parquet cannot be read as evidence")
        yield Case(f"manifest of data: {label}", partial(_verify_made, make), r"manifest\.json")
    table = pa.table({"direction": ["t2i"], "query": [0]})
    tables: dict[str, tuple[bytes, str]] = {
        "nothing": (b"", "footer of at most"),
        "text": (b"hello, this is no table at all", "footer of at most"),
        "a footer of 2 GB": (b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1", "footer of at most"),
        "a footer of noise": (b"PAR1" + b"\xa5" * 100 + b"\x64\0\0\0PAR1", "cannot be read as evidence"),
        "other columns": (_parquet(table), "the columns are direction, query; expected"),
        "a thousand columns": (
            _parquet(pa.table({f"c{i}": [1] for i in range(1_000)})),
            "columns are c0, c1|Exceeded size limit",
        ),
        "a repeated value": (_parquet(pa.table({"direction": ["x" * 1_000] * 100_000})), "columns are direction"),
    }
    for label, (data, message) in tables.items():
        yield Case(f"evidence of {label}", partial(_read_table, data), rf"x\.parquet .*{message}")


def _too_long(path: Path) -> None:
    made.write_sparse(path, 1 << 40)


_NO_FILES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a terabyte of nothing": _too_long,
}


def _read_model(model: type, data: bytes, folder: Path) -> object:
    (folder / "x.json").write_bytes(data)
    return read_json(folder / "x.json", model)


def _read_made(make: Callable[[Path], object], folder: Path) -> object:
    make(folder / "x.json")
    return read_json(folder / "x.json", Record)


def _read_run(make: Callable[[Path], object], folder: Path) -> object:
    make(folder / "run.json")
    return read_results(folder)


def _validate_cell(make: Callable[[Path], object], folder: Path) -> object:
    (folder / "cells").mkdir()
    (folder / "run.json").write_text("{}")
    make(folder / "cells" / "a.json")
    return validate_bundle(folder)


def _read_evidence_made(make: Callable[[Path], object], folder: Path) -> object:
    make(folder / "x.parquet")
    return read_evidence(folder / "x.parquet")


def _verify_made(make: Callable[[Path], object], folder: Path) -> object:
    make(folder / "manifest.json")
    return verify_generated(folder)


def _read_table(data: bytes, folder: Path) -> object:
    (folder / "x.parquet").write_bytes(data)
    return read_evidence(folder / "x.parquet")


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def of_arguments() -> Iterator[Case]:
    """What stands on a command line."""
    datasets = {
        "nothing": ("", "unknown data set ''"),
        "a colon": (":", "unknown format ''"),
        "a path without end": (f"folder:{'x' * 5_000}", "cannot be opened|does not exist"),
        "a path with NUL": ("karpathy:/a\0b", "does not exist"),
        "nobody's home": ("coco_json:~nobody-at-all/x", "does not exist"),
        "a device": ("karpathy:/dev/zero", "holds nothing of that form"),
        "a format twice": ("wds:wds:/x", "does not exist"),
        "half a character": ("karpathy:/\ud800", "does not exist|cannot be opened"),
        "a split of 300 letters": ("scenes/" + "x" * 300, "unknown split of scenes 'x{200}\\.\\.\\.'"),
        "a long name": ("x" * 100_000, "unknown data set 'x{200}\\.\\.\\.'"),
    }
    for label, (text, message) in datasets.items():
        yield Case(f"data set: {label}", lambda folder, text=text: load_collection(text), message)
    yield Case("data set: only its name", lambda folder: parse_dataset("scenes").source, partial(_equal, "scenes"))
    submissions = {
        "nothing": ("", "unknown submission ''"),
        "a long name": ("x" * 5_000, r"unknown submission 'x{200}\.\.\.'"),
        "a long path": ("./" + "x" * 5_000, "no folder ./x"),
        "NUL": ("a\0b", "unknown submission"),
        "a file of a long name": ("x" * 5_000 + ".py:load", "no file x"),
        "a device": ("/dev/zero", "no folder /dev/zero"),
    }
    for label, (text, message) in submissions.items():
        yield Case(f"submission: {label}", lambda folder, text=text: find_submission(text), message)
    yield Case("submission: an odd file", _find_odd_file, lambda found: found.name == "model-x" + "y" * 57)
    parts: dict[str, tuple[Callable[[str], object], str, str]] = {
        "shift without severity": (parse_shift, "gaussian_noise", "gaussian_noise"),
        "shift of severity 99": (parse_shift, "gaussian_noise:99", "gaussian_noise"),
        "shift of another digit": (parse_shift, "gaussian_noise:\u0661", "gaussian_noise"),
        "shift of NUL": (parse_shift, "\0:1", "unknown shift"),
        "attack of budget 0": (parse_attack, "pgd:0", "pgd has the budgets"),
        "attack of text": (parse_attack, "pgd:x:y", "pgd has the budgets"),
        "index of nothing": (partial(parse_index, dim=64), "", "faiss knows no index ''"),
        "index of half a character": (partial(parse_index, dim=64), "\ud800", "is no index; expected at most 200"),
        "index of 100,000 letters": (partial(parse_index, dim=64), "x" * 100_000, "is no index; expected at most 200"),
        "index of a billion lists": (partial(parse_index, dim=64), "IVF1000000000,Flat", "expected at most 1048576"),
        "index of 24 bits": (partial(parse_index, dim=64), "PQ64x24", "the number 24; expected at most 16"),
        "index in brackets": (partial(parse_index, dim=64), "(" * 150, "faiss knows no index"),
    }
    for label, (parse, text, message) in parts.items():
        yield Case(label, lambda folder, parse=parse, text=text: parse(text), message)


def _find_odd_file(folder: Path) -> object:
    path = folder / f"__MODEL X{'y' * 200}.py"
    path.write_text("def load(context): ...\n")
    return find_submission(f"{path}:load")


def of_weights() -> Iterator[Case]:
    """Files of weights, in the process of a submission that opens them as Rove's own do."""
    good = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    files = {
        "nothing": b"",
        "a cut header": made.safetensors(good)[:20],
        "a header of 2**63 bytes": made.safetensors(good, length=2**63),
        "tensors that overlap": made.safetensors(good[:-1] + b',"b":' + good[5:]),
        "a tensor past the end": made.safetensors(good.replace(b"[4]", b"[400]").replace(b"16", b"1600")),
        "a pickle": made.FOREIGN["pickle"],
    }
    for label, data in files.items():
        yield Case(f"weights: {label}", partial(_load_weights, data), "weights: SafetensorError: .*header")


WEIGHTS_MODEL = """
from safetensors.numpy import load_file

def load(context):
    return load_file(context.folder / "weights.safetensors")
"""


def _load_weights(data: bytes, folder: Path) -> object:
    (folder / "submission.toml").write_text('name = "weights"\n')
    (folder / "model.py").write_text(WEIGHTS_MODEL)
    (folder / "weights.safetensors").write_bytes(data)
    with Worker(find_submission(str(folder)), WorkerSettings(load_timeout_s=300.0)) as worker:
        return worker.loaded


CASES = [
    case
    for table in (
        *(of_images, of_files, of_captions, of_names, of_annotations, of_archives, of_classes, of_manifests),
        *(of_suites, of_results, of_arguments, of_weights),
    )
    for case in table()
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused_by_name_or_read_right(case: Case, tmp_path: Path) -> None:
    memory, started = _forget_peak(), time.process_time()
    try:
        found = case.run(tmp_path)
    except RoveError as error:
        found = error
    cpu_s, extra_mb = time.process_time() - started, _peak_mb() - memory
    if isinstance(case.expected, str):
        assert isinstance(found, RoveError), f"accepted: {found!r}"
        message = str(found)
        assert re.search(case.expected, message, re.DOTALL), message
        quoted = isinstance(found, SubmissionError)
        assert quoted or REMEDY.search(message), f"neither expectation nor remedy: {message}"
        assert len(message) < 6_000
    else:
        assert not isinstance(found, RoveError), found
        assert case.expected(found), f"read wrongly: {found!r}"
    assert cpu_s < MAX_CPU_S
    assert extra_mb < MAX_EXTRA_MB


def _forget_peak() -> float:
    """The memory that is used now, in megabytes; `_peak_mb` counts from here, where the system can do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _peak_mb()
    return _peak_mb()


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


COMMANDS = {
    "preview gaussian_noise bomb.png": "too large to decode",
    "preview gaussian_noise pipe.png": "no file; expected an image",
    "describe \x1b[31mred": "unknown name '\ufffd[31mred'",
    "validate bundle": "expected plain files",
    "verify bundle": "manifest.json",
}


@pytest.mark.parametrize("command", COMMANDS, ids=ascii)
def test_the_command_says_it_in_one_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bomb.png").write_bytes(made.png(50_000, 50_000))
    Path("bundle").mkdir()
    for name in ("pipe.png", "bundle/run.json"):
        os.mkfifo(name)
    monkeypatch.setattr(sys, "argv", ["rove", *command.split(" ")])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code in (2, 3)
    assert COMMANDS[command] in said.err
    assert said.err.count("\n") == 1
    assert said.err.startswith("rove: ")
    assert "\x1b" not in said.err
    assert said.out == ""


def test_an_error_names_a_file_that_grew_after_loading(tmp_path: Path) -> None:
    image = load_collection(made.write_folder(tmp_path, made.encode())).images[0]
    made.write_sparse(tmp_path / "a.jpg", 8 << 30)
    with pytest.raises(InputError, match=r"image a\.jpg cannot be read"):
        image.decode()


def test_names_of_cases_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_docs_state_how_many_are_tried() -> None:
    n_refused = sum(isinstance(case.expected, str) for case in CASES) + len(COMMANDS)
    n_tried = len(CASES) + len(COMMANDS)
    assert n_tried >= 100
    figures = f"{n_tried} tried: {n_refused} refused by name, {n_tried - n_refused} read right"
    assert figures in (Path(__file__).parents[2] / "docs" / "faults.md").read_text(encoding="utf-8")
