"""What it costs to serve a submission: one gallery, one index, queries in batches of one and of many.

Calls are timed by PROTOCOL's rules (`bench.retrieval.latency`); two submissions are asked in turns, so that what the
machine does meanwhile is shared by both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Literal

import numpy as np

from bench.data.registry import load_collection
from bench.embed import Embedder
from bench.environment import describe_environment, surroundings_of
from bench.errors import ProtocolError, UsageError
from bench.feed import feed_batches
from bench.galleries import Say, Stand, encode, find_index, find_payload, measure_recall
from bench.records import Environment
from bench.retrieval.costs import COUNTED_ITEMS, find_cost_flags, hardware_class, measure_costs, reset_peak
from bench.retrieval.fresh import FreshImages, FreshTexts
from bench.retrieval.index import IndexSpec, Searcher, check_index, default_index, open_index, parse_index
from bench.retrieval.latency import (
    MIN_CALLS,
    Ask,
    References,
    Samples,
    grows_by_itself,
    latency,
    measure,
    pin_threads,
    ratios,
    relative,
)
from bench.retrieval.payload import Payload
from bench.retrieval.pipeline import Pipeline
from bench.run import choose_rerank_k
from bench.shifted import prepare_clean
from bench.store import cache_folder
from bench.submission import Submission
from bench.timing_records import Comparison, Costs, Encoding, Index, Ratio, Served, Stage, TimingRecord
from bench.worker.echo import echo_submission
from bench.worker.host import Worker, WorkerSettings

N_CALLS = MIN_CALLS[95]
N_IMAGES_TIMED = 256
Tower = Literal["images", "texts"]
Measured = dict[int, dict[str, Samples]]


@dataclass(frozen=True)
class TimingSettings:
    """What the command line says about a measurement, beside the submission.

    Args:
        n_items: size of the gallery; None for the collection's images alone.
        factory: faiss's name of the index; None for what the manifest says, or the default of the gallery's size.
        search: nprobe, ef and k_factor, where given.
        k: items in an answer.
        rerank_k: items that a second stage orders; None for as many as `rove run` orders, where there is one.
        batch_size: of the measurement in batches.
        n_calls: of one query each; batches are asked about as many queries, in calls enough for a median.
        threads: of harness and submission each; None for all cores that this process may use.
        rebuild: whether an index from the cache is built again.
    """

    worker: WorkerSettings = field(default_factory=WorkerSettings)
    dataset: str = "scenes/test"
    data_dirs: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    n_items: int | None = None
    factory: str | None = None
    search: Mapping[str, int] = field(default_factory=dict)
    index_device: str = "cpu"
    k: int = 10
    rerank_k: int | None = None
    batch_size: int = 32
    n_calls: int = N_CALLS
    threads: int | None = None
    seed: int = 0
    rebuild: bool = False
    command: str = ""

    @property
    def calls_by_batch(self) -> dict[int, int]:
        """How many calls are timed of each batch size."""
        return {1: self.n_calls} | {self.batch_size: max(MIN_CALLS[50], self.n_calls // self.batch_size)}


def time_submission(submission: Submission, settings: TimingSettings, say: Say) -> TimingRecord:
    """What one submission costs to serve.

    Raises:
        SubmissionError: it failed.
        InputError: the collection cannot be used, or the index fits neither memory nor disk.
        UsageError: the settings contradict each other, or the submission.
    """
    return _time([submission], settings, say)[0][0]


def compare_submissions(a: Submission, b: Submission, settings: TimingSettings, say: Say) -> Comparison:
    """Both timed in turns; raises as `time_submission`."""
    (of_a, of_b), measured = _time([a, b], settings, say)
    rng = np.random.Generator(np.random.Philox(settings.seed))
    found = [
        Ratio(stage=stage, batch_size=size, ratio=ratios(samples["0"], samples["1"], stage, rng))
        for size, samples in measured.items()
        for stage in samples["0"].stages
        if stage in samples["1"].stages
    ]
    return Comparison(a=of_a, b=of_b, ratios=tuple(found))


def make_stand(
    submission: Submission, settings: TimingSettings, environment: Environment, second_stage: bool | None, say: Say
) -> Stand:
    """The submission's gallery; raises as `time_submission`."""
    offline = settings.worker.offline
    collection = load_collection(settings.dataset, data_dirs=settings.data_dirs, offline=offline)
    if settings.limit is not None:
        collection = collection.head(settings.limit)
    surroundings = surroundings_of(environment)
    say(f"encoding {collection.name} with {submission.label}")
    with Embedder(submission, settings.worker, cache_folder(), settings.batch_size, surroundings) as embedder:
        encoded = encode(embedder, collection, second_stage)
    stand = Stand.make(encoded, settings.n_items, settings.seed)
    if settings.k > stand.gallery.n_items:
        raise UsageError(f"-k is {settings.k}; expected at most the gallery's {stand.gallery.n_items} items.")
    return stand


def factory_of(submission: Submission, settings: TimingSettings) -> str | None:
    """faiss's name of the index that is asked for, or that its manifest says; None if neither does."""
    return settings.factory or submission.manifest.index


def _index_spec(settings: TimingSettings, factory: str | None, stand: Stand, k: int) -> IndexSpec:
    """The index of that name, or the default of the gallery's size; raises as `parse_index`."""
    gallery = stand.gallery
    factory = factory or default_index(gallery.n_items, gallery.dim).factory
    return parse_index(factory, gallery.dim, k, **settings.search)


def _time(submissions: Sequence[Submission], settings: TimingSettings, say: Say) -> tuple[list[TimingRecord], Measured]:
    for factory in (factory_of(submission, settings) for submission in submissions):
        check_index(factory or "Flat", settings.search if factory else {}, settings.index_device)
    with ExitStack() as stack:
        threads = stack.enter_context(pin_threads(settings.threads))
        benches = {
            str(number): stack.enter_context(_Bench(submission, settings, say))
            for number, submission in enumerate(submissions)
        }
        references, measured, encoded = References(threads), Measured(), Measured()
        for size, n_calls in settings.calls_by_batch.items():
            say(f"asking {n_calls} times for {size}")
            asks = {name: bench.ask(size) for name, bench in benches.items()}
            measured[size] = measure(asks, n_calls, references)
            asks = {name: bench.encode_images(size) for name, bench in benches.items()}
            encoded[size] = measure(asks, n_calls, references)
        echoes = {name: bench.time_echo(references) for name, bench in benches.items()}
        records = [
            bench.record(_of(name, measured), _of(name, encoded), echoes[name], references, threads)
            for name, bench in benches.items()
        ]
        return records, measured


def _of(name: str, measured: Measured) -> dict[int, Samples]:
    return {size: samples[name] for size, samples in measured.items()}


class _Bench:
    """One submission as it is served, ready to be timed; a context manager."""

    def __init__(self, submission: Submission, settings: TimingSettings, say: Say) -> None:
        self._submission, self._settings = submission, settings
        second_stage = None if settings.rerank_k is None else settings.rerank_k > 0
        self._environment = describe_environment(settings.worker.device, submission.manifest.requires)
        self._stand = stand = make_stand(submission, settings, self._environment, second_stage, say)
        self._payload = find_payload(stand.encoded)
        self._rerank_k = 0 if self._payload is None else choose_rerank_k(submission, settings.rerank_k)
        k = max(settings.k, self._rerank_k)
        self._spec = _index_spec(settings, factory_of(submission, settings), stand, k)
        folder, self._built, exact = find_index(stand, self._spec, settings.k, settings.rebuild, say)
        collection = stand.encoded.collection
        batches = feed_batches(collection.images[:N_IMAGES_TIMED], prepare_clean(True), settings.batch_size)
        self._images = FreshImages([pixels.array for batch in batches for pixels in batch], settings.seed)
        self._texts = FreshTexts(collection.captions, settings.seed)
        reset_peak()
        self._searcher = open_index(folder, self._spec.search, settings.index_device)
        self._worker = Worker(submission, settings.worker)
        try:
            self._check_same_weights()
            self._pipeline = Pipeline(self._worker, self._searcher, self._payload, settings.k, self._rerank_k)
            self._cold_ms = self._ask_cold()
            rows = self._searcher.search(stand.queries.vectors, k)[1]
            self._recall = measure_recall(rows[:, : settings.k], exact, stand)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> _Bench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the submission's process."""
        self._worker.close()

    def _check_same_weights(self) -> None:
        if self._worker.loaded.weights_sha256 != self._stand.encoded.weights_sha256:
            raise ProtocolError(
                f"{self._submission.name} loaded other weights than when the gallery was encoded; expected the same "
                "each time."
            )

    def _ask_cold(self) -> dict[Stage, float]:
        """Milliseconds of the first query after a start, with its files on disk alone; then they are read."""
        files: list[Searcher | Payload] = [self._searcher, *([] if self._payload is None else [self._payload])]
        for file in files:
            file.drop_cached()
        ns = self.ask(1)()
        for file in files:
            file.warm()
        return {stage: time / 1e6 for stage, time in ns.items()}

    def ask(self, batch_size: int) -> Ask:
        """Answers `batch_size` new captions."""
        return lambda: self._pipeline.answer(self._texts.take(batch_size)).ns

    def encode_images(self, batch_size: int) -> Ask:
        """Encodes `batch_size` new images."""
        return _encoding(self._worker.encode_images, self._images.take, batch_size)

    def time_echo(self, references: References) -> tuple[Encoding, ...]:
        """Both towers of a submission that computes nothing."""
        shape = () if self._payload is None else self._payload.item_shape
        submission = echo_submission(self._stand.gallery.dim, shape)
        found = []
        with Worker(submission, self._settings.worker) as worker:
            for size, n_calls in self._settings.calls_by_batch.items():
                asks = {
                    "images": _encoding(worker.encode_images, self._images.take, size),
                    "texts": _encoding(worker.encode_texts, self._texts.take, size),
                }
                measured = measure(asks, n_calls, references)
                found += [_as_encoding("images", size, measured["images"])]
                found += [_as_encoding("texts", size, measured["texts"])]
        return tuple(found)

    def record(
        self,
        served: Mapping[int, Samples],
        encoded: Mapping[int, Samples],
        echo: tuple[Encoding, ...],
        references: References,
        threads: int,
    ) -> TimingRecord:
        """Everything that was found out."""
        stand, settings = self._stand, self._settings
        stated = find_cost_flags(self._submission.manifest, self._worker.loaded.parameters)
        return TimingRecord(
            label=self._submission.label,
            fingerprint=self._submission.fingerprint,
            weights_sha256=self._worker.loaded.weights_sha256,
            hardware_class=hardware_class(self._environment, self._worker.loaded.device_name, threads),
            threads=threads,
            rerank_k=self._rerank_k,
            k=settings.k,
            gallery=stand.facts,
            index=Index(
                factory=self._spec.factory,
                search=dict(self._spec.search),
                device=settings.index_device,
                n_bytes=self._built.n_bytes,
                sha256=self._built.sha256,
                mapped=self._searcher.mapped,
                train_s=self._built.train_s,
                add_s=self._built.add_s,
                build_peak_bytes=self._built.peak_bytes,
            ),
            recall=self._recall,
            served=tuple(_as_served(size, samples) for size, samples in served.items()),
            encodings=tuple(_as_encoding("images", size, samples) for size, samples in encoded.items()),
            echo=echo,
            cold_ms=self._cold_ms,
            load_s=self._worker.loaded.load_s,
            open_s=self._searcher.open_s,
            references=references.as_records(),
            costs=self._costs(),
            flags=(*_flags(served[1], encoded[1], references), *stated),
            command=settings.command,
            environment=self._environment,
        )

    def _costs(self) -> Costs:
        return measure_costs(
            self._worker,
            self._submission.manifest,
            self._images.take(COUNTED_ITEMS),
            self._texts.take(COUNTED_ITEMS),
            self._stand.gallery.dim,
            self._payload,
            payload_repeats=self._payload is not None and self._stand.gallery.n_synthetic > 0,
        )


def _encoding(encode: Callable[[Any], np.ndarray], take: Callable[[int], Any], batch_size: int) -> Ask:
    """A call of one tower; the items are made before the clock starts."""

    def ask() -> dict[Stage, int]:
        items = take(batch_size)
        started = perf_counter_ns()
        encode(items)
        return {"encode": perf_counter_ns() - started}

    return ask


def _as_served(batch_size: int, samples: Samples) -> Served:
    whole = samples.stages["end_to_end"]
    return Served(
        batch_size=batch_size,
        stages={stage: latency(ns) for stage, ns in samples.stages.items()},
        relative={stage: relative(samples, stage) for stage in samples.stages},
        queries_per_s=batch_size * whole.size / (whole.sum() / 1e9),
    )


def _as_encoding(tower: Tower, batch_size: int, samples: Samples) -> Encoding:
    return Encoding(
        tower=tower,
        batch_size=batch_size,
        latency=latency(samples.stages["encode"]),
        relative=relative(samples, "encode"),
    )


def _flags(served: Samples, encoded: Samples, references: References) -> tuple[str, ...]:
    """What a reader should know before believing a figure."""
    slows = [f"slows:{stage}" for stage in served.stages if grows_by_itself(served, stage)]
    slows += ["slows:images"] if grows_by_itself(encoded, "encode") else []
    return (*(["noisy"] if references.noisy else []), *slows)
