"""Bundles: what was altered is refused, whatever was altered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_timings import timing_of

from bench.bundle import find_timings, make_bundle, read_results, validate_bundle
from bench.errors import IncompleteError, InputError, UsageError
from bench.evidence import Evidence, pack_evidence, read_evidence
from bench.metrics import Ranks
from bench.records import RunManifest, read_json, to_json
from bench.run import RunResult
from bench.store import sha256_of
from bench.suites import Suite
from bench.timing_records import TimingRecord


@pytest.fixture
def bundle(finished_run: RunResult, tmp_path: Path) -> Path:
    return make_bundle(finished_run.folder, tmp_path / "bundle", overwrite=False)


def test_an_honest_bundle_is_valid(bundle: Path, suite: Suite) -> None:
    results = validate_bundle(bundle)
    assert {record.cell for record in results.records} == set(suite.cells)


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
    assert not validate_bundle(bundle).manifest.rankable


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


def test_altered_evidence_is_refused_even_with_a_new_hash(bundle: Path, suite: Suite) -> None:
    stem = bundle / "cells" / suite.cells[1].slug
    evidence = read_evidence(stem.with_suffix(".parquet"))
    part = evidence["t2i"]
    first = Ranks(part.ranks.offsets, part.ranks.places + 1, part.ranks.places + 1)
    evidence["t2i"] = Evidence(part.queries, part.images, first, part.items, part.top)
    stem.with_suffix(".parquet").write_bytes(pack_evidence(evidence))
    record = json.loads(stem.with_suffix(".json").read_text())
    record["evidence_sha256"] = sha256_of(stem.with_suffix(".parquet"))
    stem.with_suffix(".json").write_text(json.dumps(record))
    reseal(bundle)
    with pytest.raises(InputError, match="its evidence gives"):
        validate_bundle(bundle)


@pytest.mark.parametrize("damage", ["flip", "extra", "missing", "link"])
def test_damaged_files_are_refused(bundle: Path, suite: Suite, damage: str) -> None:
    path = bundle / "cells" / f"{suite.cells[0].slug}.parquet"
    if damage == "flip":
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    elif damage == "extra":
        (bundle / "cells" / "notes.html").write_text("<script>")
    elif damage == "missing":
        path.unlink()
    else:
        path.rename(bundle.parent / "elsewhere.parquet")
        path.symlink_to(bundle.parent / "elsewhere.parquet")
    with pytest.raises(InputError):
        validate_bundle(bundle)


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
        ({"command": "x" * (5 << 20)}, "larger than"),
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
