"""The static page: a table of submissions per suite, built from bundles and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench.bundle import INDEX, Results, validate_bundle
from bench.errors import InputError, RoveError
from bench.metrics import HIT_CUTOFFS, find_metric
from bench.records import Estimate, Record
from bench.store import write_atomic
from bench.summary import AttackSummary, Summary, summarise
from bench.timing_records import Served, Stage, TimingRecord
from leaderboard.sizes import name_size

_TEMPLATES = Path(__file__).parent / "templates"
_COLUMNS = [f"hit@{k}" for k in HIT_CUTOFFS]
_Member = tuple[Results, Summary, Estimate]
_NOTHING = {"value": "", "interval": ""}
_STAGES: dict[Stage, str] = {
    "encode": "Encode",
    "search": "Search",
    "fetch": "Fetch",
    "rerank": "Rerank",
    "end_to_end": "End to end",
}


def build_site(places: Sequence[Path], output: Path) -> tuple[Path, list[tuple[str, str]]]:
    """Writes `index.html` and returns its path, with the bundles that were left out and why.

    Args:
        places: bundles, or folders in which bundles lie at any depth.
        output: the site's folder.

    Raises:
        InputError: there is no bundle at all.
    """
    folders = [folder for place in places for folder in _bundles_in(place)]
    if not folders:
        raise InputError(f"no bundle in {', '.join(map(str, places))}; `rove bundle RUN` makes one.")
    found, rejected = [], []
    for folder in folders:
        try:
            results = validate_bundle(folder)
            summary = summarise(results)
            if summary.overall is None:
                raise InputError(f"{folder} holds attacked cells alone; a row needs the whole suite.")
            found.append((results, summary, summary.overall))
        except RoveError as error:
            rejected.append((folder.name, str(error)))
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("index.html").render(suites=_suites(found), rejected=rejected)
    write_atomic(output / "index.html", page.encode())
    return output / "index.html", rejected


def _bundles_in(place: Path) -> list[Path]:
    return sorted(path.parent for path in place.rglob(INDEX))


def _suites(found: list[_Member]) -> list[dict[str, Any]]:
    """One entry per suite id: versions of a suite never mix."""
    by_id: dict[str, list[_Member]] = {}
    for member in found:
        by_id.setdefault(member[0].manifest.suite_id, []).append(member)
    return [_suite(members) for members in by_id.values()]


def _suite(members: list[_Member]) -> dict[str, Any]:
    ranked = [member for member in members if member[0].manifest.rankable]
    ranked.sort(key=lambda member: member[2].value)
    families = list(dict.fromkeys(name for _, summary, _ in ranked for name in summary.families))
    first = members[0][0]
    return {
        "label": first.manifest.suite,
        "draft": first.manifest.suite.endswith("-draft"),
        "n_cells": len(first.records),
        "n_images": max(record.data.n_images for record in first.records if record.data),
        "families": families,
        "rows": [_row(member, families, number) for number, member in enumerate(ranked)],
        "incomplete": [
            {"label": results.manifest.label, "missing": f"limited to {results.manifest.limit} images a collection"}
            for results, *_ in members
            if not results.manifest.rankable
        ],
    }


def _row(member: _Member, families: list[str], number: int) -> dict[str, Any]:
    results, summary, overall = member
    manifest = results.manifest
    both = summary.clean.get("both", {})
    worst = summary.shifts[summary.worst]
    return {
        "anchor": f"{manifest.suite}-{number + 1}",
        "label": manifest.label,
        "method": manifest.submission.method,
        "overall": {**_percent(overall), "bar": round(100 * min(1.0, max(0.0, overall.value)))},
        "families": {name: _percent(summary.families[name]) for name in families},
        "worst": {"name": summary.worst, "lost": f"{_percent(worst)['value']} ({_percent(worst)['interval']})"},
        "clean": [
            _percent(summary.clean.get("t2i", {}).get("hit@1")),
            _percent(summary.clean.get("i2t", {}).get("hit@1")),
            _figure(both.get("rsum"), 1),
        ],
        "parameters": "" if manifest.parameters is None else f"{manifest.parameters / 1e6:.1f} M",
        "image_ms": _milliseconds(summary.image_ms),
        "text_ms": _milliseconds(summary.text_ms),
        "hardware": f"{manifest.environment.cores} x {manifest.environment.processor} ({manifest.device})",
        "facts": _facts(results),
        "command": manifest.command,
        "columns": [f"{direction} {find_metric(name).name}" for direction in _directions(results) for name in _COLUMNS],
        "cells": [_cell(record, _directions(results)) for record in results.records],
        "attacks": [_attack(attack, direction) for attack in summary.attacks for direction in attack.attacked],
        "skipped": list(summary.skipped.items()),
        "timings": _timings(results.timings),
    }


def _timings(records: Sequence[TimingRecord]) -> dict[str, Any]:
    """A table in the order of galleries and indexes: its rows are nowhere ranked."""
    asked = {stage for record in records for served in record.served for stage in served.stages}
    stages = [stage for stage in _STAGES if stage in asked]
    ordered = sorted(records, key=lambda record: (record.gallery.n_items, record.index.factory, record.slug))
    return {"stages": [_STAGES[stage] for stage in stages], "rows": [_timing(record, stages) for record in ordered]}


def _timing(record: TimingRecord, stages: Sequence[Stage]) -> dict[str, Any]:
    overlap, largest = record.recall.overlap, max(record.served, key=lambda served: served.batch_size, default=None)
    single = next((served for served in record.served if served.batch_size == 1), None)
    search = [f"{name} {value}" for name, value in sorted(record.index.search.items())]
    return {
        "n_items": f"{record.gallery.n_items:,}",
        "gallery": f"{record.gallery.n_synthetic:,} synthetic, {record.gallery.collection}",
        "index": record.index.factory,
        "setting": ", ".join([*search, f"rerank {record.rerank_k}" if record.rerank_k else "no second stage"]),
        "recall": {
            "value": f"{100 * overlap.value:.2f}",
            "interval": f"@{record.recall.k}, {100 * overlap.low:.2f} to {100 * overlap.high:.2f}",
        },
        "stages": [_latency(single, stage) for stage in stages],
        "throughput": {
            "value": "" if largest is None else _short(largest.queries_per_s),
            "batch": "" if largest is None else f"batch {largest.batch_size:,}",
        },
        "size": name_size(record.index.n_bytes),
        "hardware": record.hardware_class,
        "threads": f"{record.threads} thread{'' if record.threads == 1 else 's'}, {record.index.device}",
        "flags": record.flags,
    }


def _latency(served: Served | None, stage: Stage) -> dict[str, str]:
    """Median, 95th percentile and multiple of the reference; what was not measured is left empty."""
    latency = None if served is None else served.stages.get(stage)
    relative = None if served is None else served.relative.get(stage)
    p50_ms, p95_ms = (None, None) if latency is None else (latency.p50_ms, latency.p95_ms)
    return {
        "p50": "" if p50_ms is None else _short(p50_ms),
        "p95": "" if p95_ms is None else f"p95 {_short(p95_ms)}",
        "relative": "" if relative is None else f"{_short(relative)} x",
    }


def _short(number: float) -> str:
    """Three digits, and no exponent however large."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def _attack(attack: AttackSummary, direction: str) -> dict[str, Any]:
    return {
        "cell": attack.cell,
        "direction": direction,
        "figures": [_percent(part.get(direction)) for part in (attack.clean, attack.attacked, attack.asr)],
        "verdict": attack.verdict,
    }


def _facts(results: Results) -> list[tuple[str, str]]:
    manifest, environment = results.manifest, results.manifest.environment
    submission = manifest.submission
    facts = {
        "title": submission.title,
        "summary": submission.summary,
        "base": submission.base,
        "authors": ", ".join(submission.authors),
        "license": submission.license,
        "url": str(submission.url or ""),
        "trained on": ", ".join(submission.trained_on),
        "weights sha256": manifest.weights_sha256,
        "suite id": manifest.suite_id,
        "seeds": ", ".join(str(seed) for seed in sorted({cell.seed for cell in manifest.cells})),
        "dtype": manifest.dtype,
        "batch size": str(manifest.batch_size),
        "isolation": manifest.isolation,
        "machine": f"{environment.platform}, {environment.cores} x {environment.processor}",
        "software": ", ".join(f"{name} {version}" for name, version in environment.versions.items()),
    }
    return [(name, value) for name, value in facts.items() if value]


def _cell(record: Record, directions: list[str]) -> dict[str, Any]:
    metrics: dict[str, dict[str, Estimate]] = {str(name): part for name, part in record.metrics.items()}
    figures = [_percent(metrics.get(direction, {}).get(name)) for direction in directions for name in _COLUMNS]
    return {"id": record.cell.id, "figures": figures, "flags": record.flags}


def _directions(results: Results) -> list[str]:
    found = {direction for record in results.records for direction in record.cell.directions}
    return [direction for direction in ("t2i", "i2t", "i2i") if direction in found]


def _percent(value: Estimate | None) -> dict[str, str]:
    return _figure(value, 100)


def _figure(value: Estimate | None, scale: float) -> dict[str, str]:
    if value is None:
        return _NOTHING
    return {
        "value": f"{scale * value.value:.1f}",
        "interval": f"{scale * value.low:.1f} to {scale * value.high:.1f}",
    }


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
