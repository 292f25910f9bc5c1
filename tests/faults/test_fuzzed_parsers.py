"""Random and altered bytes for everything that parses: only an error of Rove may come out, or something that was read.

Each parser gets random bytes, and good files of its own with pieces cut, doubled, overwritten or exchanged, or with
another value somewhere in their JSON. The quick
test tries N_QUICK inputs of each of the parsers; the slow one (`make test-slow`) N_SLOW of each and prints how many
that were. Both are made from seeds: the same inputs every time, the slow test's first ones those of the quick test.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import hostile_files as made
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.bundle import BundleIndex
from bench.data.images import decode_image
from bench.data.registry import load_collection, parse_dataset
from bench.errors import RoveError
from bench.evidence import read_evidence
from bench.generated import GeneratedManifest
from bench.records import Manifest, Record, RunManifest, read_json, read_toml
from bench.retrieval.index_spec import parse_index
from bench.suites import read_suite
from bench.timing_records import TimingRecord
from shifts.attacks.catalogue import parse_attack
from shifts.catalogue import parse_shift

pytestmark = pytest.mark.filterwarnings("ignore::Warning:PIL")

N_QUICK, N_SLOW = 150, 20_000
Rng = np.random.Generator
VALUES = (
    *(
        None,
        True,
        0,
        -1,
        1.5,
        2**63,
        10**400,
        float("nan"),
        float("inf"),
        "",
        "x",
        "\0",
        "\ud800",
        "../a.jpg",
        "a" * 5_000,
    ),
    *([], {}, [[]], [None] * 50, {"": {}}, {"raw": 1}, "a.jpg", "test", "\u202e", [[[[[[[[[]]]]]]]]]),
)
RESULTS = Path(__file__).parents[2] / "leaderboard" / "results" / "demo-core-v1" / "tiny-8-epochs" / "r1"
TOKENS = (
    *(
        b"null",
        b"NaN",
        b"-1",
        b"1e999",
        b"0" * 5_000,
        b"[" * 2_000,
        b"{" * 2_000,
        b'"\\ud800"',
        b"\xff\xfe",
        b"\0",
        b"",
    ),
    *(
        b"\x7f\xff\xff\xff",
        b"\xff\xff\xff\xff",
        b"\x80\x00\x00\x00",
        b"../",
        b"\n",
        b"'''",
        b'"""',
        b"a." * 500,
        b"=",
        b"#",
    ),
)


class Parser(NamedTuple):
    """What reads a file of a name, and files that it reads without an error."""

    read: Callable[[Path], object]
    name: str
    samples: Callable[[], list[bytes]]


def load_all(form: str, path: Path) -> object:
    collection = load_collection(f"{form}:{path.parent}")
    return [image.decode() for image in collection.images]


def read_text(parse: Callable[[str], object], path: Path) -> object:
    return parse(path.read_bytes().decode("utf-8", errors="surrogateescape"))


def shipped(pattern: str) -> list[bytes]:
    """A few files of a published row."""
    found = sorted(RESULTS.glob(pattern), key=lambda path: path.stat().st_size)
    assert found, f"{RESULTS} has no {pattern}"
    return [path.read_bytes() for path in found[:3]]


def images() -> list[bytes]:
    picture = PIL.Image.fromarray(made.PIXELS)
    return [
        *(made.encode(picture, form) for form in ("JPEG", "PNG", "WEBP", "BMP", "GIF")),
        *(made.encode(picture, "JPEG", progressive=True), made.frames("GIF"), made.frames("WEBP"), made.frames("MPO")),
        made.encode(picture.quantize(8), transparency=0),
        made.jpeg_with((0xE1, b"Exif\0\0" + made.exif(3, 40))),
    ]


def tars() -> list[bytes]:
    long = made.pax([("path", "b/" * 60 + "a.png")])
    return [made.tar(made.row("a"), made.row("b")), made.tar(long, made.member("a.png", made.encode()), made.row("c"))]


def documents() -> list[bytes]:
    entry = {"filename": "a.jpg", "filepath": "", "split": "test", "sentences": [{"raw": "one"}, {"raw": "two"}]}
    return [json.dumps({"images": [entry, {**entry, "split": "val"}]}).encode()]


def coco_documents() -> list[bytes]:
    images, annotations = [{"id": 1, "file_name": "a.jpg"}], [{"image_id": 1, "caption": "a"}] * 2
    return [json.dumps({"images": images, "annotations": annotations}).encode()]


def lines() -> list[bytes]:
    entries = [{"file_name": "a.jpg", "captions": ["a", "b"], "label": 3}, {"file_name": "a.jpg", "text": "a"}]
    return [json.dumps(entry).encode() for entry in entries]


def tables() -> list[bytes]:
    other = io.BytesIO()
    pq.write_table(pa.table({"direction": ["t2i"], "query": [[1, 2]]}), other)
    return [*shipped("cells/*.parquet"), other.getvalue()]


def manifests() -> list[bytes]:
    facts = b'name = "a"\ntitle = "A"\nauthors = ["b"]\nurl = "https://example.org"\n'
    return [
        facts + b'[args]\n"x y" = "1"\n[parameters]\ntotal = 3\n',
        b'name = "a"\nfit = {recipe = "r", version = 1, seed = 0, args = {}}\n',
    ]


def suites() -> list[bytes]:
    folder = Path(__file__).parents[2] / "bench" / "suites"
    return [path.read_bytes() for path in sorted(folder.glob("demo-*.toml"))]


PARSERS: dict[str, Parser] = {
    "image": Parser(lambda path: decode_image(path.read_bytes(), "a"), "a.png", images),
    "karpathy": Parser(partial(load_all, "karpathy"), "dataset_x.json", documents),
    "coco_json": Parser(partial(load_all, "coco_json"), "captions.json", coco_documents),
    "folder": Parser(partial(load_all, "folder"), "metadata.jsonl", lines),
    "wds": Parser(partial(load_all, "wds"), "0.tar", tars),
    "record": Parser(partial(read_json, model=Record), "x.json", lambda: shipped("cells/*.json")),
    "run": Parser(partial(read_json, model=RunManifest), "x.json", lambda: shipped("run.json")),
    "bundle": Parser(partial(read_json, model=BundleIndex), "x.json", lambda: shipped("bundle.json")),
    "timing": Parser(partial(read_json, model=TimingRecord), "x.json", lambda: shipped("timings/*.json")),
    "generated": Parser(partial(read_json, model=GeneratedManifest), "x.json", lambda: shipped("bundle.json")),
    "evidence": Parser(read_evidence, "x.parquet", tables),
    "manifest": Parser(partial(read_toml, model=Manifest), "x.toml", manifests),
    "suite": Parser(read_suite, "x.toml", suites),
    "data set": Parser(
        partial(read_text, parse_dataset), "x", lambda: [b"scenes/test", b"wds:/nowhere/x", b"flickr30k"]
    ),
    "shift": Parser(partial(read_text, parse_shift), "x", lambda: [b"gaussian_noise:3", b"sentence_passive:1"]),
    "attack": Parser(partial(read_text, parse_attack), "x", lambda: [b"pgd:4", b"charmer:1"]),
    "index": Parser(
        partial(read_text, partial(parse_index, dim=32)),
        "x",
        lambda: [b"IVF16,PQ8x4fs,Refine(SQfp16)", b"HNSW32", b"OPQ8_16,IVF8,PQ8", b"PCA16,SQ8"],
    ),
}
samples_of = cache(lambda name: PARSERS[name].samples())


def altered(rng: Rng, samples: list[bytes]) -> bytes:
    """Random bytes now and then, else a sample with one to four changes."""
    if rng.random() < 0.1:
        return rng.bytes(int(rng.integers(0, 400)))
    data = samples[int(rng.integers(len(samples)))]
    if data.startswith(b"{") and rng.random() < 0.5:
        return json.dumps(put(rng, json.loads(data))).encode()
    for _ in range(int(rng.integers(1, 5))):
        data = change(rng, data, samples)
    return data


def put(rng: Rng, value: object) -> object:
    """Another value in place of one somewhere in a document, now and then of the whole."""
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[int(rng.integers(len(keys)))]
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        copy[key] = put(rng, copy[key])
        return copy
    return VALUES[int(rng.integers(len(VALUES)))]


def change(rng: Rng, data: bytes, samples: list[bytes]) -> bytes:
    start, stop = sorted(int(at) for at in rng.integers(0, len(data) + 1, 2))
    stop = min(stop, start + int(rng.choice([1, 4, 40, 4_000])))
    other = samples[int(rng.integers(len(samples)))]
    place = int(rng.integers(0, len(other) + 1))
    pieces = (
        b"",
        data[start:stop] * 2,
        rng.bytes(stop - start),
        bytes(byte ^ (1 << int(rng.integers(8))) for byte in data[start : start + 1]),
        TOKENS[int(rng.integers(len(TOKENS)))],
        other[place : place + stop - start],
    )
    kind = int(rng.integers(len(pieces)))
    return data[:start] + pieces[kind] + data[start + 1 if kind == 3 else stop :]


def fuzz(name: str, n_inputs: int, folder: Path) -> tuple[int, int]:
    """How many inputs were refused, and how many were read.

    Raises:
        AssertionError: something else came out; names the input's number.
    """
    parser, n_refused = PARSERS[name], 0
    (folder / "a.jpg").write_bytes(made.encode())
    for number in range(n_inputs):
        data = altered(np.random.default_rng([number, *name.encode()]), samples_of(name))
        (folder / parser.name).write_bytes(data)
        try:
            parser.read(folder / parser.name)
        except RoveError:
            n_refused += 1
        except BaseException as error:
            raise AssertionError(f"{name} {number}: {type(error).__name__}: {error} for {data[:200]!r}") from error
    return n_refused, n_inputs - n_refused


@pytest.mark.parametrize("name", PARSERS)
def test_only_errors_of_rove_come_out(name: str, tmp_path: Path) -> None:
    refused, _ = fuzz(name, N_QUICK, tmp_path)
    assert refused, "nothing was refused: the changes change nothing"


@pytest.mark.parametrize("name", PARSERS)
def test_samples_are_read(name: str, tmp_path: Path) -> None:
    """So that altered ones reach beyond the first check."""
    if name == "generated":
        pytest.skip("a published row has no generated data set; other JSON stands in for its manifest")
    parser, n_read = PARSERS[name], 0
    (tmp_path / "a.jpg").write_bytes(made.encode())
    for data in samples_of(name):
        (tmp_path / parser.name).write_bytes(data)
        try:
            parser.read(tmp_path / parser.name)
            n_read += 1
        except RoveError:
            continue
    assert n_read


@pytest.mark.slow
def test_a_long_run_of_all_parsers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """20,000 inputs for each of 17 parsers: 340,000."""
    assert len(PARSERS) * N_SLOW == 340_000
    counts = [fuzz(name, N_SLOW, tmp_path / name) for name in PARSERS if not (tmp_path / name).mkdir()]
    refused, read = np.sum(counts, axis=0)
    with capsys.disabled():
        print(  # noqa: T201
            f"\nparsers: {refused + read} inputs for {len(PARSERS)} parsers, {refused} refused, {read} read, "
            "0 other exceptions"
        )
