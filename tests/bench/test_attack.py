"""Attacked cells end to end: against NumPy, after a kill, on other submissions, and told from models that only hide."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from observers import Silent

from bench.bundle import make_bundle, read_results, validate_bundle, verify_record
from bench.data.registry import load_collection
from bench.doctor import diagnose_run
from bench.errors import InputError, UsageError
from bench.examples import read_examples
from bench.records import Record
from bench.run import RunResult, RunSettings, run_suite, transfer_suite
from bench.store import proof_of
from bench.submission import Submission, find_submission
from bench.suites import Suite, read_suite
from bench.summary import summarise_run, transfer_matrix

N_IMAGES, BATCH = 12, 5
SUITE = f"""
name = "attacked"
version = 1
status = "draft"
title = "Attacked"
summary = "Attacks on a few scenes."
reference = "colours"
seeds = [0]

[collections]
"scenes/test" = 24

[[cells]]
collection = "scenes/test"
shifts = ["clean_canvas"]
reason = "For a test."

[[cells]]
collection = "scenes/test"
attacks = ["pgd"]
budgets = [8]
threat_models = ["query", "gallery_target", "gallery_all", "distractor"]
n_images = {N_IMAGES}
reason = "For a test."

[[cells]]
collection = "scenes/test"
attacks = ["typo_greedy"]
budgets = [1]
threat_models = ["query", "gallery_target"]
n_images = {N_IMAGES}
reason = "For a test."
"""


@pytest.fixture(scope="module")
def soft(toys: Path) -> Submission:
    return find_submission(str(toys / "soft_colours"))


@pytest.fixture(scope="module")
def suite_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "attacked.toml"
    path.write_text(SUITE)
    return path


@pytest.fixture(scope="module")
def suite(suite_path: Path) -> Suite:
    return read_suite(suite_path)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory, soft: Submission, suite: Suite) -> RunResult:
    folder = tmp_path_factory.mktemp("attacked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROVE_CACHE", str(folder / "cache"))
        return run_suite(soft, suite, RunSettings(output=folder / "run", batch_size=BATCH), Silent())


def record_of(result: RunResult, shift: str, threat_model: str) -> Record:
    return next(r for r in result.records if (r.cell.shift, r.cell.threat_model) == (shift, threat_model))


def contents(folder: Path) -> dict[str, object]:
    """Records without their timing, and the bytes of all examples."""
    found: dict[str, object] = {}
    for path in sorted((folder / "cells").glob("*.json")):
        found[path.name] = {**json.loads(path.read_text()), "timing": None}
    for path in sorted((folder / "examples").rglob("*.np?")):
        found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def soft_vectors(soft: Submission, images: np.ndarray) -> np.ndarray:
    code = "import sys, numpy as np, PIL.Image; import model; m = model.SoftColours(); a = np.load(sys.argv[1]);"
    code += "np.save(sys.argv[2], m.encode_images([PIL.Image.fromarray(i) for i in a]))"
    folder = Path(os.environ["ROVE_CACHE"])
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "in.npy", images)
    command = [sys.executable, "-c", code, str(folder / "in.npy"), str(folder / "out.npy")]
    subprocess.run(command, cwd=soft.folder, check=True)
    vectors = np.load(folder / "out.npy").astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_every_attacked_cell_is_told_whole_and_follows_from_its_evidence(attacked: RunResult, suite: Suite) -> None:
    results = read_results(attacked.folder)
    assert not attacked.failed
    for record in results.records:
        verify_record(results, record)
        if record.attack:
            assert record.data.n_images == N_IMAGES
            assert record.attack.largest_change <= 8
            assert record.attack.most_edits <= 1
            assert record.attack.verdict == "reliable"
            assert record.attack.loss_after > record.attack.loss_before
    assert record_of(attacked, "pgd:8", "query").attack.unrounded["i2t"].keys() >= {"hit@1"}
    assert record_of(attacked, "typo_greedy:1", "query").attack.largest_change == 0


def test_threat_models_agree_with_a_naive_computation(attacked: RunResult, soft: Submission) -> None:
    collection = load_collection("scenes/test").head(N_IMAGES)
    folder = attacked.folder / "examples"
    crops, hostile = (
        soft_vectors(soft, np.concatenate([batch.images for batch in read_examples(folder / f"scenes-test-12-{name}")]))
        for name in ("crops", "pgd-8-gallery")
    )
    texts = np.array([[text.lower().count(word) for word in PALETTE] for text in collection.captions]) + 1e-3
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    right = np.zeros((len(texts), N_IMAGES), bool)
    right[tuple(collection.positives.T[::-1])] = True
    clean, changed = texts @ crops.T, texts @ hostile.T
    expected = {
        "gallery_target": np.where(right, changed, clean),
        "gallery_all": changed,
    }
    for threat_model, scores in expected.items():
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        for k in (1, 5, 10):
            hits = 1 + ((scores >= best) & ~right).sum(axis=1) <= k
            record = record_of(attacked, "pgd:8", threat_model)
            assert record.metrics["t2i"][f"hit@{k}"].value == pytest.approx(hits.mean(), abs=0.034)
    report = record_of(attacked, "pgd:8", "gallery_all").attack
    best = np.where(right, clean, -np.inf).max(axis=1, keepdims=True)
    before = ((clean >= best) & ~right).sum(axis=1) == 0
    best = np.where(right, changed, -np.inf).max(axis=1, keepdims=True)
    after = ((changed >= best) & ~right).sum(axis=1) == 0
    lost = (before & ~after).sum() / before.sum()
    assert report.asr["t2i"]["asr_hits@1"].value == pytest.approx(lost, abs=0.1)


def test_a_distractor_joins_the_gallery(attacked: RunResult) -> None:
    record = record_of(attacked, "pgd:8", "distractor")
    assert record.data.n_distractors == N_IMAGES
    assert record.metrics["t2i"]["hit@1"].value < record.attack.clean["t2i"]["hit@1"].value
    folder = attacked.folder / "examples"
    made, beside, own = (
        np.concatenate([batch.images for batch in read_examples(folder / f"scenes-test-{name}")]).astype(int)
        for name in ("12-pgd-8-distractor", "beside-12-crops", "12-crops")
    )
    assert np.abs(made - beside).max() <= 8
    assert np.abs(made - own).max(axis=(1, 2, 3)).min() > 8


def test_threat_models_share_their_examples(attacked: RunResult) -> None:
    names = sorted(path.name for path in (attacked.folder / "examples").iterdir() if path.is_dir())
    texts = ["scenes-test-12-typo_greedy-1-gallery", "scenes-test-12-typo_greedy-1-query"]
    images = [f"scenes-test-12-{name}" for name in ("crops", "pgd-8-distractor", "pgd-8-gallery", "pgd-8-query")]
    assert names == sorted([*images, *texts, "scenes-test-beside-12-crops"])


def test_killed_in_the_middle_of_a_cell_it_ends_with_the_same_examples(
    attacked: RunResult, soft: Submission, suite_path: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    command = [sys.executable, "-m", "bench.cli", "run", str(soft.folder), "--suite", str(suite_path)]
    command += ["--batch-size", str(BATCH), "-o", str(output)]
    begun = output / "examples" / "scenes-test-12-pgd-8-query" / "00000.npz"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    while not begun.exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (output / "cells" / "scenes-test-pgd-8-query.json").exists()
    first = begun.stat().st_mtime_ns
    subprocess.run(command, stderr=subprocess.DEVNULL, check=True)
    assert begun.stat().st_mtime_ns == first
    assert contents(output) == contents(attacked.folder)


def test_damaged_examples_are_made_again(
    attacked: RunResult, soft: Submission, suite: Suite, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "run"
    shutil.copytree(attacked.folder, output)
    path = output / "examples" / "scenes-test-12-pgd-8-query" / "00001.npy"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    (output / "cells" / "scenes-test-pgd-8-query.json").unlink()
    run_suite(soft, suite, RunSettings(output=output, batch_size=BATCH), Silent())
    assert "00001.npy.bad, and made again" in caplog.text
    assert contents(output) == contents(attacked.folder)


def test_a_doctor_sets_damaged_examples_aside_with_the_cells_that_were_scored_on_them(
    attacked: RunResult, soft: Submission, suite: Suite, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(attacked.folder, output)
    assert not diagnose_run(output, repair=False).found
    examples = output / "examples"
    for name in ("scenes-test-12-pgd-8-gallery/00002.npz", "scenes-test-12-examination-texts"):
        flip(examples / name)
    diagnosis = diagnose_run(output, repair=True)
    assert {finding.kind for finding in diagnosis.found} == {"damaged"}
    assert {finding.kind for finding in diagnosis.left} == {"missing"}
    assert (examples / "scenes-test-12-pgd-8-gallery/00002.npy.bad").exists()
    observer = Silent()
    run_suite(soft, suite, RunSettings(output=output, batch_size=BATCH), observer)
    assert observer.scored == [f"scenes/test pgd:8 {name}" for name in ("gallery_target", "gallery_all")]
    assert contents(output) == contents(attacked.folder)


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("12-crops/00000.npy", {"query", "gallery_target", "gallery_all", "distractor"}),
        ("beside-12-crops/00001.npz", {"distractor"}),
        ("12-pgd-8-query/00000.npy", {"query"}),
        ("12-typo_greedy-1-gallery/00000.npz", {"gallery_target"}),
        ("12-examination-images", set()),
    ],
)
def test_a_doctor_finds_a_flipped_bit_in_any_of_the_examples(
    name: str, cells: set[str], attacked: RunResult, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(attacked.folder, output)
    path = output / "examples" / f"scenes-test-{name}"
    flip(path)
    (finding,) = diagnose_run(output, repair=False).found
    assert finding.kind == "damaged"
    assert path in finding.files
    scored = {file.stem.rpartition("-")[2] for file in finding.files if file.parent.name == "cells"}
    assert scored == cells


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_without_a_gradient_only_black_boxes_run_and_the_record_says_so(
    colours: Submission, suite: Suite, tmp_path: Path
) -> None:
    result = run_suite(colours, suite, RunSettings(output=tmp_path / "run", batch_size=BATCH), Silent())
    white = record_of(result, "pgd:8", "query")
    assert white.status == "skipped"
    assert "needs a gradient" in white.reason
    assert record_of(result, "typo_greedy:1", "query").status == "ok"
    assert not result.failed
    assert "scenes/test pgd:8 query" in summarise_run(result.folder).skipped
    bundle = make_bundle(result.folder, tmp_path / "bundle", overwrite=False)
    assert len(validate_bundle(bundle).records) == len(suite.cells)


def test_examples_transfer_to_another_submission(
    attacked: RunResult, colours: Submission, suite: Suite, tmp_path: Path
) -> None:
    source = read_results(attacked.folder)
    transferred = transfer_suite(suite, source)
    settings = RunSettings(output=tmp_path / "run", batch_size=BATCH, source=attacked.folder)
    result = run_suite(colours, transferred, settings, Silent())
    assert not result.failed
    record = record_of(result, "pgd:8", "query")
    assert record.attack.verdict == "transferred"
    assert record.attack.victim == "soft-colours"
    assert record.attack.examples_sha256 == record_of(attacked, "pgd:8", "query").attack.examples_sha256
    rows = transfer_matrix([source, read_results(result.folder)])
    pairs = {(row.victim, row.label) for row in rows if row.attack == "scenes/test pgd:8 gallery_all"}
    assert pairs == {("soft-colours", "soft-colours"), ("soft-colours", "colours")}
    other = read_suite_with(tmp_path, "budgets = [8]", "budgets = [4]")
    with pytest.raises(UsageError, match="is a run of"):
        transfer_suite(other, source)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("none", ""),
        ("detached", "zero gradient"),
        ("randomised", "randomised"),
        ("input_quantiser", "quantised"),
        ("nan_gradient", "gradient not finite"),
        ("optimiser", "optimises while it encodes"),
    ],
)
def test_a_model_that_hides_its_gradient_is_told_from_an_honest_one(
    fault: str, reason: str, toys: Path, tmp_path: Path
) -> None:
    control = find_submission(str(toys / "controls"), {"fault": fault})
    text = SUITE.partition('[[cells]]\ncollection = "scenes/test"\nattacks = ["typo_greedy"]')[0]
    path = tmp_path / "control.toml"
    path.write_text(text.replace('"query", "gallery_target", "gallery_all", "distractor"', '"query"'))
    result = run_suite(control, read_suite(path), RunSettings(output=tmp_path / "run", batch_size=BATCH), Silent())
    report = record_of(result, "pgd:8", "query").attack
    failed = {check.name for check in report.checks if not check.passed}
    assert reason in failed if reason else not failed
    assert report.verdict.startswith("unreliable" if reason else "reliable")


def test_a_bundle_that_claims_another_success_is_refused(attacked: RunResult, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(attacked.folder, run)
    path = run / "cells" / "scenes-test-pgd-8-gallery_all.json"
    record = json.loads(path.read_text())
    record["attack"]["asr"]["t2i"]["asr_hits@1"]["value"] = 0.0
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="has changed since it was written"):
        make_bundle(run, tmp_path / "bundle", overwrite=False)
    proof_of(path).unlink()
    bundle = make_bundle(run, tmp_path / "bundle", overwrite=False)
    with pytest.raises(InputError, match="asr_hits@1"):
        validate_bundle(bundle)


def read_suite_with(folder: Path, old: str, new: str) -> Suite:
    path = folder / "other.toml"
    path.write_text(SUITE.replace(old, new))
    return read_suite(path)


PALETTE = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "white")
