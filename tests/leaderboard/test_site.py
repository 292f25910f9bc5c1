"""The site as a whole: what becomes a row, what does not and why, and nothing that a stranger wrote as markup."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_timings import timing_of

from bench.bundle import make_bundle
from bench.errors import InputError, UsageError
from bench.records import Record, RunManifest, read_json, to_json
from bench.run import RunResult
from bench.store import sha256_of
from bench.summary import summarise_run
from leaderboard.boards import read_boards
from leaderboard.history import add_bundle
from leaderboard.site import build_site

DAY = datetime.date(2026, 1, 2)
SUITE = "small-v1-draft"


@pytest.fixture
def bundle(finished_run: RunResult, tmp_path: Path) -> Path:
    return make_bundle(finished_run.folder, tmp_path / "bundle", overwrite=False)


def altered(bundle: Path, output: Path, alter: Callable[[RunManifest], RunManifest]) -> Path:
    """A copy whose manifest, and the index with it, is another."""
    shutil.copytree(bundle, output)
    (output / "run.json").write_bytes(to_json(alter(read_json(output / "run.json", RunManifest))))
    return reindexed(output)


def reindexed(bundle: Path) -> Path:
    index = json.loads((bundle / "bundle.json").read_text())
    index["files"] = {name: sha256_of(bundle / name) for name in index["files"]}
    (bundle / "bundle.json").write_text(json.dumps(index))
    return bundle


def renamed(manifest: RunManifest, name: str) -> RunManifest:
    submission = manifest.submission.model_copy(update={"name": name})
    return manifest.model_copy(update={"label": name, "submission": submission})


def timed(finished_run: RunResult, tmp_path: Path, **changes: Any) -> Path:
    """A bundle with one timing."""
    run = tmp_path / "timed" / "small"
    shutil.copytree(finished_run.folder, run)
    timing = timing_of(read_json(run / "run.json", RunManifest), **changes)
    (run.parent / "timings").mkdir()
    (run.parent / "timings" / f"{timing.slug}.json").write_bytes(to_json(timing))
    return make_bundle(run, tmp_path / "bundle", overwrite=False)


def text_of(page: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.read_text()))


def test_a_bundle_becomes_a_row_and_a_page(bundle: Path, tmp_path: Path) -> None:
    built = build_site([bundle], tmp_path / "site")
    assert not built.rejected
    held = summarise_run(bundle).overall
    assert held is not None
    shown = f"{100 * held.r1.value:.1f} {100 * held.r1.low:.1f} to {100 * held.r1.high:.1f}"
    assert shown in text_of(built.page)
    assert shown in text_of(tmp_path / "site" / SUITE / "submissions" / "colours.html")


def test_the_same_bundles_give_the_same_site(bundle: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        build_site([bundle], tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) > 20
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files)


def test_only_the_newest_revision_is_ranked_and_the_others_are_told(bundle: Path, tmp_path: Path) -> None:
    root = tmp_path / "results"
    add_bundle(bundle, root, "first result", DAY)
    newer = altered(bundle, tmp_path / "newer", lambda manifest: manifest.model_copy(update={"command": "rove run x"}))
    add_bundle(newer, root, "told the whole command", DAY)
    (board,) = read_boards([root]).boards
    assert [(row.entry.manifest.command, row.source.revision.number) for row in board.rows] == [("rove run x", 2)]
    assert [(revision.label, revision.number) for revision in board.superseded] == [("colours", 1)]
    page = text_of(build_site([root], tmp_path / "site").page)
    assert "Superseded and withdrawn revisions (1)" in page


def test_rows_of_one_name_have_pages_of_their_own(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "many" / "a")
    shutil.copytree(bundle, tmp_path / "many" / "b")
    (board,) = read_boards([tmp_path / "many"]).boards
    assert [row.id for row in board.rows] == ["colours", "colours--2"]
    assert {row.standing.place for row in board.rows} == {1}


def test_probes_stand_on_the_page_and_a_failed_one_keeps_the_row_out(bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "many"
    altered(bundle, place / "a", lambda m: with_probe(renamed(m, "plain"), "order", "passed"))
    altered(bundle, place / "b", lambda m: with_probe(renamed(m, "flagged"), "memorised pairs", "flagged"))
    altered(bundle, place / "c", lambda m: with_probe(renamed(m, "invalid"), "order", "failed"))
    altered(bundle, place / "d", lambda m: with_probe(renamed(m, "unanswered"), "speed", "not run"))
    altered(bundle, place / "e", lambda m: renamed(m, "older").model_copy(update={"probes": ()}))
    (board,) = read_boards([place]).boards
    reasons = {"invalid": "invalid, probe 'order' failed: <b>found</b>"}
    reasons["unanswered"] = "invalid, probe 'speed' not run: <b>found</b>"
    assert dict(board.unranked) == reasons
    built = build_site([place], tmp_path / "site")
    pages = {path.stem: path.read_text() for path in (tmp_path / "site" / SUITE / "submissions").glob("*.html")}
    assert pages.keys() == {"plain", "flagged", "older"}
    for name, probe, status in (("plain", "order", "passed"), ("flagged", "memorised pairs", "flagged")):
        badge = f'<span class="badge{" weak" * (status != "passed")}">{status}</span>'
        assert f"<dt>{probe}</dt><dd>{badge} &lt;b&gt;found&lt;/b&gt;</dd>" in pages[name]
    assert "Not probed." in pages["older"]
    table = built.page.read_text()
    assert table.count('<span class="badge weak" title="&lt;b&gt;found&lt;/b&gt;">memorised pairs</span>') == 1
    assert "probe &#39;order&#39; failed: &lt;b&gt;found&lt;/b&gt;" in table


def with_probe(manifest: RunManifest, name: str, status: str) -> RunManifest:
    """The manifest of a run of which that probe came out so, and all others well."""
    changed = {"status": status, "detail": "<b>found</b>"}
    passed = {"status": "passed"}
    probes = [p.model_copy(update=changed if p.name == name else passed) for p in manifest.probes]
    return manifest.model_copy(update={"probes": tuple(probes)})


def test_what_is_limited_incomplete_or_fed_other_items_is_set_aside_with_its_reason(
    bundle: Path, tmp_path: Path
) -> None:
    place = tmp_path / "many"
    shutil.copytree(bundle, place / "a")
    altered(bundle, place / "b", lambda m: renamed(m, "limited").model_copy(update={"limit": 24}))
    lacking = altered(bundle, place / "c", lambda m: renamed(m, "lacking"))
    for end in (".json", ".parquet"):
        (lacking / "cells" / f"scenes-test-typo_keyboard-3{end}").unlink()
    index = json.loads((lacking / "bundle.json").read_text())
    index["files"] = {name: sha for name, sha in index["files"].items() if "typo" not in name}
    (lacking / "bundle.json").write_text(json.dumps(index))
    other = altered(bundle, place / "d", lambda m: renamed(m, "other"))
    record = read_json(other / "cells" / "scenes-test-clean.json", Record)
    assert record.data is not None
    data = record.data.model_copy(update={"images_sha256": "0" * 64})
    (other / "cells" / "scenes-test-clean.json").write_bytes(to_json(record.model_copy(update={"data": data})))
    reindexed(other)
    found = read_boards([place])
    assert not found.rejected
    (board,) = found.boards
    assert [row.entry.label for row in board.rows] == ["colours"]
    reasons = {row.label: row.reason for row in board.unranked}
    assert "first 24 images" in reasons["limited"]
    assert "lacks 1 of 9 cells, first scenes/test typo_keyboard:3" in reasons["lacking"]
    assert reasons["other"] == "was fed other items than colours in scenes/test clean"
    page = text_of(build_site([place], tmp_path / "site").page)
    assert all(reason in page for reason in reasons.values())


def test_cells_of_another_suite_under_a_frozen_label_are_left_out(bundle: Path, tmp_path: Path) -> None:
    run = json.loads((bundle / "run.json").read_text())
    manifest = RunManifest.model_validate(run)
    from bench.records import suite_digest

    label = "demo-core-v1"
    impostor = altered(
        bundle,
        tmp_path / "impostor",
        lambda m: m.model_copy(
            update={"suite": label, "suite_id": suite_digest(label, manifest.collections, manifest.cells)}
        ),
    )
    built = build_site([impostor, bundle], tmp_path / "site")
    assert [name for name, _ in built.rejected] == ["impostor"]
    assert "give a suite of your own another name" in built.rejected[0][1]
    assert built.rejected[0][1] in text_of(tmp_path / "site" / "about.html")


def test_a_damaged_bundle_leaves_the_others(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "many" / "good")
    shutil.copytree(bundle, tmp_path / "many" / "bad")
    record = next((tmp_path / "many" / "bad" / "cells").glob("*.json"))
    record.write_bytes(record.read_bytes()[:-20])
    built = build_site([tmp_path / "many"], tmp_path / "site")
    assert [name for name, _ in built.rejected] == ["bad"]
    assert record.name in built.rejected[0][1]
    assert "colours" in built.page.read_text()


def test_nothing_a_bundle_says_becomes_markup(bundle: Path, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}"
    strange = altered(
        bundle,
        tmp_path / "strange",
        lambda m: m.model_copy(
            update={
                "submission": m.submission.model_copy(update={"title": evil, "method": evil, "summary": evil}),
                "command": evil,
            }
        ),
    )
    built = build_site([strange], tmp_path / "site")
    assert not built.rejected
    pages = {path: path.read_text() for path in (tmp_path / "site").rglob("*.html")}
    assert sum("&lt;script&gt;" in text for text in pages.values()) > 1
    for text in pages.values():
        assert not re.findall(r"<script(?! src=\"(?:\.\./)*[\w./-]+\.js\"></script>)", text)
        assert "<img src=x" not in text
        assert not re.findall(r"\son\w+\s*=(?=[^<]*>)", re.sub(r'"[^"]*"', "", text))
        assert "7*7" in text or "49" not in re.findall(r"onerror=alert\(1\)&gt;(.{0,12})", text)
    for script in (tmp_path / "site" / SUITE).rglob("*.js"):
        assert "<" not in script.read_text()


def test_a_script_url_is_refused_with_its_bundle(bundle: Path, tmp_path: Path) -> None:
    run = json.loads((bundle / "run.json").read_text())
    run["submission"]["url"] = "javascript:alert(1)"
    (bundle / "run.json").write_text(json.dumps(run))
    built = build_site([reindexed(bundle)], tmp_path / "site")
    assert [name for name, _ in built.rejected] == ["bundle"]
    assert "submission.url" in built.rejected[0][1]
    assert "no_boards" not in built.page.read_text()


def test_a_fitted_submission_says_how_it_was_made(bundle: Path, tmp_path: Path) -> None:
    run = json.loads((bundle / "run.json").read_text())
    run["submission"]["parameters"] = {"total": 5_000_000, "trainable": 24_576, "added": 0}
    run["submission"]["fit"] = {
        "recipe": "lora",
        "version": 2,
        "seed": 7,
        "args": {"rank": "2", "lr": ""},
        "data": [{"name": "scenes/train", "sha256": "0" * 64, "n_images": 4000, "n_captions": 20000}],
        "validation": "scenes/val",
        "epochs": 2.5,
        "relative_seconds": 0.831,
        "saw_evaluation_data": True,
    }
    (bundle / "run.json").write_text(json.dumps(run))
    assert not build_site([reindexed(bundle)], tmp_path / "site").rejected
    page = text_of(tmp_path / "site" / SUITE / "submissions" / "colours.html")
    assert "lora, version 2 (rank=2), seed 7, 2.5 epochs, 0.83 of the time of full fine-tuning" in page
    assert "choices made on scenes/val, has seen images of a test split" in page
    assert "24,576 trainable (stated)" in page
    assert "24.6 k" in text_of(tmp_path / "site" / SUITE / "index.html")


def test_timings_are_shown_with_what_they_were_measured_on(finished_run: RunResult, tmp_path: Path) -> None:
    build_site([timed(finished_run, tmp_path, flags=("noisy",))], tmp_path / "site")
    page = text_of(tmp_path / "site" / SUITE / "submissions" / "colours.html")
    for shown in (
        "1,000,000 items 999,000 synthetic, flickr8k/test",
        "IVF4096,PQ64 nprobe 32, rerank 50",
        "87.34 @10, 86.01 to 88.62",
        "1.5 p95 2.1 0.046 x",
        "80.2 batch 32",
        "76.5 MB",
        "x86-64, 2 cores 2 threads, cpu",
        "noisy",
    ):
        assert shown in page


def test_nothing_is_said_of_timings_where_there_are_none(bundle: Path, tmp_path: Path) -> None:
    build_site([bundle], tmp_path / "site")
    assert "Galleries are padded" not in text_of(tmp_path / "site" / SUITE / "submissions" / "colours.html")


def test_a_timing_without_measurements_breaks_no_page(finished_run: RunResult, tmp_path: Path) -> None:
    built = build_site([timed(finished_run, tmp_path, served=())], tmp_path / "site")
    assert not built.rejected
    page = text_of(tmp_path / "site" / SUITE / "submissions" / "colours.html")
    assert "Encode, ms" not in page
    assert "76.5 MB" in page


def test_no_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no bundle"):
        build_site([tmp_path], tmp_path / "site")


def test_a_folder_that_is_no_site_is_not_replaced(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "thesis.txt").write_text("all of it")
    with pytest.raises(UsageError, match="not overwritten"):
        build_site([bundle], tmp_path / "site")
    assert (tmp_path / "site" / "thesis.txt").read_text() == "all of it"


def test_vendored_files_are_those_of_the_list_with_their_licences() -> None:
    folder = Path(sys.modules["leaderboard.site"].__file__ or "").parent / "static" / "vendor"
    listed = json.loads((folder / "VENDORED.json").read_text())
    scripts = {path.relative_to(folder).as_posix() for path in folder.rglob("*.js")}
    assert {item["path"] for item in listed} == scripts
    for item in listed:
        assert sha256_of(folder / item["path"]) == item["sha256"]
        assert (folder / item["path"]).parent.joinpath("LICENSE").is_file()


def test_building_imports_no_model_and_no_shift() -> None:
    code = (
        "import sys, leaderboard.site\n"
        "wrong = {n for n in sys.modules if n.split('.')[0] in ('torch', 'open_clip', 'faiss', 'shifts', 'numba')}\n"
        "sys.exit(str(wrong) if wrong else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
