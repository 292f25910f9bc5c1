"""A run: one submission over the cells of a suite, one record and one evidence file per cell.

The folder of a run holds `run.json` and `cells/`. A cell is done when its record lies there; the record is written last
and names the sha256 of its evidence, so that a crash at any moment loses at most the cell in flight and the same
command goes on. Nothing in a record but its timing depends on when or how often it was interrupted.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from bench.attack import AttackScorer, n_attacked
from bench.bundle import Results, cell_files, read_record, read_results
from bench.crafting import Crafter
from bench.data.registry import load_collection
from bench.embed import Embedded, Embedder
from bench.errors import InputError, MissingError, SubmissionError, UsageError
from bench.evaluate import Distractors, digest_vectors, evaluate
from bench.examples import EXAMPLES
from bench.probing import Scored, not_run, probe
from bench.records import (
    CLEAN,
    DONE,
    Cell,
    Data,
    Environment,
    Probe,
    Record,
    RunManifest,
    Timing,
    digest_of,
    read_json,
    to_json,
)
from bench.second import NotApplicable, Readings, in_both_directions
from bench.shifted import (
    PACKAGES,
    Change,
    Rewording,
    prepare_clean,
    prepare_shifted,
    processor_name,
    reword,
    source_digest,
    version_of,
)
from bench.store import cache_folder, is_intact, locked, set_aside, sha256_of, write_atomic, write_with_proof
from bench.submission import Submission
from bench.suites import Suite
from bench.types import Collection
from bench.worker.host import Loaded, WorkerSettings
from shifts.attacks.catalogue import parse_attack
from shifts.catalogue import parse_shift

PROTOCOL_VERSION = 1
RERANK_K = 20


@dataclass(frozen=True)
class RunSettings:
    """What the command line says about a run, beside submission and suite.

    Args:
        source: the folder of another run, whose attacked items are scored; `suite` is then `transfer_suite` of it.
        cache: the folder of embeddings and reworded captions; None for the user's.
        rerank_k: how many items of each query a second stage orders, if the submission has one; None for what its
            manifest says, or RERANK_K.
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


def run_suite(submission: Submission, suite: Suite, settings: RunSettings, observer: Observer) -> RunResult:
    """Scores `submission` on every cell of `suite`; cells whose record is there already are left alone.

    Raises:
        SubmissionError: the submission cannot be loaded; failures within a cell become that cell's status instead.
        InputError: a collection cannot be used.
        UsageError: the output folder belongs to a run of other inputs, or another process writes to it.
    """
    settings = replace(settings, rerank_k=choose_rerank_k(submission, settings.rerank_k))
    manifest = build_manifest(submission, suite, settings)
    folder = settings.output or Path("runs") / f"{manifest.label}-{_identity(manifest, settings)[:8]}" / suite.label
    if submission.is_folder and submission.folder in folder.resolve().parents:
        raise UsageError(f"{folder} lies inside the submission, which it would change; choose another --output.")
    surroundings = surroundings_of(manifest.environment)
    cache = settings.cache or cache_folder()
    with (
        locked(folder),
        Embedder(submission, settings.worker, cache, settings.batch_size, surroundings) as embedder,
        closing(Crafter(submission, settings.worker, settings.batch_size, folder / EXAMPLES, surroundings)) as crafter,
    ):
        manifest = _claim(folder, manifest, settings)
        if manifest.weights_sha256 is None:
            manifest = _add_loaded(folder, manifest, embedder.start(), settings)
        source = None if settings.source is None else read_results(settings.source)
        k = manifest.rerank_k
        scorer = AttackScorer(embedder, crafter, manifest.label, folder / EXAMPLES, source, k)
        runner = _Runner(folder, suite, submission, settings, embedder, scorer, observer, surroundings, k)
        if _lacks_probes(manifest) or not runner.is_finished():
            manifest = _add_loaded(folder, manifest, embedder.start(), settings)
        records = tuple(runner.records())
        if _lacks_probes(manifest) and all(record.status in DONE for record in records):
            manifest = manifest.model_copy(update={"probes": runner.probe()})
            write_with_proof(folder / "run.json", to_json(manifest))
        return RunResult(folder, manifest, records)


def choose_rerank_k(submission: Submission, asked: int | None) -> int:
    """How many items of each query its second stage orders: what is asked, what its manifest says, or RERANK_K."""
    return asked or submission.manifest.rerank_k or RERANK_K


def build_manifest(submission: Submission, suite: Suite, settings: RunSettings) -> RunManifest:
    """What is known of a run before it starts."""
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
        environment=describe_environment(settings.worker.device, submission.manifest.requires),
    )


def describe_environment(device: str, requires: list[str]) -> Environment:
    """This machine and the versions of what decides a result."""
    names = dict.fromkeys((*PACKAGES, *requires))
    return Environment(
        rove=importlib.metadata.version("rove-bench"),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        processor=processor_name(),
        cores=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        device=device,
        versions={name: version for name in names if (version := version_of(name))},
    )


@dataclass(frozen=True)
class _Sides:
    """A cell's items: what the towers make of the collection's own, and of the distractors that join them.

    Args:
        readings: of own items and distractors by the second stage; None where one stage is scored.
    """

    images: Embedded
    texts: Embedded
    more_images: Embedded | None = None
    more_texts: Embedded | None = None
    n_unchanged: int = 0
    readings: Readings | None = None

    @property
    def distractors(self) -> Distractors:
        vectors = [None if part is None else part.vectors for part in (self.more_images, self.more_texts)]
        return Distractors(*vectors)

    @property
    def n_distractors(self) -> int:
        return sum(len(part) for part in self.distractors if part is not None)

    @property
    def distractors_sha256(self) -> str | None:
        added = self.more_images or self.more_texts
        return added.fed_sha256 if added else None


class _Runner:
    """The cells of one run, one after the other."""

    def __init__(
        self,
        folder: Path,
        suite: Suite,
        submission: Submission,
        settings: RunSettings,
        embedder: Embedder,
        scorer: AttackScorer,
        observer: Observer,
        surroundings: object,
        rerank_k: int | None,
    ) -> None:
        self._folder, self._suite, self._settings = folder, suite, settings
        self._embedder, self._scorer, self._observer, self._rerank_k = embedder, scorer, observer, rerank_k
        self._submission, self._inputs = submission, (submission.fingerprint, surroundings, settings.worker.dtype)
        self._wholes: dict[str, Collection] = {}
        self._collections: dict[tuple[str, int | None], tuple[Collection, str]] = {}

    def is_finished(self) -> bool:
        """Whether no cell needs the submission."""
        return all(self._finished(cell, self._key(cell, self._collection(cell)[1])) for cell in self._suite.cells)

    def records(self) -> Iterator[Record]:
        """Every cell's record, in the suite's order, scored if it has to be."""
        for cell in self._suite.cells:
            collection, source = self._collection(cell)
            key = self._key(cell, source)
            record = self._finished(cell, key)
            reused = record is not None
            if record is None:
                self._observer.cell_started(cell, self._work(cell, collection))
                record = self._run(cell, key, collection, source)
                write_with_proof(cell_files(self._folder, cell)[0], to_json(record))
            self._observer.cell_finished(record, reused)
            yield record

    def _run(self, cell: Cell, key: str, collection: Collection, source: str) -> Record:
        started = time.perf_counter()
        worker = self._settings.worker
        worker.cell.restart(worker.cell_timeout_s)
        blank = Record(cell=cell, family=_family(cell), key=key, status="ok", isolation=str(worker.isolation))
        try:
            score = self._score_attacked if cell.is_attack else self._score
            record, evidence = score(cell, blank, collection, source)
        except SubmissionError as error:
            self._close_workers()
            return blank.model_copy(update={"status": error.status, "reason": str(error)[:8000]})
        except (MissingError, NotApplicable) as error:
            if isinstance(error, NotApplicable):
                blank = blank.model_copy(update={"status": "skipped", "isolation": ""})
            else:
                blank = blank.model_copy(update={"status": "error"})
            return blank.model_copy(update={"reason": str(error)[:8000]})
        path = cell_files(self._folder, cell)[1]
        write_atomic(path, evidence)
        timing = record.timing.model_copy(update={"wall_s": time.perf_counter() - started})
        return record.model_copy(update={"evidence_sha256": sha256_of(path), "timing": timing})

    def probe(self) -> tuple[Probe, ...]:
        """What the probes find on the collection that stands first, without a shift and on the canvas."""
        settings, first = self._settings, self._suite.cells[0].collection
        cell = Cell(collection=first, shift="clean_canvas", directions=("t2i", "i2t"))
        collection, _ = self._collection(cell)
        try:
            sides = self._embed(cell, None, collection)
        except SubmissionError as error:
            self._close_workers()
            return not_run(error, self._rerank_k is not None)
        vectors = sides.images.vectors, sides.texts.vectors
        scored = Scored(collection, prepare_clean(canvas=True), *vectors, sides.readings, self._close_workers)
        return probe(self._submission, settings.worker, settings.batch_size, scored)

    def _close_workers(self) -> None:
        self._embedder.close()
        self._scorer.close()

    def _score(self, cell: Cell, blank: Record, collection: Collection, source: str) -> tuple[Record, bytes]:
        sides = self._embed(cell, _change_of(cell), collection)
        images, texts, readings = sides.images, sides.texts, sides.readings
        second = in_both_directions(self._rerank_k, readings.score) if self._rerank_k and readings else None
        evaluation = evaluate(collection, images.vectors, texts.vectors, cell.directions, sides.distractors, second)
        described = _describe(
            collection,
            source,
            (images, texts),
            n_distractors=sides.n_distractors,
            n_unchanged=sides.n_unchanged,
            distractors_sha256=sides.distractors_sha256,
            token_bytes=readings.token_bytes if readings else None,
        )
        found = {"flags": evaluation.flags, "metrics": evaluation.metrics}
        return blank.model_copy(update={**found, **described}), evaluation.evidence

    def _score_attacked(self, cell: Cell, blank: Record, collection: Collection, source: str) -> tuple[Record, bytes]:
        n_images = len(collection.images)
        beside = self._whole(cell.collection).beside(n_images) if cell.threat_model == "distractor" else None
        result = self._scorer.score(cell, collection, self._observer.items_encoded, beside)
        described = _describe(
            collection,
            source,
            (result.images, result.texts),
            n_distractors=result.n_distractors,
            n_unchanged=result.report.n_unchanged,
            distractors_sha256=result.distractors_sha256,
            token_bytes=result.token_bytes,
        )
        found = {"flags": result.flags, "metrics": result.metrics, "attack": result.report}
        return blank.model_copy(update={**found, **described}), result.evidence

    def _embed(self, cell: Cell, change: Change | None, collection: Collection) -> _Sides:
        """What all stages make of the cell's items; a shift that adds distractors leaves the items themselves."""
        modality = change.shift.modality if change else ""
        own = collection, change if modality == "image" else None, cell.shift != "clean"
        more = (collection, change, True) if modality == "gallery_image" else None
        reworded = self._reword(change, collection) if change and modality in ("text", "gallery_text") else None
        captions, more_captions = collection.captions, list[str]()
        if reworded and modality == "text":
            captions = reworded.captions
        elif reworded:
            more_captions = [text for text in reworded.captions if text]
        sides = _Sides(
            images=self._images(self._embedder.images, *own),
            texts=self._texts(captions),
            more_images=self._images(self._embedder.images, *more) if more else None,
            more_texts=self._texts(more_captions) if more_captions else None,
            n_unchanged=reworded.n_unchanged if reworded else 0,
        )
        if not self._is_reranked(cell):
            return sides
        tokens = [self._images(self._embedder.tokens, *part).vectors for part in (own, more) if part]
        everything = np.concatenate(tokens) if len(tokens) > 1 else tokens[0]
        return replace(sides, readings=Readings(everything, [*captions, *more_captions], self._embedder.score_pairs))

    def _is_reranked(self, cell: Cell) -> bool:
        return self._rerank_k is not None and cell.directions != ("i2i",)

    def _images(
        self, tower: Callable[..., Embedded], collection: Collection, change: Change | None, canvas: bool
    ) -> Embedded:
        """What `tower`, one of the embedder's, makes of the images."""
        prepare = prepare_shifted(change, collection) if change else prepare_clean(canvas)
        identity = [canvas, change.identity if change else []]
        return tower(collection.images, prepare, identity, self._observer.items_encoded)

    def _texts(self, captions: Sequence[str]) -> Embedded:
        return self._embedder.texts(list(captions), self._observer.items_encoded)

    def _reword(self, change: Change, collection: Collection) -> Rewording:
        return reword(change, collection, self._settings.cache or cache_folder())

    def _collection(self, cell: Cell) -> tuple[Collection, str]:
        """The images and captions that a cell is scored on, and their digest."""
        key = (cell.collection, cell.n_images)
        if key not in self._collections:
            expected = self._suite.collections[cell.collection]
            part = self._whole(cell.collection).head(min(expected, cell.n_images or expected))
            collection = _limited(part, self._settings.limit)
            self._collections[key] = (collection, source_digest(collection))
        return self._collections[key]

    def _whole(self, name: str) -> Collection:
        """The collection of which cells have the first images."""
        if name not in self._wholes:
            expected, offline = self._suite.collections[name], self._settings.worker.offline
            found = load_collection(name, data_dirs=self._settings.data_dirs, offline=offline)
            if len(found.images) < expected:
                raise InputError(f"{name} has {len(found.images)} images; {self._suite.label} expects {expected}.")
            self._wholes[name] = found
        return self._wholes[name]

    def _key(self, cell: Cell, source: str) -> str:
        settings: list[object] = [self._settings.batch_size, self._settings.worker.device]
        if self._settings.source is not None:
            settings.append(self._scorer.source_key(cell))
        if self._is_reranked(cell):
            settings.append(["rerank", self._rerank_k])
        version = _version(cell)
        return digest_of(PROTOCOL_VERSION, cell.model_dump(), version, source, *self._inputs, *settings)

    def _finished(self, cell: Cell, key: str) -> Record | None:
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
        return record if record.key == key else None

    def _work(self, cell: Cell, collection: Collection) -> int:
        if cell.is_attack:
            return n_attacked(cell, collection)
        towers = 2 if self._is_reranked(cell) else 1
        return towers * len(collection.images) + len(set(collection.captions))


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


def _change_of(cell: Cell) -> Change | None:
    return None if cell.shift in CLEAN or cell.is_attack else Change(*parse_shift(cell.shift), cell.seed)


def _family(cell: Cell) -> str:
    if cell.is_attack:
        return parse_attack(cell.shift)[0].family
    change = _change_of(cell)
    return change.shift.family if change else "domain" if cell.baseline else "clean"


def _version(cell: Cell) -> int:
    """Of the shift or attack; 0 where nothing is changed."""
    change = _change_of(cell)
    return parse_attack(cell.shift)[0].version if cell.is_attack else change.shift.version if change else 0


def _describe(
    collection: Collection, source: str, embedded: tuple[Embedded, Embedded], **more: object
) -> dict[str, object]:
    """What a record says of the items, whatever was done to them; `more` are further fields of `Data`."""
    images, texts = embedded
    facts = {
        "revision": collection.revision,
        "n_images": len(collection.images),
        "n_captions": len(collection.captions),
        "source_sha256": source,
        "images_sha256": images.fed_sha256,
        "captions_sha256": texts.fed_sha256,
    }
    timing = Timing(
        encode_images_ms=images.ms_per_item,
        encode_texts_ms=texts.ms_per_item,
        images_cached=images.cached,
        texts_cached=texts.cached,
    )
    return {
        "data": Data.model_validate({**facts, **more}),
        "dim": images.vectors.shape[1],
        "embeddings_sha256": {"images": digest_vectors(images.vectors), "texts": digest_vectors(texts.vectors)},
        "timing": timing,
    }


def _limited(collection: Collection, limit: int | None) -> Collection:
    """The first `limit` images; of labelled ones so many more that two of them share a label."""
    if limit is None:
        return collection
    if collection.labels is not None:
        firsts = np.unique(collection.labels, return_index=True)[1]
        seconds = np.setdiff1d(np.arange(len(collection.labels)), firsts)
        limit = max(limit, int(seconds[0]) + 1) if seconds.size else limit
    return collection.head(limit)


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


def surroundings_of(environment: Environment) -> dict[str, str]:
    """What decides a result beside a run's own settings."""
    return {**environment.versions, "processor": environment.processor}


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
