"""The results tree: what counts, what may be added to it, and that a stranger can change nothing else."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from bench import locks
from bench.bundle import INDEX, make_bundle, read_results, validate_bundle
from bench.cli import publishing
from bench.errors import InputError, RoveError
from bench.records import RunManifest, read_json, suite_digest, to_json
from bench.run import RunResult
from bench.store import sha256_of
from leaderboard import history
from leaderboard.history import CHANGES, add_bundle, check_addition, read_history

DAY = datetime.date(2026, 3, 14)
SUITE, LABEL = "small-v1", "colours"
WORKFLOWS = Path(__file__).parents[2] / ".github" / "workflows"
Edit = Callable[[Path], None]


@pytest.fixture(scope="session")
def bundle(finished_run: RunResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real bundle, of the small suite as if it were frozen."""
    folder = tmp_path_factory.mktemp("published") / "bundle"
    make_bundle(finished_run.folder, folder, overwrite=False)
    relabel(folder, LABEL)
    return folder


@pytest.fixture(scope="session")
def newer(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same scores from another command: another bundle of the same place."""
    folder = tmp_path_factory.mktemp("newer") / "bundle"
    shutil.copytree(bundle, folder)
    relabel(folder, LABEL, command="rove run colours --suite small.toml --batch-size 8")
    return folder


@pytest.fixture(scope="session")
def trees(bundle: Path, newer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`results`, a tree with one bundle in it, and `proposed`, the same with a second revision."""
    folder = tmp_path_factory.mktemp("trees")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROVE_CACHE", str(folder / "cache"))
        add_bundle(bundle, folder / "results", "first result", DAY)
        shutil.copytree(folder / "results", folder / "proposed")
        add_bundle(newer, folder / "proposed", "trained for longer", DAY)
    return folder


@pytest.fixture
def root(trees: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trees / "results", tmp_path / "results")


@pytest.fixture
def proposed(trees: Path, tmp_path: Path) -> Path:
    """What a good pull request holds."""
    return shutil.copytree(trees / "proposed", tmp_path / "proposed")


@pytest.fixture
def lock(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> locks.Lock:
    """The small suite's, so that it passes for a frozen one."""
    manifest = read_results(bundle).manifest
    names = {record.cell.id: record.cell.change for record in read_results(bundle).records}
    cells = [
        locks.LockedCell(id=cell.id, collection=cell.collection, change="", reason="For a test.")
        for cell in manifest.cells
        if cell.id in names
    ]
    made = locks.Lock(
        suite=SUITE,
        suite_id=manifest.suite_id,
        title="Small",
        summary="For a test.",
        reference="colours",
        seeds=(0,),
        collections=manifest.collections,
        changes={},
        cells=tuple(cells),
    )
    monkeypatch.setattr(locks, "find_lock", {SUITE: made}.get)
    return made


def relabel(bundle: Path, label: str, **fields: Any) -> None:
    """Makes a bundle one of another submission, or of another command, with the hashes that go with it."""
    manifest = read_json(bundle / "run.json", RunManifest)
    suite_id = suite_digest(SUITE, manifest.collections, manifest.cells)
    changed = manifest.model_copy(update={"suite": SUITE, "suite_id": suite_id, "label": label, **fields})
    (bundle / "run.json").write_bytes(to_json(changed))
    index = json.loads((bundle / INDEX).read_text())
    index["files"]["run.json"] = sha256_of(bundle / "run.json")
    (bundle / INDEX).write_text(json.dumps(index))


def place_in(root: Path) -> Path:
    return root / SUITE / LABEL


def append(root: Path, revision: int, event: str, **fields: Any) -> None:
    """A further line, as a maintainer would write it."""
    place = place_in(root)
    digest = sha256_of(place / f"r{revision}" / INDEX)
    line = {"revision": revision, "event": event, "bundle_sha256": digest, "date": "2026-04-01", **fields}
    with (place / CHANGES).open("a") as file:
        file.write(json.dumps({"reason": "checked by a maintainer", **line}) + "\n")


def edit_line(root: Path, number: int, **fields: Any) -> None:
    path = place_in(root) / CHANGES
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[number - 1] |= fields
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def rove(*arguments: str | Path) -> Any:
    app = typer.Typer()
    publishing.register(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# What counts.


def test_the_newest_that_stands_is_current(proposed: Path) -> None:
    first, second = read_history(proposed)
    assert (first.is_current, second.is_current) == (False, True)
    assert (second.suite, second.label, second.number) == (SUITE, LABEL, 2)
    assert second.change.reason == "trained for longer"
    append(proposed, 2, "reproduced", cells=3, machine="another machine")
    append(proposed, 2, "withdrawn")
    first, second = read_history(proposed)
    assert (first.is_current, second.is_current) == (True, False)
    assert second.withdrawn
    assert second.reproduced
    assert second.reproduced.cells == 3


def test_what_is_added_is_the_bundle(root: Path, bundle: Path) -> None:
    (revision,) = read_history(root)
    ours = {path.relative_to(bundle): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    folder = revision.folder
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == ours
    validate_bundle(folder)


# Additions that are interrupted, repeated or refused.


def test_the_same_bundle_is_not_added_twice(root: Path, bundle: Path) -> None:
    with pytest.raises(InputError, match="byte for byte"):
        add_bundle(bundle, root, "once more, the same", DAY)


def test_a_withdrawn_bundle_may_come_back(root: Path, bundle: Path) -> None:
    append(root, 1, "withdrawn")
    add_bundle(bundle, root, "withdrawn by mistake", DAY)
    assert [revision.is_current for revision in read_history(root)] == [False, True]


@pytest.mark.parametrize("stage", ["copying", "moving in", "line"])
def test_an_interrupted_addition_is_finished_by_the_same_command(
    root: Path, newer: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """As a killed process leaves things: nothing cleans up behind it."""
    place = place_in(root)
    with monkeypatch.context() as patch:
        if stage == "line":
            patch.setattr(history, "_append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                add_bundle(newer, root, "trained for longer", DAY)
        else:
            shutil.copytree(newer, place / ".r2.abcd" / "r2")
            (place / f".{CHANGES}.abcd.tmp").write_text("{")
        if stage == "copying":
            (place / ".r2.abcd" / "r2" / INDEX).unlink()
    with pytest.raises(InputError, match=r"r2"):
        read_history(root)
    add_bundle(newer, root, "trained for longer", DAY)
    assert [revision.number for revision in read_history(root)] == [1, 2]
    assert len((place / CHANGES).read_text().splitlines()) == 2


def test_a_first_addition_that_was_interrupted_is_finished(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(history, "_append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            add_bundle(bundle, tmp_path / "results", "first result", DAY)
    add_bundle(bundle, tmp_path / "results", "first result", DAY)
    assert len(read_history(tmp_path / "results")) == 1


def test_another_bundle_does_not_take_an_interrupted_one_s_place(root: Path, newer: Path, bundle: Path) -> None:
    shutil.copytree(newer, place_in(root) / "r2")
    append(root, 1, "withdrawn")  # so that the first may be added again
    with pytest.raises(InputError, match=r"r2 has no line"):
        add_bundle(bundle, root, "withdrawn by mistake", DAY)
    assert sha256_of(place_in(root) / "r2" / INDEX) == sha256_of(newer / INDEX)


@pytest.mark.parametrize("reason", ["", "   ", "better"])
def test_a_later_revision_needs_a_reason(root: Path, newer: Path, reason: str) -> None:
    before = sorted(root.rglob("*"))
    with pytest.raises(InputError, match="reason"):
        add_bundle(newer, root, reason, DAY)
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("label", ["../../elsewhere", ".hidden", "a/b", "", "Capital"])
def test_a_label_that_is_no_folder_name_is_refused(bundle: Path, tmp_path: Path, label: str) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    relabel(tmp_path / "bundle", label)
    with pytest.raises(InputError, match="label"):
        add_bundle(tmp_path / "bundle", tmp_path / "results", "first result", DAY)
    assert not list(tmp_path.glob("results/**/r1"))


# A tree that does not hold.


def no_line(root: Path) -> None:
    shutil.copytree(place_in(root) / "r1", place_in(root) / "r2")


def no_folder(root: Path) -> None:
    shutil.rmtree(place_in(root) / "r1")


def no_changes(root: Path) -> None:
    (place_in(root) / CHANGES).unlink()


def other_index(root: Path) -> None:
    path = place_in(root) / "r1" / INDEX
    path.write_bytes(path.read_bytes() + b"\n")


def a_gap(root: Path) -> None:
    shutil.copytree(place_in(root) / "r1", place_in(root) / "r3")
    append(root, 3, "added")


def other_suite(root: Path) -> None:
    (root / SUITE).rename(root / "demo-core-v1")


def other_label(root: Path) -> None:
    place_in(root).rename(root / SUITE / "tiny")


def a_link(root: Path) -> None:
    (place_in(root) / "r1" / "run.json").rename(root.parent / "run.json")
    (place_in(root) / "r1" / "run.json").symlink_to(root.parent / "run.json")


def a_linked_folder(root: Path) -> None:
    (root / SUITE / "tiny").symlink_to(place_in(root))


def a_pipe(root: Path) -> None:
    os.mkfifo(root / SUITE / "pipe")


def a_note(root: Path) -> None:
    (place_in(root) / "notes.txt").write_text("?")


def a_hidden_file(root: Path) -> None:
    (root / SUITE / ".note").write_text("?")


def a_strange_name(root: Path) -> None:
    (root / "\x1b[2Jsuite").mkdir()


def a_padded_revision(root: Path) -> None:
    (place_in(root) / "r1").rename(place_in(root) / "r01")


def no_line_break(root: Path) -> None:
    path = place_in(root) / CHANGES
    path.write_bytes(path.read_bytes().rstrip())


def a_key_twice(root: Path) -> None:
    path = place_in(root) / CHANGES
    path.write_text(path.read_text().replace('{"revision": 1', '{"revision": 2, "revision": 1'))


def withdrawn_twice(root: Path) -> None:
    append(root, 1, "withdrawn")
    append(root, 1, "withdrawn")


BROKEN: list[tuple[Edit, str]] = [
    (no_line, r"r2 lacks its `added` line"),
    (no_folder, r"r1 lacks its folder"),
    (no_changes, r"r1 lacks its `added` line"),
    (other_index, r"line 1, states the bundle_sha256"),
    (a_gap, r"line 2, is of revision 3"),
    (other_suite, r"run.json is of small-v1/colours"),
    (other_label, r"run.json is of small-v1/colours"),
    (a_link, r"run.json is a link"),
    (a_linked_folder, r"tiny is a link"),
    (a_pipe, r"pipe is a link or a device"),
    (a_note, r"notes.txt lacks"),
    (a_hidden_file, r"\.note"),
    (a_strange_name, r"x1b\[2Jsuite"),
    (a_padded_revision, r"r01 lacks"),
    (no_line_break, r"changes.jsonl has .* line break"),
    (a_key_twice, r"line 1, has a key twice"),
    (withdrawn_twice, r"line 3: revision 1 was withdrawn"),
    (lambda root: append(root, 1, "reproduced"), r"line 2: .*cells and machine"),
    (lambda root: append(root, 1, "withdrawn", cells=3), r"line 2: .*cells and machine"),
    (lambda root: append(root, 1, "withdrawn", reason="wrong"), r"line 2: .*10 characters"),
    (lambda root: append(root, 1, "deleted"), r"line 2: field event"),
    (lambda root: append(root, 1, "withdrawn", by="me"), r"line 2: field by"),
    (lambda root: edit_line(root, 1, date="14.3.2026"), r"line 1: field date"),
    (lambda root: edit_line(root, 1, date=20260314), r"line 1: field date"),
    (lambda root: edit_line(root, 1, revision="1"), r"line 1: field revision"),
    (lambda root: (place_in(root) / CHANGES).write_text("[]\n"), r"line 1"),
    (lambda root: (place_in(root) / CHANGES).write_text("3\n"), r"line 1"),
    (lambda root: (place_in(root) / CHANGES).write_text("[" * 100_000 + "\n"), r"line 1"),
    (lambda root: (place_in(root) / CHANGES).write_bytes(b"\xff\n"), r"line 1"),
]


@pytest.mark.parametrize(("edit", "message"), BROKEN)
def test_a_broken_tree_is_refused_by_name(root: Path, edit: Edit, message: str) -> None:
    edit(root)
    with pytest.raises(InputError, match=message):
        read_history(root)


# What a pull request may hold.


def test_one_new_revision_is_an_addition(root: Path, proposed: Path) -> None:
    revision = check_addition(root, proposed)
    assert revision.folder == place_in(proposed) / "r2"
    assert revision.is_current


def test_a_first_result_is_an_addition(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert check_addition(tmp_path / "empty", root).number == 1


def changed_file(proposed: Path) -> None:
    path = place_in(proposed) / "r1" / "run.json"
    path.write_bytes(path.read_bytes().replace(b"colours", b"colourz", 1))


def longer_file(proposed: Path) -> None:
    path = place_in(proposed) / "r1" / "run.json"
    path.write_bytes(path.read_bytes() + b" ")


def deleted_file(proposed: Path) -> None:
    next((place_in(proposed) / "r1" / "cells").glob("*.parquet")).unlink()


def deleted_revision(proposed: Path) -> None:
    shutil.rmtree(place_in(proposed) / "r1")


def edited_line(proposed: Path) -> None:
    edit_line(proposed, 1, reason="first_result")


def reordered_lines(proposed: Path) -> None:
    path = place_in(proposed) / CHANGES
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))


def two_lines(proposed: Path) -> None:
    append(proposed, 2, "reproduced", cells=2, machine="mine")


def two_submissions(proposed: Path) -> None:
    shutil.copytree(place_in(proposed), proposed / SUITE / "tiny")


def two_revisions(proposed: Path) -> None:
    shutil.copytree(place_in(proposed) / "r1", place_in(proposed) / "r3")
    append(proposed, 3, "added")


def file_in_an_old_revision(proposed: Path) -> None:
    (place_in(proposed) / "r1" / "notes.txt").write_text("?")


def file_beside(proposed: Path) -> None:
    (place_in(proposed) / "notes.txt").write_text("?")


def file_elsewhere(proposed: Path) -> None:
    (proposed / "index.html").write_text("?")


def changes_elsewhere(proposed: Path) -> None:
    (proposed / SUITE / "tiny").mkdir()
    (proposed / SUITE / "tiny" / CHANGES).write_text("")


def linked_file(proposed: Path) -> None:
    (place_in(proposed) / "r2" / "extra.json").symlink_to("/etc/hostname")


def linked_old_file(proposed: Path) -> None:
    """The same bytes behind a link."""
    path = place_in(proposed) / "r1" / "run.json"
    target = proposed.parent / "run.json"
    path.rename(target)
    path.symlink_to(target)


def large_file(proposed: Path) -> None:
    with (place_in(proposed) / "r2" / "cells" / "huge.parquet").open("wb") as file:
        file.truncate(history.MAX_BUNDLE_BYTES)


def many_files(proposed: Path) -> None:
    (place_in(proposed) / "r2" / "many").mkdir()
    for number in range(history.MAX_FILES):
        (place_in(proposed) / "r2" / "many" / f"{number}").touch()


def no_new_line(proposed: Path) -> None:
    path = place_in(proposed) / CHANGES
    path.write_text(path.read_text().splitlines(keepends=True)[0])


def wrong_hash(proposed: Path) -> None:
    edit_line(proposed, 2, bundle_sha256="0" * 64)


FORBIDDEN: list[tuple[Edit, str]] = [
    (changed_file, r"small-v1/colours/r1/run.json differs"),
    (longer_file, r"small-v1/colours/r1/run.json differs"),
    (deleted_file, r"small-v1/colours/r1/cells/.*parquet is missing"),
    (deleted_revision, r"small-v1/colours/r1/bundle.json is missing"),
    (edited_line, r"small-v1/colours/changes.jsonl differs"),
    (reordered_lines, r"small-v1/colours/changes.jsonl differs"),
    (two_lines, r"changes.jsonl has new lines: added, reproduced"),
    (two_submissions, r"small-v1/colours/r2 and small-v1/tiny/r1 is new"),
    (two_revisions, r"colours/r2 and small-v1/colours/r3 is new"),
    (file_in_an_old_revision, r"small-v1/colours/r1/notes.txt is new"),
    (file_beside, r"small-v1/colours/notes.txt is new"),
    (file_elsewhere, r"index.html is new"),
    (changes_elsewhere, r"small-v1/tiny/changes.jsonl is new"),
    (linked_file, r"extra.json is a link"),
    (linked_old_file, r"r1/run.json is a link"),
    (large_file, r"the largest .*huge.parquet"),
    (many_files, r"r2 has 20\d\d files"),
    (no_new_line, r"changes.jsonl has new lines: none"),
    (wrong_hash, r"changes.jsonl, line 2, states the bundle_sha256"),
]


@pytest.mark.parametrize(("edit", "message"), FORBIDDEN, ids=lambda value: getattr(value, "__name__", ""))
def test_anything_else_is_refused(root: Path, proposed: Path, edit: Edit, message: str) -> None:
    edit(proposed)
    with pytest.raises(InputError, match=message):
        check_addition(root, proposed)


@pytest.mark.parametrize(
    ("event", "fields"), [("reproduced", {"cells": 2, "machine": "mine"}), ("withdrawn", {})], ids=["badge", "removal"]
)
def test_only_a_maintainer_reproduces_or_withdraws(root: Path, tmp_path: Path, event: str, fields: Any) -> None:
    """Without a new bundle too."""
    shutil.copytree(root, tmp_path / "proposed")
    append(tmp_path / "proposed", 1, event, **fields)
    with pytest.raises(InputError, match=r"small-v1/colours/changes.jsonl is new"):
        check_addition(root, tmp_path / "proposed")


def test_nothing_new_is_no_addition(root: Path) -> None:
    with pytest.raises(InputError, match="nothing is new"):
        check_addition(root, root)


# The commands.


@pytest.mark.usefixtures("lock")
def test_results_are_added_and_checked(bundle: Path, newer: Path, tmp_path: Path) -> None:
    root, before = tmp_path / "results", tmp_path / "before"
    added = rove("results", "add", bundle, "--into", root, "--reason", "first result")
    assert added.stdout.strip() == str(place_in(root) / "r1"), added.output
    shutil.copytree(root, before)
    rove("results", "add", newer, "--into", root, "--reason", "trained for longer")
    whole = rove("results", "check", root, "--json")
    assert json.loads(whole.stdout) == [{"bundle": f"{SUITE}/{LABEL}/r2", "valid": True, "error": ""}]
    assert rove("results", "check", root, "--base", before).exit_code == 0
    assert isinstance(rove("results", "check", before, "--base", root).exception, InputError)


@pytest.mark.usefixtures("lock")
def test_a_bundle_that_does_not_hold_is_neither_added_nor_accepted(root: Path, proposed: Path, tmp_path: Path) -> None:
    """Its history is in order: only its evidence says otherwise."""
    folder = place_in(proposed) / "r2"
    record = folder / "cells" / "scenes-test-clean_canvas.json"
    contents = json.loads(record.read_text())
    contents["metrics"]["t2i"]["hit@1"]["value"] = 0.999
    record.write_text(json.dumps(contents))
    index = json.loads((folder / INDEX).read_text())
    index["files"][f"cells/{record.name}"] = sha256_of(record)
    (folder / INDEX).write_text(json.dumps(index))
    edit_line(proposed, 2, bundle_sha256=sha256_of(folder / INDEX))
    assert check_addition(root, proposed).number == 2

    checked = rove("results", "check", proposed, "--base", root)
    assert isinstance(checked.exception, InputError)
    assert "0.999" in checked.stderr
    added = rove("results", "add", folder, "--into", tmp_path / "other", "--reason", "first result")
    assert isinstance(added.exception, InputError)
    assert not (tmp_path / "other").exists()


def test_a_draft_and_an_impostor_are_refused(
    bundle: Path, lock: locks.Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for known, message in (
        ({}, "no frozen suite"),
        ({SUITE: lock.model_copy(update={"suite_id": "0" * 64})}, "the id"),
    ):
        monkeypatch.setattr(locks, "find_lock", known.get)
        done = rove("results", "add", bundle, "--into", tmp_path / "results", "--reason", "first result")
        assert isinstance(done.exception, RoveError)
        assert message in str(done.exception)
    assert not (tmp_path / "results").exists()


def test_a_bundle_is_exported(bundle: Path, tmp_path: Path) -> None:
    done = rove("export", bundle, "-o", tmp_path / "scores.json")
    assert done.exit_code == 0, done.exception
    exported = json.loads((tmp_path / "scores.json").read_text())
    stated = {
        f"{record.cell.slug}/{direction}/rove.{metric}": value.value
        for record in read_results(bundle).records
        for direction, metrics in record.metrics.items()
        for metric, value in metrics.items()
    }
    found = {r["evaluation_result_id"]: r["score_details"]["score"] for r in exported["evaluation_results"]}
    shared = stated.keys() & found.keys()
    assert len(shared) > 50
    assert all(found[name] == stated[name] for name in shared)


# The workflows.


def read_workflow(name: str) -> dict[str, Any]:
    contents = yaml.safe_load((WORKFLOWS / name).read_text())
    contents["on"] = contents.pop(True)  # YAML 1.1 takes the key `on` for a boolean
    return contents


def steps_of(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*")), ids=lambda path: path.name)
def test_a_workflow_may_only_read(path: Path) -> None:
    """All but the deployment of the built site, which runs none of the repository's code, and never for a stranger."""
    workflow = read_workflow(path.name)
    assert workflow["permissions"] == {"contents": "read"}
    assert not {"pull_request_target", "workflow_run"} & set(workflow["on"])
    granted = {name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
    if granted:
        assert "pull_request" not in workflow["on"]
        assert granted == {"deploy": {"pages": "write", "id-token": "write"}}
        assert [step["uses"] for step in workflow["jobs"]["deploy"]["steps"]] == ["actions/deploy-pages@v4"]
    for step in steps_of(workflow):
        assert re.fullmatch(r"actions/[a-z-]+@(v\d+|[0-9a-f]{40})", step.get("uses", "actions/none@v0"))
        assert "github.event" not in step.get("run", ""), "text of a stranger in a shell"
        assert "checkout" not in step.get("uses", "") or step["with"]["persist-credentials"] is False


def test_a_submission_is_checked_by_the_base_s_code() -> None:
    """Every command line names what it runs; none of it lies in the pull request's folder."""
    runs = [
        line.strip() for step in steps_of(read_workflow("submission.yml")) for line in step.get("run", "").splitlines()
    ]
    assert [line for line in runs if "pip install" in line] == [
        "python -m pip install --constraint base/constraints.txt './base[cpu]'"
    ]
    touching = [line for line in runs if re.search(r"\bpr\b", line)]
    assert len(touching) == 2
    assert "git -C pr rev-parse" in touching[0]
    assert touching[1].startswith("rove results check pr/leaderboard/results --base base/leaderboard/results")


@pytest.mark.usefixtures("lock")
def test_the_command_of_the_submission_workflow_is_ours(
    root: Path, proposed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [line for step in steps_of(read_workflow("submission.yml")) for line in step.get("run", "").splitlines()]
    (command,) = (line.split() for line in runs if line.startswith("rove "))
    for tree, checkout in ((root, "base"), (proposed, "pr")):
        shutil.copytree(tree, tmp_path / checkout / "leaderboard" / "results")
    monkeypatch.chdir(tmp_path)
    done = rove(*command[1:])
    assert done.exit_code == 0, done.exception
    assert f"{SUITE}/{LABEL}/r2: valid" in done.stderr
