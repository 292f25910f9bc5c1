"""Submissions that fail: each gets its status, none a score, and nothing of them keeps running."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import pytest
from observers import Silent

from bench.errors import SubmissionError
from bench.run import RunSettings, run_suite
from bench.submission import find_submission
from bench.suites import Suite
from bench.worker.host import WorkerSettings
from bench.worker.memory import descendants_of

BAD = Path(__file__).parent / "bad_submissions.py"
MEMORY_BYTES = 1 << 30


def statuses() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("bad_submissions", BAD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.STATUS


STATUS = statuses()


@pytest.fixture(scope="module")
def one_cell(suite: Suite) -> Suite:
    cells = [cell for cell in suite.cells if cell.collection == "scenes/test" and cell.shift == "clean"]
    return replace(suite, cells=tuple(cells), collections={"scenes/test": 4})


@pytest.mark.parametrize("name", STATUS)
def test_a_bad_submission_has_its_status_and_no_score(name: str, one_cell: Suite, tmp_path: Path) -> None:
    own = descendants_of(os.getpid())
    timeout_s = 2.0 if STATUS[name] == "timeout" else 60.0
    worker = WorkerSettings(batch_timeout_s=timeout_s, memory_bytes=MEMORY_BYTES)
    settings = RunSettings(worker=worker, output=tmp_path / "run", batch_size=2)
    try:
        (record,) = run_suite(find_submission(f"{BAD}:{name}"), one_cell, settings, Silent()).records
        status, scores, reason = record.status, record.metrics, record.reason
    except SubmissionError as error:  # it cannot even be loaded
        status, scores, reason = error.status, {}, str(error)
    assert (status, scores) == (STATUS[name], {}), reason
    assert not list((tmp_path / "run").rglob("*.parquet"))
    assert set(descendants_of(os.getpid())) <= set(own)


def test_there_are_enough_kinds() -> None:
    assert len(STATUS) >= 40
