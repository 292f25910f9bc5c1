"""Probes: honest submissions pass them all, cheats score nothing or are found, and what they find decides the rank."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from observers import Silent

from bench import probing, replica
from bench.bundle import make_bundle, validate_bundle
from bench.data.registry import load_collection
from bench.errors import InputError, SubmissionCrash
from bench.probing import LOWEST_COSINE
from bench.records import DONE, PROBES, Probe, RunManifest, read_json, to_json
from bench.run import RunResult, RunSettings, run_suite
from bench.store import write_with_proof
from bench.submission import Submission, find_submission
from bench.suites import Suite, read_suite

N_IMAGES, BATCH = 24, 12
SUITE = f"""
name = "probed"
version = 1
status = "draft"
title = "Probed"
summary = "Clean and noisy scenes."
reference = "colours"
seeds = [0]

[collections]
"scenes/test" = {N_IMAGES}

[[cells]]
reason = "For a test."
collection = "scenes/test"
shifts = ["clean_canvas"]

[[cells]]
reason = "For a test."
collection = "scenes/test"
shifts = ["gaussian_noise"]
severities = [5]
"""
MAX_CHANCE = 3 / N_IMAGES
"""R@1 of five captions an image; an order that nobody knows is above it once in a million."""

CHEATS = {
    "by_order": "order",
    "by_place_in_batch": "order",
    "by_call": "order",
    "by_first_occurrence": "order",
    "by_state_of_other_tower": "order",
    "centred_in_batch": "batch size",
    "centred_in_large_batches": "duplicates",
    "leaning_on_neighbours": "batch size",
    "at_random": "order",
    "constant": "spread",
    "nearly_constant": "spread",
    "of_one_bit": "ties",
    "of_two_vectors": "spread",
    "memorised_pairs": "memorised pairs",
    "memorised_pairs_but_for_spaces": "memorised pairs",
    "memorised_looks": "memorised pairs",
    "memorised_sizes": "at chance",
    "from_the_test_set": "memorised pairs",
    "through_scratch_file": "order",
    "through_home_file": "order",
    "slow_after_some_calls": "speed",
    "quick_with_known_items": "speed",
    "peeking_at_parent": "at chance",
    "no_answer_when_hard": "protocol",
    "reranking_by_order": "second stage",
    "reranking_in_batch": "second stage",
}
"""By name, what becomes of each: it is found by a probe, scores no better than chance, or has a cell of that status."""

QUICK = ("by_order", "centred_in_large_batches", "memorised_pairs", "of_one_bit")
Try = Callable[[str], RunResult]


@pytest.fixture(scope="module")
def probed_suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    path = tmp_path_factory.mktemp("suite") / "probed.toml"
    path.write_text(SUITE)
    return read_suite(path)


@pytest.fixture(scope="module")
def stolen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What cheats know of the test set."""
    collection = load_collection("scenes/test").head(N_IMAGES)
    images = [image.decode() for image in collection.images]
    contents = {
        "images": {sha256(np.asarray(image).tobytes()).hexdigest(): place for place, image in enumerate(images)},
        "captions": {collection.captions[caption]: int(image) for image, caption in collection.positives},
        "shades": [np.asarray(image.resize((8, 8)), float).ravel().tolist() for image in images],
        "sizes": [image.size for image in images],
    }
    path = tmp_path_factory.mktemp("stolen") / "test_set.json"
    path.write_text(json.dumps(contents))
    return path


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory, probed_suite: Suite, toys: Path, stolen: Path) -> Try:
    """Runs one of the functions of `cheats.py`, once for all tests."""

    @cache
    def run_once(name: str) -> RunResult:
        folder = tmp_path_factory.mktemp(name)
        submission = find_submission(f"{toys / 'cheats.py'}:{name}", {"stolen": str(stolen)})
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ROVE_CACHE", str(folder / "cache"))
            patch.setenv("HOME", str(folder))
            settings = RunSettings(output=folder / "run", batch_size=BATCH)
            return run_suite(submission, probed_suite, settings, Silent())

    return run_once


def findings(result: RunResult) -> set[str]:
    """What is known against a run: probes that it did not pass, cells without a score, or that it is at chance."""
    found = {probe.name for probe in result.manifest.probes if probe.status != "passed"}
    found |= {record.status for record in result.records if record.status not in DONE}
    r1 = [metrics["hit@1"].value for record in result.records for metrics in record.metrics.values()]
    return found | {"at chance"} if max(r1) <= MAX_CHANCE else found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CHEATS]
)
def test_a_cheat_is_found_or_scores_nothing(name: str, tried: Try) -> None:
    result = tried(name)
    assert CHEATS[name] in findings(result), [probe.detail for probe in result.manifest.probes]


@pytest.mark.slow
def test_no_cheat_is_above_chance_and_unnoticed(tried: Try, capsys: pytest.CaptureFixture[str]) -> None:
    unnoticed = [name for name in CHEATS if not findings(tried(name))]
    with capsys.disabled():
        print(f"\ncheats tried: {len(CHEATS)}, above chance and unflagged: {len(unnoticed)}")  # noqa: T201
    assert len(CHEATS) >= 12
    assert not unnoticed


@pytest.mark.parametrize("name", ["honest_in_eight_bits", "honest_in_two_stages"])
def test_honest_toys_pass_every_probe(name: str, tried: Try) -> None:
    result = tried(name)
    assert [probe for probe in result.manifest.probes if probe.status != "passed"] == []
    assert [probe.name for probe in result.manifest.probes] == list(PROBES if "stages" in name else PROBES[:-1])
    assert not result.manifest.obstacle


def test_colours_pass_every_probe_of_a_larger_suite(finished_run: RunResult) -> None:
    assert [probe.status for probe in finished_run.manifest.probes] == ["passed"] * (len(PROBES) - 1)


@pytest.mark.parametrize(
    ("n_quick", "keeps", "kind"), [(0, True, "new"), (14, False, "late"), (10**6, False, ""), (0, False, "")]
)
def test_calls_that_are_slow_when_new_or_late_are_told_from_slow_ones(n_quick: int, keeps: bool, kind: str) -> None:
    kept, n_calls = set[int](), 0

    def encode(items: list[int]) -> np.ndarray:
        nonlocal n_calls
        n_calls += 1
        if n_calls > n_quick and not (keeps and kept >= set(items)):
            time.sleep(0.005)
        kept.update(items)
        return np.eye(100, dtype=np.float32)[items]

    items = list(range(16))
    speed = probing._see(probing._Tower(encode, items, [i + 50 for i in items], np.eye(100)[items]), 32).speed
    assert {name for name in ("new", "late") if getattr(speed, name) > 3 * speed.usual + 1} == {kind} - {""}
    assert (speed.ratio > probing.MAX_RATIO) == bool(kind)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tiny_passes_every_probe(dtype: str, probed_suite: Suite, tmp_path: Path) -> None:
    settings = RunSettings(worker=probing.WorkerSettings(dtype=dtype), output=tmp_path / "run")
    probes = run_suite(find_submission("tiny"), probed_suite, settings, Silent()).manifest.probes
    assert [probe for probe in probes if probe.status != "passed"] == []
    assert LOWEST_COSINE[dtype] <= probes[0].figure


def test_a_run_is_probed_once_and_its_records_stay(
    finished_run: RunResult, colours: Submission, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run.folder, folder)
    unprobed = finished_run.manifest.model_copy(update={"probes": ()})
    (folder / "run.json").write_bytes(to_json(unprobed))
    cells = {path: path.read_bytes() for path in (folder / "cells").iterdir()}
    settings = RunSettings(output=folder, batch_size=16)
    again = run_suite(colours, suite, settings, Silent()).manifest.probes
    assert again == read_json(folder / "run.json", RunManifest).probes
    timeless = [(probe.name, probe.status) for probe in finished_run.manifest.probes]
    assert [(probe.name, probe.status) for probe in again] == timeless
    assert {path: path.read_bytes() for path in (folder / "cells").iterdir()} == cells
    monkeypatch.setattr(replica, "probe", None)
    assert run_suite(colours, suite, settings, Silent()).manifest.probes == again


def test_a_limited_run_is_not_probed(colours: Submission, probed_suite: Suite, tmp_path: Path) -> None:
    settings = RunSettings(output=tmp_path / "run", limit=4)
    assert run_suite(colours, probed_suite, settings, Silent()).manifest.probes == ()


def test_what_fails_while_it_is_probed_is_not_ranked_until_it_is_probed(
    colours: Submission, probed_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise SubmissionCrash("colours ended during 'load' (exit status 3)\nIts last output")

    settings = RunSettings(output=tmp_path / "run", batch_size=BATCH)
    with monkeypatch.context() as patch:
        patch.setattr(probing, "Worker", fail)
        manifest = run_suite(colours, probed_suite, settings, Silent()).manifest
    assert {probe.name for probe in manifest.probes if probe.status == "passed"} == {"spread", "ties"}
    assert manifest.obstacle == "invalid, probe 'order' not run: crash: colours ended during 'load' (exit status 3)"
    assert not run_suite(colours, probed_suite, settings, Silent()).manifest.obstacle


def test_a_bundle_has_all_probes_or_none(finished_run: RunResult, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run.folder, folder)
    probes = finished_run.manifest.probes
    second = Probe(name="second stage", status="passed")
    for place, (wrong, works) in enumerate([((), True), (probes[1:], False), ((*probes, second), False)]):
        write_with_proof(folder / "run.json", to_json(finished_run.manifest.model_copy(update={"probes": wrong})))
        bundle = make_bundle(folder, tmp_path / str(place), overwrite=False)
        if works:
            assert not validate_bundle(bundle).manifest.obstacle
        else:
            with pytest.raises(InputError, match="leaves a probe out"):
                validate_bundle(bundle)
