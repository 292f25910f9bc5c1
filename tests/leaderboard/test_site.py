"""The page: built from a bundle alone, and harmless whatever a bundle says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.bundle import make_bundle
from bench.errors import InputError
from bench.records import RunManifest, read_json, to_json
from bench.run import RunResult
from bench.store import sha256_of
from bench.summary import summarise_run
from leaderboard.site import build_site


@pytest.fixture
def bundle(finished_run: RunResult, tmp_path: Path) -> Path:
    return make_bundle(finished_run.folder, tmp_path / "bundle", overwrite=False)


class Table(HTMLParser):
    """The texts of the first table's cells, row by row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.done = self.inside = False
        self.feed(page)

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
