"""`rove time`: what it costs to serve a submission, beside another one, or under every setting of its index."""

from __future__ import annotations

import os
import re
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.console import (
    DataDirs,
    Json,
    command_line,
    keep_offline,
    parse_pairs,
    print_data,
    print_error,
    print_json,
    print_note,
    print_table,
)
from bench.cli.submitting import (
    BatchSize,
    Device,
    Dtype,
    IsolationMode,
    Memory,
    ModelArgs,
    Offline,
    Timeout,
    worker_settings,
)
from bench.errors import UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from bench.records import Estimate
    from bench.submission import Submission
    from bench.timing import TimingSettings
    from bench.timing_records import Comparison, Costs, Gallery, Latency, Sweep, TimingRecord

_SUFFIXES = {"": 1, "k": 1_000, "m": 1_000_000}


def time(
    submission: Annotated[
        str | None, typer.Argument(help="A name, a folder, or path.py:load.", metavar="SUBMISSION")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option("--compare", help="Two submissions to time in turns.", metavar="A B")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Search alone, for every --index under every setting; draws the trade-off.")
    ] = False,
    dataset: Annotated[str, typer.Option(help="Whose images are searched and whose captions ask.")] = "scenes/test",
    data_dir: DataDirs = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Only the first images.")] = None,
    gallery: Annotated[
        str | None,
        typer.Option(help="Items to search, such as 100k or 10M: the data set's images, and synthetic vectors behind."),
    ] = None,
    index: Annotated[
        list[str] | None,
        typer.Option(
            help="faiss's name of an index, such as 'IVF4096,PQ64'; default: the manifest's. Repeatable: --sweep."
        ),
    ] = None,
    nprobe: Annotated[str | None, typer.Option(help="Lists to visit (IVF); several with --sweep: 8,16,32.")] = None,
    ef: Annotated[str | None, typer.Option(help="Breadth of the search (HNSW); several with --sweep.")] = None,
    k_factor: Annotated[
        str | None, typer.Option("--k-factor", help="Candidates to refine, in multiples of k; several with --sweep.")
    ] = None,
    index_device: Annotated[str, typer.Option("--index-device", help="cpu or cuda: where the index lies.")] = "cpu",
    k: Annotated[int, typer.Option("-k", min=1, help="Items in an answer.")] = 10,
    rerank_k: Annotated[
        int | None,
        typer.Option("--rerank-k", min=0, help="Items that a second stage orders; default: the manifest's, or 20."),
    ] = None,
    calls: Annotated[
        int, typer.Option(min=30, help="Timed calls: p50 from 30, p90 from 64, p95 from 130, p99 from 662.")
    ] = 130,
    batch_size: BatchSize = 32,
    threads: Annotated[int | None, typer.Option(min=1, help="Cores that are used; default all.")] = None,
    model_arg: ModelArgs = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of synthetic vectors and queries.")] = 0,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build the index again, if it is cached.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the record; default below runs/.")
    ] = None,
    offline: Offline = False,
    timeout: Timeout = 600.0,
    isolation: IsolationMode = "auto",
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Time a submission as it is served: encode, search, fetch, rerank, over galleries of up to ten million items."""
    keep_offline(offline)
    # Read when OpenMP is loaded: threads that spin between products would slow down the other process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from bench.submission import find_submission
    from bench.timing import TimingSettings

    names = _submissions(submission, compare, sweep)
    given = {
        "nprobe": _numbers("--nprobe", nprobe),
        "ef": _numbers("--ef", ef),
        "k_factor": _numbers("--k-factor", k_factor),
    }
    searches = _combinations(given)
    if not sweep and (len(searches) > 1 or len(index or []) > 1):
        raise UsageError("several indexes or settings were given; expected one, or --sweep to try them all.")
    if sweep and not index and any(given.values()):
        raise UsageError("--nprobe, --ef and --k-factor belong to an --index; without one, --sweep chooses both.")
    settings = TimingSettings(
        worker=worker_settings(device, dtype, offline, timeout, isolation, memory),
        dataset=dataset,
        data_dirs=parse_pairs(data_dir or [], "--data-dir"),
        limit=limit,
        n_items=None if gallery is None else parse_count(gallery),
        factory=index[0] if index else None,
        search=searches[0],
        index_device=index_device,
        k=k,
        rerank_k=rerank_k,
        batch_size=batch_size,
        n_calls=calls,
        threads=threads,
        seed=seed,
        rebuild=rebuild,
        command=command_line(),
    )
    found = [find_submission(name, parse_pairs(model_arg or [], "--model-arg")) for name in names]
    try:
        if sweep:
            _sweep(found[0], dict.fromkeys(index, searches) if index else None, settings, output, as_json)
        elif compare:
            _compare(found, settings, output, as_json)
        else:
            _time(found[0], settings, output, as_json)
    except KeyboardInterrupt:
        print_error("interrupted; no record was written. What was encoded and built is kept for the same command.")
        raise typer.Exit(130) from None


def parse_count(text: str) -> int:
    """A number of items: 1000000, 1_000_000, 100k or 10M.

    Raises:
        UsageError: it is something else.
    """
    match = re.fullmatch(r"(\d[\d_]*)([kKmM]?)", text)
    if match is None:
        raise UsageError(f"--gallery got '{text}'; expected a number of items, such as 100000, 100k or 10M.")
    return int(match[1]) * _SUFFIXES[match[2].lower()]


def register(app: typer.Typer) -> None:
    """Adds this module's command."""
    app.command()(time)


def _submissions(submission: str | None, compare: tuple[str, str] | None, sweep: bool) -> list[str]:
    if (submission is None) == (compare is None) or (sweep and compare):
        raise UsageError("expected one SUBMISSION, with --sweep or without, or --compare A B alone.")
    return [submission] if submission is not None else list(compare or ())


def _numbers(flag: str, text: str | None) -> list[int]:
    parts = [] if text is None else text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"{flag} got '{text}'; expected a positive number, or several with commas between.")
    return [int(part) for part in parts]


def _combinations(given: dict[str, list[int]]) -> list[dict[str, int]]:
    """Every setting that the flags name; one empty setting if they name none."""
    named = {name: numbers for name, numbers in given.items() if numbers}
    return [dict(zip(named, numbers, strict=True)) for numbers in product(*named.values())]


def _folder(submission: Submission, output: Path | None, kind: str) -> Path:
    from bench.timing_records import usual_folder

    return output or Path("runs") / usual_folder(submission.label, submission.fingerprint) / kind


def _time(submission: Submission, settings: TimingSettings, output: Path | None, as_json: bool) -> None:
    from bench.timing import time_submission

    record = time_submission(submission, settings, print_note)
    path = _folder(submission, output, "timings") / f"{record.slug}.json"
    _write(record, path)
    _print_timing(record)
    _finish(record, path, as_json)


def _compare(found: list[Submission], settings: TimingSettings, output: Path | None, as_json: bool) -> None:
    from bench.timing import compare_submissions

    comparison = compare_submissions(found[0], found[1], settings, print_note)
    name = f"{comparison.a.label}-{comparison.b.label}-{comparison.a.slug}.json"
    path = (output or Path("runs") / "comparisons") / name
    _write(comparison, path)
    _print_timing(comparison.a)
    _print_timing(comparison.b)
    _print_ratios(comparison)
    _finish(comparison, path, as_json)


def _sweep(
    submission: Submission,
    tried: dict[str, list[dict[str, int]]] | None,
    settings: TimingSettings,
    output: Path | None,
    as_json: bool,
) -> None:
    from bench.sweeping import sweep_indexes
    from leaderboard.tradeoff import write_tradeoff

    result = sweep_indexes(submission, tried, settings, print_note)
    folder = _folder(submission, output, "sweeps") / str(result.gallery.n_items)
    _write(result, folder / "sweep.json")
    picture, chart = write_tradeoff(result, folder)
    _print_sweep(result)
    print_note(f"drawn as {picture} and {chart.name}")
    _finish(result, folder / "sweep.json", as_json)


def _write(record: BaseModel, path: Path) -> None:
    from bench.records import to_json
    from bench.store import write_with_proof

    write_with_proof(path, to_json(record))


def _finish(record: BaseModel, path: Path, as_json: bool) -> None:
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        print_data(str(path))


def _print_timing(record: TimingRecord) -> None:
    """A timing as tables: latency by stage and batch, what the index loses, what everything weighs."""
    rows = []
    for served in record.served:
        for stage, found in served.stages.items():
            rows.append((stage, str(served.batch_size), *_percentiles(found), f"{served.relative[stage]:.3g}"))
    for kind, encodings in (("encode", record.encodings), ("echo", record.echo)):
        for part in encodings:
            name = f"{kind} {part.tower}"
            rows.append((name, str(part.batch_size), *_percentiles(part.latency), f"{part.relative:.3g}"))
    columns = ["stage", "batch", "calls", "p50 ms", "p90", "p95", "p99", "x reference"]
    print_table(record.label, columns, rows)
    recall, index, costs = record.recall, record.index, record.costs
    facts = [
        ("hardware", record.hardware_class),
        ("gallery", _gallery(record.gallery)),
        ("index", " ".join([index.factory, *(f"{name}={value}" for name, value in index.search.items())])),
        ("size, built in", f"{_bytes(index.n_bytes)}, {index.train_s + index.add_s:.0f} s"),
        (f"exact {recall.k} best found", f"{_percent(recall.overlap)} of {recall.n_queries} captions"),
        (f"R@{recall.k}, exactly searched", f"{_percent(recall.hits)}, {_percent(recall.hits_exact)}"),
        ("queries a second", ", ".join(f"{s.queries_per_s:.0f} in batches of {s.batch_size}" for s in record.served)),
        ("first query", ", ".join(f"{stage} {ms:.0f} ms" for stage, ms in record.cold_ms.items())),
        ("parameters", "" if costs.parameters is None else f"{costs.parameters:,}"),
        ("FLOPs", _flops(costs)),
        ("kept of an image", f"{_bytes(costs.embedding_bytes)}, and {_bytes(costs.token_bytes)} of tokens"),
        ("memory", f"submission {_bytes(costs.worker_peak_bytes)}, harness {_bytes(costs.harness_peak_bytes)}"),
        ("flags", ", ".join(record.flags)),
    ]
    print_table("", ["", ""], [fact for fact in facts if fact[1]])


def _print_ratios(comparison: Comparison) -> None:
    rows = [
        (row.stage, row.batch_size, f"{row.ratio.value:.3f}", f"{row.ratio.low:.3f} to {row.ratio.high:.3f}")
        for row in comparison.ratios
    ]
    print_note(f"{comparison.b.label} takes this many times as long as {comparison.a.label}:")
    print_table("", ["stage", "batch", "ratio", "95 % interval"], rows)


def _print_sweep(result: Sweep) -> None:
    for factory, group in groupby(result.points, key=lambda point: point.factory):
        points = list(group)
        rows = [
            (
                " ".join(f"{name}={value}" for name, value in point.search.items()) or "exact",
                _percent(point.overlap),
                *_percentiles(point.latency)[1:4:2],
                f"{point.relative:.3g}",
                "front" if point.best else "",
            )
            for point in points
        ]
        title = f"{factory}: {_bytes(points[0].n_bytes)}, built in {points[0].build_s:.0f} s"
        columns = ["search", f"recall@{result.k}", "p50 ms", "p95", "x sum", ""]
        print_table(title, columns, rows)
    print_note(f"search alone, on {result.hardware_class}. {', '.join(result.flags)}")


def _percentiles(found: Latency) -> tuple[str, ...]:
    values = (found.p50_ms, found.p90_ms, found.p95_ms, found.p99_ms)
    return (str(found.n_calls), *("" if value is None else f"{value:.3g}" for value in values))


def _percent(value: Estimate) -> str:
    return f"{100 * value.value:.2f} % [{100 * value.low:.2f}, {100 * value.high:.2f}]"


def _gallery(gallery: Gallery) -> str:
    counts = f"{gallery.n_real:,} images of {gallery.collection}, {gallery.n_synthetic:,} synthetic vectors"
    if gallery.nearest_real is None or gallery.nearest_synthetic is None:
        return counts
    return f"{counts}; nearest to a caption: {gallery.nearest_real:.2f}, {gallery.nearest_synthetic:.2f}"


def _flops(costs: Costs) -> str:
    counts = {"image": costs.flops_per_image, "text": costs.flops_per_text, "pair": costs.flops_per_pair}
    counted = [
        f"{count / 1e9:.3g} G a{'n' if name == 'image' else ''} {name}" for name, count in counts.items() if count
    ]
    return ", ".join(counted) or "not counted"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
