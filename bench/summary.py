"""A run's results in a few figures: how it holds up per shift, per family and overall, each with its interval.

What is lost is measured against the clean canvas of the same collection (or of the cell's baseline), on R@1 averaged
over both directions, with the same resamples of images on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import Field

from bench.bundle import Results, read_results
from bench.errors import IncompleteError, InputError, UsageError
from bench.metrics import relative_drop
from bench.records import Count, Estimate, Line, Record, Strict, estimate
from bench.scoring import CELLS_AT_ONCE, CROSS_MODAL, Recalls, mean_recall, recall_by_direction
from bench.stats import compare as compare_replicates
from bench.stats import holm, interval
from bench.types import Direction

Replicated = tuple[float, Float[np.ndarray, " n_resamples"]]


class Held(Strict):
    """How a submission holds up under one shift, one family of shifts, or all of them."""

    r1: Estimate = Field(description="mean R@1 of the shifted cells, a fraction")
    lost: Estimate = Field(description="share of the clean canvas's R@1 that is lost (MMI)")


class Candidates(Strict):
    """Candidate recall: how often the pool that a second stage orders has a right item at all, as fractions.

    Ordering the k best items anew moves none of them past place k, so this is R@k of the final ranking at the size of
    the pool, and no second stage over that pool can have a higher R@1.
    """

    k: Count = Field(description="items of each query in the pool")
    clean: Estimate | None = Field(description="mean of directions on the clean canvas; None without shifted cells")
    shifted: Estimate | None = Field(description="mean over the families of shifts; None without shifted cells")
    lost: Estimate | None = Field(description="share of the clean canvas's that is lost, mean over the families")
    cells: dict[Line, dict[Direction, Estimate]] = Field(description="by cell and direction, attacked cells included")


class HeldReplicated(NamedTuple):
    """The same, with its resamples."""

    r1: Replicated
    lost: Replicated

    def estimate(self) -> Held:
        """With intervals in place of the resamples."""
        return Held(r1=as_estimate(self.r1), lost=as_estimate(self.lost))


@dataclass(frozen=True)
class AttackSummary:
    """What one attacked cell comes to: R@1 without and with the attack, and `asr_hits@1`, by direction, fractions."""

    cell: str
    clean: dict[str, Estimate]
    attacked: dict[str, Estimate]
    asr: dict[str, Estimate]
    verdict: str


@dataclass(frozen=True)
class Summary:
    """What a run comes to.

    Args:
        clean: metrics of the clean canvas cell that stands first, by direction.
        shifts: by shift, averaged over its severities.
        families: by family, shifts of a family weighing the same.
        overall: the mean over families; None of a run that has attacked cells alone.
        worst: name of the shift that costs most.
        attacks: the attacked cells, in the suite's order; they are not part of the means.
        candidates: what the first stage leaves to the second; None where there is one stage.
        skipped: cells that cannot be asked of the submission, with the reason.
        image_ms: median encoding time per image, batched, on the clean canvas.
        text_ms: the same per caption.
    """

    label: str
    suite: str
    parameters: int | None
    clean: dict[str, dict[str, Estimate]]
    shifts: dict[str, Held]
    families: dict[str, Held]
    overall: Held | None
    worst: str
    attacks: tuple[AttackSummary, ...]
    candidates: Candidates | None
    skipped: dict[str, str]
    image_ms: float | None
    text_ms: float | None

    def as_dict(self) -> dict[str, Any]:
        """As plain data, ready for JSON."""
        facts = asdict(self)
        for name in ("clean", "shifts", "families", "overall", "attacks", "candidates"):
            facts[name] = _plain(facts[name])
        return facts


@dataclass(frozen=True)
class Difference:
    """Submission A minus submission B: mean R@1, as a fraction, paired over images.

    Args:
        kind: of one cell, or of the mean over a family of shifts, or over the families.
        name: the cell's id, or the family's.
        a: of submission A; `b` is that of B.
        b: see `a`.
        difference: with its 95 % interval.
        p_holm: corrected over the cells, or over the families.
        equivalent: whether the interval lies inside the margin.
    """

    kind: Literal["overall", "family", "cell"]
    name: str
    a: float
    b: float
    difference: Estimate
    p_holm: float
    equivalent: bool


class Scores:
    """Mean R@1 of every cell of a run, with its resamples; of another cutoff, R@k in its place throughout.

    Args:
        results: of a run or bundle.
        slugs: of the cells that count; None for all.
        k: the cutoff.
    """

    def __init__(self, results: Results, slugs: Collection[str] | None = None, k: int = 1) -> None:
        scored = (record for record in results.records if record.status == "ok")
        self.records = [record for record in scored if slugs is None or record.cell.slug in slugs]
        self._results, self._k = results, k
        self._known: dict[str, Recalls] = {}

    def of(self, record: Record, directions: tuple[Direction, ...] = ()) -> Replicated:
        """Mean R@1 over those of `directions` that the record has; over all that it has if none are named."""
        found = self.by_direction(record)
        return mean_recall({name: part for name, part in found.items() if name in (directions or found)})

    def by_direction(self, record: Record) -> Recalls:
        """R@1 of each direction; other cells of the same images are resampled with it."""
        slug = record.cell.slug
        if slug not in self._known:
            alike = (one for one in self.records if one.n_images == record.n_images and one is not record)
            unknown = (one for one in alike if one.cell.slug not in self._known)
            batch = [record, *islice(unknown, CELLS_AT_ONCE - 1)]
            evidence = [self._results.evidence(one) for one in batch]
            found = recall_by_direction(evidence, record.n_images, self._k)
            self._known |= zip((one.cell.slug for one in batch), found, strict=True)
        return self._known[slug]

    @cached_property
    def bases(self) -> set[str]:
        """The collections that shifted cells are measured against."""
        return {r.cell.baseline or r.cell.collection for r in self.records if is_shifted(r)}

    @cached_property
    def canvases(self) -> dict[str, Record]:
        return {r.cell.collection: r for r in self.records if r.cell.shift == "clean_canvas" and not r.cell.baseline}

    @cached_property
    def changes(self) -> dict[str, dict[str, list[Record]]]:
        """The shifted cells by family and by what is changed, in the order of the records."""
        changes: dict[str, dict[str, list[Record]]] = {}
        for record in self.records:
            if is_shifted(record):
                changes.setdefault(record.family, {}).setdefault(self._name(record), []).append(record)
        return changes

    def canvas_of(self, record: Record) -> Record:
        """The clean canvas that a shifted cell is measured against.

        Raises:
            IncompleteError: there is none.
        """
        cell = record.cell
        canvas = self.canvases.get(cell.baseline or cell.collection)
        if canvas is None:
            raise IncompleteError(f"{self._results.folder} lacks the clean canvas that {cell.id} is measured against.")
        return canvas

    def held(self, records: Sequence[Record]) -> HeldReplicated:
        """R@1 on average over some cells of one collection, and the share of the clean canvas's that is lost.

        Both sides are averaged over the directions of these cells: caption distractors touch `i2t` alone.
        """
        canvas = self.canvas_of(records[0])
        clean, cleans = self.of(canvas, records[0].cell.directions)
        value, replicates = _mean([self.of(record) for record in records])
        lost = float(relative_drop(np.array(clean), np.array([value])))
        if math.isnan(lost):
            what = f"R@{self._k} on {canvas.cell.id}"
            raise InputError(f"{self._results.folder}: {what} is 0; there is nothing to lose.")
        return HeldReplicated((value, replicates), (lost, relative_drop(cleans, replicates[:, None])))

    @cached_property
    def shifts(self) -> dict[str, HeldReplicated]:
        """By shift, over its severities."""
        return {name: self.held(records) for family in self.changes.values() for name, records in family.items()}

    @cached_property
    def families(self) -> dict[str, HeldReplicated]:
        """By family, shifts of a family weighing the same."""
        return {name: mean_held([self.shifts[shift] for shift in shifts]) for name, shifts in self.changes.items()}

    @cached_property
    def worst(self) -> str:
        """Name of the shift that costs most; empty if there is none."""
        return max(self.shifts, key=lambda name: self.shifts[name].lost[0], default="")

    def _name(self, record: Record) -> str:
        """The change, with its collection where the suite has several that are shifted."""
        cell = record.cell
        return cell.change if len(self.bases) == 1 or cell.baseline else f"{cell.collection} {cell.change}"


def summarise_run(folder: Path) -> Summary:
    """The summary of a run's folder or a bundle.

    Raises:
        InputError: its files are damaged.
        IncompleteError: a clean cell is missing.
    """
    return summarise(read_results(folder))


def summarise(results: Results) -> Summary:
    """The summary of results that were read before."""
    scores = Scores(results)
    attacks = tuple(_summarise_attack(record) for record in scores.records if record.attack)
    if not scores.changes and not attacks:
        raise IncompleteError(f"{results.folder} has no shifted cell yet; run it to the end.")
    canvas = main_canvas(scores)
    return Summary(
        label=results.manifest.label,
        suite=results.manifest.suite,
        parameters=results.manifest.parameters,
        clean={str(direction): metrics for direction, metrics in canvas.metrics.items()} if canvas else {},
        shifts={name: held.estimate() for name, held in scores.shifts.items()},
        families={name: held.estimate() for name, held in scores.families.items()},
        overall=mean_held(list(scores.families.values())).estimate() if scores.families else None,
        worst=scores.worst,
        attacks=attacks,
        candidates=find_candidates(results),
        skipped={record.cell.id: record.reason for record in results.records if record.status == "skipped"},
        image_ms=canvas.timing.encode_images_ms if canvas else None,
        text_ms=canvas.timing.encode_texts_ms if canvas else None,
    )


def find_candidates(results: Results) -> Candidates | None:
    """The candidate recall of results that were read before; None where there is no second stage.

    It is read off the final ranks: a positive inside the pool has a rank of at most k, and one outside never has, even
    where it is level with the pool's edge (see `bench.retrieval.rerank`). The share of the pools that were really
    ordered is so counted; the first stage's own pessimistic R@k would leave out the positives that were level with the
    edge, and in.

    Raises:
        InputError: its files are damaged.
        IncompleteError: a clean cell is missing.
    """
    k = results.manifest.rerank_k
    if k is None:
        return None
    reranked = {record.cell.slug for record in results.records if set(record.cell.directions) & set(CROSS_MODAL)}
    scores = Scores(results, reranked, k)
    canvas = main_canvas(scores)
    held = mean_held(list(scores.families.values())) if scores.families else None
    return Candidates(
        k=k,
        clean=as_estimate(scores.of(canvas)) if canvas else None,
        shifted=as_estimate(held.r1) if held else None,
        lost=as_estimate(held.lost) if held else None,
        cells={record.cell.id: _cross_modal(scores.by_direction(record)) for record in scores.records},
    )


def _cross_modal(found: Recalls) -> dict[Direction, Estimate]:
    """Of those directions that have a second stage."""
    return {name: as_estimate(part) for name, part in found.items() if name in CROSS_MODAL}


@dataclass(frozen=True)
class Transfer:
    """One attack, made against one submission and scored on another (or the same), in one direction."""

    attack: str
    direction: str
    victim: str
    label: str
    asr: Estimate
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """As plain data, ready for JSON."""
        return {**asdict(self), "asr": self.asr.model_dump()}


def transfer_matrix(runs: Sequence[Results]) -> list[Transfer]:
    """Every attacked cell of the runs, so that the same attack's rows stand together, by victim and submission.

    Raises:
        UsageError: no run has an attacked cell.
    """
    rows = [
        Transfer(
            attack=record.cell.model_copy(update={"victim": ""}).id,
            direction=direction,
            victim=record.attack.victim,
            label=results.manifest.label,
            asr=figures["asr_hits@1"],
            verdict=record.attack.verdict,
        )
        for results in runs
        for record in results.records
        if record.attack
        for direction, figures in record.attack.asr.items()
        if "asr_hits@1" in figures
    ]
    if not rows:
        raise UsageError("none of these runs has an attacked cell with a clean hit; attacks are cells of a suite.")
    return sorted(rows, key=lambda row: (row.attack, row.direction, row.victim, row.label))


def compare(a: Results, b: Results, margin: float) -> list[Difference]:
    """A minus B overall, by family of shifts, and on every cell that both have; the means are over these cells alone.

    Args:
        a: the first run or bundle.
        b: the second.
        margin: what counts as equal, as a fraction of R@1.

    Raises:
        UsageError: they have no cell in common, or one of them was not scored on the same items.
    """
    shared = {record.cell.slug for record in Scores(a).records} & {record.cell.slug for record in Scores(b).records}
    if not shared:
        raise UsageError(f"{a.folder} and {b.folder} have no cell in common; run both on the same suite.")
    scores_a, scores_b = Scores(a, shared), Scores(b, shared)
    others = {record.cell.slug: record for record in scores_b.records}
    cells = {}
    for ours in scores_a.records:
        theirs = others[ours.cell.slug]
        if items_of(ours) != items_of(theirs):
            raise UsageError(f"{ours.cell.id} was scored on other items in {b.folder}; run both on the same data.")
        cells[ours.cell.id] = scores_a.of(ours), scores_b.of(theirs)
    means_a, means_b = _family_means(scores_a), _family_means(scores_b)
    families = {name: (mean, means_b[name]) for name, mean in means_a.items()}
    overall = {"mean of the families": (_mean([*means_a.values()]), _mean([*means_b.values()]))} if families else {}
    return [
        *_differences("overall", overall, margin),
        *_differences("family", families, margin),
        *_differences("cell", cells, margin),
    ]


def _family_means(scores: Scores) -> dict[str, Replicated]:
    """Mean R@1 by family: over its shifts, each over its cells."""
    return {
        family: _mean([_mean([scores.of(record) for record in records]) for records in shifts.values()])
        for family, shifts in scores.changes.items()
    }


def _differences(
    kind: Literal["overall", "family", "cell"], pairs: Mapping[str, tuple[Replicated, Replicated]], margin: float
) -> list[Difference]:
    """Of every pair, with Holm's correction over them."""
    found = [compare_replicates(ours[0], theirs[0], ours[1], theirs[1]) for ours, theirs in pairs.values()]
    adjusted = holm(np.array([difference.p_value for difference in found]))
    return [
        Difference(
            kind=kind,
            name=name,
            a=ours[0],
            b=theirs[0],
            difference=estimate(paired.value, paired.interval.low, paired.interval.high),
            p_holm=float(p),
            equivalent=paired.interval.is_within(margin),
        )
        for (name, (ours, theirs)), paired, p in zip(pairs.items(), found, adjusted, strict=True)
    ]


def is_shifted(record: Record) -> bool:
    """Whether it is of a shifted cell: neither clean nor attacked."""
    return not record.cell.is_clean and not record.cell.is_attack


def main_canvas(scores: Scores) -> Record | None:
    """The clean canvas of the collection that is shifted first; None where nothing is shifted."""
    shifted = next((record for record in scores.records if is_shifted(record)), None)
    return None if shifted is None else scores.canvas_of(shifted)


def mean_held(parts: Sequence[HeldReplicated]) -> HeldReplicated:
    """The mean, each part weighing the same."""
    return HeldReplicated(_mean([part.r1 for part in parts]), _mean([part.lost for part in parts]))


def as_estimate(part: Replicated) -> Estimate:
    """The value with its 95 % interval."""
    ends = interval(part[1])
    return estimate(part[0], ends.low, ends.high)


def _summarise_attack(record: Record) -> AttackSummary:
    report = record.attack
    if report is None:
        raise InputError(f"{record.cell.id} is no attacked cell.")
    directions = record.cell.directions
    return AttackSummary(
        cell=record.cell.id,
        clean={name: report.clean[name]["hit@1"] for name in directions},
        attacked={name: record.metrics[name]["hit@1"] for name in directions},
        asr={name: report.asr[name]["asr_hits@1"] for name in directions if "asr_hits@1" in report.asr[name]},
        verdict=report.verdict,
    )


def items_of(record: Record) -> str:
    """Equal for records of the same items; attacked ones were changed for each submission by itself."""
    if record.data is None:
        raise InputError(f"{record.cell.id} has the status '{record.status}'; expected ok, with data.")
    return record.data.source_sha256 if record.cell.is_attack else record.data.items


def _mean(parts: Sequence[Replicated]) -> Replicated:
    values, replicates = zip(*parts, strict=True)
    return float(np.mean(values)), np.mean(replicates, axis=0)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.model_dump() if isinstance(value, Strict) else value
