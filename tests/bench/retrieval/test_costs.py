"""What a submission weighs: what is counted, what is stated, when memory is read, and which machines are alike."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from bench.records import Environment, Manifest, Parameters
from bench.retrieval.costs import (
    COUNTED_ITEMS,
    find_cost_flags,
    hardware_class,
    harness_peak_bytes,
    measure_costs,
)
from bench.worker import memory
from bench.worker.host import Flops, Loaded, Worker

IMAGES = [np.zeros((2, 2, 3), np.uint8)] * 40
TEXTS = ["a"] * 40
PASSING = """
import numpy as np
from bench.retrieval.costs import harness_peak_bytes, reset_peak
reset_peak()
before = harness_peak_bytes()
passing = np.ones(64 << 20, np.uint8)
del passing
risen = harness_peak_bytes() - before
reset_peak()
print(risen, harness_peak_bytes() - before)
"""


@dataclass
class FakeWorker:
    """One that grows while its operations are counted."""

    parameters: int | None = 1000
    peak_bytes: int | None = 5 << 20
    asked: list[int] = field(default_factory=list)

    @property
    def loaded(self) -> Loaded:
        return Loaded("", self.parameters, {}, "cpu", 1.0)

    def count_flops(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Flops:
        self.asked += [len(images), len(texts)]
        self.peak_bytes = 9 << 20
        return Flops(11, 12, 13)


@dataclass
class Tokens:
    item_bytes: int = 50
    n_bytes: int = 5000


def manifest(**parameters: int) -> Manifest:
    return Manifest(name="toy", parameters=Parameters(**parameters))


def measure(worker: FakeWorker, stated: Manifest, **options: Any) -> dict[str, Any]:
    return measure_costs(cast(Worker, worker), stated, IMAGES, TEXTS, 512, **options).model_dump()


def test_costs_are_what_was_counted_and_what_is_stated() -> None:
    worker = FakeWorker()
    costs = measure(worker, manifest(total=990, trainable=20, added=10), payload=Tokens(), payload_repeats=True)
    assert costs.pop("harness_peak_bytes") > 1 << 20
    assert costs == {
        "parameters": 1000,
        "trainable": 20,
        "added": 10,
        "flops_per_image": 11,
        "flops_per_text": 12,
        "flops_per_pair": 13,
        "embedding_bytes": 2048,
        "token_bytes": 50,
        "payload_bytes": 5000,
        "payload_repeats": True,
        "worker_peak_bytes": 5 << 20,
    }
    assert worker.asked == [COUNTED_ITEMS, COUNTED_ITEMS]


def test_what_cannot_be_counted_is_what_the_author_states() -> None:
    costs = measure(FakeWorker(parameters=None, peak_bytes=None), manifest(total=990))
    assert (costs["parameters"], costs["worker_peak_bytes"], costs["token_bytes"]) == (990, 0, 0)
    assert measure(FakeWorker(parameters=None), manifest())["parameters"] is None


@pytest.mark.parametrize(
    ("stated", "counted", "differs"),
    [(1000, 1000, False), (1010, 1000, False), (1011, 1000, True), (989, 1000, True), (0, 1000, True), (5, 0, True)],
)
def test_a_stated_number_of_parameters_must_be_that_which_is_loaded(stated: int, counted: int, differs: bool) -> None:
    flags = find_cost_flags(manifest(total=stated), counted)
    assert bool(flags) is differs
    if differs:
        assert f"states {stated:,} parameters, but {counted:,} were loaded" in flags[0]


def test_nothing_is_said_of_parameters_that_only_one_side_knows() -> None:
    assert find_cost_flags(manifest(), 1000) == ()
    assert find_cost_flags(manifest(total=1000), None) == ()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux starts the peak again")
def test_the_peak_of_this_process_outlives_the_memory_until_it_is_reset() -> None:
    # In a process of its own: one that has run other tests may have such memory at hand.
    found = subprocess.run([sys.executable, "-c", PASSING], capture_output=True, text=True, check=True).stdout
    risen, reset = map(int, found.split())
    assert risen > 60 << 20
    assert reset < 32 << 20


def test_without_proc_the_peak_is_that_of_the_process_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROCESSES", tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    in_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert harness_peak_bytes() == pytest.approx(in_kib * 1024, rel=0.01)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert harness_peak_bytes() == pytest.approx(in_kib, rel=0.01)


CPUINFO = (
    "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\n"
    "processor\t: 1\ncpu family\t: 26\nmodel\t\t: 2\n"
)
ARM_CPUINFO = "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd40\n\n"


@pytest.mark.parametrize(
    ("processor", "platform", "cpuinfo", "expected"),
    [
        ("AMD EPYC", "Linux x86_64", CPUINFO, "AMD EPYC (family 25 model 17)"),
        ("AMD EPYC 7763 64-Core Processor", "Linux x86_64", CPUINFO, "AMD EPYC 7763"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "Linux x86_64", CPUINFO, "Intel Xeon (family 25 model 17)"),
        ("Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz", "Linux x86_64", CPUINFO, "Intel Xeon Platinum 8370C"),
        ("13th Gen Intel(R) Core(TM) i7-1360P", "Linux x86_64", CPUINFO, "13th Gen Intel Core i7-1360P"),
        ("aarch64", "Linux aarch64", ARM_CPUINFO, "aarch64 (implementer 0x41 part 0xd40)"),
        ("arm", "Darwin arm64", None, "arm"),
    ],
)
def test_a_hardware_class_names_the_processor_without_what_does_not_matter(
    tmp_path: Path, processor: str, platform: str, cpuinfo: str | None, expected: str
) -> None:
    environment = Environment(
        rove="", python="", platform=platform, processor=processor, cores=2, memory_bytes=0, device="cpu", versions={}
    )
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    assert hardware_class(environment, "cpu", 2, path) == f"{expected}, 2 threads, cpu"
    assert hardware_class(environment, "NVIDIA H200", 1, path) == f"{expected}, 1 thread, NVIDIA H200"
