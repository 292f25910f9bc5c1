"""What is wrong with a run, a bundle or the cache, and its repair: what is damaged is set aside, so that the command
which made it makes it again. Only temporary files that a killed process left are deleted.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.bundle import INDEX, Results, cell_files, read_record, validate_bundle, verify_record
from bench.errors import IncompleteError, InputError, UsageError
from bench.examples import EXAMPLES, files_of_batch, find_damaged, name_examples
from bench.records import DONE, Cell, Record, RunManifest, read_json
from bench.store import cache_folder, check_proof, is_held, locked, set_aside, sha256_of, unseal

MIN_FREE_BYTES = 1 << 30
Kind = Literal["damaged", "invalid", "machine", "missing", "failed", "left over"]
SERIOUS: tuple[Kind, ...] = ("damaged", "invalid", "machine")
INCOMPLETE: tuple[Kind, ...] = ("missing", "failed")


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Args:
        problem: a sentence that names the file.
        files: what is wrong or not there, and behind it what a repair sets aside with it.
    """

    kind: Kind
    problem: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Diagnosis:
    """What was found, and what is left of it: all of it, if nothing was repaired.

    Args:
        command: what goes on with a run; "" of anything else, or where that is not known.
    """

    found: tuple[Finding, ...]
    left: tuple[Finding, ...]
    command: str = ""

    def left_of(self, kinds: Sequence[Kind]) -> list[Finding]:
        """What is left of these kinds."""
        return [finding for finding in self.left if finding.kind in kinds]


def diagnose_cache(repair: bool) -> Diagnosis:
    """What is wrong with the cache folder and the disk that it is on."""
    found = tuple(_examine_cache(cache_folder()))
    if repair:
        _repair(found)
    return Diagnosis(found, tuple(_examine_cache(cache_folder())) if repair else found)


def diagnose_run(folder: Path, repair: bool) -> Diagnosis:
    """What is wrong with a run, which is held meanwhile, or with a bundle.

    Raises:
        InputError: it is neither.
        UsageError: another process writes to the run, or a bundle is to be repaired.
    """
    if (folder / INDEX).exists():
        if repair:
            raise UsageError(f"{folder} is a bundle, which is not repaired; `rove bundle RUN` makes it again.")
        found = _examine_bundle(folder)
        return Diagnosis(found, found)
    if not any(folder.glob("run.json*")):
        raise InputError(f"{folder} holds no run.json; expected the folder of a run or a bundle.")
    with locked(folder) if os.access(folder, os.W_OK) else contextlib.nullcontext():
        found, command = _examine_run(folder)
        if repair:
            _repair(found)
        return Diagnosis(found, _examine_run(folder)[0] if repair else found, command)


def _repair(findings: Sequence[Finding]) -> None:
    for finding in findings:
        for path in finding.files if finding.kind in ("damaged", "left over") else ():
            if path.suffix == ".tmp":
                path.unlink(missing_ok=True)
            elif path.exists():
                set_aside(path, finding.problem)


def _examine_bundle(folder: Path) -> tuple[Finding, ...]:
    try:
        validate_bundle(folder)
    except (InputError, IncompleteError) as error:
        kind: Kind = "invalid" if isinstance(error, InputError) else "missing"
        return (Finding(kind, str(error), (folder,)),)
    return ()


def _examine_run(folder: Path) -> tuple[tuple[Finding, ...], str]:
    """What is wrong with a run's folder to which nobody writes, and the run's command."""
    path = folder / "run.json"
    if not path.is_file():
        return (Finding("missing", f"{path} was set aside; the same `rove run` writes it again.", (path,)),), ""
    temporaries = tuple(_left_over(temporary) for temporary in sorted(folder.rglob(".*.tmp")))
    try:
        check_proof(path)
        manifest = read_json(path, RunManifest)
    except InputError as error:
        return (Finding("damaged", str(error), (path,)), *temporaries), ""
    results = Results(folder, manifest, ())
    seen = [_examine_cell(results, cell) for cell in manifest.cells]
    records = [one for one in seen if isinstance(one, Record)]
    findings = [one for one in seen if isinstance(one, Finding)]
    strays = _find_strays(folder, manifest, {path for finding in findings for path in finding.files}, records)
    return (*findings, *strays, *_examine_examples(folder, records), *temporaries), manifest.command


def _examine_cell(results: Results, cell: Cell) -> Record | Finding:
    """The record of a cell that needs nothing more, or what is wrong with it."""
    files = cell_files(results.folder, cell)
    if not files[0].exists():
        return Finding("missing", f"{files[0]} is missing.", files[:1])
    try:
        record = read_record(results.folder, cell)
        if record.status == "ok":
            verify_record(results, record)
    except InputError as error:
        return Finding("damaged", str(error), files)
    if record.status not in DONE:
        reason = record.reason.partition("\n")[0]
        return Finding("failed", f"{files[0]} says {record.status}: {reason}", files[:1])
    return record


def _find_strays(folder: Path, manifest: RunManifest, found: set[Path], records: Sequence[Record]) -> Iterator[Finding]:
    """Records of no cell of the suite, and evidence that no record states."""
    expected = {cell_files(folder, cell)[0] for cell in manifest.cells}
    for path in sorted(set((folder / "cells").glob("*.json")) - expected):
        yield Finding("damaged", f"{path} is of no cell of the suite.", (path,))
    stated = {cell_files(folder, record.cell)[1] for record in records if record.status == "ok"}
    for path in sorted(set((folder / "cells").glob("*.parquet")) - stated - found):
        yield Finding("left over", f"{path} is evidence that no record states.", (path,))


def _examine_examples(folder: Path, records: Sequence[Record]) -> Iterator[Finding]:
    """Attacked items that are damaged, with the cells that were scored on them."""
    for place in sorted((folder / EXAMPLES).glob("*")):
        for batch in find_damaged(place):
            cells = [record.cell for record in records if place.name in _name_examples(record)]
            files = (*files_of_batch(batch), *(path for cell in cells for path in cell_files(folder, cell)))
            scored = ", ".join(cell.id for cell in cells) or "no cell"
            yield Finding("damaged", f"{files[0]} is of a damaged batch, on which {scored} was scored.", files)
        if place.name.endswith(("-examination-images", "-examination-texts")) and not _is_sealed(place):
            yield Finding("damaged", f"{place} does not have the sha256 that it begins with.", (place,))


def _name_examples(record: Record) -> set[str]:
    """The folders of the examples that an attacked cell was scored on, if they are the run's own."""
    cell, data, report = record.cell, record.data, record.attack
    if data is None or report is None or cell.victim:
        return set()
    return name_examples(cell, data.n_images, report.unit == "levels of 255")


def _examine_cache(cache: Path) -> Iterator[Finding]:
    """What is wrong with a cache folder, to which others may write meanwhile."""
    yield from _examine_disk(cache)
    for path in sorted(cache.rglob("*")):
        try:
            name = path.relative_to(cache).as_posix()
            is_whole = next((check for pattern, check in _CHECKS.items() if re.fullmatch(pattern, name)), None)
            if is_whole and not is_whole(path):
                yield Finding("damaged", f"{path} does not have the sha256 that it was written with.", (path,))
            if path.match(".*.tmp") and not is_held(path) and not is_held(path.with_name(".lock")):
                yield _left_over(path)
        except FileNotFoundError:
            continue  # another process has renamed it
        except OSError as error:
            yield Finding("damaged", f"{path} cannot be read: {error.strerror}.", (path,))


def _examine_disk(folder: Path) -> Iterator[Finding]:
    """Whether a folder, or where it will be made, can be written and has room."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"rove")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield Finding("machine", f"{folder} cannot be written: {error.strerror}. ROVE_CACHE names another.", (folder,))
    n_free = shutil.disk_usage(existing).free
    if n_free < MIN_FREE_BYTES:
        problem = f"{folder} has {n_free:,} bytes free; expected {MIN_FREE_BYTES:,}. ROVE_CACHE names another disk's."
        yield Finding("machine", problem, (folder,))


def _left_over(path: Path) -> Finding:
    return Finding("left over", f"{path} is a temporary file of a process that was killed.", (path,))


def _is_sealed(path: Path) -> bool:
    return unseal(path.read_bytes()) is not None


def _has_its_name(path: Path) -> bool:
    return sha256_of(path) == path.stem


def _is_index(path: Path) -> bool:
    """Whether an index is the one of which the facts beside it tell; an unfinished one has none."""
    facts = path.with_name("index.facts")
    if not facts.is_file():
        return True
    data = unseal(facts.read_bytes())
    return data is not None and sha256_of(path) == json.loads(data)["sha256"]


_CHECKS = {
    r"(embeddings/[0-9a-f]{2}|rewordings|entries)/[0-9a-f]{64}": _is_sealed,
    r"exact/[0-9a-f]{32}|indexes/[0-9a-f]{32}/index\.facts": _is_sealed,
    r"indexes/[0-9a-f]{32}/index\.faiss": _is_index,
    r"payloads/[0-9a-f]{64}\.npy": _has_its_name,
}
