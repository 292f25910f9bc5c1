"""What the doctor finds in a run, a bundle and the cache, and that a repaired run ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from observers import Silent
from typer.testing import CliRunner

from bench.bundle import cell_files, make_bundle, read_record
from bench.cli import app
from bench.doctor import Diagnosis, diagnose_cache, diagnose_run
from bench.errors import InputError, RoveError, UsageError
from bench.records import Record, RunManifest, read_json, to_json
from bench.run import RunResult, RunSettings, run_suite
from bench.store import locked, proof_of, seal, write_atomic, write_with_proof
from bench.submission import Submission
from bench.suites import Suite


@pytest.fixture
def run(finished_run: RunResult, tmp_path: Path) -> Path:
    """A copy of the finished run, with its cache."""
    shutil.copytree(finished_run.folder, tmp_path / "run")
    shutil.copytree(finished_run.folder.parent / "cache", tmp_path / "cache")
    return tmp_path / "run"


def flip(path: Path, place: float = 0.5) -> None:
    """Flips a bit at a fraction of a file's length."""
    raw = bytearray(path.read_bytes())
    raw[int(place * (len(raw) - 1))] ^= 1
    path.write_bytes(raw)


def kinds(diagnosis: Diagnosis) -> dict[str, int]:
    return dict(Counter(finding.kind for finding in diagnosis.found))


def records_but_timing(folder: Path) -> dict[str, object]:
    return {path.name: json.loads(path.read_text()) | {"timing": None} for path in (folder / "cells").glob("*.json")}


def evidence(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "cells").glob("*.parquet")}


def manifest_but_times(folder: Path) -> RunManifest:
    """The manifest without what its probes say, among it milliseconds."""
    manifest = read_json(folder / "run.json", RunManifest)
    return manifest.model_copy(
        update={"probes": tuple(probe.model_copy(update={"figure": None, "detail": ""}) for probe in manifest.probes)}
    )


def fail(path: Path) -> None:
    """Makes a record one of a cell that failed."""
    record = read_json(path, Record)
    blank = Record(cell=record.cell, family=record.family, key=record.key, status="timeout", reason="too slow\nat last")
    write_with_proof(path, to_json(blank))


def go_on(run: Path, colours: Submission, suite: Suite) -> list[str]:
    """The cells that the same command scores again."""
    observer = Silent()
    run_suite(colours, suite, RunSettings(output=run, batch_size=16), observer)
    return observer.scored


def rove_doctor(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and the error of `rove doctor`."""
    result = CliRunner().invoke(app, ["doctor", *map(str, arguments)])
    code = result.exception.exit_code if isinstance(result.exception, RoveError) else result.exit_code
    return code, result.stdout, str(result.exception or "")


def test_a_run_that_is_well_has_no_findings(run: Path) -> None:
    assert diagnose_run(run, repair=True) == Diagnosis((), (), "")
    assert rove_doctor(run) == (0, "", "")
    code, said, _ = rove_doctor(run, "--json")
    assert (code, json.loads(said)) == (0, {"place": str(run), "command": "", "found": [], "left": []})


def test_whatever_is_damaged_is_found_repaired_and_scored_again(
    run: Path, finished_run: RunResult, colours: Submission, suite: Suite
) -> None:
    files = [cell_files(run, cell) for cell in suite.cells]
    flip(files[0][1])  # evidence
    flip(files[1][0], 0.3)  # somewhere in a record
    files[2][0].write_bytes(files[2][0].read_bytes()[:100])
    files[3][1].unlink()
    flip(proof_of(files[4][0]), 0.1)
    files[5][0].unlink()  # so that its evidence is nobody's
    fail(files[6][0])
    write_atomic(run / "cells" / "stray.json", files[7][0].read_bytes())
    write_atomic(run / "cells" / ".clean.json.ab12.tmp", b"half a rec")
    before = {path.name: path.read_bytes() for path in (run / "cells").iterdir()}
    assert kinds(diagnose_run(run, repair=False)) == {"damaged": 6, "missing": 1, "failed": 1, "left over": 3}
    assert {path.name: path.read_bytes() for path in (run / "cells").iterdir()} == before
    diagnosis = diagnose_run(run, repair=True)
    assert Counter(finding.kind for finding in diagnosis.left) == {"missing": 6, "failed": 1}
    kept = {path.name.removesuffix(".bad"): path.read_bytes() for path in (run / "cells").iterdir()}
    assert {name for name in before if name not in kept} == {".clean.json.ab12.tmp"}
    assert all(before[name] == data for name, data in kept.items())
    assert go_on(run, colours, suite) == [cell.id for cell in suite.cells[:7]]
    assert records_but_timing(run) == records_but_timing(finished_run.folder)
    assert evidence(run) == evidence(finished_run.folder)
    assert not diagnose_run(run, repair=False).found


def test_any_flipped_bit_of_a_record_is_found(run: Path, suite: Suite) -> None:
    cell = suite.cells[0]
    path, evidence = cell_files(run, cell)
    for damaged in (path, evidence, run / "run.json"):
        whole = damaged.read_bytes()
        for place in range(50):
            flip(damaged, place / 49)
            if damaged.name == "run.json":
                (finding,) = diagnose_run(run, repair=False).found
                assert (finding.kind, finding.files) == ("damaged", (damaged,))
            else:
                with pytest.raises(InputError, match=damaged.name):
                    read_record(run, cell)
            damaged.write_bytes(whole)
    assert read_record(run, cell).status == "ok"


def test_a_run_that_lost_its_manifest_keeps_its_records(
    run: Path, finished_run: RunResult, colours: Submission, suite: Suite
) -> None:
    flip(run / "run.json", 0.4)
    assert rove_doctor(run)[0] == InputError.exit_code
    code, _, error = rove_doctor(run, "--repair")
    assert (code, (run / "run.json.bad").exists()) == (5, True)
    assert "rove run" in error
    assert go_on(run, colours, suite) == []
    assert manifest_but_times(run) == manifest_but_times(finished_run.folder)
    assert records_but_timing(run) == records_but_timing(finished_run.folder)
    flip(run / "run.json", 0.6)
    assert go_on(run, colours, suite) == []  # without a doctor as well
    assert manifest_but_times(run) == manifest_but_times(finished_run.folder)


def test_the_exit_code_tells_damaged_from_unfinished(run: Path, suite: Suite) -> None:
    manifest = json.loads((run / "run.json").read_text()) | {"command": "rove run colours --suite small"}
    write_with_proof(run / "run.json", json.dumps(manifest).encode())
    first, second = (cell_files(run, cell)[0] for cell in suite.cells[:2])
    fail(first)
    code, _, error = rove_doctor(run)
    assert code == 5
    assert error == f"{first} says timeout: too slow `rove run colours --suite small`, as before, goes on."
    flip(second)
    code, said, error = rove_doctor(run, "--json")
    assert code == 3
    assert f"{second} has changed since it was written" in error
    assert f"`rove doctor {run} --repair` sets aside" in error
    assert [finding["kind"] for finding in json.loads(said)["found"]] == ["failed", "damaged", "left over"]
    code, said, _ = rove_doctor(run, "--repair", "--json")
    assert code == 5
    assert [finding["kind"] for finding in json.loads(said)["left"]] == ["failed", "missing"]


def test_a_bundle_is_judged_and_never_repaired(run: Path, tmp_path: Path) -> None:
    bundle = make_bundle(run, tmp_path / "bundle", overwrite=False)
    assert rove_doctor(bundle) == (0, "", "")
    path = next((bundle / "cells").glob("*.json"))
    flip(path)
    assert rove_doctor(bundle)[0] == 3
    code, _, error = rove_doctor(bundle, "--repair")
    assert (code, "is not repaired" in error) == (2, True)
    assert not list(bundle.rglob("*.bad"))
    assert not (bundle / ".lock").exists()


def test_what_is_no_run_and_what_is_being_written_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=r"photos holds no run\.json; expected the folder of a run or a bundle"):
        diagnose_run(tmp_path / "photos", repair=True)
    assert not list((tmp_path / "photos").iterdir())
    with locked(run), pytest.raises(UsageError, match="another run is writing"):
        diagnose_run(run, repair=True)


def test_a_second_run_on_one_folder_is_refused_and_harms_nothing(
    run: Path, finished_run: RunResult, colours: Submission, suite: Suite
) -> None:
    with locked(run), pytest.raises(UsageError, match="another run is writing"):
        go_on(run, colours, suite)
    assert records_but_timing(run) == records_but_timing(finished_run.folder)


def test_a_full_disk_ends_a_run_that_goes_on_when_there_is_room(
    run: Path, finished_run: RunResult, colours: Submission, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = [cell_files(run, cell)[0] for cell in suite.cells[1:3]]
    for path in lost:
        path.unlink()
    replace = os.replace

    def fill_up(source: str, target: Path) -> None:
        if Path(target) == lost[1]:
            raise OSError(28, os.strerror(28))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fill_up)
        with pytest.raises(RoveError, match=rf"cannot write {lost[1]}: No space left on device"):
            go_on(run, colours, suite)
    assert kinds(diagnose_run(run, repair=False)) == {"missing": 1, "left over": 1}
    assert go_on(run, colours, suite) == [suite.cells[2].id]
    assert records_but_timing(run) == records_but_timing(finished_run.folder)


def test_nothing_depends_on_the_clock(
    run: Path, colours: Submission, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, path in enumerate(sorted(run.parent.rglob("*"))):
        os.utime(path, (0, 0) if number % 2 else (4_102_444_800, 4_102_444_800))
    ticks = iter(range(2_000_000_000, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    cell_files(run, suite.cells[2])[0].unlink()
    assert go_on(run, colours, suite) == [suite.cells[2].id]
    record = read_json(cell_files(run, suite.cells[2])[0], Record)
    assert (record.timing.images_cached, record.timing.texts_cached) == (True, True)
    assert record.timing.wall_s >= 0


def test_a_damaged_cache_is_found_and_a_run_computes_it_again(
    run: Path, finished_run: RunResult, colours: Submission, suite: Suite, caplog: pytest.LogCaptureFixture
) -> None:
    cache = run.parent / "cache"
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert {path.relative_to(cache).parts[0] for path in files} == {"embeddings", "rewordings"}
    for number, path in enumerate(files):
        flip(path, number / len(files))
    shutil.rmtree(run / "cells")
    assert {path for finding in diagnose_cache(repair=False).found for path in finding.files} == set(files)
    assert len(go_on(run, colours, suite)) == len(suite.cells)
    assert records_but_timing(run) == records_but_timing(finished_run.folder)
    assert all(f"{path.name}.bad" in caplog.text for path in files)
    assert not diagnose_cache(repair=False).found


@pytest.mark.parametrize(
    "name", [f"embeddings/ab/{64 * 'a'}", f"rewordings/{64 * 'b'}", f"entries/{64 * 'c'}", f"exact/{32 * 'd'}"]
)
def test_the_cache_is_repaired_by_setting_aside(name: str, tmp_path: Path) -> None:
    path = tmp_path / "cache" / name
    write_atomic(path, seal(b"costly"))
    write_atomic(path.with_name(".stray.ab12.tmp"), b"half")
    write_atomic(path.with_name("README"), b"not ours")
    assert kinds(diagnose_cache(repair=False)) == {"left over": 1}
    flip(path)
    code, _, error = rove_doctor()
    assert (code, "`rove doctor --repair`" in error) == (3, True)
    assert rove_doctor("--repair")[0] == 0
    assert sorted(one.name for one in path.parent.iterdir()) == ["README", f"{path.name}.bad"]


def test_a_cache_folder_that_cannot_be_used_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not diagnose_cache(repair=True).found
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1))
        (finding,) = diagnose_cache(repair=True).left
    assert (finding.kind, "has 1 bytes free" in finding.problem) == ("machine", True)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROVE_CACHE", str(tmp_path / "file"))
    code, _, error = rove_doctor()
    assert (code, error) == (3, f"{tmp_path}/file cannot be written: Not a directory. ROVE_CACHE names another.")


def test_a_record_of_another_cell_is_found(run: Path, suite: Suite) -> None:
    first, second = (cell_files(run, cell)[0] for cell in suite.cells[:2])
    write_with_proof(first, second.read_bytes())
    (finding,) = diagnose_run(run, repair=False).found
    assert finding.problem == f"{first} holds the cell scenes/test clean_canvas; expected scenes/test clean."


def test_a_metric_that_does_not_follow_from_its_evidence_is_found(run: Path, suite: Suite) -> None:
    path = cell_files(run, suite.cells[0])[0]
    record = json.loads(path.read_text())
    record["metrics"]["t2i"]["hit@1"]["value"] += 0.25
    write_with_proof(path, json.dumps(record).encode())
    (finding,) = diagnose_run(run, repair=False).found
    assert "t2i hit@1" in finding.problem
    assert "its evidence gives" in finding.problem
