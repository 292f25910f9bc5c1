"""One page a submission: what it is, how it was run, how it holds up cell by cell, and what it costs to serve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.metrics import HIT_CUTOFFS
from bench.records import Estimate, Fit, Parameters
from bench.scoring import CROSS_MODAL
from bench.timing_records import Served, Stage, TimingRecord
from leaderboard.boards import Board
from leaderboard.entries import Attacked, Entry, Score
from leaderboard.pages.shifts import list_shifts
from leaderboard.rendering import Figure, Page, Script, short
from leaderboard.sizes import name_size

_DIRECTIONS = ("t2i", "i2t", "i2i")
_N_WORST = 5
_STAGES: dict[Stage, str] = {
    "encode": "Encode",
    "search": "Search",
    "fetch": "Fetch",
    "rerank": "Rerank",
    "end_to_end": "End to end",
}


@dataclass(frozen=True)
class Timed:
    """One timing as a row of text."""

    gallery: Figure
    index: Figure
    flags: tuple[str, ...]
    recall: Figure
    stages: tuple[tuple[str, str, str], ...]
    throughput: Figure
    size: str
    memory: str
    hardware: Figure


def parts(board: Board) -> Iterator[Page | Script]:
    """The pages of all rows."""
    paths = {shift.name: shift.path for shift in list_shifts(board)}
    for row in board.rows:
        entry = row.entry
        directions = [name for name in _DIRECTIONS if any(name in score.cell.directions for score in entry.scores)]
        stages = _stages(entry.timings)
        context = {
            "row": row,
            "entry": entry,
            "paths": paths,
            "facts": list(_facts(entry)),
            "protocol": list(_protocol(entry)),
            "worst": sorted(entry.shifts.items(), key=lambda item: -item[1].lost.value)[:_N_WORST],
            "columns": [f"{direction} R@{k}" for direction in directions for k in HIT_CUTOFFS],
            "cells": [(score, _figures(score, directions)) for score in entry.scores],
            "candidates": _candidates(entry),
            "attacks": [(attacked, _failed(attacked)) for attacked in entry.attacks],
            "stages": [_STAGES[stage] for stage in stages],
            "timings": [_timed(record, stages) for record in _ordered(entry.timings)],
        }
        yield Page(f"{board.slug}/submissions/{row.id}.html", "submission.html", context)


def _facts(entry: Entry) -> Iterator[tuple[str, str]]:
    """The submission's card, without what is empty; the URL stands apart, because it is a link."""
    submission = entry.manifest.submission
    facts = {
        "Method": submission.method,
        "Base": submission.base,
        "Authors": ", ".join(submission.authors),
        "Licence": submission.license,
        "Fitted by": _fit(submission.fit) if submission.fit else "",
        "Weights have seen": ", ".join(submission.trained_on),
        "Parameters": _parameters(entry.manifest.parameters, submission.parameters),
        "Arguments": ", ".join(f"{key}={value}" for key, value in entry.manifest.args.items()),
    }
    return ((name, value) for name, value in facts.items() if value)


def _fit(fit: Fit) -> str:
    """Which recipe, how long, and how its own choices were made."""
    args = " ".join(f"{key}={value}" for key, value in fit.args.items() if value)
    parts = [f"{fit.recipe}, version {fit.version}{f' ({args})' if args else ''}", f"seed {fit.seed}"]
    parts += [] if fit.epochs is None else [f"{fit.epochs:.3g} epochs"]
    parts += [] if fit.relative_seconds is None else [f"{fit.relative_seconds:.2f} of the time of full fine-tuning"]
    parts += [f"choices made on {fit.validation}"]
    parts += ["has seen images of a test split"] if fit.saw_evaluation_data else []
    return ", ".join(parts)


def _parameters(counted: int | None, stated: Parameters) -> str:
    """What the harness counted, and what only the author can know."""
    parts = [] if counted is None else [f"{counted:,} (counted)"]
    for name in ("trainable", "added"):
        value = getattr(stated, name)
        parts += [] if value is None else [f"{value:,} {name} (stated)"]
    return ", ".join(parts)


def _protocol(entry: Entry) -> Iterator[tuple[str, str]]:
    manifest, environment = entry.manifest, entry.manifest.environment
    facts = {
        "Suite": f"{manifest.suite} (id {manifest.suite_id[:16]})",
        "Seeds": ", ".join(str(seed) for seed in sorted({cell.seed for cell in manifest.cells})),
        "Data": ", ".join(f"{name}: {n:,} images" for name, n in manifest.collections.items()),
        "Device, dtype, batch": f"{manifest.device}, {manifest.dtype}, {manifest.batch_size}",
        "Reranked": f"the best {manifest.rerank_k} of each query" if manifest.rerank_k else "",
        "Isolation": manifest.isolation,
        "Machine": f"{environment.platform}, {environment.cores} x {environment.processor}",
        "Software": ", ".join(f"{name} {version}" for name, version in environment.versions.items()),
        "Weights, sha256": manifest.weights_sha256 or "",
        "Submission's files, sha256": manifest.fingerprint,
        "Bundle, sha256": entry.bundle_sha256,
    }
    return ((name, value) for name, value in facts.items() if value)


def _figures(score: Score, directions: Sequence[str]) -> list[Estimate | None]:
    """Mean R@1, what of it is lost, and R@k of each direction."""
    metrics = {str(name): part for name, part in score.metrics.items()}
    return [score.r1, score.lost] + [
        metrics.get(direction, {}).get(f"hit@{k}") for direction in directions for k in HIT_CUTOFFS
    ]


def _candidates(entry: Entry) -> list[tuple[str, list[Estimate | None]]]:
    """Candidate recall of every cell by direction, None where it is not asked; empty where there is one stage."""
    cells = entry.candidates.cells if entry.candidates else {}
    return [(cell, [found.get(direction) for direction in CROSS_MODAL]) for cell, found in cells.items()]


def _failed(attacked: Attacked) -> str:
    """Which sanity checks it failed, in words; empty if none."""
    return "; ".join(f"{check.name}: {check.detail}" for check in attacked.checks if not check.passed)


def _ordered(records: Sequence[TimingRecord]) -> list[TimingRecord]:
    """By gallery and index: timings are nowhere ranked."""
    return sorted(records, key=lambda record: (record.gallery.n_items, record.index.factory, record.slug))


def _stages(records: Sequence[TimingRecord]) -> list[Stage]:
    asked = {stage for record in records for served in record.served for stage in served.stages}
    return [stage for stage in _STAGES if stage in asked]


def _timed(record: TimingRecord, stages: Sequence[Stage]) -> Timed:
    overlap = record.recall.overlap
    largest = max(record.served, key=lambda served: served.batch_size, default=None)
    single = next((served for served in record.served if served.batch_size == 1), None)
    search = [f"{name} {value}" for name, value in sorted(record.index.search.items())]
    gallery, costs = record.gallery, record.costs
    return Timed(
        gallery=Figure(f"{gallery.n_items:,} items", f"{gallery.n_synthetic:,} synthetic, {gallery.collection}"),
        index=Figure(
            record.index.factory,
            ", ".join([*search, f"rerank {record.rerank_k}" if record.rerank_k else "no second stage"]),
        ),
        flags=record.flags,
        recall=Figure(
            f"{100 * overlap.value:.2f}", f"@{record.recall.k}, {100 * overlap.low:.2f} to {100 * overlap.high:.2f}"
        ),
        stages=tuple(_latency(single, stage) for stage in stages),
        throughput=Figure(short(largest.queries_per_s), f"batch {largest.batch_size:,}") if largest else Figure("", ""),
        size=name_size(record.index.n_bytes),
        memory=name_size(costs.harness_peak_bytes + costs.worker_peak_bytes),
        hardware=Figure(
            record.hardware_class,
            f"{record.threads} thread{'' if record.threads == 1 else 's'}, {record.index.device}",
        ),
    )


def _latency(served: Served | None, stage: Stage) -> tuple[str, str, str]:
    """Median, 95th percentile and multiple of the reference; what was not measured is left empty."""
    latency = None if served is None else served.stages.get(stage)
    relative = None if served is None else served.relative.get(stage)
    p50_ms, p95_ms = (None, None) if latency is None else (latency.p50_ms, latency.p95_ms)
    return (
        short(p50_ms),
        f"p95 {short(p95_ms)}" if p95_ms is not None else "",
        f"{short(relative)} x" if relative else "",
    )
