"""The trade-off of recall and latency: search alone, one query at a time, for several indexes and their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from time import perf_counter_ns

import numpy as np

from bench.environment import describe_environment
from bench.galleries import Say, Stand, find_index, measure_recall
from bench.records import Estimate
from bench.retrieval.costs import hardware_class
from bench.retrieval.index import IndexSpec, check_index, open_index, parse_index
from bench.retrieval.latency import References, latency, measure, pin_threads, relative
from bench.stats import pareto_front
from bench.submission import Submission
from bench.timing import TimingSettings, make_stand
from bench.timing_records import Point, Stage, Sweep

MAX_FLAT_ITEMS = 1_000_000
Searches = Sequence[Mapping[str, int]]


def sweep_indexes(
    submission: Submission, tried: Mapping[str, Searches] | None, settings: TimingSettings, say: Say
) -> Sweep:
    """Every index under every setting of its parameters, with those that no other beats in both marked `best`.

    Args:
        tried: settings to try, by faiss's name of the index; None for `default_sweep` of the gallery.

    Raises:
        SubmissionError: the submission failed.
        InputError: an index fits neither memory nor disk.
        UsageError: an index or a parameter does not exist.
    """
    for factory in tried or ():
        check_index(factory, {}, settings.index_device)
    environment = describe_environment(settings.worker.device, submission.manifest.requires)
    with pin_threads(settings.threads) as threads:
        stand = make_stand(submission, settings, environment, False, say)
        references = References(threads)
        tried = tried or default_sweep(stand.gallery.n_items, stand.gallery.dim, settings.index_device)
        points = [
            point
            for factory, searches in tried.items()
            for point in _sweep_one(stand, factory, searches, references, settings, say)
        ]
    return Sweep(
        label=submission.label,
        fingerprint=submission.fingerprint,
        hardware_class=hardware_class(environment, settings.index_device, threads),
        threads=threads,
        device=settings.index_device,
        k=settings.k,
        gallery=stand.facts,
        points=tuple(_mark_best(points)),
        references=references.as_records(),
        flags=("noisy",) if references.noisy else (),
        command=settings.command,
        environment=environment,
    )


def default_sweep(n_items: int, dim: int, device: str = "cpu") -> dict[str, Searches]:
    """Exact search, a graph, inverted lists of product codes, and the same codes refined, with lists and without.

    Graphs and exact search stop at a million items: with two cores a larger graph takes hours to build, and float32
    vectors of more items do not fit most memories. A GPU has neither graphs nor refinement.
    """
    n_lists = max(16, 1 << round(np.log2(n_items**0.5)))
    probes = [count for count in (1, 4, 16, 64, 256) if count <= n_lists]
    listed: Searches = [{"nprobe": count} for count in probes]
    small: dict[str, Searches] = {"Flat": [{}]} if n_items <= MAX_FLAT_ITEMS else {}
    if device != "cpu":
        return {**small, f"IVF{n_lists},Flat": listed, f"IVF{n_lists},PQ{dim // 8}": listed}
    if n_items <= MAX_FLAT_ITEMS:
        small["HNSW32"] = [{"ef": ef} for ef in (16, 32, 64, 128, 256, 512)]
    codes = f"PQ{dim // 4}x4fs,Refine(SQfp16)"
    return {
        **small,
        f"IVF{n_lists},PQ{dim // 8}": listed,
        f"IVF{n_lists},{codes}": [{**search, "k_factor": factor} for search in listed for factor in (20, 200)],
        codes: [{"k_factor": factor} for factor in (20, 60, 200)],
    }


def _sweep_one(
    stand: Stand, factory: str, searches: Searches, references: References, settings: TimingSettings, say: Say
) -> list[Point]:
    """One index under all its settings, which are asked in turns."""
    specs = _specs(factory, stand.gallery.dim, settings.k, searches)
    folder, built, exact = find_index(stand, specs[0], settings.k, settings.rebuild, say)
    searcher = open_index(folder, specs[0].search, settings.index_device)
    searcher.warm()
    vectors = stand.queries.vectors
    rows = cycle(range(len(vectors)))

    def ask(spec: IndexSpec) -> dict[Stage, int]:
        searcher.set_parameters(spec.search)
        row = next(rows)
        started = perf_counter_ns()
        searcher.search(vectors[row : row + 1], settings.k)
        return {"search": perf_counter_ns() - started}

    def overlap(spec: IndexSpec) -> Estimate:
        searcher.set_parameters(spec.search)
        return measure_recall(searcher.search(vectors, settings.k)[1], exact, stand).overlap

    say(f"timing {factory}")
    measured = measure({spec.id: partial(ask, spec) for spec in specs}, settings.n_calls, references)
    return [
        Point(
            factory=factory,
            search=dict(spec.search),
            n_bytes=built.n_bytes,
            build_s=built.train_s + built.add_s,
            overlap=overlap(spec),
            latency=latency(measured[spec.id].stages["search"]),
            relative=relative(measured[spec.id], "search"),
            best=False,
        )
        for spec in specs
    ]


def _specs(factory: str, dim: int, k: int, searches: Searches) -> list[IndexSpec]:
    """The index under every setting, each once; parameters that it does not have are for the other indexes."""
    known = parse_index(factory, dim, k).search
    own = [{name: value for name, value in search.items() if name in known} for search in searches]
    specs = [parse_index(factory, dim, k, **search) for search in own]
    return list({spec.id: spec for spec in specs}.values())


def _mark_best(points: Sequence[Point]) -> list[Point]:
    costs = np.array([point.latency.p50_ms or 0.0 for point in points])
    front = pareto_front(costs, np.array([point.overlap.value for point in points]))
    return [point.model_copy(update={"best": bool(best)}) for point, best in zip(points, front, strict=True)]
