"""Locks: what a frozen suite was when it was frozen, beside its TOML file in `bench/suites/`.

A lock says in plain data what would otherwise have to be asked of the catalogues: which change each cell makes, in
which version, how strong and why. Whoever reads results can therefore name and check them without a shift, an attack
or a data set at hand. `python -m bench.suites` writes locks; one file per version, so that what was scored on an
earlier version can still be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from bench.errors import InputError
from bench.records import Data, Line, Record, Sha256, Strict, Text, read_json

FOLDER = Path(__file__).parent / "suites"
SUFFIX = ".lock.json"
Kind = Literal["image", "text", "gallery_image", "gallery_text", "attack", "collection"]


class Change(Strict):
    """A shift, an attack, or a collection that stands in for another."""

    kind: Kind = Field(description="what is changed; of a shift its modality")
    family: Line = Field(description="what it is averaged with")
    version: Annotated[int, Field(ge=0)] = Field(description="of the generator; 0 of a collection that is fetched")
    summary: Line = Field(description="one line: what it does")
    strengths: tuple[Annotated[int, Field(ge=1)], ...] = Field(description="those that the suite has, weakest first")
    unit: Line = Field(description="of the strengths: `severity`, or that of an attack's budget; empty if none")
    access: Literal["", "white", "black"] = Field(
        default="", description="of an attack: white, if it needs a gradient; black, if scores are enough"
    )


class LockedCell(Strict):
    """A cell, and the sha256s that the data of its record must state, where they are known."""

    id: Line
    collection: Line
    change: Line = Field(description="its name in the lock's `changes`; empty of a clean cell")
    strength: Annotated[int, Field(ge=1)] | None = Field(default=None, description="severity, or budget of an attack")
    reason: Text = Field(description="why the suite has it")
    source_sha256: Sha256 | None = Field(
        default=None, description="of an attacked cell, which has a part of its collection"
    )
    images_sha256: Sha256 | None = None
    captions_sha256: Sha256 | None = None
    distractors_sha256: Sha256 | None = None


class Lock(Strict):
    """A suite as it was frozen, with everything that the leaderboard says of it."""

    schema_version: Literal[1] = 1
    suite: Line = Field(description="its label, such as `demo-core-v1`")
    suite_id: Sha256
    title: Line
    summary: Text
    reference: Line = Field(description="the submission in the denominator of mCE")
    seeds: tuple[Annotated[int, Field(ge=0)], ...]
    collections: dict[Line, Annotated[int, Field(ge=1)]] = Field(description="how many images of each are scored")
    source_sha256: dict[Line, Sha256] = Field(
        default={}, description="by collection, of its items; only of collections that are the same on every machine"
    )
    changes: dict[Line, Change]
    cells: tuple[LockedCell, ...] = Field(description="in the suite's order")

    @model_validator(mode="after")
    def _changes_are_known(self) -> Lock:
        stray = next((cell for cell in self.cells if cell.change and cell.change not in self.changes), None)
        if stray:
            raise ValueError(f"cell {stray.id} has the change {stray.change}, which is not among the changes")
        return self

    def is_attacked(self, cell: LockedCell) -> bool:
        """Whether the items of one of its cells are made against a submission, so that only their source is fixed."""
        return bool(cell.change) and self.changes[cell.change].kind == "attack"


@cache
def list_locks() -> Mapping[str, Lock]:
    """Every lock that ships with Rove, by the suite's label."""
    locks = (read_lock(path) for path in sorted(FOLDER.glob(f"*{SUFFIX}")))
    return {lock.suite: lock for lock in locks}


def find_lock(label: str) -> Lock | None:
    """The lock of the suite of that label; None of a draft, or of a suite of somebody's own."""
    return list_locks().get(label)


def read_lock(path: Path) -> Lock:
    """The lock in a file.

    Raises:
        InputError: it is no lock, or that of another suite than its name says; the message names the field.
    """
    lock = read_json(path, Lock)
    if path.name != lock_name(lock.suite):
        raise InputError(f"{path} is the lock of {lock.suite}; expected it in {lock_name(lock.suite)}.")
    return lock


def lock_name(label: str) -> str:
    """The file name of a suite's lock."""
    return f"{label}{SUFFIX}"


def check_suite(label: str, suite_id: str) -> None:
    """Refuses cells that go by the label of a frozen suite without being that suite's.

    Raises:
        InputError: there is a lock of that label, and it has another id.
    """
    lock = find_lock(label)
    if lock and lock.suite_id != suite_id:
        raise InputError(
            f"suite {label} has the id {lock.suite_id[:12]}; got {suite_id[:12]}, so that collections or cells are "
            f"others. Run {label} as it ships, or give a suite of your own another name."
        )


def check_data(lock: Lock, records: Iterable[Record]) -> str:
    """Why the records were not scored on what the lock states: their first cell and field that differs; "" if none.

    A record without data (a skipped cell) and a field that the lock does not state agree with anything.
    """
    cells = {cell.id: cell for cell in lock.cells}
    for record in records:
        cell = cells.get(record.cell.id)
        if cell is None:
            return f"{record.cell.id} is no cell of {lock.suite}."
        difference = _find_difference(stated_data(lock, cell), record.data)
        if difference:
            return f"{record.cell.id} was scored on other items than {lock.suite} states: its {difference}."
    return ""


def check_claims(lock: Lock, records: Iterable[Record]) -> None:
    """Refuses what only the catalogue can tell to be wrong: a family, or that a cell could not be scored.

    Raises:
        InputError: a record counts its cell to another family than the lock does, or skips an attack that needs no
            gradient, of a suite that asks for no stage and for no distractors.
    """
    cells = {cell.id: cell for cell in lock.cells}
    for record in records:
        locked = cells.get(record.cell.id)
        change = lock.changes.get(locked.change) if locked else None
        if change is None:
            continue
        if record.family != change.family:
            raise InputError(f"{record.cell.id} is counted as '{record.family}'; {lock.suite} has '{change.family}'.")
        is_plain = not record.cell.stage and record.cell.threat_model != "distractor"
        if record.status == "skipped" and is_plain and change.access != "white":
            raise InputError(f"{record.cell.id} was skipped, but it needs no gradient. Run it.")


def stated_data(lock: Lock, cell: LockedCell) -> dict[str, str]:
    """What the data of the record of one of the lock's cells must state, by field; what is not known is left out."""
    whole = None if lock.is_attacked(cell) else lock.source_sha256.get(cell.collection)
    stated = {
        "source_sha256": cell.source_sha256 or whole,
        "images_sha256": cell.images_sha256,
        "captions_sha256": cell.captions_sha256,
        "distractors_sha256": cell.distractors_sha256,
    }
    return {field: sha256 for field, sha256 in stated.items() if sha256}


def _find_difference(stated: Mapping[str, str], data: Data | None) -> str:
    """The first field that differs, with both values; "" if none does."""
    for field, expected in stated.items() if data else ():
        found = getattr(data, field)
        if found != expected:
            return f"{field} is {(found or 'none')[:12]}, expected {expected[:12]}"
    return ""
