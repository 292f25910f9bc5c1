"""Suites: named, versioned lists of cells, read from the TOML files of this folder."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.errors import InputError, RoveError, describe_validation, unknown_name
from bench.records import CLEAN, MAX_CELLS, Amount, Cell, Count, Line, Name, Text, read_toml, suite_digest
from bench.types import Direction, Stage, ThreatModel
from shifts.attacks.catalogue import find_attack, parse_attack
from shifts.catalogue import find_shift, parse_shift

BOTH: tuple[Direction, ...] = ("t2i", "i2t")
_TOUCHED: Mapping[str, tuple[Direction, ...]] = {"gallery_image": ("t2i",), "gallery_text": ("i2t",)}
_FOLDER = Path(__file__).parent


class CellGroup(BaseModel):
    """One `[[cells]]` table of a suite: some shifts over some severities of one collection, or some attacks.

    Without severities, each shift has all that it has; without directions, those that it touches. Without budgets and
    threat models, each attack has all that it has. Attacks have the suite's first seed: an average over thousands of
    attacked items hardly depends on where each began.
    """

    model_config = ConfigDict(extra="forbid")

    collection: str
    shifts: list[str] = []
    severities: list[Annotated[int, Field(ge=1, le=5)]] = []
    attacks: list[str] = []
    budgets: list[Count] = []
    threat_models: list[ThreatModel] = []
    stages: list[Stage] = []
    n_images: Annotated[int, Field(ge=2)] | None = None
    directions: list[Direction] = []
    baseline: str = ""
    reason: Annotated[Text, Field(min_length=10)]

    @model_validator(mode="after")
    def _severities_fit(self) -> CellGroup:
        if self.severities and set(self.shifts) & set(CLEAN):
            raise ValueError("a clean cell has no severities")
        if bool(self.shifts) == bool(self.attacks):
            raise ValueError("expected either shifts or attacks")
        if self.shifts and (self.budgets or self.threat_models or self.stages or self.n_images):
            raise ValueError("budgets, threat_models, stages and n_images belong to attacks")
        if self.attacks and (self.severities or self.directions or self.baseline):
            raise ValueError("attacks have no severities, directions or baseline of their own")
        return self


class SuiteFile(BaseModel):
    """A suite's TOML file."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    version: Count
    status: Literal["draft", "frozen"]
    title: Text
    summary: Text
    reference: Annotated[Line, Field(description="the submission in the denominator of mCE")]
    seeds: Annotated[list[Amount], Field(min_length=1)]
    collections: dict[Line, Count] = Field(description="name/split to its number of images")
    cells: Annotated[list[CellGroup], Field(min_length=1)]


@dataclass(frozen=True)
class Suite:
    """A suite, with its cells spelled out."""

    name: str
    version: int
    status: str
    title: str
    summary: str
    reference: str
    seeds: tuple[int, ...]
    collections: Mapping[str, int]
    cells: tuple[Cell, ...]

    @property
    def label(self) -> str:
        """What stands on records and pages: `demo-core-v1`, with `-draft` until it is frozen."""
        return f"{self.name}-v{self.version}" + ("-draft" if self.status == "draft" else "")

    @property
    def id(self) -> str:
        """Hex sha256 over label, collections and cells; titles and reasons may be reworded."""
        return suite_digest(self.label, self.collections, self.cells)


def list_suites() -> dict[str, Suite]:
    """Every suite that ships with Rove, by name."""
    return {path.stem: read_suite(path) for path in sorted(_FOLDER.glob("*.toml"))}


def find_suite(reference: str) -> Suite:
    """The suite that `reference` names: `demo`, `demo-core`, `demo-v1`, `demo-core-v1` or a TOML file's path.

    Raises:
        UsageError: there is no such suite.
        InputError: the file is not a suite; the message names the field.
    """
    if reference.endswith(".toml") and os.path.isfile(reference):
        return read_suite(Path(reference))
    suites = list_suites()
    known = {alias: suite for suite in suites.values() for alias in _aliases(suite)}
    if reference not in known:
        raise unknown_name("suite", reference, known, "rove list suites")
    return known[reference]


def read_suite(path: Path) -> Suite:
    """The suite in a TOML file.

    Raises:
        InputError: the file is not a suite; the message names the field.
    """
    file = read_toml(path, SuiteFile)
    try:
        expanded = (cell for group in file.cells for cell in _expand(group, file.seeds))
        cells = tuple(islice(expanded, MAX_CELLS + 1))
    except ValidationError as error:
        raise InputError(f"{path}: {describe_validation(error)}") from None
    except RoveError as error:
        raise InputError(f"{path}: {error}") from None
    _check_cells(path, file, cells)
    fields = {name: value for name, value in file if name not in ("cells", "seeds")}
    return Suite(**fields, seeds=tuple(file.seeds), cells=cells)


def _expand(group: CellGroup, seeds: list[int]) -> Iterator[Cell]:
    yield from _expand_attacks(group, seeds[0])
    for name in group.shifts:
        if name in CLEAN:
            yield _cell(group, name, BOTH, seeds[0])
            continue
        shift = find_shift(name)
        for severity in group.severities or shift.severities:
            parse_shift(shift.id(severity))
            for seed in seeds if shift.seeded else seeds[:1]:
                yield _cell(group, shift.id(severity), _TOUCHED.get(shift.modality, BOTH), seed)


def _expand_attacks(group: CellGroup, seed: int) -> Iterator[Cell]:
    stages: list[Stage | Literal[""]] = [*group.stages] or [""]
    for name in group.attacks:
        attack = find_attack(name)
        for threat_model in group.threat_models or attack.threat_models:
            if threat_model not in attack.threat_models:
                known = ", ".join(attack.threat_models)
                raise InputError(f"{name} has the threat models {known}; got {threat_model}.")
            for budget in group.budgets or attack.budgets:
                parse_attack(attack.id(budget))
                for stage in stages:
                    yield Cell(
                        collection=group.collection,
                        shift=attack.id(budget),
                        threat_model=threat_model,
                        stage=stage,
                        n_images=group.n_images,
                        seed=seed,
                        directions=attack.directions(threat_model),
                    )


def _cell(group: CellGroup, shift: str, touched: tuple[Direction, ...], seed: int) -> Cell:
    directions = tuple(group.directions) or touched
    return Cell(collection=group.collection, shift=shift, baseline=group.baseline, directions=directions, seed=seed)


def _check_cells(path: Path, file: SuiteFile, cells: tuple[Cell, ...]) -> None:
    if len(cells) > MAX_CELLS:
        raise InputError(
            f"{path} has more than {MAX_CELLS} cells; expected at most so many. Make several suites of it."
        )
    cell_id, n_times = Counter(cell.id for cell in cells).most_common(1)[0]
    if n_times > 1:
        raise InputError(f"{path}: cell {cell_id} stands twice; expected every cell once.")
    for cell in cells:
        modality = "" if cell.shift in CLEAN or cell.is_attack else parse_shift(cell.shift)[0].modality
        if modality in _TOUCHED and cell.directions != _TOUCHED[modality]:
            asked, touched = " ".join(cell.directions), " ".join(_TOUCHED[modality])
            raise InputError(f"{path}: cell {cell.id} asks {asked}; its distractors touch {touched} alone.")
    canvases = {cell.collection for cell in cells if cell.shift == "clean_canvas"}
    stray = next((cell for cell in cells if (cell.baseline or cell.collection) not in canvases), None)
    if stray:
        raise InputError(f"{path}: cell {stray.id} has no clean_canvas cell to be measured against.")
    missing = next((cell.collection for cell in cells if cell.collection not in file.collections), None)
    if missing:
        raise InputError(f"{path}: collection {missing} has cells but no entry in [collections].")


def _aliases(suite: Suite) -> list[str]:
    """`demo` and `demo-v1` mean `demo-core` and `demo-core-v1`."""
    short = re.sub(r"-core$", "", suite.name)
    plain = [f"{name}{tail}" for name in (suite.name, short) for tail in ("", f"-v{suite.version}")]
    return list(dict.fromkeys([*plain, suite.label]))
