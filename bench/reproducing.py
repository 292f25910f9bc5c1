"""Reproduction: cells of a run or bundle, drawn at random, run again and laid beside what is stated of them.

That the metrics follow from the evidence, `bench.bundle` shows; that the evidence follows from the submission, only
another run can. The seed of the draw is made up after the bundle, so that whoever wrote it cannot know which cells
count, and nothing that was computed before is used: embeddings, reworded captions and attacked items are made anew.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.bundle import Results
from bench.cells import RunSettings
from bench.data.registry import load_collection
from bench.errors import InputError, RoveError, UsageError
from bench.evidence import Evidence, in_variant
from bench.metrics import METRICS, score_queries, summarise
from bench.records import (
    CLEAN,
    Amount,
    Cell,
    Count,
    Data,
    Record,
    RunManifest,
    Sha256,
    Strict,
    digest_of,
    read_json,
    to_json,
)
from bench.run import Observer, RunResult, build_manifest, list_changes, run_suite
from bench.store import write_atomic
from bench.submission import Submission, find_submission, shipped_submissions
from bench.suites import Suite
from bench.worker.host import Worker, WorkerSettings
from shifts.attacks.catalogue import parse_attack
from shifts.catalogue import parse_shift

SAME_PP = 0.2
OTHER_PP = 0.5
ATTACKED_PP = 2.0
_ROUNDING_PP = 1e-9
_DRAW = "reproduction.json"
_FRACTIONS = tuple(metric for metric in METRICS if metric.summary == "mean")
_MAY_DIFFER = ("fingerprint", "suite_id", "data_dirs", "isolation")
Verdict = Literal["identical", "agrees", "differs", "not run"]


class Draw(Strict):
    """Which cells are drawn: kept in the output folder, so that the same command goes on with the same ones."""

    run: Sha256
    n_cells: Count
    seed: Amount


@dataclass(frozen=True)
class Outcome:
    """One direction of a cell, as stated and as found.

    Args:
        name: `t2i`; of an attacked cell also `clean t2i` and `unrounded t2i`.
        stated: by metric, those that are fractions.
        found: the same, run again.
        largest_pp: the largest difference between the two, in percentage points.
        tolerance_pp: what it may be.
        moved: share of the queries whose rank is another.
    """

    name: str
    stated: Mapping[str, float]
    found: Mapping[str, float]
    largest_pp: float
    tolerance_pp: float
    moved: float


@dataclass(frozen=True)
class Repeat:
    """What came of one cell.

    Args:
        verdict: `identical` if its evidence is; `agrees` if every difference is within its tolerance.
        reason: why it differs, or was not run.
        same_items: whether it was fed the same pixels and captions; attacked ones are made anew.
        same_embeddings: whether the submission made the same of them, to the bit.
    """

    cell: str
    verdict: Verdict
    reason: str = ""
    same_items: bool = False
    same_embeddings: bool = False
    outcomes: tuple[Outcome, ...] = ()


@dataclass(frozen=True)
class Reproduction:
    """What came of all drawn cells.

    Args:
        seed: of the draw.
        machine: what they were run again on.
        changes: in what settings, versions or processor this run is not like the one that it repeats.
        repeats: in the suite's order.
    """

    seed: int
    machine: str
    changes: tuple[str, ...]
    repeats: tuple[Repeat, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of all."""
        verdicts: tuple[Verdict, ...] = ("differs", "not run", "agrees", "identical")
        found = {repeat.verdict for repeat in self.repeats}
        return next(verdict for verdict in verdicts if verdict in found)

    @property
    def summary(self) -> str:
        """One line: how many cells of which draw came to what, and what they were allowed to differ by."""
        counts = Counter(repeat.verdict for repeat in self.repeats)
        parts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        outcomes = [outcome for repeat in self.repeats for outcome in repeat.outcomes]
        pp = " or ".join(format(largest, ".2g") for largest in sorted({outcome.tolerance_pp for outcome in outcomes}))
        allowed = f" (within {pp} pp)" if pp else ""
        return f"{len(self.repeats)} cells drawn with seed {self.seed}: {parts}{allowed}"

    def as_dict(self) -> dict[str, Any]:
        """As plain data, ready for JSON."""
        return {"verdict": self.verdict, **asdict(self)}


def choose_submission(manifest: RunManifest, reference: str | None, args: Mapping[str, str]) -> Submission:
    """The submission of a run, with the run's arguments and `args` over them.

    Args:
        reference: as for `rove run`; None for the shipped submission of the manifest's name.

    Raises:
        UsageError: there is no such submission, or it takes no such arguments.
    """
    name = manifest.submission.name
    if reference is None and name not in shipped_submissions():
        raise UsageError(f"{name} does not ship with Rove; name its folder behind the bundle.")
    return find_submission(reference or name, {**manifest.args, **args})


def find_other_version(manifest: RunManifest, submission: Submission, settings: WorkerSettings) -> str:
    """In what a submission is not the one that was run, which its files and its loaded weights tell; "" if in nothing.

    Raises:
        SubmissionError: it cannot be loaded.
    """
    with Worker(submission, settings) as worker:
        weights = worker.loaded.weights_sha256
    pairs = {"files": (submission.fingerprint, manifest.fingerprint), "weights": (weights, manifest.weights_sha256)}
    told = [f"other {name} ({_short(a)}, stated {_short(b)})" for name, (a, b) in pairs.items() if a != b]
    return " and ".join(told)


def choose_draw(manifest: RunManifest, n_cells: int, seed: int | None, folder: Path) -> Draw:
    """The draw that was begun in `folder`, or a new one, written there; without a seed nobody can foresee it.

    Raises:
        UsageError: another one was begun there.
    """
    path, run = folder / _DRAW, digest_of(manifest.model_dump(mode="json"))
    earlier = read_json(path, Draw) if path.is_file() else None
    if seed is None:
        seed = earlier.seed if earlier else secrets.randbits(32)
    draw = Draw(run=run, n_cells=n_cells, seed=seed)
    if earlier not in (None, draw):
        raise UsageError(f"{folder} holds other cells, or cells of another run; choose another --output.")
    write_atomic(path, to_json(draw))
    return draw


def draw_cells(results: Results, draw: Draw) -> tuple[Cell, ...]:
    """A clean canvas, which losses are measured against, and others at random, in the suite's order.

    Raises:
        InputError: no cell was scored but on items that were made against another submission.
    """
    scored = {record.cell for record in results.records if record.status == "ok" and not record.cell.victim}
    cells = [cell for cell in results.manifest.cells if cell in scored]
    if not cells:
        raise InputError(f"{results.folder} has no scored cell but of another run's items; run that one again.")
    canvas = next((cell for cell in cells if cell.shift == "clean_canvas" and not cell.baseline), cells[0])
    others = [cell for cell in cells if cell != canvas]
    order = np.random.Generator(np.random.Philox(draw.seed)).permutation(len(others))
    drawn = {canvas, *(others[place] for place in order[: draw.n_cells - 1])}
    return tuple(cell for cell in cells if cell in drawn)


def reproduce(
    results: Results, submission: Submission, draw: Draw, settings: RunSettings, folder: Path, observer: Observer
) -> Reproduction:
    """The drawn cells run again in `folder`, beside what `results` states; the same call goes on after a kill.

    Args:
        results: verified.
        settings: as of the run, or others; where the run and its cache lie is decided here.

    Raises:
        SubmissionError: the submission cannot be loaded.
        InputError: a collection is here, and has too few images.
    """
    cells = draw_cells(results, draw)
    obstacles = _find_obstacles(cells, settings)
    part = _part_of(results.manifest, [cell for cell in cells if cell not in obstacles])
    settings = replace(settings, output=folder / f"run-{part.id[:8]}", cache=folder / "cache")
    now = build_manifest(submission, part, settings)
    run = run_suite(submission, part, settings, observer) if part.cells else RunResult(folder, now, ())
    changes = [name for name in list_changes(results.manifest, now) if name not in _MAY_DIFFER]
    compare = partial(compare_cell, results, Results(run.folder, now, run.records), not changes and now.device == "cpu")
    stated, again = ({record.cell: record for record in records} for records in (results.records, run.records))
    repeats = [
        Repeat(cell.id, "not run", obstacles[cell]) if cell in obstacles else compare(stated[cell], again[cell])
        for cell in cells
    ]
    return Reproduction(draw.seed, f"{now.environment.processor}, {now.device}", tuple(changes), tuple(repeats))


def _find_obstacles(cells: Sequence[Cell], settings: RunSettings) -> dict[Cell, str]:
    """Why some of the cells cannot be run here: their collection is not to be had, or nobody knows their change."""

    @cache
    def load(name: str) -> None:
        load_collection(name, data_dirs=settings.data_dirs, offline=settings.worker.offline)

    obstacles = {}
    for cell in cells:
        try:
            load(cell.collection)
            if cell.shift not in CLEAN:
                (parse_attack if cell.is_attack else parse_shift)(cell.shift)
        except RoveError as error:
            obstacles[cell] = str(error)
    return obstacles


def _part_of(manifest: RunManifest, cells: Sequence[Cell]) -> Suite:
    """These cells of a run's suite, which need not be one that ships with Rove."""
    return Suite(
        name=f"{manifest.suite}-part",
        version=1,
        status="draft",
        title="",
        summary="",
        reference="",
        seeds=(),
        collections=manifest.collections,
        cells=tuple(cells),
    )


def compare_cell(stated: Results, found: Results, is_alike: bool, record: Record, again: Record) -> Repeat:
    """A cell as `stated` beside the same cell as `found`, on a machine and with versions that are alike or not."""
    was, is_now = record.data, again.data
    if again.status != "ok" or was is None or is_now is None:
        return Repeat(record.cell.id, "not run", again.reason)
    theirs, ours = _by_name(stated, record), _by_name(found, again)
    other = _find_other_items(record.cell, was, is_now, is_alike) or _find_other_pairs(theirs, ours)
    repeat = Repeat(
        cell=record.cell.id,
        verdict="differs",
        reason=other,
        same_items=_fed(was) == _fed(is_now),
        same_embeddings=record.embeddings_sha256 == again.embeddings_sha256,
    )
    if other:
        return repeat
    allow = partial(_tolerance_pp, record.cell, is_alike)
    outcomes = tuple(
        _compare_direction(name, part, ours[name], allow(name, len(part.queries))) for name, part in theirs.items()
    )
    is_identical = all(_is_equal(part, ours[name]) for name, part in theirs.items())
    reason = _find_difference(outcomes) or _find_other_verdict(record, again)
    verdict: Verdict = "differs" if reason else "identical" if is_identical else "agrees"
    return replace(repeat, verdict=verdict, reason=reason, outcomes=outcomes)


def _by_name(results: Results, record: Record) -> dict[str, Evidence]:
    """A cell's evidence by variant and direction."""
    variants = results.variants(record)
    return {in_variant(name, direction): part for name, parts in variants.items() for direction, part in parts.items()}


def _find_other_items(cell: Cell, stated: Data, found: Data, is_alike: bool) -> str:
    """Why a cell was not scored on what was stated; where versions differ, so may the pixels; "" if it was."""
    if stated.source_sha256 != found.source_sha256:
        return f"{cell.collection} is here not the one that was scored: items, captions or pairs are others"
    if is_alike and not cell.is_attack and _fed(stated) != _fed(found):
        return "other pixels or captions were fed, on a machine and with versions that are stated to be the same"
    return ""


def _fed(data: Data) -> list[str | None]:
    return [data.images_sha256, data.captions_sha256, data.distractors_sha256]


def _find_other_pairs(theirs: Mapping[str, Evidence], ours: Mapping[str, Evidence]) -> str:
    """Which evidence counts other items as right than the collection does; "" if none."""
    if list(theirs) != list(ours):
        return f"evidence is of {', '.join(theirs)}; expected {', '.join(ours)}"
    pairs = ((name, theirs[name].pairs(by_item=False), ours[name].pairs(by_item=False)) for name in ours)
    return next((f"{name} counts other pairs as right" for name, a, b in pairs if not np.array_equal(a, b)), "")


def _compare_direction(name: str, theirs: Evidence, ours: Evidence, tolerance_pp: float) -> Outcome:
    stated, found = _fractions(theirs), _fractions(ours)
    return Outcome(
        name=name,
        stated=stated,
        found=found,
        largest_pp=max(100 * abs(stated[metric] - found[metric]) for metric in stated),
        tolerance_pp=tolerance_pp,
        moved=float((theirs.ranks.best != ours.ranks.best).mean()),
    )


def _fractions(part: Evidence) -> dict[str, float]:
    values = summarise(score_queries(part.ranks, _FRACTIONS), _FRACTIONS)
    return {metric.id: float(value) for metric, value in zip(_FRACTIONS, values, strict=True)}


def _is_equal(a: Evidence, b: Evidence) -> bool:
    arrays = ((part.items, part.top, part.ranks.pessimistic, part.ranks.optimistic) for part in (a, b))
    return all(np.array_equal(one, other) for one, other in zip(*arrays, strict=True))


def _tolerance_pp(cell: Cell, is_alike: bool, name: str, n_queries: int) -> float:
    """What a fraction may differ by; always that one query has moved, which few queries make more of."""
    is_attacked = cell.is_attack and not name.startswith("clean ")
    return max(SAME_PP if is_alike else ATTACKED_PP if is_attacked else OTHER_PP, 100 / n_queries)


def _find_difference(outcomes: Sequence[Outcome]) -> str:
    """The metric that is furthest outside its tolerance; "" if none is."""
    outcome = max(outcomes, key=lambda outcome: outcome.largest_pp - outcome.tolerance_pp)
    if outcome.largest_pp <= outcome.tolerance_pp + _ROUNDING_PP:
        return ""
    metric = max(outcome.stated, key=lambda metric: abs(outcome.stated[metric] - outcome.found[metric]))
    figures = f"{100 * outcome.found[metric]:.2f} %, stated {100 * outcome.stated[metric]:.2f} %"
    return f"{outcome.name} {metric} is {figures}; {outcome.tolerance_pp:.2g} pp are allowed"


def _find_other_verdict(record: Record, again: Record) -> str:
    """Whether an attack was to be believed, if it is now found not to be or the other way round; "" otherwise."""
    if record.attack is None or again.attack is None:
        return ""
    stated, found = record.attack.verdict, again.attack.verdict
    return "" if stated.partition(":")[0] == found.partition(":")[0] else f"the attack is {found}; stated {stated}"


def _short(digest: str | None) -> str:
    return digest[:8] if digest else "none"
