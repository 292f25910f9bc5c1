"""Entries: what the leaderboard says of one validated bundle, computed once and cached by the bundle's hash.

An entry holds estimates alone, so that a site of a thousand submissions is built without opening their evidence. Beside
it lie two small tables: resamples of the families' scores, from which orders get their intervals, and every image's
hits, from which two submissions are compared.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from pydantic import Field

from bench.bundle import Results, check_files, validate_bundle
from bench.errors import InputError
from bench.evidence import Evidence
from bench.locks import Lock, check_claims, check_data, find_lock
from bench.metrics import hit, mce, worst_decile_terms
from bench.records import (
    Cell,
    Check,
    CurvePoint,
    Estimate,
    Finite,
    Line,
    Record,
    RunManifest,
    Sha256,
    Strict,
    Text,
    digest_of,
    estimate,
    read_json,
)
from bench.stats import bootstrap, cluster_counts, cluster_sums, interval
from bench.store import cache_folder, read_sealed, seal, write_atomic
from bench.summary import (
    Candidates,
    Replicated,
    Scores,
    as_estimate,
    find_candidates,
    is_shifted,
    items_of,
    main_canvas,
    mean_held,
)
from bench.summary import Held as Held
from bench.timing_records import TimingRecord
from bench.types import Direction

VERSION = 2
N_RANK_RESAMPLES = 2_000
SHOWN_METRICS = ("hit@1", "hit@5", "hit@10", "ndcg@10", "mrr", "rsum")


class Score(Strict):
    """A clean or shifted cell."""

    cell: Cell
    family: Line
    r1: Estimate = Field(description="mean R@1 over the cell's directions, a fraction")
    lost: Estimate | None = Field(description="share of the clean canvas's R@1 that is lost; None of a clean cell")
    metrics: dict[Direction | Literal["both"], dict[Line, Estimate]] = Field(description="those of SHOWN_METRICS")
    flags: tuple[Line, ...]
    items: Line = Field(description="of what was fed: rows that differ in it were scored on other items")


class Attacked(Strict):
    """An attacked cell in one direction; R@1 and asr_hits@1 are fractions."""

    cell: Cell
    direction: Direction
    budget: Annotated[int, Field(ge=1)]
    unit: Line
    n_images: Annotated[int, Field(ge=1)]
    clean: Estimate
    attacked: Estimate
    asr: Estimate | None = Field(description="None where nothing was hit without the attack")
    verdict: Text
    checks: tuple[Check, ...]
    curve: tuple[CurvePoint, ...]


class Entry(Strict):
    """One row, and its page."""

    schema_version: Literal[1] = 1
    bundle_sha256: Sha256 = Field(description="of bundle.json, which names the hashes of all other files")
    manifest: RunManifest
    scores: tuple[Score, ...] = Field(description="clean and shifted cells, in the suite's order")
    attacks: tuple[Attacked, ...]
    skipped: dict[Line, Text] = Field(description="ids of cells that cannot be asked of it, with the reason")
    shifts: dict[Line, Held] = Field(description="by shift, averaged over its severities")
    families: dict[Line, Held] = Field(description="by family, in the suite's order; shifts of one weigh the same")
    overall: Held | None = Field(description="mean over the families; None where no cell is shifted")
    worst: Line = Field(description="the shift that costs most; empty if none")
    worst_decile: Estimate | None = Field(
        description="mean R@1 over the shifted cells, of the tenth of the queries that does worst"
    )
    mce: Estimate | None = Field(description="errors over those of the suite's reference submission; None without one")
    relative_mce: Estimate | None = Field(description="the same of what the shifts add to the clean error")
    image_ms: Finite | None = Field(description="median per image while scoring, batched")
    text_ms: Finite | None = Field(description="median per caption while scoring, batched")
    timings: tuple[TimingRecord, ...]
    candidates: Candidates | None = Field(default=None, description="candidate recall; None where there is one stage")
    unranked: Text = Field(default="", description="why it takes no part in the order; empty if it does")

    @property
    def label(self) -> str:
        """The submission's name, with the arguments that differ from its defaults."""
        return self.manifest.label

    @property
    def parameters(self) -> int | None:
        """As loaded, or else as its author states; None if nobody knows."""
        counted = self.manifest.parameters
        return self.manifest.submission.parameters.total if counted is None else counted

    @property
    def hardware(self) -> str:
        """What two runs must have in common for the milliseconds of their scoring to be compared."""
        environment = self.manifest.environment
        cores = f"{environment.cores} core{'' if environment.cores == 1 else 's'}"
        return f"{environment.processor or 'unnamed processor'}, {cores}, {self.manifest.device}"

    def clean(self, shift: Literal["clean", "clean_canvas"] = "clean_canvas") -> Score | None:
        """The clean cell of the collection that stands first in the suite; None if it was not scored."""
        first = self.manifest.cells[0].collection
        found = (score for score in self.scores if score.cell.is_clean and score.cell.shift == shift)
        return next((score for score in found if score.cell.collection == first), None)


@dataclass(frozen=True, eq=False)
class Resamples:
    """The first N_RANK_RESAMPLES resamples of the families' scores; row r is the same resample for every submission.

    Args:
        r1: mean R@1 by family, in the order of `Entry.families`, (n_families, N_RANK_RESAMPLES) float32.
        lost: the share lost, of the same shape.
        clean: R@1 on the clean canvas, (N_RANK_RESAMPLES,) float32.
    """

    r1: Float[np.ndarray, "n_families n_resamples"]
    lost: Float[np.ndarray, "n_families n_resamples"]
    clean: Float[np.ndarray, " n_resamples"]


@dataclass(frozen=True, eq=False)
class Hits:
    """Every image's hits at 1 in every cell and direction, packed: what two submissions are compared by.

    Args:
        names: cell slug and direction, such as `scenes-test-sketch-3/t2i`, in the order of the tables.
        items: of each, what tells whether two submissions were scored on the same items.
        n_images: of each, how long its piece of the tables is.
        hits: zlib over the pieces one after the other: hits at 1 of each image's queries, one byte each.
        queries: the same of how many queries each image has.
    """

    names: tuple[str, ...]
    items: tuple[str, ...]
    n_images: tuple[int, ...]
    hits: bytes
    queries: bytes


class Summarised(NamedTuple):
    """An entry with its tables."""

    entry: Entry
    resamples: Resamples
    hits: Hits


@dataclass(frozen=True)
class Reference:
    """A suite's reference submission, in whose errors mCE counts."""

    folder: Path
    bundle_sha256: str

    @cached_property
    def scores(self) -> Scores:
        """Of its bundle, which is validated for it: seconds that nobody waits for where all entries are cached."""
        return Scores(validate_bundle(self.folder))


def read_entry(folder: Path, reference: Reference | None = None) -> Summarised:
    """What the leaderboard says of a bundle: from the cache if this very bundle was summarised before, else computed.

    The files' hashes are checked either way, so that a cached entry stands for the files that are there.

    Args:
        folder: a bundle.
        reference: None leaves mCE out.

    Raises:
        InputError: the bundle is not valid; the message names file and field.
        IncompleteError: it lacks cells.
    """
    bundle_sha256 = check_files(folder)
    lock = find_lock(read_json(folder / "run.json", RunManifest).suite)
    cached = _cache_file(bundle_sha256, reference.bundle_sha256 if reference else "", lock)
    found = _from_cache(cached)
    if found is None:
        results = validate_bundle(folder)
        if lock:
            check_claims(lock, results.records)
        found = summarise_bundle(results, bundle_sha256, reference)
        write_atomic(cached, _pack(found))
    return found


def read_reference(folder: Path) -> Reference:
    """The reference submission's bundle; it is valid, for it is validated now or has an entry in the cache already."""
    reference = Reference(folder, check_files(folder))
    lock = find_lock(read_json(folder / "run.json", RunManifest).suite)
    if not _cache_file(reference.bundle_sha256, reference.bundle_sha256, lock).is_file():
        reference.scores  # noqa: B018
    return reference


def _cache_file(bundle_sha256: str, reference_sha256: str, lock: Lock | None) -> Path:
    """Where the entry of a bundle is kept, beside a reference ("" without one) and under a lock."""
    key = digest_of("entry", VERSION, bundle_sha256, reference_sha256, lock.model_dump() if lock else None)
    return cache_folder() / "entries" / key


def summarise_bundle(results: Results, bundle_sha256: str, reference: Reference | None = None) -> Summarised:
    """The entry of validated results, with its tables.

    Args:
        results: every metric of which follows from its evidence.
        bundle_sha256: of its index.
        reference: None leaves mCE out.
    """
    order = {cell: place for place, cell in enumerate(results.manifest.cells)}
    records = tuple(sorted(results.records, key=lambda record: order[record.cell]))
    scores = Scores(replace(results, records=records))
    canvas = main_canvas(scores)
    ratios = _mce(scores, reference.scores) if reference else (None, None)
    entry = Entry(
        bundle_sha256=bundle_sha256,
        manifest=results.manifest,
        scores=tuple(_score(record, scores) for record in records if record.data and not record.cell.is_attack),
        attacks=tuple(row for record in records for row in _attacked(record)),
        skipped={record.cell.id: record.reason[:2000] for record in records if record.status == "skipped"},
        shifts={name: held.estimate() for name, held in scores.shifts.items()},
        families={name: held.estimate() for name, held in scores.families.items()},
        overall=mean_held(list(scores.families.values())).estimate() if scores.families else None,
        worst=scores.worst,
        worst_decile=_worst_decile(results, records),
        mce=ratios[0],
        relative_mce=ratios[1],
        image_ms=canvas.timing.encode_images_ms if canvas else None,
        text_ms=canvas.timing.encode_texts_ms if canvas else None,
        timings=results.timings,
        candidates=find_candidates(results),
        unranked=_why_unranked(results),
    )
    return Summarised(entry, _resamples(scores, canvas), _hits(results, records))


def _why_unranked(results: Results) -> str:
    if results.manifest.obstacle:
        return results.manifest.obstacle
    if not any(is_shifted(record) for record in results.records):
        return "no shifted cell was scored"
    if any(record.cell.victim for record in results.records):
        return "its attacked items were made against another submission (--from)"
    lock = find_lock(results.manifest.suite)
    return check_data(lock, results.records) if lock else ""


def _score(record: Record, scores: Scores) -> Score:
    shown = {
        direction: {name: value for name, value in metrics.items() if name in SHOWN_METRICS}
        for direction, metrics in record.metrics.items()
    }
    return Score(
        cell=record.cell,
        family=record.family,
        r1=as_estimate(scores.of(record)),
        lost=as_estimate(scores.held([record]).lost) if is_shifted(record) else None,
        metrics=shown,
        flags=record.flags,
        items=items_of(record)[:16],
    )


def _attacked(record: Record) -> Iterable[Attacked]:
    report = record.attack
    if report is None or record.data is None:
        return
    for direction in record.cell.directions:
        yield Attacked(
            cell=record.cell,
            direction=direction,
            budget=report.budget,
            unit=report.unit,
            n_images=record.data.n_images,
            clean=report.clean[direction]["hit@1"],
            attacked=record.metrics[direction]["hit@1"],
            asr=report.asr[direction].get("asr_hits@1"),
            verdict=report.verdict,
            checks=report.checks,
            curve=report.curve,
        )


def _mce(scores: Scores, reference: Scores) -> tuple[Estimate | None, Estimate | None]:
    """mCE and relative mCE, over the shifts that both were scored on.

    The relative one is over those that cost the reference something (interval above 0): what another shift adds to
    its error is noise around 0, and no denominator.
    """
    theirs = {record.cell: record for record in reference.records}
    shared = {
        name: [record for record in records if record.cell in theirs]
        for family in scores.changes.values()
        for name, records in family.items()
    }
    shared = {name: records for name, records in shared.items() if records}
    costly = [name for name in shared if interval(reference.shifts[name].lost[1]).low > 0]
    errors = {name: _errors(scores, records) for name, records in shared.items()}
    reference_errors = {
        name: _errors(reference, [theirs[record.cell] for record in records]) for name, records in shared.items()
    }
    added = {name: errors[name] - _clean_errors(scores, shared[name]) for name in costly}
    reference_added = {
        name: reference_errors[name] - _clean_errors(reference, [theirs[record.cell] for record in shared[name]])
        for name in costly
    }
    return _ratio(errors, reference_errors), _ratio(added, reference_added)


def _errors(scores: Scores, records: Iterable[Record]) -> Float[np.ndarray, "n_resamples_plus_1 n_severities"]:
    """1 - R@1 of each cell; the value itself in the first row, resamples below."""
    return np.stack([_with_value(scores.of(record)) for record in records], axis=1)


def _clean_errors(scores: Scores, records: list[Record]) -> Float[np.ndarray, "n_resamples_plus_1 1"]:
    """The same of the clean canvas."""
    return _with_value(scores.of(scores.canvas_of(records[0]), records[0].cell.directions))[:, None]


def _with_value(part: Replicated) -> Float[np.ndarray, " n_resamples_plus_1"]:
    return 1.0 - np.concatenate([[part[0]], part[1]])


def _ratio(errors: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> Estimate | None:
    """None where the reference makes no error, or there is no shift."""
    if not errors:
        return None
    ratios = mce([*errors.values()], [reference[name] for name in errors])
    if np.isnan(ratios[0]) or np.isnan(ratios).mean() >= 0.5:
        return None
    ends = interval(ratios[1:])
    return estimate(ratios[0], ends.low, ends.high)


def _worst_decile(results: Results, records: Iterable[Record]) -> Estimate | None:
    """Over the queries of the collection that stands first, each with its mean hit over the shifted cells."""
    first = results.manifest.cells[0].collection
    shifted = [record for record in records if record.cell.collection == first and record.data and is_shifted(record)]
    evidence = [results.evidence(record) for record in shifted]
    sums, counts = [], []
    for direction in ("t2i", "i2t"):
        parts = [part[direction] for part in evidence if direction in part]
        if parts and shifted[0].data:
            n_images, terms = shifted[0].data.n_images, worst_decile_terms(_mean_hits(parts))
            sums.append(cluster_sums(terms[:, None], parts[0].images, n_images)[:, 0])
            counts.append(cluster_counts(parts[0].images, n_images))
    if not sums:
        return None
    both, totals = np.stack(sums, axis=1), np.stack(counts, axis=1)
    value = float(np.mean(both.sum(axis=0) / totals.sum(axis=0)))
    return as_estimate((value, bootstrap(both, totals).mean(axis=1)))


def _mean_hits(parts: list[Evidence]) -> Float[np.ndarray, " n_queries"]:
    """Of each query over several cells; cells order their queries alike, which evidence of one collection must."""
    if any(not np.array_equal(part.queries, parts[0].queries) for part in parts):
        raise InputError("cells of one collection ask different queries; expected the same in each.")
    return np.asarray(np.mean([hit(part.ranks, 1) for part in parts], axis=0))


def _resamples(scores: Scores, canvas: Record | None) -> Resamples:
    families = list(scores.families.values())
    kept = slice(N_RANK_RESAMPLES)
    nothing = np.zeros((0, N_RANK_RESAMPLES), dtype=np.float32)
    return Resamples(
        r1=np.stack([held.r1[1][kept] for held in families]).astype(np.float32) if families else nothing,
        lost=np.stack([held.lost[1][kept] for held in families]).astype(np.float32) if families else nothing,
        clean=(scores.of(canvas)[1][kept] if canvas else nothing.sum(axis=0)).astype(np.float32),
    )


def _hits(results: Results, records: Iterable[Record]) -> Hits:
    names, items, sizes, hits, queries = [], [], [], [], []
    for record in records:
        if record.data is None:
            continue
        n_images = record.data.n_images
        for direction, part in results.evidence(record).items():
            names.append(f"{record.cell.slug}/{direction}")
            items.append(items_of(record)[:16])
            sizes.append(n_images)
            hits.append(_as_bytes(cluster_sums(hit(part.ranks, 1)[:, None], part.images, n_images)[:, 0]))
            queries.append(_as_bytes(cluster_counts(part.images, n_images)))
    return Hits(
        tuple(names), tuple(items), tuple(sizes), zlib.compress(b"".join(hits)), zlib.compress(b"".join(queries))
    )


def _as_bytes(counts: Float[np.ndarray, " n_images"]) -> bytes:
    if counts.max(initial=0) > 255:
        raise InputError(f"an image has {counts.max():.0f} queries; expected at most 255.")
    return counts.astype(np.uint8).tobytes()


def _pack(summarised: Summarised) -> bytes:
    """All of it in one sealed npz file."""
    entry, resamples, hits = summarised
    buffer = io.BytesIO()
    np.savez(
        buffer,
        allow_pickle=False,
        entry=_to_array(zlib.compress(entry.model_dump_json().encode(), 1)),
        r1=resamples.r1,
        lost=resamples.lost,
        clean=resamples.clean,
        names=np.array(hits.names, dtype=np.str_),
        items=np.array(hits.items, dtype=np.str_),
        n_images=np.array(hits.n_images, dtype=np.int64),
        hits=_to_array(hits.hits),
        queries=_to_array(hits.queries),
    )
    return seal(buffer.getvalue())


def _to_array(data: bytes) -> UInt8[np.ndarray, " n_bytes"]:
    return np.frombuffer(data, dtype=np.uint8)


def _from_cache(path: Path) -> Summarised | None:
    """None if there is none, or it is damaged: then it is computed again."""
    data = read_sealed(path)
    if data is None:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as tables:
        return Summarised(
            Entry.model_validate_json(zlib.decompress(tables["entry"].tobytes())),
            Resamples(tables["r1"], tables["lost"], tables["clean"]),
            Hits(
                names=tuple(tables["names"].tolist()),
                items=tuple(tables["items"].tolist()),
                n_images=tuple(tables["n_images"].tolist()),
                hits=tables["hits"].tobytes(),
                queries=tables["queries"].tobytes(),
            ),
        )
