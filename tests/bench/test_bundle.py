"""Bundles: what was altered is refused, whatever was altered."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_timings import timing_of

from bench.bundle import find_timings, make_bundle, read_results, validate_bundle
from bench.errors import IncompleteError, InputError, UsageError
from bench.evidence import MAX_ROWS, MAX_VALUES, Evidence, pack_evidence, read_evidence
from bench.metrics import Ranks
from bench.records import Record, RunManifest, read_json, to_json
from bench.run import RunResult
from bench.scoring import find_flags, score_evidence
from bench.store import sha256_of
from bench.suites import Suite
from bench.summary import Scores, as_estimate
from bench.timing_records import TimingRecord
from bench.types import Direction


@pytest.fixture
def bundle(finished_run: RunResult, tmp_path: Path) -> Path:
    return make_bundle(finished_run.folder, tmp_path / "bundle", overwrite=False)


def test_an_honest_bundle_is_valid(bundle: Path, suite: Suite) -> None:
    results = validate_bundle(bundle)
    assert {record.cell for record in results.records} == set(suite.cells)


def test_cells_that_are_resampled_together_have_the_intervals_that_each_has_alone(bundle: Path) -> None:
    results = read_results(bundle)
    scores = Scores(results)
    for record in scores.records:
        for direction, part in scores.by_direction(record).items():
            found, expected = as_estimate(part).model_dump(), record.metrics[direction]["hit@1"].model_dump()
            assert found == pytest.approx(expected, rel=1e-12), record.cell.id


def test_an_incomplete_run_makes_no_bundle(finished_run: RunResult, suite: Suite, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run.folder, run)
    (run / "cells" / f"{suite.cells[0].slug}.json").unlink()
    with pytest.raises(IncompleteError, match=suite.cells[0].id):
        make_bundle(run, tmp_path / "bundle", overwrite=False)


def test_only_a_bundle_is_overwritten(bundle: Path, finished_run: RunResult, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not empty"):
        make_bundle(finished_run.folder, bundle, overwrite=False)
    assert make_bundle(finished_run.folder, bundle, overwrite=True) == bundle
    other = tmp_path / "holiday"
    other.mkdir()
    (other / "photo.jpg").write_bytes(b"dear")
    with pytest.raises(UsageError, match="no bundle"):
        make_bundle(finished_run.folder, other, overwrite=True)
    assert (other / "photo.jpg").read_bytes() == b"dear"


def better_metric(record: dict) -> None:
    record["metrics"]["t2i"]["hit@1"]["value"] = 0.99


def narrower_interval(record: dict) -> None:
    record["metrics"]["t2i"]["hit@1"]["low"] += 0.01


def invented_metric(record: dict) -> None:
    record["metrics"]["t2i"]["greatness"] = {"value": 1.0, "low": 1.0, "high": 1.0}


def fewer_images(record: dict) -> None:
    record["data"]["n_images"] -= 1


def no_flags(record: dict) -> None:
    record["flags"] = ["verified"]


def unknown_field(record: dict) -> None:
    record["note"] = "trust me"


def infinite(record: dict) -> None:
    record["metrics"]["t2i"]["hit@1"]["value"] = float("inf")


def failed(record: dict) -> None:
    record["status"] = "crash"


def other_cell(record: dict) -> None:
    record["cell"]["shift"] = "gaussian_noise:4"


@pytest.mark.parametrize(
    "change",
    [
        better_metric,
        narrower_interval,
        invented_metric,
        fewer_images,
        no_flags,
        unknown_field,
        infinite,
        failed,
        other_cell,
    ],
)
def test_an_altered_record_is_refused(bundle: Path, suite: Suite, change: Callable[[dict], None]) -> None:
    path = bundle / "cells" / f"{suite.cells[1].slug}.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    reseal(bundle)
    with pytest.raises((InputError, IncompleteError)) as caught:
        validate_bundle(bundle)
    assert str(bundle) in str(caught.value)


@pytest.mark.parametrize("honest_id", [True, False])
def test_a_bundle_cannot_leave_cells_out(bundle: Path, suite: Suite, honest_id: bool) -> None:
    dropped = suite.cells[3]
    for end in (".json", ".parquet"):
        (bundle / "cells" / f"{dropped.slug}{end}").unlink()
    if not honest_id:
        run = json.loads((bundle / "run.json").read_text())
        run["cells"] = [cell for cell in run["cells"] if cell["shift"] != dropped.shift]
        (bundle / "run.json").write_text(json.dumps(run))
    index = json.loads((bundle / "bundle.json").read_text())
    index["files"] = {name: sha256_of(bundle / name) for name in index["files"] if (bundle / name).exists()}
    (bundle / "bundle.json").write_text(json.dumps(index))
    with pytest.raises((InputError, IncompleteError), match=dropped.id if honest_id else "suite_id"):
        validate_bundle(bundle)


def test_a_limited_run_cannot_pass_for_a_whole_one(bundle: Path) -> None:
    run = json.loads((bundle / "run.json").read_text())
    run["limit"] = 8
    (bundle / "run.json").write_text(json.dumps(run))
    reseal(bundle)
    assert "--limit" in validate_bundle(bundle).manifest.obstacle


def test_empty_places_in_evidence_are_an_input_error(finished_run: RunResult, tmp_path: Path) -> None:
    path = finished_run.folder / "cells" / f"{finished_run.records[0].cell.slug}.parquet"
    table = pq.read_table(path)
    ranks = table["pessimistic"].to_pylist()
    ranks[0][0] = None
    altered = table.set_column(
        table.schema.get_field_index("pessimistic"), "pessimistic", pa.array(ranks, pa.list_(pa.int32()))
    )
    pq.write_table(altered, tmp_path / "altered.parquet")
    with pytest.raises(InputError, match=r"altered\.parquet"):
        read_evidence(tmp_path / "altered.parquet")


def later_by_one(part: Evidence) -> Evidence:
    """The best query's positives one place further behind, and another item in front: nothing contradicts itself."""
    query = int(np.argmin(part.ranks.best))
    later = part.rows == query
    stranger = np.setdiff1d(np.arange(24), [*part.items[later], *part.top[query]])[0]
    top = part.top.copy()
    top[query] = [stranger, *top[query, :-1]]
    ranks = Ranks(part.ranks.offsets, part.ranks.pessimistic + later, part.ranks.optimistic + later)
    return Evidence(part.queries, part.images, ranks, part.items, top)


def positives(part: Evidence) -> list[np.ndarray]:
    return np.split(part.items, part.ranks.offsets[1:-1])


def ranks_of_others(part: Evidence) -> Evidence:
    ranks = Ranks(part.ranks.offsets, part.ranks.pessimistic + 1, part.ranks.optimistic + 1)
    return Evidence(part.queries, part.images, ranks, part.items, part.top)


def best_item_twice(part: Evidence) -> Evidence:
    top = part.top.copy()
    top[0, 1] = top[0, 0]
    return Evidence(part.queries, part.images, part.ranks, part.items, top)


def without_a_query(part: Evidence) -> Evidence:
    """As a cheat would who leaves out what it finds worst."""
    kept = np.arange(len(part.queries)) != np.argmax(part.ranks.best)
    pairs = kept[part.rows]
    offsets = np.append(0, np.cumsum(part.ranks.n_positives[kept]))
    ranks = Ranks(offsets, part.ranks.pessimistic[pairs], part.ranks.optimistic[pairs])
    return Evidence(part.queries[kept], part.images[kept], ranks, part.items[pairs], part.top[kept])


def with_other_positive(part: Evidence) -> Evidence:
    """The first query's best item, whatever it is, in the place of its own: all else follows from it."""
    items, ranks = part.items.copy(), part.ranks.pessimistic.copy()
    worst = int(np.argmax(part.ranks.best))
    place = part.ranks.offsets[worst]
    items[place], ranks[place] = part.top[worst, 0], 1
    images = part.images.copy()
    images[worst] = items[place] if part.images[worst] != part.queries[worst] else images[worst]
    return Evidence(part.queries, images, Ranks(part.ranks.offsets, ranks, ranks), items, part.top)


def on_another_image(part: Evidence) -> Evidence:
    """Queries counted to one image: fewer independent ones than there are, or more."""
    return Evidence(part.queries, np.zeros_like(part.images), part.ranks, part.items, part.top)


def rank_behind_all(part: Evidence) -> Evidence:
    ranks = part.ranks.pessimistic.copy()
    ranks[-1] = 1000
    return Evidence(part.queries, part.images, Ranks(part.ranks.offsets, ranks, ranks), part.items, part.top)


def item_of_nobody(part: Evidence) -> Evidence:
    items = part.items.copy()
    items[np.argmax(part.ranks.pessimistic)] = 10_000
    return Evidence(part.queries, part.images, part.ranks, items, part.top)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (ranks_of_others, "best items stand"),
        (best_item_twice, "different ones"),
        (without_a_query, "each once and in order"),
        (with_other_positive, "other pairs as right"),
        (on_another_image, "another image"),
        (rank_behind_all, "behind more items"),
        (item_of_nobody, "outside 0 to"),
    ],
)
def test_evidence_that_no_ranking_leaves_is_refused_though_its_metrics_follow(
    bundle: Path, suite: Suite, change: Callable[[Evidence], Evidence], match: str
) -> None:
    forge(bundle, suite.cells[1].slug, "t2i", change, with_metrics=True)
    with pytest.raises(InputError, match=match):
        validate_bundle(bundle)


def test_altered_evidence_is_refused_even_with_a_new_hash(bundle: Path, suite: Suite) -> None:
    forge(bundle, suite.cells[1].slug, "t2i", later_by_one, with_metrics=False)
    with pytest.raises(InputError, match="its evidence gives"):
        validate_bundle(bundle)


def test_a_cell_cannot_count_other_pairs_as_right_than_the_others_do(bundle: Path, suite: Suite) -> None:
    """Two captions change their places in both directions, so that the cell agrees with itself."""
    stem = bundle / "cells" / suite.cells[1].slug
    owners = positives(read_evidence(stem.with_suffix(".parquet"))["t2i"])
    other = next(i for i, own in enumerate(owners) if not np.array_equal(own, owners[0]))
    order = np.arange(len(owners))
    order[[0, other]] = other, 0

    def swap_queries(part: Evidence) -> Evidence:
        pairs = np.concatenate([np.flatnonzero(part.rows == query) for query in order])
        offsets = np.append(0, np.cumsum(part.ranks.n_positives[order]))
        ranks = Ranks(offsets, part.ranks.pessimistic[pairs], part.ranks.optimistic[pairs])
        return Evidence(part.queries, part.images[order], ranks, part.items[pairs], part.top[order])

    def swap_items(part: Evidence) -> Evidence:
        places = order.astype(np.int32)
        return Evidence(part.queries, part.images, part.ranks, places[part.items], places[part.top])

    forge(bundle, suite.cells[1].slug, "t2i", swap_queries, with_metrics=True)
    forge(bundle, suite.cells[1].slug, "i2t", swap_items, with_metrics=True)
    with pytest.raises(InputError, match="than its collection's cells"):
        validate_bundle(bundle)


def forge(
    bundle: Path, slug: str, direction: Direction, change: Callable[[Evidence], Evidence], with_metrics: bool
) -> None:
    """Other evidence of one direction, with all hashes, and the metrics too if asked, made to fit."""
    stem = bundle / "cells" / slug
    evidence = read_evidence(stem.with_suffix(".parquet"))
    evidence[direction] = change(evidence[direction])
    stem.with_suffix(".parquet").write_bytes(pack_evidence(evidence))
    record = read_json(stem.with_suffix(".json"), Record)
    found = {"evidence_sha256": sha256_of(stem.with_suffix(".parquet"))}
    if with_metrics:
        metrics = score_evidence(evidence, record.data.n_images)
        found |= {"metrics": metrics, "flags": find_flags(evidence)}
    stem.with_suffix(".json").write_bytes(to_json(record.model_copy(update=found)))
    reseal(bundle)


@pytest.mark.parametrize("damage", ["flip", "extra", "missing", "link", "hidden", "folder", "pipe", "large"])
def test_damaged_files_are_refused(bundle: Path, suite: Suite, damage: str) -> None:
    path = bundle / "cells" / f"{suite.cells[0].slug}.parquet"
    if damage == "flip":
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    elif damage == "extra":
        (bundle / "cells" / "notes.html").write_text("<script>")
    elif damage == "missing":
        path.unlink()
    elif damage == "link":
        path.rename(bundle.parent / "elsewhere.parquet")
        path.symlink_to(bundle.parent / "elsewhere.parquet")
    elif damage == "hidden":
        (bundle / ".git").write_bytes(b"")
    elif damage == "folder":
        (bundle / "cells" / "more").mkdir()
    elif damage == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        with path.open("ab") as file:
            file.truncate(65 << 20)
    with pytest.raises(InputError, match=str(bundle)):
        validate_bundle(bundle)


def test_too_many_files_are_refused_before_any_is_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.bundle.MAX_FILES", 10)
    monkeypatch.setattr("bench.bundle.read_json", None)
    with pytest.raises(InputError, match="at most 10 files"):
        validate_bundle(bundle)


@pytest.mark.parametrize("name", ["../run.json", "/etc/passwd", "cells\\x.json", "cells/X.json", "./run.json", ""])
def test_an_index_names_nothing_but_files_of_a_bundle(bundle: Path, name: str) -> None:
    index = json.loads((bundle / "bundle.json").read_text())
    index["files"][name] = "0" * 64
    (bundle / "bundle.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"bundle\.json"):
        validate_bundle(bundle)


def test_only_attacks_can_be_skipped(bundle: Path, suite: Suite) -> None:
    stem = bundle / "cells" / suite.cells[2].slug
    skip(stem, "a shift that costs points")
    with pytest.raises(InputError, match="it can be scored"):
        validate_bundle(bundle)


def skip(stem: Path, reason: str) -> None:
    """Turns a bundle's scored cell into a skipped one."""
    record = read_json(stem.with_suffix(".json"), Record)
    kept = record.model_dump(include={"cell", "family", "key"})
    stem.with_suffix(".json").write_bytes(
        to_json(Record.model_validate({**kept, "status": "skipped", "reason": reason}))
    )
    stem.with_suffix(".parquet").unlink()
    bundle = stem.parents[1]
    index = json.loads((bundle / "bundle.json").read_text())
    index["files"].pop(f"cells/{stem.name}.parquet", None)
    (bundle / "bundle.json").write_text(json.dumps(index))
    reseal(bundle)


@pytest.mark.parametrize("family", ["clean", "", "noise_attack", "domain"])
def test_one_shift_is_of_one_family(bundle: Path, suite: Suite, family: str) -> None:
    path = bundle / "cells" / f"{suite.cells[2].slug}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"family": family}))
    reseal(bundle)
    with pytest.raises(InputError, match="counted as"):
        validate_bundle(bundle)


@pytest.mark.parametrize("text", ["\u202egnp.exe", "\u2066x", "\x1b[31m", "a\x00b", "x" * 3000])
def test_a_title_cannot_steer_a_page_or_a_terminal(bundle: Path, text: str) -> None:
    run = json.loads((bundle / "run.json").read_text())
    run["submission"]["title"] = text
    (bundle / "run.json").write_text(json.dumps(run))
    reseal(bundle)
    with pytest.raises(InputError, match=r"submission\.title") as caught:
        validate_bundle(bundle)
    assert text not in str(caught.value)


def test_what_a_program_said_is_kept_without_its_escape_codes(finished_run: RunResult, tmp_path: Path) -> None:
    failed = finished_run.records[0].model_copy(update={"status": "crash", "reason": "\x1b[31mKilled\x1b[0m\r\n\u202e"})
    (tmp_path / "record.json").write_bytes(to_json(failed))
    assert read_json(tmp_path / "record.json", Record).reason == "\ufffd[31mKilled\ufffd[0m\ufffd\n\ufffd"


@pytest.mark.parametrize(("value", "is_right"), [("3", False), (True, False), (3.0, False), (2**63, False), (3, True)])
def test_numbers_are_numbers(bundle: Path, value: object, is_right: bool) -> None:
    run = json.loads((bundle / "run.json").read_text())
    (bundle / "run.json").write_text(json.dumps(run | {"batch_size": value}))
    reseal(bundle)
    if is_right:
        validate_bundle(bundle)
    else:
        with pytest.raises(InputError, match="batch_size"):
            validate_bundle(bundle)


@pytest.mark.parametrize("bomb", ["rows", "values", "names", "words", "liar"])
def test_a_small_file_cannot_unpack_to_a_large_table(finished_run: RunResult, tmp_path: Path, bomb: str) -> None:
    table = pq.read_table(finished_run.folder / "cells" / f"{finished_run.records[0].cell.slug}.parquet")
    if bomb == "rows":
        table = table.take(pa.array(np.zeros(MAX_ROWS + 1, np.int32)))
    elif bomb == "values":
        long = pa.array([np.zeros(MAX_VALUES + 1, np.int32)], pa.list_(pa.int32()))
        table = table.slice(0, 1).set_column(3, "items", long)
    elif bomb == "names":
        table = table.rename_columns(["x" * 100_000, *table.schema.names[1:]])
    elif bomb == "words":
        table = table.set_column(0, "direction", pa.array(["t2i" * 50_000] * len(table)))
    else:
        long = pa.array([np.zeros(9_000_000, np.int32)], pa.list_(pa.int32()))
        table = table.slice(0, 1).set_column(3, "items", long)
    path = tmp_path / "bomb.parquet"
    pq.write_table(table, path, compression="zstd")
    if bomb == "liar":
        say_one_value(path, 9_000_000)
    assert path.stat().st_size < 1 << 20
    before = pa.total_allocated_bytes()
    with pytest.raises(InputError, match=r"bomb\.parquet") as caught:
        read_evidence(path)
    assert len(str(caught.value)) < 2_000
    assert pa.total_allocated_bytes() - before < 16 << 20


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"schema_version": 1, "schema_version": 1}', '{"a": NaN}', "[" * 100_000, " " * (5 << 20)],
)
def test_malformed_json_is_an_input_error(bundle: Path, text: str) -> None:
    (bundle / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json"):
        read_results(bundle)


def test_evidence_survives_the_round_trip(finished_run: RunResult, tmp_path: Path) -> None:
    path = finished_run.folder / "cells" / f"{finished_run.records[0].cell.slug}.parquet"
    packed = pack_evidence(read_evidence(path))
    assert packed == path.read_bytes()


@pytest.fixture
def timed_run(finished_run: RunResult, tmp_path: Path) -> Path:
    """A run beside which lie a timing of its own, one of other files and one of other weights."""
    run = tmp_path / "timed" / "small"
    shutil.copytree(finished_run.folder, run)
    own = timing_of(read_json(run / "run.json", RunManifest))
    other_files = own.model_copy(update={"fingerprint": "0" * 64, "rerank_k": 10})
    other_weights = own.model_copy(update={"weights_sha256": "0" * 64, "rerank_k": 0})
    (run.parent / "timings").mkdir()
    for timing in (own, other_files, other_weights):
        (run.parent / "timings" / f"{timing.slug}.json").write_bytes(to_json(timing))
    return run


def test_a_bundle_takes_the_timings_of_its_own_weights_alone(timed_run: Path, tmp_path: Path) -> None:
    manifest = read_json(timed_run / "run.json", RunManifest)
    own, others = find_timings(timed_run, manifest)
    bundle = make_bundle(timed_run, tmp_path / "bundle", overwrite=False)
    assert validate_bundle(bundle).timings == (timing_of(manifest),)
    assert [path.name for path in (bundle / "timings").iterdir()] == [path.name for path in own]
    assert f"timings/{own[0].name}" in json.loads((bundle / "bundle.json").read_text())["files"]
    assert [read_json(path, TimingRecord).rerank_k for path in others] == [0, 10]


def test_timings_are_found_where_they_are_usually_written(timed_run: Path) -> None:
    manifest = read_json(timed_run / "run.json", RunManifest)
    usual = timed_run.parents[1] / f"{manifest.label}-{manifest.fingerprint[:8]}"
    name = f"{timing_of(manifest).slug}.json"
    shutil.copytree(timed_run.parent / "timings", usual / "timings")
    assert find_timings(timed_run, manifest).own == (timed_run.parent / "timings" / name,)
    shutil.rmtree(timed_run.parent / "timings")
    assert find_timings(timed_run, manifest).own == (usual / "timings" / name,)


def test_a_run_whose_weights_are_unknown_has_no_timings(timed_run: Path) -> None:
    manifest = read_json(timed_run / "run.json", RunManifest)
    assert not find_timings(timed_run, manifest.model_copy(update={"weights_sha256": None})).own


@pytest.mark.parametrize("field", ["fingerprint", "weights_sha256"])
def test_a_timing_of_another_submission_is_refused(timed_run: Path, tmp_path: Path, field: str) -> None:
    bundle = make_bundle(timed_run, tmp_path / "bundle", overwrite=False)
    path = next((bundle / "timings").iterdir())
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: "0" * 64}))
    reseal(bundle)
    with pytest.raises(InputError, match="another submission or other weights"):
        validate_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"queries_per_second": 1e9}, "queries_per_second"),
        ({"rerank_k": 7}, "rerank7"),
        ({"command": "x" * (5 << 20)}, "expected at most"),
        ({"load_s": float("nan")}, "NaN"),
    ],
)
def test_an_altered_timing_is_refused(timed_run: Path, tmp_path: Path, change: dict, match: str) -> None:
    bundle = make_bundle(timed_run, tmp_path / "bundle", overwrite=False)
    path = next((bundle / "timings").iterdir())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    reseal(bundle)
    with pytest.raises(InputError, match=match):
        validate_bundle(bundle)


def test_a_link_to_a_folder_of_timings_is_refused(timed_run: Path, tmp_path: Path) -> None:
    shutil.move(timed_run.parent / "timings", tmp_path / "elsewhere")
    bundle = make_bundle(timed_run, tmp_path / "bundle", overwrite=False)
    (bundle / "timings").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="symbolic link"):
        validate_bundle(bundle)


def reseal(bundle: Path) -> None:
    index = json.loads((bundle / "bundle.json").read_text())
    index["files"] = {name: sha256_of(bundle / name) for name in index["files"]}
    (bundle / "bundle.json").write_text(json.dumps(index))


def say_one_value(path: Path, n_values: int) -> None:
    """Makes the footer say 1 where it says `n_values`, in as many bytes: Thrift's numbers may be padded."""
    raw = path.read_bytes()
    at = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    stated = bytes([*((n_values * 2 >> shift) & 127 | 128 for shift in (0, 7, 14)), n_values * 2 >> 21])
    assert stated in raw[at:]
    path.write_bytes(raw[:at] + raw[at:].replace(stated, b"\x82\x80\x80\x00"))
    assert pq.ParquetFile(path).metadata.row_group(0).column(3).num_values == 1
