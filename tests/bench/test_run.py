"""A run end to end: records, resume after a kill, damage, other inputs, failed cells."""

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

from bench.bundle import read_results, verify_record
from bench.data.registry import load_collection
from bench.errors import SubmissionError, UsageError
from bench.records import Record, read_json
from bench.run import RunResult, RunSettings, run_suite
from bench.shifted import caption_ids
from bench.submission import Submission, find_submission
from bench.suites import Suite, read_suite


def records_but_timing(folder: Path) -> dict[str, object]:
    found = {}
    for path in sorted((folder / "cells").glob("*.json")):
        record = json.loads(path.read_text())
        del record["timing"]
        found[path.name] = record
    return found


def test_every_cell_has_a_record_and_its_evidence_gives_its_metrics(finished_run: RunResult, suite: Suite) -> None:
    results = read_results(finished_run.folder)
    assert {record.cell for record in results.records} == set(suite.cells)
    for record in results.records:
        assert record.status == "ok"
        verify_record(results, record)
    night = next(record for record in results.records if record.cell.baseline)
    assert night.family == "domain"


def test_metrics_agree_with_a_naive_computation(finished_run: RunResult, colours: Submission) -> None:
    sys_path = str(colours.folder)
    sys.path.insert(0, sys_path)
    try:
        import model as colours_model
    finally:
        sys.path.remove(sys_path)
    encoder = colours_model.Colours(1.0)
    collection = load_collection("scenes/test").head(24)
    images = encoder.encode_images([image.decode() for image in collection.images])
    texts = encoder.encode_texts(list(collection.captions))
    images, texts = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (images, texts))
    right = np.zeros((len(images), len(texts)), bool)
    right[tuple(collection.positives.T)] = True
    record = next(r for r in finished_run.records if r.cell.shift == "clean")
    for direction, scores, relevant in (("t2i", texts @ images.T, right.T), ("i2t", images @ texts.T, right)):
        best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
        ranks = 1 + ((scores >= best) & ~relevant).sum(axis=1)
        for k in (1, 5, 10):
            assert record.metrics[direction][f"hit@{k}"].value == pytest.approx((ranks <= k).mean(), abs=0.02)


def test_distractors_stand_in_the_gallery_and_are_nobodys_positives(finished_run: RunResult) -> None:
    results = read_results(finished_run.folder)
    records = {r.cell.shift: r for r in results.records if r.cell.collection == "scenes/test"}
    clean = records["clean_canvas"]
    for shift, direction in (("gallery_mix:4", "t2i"), ("gallery_danger:1", "i2t")):
        record = records[shift]
        assert list(record.metrics) == [direction]
        part, without = results.evidence(record)[direction], results.evidence(clean)[direction]
        grown = part.ranks.pessimistic - without.ranks.pessimistic
        assert (grown >= 0).all()
        assert grown.max() > 0
        assert grown.max() <= record.data.n_distractors
        np.testing.assert_array_equal(part.items, without.items)
        n_own = record.data.n_images if direction == "t2i" else record.data.n_captions
        assert part.top.max() >= n_own
    captions, danger = clean.data.n_captions, records["gallery_danger:1"].data
    assert danger.n_distractors + danger.n_unchanged == captions
    assert records["gallery_mix:4"].data.n_distractors == clean.data.n_images


def test_a_cell_whose_shift_lacks_a_model_says_so_and_the_others_go_on(
    colours: Submission, suite_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(suite_file.read_text().replace('"typo_keyboard"', '"word_insert"'))
    result = run_suite(colours, read_suite(path), RunSettings(output=tmp_path / "run", limit=4), Silent())
    [failed] = result.failed
    assert failed.cell.shift == "word_insert:3"
    assert "hf download google-bert/bert-base-uncased" in failed.reason
    assert len(result.records) == len(read_suite(path).cells)


def test_the_same_command_reuses_everything(finished_run: RunResult, colours: Submission, suite: Suite) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished_run.folder / "cells").iterdir()}
    observer = Silent()
    run_suite(colours, suite, RunSettings(output=finished_run.folder, batch_size=16), observer)
    assert not observer.scored
    assert len(observer.reused) == len(suite.cells)
    assert before == {path: path.stat().st_mtime_ns for path in (finished_run.folder / "cells").iterdir()}


def test_image_shifts_reuse_the_clean_captions(finished_run: RunResult) -> None:
    by_shift = {record.cell.shift: record for record in finished_run.records if record.cell.collection == "scenes/test"}
    noisy, typo = by_shift["gaussian_noise:5"], by_shift["typo_keyboard:3"]
    assert noisy.timing.texts_cached
    assert not noisy.timing.images_cached
    assert typo.timing.images_cached
    assert not typo.timing.texts_cached
    assert noisy.embeddings_sha256["texts"] == by_shift["clean"].embeddings_sha256["texts"]
    assert noisy.data.images_sha256 != by_shift["clean_canvas"].data.images_sha256
    assert typo.data.captions_sha256 != by_shift["clean"].data.captions_sha256


@pytest.mark.parametrize(
    "cells_before_kill", [pytest.param(0, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)]
)
def test_a_killed_run_goes_on_to_the_same_records(
    cells_before_kill: int, finished_run: RunResult, tmp_path: Path, toys: Path, suite_file: Path
) -> None:
    command = [sys.executable, "-m", "bench.cli", "run", str(toys / "colours"), "--suite", str(suite_file)]
    command += ["--output", str(tmp_path / "run"), "--batch-size", "16"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    cells = tmp_path / "run" / "cells"
    while process.poll() is None and len(list(cells.glob("*.json"))) < cells_before_kill:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert records_but_timing(tmp_path / "run") == records_but_timing(finished_run.folder)


def test_a_run_without_attacks_loads_no_torch(toys: Path, suite_file: Path, tmp_path: Path) -> None:
    cells = suite_file.read_text().split("[[cells]]")
    suite = tmp_path / "suite.toml"
    suite.write_text("[[cells]]".join(cell for cell in cells if "gallery_danger" not in cell))  # spaCy loads it
    run = ["run", str(toys / "colours"), "--suite", str(suite), "--limit", "6", "--output", str(tmp_path / "run")]
    code = "import sys\nfrom bench.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code, *run], capture_output=True, text=True, check=True)
    assert process.stdout.split() == [str(tmp_path / "run"), "False"]


def test_damage_is_set_aside_and_repaired(
    finished_run: RunResult, colours: Submission, suite: Suite, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_run.folder, copy)
    clean, noisy = suite.cells[0], suite.cells[2]
    evidence = copy / "cells" / f"{clean.slug}.parquet"
    evidence.write_bytes(evidence.read_bytes()[:-1] + b"x")
    record = copy / "cells" / f"{noisy.slug}.json"
    record.write_bytes(record.read_bytes()[:100])
    observer = Silent()
    run_suite(colours, suite, RunSettings(output=copy, batch_size=16), observer)
    assert observer.scored == [clean.id, noisy.id]
    assert records_but_timing(copy) == records_but_timing(finished_run.folder)
    for path in (evidence, evidence.with_suffix(".json"), record):
        assert path.with_name(f"{path.name}.bad").exists()
    assert "set aside" in caplog.text


def test_a_folder_of_other_inputs_is_not_written_to(finished_run: RunResult, suite: Suite, toys: Path) -> None:
    other = find_submission(str(toys / "colours"), {"scale": "2.0"})
    with pytest.raises(UsageError, match=r"fingerprint changed.*--overwrite always"):
        run_suite(other, suite, RunSettings(output=finished_run.folder, batch_size=16), Silent())


def test_output_inside_the_submission_is_refused(colours: Submission, suite: Suite) -> None:
    with pytest.raises(UsageError, match="lies inside the submission"):
        run_suite(colours, suite, RunSettings(output=colours.folder / "runs" / "x"), Silent())


def test_a_changed_checkpoint_is_another_submission(tmp_path: Path, toys: Path) -> None:
    checkpoint = tmp_path / "scale"
    checkpoint.write_text("1")
    before = find_submission(str(toys / "colours"), {"scale": str(checkpoint)}).fingerprint
    checkpoint.write_text("2")
    assert find_submission(str(toys / "colours"), {"scale": str(checkpoint)}).fingerprint != before


def test_replacing_a_run_leaves_nothing_of_the_other(
    finished_run: RunResult, suite: Suite, toys: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_run.folder, copy)
    broken = find_submission(f"{toys / 'faulty.py'}:crash_on_load")
    settings = RunSettings(output=copy, batch_size=16, overwrite="always")
    with pytest.raises(SubmissionError):
        run_suite(broken, suite, settings, Silent())
    assert not list(copy.glob("cells/*"))


def test_rescaled_embeddings_score_the_same(finished_run: RunResult, suite: Suite, toys: Path, tmp_path: Path) -> None:
    other = find_submission(str(toys / "colours"), {"scale": "1048576.0"})
    run_suite(other, suite, RunSettings(output=tmp_path / "run", batch_size=16), Silent())
    for record in finished_run.records:
        again = read_json(tmp_path / "run" / "cells" / f"{record.cell.slug}.json", Record)
        assert again.metrics == record.metrics


def test_a_failed_cell_has_a_status_and_the_next_one_runs(suite: Suite, tmp_path: Path) -> None:
    module = tmp_path / "moody.py"
    module.write_text(
        "import os, numpy as np\n"
        "class Moody:\n"
        "    def encode_images(self, images):\n"
        "        if min(np.asarray(i).std() for i in images) < 45:\n"
        "            os._exit(0)\n"
        "        return np.stack([np.asarray(i.resize((4, 4)), np.float32).ravel() + 1 for i in images])\n"
        "    def encode_texts(self, texts):\n"
        "        return np.ones((len(texts), 48), np.float32)\n"
        "def load(context):\n"
        "    return Moody()\n"
    )
    result = run_suite(
        find_submission(f"{module}:load"), suite, RunSettings(output=tmp_path / "run", batch_size=200), Silent()
    )
    statuses = {record.cell.id: record.status for record in result.records}
    assert "crash" in statuses.values()
    assert "ok" in statuses.values()
    crashed = result.failed[0]
    assert not crashed.metrics
    assert "exit status 0" in crashed.reason
    typo = next(r for r in result.records if r.cell.shift == "typo_keyboard:3")
    if typo.status == "ok":
        assert "ties:t2i" not in typo.flags or typo.metrics["t2i"]["hit@1"].value <= 1 / 24


def test_a_submission_that_cannot_load_ends_the_run(suite: Suite, toys: Path, tmp_path: Path) -> None:
    broken = find_submission(f"{toys / 'faulty.py'}:crash_on_load")
    with pytest.raises(SubmissionError, match="exit status 3"):
        run_suite(broken, suite, RunSettings(output=tmp_path / "run"), Silent())
    assert not list((tmp_path / "run").glob("cells/*.json"))


def test_a_constant_encoder_is_never_above_chance(suite: Suite, toys: Path, tmp_path: Path) -> None:
    constant = find_submission(f"{toys / 'faulty.py'}:honest")
    result = run_suite(constant, suite, RunSettings(output=tmp_path / "run"), Silent())
    for record in result.records:
        for direction in record.cell.directions:
            assert record.metrics[direction]["hit@10"].value == 0
            assert f"ties:{direction}" in record.flags


@pytest.mark.parametrize(("function", "words"), [("not_finite", "not finite"), ("zero", "zero")])
def test_embeddings_without_a_direction_are_refused(
    function: str, words: str, suite: Suite, toys: Path, tmp_path: Path
) -> None:
    bad = find_submission(f"{toys / 'faulty.py'}:{function}")
    result = run_suite(bad, suite, RunSettings(output=tmp_path / "run"), Silent())
    assert {record.status for record in result.records} == {"protocol"}
    assert words in result.records[0].reason


def test_caption_ids_are_stable_under_subsets() -> None:
    collection = load_collection("scenes/test")
    whole, head = caption_ids(collection), caption_ids(collection.head(20))
    assert len(set(whole)) == len(collection.captions)
    by_text = {(name.partition("#")[0], text): name for name, text in zip(whole, collection.captions, strict=True)}
    kept = collection.head(20)
    assert all(by_text.get((n.partition("#")[0], t)) == n for n, t in zip(head, kept.captions, strict=True))
