"""Timings and sweeps with made-up figures, for the tests of what carries and shows them."""

from __future__ import annotations

import math
from typing import Any

from bench.records import Environment, RunManifest, estimate
from bench.timing_records import (
    Costs,
    Encoding,
    Gallery,
    Index,
    Latency,
    Point,
    Recall,
    Reference,
    Served,
    Sweep,
    TimingRecord,
)

ENVIRONMENT = Environment(
    rove="0.1.0",
    python="3.11.9",
    platform="Linux",
    processor="Example CPU",
    cores=2,
    memory_bytes=32 << 30,
    device="cpu",
    versions={"faiss": "1.15.1"},
)
GALLERY = Gallery(
    collection="flickr8k/test",
    source_sha256="a" * 64,
    n_real=1_000,
    n_synthetic=999_000,
    dim=512,
    seed=0,
    sha256="b" * 64,
    n_components=64,
)
STREAM = Reference(kernel="stream", work=1 << 30, n_calls=40, median_ms=32.5, spread=0.04)
GEMM = Reference(kernel="gemm", work=2 * 1024**3, n_calls=40, median_ms=12.1, spread=0.03)


def latency(p50_ms: float) -> Latency:
    return Latency(n_calls=200, p50_ms=p50_ms, p90_ms=1.2 * p50_ms, p95_ms=1.4 * p50_ms, p99_ms=None)


def timing_of(manifest: RunManifest, **changes: Any) -> TimingRecord:
    """A timing that `manifest`'s submission could have."""
    stages = {"encode": 8.5, "search": 1.5, "rerank": 20.0, "end_to_end": 30.5}
    one = Served(
        batch_size=1,
        stages={name: latency(value) for name, value in stages.items()},
        relative={"encode": 0.68, "search": 0.046, "rerank": 1.65},
        queries_per_s=32.0,
    )
    many = Served(batch_size=32, stages={"end_to_end": latency(400.0)}, relative={"search": 0.5}, queries_per_s=80.25)
    encoding = Encoding(tower="texts", batch_size=1, latency=latency(8.0), relative=0.66)
    record = TimingRecord(
        label=manifest.label,
        fingerprint=manifest.fingerprint,
        weights_sha256=manifest.weights_sha256 or "",
        hardware_class="x86-64, 2 cores",
        threads=2,
        rerank_k=50,
        k=10,
        gallery=GALLERY,
        index=Index(
            factory="IVF4096,PQ64",
            search={"nprobe": 32},
            device="cpu",
            n_bytes=76_500_000,
            sha256="c" * 64,
            mapped=True,
            train_s=90.0,
            add_s=60.0,
            build_peak_bytes=4 << 30,
        ),
        recall=Recall(
            k=10,
            n_queries=1_000,
            overlap=estimate(0.8734, 0.8601, 0.8862),
            hits=estimate(0.5, 0.45, 0.55),
            hits_exact=estimate(0.52, 0.47, 0.57),
        ),
        served=(one, many),
        encodings=(encoding,),
        echo=(encoding,),
        cold_ms={"end_to_end": 250.0},
        load_s=2.0,
        open_s=0.1,
        references={"gemm": GEMM, "stream": STREAM},
        costs=Costs(embedding_bytes=2048, worker_peak_bytes=1 << 30, harness_peak_bytes=1 << 30),
        flags=("noisy",),
        environment=ENVIRONMENT,
    )
    return record.model_copy(update=changes)


def point(factory: str, p50_ms: float, recall: float, best: bool = False, **search: int) -> Point:
    half = 1.96 * math.sqrt(max(recall * (1 - recall), 1e-6) / 4_000)
    return Point(
        factory=factory,
        search=search,
        n_bytes=200_000_000,
        build_s=60.0,
        overlap=estimate(recall, recall - half, min(1.0, recall + half)),
        latency=latency(p50_ms),
        relative=p50_ms / STREAM.median_ms,
        best=best,
    )


def sweep_of(*points: Point, **changes: Any) -> Sweep:
    sweep = Sweep(
        label="pocket",
        fingerprint="d" * 64,
        hardware_class="x86-64, 2 cores",
        threads=2,
        device="cpu",
        k=10,
        gallery=GALLERY,
        points=points,
        references={"stream": STREAM},
        environment=ENVIRONMENT,
    )
    return sweep.model_copy(update=changes)
