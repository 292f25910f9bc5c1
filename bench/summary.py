"""A run's results in a few figures: what is lost per shift, per family and overall, each with its interval.

Losses are measured against the clean canvas of the same collection (or of the cell's baseline), on R@1 averaged over
both directions, with the same resamples of images on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
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
class Summary:
    """What a run comes to.

    Args:
        clean: metrics of the clean canvas cell that stands first, by direction.
        shifts: relative drop of mean R@1 by shift, averaged over its severities, as a fraction.
        families: the same by family, shifts of a family weighing the same.
        overall: the mean over families.
        worst: name of the shift that costs most.
        image_ms: median encoding time per image, batched, on the clean canvas.
        text_ms: the same per caption.
    """

    label: str
    suite: str
    parameters: int | None
    clean: dict[str, dict[str, Estimate]]
    shifts: dict[str, Estimate]
    families: dict[str, Estimate]
    overall: Estimate
    worst: str
    image_ms: float | None
    text_ms: float | None

    def as_dict(self) -> dict[str, Any]:
        """As plain data, ready for JSON."""
        facts = asdict(self)
        for name in ("clean", "shifts", "families", "overall"):
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
        return {r.cell.baseline or r.cell.collection for r in self.records if not r.cell.is_clean}

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
        if not record.cell.is_clean:
            changes.setdefault(record.family, {}).setdefault(_change_name(record, scores), []).append(record)
    if not changes:
        raise IncompleteError(f"{results.folder} has no shifted cell yet; run it to the end.")
    shifts = {name: scores.drop(records) for family in changes.values() for name, records in family.items()}
    families = {name: _mean([shifts[shift] for shift in members]) for name, members in changes.items()}
    main = next(iter(next(iter(changes.values())).values()))[0].cell
    canvas = scores.canvases[main.baseline or main.collection]
    return Summary(
        label=results.manifest.label,
        suite=results.manifest.suite,
        parameters=results.manifest.parameters,
        clean={str(direction): metrics for direction, metrics in canvas.metrics.items()},
        shifts={name: _estimate(value) for name, value in shifts.items()},
        families={name: _estimate(value) for name, value in families.items()},
        overall=_estimate(_mean(families.values())),
        worst=max(shifts, key=lambda name: shifts[name][0]),
        image_ms=canvas.timing.encode_images_ms,
        text_ms=canvas.timing.encode_texts_ms,
    )


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
        if ours.data is None or ours.data != theirs.data:
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
    return value.model_dump() if isinstance(value, Estimate) else value
