"""`python -m bench.suites [NAME...] [--from RUN]` writes the locks of suites (see `bench.locks`).

What follows from the suite's TOML file and the catalogues is computed. The sha256s of the data are taken over from a
finished run or bundle of the suite, or kept from the lock that is there. A frozen suite's lock may be completed and
reworded, never changed: other cells, or another version of a shift, make a new version of the suite.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from bench.bundle import Results, read_results
from bench.data.registry import RENDERED
from bench.data.scenes import graph
from bench.errors import InputError, RoveError, UsageError
from bench.locks import FOLDER, Change, Lock, LockedCell, check_data, lock_name, read_lock, stated_data
from bench.records import CLEAN, Cell, Record, read_toml
from bench.store import write_atomic
from bench.suites import Suite, SuiteFile, _expand, find_suite, list_suites, read_suite
from shifts.attacks.catalogue import Attack, parse_attack
from shifts.catalogue import parse_shift

_FED = ("images_sha256", "captions_sha256", "distractors_sha256")


def make_lock(path: Path) -> Lock:
    """The lock of the suite in a TOML file, without the sha256s of its data.

    Raises:
        InputError: the file is not a suite.
    """
    suite = read_suite(path)
    reasons = _read_reasons(path)
    return Lock(
        suite=suite.label,
        suite_id=suite.id,
        title=suite.title,
        summary=suite.summary,
        reference=suite.reference,
        seeds=suite.seeds,
        collections=dict(suite.collections),
        changes=_list_changes(suite),
        cells=tuple(_lock_cell(cell, reasons[cell.id]) for cell in suite.cells),
    )


def take_data(lock: Lock, run: Results) -> Lock:
    """The lock with what the records of a run state of their data, where it is the same on every machine.

    Raises:
        UsageError: the run is of another suite, or of a part of the collections.
        InputError: the run was scored on other data than the lock states already.
    """
    if run.manifest.suite_id != lock.suite_id:
        raise UsageError(f"{run.folder} is a run of {run.manifest.suite}; expected one of this {lock.suite}.")
    if run.manifest.limit is not None:
        raise UsageError(f"{run.folder} was run with --limit; expected one of whole collections.")
    records = {record.cell.id: record for record in run.records if _is_rendered(record.cell.collection)}
    difference = check_data(lock, records.values())
    if difference:
        raise InputError(f"{run.folder}: {difference} Find out which of both is wrong; a lock is not overwritten.")
    whole = [record for record in records.values() if not record.cell.is_attack]
    sources = {record.cell.collection: record.data.source_sha256 for record in whole if record.data}
    cells = tuple(_add_hashes(cell, records.get(cell.id)) for cell in lock.cells)
    return lock.model_copy(update={"source_sha256": lock.source_sha256 | sources, "cells": cells})


def keep_data(lock: Lock, earlier: Lock, frozen: bool) -> Lock:
    """The lock with the sha256s of the earlier one of that label, which must have the same cells and versions.

    Raises:
        UsageError: it has not, and the suite is frozen; a draft's lock begins anew.
    """
    found = "other cells" if lock.suite_id != earlier.suite_id else _find_other_version(lock, earlier)
    if found and frozen:
        raise UsageError(
            f"{lock.suite} was frozen with {found}; a changed cell makes a new version: raise `version` in the "
            "suite's TOML file."
        )
    if found:
        return lock
    hashes = {cell.id: cell.model_dump(include={"source_sha256", *_FED}) for cell in earlier.cells}
    cells = tuple(cell.model_copy(update=hashes[cell.id]) for cell in lock.cells)
    return lock.model_copy(update={"source_sha256": earlier.source_sha256, "cells": cells})


def lock_bytes(lock: Lock) -> bytes:
    """The lock as JSON: sorted keys, no field that says nothing, one trailing newline."""
    contents = lock.model_dump(mode="json", exclude_none=True)
    return (json.dumps(contents, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def write_lock(path: Path, run: Results | None, folder: Path) -> tuple[Path, Lock]:
    """Writes the lock of the suite in a TOML file into `folder`.

    Args:
        run: of which the sha256s of the data are taken over, if any.

    Raises:
        UsageError, InputError: as in `keep_data` and `take_data`; nothing is written.
    """
    lock = make_lock(path)
    output = folder / lock_name(lock.suite)
    if output.exists():
        lock = keep_data(lock, read_lock(output), frozen=read_suite(path).status == "frozen")
    if run:
        lock = take_data(lock, run)
    write_atomic(output, lock_bytes(lock))
    return output, lock


def main(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="All frozen suites unless given.")
    ] = None,
    run: Annotated[Path | None, typer.Option("--from", help="A finished run or bundle of the suite.")] = None,
    output: Annotated[Path, typer.Option(help="Where the locks lie.")] = FOLDER,
) -> None:
    """Writes the locks of suites."""
    try:
        results = read_results(run) if run else None
        for path in _find_files(names or [], results):
            written, lock = write_lock(path, results, output)
            typer.echo(f"{written}: {len(lock.cells)} cells, {_count_stated(lock)} with the data that they must have")
    except RoveError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None


def _find_files(names: list[str], run: Results | None) -> list[Path]:
    """The TOML files of the suites that are named; of none, that of the run, or those of all frozen suites."""
    if names:
        return [Path(name) if name.endswith(".toml") else FOLDER / f"{find_suite(name).name}.toml" for name in names]
    if run:
        return [FOLDER / f"{find_suite(run.manifest.suite).name}.toml"]
    return [FOLDER / f"{suite.name}.toml" for suite in list_suites().values() if suite.status == "frozen"]


def _read_reasons(path: Path) -> dict[str, str]:
    """Why a suite has each of its cells, by the cell's id."""
    file = read_toml(path, SuiteFile)
    return {cell.id: group.reason for group in file.cells for cell in _expand(group, file.seeds)}


def _list_changes(suite: Suite) -> dict[str, Change]:
    changed: dict[str, list[Cell]] = {}
    for cell in suite.cells:
        if not cell.is_clean:
            changed.setdefault(cell.change, []).append(cell)
    return {name: _describe_change(cells) for name, cells in changed.items()}


def _describe_change(cells: Sequence[Cell]) -> Change:
    """What the catalogues say of the change that `cells` have in common."""
    cell = cells[0]
    if cell.baseline:
        version = graph.VERSION if _is_rendered(cell.collection) else 0
        summary = f"{cell.collection} in place of {cell.baseline}"
        return Change(kind="collection", family="domain", version=version, summary=summary, strengths=(), unit="")
    strengths = tuple(sorted({_strength(cell) or 0 for cell in cells}))
    made_by = parse_attack(cell.shift)[0] if cell.is_attack else parse_shift(cell.shift)[0]
    return Change(
        kind="attack" if isinstance(made_by, Attack) else made_by.modality,
        family=made_by.family,
        version=made_by.version,
        summary=made_by.summary,
        strengths=strengths,
        unit=made_by.unit if isinstance(made_by, Attack) else "severity",
        access=made_by.access if isinstance(made_by, Attack) else "",
    )


def _lock_cell(cell: Cell, reason: str) -> LockedCell:
    change = "" if cell.is_clean else cell.change
    return LockedCell(id=cell.id, collection=cell.collection, change=change, strength=_strength(cell), reason=reason)


def _strength(cell: Cell) -> int | None:
    """A cell's severity or budget; None where its change has none."""
    return None if cell.shift in CLEAN else int(cell.shift.partition(":")[2])


def _add_hashes(cell: LockedCell, record: Record | None) -> LockedCell:
    """The cell with the sha256s of what every submission is fed: the attacked items are each submission's own."""
    if record is None or record.data is None:
        return cell
    fields = ["source_sha256"] if record.cell.is_attack else _FED
    return cell.model_copy(update={field: getattr(record.data, field) for field in fields})


def _find_other_version(lock: Lock, earlier: Lock) -> str:
    """The first change that was made by another version of its generator, as part of a message; "" if none."""
    pairs = ((name, change.version, earlier.changes[name].version) for name, change in lock.changes.items())
    return next((f"version {old} of {name}" for name, new, old in pairs if new != old), "")


def _is_rendered(collection: str) -> bool:
    """Whether Rove draws it itself, so that everyone has the same."""
    return collection.partition("/")[0] in RENDERED


def _count_stated(lock: Lock) -> int:
    return sum(bool(stated_data(lock, cell)) for cell in lock.cells)


if __name__ == "__main__":
    typer.run(main)
