"""Boards: the rows of one suite, ranked, with what is incomplete, superseded or wrong set aside and its reason kept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.bundle import INDEX
from bench.errors import IncompleteError, InputError, RoveError
from bench.locks import Lock, check_suite, find_lock
from bench.records import RunManifest, read_json
from leaderboard.entries import Entry, Hits, Reference, Resamples, Summarised, read_entry, read_reference
from leaderboard.history import CHANGES, Change, Revision, read_history
from leaderboard.ranking import Standing, rank

RESULTS = Path(__file__).parent / "results"


class Source(NamedTuple):
    """Where a bundle lies; of one in a results tree also which revision it is."""

    folder: Path
    revision: Revision | None


@dataclass(frozen=True, eq=False)
class Row:
    """A ranked submission.

    Args:
        id: unique within the board, fit for a file name and a URL.
        entry: its figures.
        resamples: of its families' scores.
        hits: of every image.
        standing: its place.
        source: its bundle.
    """

    id: str
    entry: Entry
    resamples: Resamples
    hits: Hits
    standing: Standing
    source: Source

    @property
    def reproduced(self) -> Change | None:
        """Who ran it again, and how much of it; None if nobody did."""
        return self.source.revision.reproduced if self.source.revision else None


class Unranked(NamedTuple):
    """A submission that takes no part in the order, and why."""

    label: str
    reason: str


@dataclass(frozen=True, eq=False)
class Board:
    """One suite.

    Args:
        label: the suite's, such as `demo-core-v1`.
        slug: fit for a folder's name and a URL; unique within the site.
        lock: what is known of the suite; None of a draft or of a suite of somebody's own.
        rows: in order.
        unranked: by label.
        superseded: revisions that newer ones replaced, or that were withdrawn.
    """

    label: str
    slug: str
    lock: Lock | None
    rows: tuple[Row, ...]
    unranked: tuple[Unranked, ...]
    superseded: tuple[Revision, ...]

    @property
    def title(self) -> str:
        """What people call it."""
        return self.lock.title if self.lock else self.label

    @property
    def families(self) -> tuple[str, ...]:
        """Families of shifts, in the suite's order."""
        return tuple(self.rows[0].entry.families) if self.rows else ()


class Boards(NamedTuple):
    """Every suite, and bundles that are none."""

    boards: tuple[Board, ...]
    rejected: tuple[tuple[str, str], ...]


def read_boards(places: Sequence[Path]) -> Boards:
    """The boards of all bundles in some places, each a bundle, a folder of bundles, or a results tree.

    Raises:
        InputError: there is no bundle at all.
    """
    sources, superseded = find_sources(places)
    entries, unranked, rejected = _read_entries(sources)
    suites = list(dict.fromkeys([*(suite for suite, _ in entries), *(suite for suite, _ in unranked)]))
    slugs = unique_slugs([label for label, _ in suites])
    boards = []
    for suite, slug in zip(suites, slugs, strict=True):
        alike, strangers = _same_items([found for of, found in entries if of == suite], find_lock(suite[0]))
        boards.append(
            Board(
                label=suite[0],
                slug=slug,
                lock=find_lock(suite[0]),
                rows=_rank(alike),
                unranked=tuple(sorted([*(row for of, row in unranked if of == suite), *strangers])),
                superseded=tuple(revision for revision in superseded if revision.suite == suite[0]),
            )
        )
    return Boards(tuple(sorted(boards, key=_prominence)), tuple(rejected))


def find_sources(places: Iterable[Path]) -> tuple[list[Source], list[Revision]]:
    """The bundles that count, and revisions that no longer do.

    Raises:
        InputError: there is no bundle, or a results tree contradicts itself.
    """
    sources: list[Source] = []
    superseded: list[Revision] = []
    for place in places:
        if any(place.glob(f"*/*/{CHANGES}")):
            revisions = read_history(place)
            sources += [Source(revision.folder, revision) for revision in revisions if revision.is_current]
            superseded += [revision for revision in revisions if not revision.is_current]
        else:
            sources += [Source(path.parent, None) for path in sorted(place.rglob(INDEX))]
    if not sources:
        raise InputError(f"no bundle in {', '.join(map(str, places))}; `rove bundle RUN` makes one.")
    return sources, superseded


def unique_slugs(names: Iterable[str]) -> list[str]:
    """Names as they may stand in a URL or a file name, in the same order; equal ones are numbered."""
    taken: dict[str, int] = {}
    slugs = []
    for name in names:
        slug = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:80] or "unnamed"
        taken[slug] = taken.get(slug, 0) + 1
        slugs.append(slug if taken[slug] == 1 else f"{slug}--{taken[slug]}")
    return slugs


_Suite = tuple[str, str]


class _Found(NamedTuple):
    source: Source
    summarised: Summarised


def _read_entries(
    sources: Sequence[Source],
) -> tuple[list[tuple[_Suite, _Found]], list[tuple[_Suite, Unranked]], list[tuple[str, str]]]:
    entries, unranked, rejected = [], [], []
    references = _References(sources)
    for source in sources:
        try:
            manifest = read_json(source.folder / "run.json", RunManifest)
            suite = (manifest.suite, manifest.suite_id)
            check_suite(*suite)
        except RoveError as error:
            rejected.append((source.folder.name, str(error)))
            continue
        try:
            summarised = read_entry(source.folder, references.of(suite))
            if summarised.entry.unranked:
                unranked.append((suite, Unranked(summarised.entry.label, summarised.entry.unranked)))
            else:
                entries.append((suite, _Found(source, summarised)))
        except IncompleteError as error:
            unranked.append((suite, Unranked(manifest.label, str(error))))
        except RoveError as error:
            rejected.append((source.folder.name, str(error)))
    return entries, unranked, rejected


class _References:
    """Each suite's reference submission, validated once, when it is first asked for."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._known: dict[_Suite, Reference | None] = {}

    def of(self, suite: _Suite) -> Reference | None:
        """None where the suite names none, or it has no valid bundle here."""
        if suite not in self._known:
            self._known[suite] = self._find(suite)
        return self._known[suite]

    def _find(self, suite: _Suite) -> Reference | None:
        lock = find_lock(suite[0])
        for source in self._sources if lock else ():
            try:
                manifest = read_json(source.folder / "run.json", RunManifest)
                if lock and manifest.label == lock.reference and (manifest.suite, manifest.suite_id) == suite:
                    return read_reference(source.folder)
            except RoveError:
                continue
        return None


def _same_items(found: Sequence[_Found], lock: Lock | None) -> tuple[list[_Found], list[Unranked]]:
    """Those that were fed what the suite's reference submission was, or the first one where there is none; the others.

    A lock states the items of collections that Rove renders; what photos a copy of the others held, only runs can say.
    """
    entries = [one.summarised.entry for one in found]
    reference = next((entry for entry in entries if lock and entry.label == lock.reference), None)
    alike: list[_Found] = []
    strangers: list[Unranked] = []
    for one, entry in zip(found, entries, strict=True):
        reference = reference or entry
        cell = _first_difference(entry, reference)
        if cell:
            strangers.append(Unranked(entry.label, f"was fed other items than {reference.label} in {cell}"))
        else:
            alike.append(one)
    return alike, strangers


def _first_difference(entry: Entry, reference: Entry) -> str:
    expected = {score.cell: score.items for score in reference.scores}
    return next((score.cell.id for score in entry.scores if score.items != expected.get(score.cell)), "")


def _rank(found: Sequence[_Found]) -> tuple[Row, ...]:
    standings = rank([one.summarised.entry for one in found], [one.summarised.resamples for one in found])
    ids = unique_slugs(one.summarised.entry.label for one in found)
    rows = [
        Row(row_id, *one.summarised, standing, one.source)
        for row_id, one, standing in zip(ids, found, standings, strict=True)
    ]
    return tuple(sorted(rows, key=lambda row: row.standing.order))


def _prominence(board: Board) -> tuple[bool, bool, int, str]:
    """Frozen suites of photos before scenes, those with most rows first."""
    return (board.lock is None, board.label.startswith("demo"), -len(board.rows), board.label)
