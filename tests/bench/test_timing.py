"""Timing as a whole: what is recorded, what is cached, what is flagged; never how long anything took."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench import galleries
from bench.cli.timing import parse_count
from bench.doctor import diagnose_cache
from bench.errors import ProtocolError, UsageError
from bench.records import read_json, to_json
from bench.retrieval import latency
from bench.submission import find_submission
from bench.sweeping import default_sweep, sweep_indexes
from bench.timing import TimingSettings, compare_submissions, time_submission
from bench.timing_records import TimingRecord

pytest.importorskip("faiss")


@pytest.fixture(autouse=True)
def _short_warm_up(monkeypatch):
    monkeypatch.setattr(latency, "WARM_UP_S", 0.0)
    monkeypatch.setattr(latency, "WARM_UP_CALLS", 2)


@pytest.fixture
def two_stage(toys):
    return find_submission(str(toys / "soft_colours" / "two_stage.py") + ":load")


def settings(**changes):
    return TimingSettings(**{"limit": 24, "n_calls": 30, "batch_size": 8, "threads": 1, **changes})


def silent(text):
    pass


def forbidden(*arguments, **named):
    raise AssertionError("this was cached")


def test_suite_gallery_is_searched_exactly_by_default(colours):
    record = time_submission(colours, settings(), silent)
    assert (record.gallery.n_real, record.gallery.n_synthetic) == (24, 0)
    assert record.index.factory == "Flat"
    assert record.recall.overlap.value == 1
    assert record.recall.hits == record.recall.hits_exact
    assert [served.batch_size for served in record.served] == [1, 8]
    assert set(record.served[0].stages) == {"encode", "search", "end_to_end"}
    assert record.served[0].stages["search"].n_calls == 30
    assert record.served[0].stages["search"].p90_ms is None
    assert record.rerank_k == 0
    assert record.costs.token_bytes == 0
    assert {(part.tower, part.batch_size) for part in record.echo} == {
        (tower, size) for tower in ("images", "texts") for size in (1, 8)
    }
    assert record.threads == 1


def test_padded_gallery_says_what_is_synthetic_and_what_is_lost(colours):
    whole = time_submission(colours, settings(n_items=3_000, factory="IVF16,Flat", search={"nprobe": 16}), silent)
    assert (whole.gallery.n_real, whole.gallery.n_synthetic) == (24, 2_976)
    assert whole.gallery.n_components >= 1
    assert whole.gallery.nearest_synthetic is not None
    assert whole.recall.overlap.value > 0.99
    part = time_submission(colours, settings(n_items=3_000, factory="IVF16,Flat", search={"nprobe": 1}), silent)
    assert part.index.sha256 == whole.index.sha256
    assert part.recall.overlap.value < whole.recall.overlap.value
    assert part.recall.hits_exact == whole.recall.hits_exact


def test_second_stage_is_fetched_from_fp16_and_its_bytes_are_recorded(two_stage):
    record = time_submission(two_stage, settings(n_items=500, rerank_k=5), silent)
    assert set(record.served[0].stages) == {"encode", "search", "fetch", "rerank", "end_to_end"}
    assert set(record.cold_ms) == set(record.served[0].stages)
    assert record.rerank_k == 5
    assert record.costs.token_bytes == 16 * record.gallery.dim * 2
    assert record.costs.payload_repeats
    assert time_submission(two_stage, settings(rerank_k=0), silent).rerank_k == 0


def test_second_stage_that_is_not_there_is_refused(colours):
    with pytest.raises(UsageError, match="Reranker"):
        time_submission(colours, settings(rerank_k=5), silent)


def test_measuring_again_builds_nothing_again(colours, monkeypatch):
    first = time_submission(colours, settings(n_items=2_000, factory="IVF16,Flat"), silent)
    monkeypatch.setattr(galleries, "build_index", forbidden)
    monkeypatch.setattr(galleries.ExactBest, "add", forbidden)
    again = time_submission(colours, settings(n_items=2_000, factory="IVF16,Flat"), silent)
    assert again.index == first.index
    assert again.recall == first.recall
    with pytest.raises(AssertionError, match="cached"):
        time_submission(colours, settings(n_items=2_000, factory="IVF16,Flat", rebuild=True), silent)


def test_every_cached_file_that_is_damaged_is_found_and_made_again(two_stage, tmp_path, caplog):
    changes = {"n_items": 2_000, "factory": "IVF16,Flat", "rerank_k": 5}
    first = time_submission(two_stage, settings(**changes), silent)
    assert not diagnose_cache(repair=False).found
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != ".lock"]
    assert {path.parts[len(tmp_path.parts) + 1] for path in files} == {"embeddings", "indexes", "exact", "payloads"}
    for path in files:
        flip(path)
    assert {path for finding in diagnose_cache(repair=False).found for path in finding.files} == set(files)
    again = time_submission(two_stage, settings(**changes), silent)
    assert all(f"{path.name}.bad" in caplog.text for path in files if path.name != "index.faiss")
    assert not diagnose_cache(repair=False).found
    assert (again.index.sha256, again.recall, again.gallery) == (first.index.sha256, first.recall, first.gallery)


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def test_gallery_smaller_than_the_collection_is_refused(colours):
    with pytest.raises(UsageError, match="--gallery"):
        time_submission(colours, settings(n_items=10), silent)


def test_more_answers_than_items_are_refused(colours):
    with pytest.raises(UsageError, match="at most the gallery's 24 items"):
        time_submission(colours, settings(k=25), silent)


def test_submission_that_slows_down_is_flagged(tmp_path, toys):
    module = tmp_path / "slowing.py"
    module.write_text(SLOWING)
    record = time_submission(find_submission(f"{module}:load"), settings(n_calls=60), silent)
    assert "slows:encode" in record.flags


def test_other_weights_at_every_start_are_refused(tmp_path):
    module = tmp_path / "restless.py"
    module.write_text(RESTLESS)
    with pytest.raises(ProtocolError, match="other weights than when the gallery was encoded"):
        time_submission(find_submission(f"{module}:load"), settings(), silent)


def test_comparison_times_both_and_their_ratio(colours, two_stage):
    found = compare_submissions(colours, two_stage, settings(), silent)
    assert (found.a.label, found.b.label) == (colours.label, two_stage.label)
    assert {(ratio.stage, ratio.batch_size) for ratio in found.ratios} == {
        (stage, size) for stage in ("encode", "search", "end_to_end") for size in (1, 8)
    }
    for ratio in found.ratios:
        assert 0 < ratio.ratio.low <= ratio.ratio.value <= ratio.ratio.high


def test_sweep_marks_the_front(colours):
    tried = {"Flat": [{}], "IVF16,Flat": [{"nprobe": 1}, {"nprobe": 16}, {"ef": 9}]}
    sweep = sweep_indexes(colours, tried, settings(n_items=2_000), silent)
    names = [(point.factory, point.search.get("nprobe")) for point in sweep.points]
    assert names[:3] == [("Flat", None), ("IVF16,Flat", 1), ("IVF16,Flat", 16)]
    assert sweep.points[0].overlap.value == 1
    speeds = np.array([point.latency.p50_ms for point in sweep.points])
    assert sweep.points[int(speeds.argmin())].best
    for point in sweep.points:
        beaten = [
            other.latency.p50_ms < point.latency.p50_ms and other.overlap.value > point.overlap.value
            for other in sweep.points
        ]
        assert point.best <= (not any(beaten))


@pytest.mark.parametrize(("n_items", "dim"), [(1_000, 64), (1_000_000, 512), (10_000_000, 512), (10_000_000, 1536)])
def test_default_sweep_names_indexes_that_exist(n_items, dim):
    from bench.retrieval.index import parse_index

    for factory, searches in default_sweep(n_items, dim).items():
        for search in searches:
            assert set(search) <= set(parse_index(factory, dim, **search).search)


def test_record_survives_its_file(colours, tmp_path):
    record = time_submission(colours, settings(), silent)
    path = tmp_path / f"{record.slug}.json"
    path.write_bytes(to_json(record))
    assert read_json(path, TimingRecord) == record
    assert json.loads(path.read_text())["environment"]["cores"] >= 1


@pytest.mark.parametrize(
    ("text", "count"), [("1000", 1_000), ("1_000_000", 1_000_000), ("100k", 100_000), ("10M", 10_000_000)]
)
def test_counts_of_items(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "M", "1.5M", "-3", "10G"])
def test_other_counts_are_refused(text):
    with pytest.raises(UsageError, match="--gallery"):
        parse_count(text)


SLOWING = """
import time
import numpy as np


class Slowing:
    calls = 0

    def encode_images(self, images):
        return np.array([np.asarray(image.resize((4, 4))).reshape(-1) / 255 + 0.1 for image in images], np.float32)

    def encode_texts(self, texts):
        self.calls += 1
        end = time.perf_counter() + 5e-4 * self.calls
        while time.perf_counter() < end:
            pass
        return np.array([[hash_of(text, i) for i in range(48)] for text in texts], np.float32)


def hash_of(text, i):
    return (sum(map(ord, text)) * (i + 7) % 101) / 101 + 0.01


def load(context):
    return Slowing()
"""


RESTLESS = """
import os

import numpy as np
import torch


class Restless:
    def __init__(self):
        self.bias = torch.nn.Linear(1, 48)
        torch.nn.init.constant_(self.bias.bias, int.from_bytes(os.urandom(2)) + 1)

    def encode_images(self, images):
        return np.array([np.asarray(image.resize((4, 4))).reshape(-1) / 255 + 0.1 for image in images], np.float32)

    def encode_texts(self, texts):
        return self.bias.bias.detach().numpy()[None].repeat(len(texts), 0)


def load(context):
    return Restless()
"""
