"""Kill -9 of harness or submission at random moments: the same command goes on, and in the end nothing differs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.records import Record, Timing, read_json
from bench.worker.guard import SWEEP_S
from bench.worker.memory import descendants_of

SHIFTS = ("gaussian_noise", "typo_keyboard", "defocus_blur", "typo_char_swap", "jpeg_compression", "word_delete")
SEVERITIES, IMAGES = 5, 4
HEAD = """
name = "kills"
version = 1
status = "draft"
title = "Kills"
summary = "Many small cells."
reference = "colours"
seeds = {seeds}

[collections]
"scenes/test" = {images}

[[cells]]
collection = "scenes/test"
shifts = ["clean_canvas"]
reason = "What the others are measured against."
"""
CELL = """
[[cells]]
collection = "scenes/test"
shifts = ["{shift}"]
severities = [1, 2, 3, 4, 5]
reason = "For a test."
"""


def write_suite(path: Path, n_seeds: int) -> Path:
    """A suite of 20 cells for each seed, ten of shifts that have none, and a clean one."""
    head = HEAD.format(seeds=list(range(n_seeds)), images=IMAGES)
    path.write_text(head + "".join(CELL.format(shift=shift) for shift in SHIFTS))
    return path


def scratch_of(cache: Path) -> Path:
    """Where the temporary files go of what uses such a cache."""
    return cache.with_name(f"{cache.name}-scratch")


def start(toys: Path, suite: Path, output: Path, cache: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bench.cli", "-q", "run", str(toys / "colours"), "--suite", str(suite)]
    scratch_of(cache).mkdir(exist_ok=True)
    places = {"ROVE_CACHE": str(cache), "TMPDIR": str(scratch_of(cache)), "PYTHONPATH": str(Path(__file__).parents[2])}
    environment = {**os.environ, **places}
    return subprocess.Popen(
        [*command, "--output", str(output), "--batch-size", "2"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def records_of(run: Path) -> dict[str, Record]:
    """Every record that is there, without its timing; a damaged one is an error."""
    found = {path.name: read_json(path, Record) for path in run.glob("cells/*.json")}
    return {name: record.model_copy(update={"timing": Timing()}) for name, record in found.items()}


def finished(run: Path) -> int:
    return sum(1 for _ in run.glob("cells/*.json"))


def kill_at_random(process: subprocess.Popen[bytes], run: Path, rng: random.Random) -> bool:
    """Kills the harness, or a process of its, at any moment or just after its next cell; False if it ended before."""
    if rng.random() < 0.6:
        time.sleep(rng.random() * 2)
    else:
        before, patience = finished(run), rng.random() * 0.2
        while finished(run) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(patience)
    if process.poll() is not None:
        return False
    below = descendants_of(process.pid)
    victim = rng.choice(below) if below and rng.random() < 0.3 else process.pid
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        return False
    if victim != process.pid:
        return True
    process.wait()
    deadline = time.monotonic() + SWEEP_S
    while (left := list(still_there(below))) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, f"{len(left)} processes outlive the harness"
    return True


def still_there(pids: list[int]) -> Iterator[int]:
    """Those that run; a number may have gone to somebody else, which a worker's command line tells."""
    for pid in pids:
        try:
            if b"bench.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                yield pid
        except OSError:
            continue


def survive(toys: Path, folder: Path, n_seeds: int, n_kills: int, seed: int = 0) -> str:
    """Runs a suite under kills, again and again until there were enough, and compares each run with an undisturbed one.

    Returns:
        One line of figures.
    """
    suite, rng = write_suite(folder / "suite.toml", n_seeds), random.Random(seed)
    whole = start(toys, suite, folder / "whole", folder / "cache-whole")
    errors = whole.communicate()[1]
    assert whole.returncode == 0, errors.decode()
    expected, kills, lives, runs = records_of(folder / "whole"), 0, 0, 0
    lost, corrupt, different = 0, 0, 0
    while kills < n_kills:
        run, cache, runs = folder / f"killed-{runs}", folder / f"cache-{runs}", runs + 1
        while True:
            process, lives = start(toys, suite, run, cache), lives + 1
            while kills < n_kills and kill_at_random(process, run, rng):
                kills += 1
            errors = process.communicate()[1]
            if process.returncode == 0:
                break
            # 5: a worker was killed in a cell, whose record says so; the next life tries it again.
            assert process.returncode in (-signal.SIGKILL, 5, 4), errors.decode()
            assert lives <= 2 * n_kills + 10
        left = sorted(path.name for path in scratch_of(cache).iterdir())
        assert not left, f"scratch folders are left: {left}"
        found = records_of(run)
        lost += len(expected.keys() - found.keys())
        different += sum(found[name] != expected[name] for name in expected.keys() & found.keys())
        files = (folder / "whole").glob("cells/*.parquet")
        corrupt += sum((run / "cells" / path.name).read_bytes() != path.read_bytes() for path in files)
    figures = f"{lost} lost, {corrupt} corrupt, {different} different"
    line = f"{kills} kills over {len(expected)} cells in {runs} runs and {lives} lives: {figures}"
    assert (lost, corrupt, different) == (0, 0, 0), line
    return line


def test_a_run_survives_kills(toys: Path, tmp_path: Path) -> None:
    survive(toys, tmp_path, n_seeds=1, n_kills=5)


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_a_run_survives_five_hundred_kills(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = survive(toys, tmp_path, n_seeds=15, n_kills=500)
    with capsys.disabled():
        print(f"\n{line}")  # noqa: T201
