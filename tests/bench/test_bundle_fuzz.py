"""Thousands of altered bundles: each is refused with an error of Rove, or says nothing that anybody is ranked by."""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_timings import timing_of
from observers import Silent

import bench.bundle
from bench.bundle import TOLERANCE, make_bundle, validate_bundle
from bench.errors import RoveError
from bench.evidence import Evidence
from bench.records import Record, RunManifest, read_json, to_json
from bench.run import RunSettings, run_suite
from bench.stats import N_RESAMPLES, bootstrap
from bench.submission import find_submission
from bench.suites import read_suite
from bench.timing_records import TimingRecord

N_QUICK, N_SLOW = 400, 10_000
SUITE = """
name = "fuzzed"
version = 1
status = "draft"
title = "Fuzzed"
summary = "Few cells of few scenes."
reference = "colours"
seeds = [0]

[collections]
"scenes/test" = 8
"scenes-objects/test" = 76

[[cells]]
collection = "scenes/test"
shifts = ["clean_canvas"]
reason = "For a test."

[[cells]]
collection = "scenes/test"
shifts = ["typo_keyboard"]
severities = [4]
reason = "For a test."

[[cells]]
collection = "scenes-objects/test"
shifts = ["clean_canvas", "clean"]
directions = ["i2t", "i2i"]
reason = "For a test."

[[cells]]
collection = "scenes/test"
attacks = ["pgd"]
budgets = [1]
threat_models = ["query"]
n_images = 6
reason = "For a test."

[[cells]]
collection = "scenes/test"
attacks = ["pgd"]
budgets = [1]
threat_models = ["query"]
stages = ["reranking"]
n_images = 6
reason = "For a test: it is skipped, since there is one stage."
"""
SELF_REPORTED = (
    "run.json/submission/*",
    "run.json/label",  # it may be longer than the submission's name
    *(f"run.json/{name}" for name in ("fingerprint", "weights_sha256", "parameters", "device", "dtype", "batch_size")),
    *(
        f"run.json/{name}"
        for name in ("args*", "limit", "isolation", "data_dirs*", "command", "environment/*", "probes*")
    ),
    "cells/*.json/key",
    "cells/*.json/dim",
    "cells/*.json/embeddings_sha256/*",
    "cells/*-reranking.json/reason",
    "cells/*.json/evidence_sha256",  # that of the evidence, which is compared by itself
    *(f"cells/*.json/timing/{name}" for name in ("encode_images_ms", "encode_texts_ms", "*_cached", "wall_s")),
    *(f"cells/*.json/data/{name}_sha256" for name in ("images", "captions", "distractors")),
    *(f"cells/*.json/data/{name}" for name in ("n_unchanged", "n_distractors")),
    *(f"cells/*.json/attack/{name}" for name in ("access", "version", "unit", "largest_change", "most_edits")),
    *(f"cells/*.json/attack/{name}" for name in ("similarity", "candidates", "examples_sha256", "loss_*", "verdict")),
    *(f"cells/*.json/attack/{name}" for name in ("curve*", "checks*")),
    "timings/*",
)
Files = dict[str, bytes]
Rng = np.random.Generator


class Raw(str):
    """A piece of JSON that `json.dumps` would not write."""

    __slots__ = ()


HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 0.5, -0.5, 1.5, 1e308, "", "1", "true", "ok", "skipped", "both"),
    *(Raw("NaN"), Raw("1e999"), Raw("-Infinity"), Raw("1" + "0" * 400), Raw("1" + "0" * 5000), Raw('"\\ud800"')),
    *(
        Raw("[" * 300 + "]" * 300),
        Raw("[" * 100_000),
        Raw('{"a": ' * 200 + "1" + "}" * 200),
        Raw('"' + "x" * 70_000 + '"'),
    ),
    *("\x00", "\x1b[31m", "\u202egnp.exe", "\u2066x", "../x", "/etc/passwd", "a\nb", "<script>", "0" * 64, "é" * 501),
    *([], {}, [1], [[]], ["t2i"], {"value": 1.0, "low": 1.0, "high": 1.0}, {"": {}}, [None] * 200),
)


@dataclass
class Sample:
    """A bundle that is valid, and where altered copies of it are validated."""

    files: Files
    folder: Path
    written: Files = field(default_factory=dict)

    def validate(self, files: Files) -> None:
        """Validates `files`, of which only those that differ from the last ones are written."""
        for name in self.written.keys() - files.keys():
            (self.folder / name).unlink()
        for name, raw in files.items():
            if self.written.get(name) != raw:
                (self.folder / name).write_bytes(raw)
        self.written = dict(files)
        validate_bundle(self.folder)


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """Fewer resamples, and evidence that was not altered is not scored again: intervals cost most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        defaults = tuple(200 if value == N_RESAMPLES else value for value in bootstrap.__defaults__)
        patch.setattr(bootstrap, "__defaults__", defaults)
        for name in ("score_cells", "score_attack"):
            patch.setattr(bench.bundle, name, remembering(getattr(bench.bundle, name)))
        yield


def remembering(score: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; what it was asked last is answered from memory."""

    @lru_cache(maxsize=64)
    def remembered(asked: Packed) -> Any:
        return score(*asked.arguments)

    return lambda *arguments: remembered(Packed(arguments))


class Packed:
    """Arguments that are equal if all their arrays are."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments
        self._bytes = b"".join(self._iterate(arguments))

    def _iterate(self, value: Any) -> Iterator[bytes]:
        if isinstance(value, dict):
            value = [part for pair in value.items() for part in pair]
        elif isinstance(value, Evidence):
            ranks = value.ranks
            value = value.queries, value.images, ranks.offsets, ranks.pessimistic, ranks.optimistic
        if isinstance(value, np.ndarray):
            yield repr((value.shape, value.dtype)).encode() + value.tobytes()
        elif isinstance(value, list | tuple):
            for part in value:
                yield from self._iterate(part)
        else:
            yield repr(value).encode()

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Packed) and other._bytes == self._bytes


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory, toys: Path) -> Sample:
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "fuzzed.toml").write_text(SUITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROVE_CACHE", str(folder / "cache"))
        submission, suite = find_submission(str(toys / "soft_colours")), read_suite(folder / "fuzzed.toml")
        run = run_suite(submission, suite, RunSettings(output=folder / "run", batch_size=8), Silent()).folder
    timing = timing_of(read_json(run / "run.json", RunManifest))
    (folder / "timings").mkdir()
    (folder / "timings" / f"{timing.slug}.json").write_bytes(to_json(timing))
    bundle = make_bundle(run, folder / "bundle", overwrite=False)
    files = {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*.*") if path.is_file()}
    validate_bundle(bundle)
    return Sample(files, bundle, dict(files))


def test_altered_bundles_are_refused(sample: Sample) -> None:
    check_mutations(sample, range(N_QUICK))


@pytest.mark.slow
def test_ten_thousand_altered_bundles_are_refused(sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    refused, harmless = check_mutations(sample, range(N_SLOW))
    with capsys.disabled():
        figures = f"{refused} refused, {harmless} harmless, 0 other exceptions, 0 wrongly accepted"
        print(f"\n{N_SLOW} mutations: {figures}")  # noqa: T201


def check_mutations(sample: Sample, numbers: range) -> tuple[int, int]:
    """How many altered bundles were refused, and in how many nothing was altered but what is the sender's to say."""
    refused, harmless, wrong = 0, 0, []
    for number in numbers:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([7, number])))
        mutate = MUTATIONS[number % len(MUTATIONS)]
        files = seal(mutate(rng, dict(sample.files)))
        try:
            sample.validate(files)
        except RoveError as error:
            refused += 1
            if re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e]", str(error)) or len(str(error)) > 5_000:
                wrong.append(f"{number} {mutate.__name__}: a message that a stranger wrote: {str(error)[:200]!r}")
        except Exception as error:
            wrong.append(f"{number} {mutate.__name__}: {type(error).__name__}: {str(error)[:200]}")
        else:
            strange = [name for name in differences(sample.files, files) if not is_self_reported(name)]
            harmless += not strange
            wrong += [f"{number} {mutate.__name__}: accepted with another {name}" for name in strange]
    assert not wrong, "\n".join(wrong[:20])
    assert refused > len(numbers) / 2
    return refused, harmless


def is_self_reported(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in SELF_REPORTED)


def seal(files: Files) -> Files:
    """The files with an index that fits, unless the index itself was altered."""
    if "bundle.json" in files:
        return files
    names = {name: sha256(raw).hexdigest() for name, raw in files.items()}
    return files | {"bundle.json": json.dumps({"schema_version": 1, "files": names}).encode()}


def differences(before: Files, after: Files) -> set[str]:
    """Places at which two bundles say something different; numbers within the tolerance are the same."""
    found = {name for name in before.keys() ^ after.keys() if name != "bundle.json"}
    for name in before.keys() & after.keys() - {"bundle.json"}:
        if before[name] == after[name]:
            continue
        if name.endswith(".json"):
            found |= set(compare(meant(name, before[name]), meant(name, after[name]), name))
        elif asked(before[name]) != asked(after[name]):
            found.add(name)
    return found


def meant(name: str, raw: bytes) -> Any:
    """What a file says, with what it leaves to a default."""
    model = RunManifest if name == "run.json" else Record if name.startswith("cells") else TimingRecord
    return model.model_validate_json(raw).model_dump(mode="json")


def asked(raw: bytes) -> list[list[object]]:
    """What evidence says but for ranks: of these, every published number is computed again."""
    rows = pq.read_table(io.BytesIO(raw)).to_pylist()
    return [[row["direction"], row["query"], row["image"], sorted(row["items"])] for row in rows]


def compare(a: Any, b: Any, place: str) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            if key in a and key in b:
                yield from compare(a[key], b[key], f"{place}/{key}")
            elif (a | b)[key] not in (None, "", [], {}, 0):
                yield f"{place}/{key}"
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from compare(one, other, f"{place}/{i}")
    elif isinstance(a, float) and isinstance(b, float | int) and abs(a - b) <= TOLERANCE * max(1.0, abs(a)):
        return
    elif a != b or type(a) is not type(b):
        yield place


def pick(rng: Rng, choices: Any) -> Any:
    return list(choices)[int(rng.integers(len(choices)))]


def pick_file(rng: Rng, files: Files, end: str) -> str:
    return pick(rng, sorted(name for name in files if name.endswith(end) and name != "bundle.json"))


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


def parent_of(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        tree = tree[key]
    return tree


def dump(tree: Any) -> bytes:
    """JSON with its raw pieces as they are."""
    text = json.dumps(tree, default=str)
    pieces = {value for path in places(tree) if isinstance(value := parent_of(tree, path)[path[-1]], Raw)}
    for piece in pieces:
        text = text.replace(json.dumps(str(piece)), piece)
    return text.encode()


def json_mutation(change: Callable[[Rng, Any, tuple[Any, ...]], None]) -> Callable[[Rng, Files], Files]:
    """Alters one place of one JSON file; the index is made anew."""

    def mutate(rng: Rng, files: Files) -> Files:
        files.pop("bundle.json")
        name = pick_file(rng, files, ".json")
        tree = json.loads(files[name])
        change(rng, tree, pick(rng, list(places(tree))))
        return files | {name: dump(tree)}

    mutate.__name__ = change.__name__
    return mutate


@json_mutation
def put_hostile_value(rng: Rng, tree: Any, path: tuple[Any, ...]) -> None:
    parent_of(tree, path)[path[-1]] = pick(rng, HOSTILE)


@json_mutation
def delete_field(rng: Rng, tree: Any, path: tuple[Any, ...]) -> None:
    del parent_of(tree, path)[path[-1]]


@json_mutation
def add_field(rng: Rng, tree: Any, path: tuple[Any, ...]) -> None:
    parent = parent_of(tree, path)
    if isinstance(parent, dict):
        parent[pick(rng, ["note", "", "\x1b[2J", "x" * 5000, "__class__", "i2t", "status"])] = pick(rng, HOSTILE)
    else:
        parent.insert(path[-1], copy.deepcopy(parent[path[-1]]))


@json_mutation
def change_type(rng: Rng, tree: Any, path: tuple[Any, ...]) -> None:
    value = parent_of(tree, path)[path[-1]]
    parent_of(tree, path)[path[-1]] = pick(rng, [str(value), [value], {"value": value}, bool(value), not value])


@json_mutation
def nudge_number(rng: Rng, tree: Any, path: tuple[Any, ...]) -> None:
    def is_number(place: tuple[Any, ...]) -> bool:
        value = parent_of(tree, place)[place[-1]]
        return isinstance(value, int | float) and not isinstance(value, bool)

    path = pick(rng, [place for place in places(tree) if is_number(place)] or [path])
    value = parent_of(tree, path)[path[-1]]
    if isinstance(value, int | float):
        changed = [value + 1, value - 1, value * 2, -value, value + 0.01, value * 1.001, 0, 1]
        parent_of(tree, path)[path[-1]] = pick(rng, changed)


@json_mutation
def swap_fields(rng: Rng, tree: Any, path: tuple[Any, ...]) -> None:
    other = pick(rng, list(places(tree)))
    if other[: len(path)] == path or path[: len(other)] == other:
        return
    one, two = parent_of(tree, path), parent_of(tree, other)
    one[path[-1]], two[other[-1]] = two[other[-1]], one[path[-1]]


def double_key(rng: Rng, files: Files) -> Files:
    files.pop("bundle.json")
    name = pick_file(rng, files, ".json")
    keys = [match.end() for match in re.finditer(rb'"[a-z0-9_@]+": ', files[name])]
    at = pick(rng, keys)
    key = files[name].rfind(b'"', 0, at - 3)
    twice = files[name][key:at] + pick(rng, [b"1, ", b"null, ", b'"x", '])
    return files | {name: files[name][:key] + twice + files[name][key:]}


def take_from_other_record(rng: Rng, files: Files) -> Files:
    files.pop("bundle.json")
    name, other = (pick_file(rng, {n: b"" for n in files if n.startswith("cells")}, ".json") for _ in range(2))
    tree, source = json.loads(files[name]), json.loads(files[other])
    key = pick(rng, sorted(tree))
    tree[key] = source[key]
    return files | {name: dump(tree)}


def alter_bytes(rng: Rng, files: Files) -> Files:
    name = pick(rng, sorted(files))
    raw = bytearray(files[name])
    at = int(rng.integers(len(raw)))
    end = min(len(raw), at + int(rng.integers(1, 9)))
    kind = int(rng.integers(5))
    if kind == 0:
        raw[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        raw[at:end] = rng.bytes(end - at)
    elif kind == 2:
        del raw[at:]
    elif kind == 3:
        del raw[at:end]
    else:
        raw[at:at] = raw[at:end]
    files[name] = bytes(raw)
    return refer(files, name) if name != "bundle.json" else files


def refer(files: Files, name: str) -> Files:
    """The files, with the record of altered evidence naming its new hash; to be sealed again."""
    files.pop("bundle.json", None)
    record = name.replace(".parquet", ".json")
    if name.endswith(".parquet"):
        stated = re.compile(rb'"evidence_sha256": "[0-9a-f]{64}"')
        digest = sha256(files[name]).hexdigest().encode()
        files[record] = stated.sub(b'"evidence_sha256": "' + digest + b'"', files[record])
    return files


def alter_index(rng: Rng, files: Files) -> Files:
    index = json.loads(files["bundle.json"])
    name = pick(rng, sorted(index["files"]))
    digest = index["files"].pop(name)
    other = pick(
        rng, ["../" + name, "/" + name, name.replace("/", "\\"), name.upper(), "./" + name, "cells//x.json", ""]
    )
    if int(rng.integers(3)):
        index["files"][other] = digest
    else:
        index["files"][name] = pick(rng, [digest[::-1], digest.upper(), 1, None])
    return files | {"bundle.json": dump(index)}


def other_files(rng: Rng, files: Files) -> Files:
    files.pop("bundle.json")
    name, other = pick_file(rng, files, ""), pick_file(rng, files, "")
    kind = int(rng.integers(4))
    if kind == 0:
        del files[name]
    elif kind == 1:
        files[pick(rng, ["cells/.hidden", "notes.html", "cells/x.json", "timings/x.txt", "cells/X.parquet"])] = b"{}"
    elif kind == 2:
        files[name], files[other] = files[other], files[name]
    else:
        files[name] = files[other]
    return refer(files, name) if name in files and name.replace(".parquet", ".json") in files else files


def evidence_of_other_cell(rng: Rng, files: Files) -> Files:
    name, other = pick_file(rng, files, ".parquet"), pick_file(rng, files, ".parquet")
    return refer(files | {name: files[other]}, name)


def alter_table(rng: Rng, files: Files) -> Files:
    """Another shape of table, or other types, by a writer of its own."""
    name = pick_file(rng, files, ".parquet")
    table = pq.read_table(io.BytesIO(files[name]))
    column = pick(rng, table.schema.names)
    at, values = table.schema.get_field_index(column), table[column]
    kind = int(rng.integers(9))
    if kind == 0:
        table = table.select([pick(rng, table.schema.names) for _ in table.schema.names]).rename_columns(
            [f"c{i}" for i in range(7)]
        )
    elif kind == 1:
        table = table.drop_columns(column)
    elif kind == 2:
        table = table.append_column(pick(rng, ["note", column]), values)
    elif kind == 3:
        is_list = pa.types.is_list(values.type)
        kinds = [pa.list_(pa.int64()), pa.list_(pa.float64())] if is_list else [pa.large_string()]
        table = table.set_column(at, column, values.cast(pick(rng, kinds)))
    elif kind == 4:
        holes = values.to_pylist()
        holes[int(rng.integers(len(holes)))] = None
        table = table.set_column(at, column, pa.array(holes, values.type))
    elif kind == 5:
        table = table.take(pa.array(rng.permutation(len(table))))
    elif kind == 6:
        table = table.slice(int(rng.integers(len(table))))
    elif kind == 7:
        table = pa.concat_tables([table, table.slice(0, 1)])
    else:
        table = table.select(rng.permutation(table.schema.names).tolist())
    return refer(files | {name: written(rng, table)}, name)


def alter_values(rng: Rng, files: Files) -> Files:
    """Other values in one row of the right kind of table."""
    name = pick_file(rng, files, ".parquet")
    table = pq.read_table(io.BytesIO(files[name]))
    column = pick(rng, table.schema.names)
    values, row = table[column].to_pylist(), int(rng.integers(len(table)))
    number = pick(rng, [-1, 0, 1, 2, 7, 100, 2**31 - 1, -(2**31)])
    if column == "direction":
        values[row] = pick(rng, ["t2i", "i2t", "i2i", "clean t2i", "", "x" * 1000, "\x00"])
    elif isinstance(values[row], list):
        old, place = values[row], int(rng.integers(len(values[row])))
        new = pick(rng, [number, min(old[place] + 1, 2**31 - 1), old[place] - 1, old[-1]])
        other = values[int(rng.integers(len(table)))]
        replaced = [*old[:place], new, *old[place + 1 :]]
        values[row] = pick(rng, [replaced, old[:place], [*old, number], old[::-1], other])
    else:
        values[row] = number
    table = table.set_column(
        table.schema.get_field_index(column), column, pa.array(values, table.schema.field(column).type)
    )
    return refer(files | {name: written(rng, table)}, name)


def written(rng: Rng, table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    rows = pick(rng, [None, 1, 10])
    pq.write_table(table, buffer, compression=pick(rng, ["zstd", "none", "gzip"]), row_group_size=rows)
    return buffer.getvalue()


MUTATIONS: tuple[Callable[[Rng, Files], Files], ...] = (
    put_hostile_value,
    delete_field,
    add_field,
    change_type,
    nudge_number,
    nudge_number,
    swap_fields,
    double_key,
    take_from_other_record,
    alter_bytes,
    alter_bytes,
    alter_index,
    other_files,
    evidence_of_other_cell,
    alter_table,
    alter_values,
    alter_values,
)
