"""A run's results in a few figures: what is lost per shift, per family and overall, each with its interval.

Losses are measured against the clean canvas of the same collection (or of the cell's baseline), on R@1 averaged over
both directions, with the same resamples of images on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from bench.bundle import Results, read_results
from bench.errors import IncompleteError, InputError, UsageError
from bench.metrics import relative_drop
from bench.records import Estimate, Record, estimate
from bench.scoring import mean_r1
from bench.stats import compare as compare_replicates
from bench.stats import holm, interval
from bench.types import Direction


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
        shifts: relative drop of mean R@1 by shift, averaged over its severities, as a fraction.
        families: the same by family, shifts of a family weighing the same.
        overall: the mean over families; None of a run that has attacked cells alone.
        worst: name of the shift that costs most.
        attacks: the attacked cells, in the suite's order; they are not part of the means.
        skipped: cells that cannot be asked of the submission, with the reason.
        image_ms: median encoding time per image, batched, on the clean canvas.
        text_ms: the same per caption.
    """

    label: str
    suite: str
    parameters: int | None
    clean: dict[str, dict[str, Estimate]]
    shifts: dict[str, Estimate]
    families: dict[str, Estimate]
    overall: Estimate | None
    worst: str
    attacks: tuple[AttackSummary, ...]
    skipped: dict[str, str]
    image_ms: float | None
    text_ms: float | None

    def as_dict(self) -> dict[str, Any]:
        """As plain data, ready for JSON."""
        facts = asdict(self)
        for name in ("clean", "shifts", "families", "overall", "attacks"):
            facts[name] = _plain(facts[name])
        return facts


@dataclass(frozen=True)
class Difference:
    """Submission A minus submission B on one cell: mean R@1, as a fraction, paired over images."""

    cell: str
    a: float
    b: float
    difference: Estimate
    p_holm: float
    equivalent: bool


class _Scores:
    """Mean R@1 of every cell of a run, with its resamples."""

    def __init__(self, results: Results) -> None:
        self.records = [record for record in results.records if record.status == "ok"]
        self._results = results
        self._known: dict[tuple[str, tuple[Direction, ...]], tuple[float, np.ndarray]] = {}

    def of(
        self, record: Record, directions: tuple[Direction, ...] = ()
    ) -> tuple[float, Float[np.ndarray, " n_resamples"]]:
        """Mean R@1 over those of `directions` that the record has; over all that it has if none are named."""
        key = (record.cell.slug, directions)
        if key not in self._known:
            n_images = record.data.n_images if record.data else 0
            evidence = self._results.evidence(record)
            asked = {name: part for name, part in evidence.items() if name in (directions or evidence)}
            self._known[key] = mean_r1(asked, n_images)
        return self._known[key]

    @cached_property
    def bases(self) -> set[str]:
        """The collections that shifted cells are measured against."""
        return {r.cell.baseline or r.cell.collection for r in self.records if _is_shifted(r)}

    @cached_property
    def canvases(self) -> dict[str, Record]:
        return {r.cell.collection: r for r in self.records if r.cell.shift == "clean_canvas" and not r.cell.baseline}

    def drop(self, records: list[Record]) -> tuple[float, np.ndarray]:
        """What is lost on average over some cells of one collection, as a fraction, and its resamples.

        Both sides are averaged over the directions of these cells: caption distractors touch `i2t` alone.
        """
        cell = records[0].cell
        baseline = self.canvases.get(cell.baseline or cell.collection)
        if baseline is None:
            raise IncompleteError(f"{self._results.folder} lacks the clean canvas that {cell.id} is measured against.")
        (clean, cleans), shifted = self.of(baseline, cell.directions), [self.of(record) for record in records]
        value = float(relative_drop(np.array(clean), np.array([value for value, _ in shifted])))
        if math.isnan(value):
            raise InputError(f"{self._results.folder}: R@1 on {baseline.cell.id} is 0; there is nothing to lose.")
        return value, relative_drop(cleans, np.stack([replicates for _, replicates in shifted], axis=1))


def summarise_run(folder: Path) -> Summary:
    """The summary of a run's folder or a bundle.

    Raises:
        InputError: its files are damaged.
        IncompleteError: a clean cell is missing.
    """
    return summarise(read_results(folder))


def summarise(results: Results) -> Summary:
    """The summary of results that were read before."""
    scores = _Scores(results)
    changes: dict[str, dict[str, list[Record]]] = {}
    for record in scores.records:
        if _is_shifted(record):
            changes.setdefault(record.family, {}).setdefault(_change_name(record, scores), []).append(record)
    attacks = tuple(_summarise_attack(record) for record in scores.records if record.attack)
    if not changes and not attacks:
        raise IncompleteError(f"{results.folder} has no shifted cell yet; run it to the end.")
    shifts = {name: scores.drop(records) for family in changes.values() for name, records in family.items()}
    families = {name: _mean([shifts[shift] for shift in members]) for name, members in changes.items()}
    canvas = _main_canvas(changes, scores)
    return Summary(
        label=results.manifest.label,
        suite=results.manifest.suite,
        parameters=results.manifest.parameters,
        clean={str(direction): metrics for direction, metrics in canvas.metrics.items()} if canvas else {},
        shifts={name: _estimate(value) for name, value in shifts.items()},
        families={name: _estimate(value) for name, value in families.items()},
        overall=_estimate(_mean(families.values())) if families else None,
        worst=max(shifts, key=lambda name: shifts[name][0], default=""),
        attacks=attacks,
        skipped={record.cell.id: record.reason for record in results.records if record.status == "skipped"},
        image_ms=canvas.timing.encode_images_ms if canvas else None,
        text_ms=canvas.timing.encode_texts_ms if canvas else None,
    )


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
    """A minus B on every cell that both have, with Holm's correction over the cells.

    Args:
        margin: what counts as equal, as a fraction of R@1.

    Raises:
        UsageError: they were not scored on the same items.
    """
    scores_a, scores_b = _Scores(a), _Scores(b)
    others = {record.cell.slug: record for record in scores_b.records}
    pairs = [(record, others[record.cell.slug]) for record in scores_a.records if record.cell.slug in others]
    if not pairs:
        raise UsageError(f"{a.folder} and {b.folder} have no cell in common; run both on the same suite.")
    found = []
    for ours, theirs in pairs:
        if not _same_items(ours, theirs):
            raise UsageError(f"{ours.cell.id} was scored on other items in {b.folder}; run both on the same data.")
        (value_a, resamples_a), (value_b, resamples_b) = scores_a.of(ours), scores_b.of(theirs)
        found.append((ours.cell.id, value_a, value_b, compare_replicates(value_a, value_b, resamples_a, resamples_b)))
    adjusted = holm(np.array([difference.p_value for *_, difference in found]))
    return [
        Difference(
            cell=cell,
            a=value_a,
            b=value_b,
            difference=estimate(paired.value, paired.interval.low, paired.interval.high),
            p_holm=float(p),
            equivalent=paired.interval.is_within(margin),
        )
        for (cell, value_a, value_b, paired), p in zip(found, adjusted, strict=True)
    ]


def _is_shifted(record: Record) -> bool:
    return not record.cell.is_clean and not record.cell.is_attack


def _main_canvas(changes: dict[str, dict[str, list[Record]]], scores: _Scores) -> Record | None:
    """The clean canvas of the collection that is shifted first."""
    for family in changes.values():
        for records in family.values():
            cell = records[0].cell
            return scores.canvases[cell.baseline or cell.collection]
    return None


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


def _same_items(a: Record, b: Record) -> bool:
    """Whether two records are of the same items; attacked ones were changed for each submission by itself."""
    if a.data is None or b.data is None:
        return False
    return a.data.source_sha256 == b.data.source_sha256 if a.cell.is_attack else a.data == b.data


def _change_name(record: Record, scores: _Scores) -> str:
    """The change, with its collection where the suite has several that are shifted."""
    cell = record.cell
    return cell.change if len(scores.bases) == 1 or cell.baseline else f"{cell.collection} {cell.change}"


def _mean(parts: Iterable[tuple[float, np.ndarray]]) -> tuple[float, np.ndarray]:
    values, replicates = zip(*parts, strict=True)
    return float(np.mean(values)), np.mean(replicates, axis=0)


def _estimate(part: tuple[float, np.ndarray]) -> Estimate:
    ends = interval(part[1])
    return estimate(part[0], ends.low, ends.high)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.model_dump() if isinstance(value, Estimate) else value
