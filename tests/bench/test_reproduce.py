"""Reproduction: honest bundles come out again, forged ones do not, however consistent they are with themselves."""

from __future__ import annotations

import datetime
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from observers import Silent
from typer.testing import CliRunner, Result

from bench.bundle import INDEX, BundleIndex, Results, make_bundle, read_results, validate_bundle
from bench.cli import app
from bench.errors import IncompleteError, InputError, UsageError
from bench.evidence import Evidence, pack_evidence
from bench.metrics import Ranks
from bench.records import Cell, Record, RunManifest, read_json, to_json
from bench.reproducing import Reproduction, choose_draw, compare_cell, draw_cells, reproduce
from bench.run import RunResult, RunSettings, run_suite
from bench.scoring import find_flags, score_evidence
from bench.store import sha256_of
from bench.submission import Submission, find_submission
from bench.suites import Suite, read_suite
from bench.types import Direction
from leaderboard.history import CHANGES, add_bundle, read_history
from shifts.attacks.catalogue import CATALOGUE, find_attack

BATCH = 16
DAY = datetime.date(2026, 3, 14)
OTHER = "0" * 64
ATTACKED = """
name = "attacked"
version = 1
status = "draft"
title = "Attacked"
summary = "Attacks on a few scenes."
reference = "colours"
seeds = [0]

[collections]
"scenes/test" = 8

[[cells]]
collection = "scenes/test"
shifts = ["clean_canvas"]
reason = "For a test."
"""
ATTACK = """
[[cells]]
collection = "scenes/test"
attacks = ["{}"]
budgets = [1]
threat_models = ["{}"]
n_images = 4
reason = "For a test."
"""


class Interrupting(Silent):
    """Stops a run before its second cell."""

    def cell_started(self, cell: Cell, n_items: int) -> None:
        if self.scored:
            raise KeyboardInterrupt


def without_night(name: str, **options: object) -> None:
    if name == "scenes-night/test":
        raise InputError("scenes-night is not here.")


@pytest.fixture
def bundle(finished_run: RunResult, tmp_path: Path) -> Path:
    return make_bundle(finished_run.folder, tmp_path / "bundle", overwrite=False)


def run_again(
    results: Results, submission: Submission, folder: Path, n_cells: int = 99, batch_size: int = BATCH
) -> Reproduction:
    draw = choose_draw(results.manifest, n_cells, 1, folder)
    return reproduce(results, submission, draw, RunSettings(batch_size=batch_size), folder, Silent())


def rove(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["reproduce", *map(str, arguments)])


def seal(bundle: Path) -> None:
    """Makes the index anew, as a forger would."""
    names = [path.relative_to(bundle).as_posix() for path in bundle.rglob("*.*") if path.is_file()]
    files = {name: sha256_of(bundle / name) for name in names if name != INDEX}
    (bundle / INDEX).write_bytes(to_json(BundleIndex(files=files)))


def change_manifest(bundle: Path, **changes: object) -> None:
    manifest = read_json(bundle / "run.json", RunManifest)
    (bundle / "run.json").write_bytes(to_json(manifest.model_copy(update=changes)))
    seal(bundle)


def improve(part: Evidence) -> Evidence:
    """The best item of every other query becomes a right one, and every list of the ten best fits."""
    starts = part.ranks.offsets[:-1]
    pessimistic, optimistic, top = part.ranks.pessimistic.copy(), part.ranks.optimistic.copy(), part.top.copy()
    for query in range(0, len(starts), 2):
        first, item = starts[query], part.items[starts[query]]
        pessimistic[first] = optimistic[first] = 1
        others = [other for other in top[query].tolist() if other != item]
        top[query] = [item, *others][: top.shape[1]]
    return replace(part, ranks=Ranks(part.ranks.offsets, pessimistic, optimistic), top=top)


def levels(part: Evidence) -> tuple[np.ndarray, np.ndarray]:
    return part.ranks.pessimistic, part.ranks.optimistic


def mirrored(direction: Direction, part: Evidence) -> Evidence:
    """The evidence, if the images of its collection were numbered from the last: other pairs would be right."""
    last = part.images.max()
    if direction == "t2i":
        items, top = last - part.items, np.where(part.top < 0, part.top, last - part.top)
        return replace(part, images=np.minimum.reduceat(items, part.ranks.offsets[:-1]), items=items, top=top)
    items, *both = (
        np.concatenate(np.split(one, part.ranks.offsets[1:-1])[::-1]) for one in (part.items, *levels(part))
    )
    offsets = np.concatenate([[0], np.cumsum(part.ranks.n_positives[::-1])])
    return replace(part, items=items, ranks=Ranks(offsets, *both), top=part.top[::-1])


def forge(bundle: Path, cell: Cell) -> None:
    """Better ranks for a cell, and metrics, flags and hashes that fit them."""
    results = read_results(bundle)
    record = next(record for record in results.records if record.cell == cell)
    rewrite(bundle, record, {name: improve(part) for name, part in results.evidence(record).items()})


def rewrite(bundle: Path, record: Record, evidence: dict[Direction, Evidence]) -> None:
    """Puts other evidence into a bundle or run, with metrics, flags and hashes that fit it."""
    path = bundle / "cells" / f"{record.cell.slug}.parquet"
    path.write_bytes(pack_evidence({str(name): part for name, part in evidence.items()}))
    fields = {
        "metrics": score_evidence(evidence, record.data.n_images),
        "flags": find_flags(evidence),
        "evidence_sha256": sha256_of(path),
    }
    path.with_suffix(".json").write_bytes(to_json(record.model_copy(update=fields)))
    if (bundle / INDEX).exists():
        seal(bundle)


def test_an_honest_bundle_is_reproduced_to_the_bit(bundle: Path, colours: Submission, tmp_path: Path) -> None:
    reproduction = run_again(validate_bundle(bundle), colours, tmp_path / "again")
    assert reproduction.verdict == "identical"
    assert {repeat.verdict for repeat in reproduction.repeats} == {"identical"}
    assert len(reproduction.repeats) == 9
    for repeat in reproduction.repeats:
        assert repeat.same_items
        assert repeat.same_embeddings
        assert all(outcome.stated == outcome.found and outcome.moved == 0 for outcome in repeat.outcomes)


def test_a_forged_bundle_validates_and_is_found(
    bundle: Path, colours: Submission, suite: Suite, tmp_path: Path
) -> None:
    forged = next(cell for cell in suite.cells if cell.shift == "gaussian_noise:5")
    forge(bundle, forged)
    reproduction = run_again(validate_bundle(bundle), colours, tmp_path / "again")
    assert reproduction.verdict == "differs"
    [found] = [repeat for repeat in reproduction.repeats if repeat.verdict == "differs"]
    assert found.cell == forged.id
    assert "pp are allowed" in found.reason
    assert all(outcome.found["hit@1"] < outcome.stated["hit@1"] and outcome.moved > 0 for outcome in found.outcomes)


def test_a_moved_rank_agrees(bundle: Path, colours: Submission, suite: Suite, tmp_path: Path) -> None:
    results = read_results(bundle)
    cell = next(cell for cell in suite.cells if cell.shift == "clean_canvas")
    record = next(record for record in results.records if record.cell == cell)
    part = results.evidence(record)["t2i"]
    starts, optimistic = part.ranks.offsets[:-1], part.ranks.optimistic[part.ranks.offsets[:-1]]
    far = starts[(part.ranks.n_positives == 1) & (optimistic > 10) & (part.ranks.best < 20)][:1]
    assert far.size
    ranks = Ranks(part.ranks.offsets, *(np.where(np.arange(len(one)) == far, one + 1, one) for one in levels(part)))
    evidence = {**results.evidence(record), "t2i": replace(part, ranks=ranks)}
    rewrite(bundle, record, evidence)
    found = run_again(validate_bundle(bundle), colours, tmp_path / "again", n_cells=1)
    [repeat] = found.repeats
    assert (repeat.cell, repeat.verdict, found.verdict) == (cell.id, "agrees", "agrees")
    assert repeat.same_embeddings
    assert repeat.outcomes[0].moved == pytest.approx(1 / len(part.queries))
    assert 0 < repeat.outcomes[0].largest_pp < repeat.outcomes[0].tolerance_pp


def test_where_the_machine_is_stated_to_be_alike_the_items_must_be_the_same(
    bundle: Path, colours: Submission, suite: Suite, tmp_path: Path
) -> None:
    cell = next(cell for cell in suite.cells if cell.shift == "clean_canvas")
    path = bundle / "cells" / f"{cell.slug}.json"
    record = read_json(path, Record)
    path.write_bytes(
        to_json(record.model_copy(update={"data": record.data.model_copy(update={"images_sha256": OTHER})}))
    )
    seal(bundle)
    found = run_again(validate_bundle(bundle), colours, tmp_path / "again", n_cells=1)
    assert found.repeats[0].verdict == "differs"
    assert "other pixels or captions" in found.repeats[0].reason
    change_manifest(bundle, batch_size=8)
    found = run_again(validate_bundle(bundle), colours, tmp_path / "elsewhere", n_cells=1)
    assert (found.changes, found.verdict, found.repeats[0].same_items) == (("batch_size",), "identical", False)


def test_pairs_that_the_collection_has_not_are_found(
    bundle: Path, colours: Submission, suite: Suite, tmp_path: Path
) -> None:
    results = read_results(bundle)
    night = next(record for record in results.records if record.cell.baseline)
    evidence = results.evidence(night)
    rewrite(bundle, night, {name: mirrored(name, part) for name, part in evidence.items()})
    reproduction = run_again(validate_bundle(bundle), colours, tmp_path / "again")
    [found] = [repeat for repeat in reproduction.repeats if repeat.verdict == "differs"]
    assert (found.cell, found.reason) == (night.cell.id, "t2i counts other pairs as right")


def test_what_cannot_be_run_is_said(
    bundle: Path, colours: Submission, toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = validate_bundle(bundle)
    failing = find_submission(f"{toys / 'faulty.py'}:not_finite")
    found = run_again(results, failing, tmp_path / "failing", n_cells=2)
    assert {repeat.verdict for repeat in found.repeats} == {"not run"}
    assert "not finite" in found.repeats[0].reason
    monkeypatch.setattr("bench.reproducing.load_collection", without_night)
    found = run_again(results, colours, tmp_path / "again")
    [repeat] = [repeat for repeat in found.repeats if repeat.verdict == "not run"]
    assert (repeat.cell.split()[0], repeat.reason) == ("scenes-night/test", "scenes-night is not here.")
    assert found.verdict == "not run"


def test_the_draw_has_a_canvas_and_cannot_be_foreseen(bundle: Path, tmp_path: Path) -> None:
    results = read_results(bundle)
    draws = [choose_draw(results.manifest, 4, seed, tmp_path / str(seed)) for seed in range(8)]
    drawn = [draw_cells(results, draw) for draw in draws]
    for cells in drawn:
        assert len(set(cells)) == 4
        assert [cell for cell in results.manifest.cells if cell in cells] == list(cells)
        assert ("scenes/test", "clean_canvas") in {(cell.collection, cell.shift) for cell in cells}
    assert len(set(drawn)) > 4
    unseen = {choose_draw(results.manifest, 4, None, tmp_path / name).seed for name in ("a", "b")}
    assert len(unseen) == 2
    assert choose_draw(results.manifest, 4, None, tmp_path / "a").seed in unseen
    with pytest.raises(UsageError, match="other cells"):
        choose_draw(results.manifest, 5, None, tmp_path / "a")


def test_the_same_command_goes_on(bundle: Path, colours: Submission, tmp_path: Path) -> None:
    results, settings = read_results(bundle), RunSettings(batch_size=BATCH)
    draw = choose_draw(results.manifest, 3, None, tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        reproduce(results, colours, draw, settings, tmp_path / "again", Interrupting())
    observer = Silent()
    draw = choose_draw(results.manifest, 3, None, tmp_path / "again")
    assert reproduce(results, colours, draw, settings, tmp_path / "again", observer).verdict == "identical"
    assert (len(observer.reused), len(observer.scored)) == (1, 2)


def test_nothing_that_was_computed_before_is_used(
    bundle: Path, colours: Submission, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "never"
    monkeypatch.setenv("ROVE_CACHE", str(cache))
    assert run_again(read_results(bundle), colours, tmp_path / "again", n_cells=3).verdict == "identical"
    assert not cache.exists()


def test_another_version_is_refused(bundle: Path, toys: Path) -> None:
    change_manifest(bundle, weights_sha256=OTHER)
    refused = rove(bundle, toys / "colours", "--cells", "1")
    assert isinstance(refused.exception, InputError)
    assert re.search(r"has other weights \(none, stated 0{8}\).*--any-version", str(refused.exception))
    change_manifest(bundle, fingerprint=OTHER)
    refused = rove(bundle, toys / "colours", "--cells", "1")
    assert "other files" in str(refused.exception)
    assert "other weights" in str(refused.exception)
    accepted = rove(bundle, toys / "colours", "--cells", "1", "--any-version", "--json")
    assert accepted.exit_code == 0
    assert json.loads(accepted.stdout)["other_version"].startswith("other files")


def test_the_submission_has_to_be_named_unless_it_ships(bundle: Path) -> None:
    unnamed, unknown = rove(bundle), rove(bundle, "tinny")
    assert isinstance(unnamed.exception, UsageError)
    assert "colours does not ship with Rove; name its folder" in str(unnamed.exception)
    assert "Did you mean 'tiny'?" in str(unknown.exception)


def test_the_leaderboard_takes_the_line_as_it_is_printed(bundle: Path, toys: Path, tmp_path: Path) -> None:
    revision = add_bundle(bundle, tmp_path / "results", "first result", DAY)
    done = rove(revision, toys / "colours", "--cells", "2", "--seed", "3")
    assert done.exit_code == 0, done.output
    with (revision.parent / CHANGES).open("a") as file:
        file.write(done.stdout)
    [row] = read_history(tmp_path / "results")
    assert row.reproduced
    assert row.reproduced.cells == 2
    assert row.reproduced.machine.endswith(", cpu")
    assert row.reproduced.reason.startswith("2 cells drawn with seed 3: 2 identical (within ")


def test_a_run_is_taken_as_well_and_ends_by_its_worst_cell(
    finished_run: RunResult, suite: Suite, toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(finished_run.folder, tmp_path / "run")
    monkeypatch.setattr("bench.reproducing.load_collection", without_night)
    arguments = (run, toys / "colours", "--cells", "99", "--output", tmp_path / "again", "--json")
    incomplete = rove(*arguments)
    assert isinstance(incomplete.exception, IncompleteError)
    facts = json.loads(incomplete.stdout)
    assert (facts["verdict"], facts["change"]) == ("not run", None)
    forge(run, suite.cells[0])
    differing = rove(*arguments)
    assert isinstance(differing.exception, InputError)
    assert f"1 of 9 cells: differs, first {suite.cells[0].id}" in str(differing.exception)


@pytest.mark.parametrize(
    "attacks", [("fgsm", "co_attack"), pytest.param([one.name for one in CATALOGUE], marks=pytest.mark.slow)]
)
def test_attacks_are_made_again(attacks: list[str], toys: Path, tmp_path: Path) -> None:
    path = tmp_path / "attacked.toml"
    path.write_text(ATTACKED + "".join(ATTACK.format(name, find_attack(name).threat_models[0]) for name in attacks))
    soft = find_submission(str(toys / "soft_colours"))
    run = run_suite(soft, read_suite(path), RunSettings(output=tmp_path / "run", batch_size=BATCH), Silent())
    results = validate_bundle(make_bundle(run.folder, tmp_path / "bundle", overwrite=False))
    reproduction = run_again(results, soft, tmp_path / "again")
    assert len(reproduction.repeats) == 1 + len(attacks)
    assert {repeat.verdict for repeat in reproduction.repeats} == {"identical"}
    outcomes = {outcome.name for repeat in reproduction.repeats for outcome in repeat.outcomes}
    assert {"t2i", "clean t2i", "unrounded i2t"} <= outcomes
    record = next(record for record in results.records if record.attack)
    transferred = record.attack.model_copy(update={"verdict": "transferred"})
    found = compare_cell(results, results, True, record.model_copy(update={"attack": transferred}), record)
    assert found.verdict == "differs"
    assert found.reason.endswith("stated transferred")
