"""Submissions with a second stage end to end: clean, shifted and attacked, against NumPy over all pairs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest
import torch
from observers import Silent

from bench.aim import Aim, choose_pairs
from bench.bundle import Results, read_results, verify_record
from bench.data.registry import load_collection
from bench.errors import UsageError
from bench.evidence import Evidence
from bench.examples import Examples, join, read_examples
from bench.records import Cell, Record
from bench.run import RunResult, RunSettings, run_suite, transfer_suite
from bench.second import NotApplicable, Readings, find_objective
from bench.shifted import Change, prepare_clean, prepare_shifted, reword
from bench.submission import Submission, find_submission
from bench.suites import Suite
from bench.types import Collection, Direction
from bench.victim import Victim
from bench.worker.host import Loaded, Worker, WorkerSettings
from shifts.attacks.budget import to_pixels
from shifts.attacks.catalogue import parse_attack
from shifts.catalogue import parse_shift

N_IMAGES, BATCH, K = 24, 24, 6
SETTINGS = RunSettings(batch_size=BATCH, rerank_k=K)
COLOURS = {
    "red": (215, 40, 40),
    "yellow": (240, 215, 50),
    "green": (45, 160, 60),
    "blue": (40, 80, 220),
    "purple": (130, 60, 190),
    "pink": (240, 130, 180),
    "brown": (130, 80, 40),
    "white": (240, 240, 240),
}


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sixteen dull tiles in four colours an image: what the first stage mixes up, the second tells apart."""
    folder, rng, rows, seen = tmp_path_factory.mktemp("tiles"), np.random.default_rng(0), [], set()
    words, values = list(COLOURS), np.array(list(COLOURS.values()), float)
    while len(rows) < 2 * N_IMAGES:  # half of them stand beside, to make distractors of
        own = tuple(sorted(rng.choice(len(words), 4, replace=False).tolist()))
        if own in seen:
            continue
        seen.add(own)
        tiles = rng.permutation([*own, *rng.choice(own, 12, p=[0.55, 0.25, 0.1, 0.1])])
        dull = 0.65 * values[tiles] + 0.35 * values[rng.choice(own, 16)]
        pixels = np.kron(dull.reshape(4, 4, 3), np.ones((16, 16, 1))) + rng.normal(0, 8, (64, 64, 3))
        file_name = f"{len(rows):02d}.png"
        PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / file_name)
        named = [words[colour] for colour in own]
        captions = [f"a picture of {', '.join(named)}", f"tiles in {' and '.join(named[::-1])}"]
        rows.append({"file_name": file_name, "captions": captions})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"folder:{folder}"


@pytest.fixture(scope="module")
def suite(name: str) -> Suite:
    both: tuple[Direction, ...] = ("t2i", "i2t")
    shifts = {"clean_canvas": both, "gaussian_noise:3": both, "typo_keyboard:3": both, "gallery_mix:4": ("t2i",)}
    cells = [Cell(collection=name, shift=shift, directions=directions) for shift, directions in shifts.items()]
    attacks = [
        *(("pgd:8", "query", stage, "i2t") for stage in ("retrieval", "reranking", "")),
        ("typo_greedy:1", "query", "", "t2i"),
        ("pgd:8", "gallery_target", "", "t2i"),
        ("pgd:8", "distractor", "", "t2i"),
    ]
    cells += [
        Cell(collection=name, shift=shift, threat_model=threat_model, stage=stage, directions=(direction,))
        for shift, threat_model, stage, direction in attacks
    ]
    return Suite("tiles", 1, "draft", "Tiles", "", "colours", (0,), {name: N_IMAGES}, tuple(cells))


@pytest.fixture(scope="module")
def two_stage(toys: Path) -> Submission:
    return find_submission(f"{toys / 'soft_colours' / 'two_stage.py'}:load")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, two_stage: Submission, suite: Suite) -> RunResult:
    folder = tmp_path_factory.mktemp("two_stage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROVE_CACHE", str(folder / "cache"))
        return run_suite(two_stage, suite, run_in(folder / "run"), Silent())


@pytest.fixture(scope="module")
def worker(two_stage: Submission) -> Iterator[Worker]:
    with Worker(two_stage, WorkerSettings()) as found:
        yield found


def run_in(folder: Path, **changes: object) -> RunSettings:
    return RunSettings(**{**vars(SETTINGS), "output": folder, **changes})


def record_of(result: RunResult, shift: str, threat_model: str = "", stage: str = "") -> Record:
    asked = (shift, threat_model, stage)
    return next(r for r in result.records if (r.cell.shift, r.cell.threat_model, r.cell.stage) == asked)


class Tables(NamedTuple):
    """Scores of both stages for all pairs of images and captions, (n_images, n_captions) float64."""

    first: np.ndarray
    second: np.ndarray


def score_all(worker: Worker, images: list[np.ndarray], captions: list[str]) -> Tables:
    vectors = [worker.encode_images(images).astype(np.float64), worker.encode_texts(captions).astype(np.float64)]
    units = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in vectors]
    tokens = worker.image_tokens(images)
    rows = [worker.score_pairs(np.stack([token] * len(captions)), captions) for token in tokens]
    return Tables((units[0][:, None] * units[1]).sum(axis=2), np.stack(rows).astype(np.float64))


def naive_ranks(collection: Collection, direction: Direction, tables: Tables, k: int) -> list[int]:
    """The rank of every query's best positive, by the second stage if it is in the pool; ties are lost."""
    right = np.zeros(tables.first.shape, bool)
    right[tuple(collection.positives.T)] = True
    first, second, right = (part.T if direction == "t2i" else part for part in (*tables, right))
    places = []
    for query in range(right.shape[0]):
        pool = np.argsort(-first[query], kind="stable")[:k]
        inside = pool[right[query, pool]]
        rivals, scores = (pool, second[query]) if inside.size else (np.arange(right.shape[1]), first[query])
        best = scores[inside if inside.size else right[query]].max()
        places.append(1 + int((scores[rivals[~right[query, rivals]]] >= best).sum()))
    return places


def stated_ranks(part: Evidence) -> list[int]:
    return np.minimum.reduceat(part.ranks.pessimistic, part.ranks.offsets[:-1]).tolist()


def examples_of(results: Results, collection: Collection, slug: str) -> Examples:
    folder = min((results.folder / "examples").glob(f"*-{slug}"), key=lambda path: len(path.name))
    return join(read_examples(folder), [image.id for image in collection.images], collection.captions)


def pixels_of(examples: Examples) -> list[np.ndarray]:
    return [np.asarray(image.pixels) for image in examples.images]


def test_shifted_cells_are_ranked_by_both_stages(result: RunResult, worker: Worker, name: str, tmp_path: Path) -> None:
    collection, results = load_collection(name).head(N_IMAGES), read_results(result.folder)
    canvas = [prepare_clean(canvas=True)(image) for image in collection.images]
    captions = list(collection.captions)
    for record in result.records[:4]:
        images, texts, change = canvas, captions, None
        if record.cell.shift != "clean_canvas":
            change = Change(*parse_shift(record.cell.shift), record.cell.seed)
        if change and change.shift.modality == "text":
            texts = list(reword(change, collection, tmp_path).captions)
        elif change:
            made = [prepare_shifted(change, collection)(image) for image in collection.images]
            images = made if change.shift.modality == "image" else canvas + made
        tables = score_all(worker, images, texts)
        for direction, part in results.evidence(record).items():
            expected = naive_ranks(collection, direction, tables, K)
            assert stated_ranks(part) == expected, (record.cell.id, direction)
            assert expected != naive_ranks(collection, direction, tables, 1), "the second stage changes nothing"
        assert record.data.token_bytes == 16 * 10 * 2


def test_attacked_cells_are_ranked_by_both_stages(result: RunResult, worker: Worker, name: str) -> None:
    collection, results = load_collection(name).head(N_IMAGES), read_results(result.folder)
    captions = list(collection.captions)
    crops = pixels_of(examples_of(results, collection, "crops"))
    clean = score_all(worker, crops, captions)
    own = np.zeros(clean.first.shape, bool)
    own[tuple(collection.positives.T)] = True

    def attacked(slug: str) -> Tables:
        return score_all(worker, pixels_of(examples_of(results, collection, slug)), captions)

    typed = examples_of(results, collection, "typo_greedy-1-query").captions
    canvas = [prepare_clean(canvas=True)(image) for image in collection.images]
    gallery, distractors = attacked("pgd-8-gallery"), attacked("pgd-8-distractor")
    expected = {
        ("pgd:8", "query", "reranking"): attacked("pgd-8-query-reranking"),
        ("pgd:8", "query", ""): attacked("pgd-8-query"),
        ("pgd:8", "gallery_target", ""): Tables(*(np.where(own, a, b) for a, b in zip(gallery, clean, strict=True))),
        ("pgd:8", "distractor", ""): Tables(*map(np.concatenate, zip(clean, distractors, strict=True))),
        ("typo_greedy:1", "query", ""): score_all(worker, canvas, list(typed)),
    }
    for asked, tables in expected.items():
        record = record_of(result, *asked)
        (direction,) = record.cell.directions
        assert stated_ranks(results.evidence(record)[direction]) == naive_ranks(collection, direction, tables, K), asked
        before = score_all(worker, canvas, captions) if asked[0] == "typo_greedy:1" else clean
        unattacked = results.evidence(record, "clean")[direction]
        assert stated_ranks(unattacked) == naive_ranks(collection, direction, before, K), asked


def test_every_cell_tells_what_was_attacked_and_follows_from_its_evidence(result: RunResult) -> None:
    results = read_results(result.folder)
    assert results.manifest.rerank_k == K
    assert not result.failed
    for record in results.records:
        if record.status == "ok":
            verify_record(results, record)
    objectives = {
        (r.cell.shift, r.cell.threat_model, r.cell.stage): r.attack.objective for r in result.records if r.attack
    }
    expected = {"retrieval": "retrieval", "reranking": "reranking", "": "both stages"}
    assert {stage: objectives["pgd:8", "query", stage] for stage in expected} == expected
    assert objectives["typo_greedy:1", "query", ""] == "both stages"
    assert objectives["pgd:8", "distractor", ""] == "retrieval"
    assert all(
        not r.attack.unrounded and r.attack.loss_after > r.attack.loss_before for r in result.records if r.attack
    )


@pytest.mark.parametrize(
    ("attack", "threat_model"),
    [("pgd:8", "distractor"), ("typo_greedy:1", "gallery_all"), ("typo_greedy:1", "gallery_target"), ("sga:8", "both")],
)
def test_without_a_goal_at_the_second_stage_the_first_is_attacked(attack: str, threat_model: str) -> None:
    loaded = Loaded("", None, {}, "cpu", 0.0, differentiable=True, reranker=True, differentiable_reranker=True)
    assert objective(attack, threat_model, "", loaded) == "retrieval"
    with pytest.raises(NotApplicable, match=f"threat model {threat_model} has no goal at the second stage"):
        objective(attack, threat_model, "reranking", loaded)


def test_each_stage_falls_most_to_the_attack_on_it(result: RunResult, worker: Worker, name: str) -> None:
    collection, results = load_collection(name).head(N_IMAGES), read_results(result.folder)
    final = {stage: record_of(result, "pgd:8", "query", stage).attack for stage in ("retrieval", "reranking", "")}
    assert min(report.asr["i2t"]["asr_hits@1"].value for report in final.values()) > 0.15
    slugs = {"clean": "crops", **{stage: f"pgd-8-query-{stage}".strip("-") for stage in final}}
    found = {stage: examples_of(results, collection, slug) for stage, slug in slugs.items()}
    leads = {
        stage: mean_leads(collection, score_all(worker, pixels_of(examples), list(collection.captions)))
        for stage, examples in found.items()
    }
    assert leads["retrieval"].first < leads["reranking"].first - 0.01
    assert leads["reranking"].second < leads["retrieval"].second - 0.01
    assert leads[""].first < leads["reranking"].first - 0.01
    assert leads[""].second < leads["retrieval"].second - 0.01
    assert max(leads[stage].first for stage in final) < leads["clean"].first
    assert max(leads[stage].second for stage in final) < leads["clean"].second


def mean_leads(collection: Collection, tables: Tables) -> Tables:
    """The best own caption's lead, averaged over images: over the rival at the pool's edge, then over the strongest."""
    own = np.zeros(tables.first.shape, bool)
    own[tuple(collection.positives.T)] = True
    others = [np.where(own, -np.inf, table) for table in tables]
    rivals = [np.sort(table)[:, -place] for table, place in zip(others, (K, 1), strict=True)]
    best = [np.where(own, table, -np.inf).max(axis=1) for table in tables]
    return Tables(*((right - wrong).mean() for right, wrong in zip(best, rivals, strict=True)))


def test_an_interrupted_run_goes_on_to_the_same_records_but_not_with_another_k(
    result: RunResult, two_stage: Submission, suite: Suite, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(result.folder, output)
    lost = record_of(result, "pgd:8", "query")
    (output / "cells" / f"{lost.cell.slug}.json").unlink()
    (batch,) = (output / "examples").glob("*-pgd-8-query/00000.npz")
    batch.unlink()
    observer = Silent()
    again = run_suite(two_stage, suite, run_in(output), observer)
    assert observer.scored == [lost.cell.id]
    assert [timeless(record) for record in again.records] == [timeless(record) for record in result.records]
    with pytest.raises(UsageError, match=r"rerank_k changed"):
        run_suite(two_stage, suite, run_in(output, rerank_k=K + 1), Silent())


def timeless(record: Record) -> dict[str, object]:
    return record.model_dump(exclude={"timing"})


def test_another_k_is_another_result_for_two_stages_alone(
    two_stage: Submission, toys: Path, suite: Suite, tmp_path: Path
) -> None:
    one_stage = find_submission(str(toys / "soft_colours"))
    few = Suite(**{**vars(suite), "cells": (suite.cells[0], suite.cells[5])})
    keys = []
    for submission, k in ((one_stage, K), (one_stage, K + 1), (two_stage, 1)):
        cells = few if submission is one_stage else Suite(**{**vars(suite), "cells": suite.cells[:1]})
        found = run_suite(submission, cells, run_in(tmp_path / submission.label / cells.id, rerank_k=k), Silent())
        keys.append([record.key for record in found.records])
    clean, attacked = run_suite(one_stage, few, run_in(tmp_path / one_stage.label / few.id), Silent()).records
    assert keys[0] == keys[1]
    assert attacked.status == "skipped"
    assert "soft-colours has one stage; there is no reranking" in attacked.reason
    assert clean.data.token_bytes is None
    assert found.records[0].metrics == clean.metrics, "a pool of one changes nothing"


def test_examples_keep_their_objective_where_another_submission_is_scored(
    result: RunResult, toys: Path, suite: Suite, tmp_path: Path
) -> None:
    source = read_results(result.folder)
    transferred = transfer_suite(suite, source)
    assert len(transferred.cells) == sum(record.attack is not None for record in result.records)
    one = Suite(**{**vars(transferred), "cells": transferred.cells[1:2]})
    settings = run_in(tmp_path / "run", source=result.folder)
    (record,) = run_suite(find_submission(str(toys / "soft_colours")), one, settings, Silent()).records
    assert (record.status, record.attack.objective, record.attack.verdict) == ("ok", "reranking", "transferred")
    assert record.attack.unrounded == {}


def test_a_second_stage_without_gradient_is_attacked_by_black_boxes(worker: Worker, toys: Path, name: str) -> None:
    collection = load_collection(name).head(N_IMAGES)
    images = [np.asarray(image.decode().resize((32, 32))) for image in collection.images]
    pixels, items = to_pixels(np.stack(images)), np.arange(N_IMAGES)
    with Worker(find_submission(f"{toys / 'soft_colours' / 'two_stage.py'}:opaque"), WorkerSettings()) as opaque:
        assert (opaque.loaded.reranker, opaque.loaded.differentiable_reranker) == (True, False)
        readings = Readings(opaque.image_tokens(images), collection.captions, lambda *pairs: score_rows(opaque, *pairs))
        cosines = torch.from_numpy(score_all(opaque, images, list(collection.captions)).first)
        own = torch.zeros(cosines.shape, dtype=torch.bool)
        own[tuple(torch.from_numpy(collection.positives).T)] = True
        aim = Aim(None, choose_pairs("images", True, cosines, own, K, readings))
        by_tokens, by_pixels = (aim.logits(Victim(one, BATCH), items)(pixels) for one in (opaque, worker))
        torch.testing.assert_close(by_tokens, by_pixels, atol=0.02, rtol=0.02)
        assert aim.mean_loss(cosines, readings) == pytest.approx(float(by_pixels[:, 1].exp().log1p().mean()), rel=0.01)
        assert objective("square:8", "query", "", opaque.loaded) == "both stages"
        assert objective("pgd:8", "query", "", opaque.loaded) == "retrieval"
        with pytest.raises(NotApplicable, match=r"pgd needs a gradient of the second stage.*no score_pixels"):
            objective("pgd:8", "query", "reranking", opaque.loaded)


def score_rows(worker: Worker, tokens: np.ndarray, images: np.ndarray, texts: list[str]) -> np.ndarray:
    return worker.score_pairs(tokens[images], texts)


def objective(attack: str, threat_model: str, stage: str, loaded: Loaded) -> str:
    cell = Cell(collection="c", shift=attack, threat_model=threat_model, stage=stage, directions=("i2t",))
    return find_objective(cell, parse_attack(attack)[0], loaded, "toy")
