"""Locks: what is frozen stays as it was, what was scored on something else is named, and nobody borrows a label."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from bench.bundle import Results, read_results
from bench.data.registry import RENDERED
from bench.errors import InputError, UsageError
from bench.locks import (
    FOLDER,
    Lock,
    check_claims,
    check_data,
    check_suite,
    find_lock,
    list_locks,
    lock_name,
    read_lock,
    stated_data,
)
from bench.records import Record
from bench.run import RunResult
from bench.suites import Suite, list_suites, read_suite
from bench.suites.__main__ import keep_data, lock_bytes, main, make_lock, take_data, write_lock

FROZEN = [suite for suite in list_suites().values() if suite.status == "frozen"]
OTHER = "0" * 64


@pytest.fixture
def run(finished_run: RunResult) -> Results:
    return read_results(finished_run.folder)


@pytest.fixture
def frozen_file(suite_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(suite_file.read_text().replace('"draft"', '"frozen"'))
    return path


@pytest.mark.parametrize("suite", [pytest.param(suite, id=suite.label) for suite in FROZEN])
def test_a_frozen_suite_is_still_what_its_lock_says(suite: Suite) -> None:
    path = FOLDER / lock_name(suite.label)
    lock = read_lock(path)
    assert lock.suite_id == suite.id
    assert [cell.id for cell in lock.cells] == [cell.id for cell in suite.cells]
    assert keep_data(make_lock(FOLDER / f"{suite.name}.toml"), lock, frozen=True) == lock, (
        f"`python -m bench.suites {suite.name}` writes a reworded lock; what decides a score makes a new version"
    )
    assert path.read_bytes() == lock_bytes(lock)
    stated = [cell.collection for cell in lock.cells if stated_data(lock, cell)]
    assert {name.partition("/")[0] for name in [*stated, *lock.source_sha256]} <= set(RENDERED)


def test_a_lock_tells_of_each_change_what_it_is() -> None:
    lock = list_locks()["demo-full-v1"]
    facts = {name: (change.kind, change.family, change.strengths, change.unit) for name, change in lock.changes.items()}
    assert facts["defocus_blur"] == ("image", "blur", (1, 2, 3, 4, 5), "severity")
    assert facts["sentence_passive"] == ("text", "sentence", (1,), "severity")
    assert facts["gallery_mix"] == ("gallery_image", "gallery", (1, 2, 3, 4, 5), "severity")
    assert facts["gallery_danger"] == ("gallery_text", "gallery", (1,), "severity")
    assert facts["pgd"] == ("attack", "image_attack", (1, 2, 4, 8), "levels of 255")
    assert facts["charmer"] == ("attack", "text_attack", (1, 2), "characters")
    assert facts["scenes-night/test"] == ("collection", "domain", (), "")
    core = list_locks()["demo-core-v1"]
    assert core.changes["defocus_blur"].strengths == (1, 3, 5)
    cells = {cell.id: cell for cell in core.cells}
    assert (cells["scenes/test snow:3"].change, cells["scenes/test snow:3"].strength) == ("snow", 3)
    assert cells["scenes/test snow:3"].reason.startswith("Weather that covers things")
    assert (cells["scenes/test clean_canvas"].change, cells["scenes/test clean_canvas"].strength) == ("", None)
    assert cells["scenes-objects/test clean_canvas"].change == ""
    assert cells["scenes-night/test clean_canvas"].change == "scenes-night/test"


def test_families_are_those_of_the_records(suite_file: Path, run: Results) -> None:
    changes = make_lock(suite_file).changes
    changed = [record for record in run.records if not record.cell.is_clean]
    assert {record.cell.change: record.family for record in changed} == {
        name: change.family for name, change in changes.items()
    }


def test_a_run_fills_a_lock_and_other_data_are_named(suite_file: Path, run: Results) -> None:
    lock = take_data(make_lock(suite_file), run)
    assert check_data(lock, run.records) == ""
    assert take_data(lock, run) == lock
    assert set(lock.source_sha256) == {"scenes/test", "scenes-night/test", "scenes-objects/test"}
    fields = {field for cell in lock.cells for field in stated_data(lock, cell)}
    assert fields == {"source_sha256", "images_sha256", "captions_sha256", "distractors_sha256"}
    for field, place in (("images_sha256", "gaussian_noise:5"), ("distractors_sha256", "gallery_mix:4")):
        records = [_with_data(record, place, field) for record in run.records]
        assert check_data(lock, records) == (
            f"scenes/test {place} was scored on other items than small-v1-draft states: "
            f"its {field} is 000000000000, expected {_stated(lock, place)[field][:12]}."
        )
    sources = [_with_data(record, "clean", "source_sha256") for record in run.records]
    assert "source_sha256" in check_data(lock, sources)
    assert check_data(make_lock(suite_file), sources) == ""
    with pytest.raises(InputError, match="a lock is not overwritten"):
        take_data(lock, Results(run.folder, run.manifest, tuple(sources)))


def test_of_attacked_items_only_the_source_is_stated(suite_file: Path, run: Results, tmp_path: Path) -> None:
    path = tmp_path / "attacked.toml"
    attack = '\n[[cells]]\ncollection = "scenes/test"\nattacks = ["pgd"]\nbudgets = [2]\nthreat_models = ["query"]\n'
    path.write_text(suite_file.read_text() + attack + 'n_images = 4\nreason = "For a test."\n')
    lock, cell = make_lock(path), read_suite(path).cells[-1]
    clean = next(record for record in run.records if record.cell.id == "scenes/test clean")
    attacked = _with_data(clean, "clean", "source_sha256").model_copy(update={"cell": cell})
    manifest = run.manifest.model_copy(update={"suite_id": lock.suite_id})
    filled = take_data(lock, Results(run.folder, manifest, (clean, attacked)))
    assert clean.data
    assert filled.source_sha256 == {"scenes/test": clean.data.source_sha256}
    assert stated_data(filled, filled.cells[-1]) == {"source_sha256": OTHER}
    assert stated_data(filled, lock.cells[-1]) == {}
    assert check_data(filled, [clean, attacked]) == ""
    assert "pgd:2 query was scored on other items" in check_data(filled, [clean.model_copy(update={"cell": cell})])


def test_a_run_of_something_else_fills_no_lock(suite_file: Path, run: Results) -> None:
    lock = make_lock(suite_file)
    limited = Results(run.folder, run.manifest.model_copy(update={"limit": 4}), run.records)
    with pytest.raises(UsageError, match="--limit"):
        take_data(lock, limited)
    with pytest.raises(UsageError, match="is a run of small-v1-draft; expected one of this demo-core-v1"):
        take_data(list_locks()["demo-core-v1"], run)


def test_a_frozen_suite_is_reworded_but_not_changed(frozen_file: Path, tmp_path: Path) -> None:
    output, first = write_lock(frozen_file, None, tmp_path)
    assert output.name == "small-v1.lock.json"
    known = first.cells[0].model_copy(update={"images_sha256": OTHER})
    output.write_bytes(lock_bytes(first.model_copy(update={"cells": (known, *first.cells[1:])})))
    text = frozen_file.read_text()
    frozen_file.write_text(text.replace('"For a test."', '"For another reason."'))
    _, reworded = write_lock(frozen_file, None, tmp_path)
    assert reworded.cells[0] == known.model_copy(update={"reason": "For another reason."})
    before = output.read_bytes()
    frozen_file.write_text(text.replace("severities = [3]", "severities = [4]"))
    with pytest.raises(UsageError, match="other cells; a changed cell makes a new version"):
        write_lock(frozen_file, None, tmp_path)
    frozen_file.write_text(frozen_file.read_text().replace("version = 1", "version = 2"))
    second, _ = write_lock(frozen_file, None, tmp_path)
    assert second.name == "small-v2.lock.json"
    assert output.read_bytes() == before


def test_another_version_of_a_shift_changes_a_frozen_suite(frozen_file: Path) -> None:
    lock = make_lock(frozen_file)
    older = lock.changes["gaussian_noise"].model_copy(update={"version": 1})
    earlier = lock.model_copy(update={"changes": lock.changes | {"gaussian_noise": older}})
    with pytest.raises(UsageError, match="version 1 of gaussian_noise"):
        keep_data(lock, earlier, frozen=True)
    assert keep_data(lock, earlier, frozen=False) == lock


def test_a_label_belongs_to_its_suite() -> None:
    lock = find_lock("demo-core-v1")
    assert lock is not None
    check_suite("demo-core-v1", lock.suite_id)
    check_suite("somebodys-own-v1", OTHER)
    assert find_lock("somebodys-own-v1") is None
    with pytest.raises(InputError, match=r"suite demo-core-v1 has the id .* another name"):
        check_suite("demo-core-v1", OTHER)


def test_the_command_writes_and_says_what_is_wrong(
    frozen_file: Path, suite_file: Path, run: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(frozen_file)], None, tmp_path)
    assert "small-v1.lock.json: 9 cells, 0 with the data" in capsys.readouterr().out
    main([str(suite_file)], run.folder, tmp_path)
    assert "9 cells, 9 with the data" in capsys.readouterr().out
    with pytest.raises(typer.Exit) as exit_info:
        main([str(frozen_file)], run.folder, tmp_path)
    assert exit_info.value.exit_code == UsageError.exit_code
    assert "expected one of this small-v1." in capsys.readouterr().err


def test_a_damaged_lock_is_refused(tmp_path: Path) -> None:
    contents = json.loads((FOLDER / "demo-core-v1.lock.json").read_text())
    path = tmp_path / "demo-core-v1.lock.json"
    path.write_text(json.dumps({**contents, "changes": {}}))
    with pytest.raises(InputError, match="the change gaussian_noise, which is not among the changes"):
        read_lock(path)
    path = tmp_path / "demo-core-v2.lock.json"
    path.write_text(json.dumps(contents))
    with pytest.raises(InputError, match=r"expected it in demo-core-v1\.lock\.json"):
        read_lock(path)


def _with_data(record: Record, shift: str, field: str) -> Record:
    """The record, with another sha256 in that field if it is of that shift."""
    if record.cell.shift != shift or record.data is None:
        return record
    return record.model_copy(update={"data": record.data.model_copy(update={field: OTHER})})


def _stated(lock: Lock, shift: str) -> dict[str, str]:
    return next(stated_data(lock, cell) for cell in lock.cells if cell.id == f"scenes/test {shift}")


def test_another_family_or_a_skip_that_no_gradient_excuses_is_refused(suite_file: Path, run: Results) -> None:
    lock = make_lock(suite_file)
    check_claims(lock, run.records)
    noise = next(record for record in run.records if record.family == "noise")
    with pytest.raises(InputError, match="counted as 'typo'; small-v1-draft has 'noise'"):
        check_claims(lock, [noise.model_copy(update={"family": "typo"})])
    with pytest.raises(InputError, match="was skipped, but it needs no gradient"):
        check_claims(lock, [noise.model_copy(update={"status": "skipped"})])


def test_only_attacks_through_a_gradient_may_be_skipped() -> None:
    lock = list_locks()["demo-core-v1"]
    families = {name: change.family for name, change in lock.changes.items()}
    suite = read_suite(FOLDER / "demo-core.toml")
    refused = set()
    for cell in (cell for cell in suite.cells if cell.is_attack):
        record = Record(cell=cell, family=families[cell.change], key=OTHER, status="skipped", reason="no gradient")
        try:
            check_claims(lock, [record])
        except InputError:
            refused.add(cell.change)
    assert refused == {"square", "bert_attack", "charmer"}
