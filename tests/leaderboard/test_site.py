"""The page: built from a bundle alone, and harmless whatever a bundle says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_timings import timing_of

from bench.bundle import make_bundle
from bench.errors import InputError
from bench.records import RunManifest, read_json, to_json
from bench.run import RunResult
from bench.store import sha256_of
from bench.summary import summarise_run
from leaderboard.site import build_site

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def bundle(finished_run: RunResult, tmp_path: Path) -> Path:
    return make_bundle(finished_run.folder, tmp_path / "bundle", overwrite=False)


@pytest.fixture
def timed_bundle(finished_run: RunResult, tmp_path: Path) -> Path:
    return bundle_with(finished_run, tmp_path, flags=(EVIL,))


def bundle_with(finished_run: RunResult, tmp_path: Path, **changes: Any) -> Path:
    """A bundle with one timing."""
    run = tmp_path / "timed" / "small"
    shutil.copytree(finished_run.folder, run)
    timing = timing_of(read_json(run / "run.json", RunManifest), **changes)
    (run.parent / "timings").mkdir()
    (run.parent / "timings" / f"{timing.slug}.json").write_bytes(to_json(timing))
    return make_bundle(run, tmp_path / "bundle", overwrite=False)


class Table(HTMLParser):
    """The texts of a table's cells, row by row: of the first table that stands after a text."""

    def __init__(self, page: str, after: str = "") -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.done = self.inside = False
        self.feed(page[page.index(after) :])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr" and not self.done:
            self.rows.append([])
        if tag in ("td", "th") and not self.done:
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.done |= tag == "table"
        self.inside &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside and not self.done:
            self.rows[-1][-1] += data.strip() + " "


def test_the_table_shows_what_the_evidence_gives(bundle: Path, tmp_path: Path) -> None:
    page, rejected = build_site([bundle], tmp_path / "site")
    assert not rejected
    header, row = Table(page.read_text()).rows
    shown = {name.strip(): value.split() for name, value in zip(header, row, strict=True)}
    summary = summarise_run(bundle)
    assert shown["Submission"][0] == "colours"
    assert shown["Lost overall"][0] == f"{100 * summary.overall.value:.1f}"
    assert shown["Lost: typo"][0] == f"{100 * summary.families['typo'].value:.1f}"
    clean = summary.clean["t2i"]["hit@1"]
    assert (
        " ".join(shown["Clean t2i R@1"]) == f"{100 * clean.value:.1f} {100 * clean.low:.1f} to {100 * clean.high:.1f}"
    )
    assert shown["Worst shift"][0] == summary.worst


def test_nothing_a_bundle_says_becomes_markup(bundle: Path, tmp_path: Path) -> None:
    manifest = read_json(bundle / "run.json", RunManifest)
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}"
    submission = manifest.submission.model_copy(update={"title": evil, "method": evil, "summary": evil})
    altered = manifest.model_copy(update={"submission": submission, "command": evil, "label": evil})
    (bundle / "run.json").write_bytes(to_json(altered))
    index = json.loads((bundle / "bundle.json").read_text())
    index["files"]["run.json"] = sha256_of(bundle / "run.json")
    (bundle / "bundle.json").write_text(json.dumps(index))
    page, rejected = build_site([bundle], tmp_path / "site")
    assert not rejected
    text = page.read_text()
    assert "&lt;script&gt;" in text
    assert "<script" not in text
    assert "<img" not in text
    assert "49" not in re.findall(r"onerror=alert\(1\)&gt;(.{0,12})", text)[0]


def test_a_script_url_is_refused_with_its_bundle(bundle: Path, tmp_path: Path) -> None:
    run = json.loads((bundle / "run.json").read_text())
    run["submission"]["url"] = "javascript:alert(1)"
    (bundle / "run.json").write_text(json.dumps(run))
    index = json.loads((bundle / "bundle.json").read_text())
    index["files"]["run.json"] = sha256_of(bundle / "run.json")
    (bundle / "bundle.json").write_text(json.dumps(index))
    page, rejected = build_site([bundle], tmp_path / "site")
    assert [name for name, _ in rejected] == ["bundle"]
    assert "submission.url" in rejected[0][1]
    assert "javascript:" not in page.read_text().replace(rejected[0][1], "")


def test_timings_are_shown_with_what_they_were_measured_on(timed_bundle: Path, tmp_path: Path) -> None:
    page, rejected = build_site([timed_bundle], tmp_path / "site")
    assert not rejected
    header, row = Table(page.read_text(), after="Cost of serving").rows
    shown = {name.strip(): " ".join(value.split()) for name, value in zip(header, row, strict=True)}
    assert shown == {
        "Gallery": "1,000,000 items 999,000 synthetic, flickr8k/test",
        "Index": "IVF4096,PQ64 nprobe 32, rerank 50",
        "Recall, %": "87.34 @10, 86.01 to 88.62",
        "Encode, ms": "8.5 p95 11.9 0.68 x",
        "Search, ms": "1.5 p95 2.1 0.046 x",
        "Rerank, ms": "20 p95 28 1.65 x",
        "End to end, ms": "30.5 p95 42.7",
        "Queries / s": "80.2 batch 32",
        "Index size": "76.5 MB",
        "Hardware": "x86-64, 2 cores 2 threads, cpu",
        "Flags": EVIL,
    }
    assert "<script" not in page.read_text()


def test_nothing_is_said_of_timings_where_there_are_none(bundle: Path, tmp_path: Path) -> None:
    page, _ = build_site([bundle], tmp_path / "site")
    assert "Cost of serving" not in page.read_text()


def test_a_timing_without_measurements_breaks_no_page(finished_run: RunResult, tmp_path: Path) -> None:
    page, rejected = build_site([bundle_with(finished_run, tmp_path, served=())], tmp_path / "site")
    assert not rejected
    assert "Encode, ms" not in page.read_text()
    assert "76.5 MB" in page.read_text()


def test_the_page_asks_nobody_for_anything(bundle: Path, tmp_path: Path) -> None:
    page, _ = build_site([bundle], tmp_path / "site")
    assert not re.findall(r"""(?:src|href)=["'](?!#|https://)""", page.read_text())
    assert "@import" not in page.read_text()


def test_no_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no bundle"):
        build_site([tmp_path], tmp_path / "site")


def test_building_imports_no_model_and_no_shift() -> None:
    code = (
        "import sys, leaderboard.site\n"
        "wrong = {n for n in sys.modules if n.split('.')[0] in ('torch', 'open_clip', 'faiss', 'shifts', 'numba')}\n"
        "sys.exit(str(wrong) if wrong else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
