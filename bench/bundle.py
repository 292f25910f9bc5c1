"""Bundles: what is sent to the leaderboard, and whether what it says follows from its evidence.

A bundle is a folder: `run.json`, `cells/*.json`, `cells/*.parquet`, `timings/*.json` and `bundle.json` with the sha256
of each. A run's folder has the same form but for `bundle.json` and for timings, which lie beside it: they belong to the
submission, not to a suite. Both are read here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from bench.errors import IncompleteError, InputError
from bench.evidence import Evidence, Variant, in_variant, read_evidence
from bench.records import DONE, AttackReport, Data, Estimate, Record, RunManifest, Sha256, read_json, to_json
from bench.scoring import find_flags, score_attack, score_evidence
from bench.store import new_folder, sha256_of, write_atomic
from bench.timing_records import TimingRecord, usual_folder
from bench.types import Direction

INDEX = "bundle.json"
TOLERANCE = 1e-6
Scores = Mapping[str, Estimate]


class BundleIndex(BaseModel):
    """The contents of `bundle.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    files: dict[str, Sha256]


@dataclass(frozen=True)
class Results:
    """A run or bundle as read from disk; evidence is read when asked for."""

    folder: Path
    manifest: RunManifest
    records: tuple[Record, ...]
    timings: tuple[TimingRecord, ...] = ()

    def evidence(self, record: Record, variant: Variant = "") -> dict[Direction, Evidence]:
        """One variant of a record's evidence; {} if there is no such."""
        return self.variants(record).get(variant, {})

    def variants(self, record: Record) -> dict[Variant, dict[Direction, Evidence]]:
        """The evidence of one of the records; of an attacked cell also with its items as they were, or not rounded.

        Raises:
            InputError: it is missing, damaged, or not that of the record.
        """
        path = self.folder / "cells" / f"{record.cell.slug}.parquet"
        if not path.is_file() or sha256_of(path) != record.evidence_sha256:
            raise InputError(f"{path} is missing or has another sha256 than its record states.")
        evidence = read_evidence(path)
        directions = record.cell.directions
        variants: list[Variant] = ["", "clean"] if record.cell.is_attack else [""]
        if record.attack is not None and record.attack.unrounded:
            variants.append("unrounded")
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
    return (timing.fingerprint, timing.weights_sha256) == (manifest.fingerprint, manifest.weights_sha256)


def make_bundle(run: Path, output: Path, overwrite: bool) -> Path:
    """Copies a complete run and its timings to `output` and adds an index; `output` appears whole or not at all.

    Raises:
        IncompleteError: a cell of the suite is missing or failed.
        UsageError: `output` is not empty.
        InputError: the run's files contradict each other.
    """
    results = read_results(run)
    check_complete(results)
    scored = {record.cell.slug for record in results.records if record.status == "ok"}
    slugs = sorted(cell.slug for cell in results.manifest.cells)
    ends = {slug: (".json", ".parquet") if slug in scored else (".json",) for slug in slugs}
    names = ["run.json", *(f"cells/{slug}{end}" for slug in slugs for end in ends[slug])]
    sources = {name: run / name for name in names}
    sources |= {f"timings/{path.name}": path for path in find_timings(run, results.manifest).own}
    with new_folder(output, INDEX, overwrite) as unfinished:
        for name, source in sources.items():
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
    done = {record.cell for record in results.records if record.status in DONE}
    missing = [cell for cell in results.manifest.cells if cell not in done]
    if missing:
        count = f"{len(missing)} of {len(results.manifest.cells)} cells"
        raise IncompleteError(f"{results.folder} lacks {count}, first {missing[0].id}; the same `rove run` adds them.")
    stray = next((record.cell for record in results.records if record.cell not in results.manifest.cells), None)
    if stray:
        raise InputError(f"{results.folder} has a record of {stray.id}, which is no cell of its suite.")


def validate_bundle(folder: Path) -> Results:
    """The bundle's results, if every file is as its index states and every metric follows from the evidence.

    Raises:
        InputError: something does not; the message names file and field.
    """
    index = read_json(folder / INDEX, BundleIndex)
    _check_files(folder, index)
    results = read_results(folder)
    check_complete(results)
    for record in results.records:
        if record.status != "skipped":
            verify_record(results, record)
    return results


def verify_record(results: Results, record: Record) -> None:
    """Recomputes a record's metrics from its evidence.

    Raises:
        InputError: the record failed, or states something else than its evidence.
    """
    where = f"{results.folder}: {record.cell.id}"
    if record.status != "ok" or record.data is None:
        raise InputError(f"{where} has the status '{record.status}'; expected ok, with data.")
    whole = record.cell.n_images or results.manifest.collections.get(record.cell.collection, 0)
    if results.manifest.rankable and record.data.n_images != whole:
        raise InputError(f"{where} was scored on {record.data.n_images} images; its suite has {whole}.")
    variants = results.variants(record)
    evidence = variants[""]
    _check_range(where, evidence, record.data)
    n_images = record.data.n_images
    _check_metrics(where, score_evidence(evidence, n_images), record.metrics)
    if find_flags(evidence) != record.flags:
        raise InputError(f"{where} states the flags {record.flags}; its evidence gives {find_flags(evidence)}.")
    if record.cell.is_attack != (record.attack is not None):
        raise InputError(f"{where} is{'' if record.cell.is_attack else ' no'} attack; its record says otherwise.")
    if record.attack is not None:
        _verify_attack(where, variants, record.attack, n_images)


def _verify_attack(
    where: str, variants: Mapping[Variant, Mapping[Direction, Evidence]], report: AttackReport, n_images: int
) -> None:
    """Recomputes what an attacked cell states beside its metrics."""
    attacked, clean = variants[""], variants["clean"]
    pairs = [(part.queries, clean[name].queries) for name, part in attacked.items()]
    if any(not np.array_equal(ours, theirs) for ours, theirs in pairs):
        raise InputError(f"{where} asks other queries with the attack than without it.")
    _check_metrics(where, score_evidence(clean, n_images), report.clean)
    _check_metrics(where, score_attack(attacked, clean, n_images), report.asr)
    unrounded = variants.get("unrounded")
    _check_metrics(where, score_evidence(unrounded, n_images) if unrounded else {}, report.unrounded)


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


def _check_files(folder: Path, index: BundleIndex) -> None:
    present = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    }
    if any((folder / name).is_symlink() for name in present):
        raise InputError(f"{folder} holds a symbolic link; expected plain files.")
    strange = sorted(present.symmetric_difference({*index.files, INDEX}))
    if strange:
        raise InputError(f"{folder}: {strange[0]} is not in both the folder and bundle.json.")
    for name, expected in index.files.items():
        if sha256_of(folder / name) != expected:
            raise InputError(f"{folder}/{name} does not have the sha256 that bundle.json states.")


def _check_range(where: str, evidence: dict[Direction, Evidence], data: Data) -> None:
    n_images, n_captions = data.n_images, data.n_captions
    for direction, part in evidence.items():
        n_own = n_captions if direction == "i2t" else n_images
        n_items = n_own + data.n_distractors
        n_queries = n_captions if direction == "t2i" else n_images
        whole = direction == "i2i" or len(part.queries) == n_queries
        outside = part.images.max() >= n_images or part.items.max() >= n_own or part.items.min() < 0
        if not whole or len(set(part.queries.tolist())) != len(part.queries) or part.queries.max() >= n_queries:
            raise InputError(f"{where}: the queries of {direction} are not the collection's, each once.")
        if outside or part.ranks.pessimistic.max() > n_items:
            raise InputError(f"{where}: {direction} names an image, an item or a rank that cannot be.")
