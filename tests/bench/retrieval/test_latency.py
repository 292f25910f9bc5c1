"""The protocol with a clock that only moves when told, and the statistics against hand-worked and simulated calls."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import groupby

import numpy as np
import pytest
from scipy.stats import kendalltau
from threadpoolctl import threadpool_info, threadpool_limits

from bench.errors import UsageError
from bench.retrieval import latency as module
from bench.retrieval.latency import (
    References,
    Samples,
    grows,
    grows_by_itself,
    latency,
    measure,
    pin_threads,
    ratios,
    relative,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="cores are chosen on Linux only")


class Clock:
    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


@pytest.fixture
def small_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GEMM_SIDE", 8)
    monkeypatch.setattr(module, "STREAM_BYTES", 1 << 12)


class Diary(References):
    """References that note in a shared diary when they ran."""

    def __init__(self, diary: list[str]) -> None:
        self.diary = diary
        super().__init__(1)

    def run(self) -> None:
        super().run()
        self.diary.append("references")


def note(diary: list[str], name: str, clock: Clock, ms: int) -> Callable[[], dict[str, int]]:
    """An ask that takes `ms` and answers with its number, to see which of the calls were kept."""

    def ask() -> dict[str, int]:
        diary.append(name)
        clock.ns += ms * 1_000_000
        return {"encode": sum(entry == name for entry in diary)}

    return ask


@pytest.mark.usefixtures("small_kernels")
def test_rounds_alternate_and_the_first_call_of_each_is_dropped() -> None:
    diary, clock = list[str](), Clock()
    asks = {"a": note(diary, "a", clock, 50), "b": note(diary, "b", clock, 400)}
    references = Diary(diary)
    references.run()
    diary.clear()
    samples = measure(asks, 64, references, clock)
    assert [(name, len(list(group))) for name, group in groupby(diary)] == [
        *[("a", 40), ("b", 20)],
        *[("references", 1), ("a", 11), ("b", 11)],
        *[("references", 1), ("b", 11), ("a", 11)],
        *[("references", 1), ("a", 11), ("b", 11)],
        *[("references", 1), ("b", 11), ("a", 11)],
        *[("references", 1), ("a", 11), ("b", 11)],
        *[("references", 1), ("b", 11), ("a", 11)],
        *[("references", 1), ("a", 5), ("b", 5)],
    ]
    kept = [40 + 11 * number + 2 + call for number in range(7) for call in range(10)][:64]
    assert samples["a"].stages["encode"].tolist() == kept
    assert samples["b"].rounds.tolist() == [call // 10 for call in range(64)]
    assert samples["b"].reference_ns["stream"].tolist() == references.ns["stream"][1:]


@pytest.mark.usefixtures("small_kernels")
def test_few_calls_are_spread_over_enough_rounds_for_a_ratio() -> None:
    clock = Clock()
    samples = measure({"a": note([], "a", clock, 100)}, 30, References(1), clock)["a"]
    assert np.bincount(samples.rounds).tolist() == [5] * 6
    assert ratios(samples, samples, "encode", np.random.default_rng(0)).value == 1


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.usefixtures("small_kernels")
def test_garbage_waits_while_calls_are_timed_and_is_collected_as_before_afterwards(
    monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    monkeypatch.setattr(module, "WARM_UP_S", 0)
    states = list[bool]()

    def ask() -> dict[str, int]:
        states.append(gc.isenabled())
        return {"encode": 1}

    def fail() -> dict[str, int]:
        if gc.isenabled() != enabled:
            raise InterruptedError
        return {"encode": 1}

    (gc.enable if enabled else gc.disable)()
    try:
        measure({"a": ask}, 10, References(1))
        assert not any(states[-11:])
        assert gc.isenabled() == enabled
        if enabled:
            with pytest.raises(InterruptedError):
                measure({"a": fail}, 10, References(1))
            assert gc.isenabled()
    finally:
        gc.enable()


def test_references_do_the_work_that_they_state_and_wake_no_thread_of_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul, n_blas = np.matmul, list[set[int]]()

    def spy(*arguments: np.ndarray, out: np.ndarray) -> np.ndarray:
        n_blas.append({pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"})
        return matmul(*arguments, out=out)

    monkeypatch.setattr(np, "matmul", spy)
    n_threads = len(module._cores()[:2])
    references = References(n_threads)
    references.run()
    references.run()
    records = references.as_records()
    assert records["gemm"].work == 2 * references._square.shape[0] ** 3
    assert records["stream"].work == sum(part.nbytes for part in references._parts)
    assert {record.n_calls for record in records.values()} == {2}
    assert (references._product == references._square.shape[0]).all()
    assert n_blas == [{1}] * (2 * 3 * n_threads)


@pytest.mark.parametrize(("widest", "noisy"), [(104, False), (130, True)])
@pytest.mark.usefixtures("small_kernels")
def test_one_restless_reference_is_noise(widest: int, noisy: bool) -> None:
    references = References(1)
    references.ns = {"gemm": [100] * 5, "stream": [96, 98, 100, widest, widest]}
    assert references.noisy == noisy
    assert references.as_records()["stream"].spread == pytest.approx((widest - 98) / 100)


def test_percentiles_are_given_from_the_number_of_calls_that_they_need() -> None:
    given = {n: latency(np.arange(n) * 1_000_000) for n in (29, 30, 63, 64, 129, 130, 661, 662)}
    found = {n: [item.p50_ms, item.p90_ms, item.p95_ms, item.p99_ms] for n, item in given.items()}
    assert [sum(value is not None for value in values) for values in found.values()] == [0, 1, 1, 2, 2, 3, 3, 4]
    assert found[662] == pytest.approx([661 * share for share in (0.5, 0.9, 0.95, 0.99)])
    assert given[29].n_calls == 29


def calls(ns: np.ndarray, gemm: np.ndarray | None = None) -> Samples:
    """Calls of one stage in rounds of ten; by default the references never change."""
    rounds = np.arange(ns.size) // 10
    reference = np.full(rounds[-1] + 1, 100) if gemm is None else gemm
    return Samples({"encode": ns, "search": ns}, rounds, {"gemm": reference, "stream": 4 * reference})


def test_stages_are_relative_to_the_kernel_of_their_kind() -> None:
    samples = calls(np.array([100, 200, 1200]))
    assert relative(samples, "encode") == 2
    assert relative(samples, "search") == 0.5


@pytest.mark.parametrize("n", [64, 130, 662])
def test_calls_that_become_slower_are_found_and_unsteady_ones_are_not(n: int) -> None:
    rng = np.random.default_rng(n)
    number = np.arange(n)
    noise = rng.lognormal(sigma=0.05, size=(200, n))
    heavy = 1 + 0.1 * rng.pareto(1.5, size=(200, n))
    bursts = noise * np.where((number > 0.7 * n) & (number < 0.85 * n), 3, 1)
    assert np.mean([grows(line * (1 + 0.005 * number)) for line in noise]) > 0.95
    assert not any(grows(line) for kind in (noise, heavy, bursts) for line in kind)


def test_growth_must_be_both_certain_and_large() -> None:
    number = np.arange(300)
    assert grows(1000 * (1 + 0.3 * number / 300))
    assert not grows(1000 * (1 + 0.2 * number / 300))  # certain, and less than 15 % from third to third
    assert not grows(np.roll(1000 * (1 + 0.3 * number / 300), 120))  # large, and no trend
    assert not grows(np.arange(1, 30) ** 2)


def test_the_trend_is_kendalls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROWTH_FACTOR", 0)
    rng = np.random.default_rng(0)
    decisions = list[tuple[bool, bool]]()
    for slope in np.linspace(0, 0.4, 200):
        ns = slope * np.arange(40) + 100 + 4 * rng.standard_normal(40)
        test = kendalltau(np.arange(20), ns.reshape(20, 2).mean(axis=1), method="exact", alternative="greater")
        if not 0.3 < test.pvalue / module.GROWTH_LEVEL < 3:
            decisions.append((grows(ns), bool(test.pvalue < module.GROWTH_LEVEL)))
    assert all(ours == theirs for ours, theirs in decisions)
    assert {theirs for _, theirs in decisions} == {True, False}


def test_a_machine_that_slows_down_is_not_blamed_on_the_submission() -> None:
    slowing = 1 + np.arange(200) / 200
    machine = slowing[::10] * 100
    assert grows_by_itself(calls(1000 * slowing), "encode")
    assert not grows_by_itself(calls(1000 * slowing, machine), "encode")
    assert grows_by_itself(calls(1000 * slowing**2, machine), "encode")
    assert not grows_by_itself(calls(np.full(200, 1000.0), 1 / machine), "encode")  # the machine becomes faster


def test_ratios_hold_where_the_machine_drifts() -> None:
    rng = np.random.default_rng(1)
    drift = np.repeat(np.linspace(1, 3, 20), 10)
    a, b = (calls(scale * drift * rng.lognormal(sigma=0.1, size=200)) for scale in (1000, 1500))
    found = ratios(a, b, "encode", np.random.default_rng(0))
    back = ratios(b, a, "encode", np.random.default_rng(0))
    assert found.low < 1.5 < found.high
    assert found.high - found.low < 0.15
    assert back.value == pytest.approx(1 / found.value, rel=0.01)
    assert found == ratios(a, b, "encode", np.random.default_rng(0))


def test_one_ruined_round_does_not_move_a_ratio() -> None:
    a, b = calls(np.full(100, 1000)), calls(np.where(np.arange(100) < 10, 50_000, 2000))
    found = ratios(a, b, "encode", np.random.default_rng(0))
    assert (found.value, found.low, found.high) == (2, 2, 2)


def test_too_few_rounds_have_no_interval() -> None:
    short = calls(np.full(50, 1000))
    with pytest.raises(UsageError, match="5 rounds"):
        ratios(short, short, "encode", np.random.default_rng(0))


@pytest.fixture
def waiting_thread() -> Iterator[threading.Thread]:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    yield thread
    done.set()
    thread.join()


@linux
def test_threads_are_pinned_inside_and_free_afterwards(waiting_thread: threading.Thread) -> None:
    faiss = pytest.importorskip("faiss")
    before = os.sched_getaffinity(0)
    with threadpool_limits(2):
        with pin_threads(1) as n:
            assert n == 1
            cores = os.sched_getaffinity(0)
            assert len(cores) == 1
            assert os.sched_getaffinity(waiting_thread.native_id or 0) == cores
            assert {pool["num_threads"] for pool in threadpool_info()} == {1}
            assert faiss.omp_get_max_threads() == 1
            child = "import os; print(len(os.sched_getaffinity(0)))"
            assert subprocess.check_output([sys.executable, "-c", child], text=True).strip() == "1"
        assert os.sched_getaffinity(0) == before
        assert os.sched_getaffinity(waiting_thread.native_id or 0) == before
        assert faiss.omp_get_max_threads() == 2


@linux
def test_no_more_threads_than_cores() -> None:
    available = len(os.sched_getaffinity(0))
    with pin_threads() as n:
        assert n == available
    for asked in (0, available + 1):
        with pytest.raises(UsageError, match=f"Ask for 1 to {available}"), pin_threads(asked):
            pass
