"""A run: one submission over the cells of a suite, one record and one evidence file per cell.

The folder of a run holds `run.json` and `cells/`. A cell is done when its record lies there; the record is written last
and names the sha256 of its evidence, so that a crash at any moment loses at most the cell in flight and the same
command goes on. Nothing in a record but its timing depends on when or how often it was interrupted, nor on who scored
it: one replica of the submission beside this process, or several on a cluster. Whoever it is, this process alone holds
the folder, decides which cells are to be scored, and keeps what comes of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from bench.bundle import Results, cell_files, read_record
from bench.cells import CellInputs, RunSettings
from bench.cluster import connect_cluster
from bench.environment import describe_environment, surroundings_of
from bench.errors import InputError, UsageError
from bench.examples import EXAMPLES
from bench.records import DONE, Cell, Environment, Probe, Record, RunManifest, digest_of, read_json, to_json
from bench.replica import Replica, Score
from bench.store import is_intact, locked, set_aside, write_atomic, write_with_proof
from bench.submission import Submission
from bench.suites import Suite
from bench.worker.host import Loaded

RERANK_K = 20


class Observer(Protocol):
    """Is told how a run goes on; the command line shows it as progress."""

    def cell_started(self, cell: Cell, n_items: int) -> None: ...

    def items_encoded(self, count: int) -> None: ...

    def cell_finished(self, record: Record, reused: bool) -> None: ...


@dataclass(frozen=True)
class RunResult:
    """Where a run lies, and its records in the suite's order."""

    folder: Path
    manifest: RunManifest
    records: tuple[Record, ...]

    @property
    def failed(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.status not in DONE)


class Replicas(Protocol):
    """One or more of a submission; they score cells, and know nothing of the run's folder."""

    def start(self) -> Loaded: ...

    def score(self, cells: Sequence[Cell], observer: Observer) -> Iterator[Score]:
        """What comes of the cells, each as soon as it is finished."""

    def probe(self) -> tuple[Probe, ...]: ...

    def close(self) -> None: ...


class LocalReplica(Replica):
    """The one of this process, which takes the cells in their order."""

    def score(self, cells: Sequence[Cell], observer: Observer) -> Iterator[Score]:
        for cell in cells:
            observer.cell_started(cell, self.inputs.count_work(cell, self.rerank_k))
            yield self.score_cell(cell, observer.items_encoded)


def run_suite(submission: Submission, suite: Suite, settings: RunSettings, observer: Observer) -> RunResult:
    """Scores `submission` on every cell of `suite`; cells whose record is there already are left alone.

    Raises:
        SubmissionError: the submission cannot be loaded; failures within a cell become that cell's status instead.
        InputError: a collection cannot be used.
        UsageError: the output folder belongs to a run of other inputs, or another process writes to it.
    """
    settings = replace(settings, rerank_k=choose_rerank_k(submission, settings.rerank_k))
    with connect_cluster(settings.cluster, settings.worker.device) as cluster:
        asked = settings.worker.device, submission.manifest.requires
        environment = cluster.call(describe_environment, *asked) if cluster else describe_environment(*asked)
        manifest = build_manifest(submission, suite, settings, environment)
        folder = settings.output or Path("runs") / f"{manifest.label}-{_identity(manifest, settings)[:8]}" / suite.label
        if submission.is_folder and submission.folder in folder.resolve().parents:
            raise UsageError(f"{folder} lies inside the submission, which it would change; choose another --output.")
        inputs = CellInputs(submission, suite, settings, surroundings_of(environment))
        with (
            locked(folder),
            closing((cluster.replicas if cluster else LocalReplica)(inputs, folder / EXAMPLES)) as replicas,
        ):
            return _Run(folder, inputs, replicas, observer).finish(_claim(folder, manifest, settings))


def choose_rerank_k(submission: Submission, asked: int | None) -> int:
    """How many items of each query its second stage orders: what is asked, what its manifest says, or RERANK_K."""
    return asked or submission.manifest.rerank_k or RERANK_K


def build_manifest(
    submission: Submission, suite: Suite, settings: RunSettings, environment: Environment | None = None
) -> RunManifest:
    """What is known of a run before it starts; `environment` is of who scores, by default of this machine."""
    environment = environment or describe_environment(settings.worker.device, submission.manifest.requires)
    return RunManifest(
        submission=submission.manifest,
        label=submission.label,
        args=dict(submission.args),
        fingerprint=submission.fingerprint,
        parameters=submission.manifest.parameters.total,
        suite=suite.label,
        suite_id=suite.id,
        collections=dict(suite.collections),
        cells=suite.cells,
        device=settings.worker.device,
        dtype=settings.worker.dtype,
        batch_size=settings.batch_size,
        limit=settings.limit,
        isolation=str(settings.worker.isolation),
        data_dirs=dict(settings.data_dirs),
        command=settings.command,
        environment=environment,
    )


class _Run:
    """The folder of a run, and who scores its cells."""

    def __init__(self, folder: Path, inputs: CellInputs, replicas: Replicas, observer: Observer) -> None:
        self._folder, self._inputs, self._replicas, self._observer = folder, inputs, replicas, observer
        self._settings = inputs.settings

    def finish(self, manifest: RunManifest) -> RunResult:
        """Scores what is not scored yet, and probes the submission unless that has happened."""
        if manifest.weights_sha256 is None:
            manifest = self._load(manifest)
        found = {cell: self._finished(cell, manifest.rerank_k) for cell in self._inputs.suite.cells}
        waiting = [cell for cell, record in found.items() if record is None]
        if _lacks_probes(manifest) or waiting:
            manifest = self._load(manifest)
        records = {cell: record for cell, record in found.items() if record is not None}
        for record in records.values():
            self._observer.cell_finished(record, True)
        for score in self._replicas.score(waiting, self._observer):
            self._keep(score)
            records[score.record.cell] = score.record
            self._observer.cell_finished(score.record, False)
        if _lacks_probes(manifest) and all(record.status in DONE for record in records.values()):
            manifest = manifest.model_copy(update={"probes": self._replicas.probe()})
            write_with_proof(self._folder / "run.json", to_json(manifest))
        return RunResult(self._folder, manifest, tuple(records[cell] for cell in self._inputs.suite.cells))

    def _keep(self, score: Score) -> None:
        record, evidence = cell_files(self._folder, score.record.cell)
        if score.evidence is not None:
            write_atomic(evidence, score.evidence)
        write_with_proof(record, to_json(score.record))

    def _load(self, manifest: RunManifest) -> RunManifest:
        return _add_loaded(self._folder, manifest, self._replicas.start(), self._settings)

    def _finished(self, cell: Cell, rerank_k: int | None) -> Record | None:
        """The record of a cell that needs nothing more; a damaged one is set aside."""
        files = cell_files(self._folder, cell)
        if self._settings.overwrite == "always" or not files[0].exists():
            return None
        try:
            record = read_record(self._folder, cell)
        except InputError as error:
            for path in files:
                if path.exists():
                    set_aside(path, str(error))
            return None
        if record.status not in DONE and self._settings.overwrite == "missing":
            return None
        return record if record.key == self._inputs.key(cell, rerank_k) else None


def _lacks_probes(manifest: RunManifest) -> bool:
    """Whether a run of whole collections is still to be probed, or could not be.

    One on the items of another run is as little ranked as a limited one.
    """
    is_whole = manifest.limit is None and not any(cell.victim for cell in manifest.cells)
    return is_whole and (not manifest.probes or any(found.status == "not run" for found in manifest.probes))


def transfer_suite(suite: Suite, source: Results) -> Suite:
    """The attacked cells of `suite`, to be scored on what was made against the submission of another run.

    Those that could not be run against it are left out.

    Raises:
        UsageError: that run is of another suite, or `suite` has no attacked cells.
    """
    if source.manifest.suite_id != suite.id:
        raise UsageError(f"{source.folder} is a run of {source.manifest.suite}; expected one of this {suite.label}.")
    victim = source.manifest.label
    skipped = {record.cell for record in source.records if record.status == "skipped"}
    attacked = [cell for cell in suite.cells if cell.is_attack and cell not in skipped]
    cells = tuple(cell.model_copy(update={"victim": victim}) for cell in attacked)
    if not cells:
        raise UsageError(f"{suite.label} has no attacked cells; `rove describe SUITE` shows a suite's cells.")
    return replace(suite, name=f"{suite.name}-from-{victim}", cells=cells)


def _claim(folder: Path, manifest: RunManifest, settings: RunSettings) -> RunManifest:
    """The manifest of the run that goes on in `folder`, or `manifest`, written there, where a new one begins.

    Of a run whose manifest was damaged the records stay: by its key each tells what it was scored on.
    """
    path = folder / "run.json"
    if path.exists() and settings.overwrite == "always":
        shutil.rmtree(folder / "cells", ignore_errors=True)
    elif is_intact(path):
        earlier = read_json(path, RunManifest)
        changed = list_changes(earlier, manifest)
        changed += ["rerank_k"] if earlier.rerank_k not in (None, settings.rerank_k) else []
        if changed:
            raise UsageError(
                f"{folder} holds a run of other inputs ({', '.join(changed)} changed). "
                "Choose another --output, or --overwrite always to replace it."
            )
        return earlier
    write_with_proof(path, to_json(manifest))
    return manifest


def _add_loaded(folder: Path, manifest: RunManifest, loaded: Loaded, settings: RunSettings) -> RunManifest:
    """The manifest with what loading told; weights and stages must be those that the run began with."""
    rerank_k = settings.rerank_k if loaded.reranker else None
    found, begun = (loaded.weights_sha256, rerank_k), (manifest.weights_sha256, manifest.rerank_k)
    if manifest.weights_sha256 is not None and begun != found:
        other = "weights" if found[0] != begun[0] else "stages"
        raise UsageError(
            f"{folder} was begun with other {other} than {manifest.label} loads now. "
            "Choose another --output, or --overwrite always to replace it."
        )
    counted = loaded.parameters if loaded.parameters is not None else manifest.parameters
    manifest = manifest.model_copy(
        update={"weights_sha256": loaded.weights_sha256, "parameters": counted, "rerank_k": rerank_k}
    )
    write_with_proof(folder / "run.json", to_json(manifest))
    return manifest


_IDENTITY = ("fingerprint", "suite_id", "device", "dtype", "isolation", "batch_size", "limit", "data_dirs")


def list_changes(earlier: RunManifest, now: RunManifest) -> list[str]:
    """Names of the settings, and of the surroundings, in which two runs of a submission are not alike."""
    changed = [name for name in _IDENTITY if getattr(earlier, name) != getattr(now, name)]
    versions = surroundings_of(earlier.environment), surroundings_of(now.environment)
    return changed + [
        name for name in sorted({*versions[0], *versions[1]}) if versions[0].get(name) != versions[1].get(name)
    ]


def _identity(manifest: RunManifest, settings: RunSettings) -> str:
    """What tells the folders of runs apart; whether there is a second stage is not known yet."""
    unusual = [] if settings.rerank_k == RERANK_K else [settings.rerank_k]
    return digest_of([getattr(manifest, name) for name in _IDENTITY], surroundings_of(manifest.environment), *unusual)
