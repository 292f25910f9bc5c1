"""Columns of a suite's table: what each is called, in which unit, whether more is better, and what a row has under it.

All of it is said once, here: the page, its sorting and its downloads follow from this list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, TypeVar

from bench.records import Estimate
from bench.types import Direction
from leaderboard.boards import Board, Row, unique_slugs
from leaderboard.entries import Attacked
from leaderboard.queries import list_queries
from leaderboard.rendering import figure, millions, percent, short
from leaderboard.sizes import name_size

Group = Literal["shift", "clean", "families", "attacks", "cost"]
GROUPS: dict[Group, str] = {
    "shift": "Under shift",
    "clean": "Clean",
    "families": "Families",
    "attacks": "Attacks",
    "cost": "Cost, self-reported",
}


_Asked = tuple[str, str, Direction]
_Number = TypeVar("_Number", int, float)


class Content(NamedTuple):
    """What a row has under a column.

    Args:
        text: the value, as it is shown.
        below: its 95 % interval, or of a value without one what it was measured on.
        order: the number that it is sorted by; empty for none, which goes last.
        mark: one word of warning, such as `unreliable`.
        why: what the text or the mark stands for.
    """

    text: str = ""
    below: str = ""
    order: str = ""
    mark: str = ""
    why: str = ""


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        key: unique in its table; stands in URLs and downloads.
        group: with what it is shown and hidden.
        title: its heading.
        unit: of its values.
        about: what it is, in a sentence.
        of: what a row has under it.
        better: which end comes first when it is sorted.
        kind: a figure has an interval, a number has none, text is neither.
        by: of a family, which of its two columns it is.
    """

    key: str
    group: Group
    title: str
    unit: str
    about: str
    of: Callable[[Row], Content]
    better: Literal["high", "low"] = "high"
    kind: Literal["figure", "number", "text"] = "figure"
    by: Literal["", "r1", "lost"] = ""


def list_columns(board: Board) -> list[Column]:
    """All columns of a board's table behind the submission's name, in order, groups together."""
    return [*_shift(board), *_clean(), *_families(board), *_attacks(board), *_cost()]


def _shift(board: Board) -> Iterator[Column]:
    reference = board.lock.reference if board.lock else "the suite's reference submission"
    yield Column(
        "shifted_r1",
        "shift",
        "R@1 under shift",
        "%",
        "Mean over the families of shifts of the mean R@1 of their cells. The order is by this.",
        lambda row: _percent(row.entry.overall.r1 if row.entry.overall else None),
    )
    yield Column(
        "tie_group",
        "shift",
        "Tie group",
        "",
        "Rows of a group cannot be told from its first row: the paired 95 % interval of the difference reaches 0.",
        lambda row: _count(row.standing.tie_group),
        better="low",
        kind="number",
    )
    yield Column(
        "lost",
        "shift",
        "Lost",
        "% of clean",
        "Share of the clean canvas's R@1 that is lost, mean over families.",
        lambda row: _percent(row.entry.overall.lost if row.entry.overall else None),
        better="low",
    )
    yield Column(
        "win_rate",
        "shift",
        "Win rate",
        "%",
        "Share of the other rows whose R@1 under shift is lower, mean over families.",
        lambda row: _percent(row.standing.win_rate),
    )
    yield Column(
        "worst_decile",
        "shift",
        "Worst decile",
        "R@1, %",
        "R@1 under shift of the tenth of the queries that does worst.",
        lambda row: _percent(row.entry.worst_decile),
    )
    yield Column(
        "mce",
        "shift",
        "mCE",
        "%",
        f"Errors under shift over those of {reference}, mean over shifts: 100 is as many, fewer is better.",
        lambda row: _percent(row.entry.mce),
        better="low",
    )
    yield Column(
        "relative_mce",
        "shift",
        "Relative mCE",
        "%",
        f"The same of the errors that shifts add to the clean ones, over those of {reference}.",
        lambda row: _percent(row.entry.relative_mce),
        better="low",
    )
    yield Column(
        "effective_robustness",
        "shift",
        "Effective robustness",
        "pp",
        "R@1 under shift above what clean R@1 lets one expect, by a line through all rows on logit axes.",
        lambda row: _percent(row.standing.effective_robustness),
    )
    yield Column(
        "worst_shift",
        "shift",
        "Worst shift",
        "",
        "The shift that costs most.",
        lambda row: Content(row.entry.worst),
        kind="text",
    )
    yield Column(
        "worst_shift_lost",
        "shift",
        "Lost at worst",
        "% of clean",
        "Share of the clean R@1 that this shift costs.",
        lambda row: _percent(row.entry.shifts[row.entry.worst].lost if row.entry.worst else None),
        better="low",
    )


def _clean() -> Iterator[Column]:
    images: tuple[tuple[Literal["clean_canvas", "clean"], str, str, str], ...] = (
        ("clean_canvas", "clean", "", "shifts are measured against these"),
        ("clean", "native", "Native ", "comparable with published numbers"),
    )
    metrics: tuple[tuple[Direction | Literal["both"], str, str, str, float], ...] = (
        ("t2i", "hit@1", "t2i R@1", "%", 100),
        ("i2t", "hit@1", "i2t R@1", "%", 100),
        ("both", "rsum", "RSUM", "of 600", 1),
    )
    for shift, name, prefix, what in images:
        for direction, metric, title, unit, scale in metrics:
            yield Column(
                f"{name}_{title.lower().replace(' ', '_').replace('@', '')}",
                "clean",
                f"{prefix}{title}",
                unit,
                f"{title} on {'native images' if prefix else 'the clean canvas'}: {what}.",
                partial(_on_clean, shift, direction, metric, scale),
            )


def _on_clean(
    shift: Literal["clean", "clean_canvas"], direction: Direction | Literal["both"], metric: str, scale: float, row: Row
) -> Content:
    score = row.entry.clean(shift)
    return _figure(score.metrics.get(direction, {}).get(metric) if score else None, scale)


def _families(board: Board) -> Iterator[Column]:
    for family, key in zip(board.families, _keys(board.families), strict=True):
        yield Column(
            f"family_{key}_r1",
            "families",
            family,
            "R@1, %",
            f"R@1 under the shifts of the family {family}.",
            partial(_held, family, "r1"),
            by="r1",
        )
        yield Column(
            f"family_{key}_lost",
            "families",
            family,
            "lost, % of clean",
            f"Share of the clean R@1 that {family} costs.",
            partial(_held, family, "lost"),
            better="low",
            by="lost",
        )


def _held(family: str, by: Literal["r1", "lost"], row: Row) -> Content:
    held = row.entry.families[family]
    return _percent(held.r1 if by == "r1" else held.lost)


def _attacks(board: Board) -> Iterator[Column]:
    cells = [cell for cell in board.rows[0].entry.manifest.cells if cell.is_attack] if board.rows else []
    asked = [(cell, direction) for cell in cells for direction in cell.directions]
    attacked = {(row.id, of.cell.id, of.direction): of for row in board.rows for of in row.entry.attacks}
    is_one = len({cell.collection for cell in cells}) == 1
    keys = _keys(f"{cell.id} {direction}" for cell, direction in asked)
    for (cell, direction), key in zip(asked, keys, strict=True):
        change = board.lock.changes.get(cell.change) if board.lock else None
        images = f", of the first {cell.n_images} images" if cell.n_images else ""
        yield Column(
            f"attacked_{key}",
            "attacks",
            cell.id.removeprefix(f"{cell.collection} ") if is_one else cell.id,
            f"{direction} R@1, %",
            f"R@1 under the attack {cell.id}, {direction}{images}. {change.summary if change else ''}".strip(),
            partial(_attack_on, attacked, cell.id, direction),
        )


def _attack_on(attacked: Mapping[_Asked, Attacked], cell_id: str, direction: Direction, row: Row) -> Content:
    return _attack(attacked.get((row.id, cell_id, direction)), row.entry.skipped.get(cell_id))


def _attack(found: Attacked | None, reason: str | None) -> Content:
    if found is None:
        return Content("n/a", mark="not applicable" if reason else "not scored", why=reason or "")
    is_unreliable = found.verdict.startswith("unreliable")
    marks = {"mark": "unreliable", "why": found.verdict} if is_unreliable else {}
    return _percent(found.attacked)._replace(**marks)


def _cost() -> Iterator[Column]:
    yield Column(
        "parameters",
        "cost",
        "Parameters",
        "",
        "Parameters that were loaded, counted on the submitter's machine.",
        lambda row: _number(row.entry.parameters, millions),
        better="low",
        kind="number",
    )
    yield Column(
        "trainable",
        "cost",
        "Trained",
        "",
        "Parameters that learnt when it was fitted, as the submission states.",
        lambda row: _number(row.entry.manifest.submission.parameters.trainable, millions),
        better="low",
        kind="number",
    )
    yield Column(
        "image_ms",
        "cost",
        "Image",
        "ms",
        "Median per image while scoring, in batches.",
        lambda row: _number(row.entry.image_ms, short),
        better="low",
        kind="number",
    )
    yield Column(
        "text_ms",
        "cost",
        "Caption",
        "ms",
        "Median per caption while scoring, in batches.",
        lambda row: _number(row.entry.text_ms, short),
        better="low",
        kind="number",
    )
    yield Column(
        "query_p50_ms",
        "cost",
        "Query",
        "ms, p50",
        "Median end to end of one query alone over the smallest gallery that was timed, below it the 95th percentile.",
        _query,
        better="low",
        kind="number",
    )
    yield Column(
        "index_bytes",
        "cost",
        "Index",
        "",
        "Size of the index that those queries were asked of.",
        _index,
        better="low",
        kind="number",
    )
    yield Column(
        "timed_on",
        "cost",
        "Timed on",
        "",
        "Hardware class of the query's time: compare within one only.",
        _timed_on,
        kind="text",
    )
    yield Column(
        "hardware",
        "cost",
        "Scored on",
        "",
        "The machine of the two medians while scoring: compare within one only.",
        lambda row: Content(row.entry.hardware),
        kind="text",
    )


def _query(row: Row) -> Content:
    query = next(iter(list_queries(row.entry)), None)
    if query is None:
        return Content()
    below = f"p95 {short(query.p95_ms)}, " if query.p95_ms is not None else ""
    return _number(query.p50_ms, short)._replace(below=f"{below}{query.n_items:,} items")


def _timed_on(row: Row) -> Content:
    query = next(iter(list_queries(row.entry)), None)
    return Content(query.hardware if query else "")


def _index(row: Row) -> Content:
    query = next(iter(list_queries(row.entry)), None)
    if query is None:
        return Content()
    index = query.timing.index
    return Content(name_size(index.n_bytes), index.factory, str(index.n_bytes))


def _keys(names: Iterable[str]) -> list[str]:
    return [slug.replace("-", "_") for slug in unique_slugs(names)]


def _percent(estimate: Estimate | None) -> Content:
    return _figure(estimate, 100)


def _figure(estimate: Estimate | None, scale: float) -> Content:
    if estimate is None:
        return Content()
    shown = percent(estimate) if scale == 100 else figure(estimate, scale)
    return Content(shown.value, shown.interval, f"{scale * estimate.value:.6g}")


def _number(number: _Number | None, show: Callable[[_Number], str]) -> Content:
    return Content() if number is None else Content(show(number), order=f"{number:.10g}")


def _count(number: int) -> Content:
    return Content(str(number), order=str(number))
