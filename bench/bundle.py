"""Bundles: what is sent to the leaderboard, and whether what it says follows from its evidence.

A bundle is a folder: `run.json`, `cells/*.json`, `cells/*.parquet`, `timings/*.json` and `bundle.json` with the sha256
of each. A run's folder has the same form but for `bundle.json` and for timings, which lie beside it: they belong to the
submission, not to a suite. Both are read here. A bundle may come from a stranger: what is in it is measured before it
is opened, and whatever follows from the evidence, or from the rest of the bundle, is computed again and compared.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from bench.claims import (
    check_families,
    check_isolation,
    check_manifest,
    check_record,
    check_report,
    check_skipped,
    check_sources,
)
from bench.errors import IncompleteError, InputError
from bench.evidence import MAX_ROWS, Evidence, Variant, check_evidence, in_variant, pairs_within, read_evidence
from bench.records import DONE, Cell, Data, Estimate, Record, RunManifest, Sha256, read_json, to_json
from bench.scoring import CELLS_AT_ONCE, Metrics, find_flags, score_attack, score_cells
from bench.store import check_proof, new_folder, sha256_of, write_atomic
from bench.timing_records import TimingRecord, usual_folder
from bench.types import Direction

INDEX = "bundle.json"
TOLERANCE = 1e-6
MAX_FILES = 2_000
MAX_BUNDLE_BYTES = 64 << 20
_FOLDERS = ("cells", "timings")
_FILE_NAME = r"^(run\.json|cells/[a-z0-9_-]{1,200}\.(json|parquet)|timings/[a-z0-9-]{1,200}\.json)$"
Scores = Mapping[str, Estimate]
Pairs = Mapping[Literal["captions", "labels"], Int[np.ndarray, "n_pairs 2"]]
Variants = dict[Variant, dict[Direction, Evidence]]
_KEPT_BYTES = 256 << 20


class BundleIndex(BaseModel):
    """The contents of `bundle.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    files: dict[Annotated[str, StringConstraints(pattern=_FILE_NAME)], Sha256] = Field(max_length=MAX_FILES)


class _Kept:
    """The evidence of the cells that were read first, as much as fits: it is asked for in several passes over a run."""

    def __init__(self) -> None:
        self._variants: dict[tuple[str, str | None], Variants] = {}
        self._n_bytes = 0

    def get(self, record: Record) -> Variants | None:
        return self._variants.get((record.cell.slug, record.evidence_sha256))

    def add(self, record: Record, found: Variants) -> None:
        n_bytes = sum(part.n_bytes for variant in found.values() for part in variant.values())
        if self._n_bytes + n_bytes <= _KEPT_BYTES:
            self._variants[record.cell.slug, record.evidence_sha256] = found
            self._n_bytes += n_bytes


@dataclass(frozen=True)
class Results:
    """A run or bundle as read from disk; evidence is read when asked for."""

    folder: Path
    manifest: RunManifest
    records: tuple[Record, ...]
    timings: tuple[TimingRecord, ...] = ()
    _kept: _Kept = field(default_factory=_Kept, repr=False, compare=False)

    def evidence(self, record: Record, variant: Variant = "") -> dict[Direction, Evidence]:
        """One variant of a record's evidence; {} if there is no such."""
        return self.variants(record).get(variant, {})

    def variants(self, record: Record) -> Variants:
        """The evidence of one of the records; of an attacked cell also with its items as they were, or not rounded.

        Raises:
            InputError: it is missing, damaged, or not that of the record.
        """
        found = self._kept.get(record)
        if found is None:
            found = self._read(record)
            self._kept.add(record, found)
        return found

    def _read(self, record: Record) -> Variants:
        path = _find_evidence(self.folder, record)
        directions = record.cell.directions
        variants: list[Variant] = ["", "clean"] if record.cell.is_attack else [""]
        if record.attack is not None and record.attack.unrounded:
            variants.append("unrounded")
        n_rows = _count_rows(record.data, directions) if record.data else MAX_ROWS
        evidence = read_evidence(path, len(variants) * n_rows)
        expected = [in_variant(one, direction) for one in variants for direction in directions]
        if list(evidence) != expected:
            raise InputError(f"{path} holds {', '.join(evidence)}; expected {', '.join(expected)}.")
        return {one: {name: evidence[in_variant(one, name)] for name in directions} for one in variants}


class Timings(NamedTuple):
    """Files of timings: those of a run's own submission and weights, and those of others."""

    own: tuple[Path, ...]
    others: tuple[Path, ...]


def read_results(folder: Path) -> Results:
    """The records of a run's folder or of a bundle, ordered by cell; of a bundle its timings too.

    Raises:
        InputError: a file is missing, breaks its schema, or is a timing of another submission or other weights.
    """
    if not (folder / "run.json").is_file():
        raise InputError(f"{folder} holds no run.json; expected the folder of a run or a bundle.")
    manifest = read_json(folder / "run.json", RunManifest)
    paths = sorted((folder / "cells").glob("*.json"))
    records = [read_json(path, Record) for path in paths]
    for path, record in zip(paths, records, strict=True):
        if path.stem != record.cell.slug:
            raise InputError(f"{path} holds the cell {record.cell.id}; expected it in {record.cell.slug}.json.")
    timings = _read_timings(folder / "timings")
    stray = next((path for path, timing in timings.items() if not _is_of(timing, manifest)), None)
    if stray:
        raise InputError(f"{stray} is of another submission or other weights than run.json; run `rove bundle` again.")
    return Results(folder, manifest, tuple(records), tuple(timings.values()))


def read_record(folder: Path, cell: Cell) -> Record:
    """The record of a run's cell, as it was written, with its evidence beside it.

    Raises:
        InputError: one of both is missing or damaged.
    """
    path = cell_files(folder, cell)[0]
    if path.is_file():
        check_proof(path)
    record = read_json(path, Record)
    if record.cell != cell:
        raise InputError(f"{path} holds the cell {record.cell.id}; expected {cell.id}.")
    if record.status == "ok":
        _find_evidence(folder, record)
    return record


def cell_files(folder: Path, cell: Cell) -> tuple[Path, Path]:
    """Where the record of a run's cell lies, and its evidence."""
    return folder / "cells" / f"{cell.slug}.json", folder / "cells" / f"{cell.slug}.parquet"


def _find_evidence(folder: Path, record: Record) -> Path:
    path = cell_files(folder, record.cell)[1]
    if not path.is_file() or sha256_of(path) != record.evidence_sha256:
        raise InputError(f"{path} is missing or has another sha256 than its record states.")
    return path


def find_timings(run: Path, manifest: RunManifest) -> Timings:
    """What `rove time` left beside a run's folder; only the run's own timings enter its bundle.

    Looks also where `rove time` writes unless told otherwise: runs are named by more than a submission's fingerprint.
    Of two files with one name the one that is beside the run counts.

    Raises:
        InputError: one of the files is no timing, or has another name than its contents give.
    """
    beside, usual = run.resolve().parent, usual_folder(manifest.label, manifest.fingerprint)
    timings = _read_timings(beside.parent / usual / "timings") | _read_timings(beside / "timings")
    own = {path.name: path for path, timing in timings.items() if _is_of(timing, manifest)}
    others = tuple(path for path, timing in timings.items() if not _is_of(timing, manifest))
    return Timings(tuple(own.values()), others)


def _read_timings(folder: Path) -> dict[Path, TimingRecord]:
    timings = {path: read_json(path, TimingRecord) for path in sorted(folder.glob("*.json"))}
    for path, timing in timings.items():
        if path.stem != timing.slug:
            raise InputError(f"{path} holds another timing; expected it in {timing.slug}.json.")
    return timings


def _is_of(timing: TimingRecord, manifest: RunManifest) -> bool:
    expected = manifest.fingerprint, manifest.weights_sha256, manifest.label
    return (timing.fingerprint, timing.weights_sha256, timing.label) == expected


def _count_rows(data: Data, directions: tuple[Direction, ...]) -> int:
    """How many queries there can be; of images that look for their like some do not ask."""
    return sum(data.n_captions if direction == "t2i" else data.n_images for direction in directions)


def make_bundle(run: Path, output: Path, overwrite: bool) -> Path:
    """Copies a complete run and its timings to `output` and adds an index; `output` appears whole or not at all.

    Raises:
        IncompleteError: a cell of the suite is missing or failed.
        UsageError: `output` is not empty.
        InputError: the run's files contradict each other, or one has changed since it was written.
    """
    results = read_results(run)
    check_complete(results)
    for cell in results.manifest.cells:
        read_record(run, cell)
    scored = {record.cell.slug for record in results.records if record.status == "ok"}
    slugs = sorted(cell.slug for cell in results.manifest.cells)
    ends = {slug: (".json", ".parquet") if slug in scored else (".json",) for slug in slugs}
    names = ["run.json", *(f"cells/{slug}{end}" for slug in slugs for end in ends[slug])]
    sources = {name: run / name for name in names}
    sources |= {f"timings/{path.name}": path for path in find_timings(run, results.manifest).own}
    with new_folder(output, INDEX, overwrite) as unfinished:
        for name, source in sources.items():
            check_proof(source)
            write_atomic(unfinished / name, source.read_bytes())
        index = BundleIndex(files={name: sha256_of(unfinished / name) for name in sources})
        write_atomic(unfinished / INDEX, to_json(index))
    return output


def check_complete(results: Results) -> None:
    """Nothing, if every cell of the suite was scored or cannot apply to the submission, and there is no other.

    Raises:
        IncompleteError: a cell is missing or failed.
        InputError: a record belongs to no cell of the suite.
    """
    cells = set(results.manifest.cells)
    done = {record.cell for record in results.records if record.status in DONE}
    missing = [cell for cell in results.manifest.cells if cell not in done]
    if missing:
        count = f"{len(missing)} of {len(results.manifest.cells)} cells"
        raise IncompleteError(f"{results.folder} lacks {count}, first {missing[0].id}; the same `rove run` adds them.")
    stray = next((record.cell for record in results.records if record.cell not in cells), None)
    if stray:
        raise InputError(f"{results.folder} has a record of {stray.id}, which is no cell of its suite.")


def check_files(folder: Path) -> str:
    """The sha256 of a bundle's index, if every file is as the index states.

    Raises:
        InputError: one is not, or there are others, or more or larger ones than a bundle has.
    """
    try:
        present = _list_files(folder)
        index = read_json(folder / INDEX, BundleIndex)
        strange = sorted(set(present).symmetric_difference({*index.files, INDEX}))
        if strange:
            raise InputError(f"{folder}: {strange[0]!r} is not in both the folder and bundle.json.")
        for name, expected in index.files.items():
            if sha256_of(folder / name) != expected:
                raise InputError(f"{folder}/{name} does not have the sha256 that bundle.json states.")
        return sha256_of(folder / INDEX)
    except OSError as error:
        raise InputError(f"{folder} cannot be read as a bundle: {error.strerror}.") from None


def _list_files(folder: Path) -> list[str]:
    """The names of a bundle's files, which may be read: none has been opened yet.

    Raises:
        InputError: there is something else than plain files, or too much.
    """
    names, n_bytes = [], 0
    for name, facts in _iterate_entries(folder):
        if not stat.S_ISREG(facts.st_mode):
            kind = "a symbolic link" if stat.S_ISLNK(facts.st_mode) else "no plain file"
            raise InputError(f"{folder}: {name!r} is {kind}; expected plain files in {' and '.join(_FOLDERS)}.")
        names.append(name)
        n_bytes += facts.st_size
        if len(names) > MAX_FILES or n_bytes > MAX_BUNDLE_BYTES:
            limits = f"{MAX_FILES} files and {MAX_BUNDLE_BYTES} bytes"
            raise InputError(f"{folder} is larger than a bundle may be; expected at most {limits}.")
    return names


def _iterate_entries(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything in a bundle's folder and in the two that it may hold, but for these themselves."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(folder / below) as entries:
            for entry in entries:
                name = f"{below}/{entry.name}" if below else entry.name
                facts = entry.stat(follow_symlinks=False)
                if name in _FOLDERS and stat.S_ISDIR(facts.st_mode):
                    waiting.append(name)
                else:
                    yield name, facts


def validate_bundle(folder: Path) -> Results:
    """The bundle's results, if every file is as its index states and every metric follows from the evidence.

    What only the catalogue or the data tell is not looked at; the lock of a suite states it: whether the suite is the
    one that its label says, to which family a shift counts, and the sha256 of items that everybody has.

    Raises:
        InputError: something does not; the message names file and field.
        IncompleteError: a cell is missing or failed.
    """
    check_files(folder)
    results = read_results(folder)
    where = str(folder)
    check_manifest(where, results.manifest)
    check_complete(results)
    scored = [record for record in results.records if record.status != "skipped"]
    found = {path.stem for path in (folder / "cells").glob("*.parquet")}
    strange = found.symmetric_difference(record.cell.slug for record in scored)
    if strange:
        raise InputError(f"{where}: {min(strange)} has evidence and was not scored, or the other way round.")
    check_families(where, results.records)
    check_isolation(where, results.manifest, results.records)
    check_skipped(where, results.manifest, results.records)
    check_sources(where, results.records)
    _verify_records(results, scored)
    return results


def read_verified(folder: Path) -> Results:
    """The results of a valid bundle, or of a run that is complete and whose every metric follows from its evidence.

    Raises:
        InputError: something does not hold; the message names file and field.
        IncompleteError: a cell is missing or failed.
    """
    if (folder / INDEX).is_file():
        return validate_bundle(folder)
    results = read_results(folder)
    check_complete(results)
    for _ in _verify(results, [record for record in results.records if record.status == "ok"]):
        pass
    return results


def verify_record(results: Results, record: Record) -> Pairs:
    """What a record's evidence counts as right, after its metrics have been recomputed from it.

    Raises:
        InputError: the record failed, or states something else than its evidence.
    """
    return next(_verify(results, [record]))[1]


class _Read(NamedTuple):
    """A record, and its evidence, which some ranking may have left."""

    record: Record
    where: str
    data: Data
    variants: Variants
    pairs: Pairs


def _verify(results: Results, records: Iterable[Record]) -> Iterator[tuple[Record, Pairs]]:
    """Every record with what its evidence counts as right, those of most images first; several are scored at once.

    Raises:
        InputError: see `verify_record`.
    """
    n_images_of = attrgetter("n_images")
    for n_images, alike in groupby(sorted(records, key=n_images_of, reverse=True), n_images_of):
        while read := [_read_evidence(results, record) for record in islice(alike, CELLS_AT_ONCE)]:
            cells = [evidence for one in read for evidence in one.variants.values()]
            metrics = iter(score_cells(cells, n_images))
            for one in read:
                _check_scores(results, one, {variant: next(metrics) for variant in one.variants})
                yield one.record, one.pairs


def _read_evidence(results: Results, record: Record) -> _Read:
    where = f"{results.folder}: {record.cell.id}"
    data = check_record(where, results.manifest, record)
    variants = results.variants(record)
    pairs = [_find_pairs(where, part, data, name == "clean") for name, part in variants.items()]
    if any(not np.array_equal(part[kind], pairs[0][kind]) for part in pairs for kind in pairs[0]):
        raise InputError(f"{where} has other positives with the attack than without it.")
    return _Read(record, where, data, variants, pairs[0])


def _check_scores(results: Results, read: _Read, metrics: Mapping[Variant, Metrics]) -> None:
    """Nothing, if the record states what its evidence gives: metrics, flags and, of an attacked cell, the report."""
    record, where, data, variants, _ = read
    _check_metrics(where, metrics[""], record.metrics)
    if find_flags(variants[""]) != record.flags:
        raise InputError(f"{where} states the flags {record.flags}; its evidence gives {find_flags(variants[''])}.")
    report = record.attack
    if report is not None:
        check_report(where, results.manifest, record.cell, report, data)
        _check_metrics(where, metrics["clean"], report.clean)
        _check_metrics(where, score_attack(variants[""], variants["clean"], data.n_images), report.asr)
        _check_metrics(where, metrics.get("unrounded", {}), report.unrounded)


def _find_pairs(where: str, evidence: Mapping[Direction, Evidence], data: Data, is_clean: bool) -> Pairs:
    """The pairs of (image, caption), and of images with one label, whose ranks the evidence holds.

    Raises:
        InputError: no ranking leaves such evidence, its directions disagree, or an item stands in no pair.
    """
    try:
        for direction, part in evidence.items():
            n_distractors = 0 if is_clean else data.n_distractors
            check_evidence(direction, part, data.n_images, data.n_captions, n_distractors)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    found: dict[Literal["captions", "labels"], np.ndarray] = {}
    for direction, part in evidence.items():
        pairs = part.pairs(by_item=direction == "t2i")
        if not np.array_equal(found.setdefault("labels" if direction == "i2i" else "captions", pairs), pairs):
            raise InputError(f"{where}: t2i and i2t count other pairs as right.")
    n_standing = [np.unique(side).size for side in found["captions"].T] if "captions" in found else None
    if n_standing not in (None, [data.n_images, data.n_captions]):
        raise InputError(f"{where}: an image or a caption goes with nothing; expected a positive for each.")
    return found


def _verify_records(results: Results, records: Sequence[Record]) -> None:
    """Nothing, if each record holds, and all cells of a collection count the same pairs as right.

    Cells of its first images alone count those that these images have. Only the largest cell's pairs are kept.

    Raises:
        InputError: a record does not hold, or counts other pairs.
    """
    largest: dict[tuple[str, str], np.ndarray] = {}
    for record, found in _verify(results, records):
        for kind, pairs in found.items():
            whole = largest.setdefault((record.cell.collection, kind), pairs)
            if not np.array_equal(pairs_within(whole, record.n_images, kind == "captions"), pairs):
                where = f"{results.folder}: {record.cell.id}"
                raise InputError(f"{where} counts other pairs as right than its collection's cells.")


def _check_metrics(where: str, computed: Mapping[Any, Scores], stated: Mapping[Any, Scores]) -> None:
    if {name: set(part) for name, part in computed.items()} != {name: set(part) for name, part in stated.items()}:
        raise InputError(f"{where} states other metrics than its evidence gives.")
    for direction, metrics in computed.items():
        for name, expected in metrics.items():
            found = stated[direction][name]
            pairs = zip(expected.model_dump().values(), found.model_dump().values(), strict=True)
            if not all(math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for a, b in pairs):
                raise InputError(
                    f"{where} states {direction} {name} {found.value}; its evidence gives {expected.value}."
                )
