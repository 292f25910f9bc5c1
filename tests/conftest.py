"""What every room's tests share: the real photos, a suite small enough for every test, a submission without weights."""

from __future__ import annotations

import gc
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub reads it: no test waits for a network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests' models are small: threads would wait for one another

import pytest
from observers import Silent

from bench import torchvision_fix
from bench.run import RunResult, RunSettings, run_suite
from bench.submission import Submission, find_submission
from bench.suites import Suite, read_suite

torchvision_fix.install()

SMALL_SUITE = """
name = "small"
version = 1
status = "draft"
title = "Small"
summary = "Nine cells over 24 scenes."
reference = "colours"
seeds = [0]

[collections]
"scenes/test" = 24
"scenes-night/test" = 24
"scenes-objects/test" = 144
"""
SMALL_CELLS = (
    ("scenes/test", "clean", "", ""),
    ("scenes/test", "clean_canvas", "", ""),
    ("scenes/test", "gaussian_noise", "severities = [1, 5]", ""),
    ("scenes/test", "typo_keyboard", "severities = [3]", ""),
    ("scenes/test", "gallery_mix", "severities = [4]", ""),
    ("scenes/test", "gallery_danger", "", ""),
    ("scenes-night/test", "clean_canvas", "", 'baseline = "scenes/test"'),
    ("scenes-objects/test", "clean_canvas", "", 'directions = ["i2t", "i2i"]'),
)


def pytest_collection() -> None:
    """Modules and tests are millions of objects and no garbage: nobody looks for any among them, now or later."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def toys() -> Path:
    return Path(__file__).parent / "toys"


@pytest.fixture(scope="session")
def suite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    head = 'reason = "For a test."'
    tables = [
        f'\n[[cells]]\n{head}\ncollection = "{collection}"\nshifts = ["{shift}"]\n{severities}\n{more}\n'
        for collection, shift, severities, more in SMALL_CELLS
    ]
    path = tmp_path_factory.mktemp("suite") / "small.toml"
    path.write_text(SMALL_SUITE + "".join(tables))
    return path


@pytest.fixture(scope="session")
def suite(suite_file: Path) -> Suite:
    return read_suite(suite_file)


@pytest.fixture(scope="session")
def colours(toys: Path) -> Submission:
    return find_submission(str(toys / "colours"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROVE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, colours: Submission, suite: Suite) -> RunResult:
    """One uninterrupted run, for the tests that look at what it left behind; they copy before they change it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROVE_CACHE", str(folder / "cache"))
        return run_suite(colours, suite, RunSettings(output=folder / "run", batch_size=16), Silent())


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos beside the repository; the test is skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real photos in ../shared/data, which are not part of the repository")
    return folder
