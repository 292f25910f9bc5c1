"""Guidelines as Markdown: which submission for which need, what each kind of method gains and costs against its base.

Every sentence is made from a comparison of rows that share a suite, and names them with their figures; where the paired
interval holds 0, it says that nothing can be told. Nothing about a result is written by hand, so the same rows give the
same text.
"""

from __future__ import annotations

import re
import textwrap
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bench.records import Estimate
from bench.stats import Difference, bootstrap, compare
from bench.summary import as_estimate
from leaderboard.boards import Board, Row
from leaderboard.entries import N_RANK_RESAMPLES, Attacked, Hits
from leaderboard.queries import Query, list_queries
from leaderboard.ranking import pareto
from leaderboard.recommend import Limits, Terms, find_terms

KINDS: Mapping[str, str] = {
    "full": "full fine-tuning",
    "wise_ft": "full fine-tuning",
    "knowledge_keep": "full fine-tuning",
    "lora": "parameter-efficient tuning",
    "ia3": "parameter-efficient tuning",
    "adapter": "parameter-efficient tuning",
    "mwa": "parameter-efficient tuning",
    "coop": "prompt learning",
    "maple": "prompt learning",
    "vpt": "prompt learning",
    "fare": "adversarial training",
    "tecoa": "adversarial training",
    "leaf": "adversarial training",
    "mat": "adversarial training",
    "tip_adapter": "cache model",
    "tip_adapter_f": "cache model",
    "xmadapter": "cache model",
}
SECOND_STAGE, SETTING, OTHER = "second stage", "other arguments", "other recipe"
_ORDER = [*dict.fromkeys(KINDS.values()), SECOND_STAGE, SETTING, OTHER]
# Resamples are kept as float32: two equal scores may differ by this much.
_RESOLUTION = 1e-7
_WIDTH = 120

Replicated = tuple[float, Float[np.ndarray, " n_resamples"]]

_HEAD = """# Guidelines

Made by `rove recommend --explain --output docs/guidelines.md` from the rows that ship with Rove; no line is written by
hand. R@1 is the mean of both directions in percent, *under shift* the mean over families of shifts, *lost* the share of
the clean R@1 that is lost there. Brackets are 95 % intervals; differences are paired over images and in percentage
points. *Told apart* means that the interval of the difference does not hold 0; each interval stands by itself, so of
twenty true ties about one is told apart by chance. What holds on a suite holds for its pictures and these weights.
"""


def explain(boards: Iterable[Board]) -> str:
    """The guidelines, one section for every suite that has a ranked row, as Markdown with a newline at its end."""
    sections = [_Section(board) for board in boards if board.rows]
    return "\n".join([_HEAD, *(line for section in sections for line in section.lines())]).rstrip() + "\n"


class Versus(NamedTuple):
    """A row beside the one that it was made from."""

    kind: str
    row: Row
    base: Row


@dataclass(frozen=True)
class Measure:
    """A quantity that rows are compared by: what it is called, and its value with resamples; None of a row without."""

    name: str
    of: Callable[[Row], Replicated | None]

    def difference(self, a: Row, b: Row) -> Difference | None:
        """A minus B, paired; None where one of them has no value."""
        ours, theirs = self.of(a), self.of(b)
        return None if ours is None or theirs is None else compare(ours[0], theirs[0], ours[1], theirs[1])


def find_kind(row: Row) -> str:
    """What was done to the row's base: by its recipe, or because it has a second stage, or other arguments."""
    manifest = row.entry.manifest
    fit = manifest.submission.fit
    if manifest.rerank_k is not None:
        return SECOND_STAGE
    if fit is not None:
        return KINDS.get(fit.recipe, OTHER)
    return SETTING


def find_base(row: Row, rows: Sequence[Row]) -> Row | None:
    """The row that it was made from: its base's, its encoder's, or that of the same submission as it comes.

    None where that is not on the board, or the row is made from no other.
    """
    manifest = row.entry.manifest
    submission = manifest.submission
    encoder = manifest.args.get("encoder", "") if manifest.rerank_k is not None else ""
    names = [submission.base, Path(encoder).name, "" if row.entry.label == submission.name else submission.name]
    wanted = next((name for name in names if name), None)
    return next((other for other in rows if other.entry.label == wanted and other is not row), None)


def is_told(difference: Difference) -> bool:
    """Whether the interval leaves out 0."""
    return difference.interval.low > _RESOLUTION or difference.interval.high < -_RESOLUTION


def attacked_recall(row: Row, names: Iterable[str]) -> Replicated | None:
    """Mean R@1 over attacked cells and directions, named as in `Hits`, with its resamples; None of no cells."""
    pieces = _unpack(row.hits)
    chosen = [pieces[name] for name in names if name in pieces]
    if not chosen:
        return None
    values = [float(hits.sum() / queries.sum()) for hits, queries in chosen]
    columns = [bootstrap(hits[:, None], queries, N_RANK_RESAMPLES)[:, 0] for hits, queries in chosen]
    return float(np.mean(values)), np.mean(columns, axis=0)


def _unpack(hits: Hits) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every cell and direction: hits at 1 of each image's queries, and how many queries, float64."""
    ends = np.cumsum(hits.n_images, dtype=np.int64)[:-1]
    tables = [
        np.split(np.frombuffer(zlib.decompress(packed), np.uint8).astype(np.float64), ends)
        for packed in (hits.hits, hits.queries)
    ]
    return dict(zip(hits.names, zip(*tables, strict=True), strict=True)) if hits.names else {}


def _clean(row: Row) -> Replicated | None:
    clean = row.entry.clean()
    return None if clean is None else (clean.r1.value, row.resamples.clean)


def _shifted(row: Row) -> Replicated | None:
    overall = row.entry.overall
    return None if overall is None else (overall.r1.value, row.resamples.r1.mean(axis=0))


def _lost(row: Row) -> Replicated | None:
    overall = row.entry.overall
    return None if overall is None else (overall.lost.value, row.resamples.lost.mean(axis=0))


CLEAN, SHIFTED, LOST = Measure("clean R@1", _clean), Measure("R@1 under shift", _shifted), Measure("lost", _lost)


class _Section:
    """The guidelines of one suite."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._rows = board.rows
        self._terms = find_terms([row.entry for row in board.rows], Limits())
        self._compared: dict[tuple[str, str, str], Difference | None] = {}

    def lines(self) -> Iterator[str]:
        """All of them, without line ends."""
        board = self._board
        yield from (f"## {board.title} ({board.label}, {_rows(len(board.rows))})", "")
        for sentence in (*self._needs(), *self._fronts()):
            yield from _bullet(sentence)
        yield ""
        if self._pairs:
            yield from self._table()
            yield ""
            for kind in _ORDER:
                yield from self._of_kind(kind)
        for sentence in self._second_stages():
            yield from _bullet(sentence)
        yield from ("", "What these rows cannot say:", "")
        for sentence in self._unknown():
            yield from _bullet(sentence)
        yield ""

    @cached_property
    def _pairs(self) -> list[Versus]:
        """Every row with its base, by kind, best first."""
        found = [(row, find_base(row, self._rows)) for row in self._rows]
        pairs = [Versus(find_kind(row), row, base) for row, base in found if base is not None]
        return sorted(pairs, key=lambda pair: (_ORDER.index(pair.kind), pair.row.standing.order))

    @cached_property
    def _attacks(self) -> tuple[Attacked, ...]:
        """Attacked cells, by direction, that every row with any has, and whose checks passed in all of them."""
        attacked = [row.entry.attacks for row in self._rows if row.entry.attacks]
        reliable = [{_name_of(cell) for cell in cells if cell.verdict == "reliable"} for cells in attacked]
        shared = set.intersection(*reliable) if reliable else set()
        return tuple(cell for cell in attacked[0] if _name_of(cell) in shared) if attacked else ()

    @cached_property
    def _attacked(self) -> Measure:
        """Mean R@1 over these cells; the resamples of a row are drawn once."""
        names = [_name_of(cell) for cell in self._attacks]
        known = {row.id: attacked_recall(row, names) if row.entry.attacks else None for row in self._rows}
        return Measure("R@1 under attack", lambda row: known[row.id])

    @property
    def _measures(self) -> list[Measure]:
        return [CLEAN, SHIFTED, LOST, *([self._attacked] if self._attacks else [])]

    def _difference(self, measure: Measure, a: Row, b: Row) -> Difference | None:
        key = (measure.name, a.id, b.id)
        if key not in self._compared:
            self._compared[key] = measure.difference(a, b)
        return self._compared[key]

    def _ties(self, measure: Measure, best: Row) -> list[Row]:
        """The other rows that cannot be told apart from `best`, in the board's order."""
        found = [(row, self._difference(measure, best, row)) for row in self._rows if row is not best]
        return [row for row, difference in found if difference is not None and not is_told(difference)]

    def _needs(self) -> Iterator[str]:
        best = self._rows[0]
        ties = self._ties(SHIFTED, best)
        yield f"**Most found under shift**: {_row(best)}. {self._describe_ties(SHIFTED, best, ties)}"
        yield from self._smallest(best, ties)
        yield from self._recipes()
        if self._attacks:
            measure = self._attacked
            attacked = [row for row in self._rows if measure.of(row) is not None]
            held = min(attacked, key=lambda row: (-_value(measure, row), row.standing.order))
            told = self._describe_ties(measure, held, self._ties(measure, held))
            yield f"**Most found under attack**: {_label(held)} with {_figure(_estimate(measure, held))}. {told}"

    def _recipes(self) -> Iterator[str]:
        """Of each base with several recipes on it: the one that gains most, and what does as well for less."""
        fitted = [pair for pair in self._pairs if pair.row.entry.manifest.submission.fit is not None]
        for base in dict.fromkeys(pair.base for pair in fitted):
            rows = sorted((pair.row for pair in fitted if pair.base is base), key=lambda row: row.standing.order)
            if len(rows) > 1:
                alike = [row for row in self._ties(SHIFTED, rows[0]) if row in rows]
                gain = self._difference(SHIFTED, rows[0], base)
                gains = gain is not None and gain.interval.is_above(_RESOLUTION)
                said = "gains most under shift" if gains else "stands first, but no gain under shift can be told"
                yield (
                    f"**Recipe on {_label(base)}**: {_label(rows[0])} {said}, {_signed(gain)}. "
                    f"{_describe_cheapest(rows[0], alike)}"
                )

    def _describe_ties(self, measure: Measure, best: Row, ties: Sequence[Row]) -> str:
        others = len(self._rows) - 1
        if not others:
            return "There is no other row."
        if not ties:
            return f"Told apart from {'the other row' if others == 1 else f'all {others} others'}."
        nearest = min(ties, key=lambda row: (abs(_difference_of(self._difference(measure, best, row))), row.id))
        gap = _signed(self._difference(measure, best, nearest))
        if len(ties) == 1:
            return f"Not told apart from {_label(nearest)} ({gap}), one of {others} other{'s' if others > 1 else ''}."
        return f"Not told apart from {len(ties)} of {others} others: {_labels(ties)} (to {_label(nearest)}: {gap})."

    def _smallest(self, best: Row, ties: Sequence[Row]) -> Iterator[str]:
        """The smallest row that is as good as the best as far as can be told."""
        sized = [row for row in (best, *ties) if row.entry.parameters is not None]
        if not sized:
            return
        least = min(sized, key=lambda row: (row.entry.parameters or 0, row.standing.order))
        size = f"{_label(least)}, {least.entry.parameters:,} parameters"
        if least is best:
            yield f"**Smallest that is not told apart from it**: it is so itself, {size}."
        else:
            gap = _signed(self._difference(SHIFTED, least, best))
            yield f"**Smallest that is not told apart from it**: {size}; R@1 under shift {gap} against {_label(best)}."

    def _fronts(self) -> Iterator[str]:
        sized = {row.id: float(row.entry.parameters) for row in self._rows if row.entry.parameters is not None}
        if sized:
            steps = [f"from {sized[row.id]:,.0f} on {_row(row)}" for row in self._front(sized)]
            yield f"**By parameters**: {'; '.join(steps)}."
        timed = {row.id: query.p50_ms for row in self._rows if (query := self._query(row)) is not None}
        if timed:
            steps = [f"from {timed[row.id]:.2f} ms{self._doubt(row)} on {_row(row)}" for row in self._front(timed)]
            yield f"**By latency**, {_describe_terms(self._terms)}, {_rows(len(timed))} timed: {'; '.join(steps)}."
        lost = {row.id: 100 * _value(LOST, row) for row in self._rows}
        steps = [f"from {lost[row.id]:.1f} % on {_row(row)}" for row in self._front(lost)]
        yield f"**By share lost**: {'; '.join(steps)}. {self._describe_lost()}"

    def _doubt(self, row: Row) -> str:
        query = self._query(row)
        return " (noisy)" if query is not None and "noisy" in query.timing.flags else ""

    def _describe_lost(self) -> str:
        """Which rows lose another share than the one that finds most."""
        best = self._rows[0]
        found = [(row, self._difference(LOST, row, best)) for row in self._rows[1:]]
        told = [f"{_label(row)} {_signed(paired)}" for row, paired in found if paired is not None and is_told(paired)]
        if not told:
            return f"No row is told apart from {_label(best)} in it."
        return f"Told apart from {_label(best)} in it: {', '.join(told)}."

    def _front(self, costs: Mapping[str, float]) -> list[Row]:
        """The rows that no other beats in cost and R@1 under shift, cheapest first."""
        rows = [row for row in self._rows if row.id in costs]
        points = np.array([[costs[row.id], -_value(SHIFTED, row)] for row in rows])
        kept = [row for row, is_kept in zip(rows, pareto(points), strict=True) if is_kept]
        return sorted(kept, key=lambda row: (costs[row.id], row.standing.order))

    def _query(self, row: Row) -> Query | None:
        """What one query took under the common terms."""
        return next(
            (query for query in list_queries(row.entry) if (query.n_items, query.hardware) == self._terms), None
        )

    def _table(self) -> Iterator[str]:
        names = [*(measure.name for measure in self._measures), "learnt, %", "fit, min (x full)", "added", "ms a query"]
        yield "Against the base, in percentage points; bold where it is told apart:"
        yield ""
        yield f"| row | base | kind | {' | '.join(names)} |"
        yield "|" + " --- |" * (len(names) + 3)
        for pair in self._pairs:
            differences = [self._difference(measure, pair.row, pair.base) for measure in self._measures]
            cells = [_bold(difference) for difference in differences]
            cells += [*_effort(pair.row), _added(pair), self._latency(pair)]
            yield f"| {_label(pair.row)} | {_label(pair.base)} | {pair.kind} | {' | '.join(cells)} |"

    def _latency(self, pair: Versus) -> str:
        ours, theirs = self._query(pair.row), self._query(pair.base)
        return "" if ours is None or theirs is None else f"{ours.p50_ms - theirs.p50_ms:+.2f}"

    def _of_kind(self, kind: str) -> Iterator[str]:
        pairs = [pair for pair in self._pairs if pair.kind == kind]
        if pairs:
            bases = _labels(dict.fromkeys(pair.base for pair in pairs))
            changes = "; ".join(self._describe_change(measure, pairs) for measure in self._measures)
            yield from _bullet(
                f"**{kind.capitalize()}** ({_labels(pair.row for pair in pairs)}; from {bases}): {changes}."
            )

    def _describe_change(self, measure: Measure, pairs: Sequence[Versus]) -> str:
        """In how many rows a measure rises, falls, or cannot be told, with the ends of each group."""
        found = [(pair.row, self._difference(measure, pair.row, pair.base)) for pair in pairs]
        known = sorted(
            [(difference, row) for row, difference in found if difference is not None],
            key=lambda one: (one[0].value, one[1].id),
        )
        groups = {
            "up": [one for one in known if is_told(one[0]) and one[0].value > 0],
            "down": [one for one in known if is_told(one[0]) and one[0].value < 0],
            "not told": [one for one in known if not is_told(one[0])],
        }
        said = [_describe_group(name, members, len(pairs)) for name, members in groups.items() if members]
        return f"{measure.name} {', '.join(said) or 'not known'}"

    def _second_stages(self) -> Iterator[str]:
        staged = [row for row in self._rows if row.entry.candidates is not None]
        if not staged:
            yield "**A second stage**: no row of this suite has one, so nothing can be said of when it pays."
        for row in staged:
            yield f"**A second stage**, {_label(row)}: {self._describe_stage(row)}"

    def _describe_stage(self, row: Row) -> str:
        candidates, base = row.entry.candidates, find_base(row, self._rows)
        k = candidates.k if candidates else 0
        bound = _figure(candidates.shifted if candidates else None)
        found = _figure(row.entry.overall.r1 if row.entry.overall else None)
        limit = f"R@1 under shift is {found} and can be at most {bound}, the recall of its {k} candidates."
        if base is None:
            return f"its encoder alone is no row here, so what it gains cannot be said. {limit}"
        gain = self._difference(SHIFTED, row, base)
        verdict = (
            "cannot be told to pay" if gain is None or not is_told(gain) else "pays" if gain.value > 0 else "costs"
        )
        clean = _signed(self._difference(CLEAN, row, base))
        ours, theirs = self._query(row), self._query(base)
        ms = "not timed" if ours is None or theirs is None else f"{ours.p50_ms:.2f} ms in place of {theirs.p50_ms:.2f}"
        return f"{verdict} under shift, {_signed(gain)}, clean {clean} against {_label(base)} alone, {ms}. {limit}"

    def _unknown(self) -> Iterator[str]:
        untimed = [row for row in self._rows if self._query(row) is None]
        if self._terms.hardware_class is None:
            yield "Latency: no row was timed."
        elif untimed:
            yield f"Latency of {_labels(untimed)}: not timed, with {_describe_terms(self._terms)}."
        paired = {pair.row.id for pair in self._pairs}
        alone = [row for row in self._rows if row.id not in paired]
        if alone:
            yield f"What was gained by {_labels(alone)}: they have no base on this board."
        yield from self._unknown_attacks()
        for name, reason in self._board.unranked:
            yield f"Anything of `{name}`: not ranked, {reason}."
        told = [is_told(difference) for difference in self._compared.values() if difference is not None]
        made = f"of {len(told)} comparisons made here {sum(told)} are told apart"
        yield f"Chance: {made}, without a correction for their number."

    def _unknown_attacks(self) -> Iterator[str]:
        if not self._attacks:
            yield "Attacks: there is no attacked cell that every row has and whose checks passed."
            return
        sizes = sorted({cell.n_images for cell in self._attacks})
        images = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        cells = f"{len(self._attacks)} cells and directions of {images} images each"
        yield f"Attacks: {cells}, those that every row has and whose checks passed; small differences are not seen."
        doubtful = [row for row in self._rows if any(cell.verdict != "reliable" for cell in row.entry.attacks)]
        if doubtful:
            yield f"Attacks whose checks failed, which are left out for all rows: of {_labels(doubtful)}."


def _describe_cheapest(best: Row, alike: Sequence[Row]) -> str:
    """Of the rows that gain as much as far as can be told: which learns least, and which is fitted in least time."""
    if not alike:
        return "All others are told apart from it."
    said = f"Not told apart from it: {_labels(alike)}."
    least = _cheapest([best, *alike], lambda row: row.entry.manifest.submission.parameters.trainable)
    if least is not None:
        said += f" Of these {_label(least[1])} learns fewest parameters, {least[0]:,.0f}"
    shortest = _cheapest([best, *alike], _relative_seconds)
    if least is not None and shortest is not None:
        said += f"; {_label(shortest[1])} takes least time, {shortest[0]:.2f} of full fine-tuning's"
    return said if said.endswith(".") else f"{said}."


def _cheapest(rows: Iterable[Row], cost: Callable[[Row], float | None]) -> tuple[float, Row] | None:
    known = [(value, row.standing.order, row) for row in rows if (value := cost(row)) is not None]
    if not known:
        return None
    value, _, row = min(known, key=lambda one: one[:2])
    return value, row


def _relative_seconds(row: Row) -> float | None:
    fit = row.entry.manifest.submission.fit
    return None if fit is None else fit.relative_seconds


def _describe_group(name: str, members: Sequence[tuple[Difference, Row]], n_rows: int) -> str:
    """`up in 2 of 3 (`a` +1.0 [0.1, 2.0] to `b` +2.0 [1.0, 3.0])`; of what is not told only the number."""
    if name == "not told":
        return f"{name} in {len(members)} of {n_rows}"
    ends = [members[0], *members[-1:]] if len(members) > 1 else list(members)
    said = " to ".join(f"{_label(row)} {_signed(difference)}" for difference, row in ends)
    return f"{name} in {len(members)} of {n_rows} ({said})"


def _name_of(cell: Attacked) -> str:
    return f"{cell.cell.slug}/{cell.direction}"


def _value(measure: Measure, row: Row) -> float:
    found = measure.of(row)
    return float("nan") if found is None else found[0]


def _estimate(measure: Measure, row: Row) -> Estimate | None:
    found = measure.of(row)
    return None if found is None else as_estimate(found)


def _difference_of(difference: Difference | None) -> float:
    return float("inf") if difference is None else difference.value


def _effort(row: Row) -> tuple[str, str]:
    """Share of the parameters that learnt, and minutes of fitting, beside those of full fine-tuning."""
    submission = row.entry.manifest.submission
    trainable, total, fit = submission.parameters.trainable, submission.parameters.total, submission.fit
    learnt = "" if trainable is None or not total else f"{100 * trainable / total:.3g}"
    if fit is None or fit.seconds is None:
        return learnt, ""
    relative = "" if fit.relative_seconds is None else f" ({fit.relative_seconds:.2f})"
    return learnt, f"{fit.seconds / 60:.1f}{relative}"


def _added(pair: Versus) -> str:
    ours, theirs = pair.row.entry.parameters, pair.base.entry.parameters
    return "" if ours is None or theirs is None else f"{ours - theirs:+,}" if ours != theirs else "0"


def _row(row: Row) -> str:
    return f"{_label(row)} with {_figure(row.entry.overall.r1 if row.entry.overall else None)}"


def _rows(count: int) -> str:
    return f"{count} row{'s' if count > 1 else ''}"


def _label(row: Row) -> str:
    return f"`{row.entry.label}`"


def _labels(rows: Iterable[Row]) -> str:
    return ", ".join(_label(row) for row in rows)


def _figure(value: Estimate | None) -> str:
    if value is None:
        return "an unknown value"
    return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def _signed(difference: Difference | None) -> str:
    if difference is None:
        return "not known"
    parts = difference.value, difference.interval.low, difference.interval.high
    value, low, high = (_points(part, _digits(parts)) for part in parts)
    return f"{value} [{low}, {high}]"


def _digits(parts: Sequence[float]) -> int:
    """So many that an end of an interval beside 0 does not look like 0, two at most."""
    return 2 if any(part and abs(100 * part) < 0.05 for part in parts) else 1


def _points(share: float, digits: int) -> str:
    """Percentage points with a sign, which 0 has not."""
    text = f"{100 * share:+.{digits}f}"
    return text if float(text) else text[1:]


def _bold(difference: Difference | None) -> str:
    if difference is None:
        return ""
    return f"**{_signed(difference)}**" if is_told(difference) else _signed(difference)


def _describe_terms(terms: Terms) -> str:
    hardware = re.sub(r"[^\w ().,/+-]", "", terms.hardware_class or "unnamed hardware")
    return f"one query among {terms.n_items or 0:,} items on {hardware}"


def _bullet(text: str) -> list[str]:
    """A list item, wrapped."""
    return textwrap.wrap(
        text, _WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
