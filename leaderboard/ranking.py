"""Who stands where among the submissions of one suite, and how sure that is.

Everything is computed of the sample and of every resample alike, in tables whose first row is the sample and whose
other rows are resamples of its images; the columns are submissions. Because all submissions share their resamples, what
makes a resample easy for one makes it easy for all, and only the differences count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from bench.errors import InputError
from bench.records import Estimate, estimate
from bench.stats import LEVEL, interval, intervals
from leaderboard.entries import Entry, Resamples

_TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
_ROWS_TO_FIT = 3
# Resamples are kept as float32: two equal scores may differ by this much.
_RESOLUTION = 1e-7


@dataclass(frozen=True)
class Standing:
    """Where a submission stands among the ranked ones of its suite.

    Args:
        order: which row of the table it is, from 1, no two alike.
        place: from 1; one more than there are rows with a higher score, so that equal scores share the best place.
        first: the lower end of the place's 95 % interval.
        last: its upper end.
        tie_group: from 1; rows of a group cannot be told from the group's first row.
        win_rate: share of the other rows that it beats, a fraction; None where there is no other row.
        effective_robustness: R@1 under shift above what its clean R@1 lets one expect, a fraction; None where no line
            can be fitted.
    """

    order: int
    place: int
    first: int
    last: int
    tie_group: int
    win_rate: Estimate | None
    effective_robustness: Estimate | None


def rank(entries: Sequence[Entry], resamples: Sequence[Resamples]) -> list[Standing]:
    """The standing of every entry, in the order given; whatever that order is, the standings are the same.

    The score is the mean R@1 under shift: families weigh the same, and a higher one is better. Equal scores share a
    place; the rows of a place are ordered by win rate, then by label.

    - **Places** are counted anew in every resample. Their interval goes from the 2.5th to the 97.5th percentile, both
      of them places that occur. Of many rows the extremes are rarely the extremes of a resample as well, so an end that
      would leave out the row's own place is moved there; the two estimates below are treated alike.
    - **Tie groups**: down the order, a row belongs to the current group unless the paired interval of the score of the
      group's first row minus its own lies above 0; then it opens the next group.
    - **Win rate**: per family the share of the other rows whose R@1 is lower, equal ones counting half; the mean over
      families.
    - **Effective robustness**: the residual over a line through all rows of clean against shifted R@1, on logit axes.
      In every resample it is fitted anew. Rows whose R@1 is 0 or 1 have no logit: they are left out of the fit, and
      fewer than three rows, or rows with one and the same clean R@1, give no line.

    Args:
        entries: those of one suite that take part in the order.
        resamples: of each of them.

    Raises:
        InputError: an entry has no score, other families or another suite than the first one, or resamples that are
            not as many, or not finite.

    Source: mean win rate, HELM (arXiv 2211.09110); effective robustness, arXiv 2007.00644.
    """
    if not entries:
        return []
    _check(entries, resamples)
    families = [
        _tabulate([entry.families[name].r1.value for entry in entries], _rows_of(name, entries, resamples))
        for name in sorted(entries[0].families)
    ]
    scores = np.mean(families, axis=0)
    scores[0] = [_score(entry) for entry in entries]
    win_rates = _win_rates(families)
    order = _sort(scores[0], win_rates[0], [entry.label for entry in entries])
    places, first, last = _places(scores)
    groups = np.empty(len(entries), dtype=np.int64)
    groups[order] = _tie_groups(scores[1:, order])
    # Sums of floats depend on their order: sorted rows are added up alike, however the entries came.
    residuals = np.empty_like(scores)
    residuals[:, order] = _residuals(_clean(entries, resamples)[:, order], scores[:, order])
    return [
        Standing(
            order=1 + before,
            place=int(places[row]),
            first=int(first[row]),
            last=int(last[row]),
            tie_group=int(groups[row]),
            win_rate=win_rate,
            effective_robustness=residual,
        )
        for row, (before, win_rate, residual) in enumerate(
            zip(np.argsort(order).tolist(), _estimates(win_rates), _estimates(residuals), strict=True)
        )
    ]


def pareto(points: Float[np.ndarray, "n d"]) -> Bool[np.ndarray, " n"]:
    """Which points no other dominates, by being as small in every column and smaller in one.

    Equal points stay together, on the front or off it. `bench.stats.pareto_front` does the same of two columns, of
    which one is a gain.

    Args:
        points: smaller is better in every column; infinity is allowed.

    Raises:
        InputError: the points are no table, or a value is NaN.
    """
    if points.ndim != 2:
        raise InputError(f"points have shape {points.shape}; expected (n, d), one row per point.")
    if np.isnan(points).any():
        row, column = np.argwhere(np.isnan(points))[0]
        raise InputError(f"point {row} is NaN in column {column}; expected numbers. Leave the point or the column out.")
    return np.array([not find_dominators(points, point).size for point in points], dtype=bool)


def find_dominators(points: Float[np.ndarray, "n d"], point: Float[np.ndarray, " d"]) -> Int[np.ndarray, " n_found"]:
    """Indices of the points that dominate `point`, in their order."""
    return np.flatnonzero((points <= point).all(axis=1) & (points < point).any(axis=1))


def _check(entries: Sequence[Entry], resamples: Sequence[Resamples]) -> None:
    if len(entries) != len(resamples):
        raise InputError(f"there are resamples of {len(resamples)} entries; expected those of {len(entries)}.")
    first, shape = entries[0], resamples[0].r1.shape
    for entry, of_entry in zip(entries, resamples, strict=True):
        if entry.families.keys() != first.families.keys():
            differing = ", ".join(sorted(entry.families.keys() ^ first.families.keys()))
            raise InputError(
                f"{entry.label} and {first.label} differ in the families {differing}; expected the same families."
                " Rank the submissions of one suite at a time."
            )
        if entry.manifest.suite_id != first.manifest.suite_id:
            suites = f"{entry.manifest.suite} and {first.manifest.suite}"
            raise InputError(
                f"{entry.label} and {first.label} were scored on different suites, {suites}; expected one."
                " Rank the submissions of one suite at a time."
            )
        _check_resamples(entry, of_entry, shape)


def _check_resamples(entry: Entry, resamples: Resamples, shape: tuple[int, ...]) -> None:
    if resamples.r1.shape != shape or resamples.r1.shape[0] != len(entry.families):
        raise InputError(
            f"resamples of {entry.label} have shape {resamples.r1.shape}; expected {(len(entry.families), shape[1])},"
            " one row per family. Compute them again."
        )
    if not np.isfinite(resamples.r1).all():
        raise InputError(f"resamples of {entry.label} are not finite; expected R@1 in each. Compute them again.")


def _score(entry: Entry) -> float:
    if entry.overall is None:
        raise InputError(f"{entry.label} has no shifted cell, so no score; expected one. Leave it out of the order.")
    return entry.overall.r1.value


def _rows_of(name: str, entries: Sequence[Entry], resamples: Sequence[Resamples]) -> list[np.ndarray]:
    """Each entry's resamples of one family."""
    return [of_entry.r1[list(entry.families).index(name)] for entry, of_entry in zip(entries, resamples, strict=True)]


def _clean(entries: Sequence[Entry], resamples: Sequence[Resamples]) -> Float[np.ndarray, "n_rows n_entries"]:
    """R@1 on the clean canvas; NaN of an entry that was not scored on it."""
    scores = [entry.clean() for entry in entries]
    values = [np.nan if score is None else score.r1.value for score in scores]
    return _tabulate(values, [of_entry.clean for of_entry in resamples])


def _tabulate(values: Sequence[float], replicates: Sequence[np.ndarray]) -> Float[np.ndarray, "n_rows n_entries"]:
    """The sample's values, and below them the resamples, float64."""
    table = np.empty((1 + replicates[0].size, len(values)))
    table[0] = values
    np.stack(replicates, axis=1, out=table[1:], casting="same_kind")
    return table


def _count(
    table: Float[np.ndarray, "n_rows n_entries"],
) -> tuple[Int[np.ndarray, "n_rows n_entries"], Int[np.ndarray, "n_rows n_entries"]]:
    """For each value, how many others of its row are below it, and how many are not above it."""
    n_entries = table.shape[1]
    order = np.argsort(table, axis=1)
    ordered = np.take_along_axis(table, order, axis=1)
    steps = ordered[:, 1:] != ordered[:, :-1]
    below, not_above = np.zeros(table.shape, dtype=np.int64), np.full(table.shape, n_entries - 1)
    np.copyto(below[:, 1:], np.arange(1, n_entries), where=steps)
    np.copyto(not_above[:, :-1], np.arange(n_entries - 1), where=steps)
    runs = np.maximum.accumulate(below, axis=1), np.minimum.accumulate(not_above[:, ::-1], axis=1)[:, ::-1]
    for counts, run in zip((below, not_above), runs, strict=True):
        np.put_along_axis(counts, order, run, axis=1)
    return below, not_above


def _win_rates(families: Sequence[Float[np.ndarray, "n_rows n_entries"]]) -> Float[np.ndarray, "n_rows n_entries"]:
    """Mean over families of the share of the others that are beaten; NaN where there are none."""
    n_others = families[0].shape[1] - 1
    if not n_others:
        return np.full(families[0].shape, np.nan)
    total = np.zeros(families[0].shape)
    for table in families:
        below, not_above = _count(table)
        total += below + not_above
    return total / (2 * n_others * len(families))


def _sort(
    scores: Float[np.ndarray, " n_entries"], win_rates: Float[np.ndarray, " n_entries"], labels: Sequence[str]
) -> Int[np.ndarray, " n_entries"]:
    keys = zip(-scores, -win_rates, labels, range(len(labels)), strict=True)
    return np.array([key[-1] for key in sorted(keys)])


def _places(scores: Float[np.ndarray, "n_rows n_entries"]) -> Int[np.ndarray, "3 n_entries"]:
    """Each column's place, and the first and last place of its interval."""
    places = scores.shape[1] - _count(scores)[1]
    first, last = np.quantile(places[1:], _TAILS, axis=0, method="inverted_cdf").astype(np.int64)
    return np.stack([places[0], np.minimum(first, places[0]), np.maximum(last, places[0])])


def _tie_groups(scores: Float[np.ndarray, "n_resamples n_entries"]) -> list[int]:
    """The group of each column; columns stand in order."""
    leader, groups = 0, [1]
    for column in range(1, scores.shape[1]):
        is_behind = interval(scores[:, leader] - scores[:, column]).is_above(_RESOLUTION)
        groups.append(groups[-1] + is_behind)
        leader = column if is_behind else leader
    return groups


def _residuals(
    clean: Float[np.ndarray, "n_rows n_entries"], shifted: Float[np.ndarray, "n_rows n_entries"]
) -> Float[np.ndarray, "n_rows n_entries"]:
    """How far each shifted R@1 lies above its row's line; NaN where there is no line, or no logit."""
    usable = (clean > 0) & (clean < 1) & (shifted > 0) & (shifted < 1)
    usable &= usable[0]
    x, y = _logit(np.where(usable, clean, 0.5)), _logit(np.where(usable, shifted, 0.5))
    count = usable.sum(axis=1, keepdims=True)
    lowest = np.min(x, axis=1, where=usable, initial=np.inf, keepdims=True)
    highest = np.max(x, axis=1, where=usable, initial=-np.inf, keepdims=True)
    has_line = (count >= _ROWS_TO_FIT) & (highest > lowest)
    centre = [np.sum(axis, axis=1, where=usable, keepdims=True) / np.maximum(count, 1) for axis in (x, y)]
    dx, dy = np.where(usable, x - centre[0], 0), np.where(usable, y - centre[1], 0)
    covariance, variance = ((dx * other).sum(axis=1, keepdims=True) for other in (dy, dx))
    slope = np.divide(covariance, variance, out=np.zeros_like(variance), where=has_line)
    residuals = shifted - _expit(centre[1] + slope * dx)
    return np.where(usable & has_line, residuals, np.nan)


def _logit(shares: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return np.log(shares) - np.log1p(-shares)


def _expit(logits: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The inverse of `_logit`, which does not overflow."""
    return 0.5 * (1 + np.tanh(logits / 2))


def _estimates(table: Float[np.ndarray, "n_rows n_entries"]) -> list[Estimate | None]:
    """Every column's value with an interval that holds it; None where it or half of its resamples are undefined."""
    defined = ~np.isnan(table[0]) & (np.isnan(table[1:]).mean(axis=0) < 0.5)
    values = table[0, defined]
    ends = intervals(table[1:, defined])
    found = zip(values, np.minimum(ends[:, 0], values), np.maximum(ends[:, 1], values), strict=True)
    return [estimate(*next(found)) if is_defined else None for is_defined in defined]
