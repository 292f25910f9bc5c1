"""What a run is asked to score: its settings, and of each cell the items, how many they are, and the key that says what
decides its record. Nothing here needs a submission to be loaded: who owns a run and who scores a cell of it, perhaps
on another machine, come to the same key or do not have the same inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from bench.bundle import Results, read_results
from bench.data.registry import load_collection
from bench.errors import InputError
from bench.examples import find_report, n_attacked, name_examination, name_examples
from bench.records import CLEAN, Cell, Record, digest_of
from bench.shifted import Change, source_digest
from bench.submission import Submission
from bench.suites import Suite
from bench.types import ClusterSettings, Collection
from bench.worker.host import WorkerSettings
from shifts.attacks.catalogue import parse_attack
from shifts.catalogue import parse_shift

PROTOCOL_VERSION = 1


@dataclass(frozen=True)
class RunSettings:
    """What the command line says about a run, beside submission and suite.

    Args:
        source: the folder of another run, whose attacked items are scored; `suite` is then `transfer_suite` of it.
        cache: the folder of embeddings and reworded captions; None for the user's.
        rerank_k: how many items of each query a second stage orders, if the submission has one; None for what its
            manifest says, or RERANK_K.
        cluster: where the cells are scored; None for one replica on this machine.
    """

    worker: WorkerSettings = field(default_factory=WorkerSettings)
    batch_size: int = 32
    limit: int | None = None
    data_dirs: Mapping[str, str] = field(default_factory=dict)
    output: Path | None = None
    overwrite: str = "missing"
    command: str = ""
    source: Path | None = None
    cache: Path | None = None
    rerank_k: int | None = None
    cluster: ClusterSettings | None = None


class CellInputs:
    """The collections of a run's cells, each loaded once, and what follows from them."""

    def __init__(
        self, submission: Submission, suite: Suite, settings: RunSettings, surroundings: Mapping[str, str]
    ) -> None:
        """`surroundings` is what decides a result beside settings: library versions, the processor."""
        self.submission, self.suite, self.settings, self.surroundings = submission, suite, settings, surroundings
        self._wholes: dict[str, Collection] = {}
        self._collections: dict[tuple[str, int | None], tuple[Collection, str]] = {}

    def __reduce__(self) -> tuple[object, ...]:
        """Another machine loads the collections itself."""
        return CellInputs, (self.submission, self.suite, self.settings, self.surroundings)

    @cached_property
    def source(self) -> Results | None:
        """The other run whose attacked items are scored, if there is one."""
        return None if self.settings.source is None else read_results(self.settings.source)

    def collection(self, cell: Cell) -> tuple[Collection, str]:
        """The images and captions that a cell is scored on, and their digest."""
        key = (cell.collection, cell.n_images)
        if key not in self._collections:
            expected = self.suite.collections[cell.collection]
            part = self.whole(cell.collection).head(min(expected, cell.n_images or expected))
            collection = _limited(part, self.settings.limit)
            self._collections[key] = (collection, source_digest(collection))
        return self._collections[key]

    def whole(self, name: str) -> Collection:
        """The collection of which cells have the first images."""
        if name not in self._wholes:
            expected, offline = self.suite.collections[name], self.settings.worker.offline
            found = load_collection(name, data_dirs=self.settings.data_dirs, offline=offline)
            if len(found.images) < expected:
                raise InputError(f"{name} has {len(found.images)} images; {self.suite.label} expects {expected}.")
            self._wholes[name] = found
        return self._wholes[name]

    def key(self, cell: Cell, rerank_k: int | None) -> str:
        """The sha256 over every input of the cell; `rerank_k` is None where there is one stage."""
        settings: list[object] = [self.settings.batch_size, self.settings.worker.device]
        if self.source is not None:
            settings.append(find_report(self.source, cell).examples_sha256)
        if is_reranked(cell, rerank_k):
            settings.append(["rerank", rerank_k])
        own = self.submission.fingerprint, self.surroundings, self.settings.worker.dtype
        source = self.collection(cell)[1]
        return digest_of(PROTOCOL_VERSION, cell.model_dump(), _version(cell), source, *own, *settings)

    def blank(self, cell: Cell, rerank_k: int | None) -> Record:
        """The cell's record before anything is scored."""
        isolation = str(self.settings.worker.isolation)
        return Record(
            cell=cell, family=_family_of(cell), key=self.key(cell, rerank_k), status="ok", isolation=isolation
        )

    def examples(self, cell: Cell) -> set[str]:
        """Where in a run's folder of examples lies what an attacked cell is scored on, or adds to."""
        n_images, by_text = len(self.collection(cell)[0].images), parse_attack(cell.shift)[0].modality == "text"
        examination = name_examination(cell.collection, n_images, by_text)
        return name_examples(cell, n_images, not by_text) | {examination}

    def count_work(self, cell: Cell, rerank_k: int | None) -> int:
        """How many items are encoded or attacked, if nothing is cached."""
        collection = self.collection(cell)[0]
        if cell.is_attack:
            return n_attacked(cell, collection)
        towers = 2 if is_reranked(cell, rerank_k) else 1
        return towers * len(collection.images) + len(set(collection.captions))


def is_reranked(cell: Cell, rerank_k: int | None) -> bool:
    """Whether a second stage orders what the first one found."""
    return rerank_k is not None and cell.directions != ("i2i",)


def change_of(cell: Cell) -> Change | None:
    """The shift of a cell; None where nothing is changed, or items are attacked."""
    return None if cell.shift in CLEAN or cell.is_attack else Change(*parse_shift(cell.shift), cell.seed)


def _family_of(cell: Cell) -> str:
    """Of the cell's shift or attack, as records name it."""
    if cell.is_attack:
        return parse_attack(cell.shift)[0].family
    change = change_of(cell)
    return change.shift.family if change else "domain" if cell.baseline else "clean"


def _version(cell: Cell) -> int:
    """Of the shift or attack; 0 where nothing is changed."""
    change = change_of(cell)
    return parse_attack(cell.shift)[0].version if cell.is_attack else change.shift.version if change else 0


def _limited(collection: Collection, limit: int | None) -> Collection:
    """The first `limit` images; of labelled ones so many more that two of them share a label."""
    if limit is None:
        return collection
    if collection.labels is not None:
        firsts = np.unique(collection.labels, return_index=True)[1]
        seconds = np.setdiff1d(np.arange(len(collection.labels)), firsts)
        limit = max(limit, int(seconds[0]) + 1) if seconds.size else limit
    return collection.head(limit)
