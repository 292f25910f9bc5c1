"""Shifted copies of a collection as Parquet files that the `datasets` library opens.

The unit of work is one shard: up to 128 images under one shift, or all captions under one. Shards are made by worker
processes, of this machine or of a Ray cluster, and written atomically; one that lies there already is kept, so that the
same command goes on after an interruption. Which process makes a shard, and when, does not change a byte of it.
"""

from __future__ import annotations

import hashlib
import io
import logging
import multiprocessing
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.cluster import connect_cluster
from bench.data.registry import load_collection
from bench.environment import check_surroundings
from bench.errors import InputError, MissingError, RoveError, UsageError
from bench.feed import pixels_digest
from bench.generated import (
    CARD,
    LOCK,
    MANIFEST,
    PLAN,
    GeneratedManifest,
    Part,
    Plan,
    config_name,
    describe_differences,
    make_card,
    verify_generated,
)
from bench.records import digest_of, read_json, to_json
from bench.shifted import (
    Change,
    Prepare,
    caption_ids,
    find_partners,
    prepare_clean,
    prepare_shifted,
    processor_name,
    reword,
    source_digest,
    version_of,
    versions,
)
from bench.store import Scratch, cache_folder, is_intact, locked, proof_of, sha256_of, write_atomic, write_with_proof
from bench.types import ClusterSettings, Collection, Image
from shifts.catalogue import Shift, find_missing, parse_shift
from shifts.resources import find_missing_packages

if TYPE_CHECKING:
    from bench.ray_cluster import Cluster

_log = logging.getLogger("rove")
SHARD_IMAGES = 128
_KINDS: Mapping[str, Any] = {
    "image": "images",
    "text": "captions",
    "gallery_image": "distractor_images",
    "gallery_text": "distractor_captions",
}
CANVAS = "clean_canvas"
_PNG = [
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
]


@dataclass(frozen=True)
class GenerateSettings:
    """What the command line says about a data set to generate.

    Args:
        dataset: NAME[/SPLIT] or FORMAT:PATH[/SPLIT].
        cells: shifts and severities, in the order asked for.
        optional: names of shifts that came from a pattern and are left out, with a note, where something is missing.
        limit: only the first images.
        workers: how many processes make shards; None for one for each core.
        cluster: where they run; None for this machine.
    """

    dataset: str
    cells: tuple[tuple[Shift, int], ...]
    optional: frozenset[str] = frozenset()
    data_dirs: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    limit: int | None = None
    workers: int | None = None
    offline: bool = False
    cluster: ClusterSettings | None = None

    @property
    def n_workers(self) -> int:
        """How many processes make shards on this machine."""
        return self.workers or os.cpu_count() or 1


class GenerateObserver(Protocol):
    """Is told how many images have gone through how many shifts."""

    def planned(self, n_rows: int) -> None: ...

    def shard_done(self, shift_id: str, n_rows: int) -> None: ...


class _Shard(NamedTuple):
    """Images `start` to `stop` under one shift, and where they go."""

    shift_id: str
    number: int
    start: int
    stop: int

    @property
    def path(self) -> str:
        return f"data/{config_name(self.shift_id)}/{self.number:05d}.parquet"


class _Made(NamedTuple):
    """A shard that lies on disk."""

    shard: _Shard
    sha256: str
    n_rows: int
    n_unchanged: int
    digests: list[str]


def generate(settings: GenerateSettings, output: Path, observer: GenerateObserver) -> GeneratedManifest:
    """Writes the shifted copies to `output`, or what of them is not there yet.

    Raises:
        UsageError: `output` holds something else, another process writes to it, or there is no such cluster.
        InputError: the data set cannot be used, or changed half-way.
        MissingError: something that a shift needs is not here.
        RoveError: the disk is full, or a worker process was killed; what was made is kept.
    """
    check_free(output)
    collection = _load(settings)
    cells, skipped = _runnable(settings)
    plan = plan_of(collection, settings.seed, [CANVAS, *(shift.id(severity) for shift, severity in cells)])
    with connect_cluster(settings.cluster, "cpu") as cluster:
        return fill(output, plan, lambda: _make_parts(output, settings, collection, plan, cluster, observer), skipped)


def fill(output: Path, plan: Plan, make: Callable[[], Iterable[Part]], skipped: Mapping[str, str]) -> GeneratedManifest:
    """The data set in `output`, which is found whole, or else made, the manifest last; damaged files are set aside.

    Args:
        make: writes what is not there yet and gives all parts.
        skipped: what the plan lacks, and why.

    Raises:
        UsageError: `output` was begun from another plan, or another process writes to it.
    """
    with locked(output):
        _check_same_inputs(output, plan)
        for unfinished in output.rglob(".*.tmp"):
            unfinished.unlink()  # a killed process was writing it
        manifest = _finished(output)
        if manifest is None:
            write_atomic(output / PLAN, to_json(plan))
            manifest = GeneratedManifest(plan=plan, skipped=dict(skipped), parts=tuple(make()))
            write_atomic(output / CARD, make_card(manifest).encode())
            write_atomic(output / MANIFEST, to_json(manifest))
            _clear(output)
    (output / LOCK).unlink(missing_ok=True)
    return manifest


def _finished(output: Path) -> GeneratedManifest | None:
    """The manifest of a data set that is whole; a damaged one becomes unfinished, and keeps what is as it was."""
    if not (output / MANIFEST).exists():
        return None
    _clear(output)
    try:
        return verify_generated(output)
    except InputError as error:
        _log.warning("%s What is damaged is made again.", error)
    manifest = read_json(output / MANIFEST, GeneratedManifest)
    for part in manifest.parts:
        for name, digest in part.files.items():
            write_atomic(proof_of(output / name), digest.encode())
    write_atomic(output / PLAN, to_json(manifest.plan))
    (output / MANIFEST).unlink()
    return None


def _clear(output: Path) -> None:
    """Removes what only an unfinished data set has."""
    (output / PLAN).unlink(missing_ok=True)
    for proof in output.rglob(proof_of(Path("*.parquet")).name):
        proof.unlink()


def generate_again(
    manifest: GeneratedManifest, dataset: str, data_dirs: Mapping[str, str], observer: GenerateObserver
) -> None:
    """Makes a generated data set once more, in a folder that is thrown away, and compares every byte.

    Raises:
        InputError: something comes out different; the message names it, and the versions that differ.
    """
    if manifest.plan.victim:
        raise UsageError(
            "attacked copies cannot be made again from a data set alone: run `rove generate --attack` again."
        )
    cells = tuple(parse_shift(shift_id) for shift_id in manifest.plan.shifts if shift_id != CANVAS)
    settings = GenerateSettings(dataset, cells, data_dirs=data_dirs, seed=manifest.plan.seed)
    if len(_load(settings).images) > manifest.plan.n_images:
        settings = replace(settings, limit=manifest.plan.n_images)
    with Scratch("verify") as folder:
        made = generate(settings, folder / "again", observer)
    differing = [part.config for part, then in zip(made.parts, manifest.parts, strict=True) if part != then]
    if differing:
        causes = describe_differences(manifest.plan, made.plan) or "nothing that the plan states"
        raise InputError(
            f"{len(differing)} of {len(made.parts)} parts come out different, first {differing[0]}. "
            f"What differs between then and now: {causes}."
        )


@dataclass(frozen=True)
class Size:
    """What a data set will take."""

    n_images: int
    bytes: float
    seconds: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def estimate_size(settings: GenerateSettings, n_probes: int = 2) -> Size:
    """What the images will take, from a few of them; captions are small beside them, and take a while of their own."""
    collection = _load(settings)
    n_images = len(collection.images)
    probes = [collection.images[i] for i in np.linspace(0, n_images - 1, n_probes).astype(int)]
    changes = [Change(*cell, settings.seed) for cell in settings.cells if _KINDS[cell[0].modality].endswith("images")]
    preparations = [prepare_clean(canvas=True), *(prepare_shifted(change, collection) for change in changes)]
    for prepare in preparations:
        prepare(probes[0])  # compiles what is not compiled yet
    started = time.perf_counter()
    size = sum(len(to_png(image.id, prepare(image))["image"]["bytes"]) for prepare in preparations for image in probes)
    seconds = time.perf_counter() - started
    share = n_images / len(probes)
    return Size(n_images, size * share, seconds * share / settings.n_workers)


def _make_parts(
    output: Path,
    settings: GenerateSettings,
    collection: Collection,
    plan: Plan,
    cluster: Cluster | None,
    observer: GenerateObserver,
) -> Iterable[Part]:
    shards = _list_shards(plan)
    observer.planned(sum(shard.stop - shard.start for shard in shards))
    sources = [image.sha256 for image in collection.images]
    schemas = {kind: _schema(kind) for kind in _KINDS.values()}
    texts, surroundings = _text_digest(collection), {**plan.versions, "processor": plan.processor}
    name = digest_of(texts, sources, surroundings, repr(settings))
    job = _Job(name, settings, texts, sources, schemas, surroundings)
    made = []
    making = _make_on_cluster(cluster, job, output, shards) if cluster else _make_here(job, output, shards)
    with closing(making):
        for one in making:
            made.append(one)
            observer.shard_done(one.shard.shift_id, one.shard.stop - one.shard.start)
    return _parts(plan, sorted(made))


def _load(settings: GenerateSettings) -> Collection:
    collection = load_collection(settings.dataset, data_dirs=settings.data_dirs, offline=settings.offline)
    return collection if settings.limit is None else collection.head(settings.limit)


def _runnable(settings: GenerateSettings) -> tuple[list[tuple[Shift, int]], dict[str, str]]:
    """The cells that can be made here, and why the others cannot."""
    skipped: dict[str, str] = {}
    if any(_KINDS[shift.modality].endswith("captions") for shift, _ in settings.cells):
        _require_similarity()
    for name in dict.fromkeys(shift.name for shift, _ in settings.cells):
        reason = find_missing(name)
        if reason and name not in settings.optional:
            raise MissingError(reason)
        if reason:
            skipped[name] = reason
    return [(shift, severity) for shift, severity in settings.cells if shift.name not in skipped], skipped


def _require_similarity() -> None:
    """Every caption's similarity is written beside it; what measures it must be there before the work begins."""
    missing = find_missing_packages()
    if missing:
        raise MissingError(missing)


def plan_of(collection: Collection, seed: int, shifts: Iterable[str], **more: Any) -> Plan:
    """What a generated data set is made from, on this machine; `more` are further fields."""
    return Plan(
        collection=collection.name,
        revision=collection.revision,
        source_sha256=source_digest(collection),
        n_images=len(collection.images),
        n_captions=len(collection.captions),
        seed=seed,
        shifts=tuple(shifts),
        versions=_versions(),
        processor=processor_name(),
        **more,
    )


def _versions() -> dict[str, str]:
    return {"rove-bench": version_of("rove-bench"), "pyarrow": version_of("pyarrow"), **versions()}


def check_free(output: Path) -> None:
    """Refuses a file, or a folder that holds something else, before anything is written to it."""
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file; choose another --output.")
    if output.exists() and any(output.iterdir()) and not any((output / name).exists() for name in (PLAN, MANIFEST)):
        raise UsageError(f"{output} is not empty and no generated data set; choose another --output.")


def _check_same_inputs(output: Path, plan: Plan) -> None:
    """Refuses to go on with what was begun otherwise."""
    earlier = _earlier(output)
    changed = describe_differences(earlier, plan) if earlier else ""
    if changed:
        raise UsageError(
            f"{output} was begun from other inputs ({changed}). Choose another --output, or remove the folder."
        )


def _earlier(output: Path) -> Plan | None:
    if (output / MANIFEST).exists():
        return read_json(output / MANIFEST, GeneratedManifest).plan
    return read_json(output / PLAN, Plan) if (output / PLAN).exists() else None


def _list_shards(plan: Plan) -> list[_Shard]:
    """All shards: captions first, which take longest, then images by images: a decoded one serves all shifts."""
    kinds = {shift_id: _kind(shift_id) for shift_id in plan.shifts}
    worded = [_Shard(name, 0, 0, plan.n_images) for name, kind in kinds.items() if kind.endswith("captions")]
    pictured = [name for name, kind in kinds.items() if kind.endswith("images")]
    starts = range(0, plan.n_images, SHARD_IMAGES)
    return worded + [
        _Shard(name, number, start, min(start + SHARD_IMAGES, plan.n_images))
        for number, start in enumerate(starts)
        for name in pictured
    ]


def _kind(shift_id: str) -> str:
    return "images" if shift_id == CANVAS else str(_KINDS[parse_shift(shift_id)[0].modality])


def _make_here(job: _Job, output: Path, shards: Sequence[_Shard]) -> Generator[_Made]:
    """Every shard, made by a pool of fresh processes."""
    others = set(multiprocessing.active_children())
    n_workers, fresh = job.settings.n_workers, multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(n_workers, fresh, _start_process, (job,))
    try:
        waiting: set[Future[_Made]] = {pool.submit(_make, job.name, output, shard) for shard in shards}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool:
        raise RoveError(
            "a worker process was killed, perhaps for memory; what was made is kept. Run the same command again, "
            "with fewer --workers."
        ) from None
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()  # shards are whole or not there; the longest would take a minute to wait for
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _make_on_cluster(cluster: Cluster, job: _Job, output: Path, shards: Sequence[_Shard]) -> Generator[_Made]:
    """Every shard, encoded on some node of the cluster and written by this process."""
    worker, paths, missing = _Worker(job), {shard: output / shard.path for shard in shards}, []
    for shard, path in paths.items():
        if is_intact(path):
            yield worker.read(path, shard)
        else:
            missing.append(shard)
    with closing(cluster.map(_encode_on_node, missing, job, at_most=job.settings.workers)) as encoded:
        for shard, data in encoded:
            write_with_proof(paths[shard], data)
            yield worker.read(paths[shard], shard)


def _parts(plan: Plan, made: Sequence[_Made]) -> Iterable[Part]:
    for shift_id in plan.shifts:
        own = [shard for shard in made if shard.shard.shift_id == shift_id]
        digests = [digest for shard in own for digest in shard.digests]
        kind: Any = _kind(shift_id)
        images = kind.endswith("images")
        yield Part(
            config=config_name(shift_id),
            shift=shift_id,
            kind=kind,
            version=0 if shift_id == CANVAS else parse_shift(shift_id)[0].version,
            n_rows=sum(shard.n_rows for shard in own),
            n_unchanged=sum(shard.n_unchanged for shard in own),
            content_sha256=hashlib.sha256(bytes.fromhex("".join(digests))).hexdigest() if images else digests[0],
            files={shard.shard.path: shard.sha256 for shard in own},
        )


def _text_digest(collection: Collection) -> str:
    return digest_of(list(collection.captions), collection.positives.tolist())


def _schema(kind: str) -> pa.Schema:
    """The columns of a kind of part, with the metadata by which `datasets` knows images from bytes."""
    from datasets import Features, Image, List, Value

    text, whole, texts = Value("string"), Value("int32"), List(Value("string"))
    images = {"image": Image(), "pixels_sha256": text}
    edits = {"edit_distance": whole, "similarity": Value("float32"), "meaning_kept": Value("bool")}
    columns = {
        "images": {**images, "image_id": text, "captions": texts, "caption_ids": texts},
        "distractor_images": {**images, "distractor_id": text, "source_image_id": text, "partner_image_id": text},
        "captions": {
            "image_id": text,
            "captions": texts,
            "caption_ids": texts,
            "original_captions": texts,
            **{name: List(kind) for name, kind in edits.items()},
        },
        "distractor_captions": {
            "distractor_id": text,
            "caption": text,
            "source_caption_id": text,
            "source_caption": text,
            **edits,
        },
    }
    facts = {"shift": text, "severity": whole, "shift_version": whole, "seed": Value("int64")}
    return Features({**columns[kind], **facts}).arrow_schema


# What follows runs in the worker processes.


class _Job(NamedTuple):
    """What a worker process is told: what to make, and by what it knows that it has the same inputs and packages.

    Args:
        name: tells jobs apart.
        sources: sha256 of each image.
        schemas: of each kind of part.
        surroundings: versions of packages, and the processor.
    """

    name: str
    settings: GenerateSettings
    text_digest: str
    sources: Sequence[str]
    schemas: Mapping[str, pa.Schema]
    surroundings: Mapping[str, str]


class _Worker:
    """What a worker process knows: the collection, and the canvases of the images that it saw last."""

    def __init__(self, job: _Job) -> None:
        self.seed, self.schemas = job.settings.seed, job.schemas
        self.collection = _load(job.settings)
        if len(self.collection.images) != len(job.sources) or _text_digest(self.collection) != job.text_digest:
            raise InputError(
                f"{self.collection.name} is not what it was when the command began, or not the same on "
                f"{platform.node()}. Run the same command again, with the same data everywhere."
            )
        self._sources = {image.id: digest for image, digest in zip(self.collection.images, job.sources, strict=True)}
        self.ids = caption_ids(self.collection)
        self.captions_of = captions_by_image(self.collection)
        self._images = {image.id: image for image in self.collection.images}
        self._canvas = lru_cache(maxsize=2 * SHARD_IMAGES)(self._checked_canvas)

    def change(self, shift_id: str) -> Change:
        return Change(*parse_shift(shift_id), self.seed)

    def clean(self, image: Image) -> np.ndarray:
        """The image's canvas; those of the last shards are kept."""
        return self._canvas(image.id)

    def _checked_canvas(self, image_id: str) -> np.ndarray:
        image = self._images[image_id]
        pixels = prepare_clean(canvas=True)(image)
        expected = self._sources[image.id]
        if image.sha256 != expected:
            raise InputError(
                f"image {image.id} changed while the data set was generated: expected sha256 {expected[:12]}..., "
                f"got {image.sha256[:12]}.... Restore it and run the same command again."
            )
        return pixels

    def encode(self, shard: _Shard) -> bytes:
        """The shard as a Parquet file."""
        kind, buffer = _kind(shard.shift_id), io.BytesIO()
        table = pa.Table.from_pylist(_ROWS[kind](self, shard), schema=self.schemas[kind])
        pq.write_table(table, buffer, compression="none" if "image" in table.column_names else "zstd")
        return buffer.getvalue()

    def read(self, path: Path, shard: _Shard) -> _Made:
        """What the shard's file holds.

        Raises:
            InputError: it cannot be read.
        """
        try:
            names = [name for name in pq.read_schema(path).names if name != "image"]
            rows = pq.read_table(path, columns=names).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{path} cannot be read: {error}. Remove it and run the same command again.") from None
        return _Made(shard, sha256_of(path), len(rows), *_contents(self, _kind(shard.shift_id), rows))


_jobs: dict[str, _Job] = {}
"""The one that this process was told."""


@lru_cache(maxsize=1)
def _worker_of(name: str) -> _Worker:
    return _Worker(_jobs[name])


def _start_process(job: _Job) -> None:
    """Runs once in each process of a pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _use_one_core()
    _jobs[job.name] = job


def _use_one_core() -> None:
    """Threads would only get in the other processes' way."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    cv2.setNumThreads(1)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone: a pool's processes would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make(name: str, output: Path, shard: _Shard) -> _Made:
    """The shard as it lies on disk, made if it is not there."""
    worker, path = _worker_of(name), output / shard.path
    if not is_intact(path):
        write_with_proof(path, worker.encode(shard))
    return worker.read(path, shard)


def _encode_on_node(job: _Job, shard: _Shard) -> bytes:
    """The shard as a Parquet file, made by a process of a cluster's node, which keeps its worker for the next one.

    Raises:
        InputError: the node has other data, versions, or another processor than the command's own machine.
    """
    if job.name not in _jobs:
        _use_one_core()
        check_surroundings({**_versions(), "processor": processor_name()}, job.surroundings)
        _jobs.clear()
        _jobs[job.name] = job
    return _worker_of(job.name).encode(shard)


def _contents(worker: _Worker, kind: str, rows: Sequence[Mapping[str, Any]]) -> tuple[int, list[str]]:
    """How many captions are unchanged, and the digests of what the rows hold."""
    if kind in ("images", "distractor_images"):
        return 0, [row["pixels_sha256"] for row in rows]
    if kind == "distractor_captions":
        return len(worker.ids) - len(rows), [digest_of([row["caption"] for row in rows])]
    texts = {name: text for row in rows for name, text in zip(row["caption_ids"], row["captions"], strict=True)}
    pairs = zip(worker.ids, worker.collection.captions, strict=True)
    n_unchanged = sum(texts[name] == original for name, original in pairs)
    return n_unchanged, [digest_of([texts[name] for name in worker.ids])]


def _image_rows(worker: _Worker, shard: _Shard) -> list[dict[str, Any]]:
    change = None if shard.shift_id == CANVAS else worker.change(shard.shift_id)
    prepare: Prepare = worker.clean
    if change is not None:
        prepare = prepare_shifted(change, worker.collection, worker.clean)
    rows = []
    for index in range(shard.start, shard.stop):
        image = worker.collection.images[index]
        own = worker.captions_of[index]
        rows.append(
            {
                **to_png(image.id, prepare(image)),
                "image_id": image.id,
                "captions": [worker.collection.captions[i] for i in own],
                "caption_ids": [worker.ids[i] for i in own],
                **_facts(change),
            }
        )
    return rows


def _distractor_image_rows(worker: _Worker, shard: _Shard) -> list[dict[str, Any]]:
    change = worker.change(shard.shift_id)
    prepare = prepare_shifted(change, worker.collection, worker.clean)
    partner_of = find_partners(change, worker.collection)
    return [
        {
            **to_png(f"{image.id}~{change.shift.name}", prepare(image)),
            "distractor_id": f"{image.id}~{change.shift.name}",
            "source_image_id": image.id,
            "partner_image_id": partner_of(image).id,
            **_facts(change),
        }
        for image in worker.collection.images[shard.start : shard.stop]
    ]


def _caption_rows(worker: _Worker, shard: _Shard) -> list[dict[str, Any]]:
    change = worker.change(shard.shift_id)
    edits = _edits(worker, change)
    rows = []
    for image, own in zip(worker.collection.images, worker.captions_of, strict=True):
        rows.append(
            {
                "image_id": image.id,
                "captions": [edits[i]["caption"] for i in own],
                "caption_ids": [worker.ids[i] for i in own],
                "original_captions": [worker.collection.captions[i] for i in own],
                **{name: [edits[i][name] for i in own] for name in ("edit_distance", "similarity", "meaning_kept")},
                **_facts(change),
            }
        )
    return rows


def _distractor_caption_rows(worker: _Worker, shard: _Shard) -> list[dict[str, Any]]:
    change = worker.change(shard.shift_id)
    sources = zip(worker.ids, worker.collection.captions, _edits(worker, change), strict=True)
    return [
        {
            "distractor_id": f"{name}~{change.shift.name}",
            "source_caption_id": name,
            "source_caption": original,
            **edit,
            **_facts(change),
        }
        for name, original, edit in sources
        if edit["caption"]
    ]


def _edits(worker: _Worker, change: Change) -> list[dict[str, Any]]:
    """Every caption reworded, with how far it is from the original in letters and in meaning."""
    from shifts.text.meaning import MEANING_KEPT, edit_distance, similarities

    originals = worker.collection.captions
    texts = reword(change, worker.collection, cache_folder()).captions
    scores = similarities(originals, texts)
    return [
        {
            "caption": text,
            "edit_distance": edit_distance(original, text),
            "similarity": float(score),
            "meaning_kept": bool(score >= MEANING_KEPT),
        }
        for original, text, score in zip(originals, texts, scores, strict=True)
    ]


def captions_by_image(collection: Collection) -> list[list[int]]:
    """The indices of each image's captions."""
    own: list[list[int]] = [[] for _ in collection.images]
    for image, caption in np.unique(collection.positives, axis=0).tolist():
        own[image].append(caption)
    return own


def to_png(name: str, pixels: np.ndarray) -> dict[str, Any]:
    """The pixels as a PNG, by the settings that are fastest of those that still make photos smaller."""
    pixels = np.ascontiguousarray(pixels)
    done, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), _PNG)
    if not done:
        raise RoveError(f"image {name} cannot be encoded as PNG.")
    return {"image": {"bytes": data.tobytes(), "path": f"{name}.png"}, "pixels_sha256": pixels_digest(pixels).hex()}


def _facts(change: Change | None) -> dict[str, Any]:
    """The shift's parameters, which stand on every row."""
    if change is None:
        return {"shift": CANVAS, "severity": 0, "shift_version": 0, "seed": 0}
    return {
        "shift": change.shift.name,
        "severity": change.severity,
        "shift_version": change.shift.version,
        "seed": change.seed,
    }


_ROWS: Mapping[str, Callable[[_Worker, _Shard], list[dict[str, Any]]]] = {
    "images": _image_rows,
    "captions": _caption_rows,
    "distractor_images": _distractor_image_rows,
    "distractor_captions": _distractor_caption_rows,
}
