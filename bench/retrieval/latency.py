"""How latency is measured: fresh calls in rounds, after a warm-up, beside two reference kernels of known work, on
pinned threads. Two submissions are asked in turns, so that both meet the same moods of the machine. No call is dropped
and no best one chosen.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import ThreadpoolController, threadpool_limits

from bench.errors import UsageError
from bench.records import Estimate, estimate
from bench.stats import N_RESAMPLES, interval
from bench.timing_records import Kernel, Latency, Reference, Stage

WARM_UP_CALLS = 20
WARM_UP_S = 2.0
ROUND_CALLS = 10
GEMM_SIDE = 800
STREAM_BYTES = 128 << 20
NOISY_SPREAD = 0.1
MIN_CALLS = {50: 30, 90: 64, 95: 130, 99: 662}
"""How many calls each percentile needs."""
MIN_ROUNDS = 6
"""With fewer, not even the interval from the smallest to the largest of them holds the median 95 times in 100."""
N_BLOCKS = 20
GROWTH_LEVEL = 1e-4
GROWTH_FACTOR = 1.15
KERNEL_OF_STAGE: Mapping[Stage, Kernel] = {
    "encode": "gemm",
    "search": "stream",
    "fetch": "stream",
    "rerank": "gemm",
    "end_to_end": "gemm",
}

Ask = Callable[[], Mapping[Stage, int]]
"""Asks once, with inputs that were never asked before, and says how many nanoseconds each stage took."""
Clock = Callable[[], int]


@contextmanager
def pin_threads(threads: int | None = None) -> Iterator[int]:
    """Keeps this process to `threads` cores, on Linux, and BLAS and OpenMP, faiss's too, to as many threads.

    Processes that are started inside inherit the cores, and most libraries that are loaded inside count them.

    Args:
        threads: how many; None for as many as this process may use.

    Returns:
        How many there are.

    Raises:
        UsageError: there are not so many cores.
    """
    cores = _cores()
    n = len(cores) if threads is None else threads
    if not 1 <= n <= len(cores):
        raise UsageError(f"{n} threads were asked for; this process has {len(cores)} cores. Ask for 1 to {len(cores)}.")
    with threadpool_limits(n), _kept_to(cores[:n]):
        yield n


def _cores() -> list[int]:
    """Those that this process may use, one of each physical core before their hyper-threaded siblings."""
    if sys.platform != "linux":
        return list(range(os.cpu_count() or 1))
    return sorted(os.sched_getaffinity(0), key=lambda core: (_place_among_siblings(core), core))


def _place_among_siblings(core: int) -> int:
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    with suppress(OSError, ValueError):
        return path.read_text().strip().replace("-", ",").split(",").index(str(core))
    return 0


@contextmanager
def _kept_to(cores: Sequence[int]) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    _move_threads(cores)
    try:
        yield
    finally:
        _move_threads(before)


def _move_threads(cores: Sequence[int] | set[int]) -> None:
    """Moves every thread of this process: the system call alone would move the one that calls it."""
    if sys.platform == "linux":
        for thread in os.listdir("/proc/self/task"):
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), cores)


class References:
    """Two kernels of known work, a float32 matrix product and a sum over more memory than caches hold.

    Both are shared between threads of our own, each on its own core. OpenBLAS's look out for more work for a tenth of a
    second after each product, and slow down whatever is timed next on the same cores (a search twofold); and threads
    that are free to move sometimes wake up on one core, which takes them twice as long.

    Args:
        threads: that share the work.
        clock: nanoseconds, for both.

    Attributes:
        ns: of each kernel's runs, in order.
    """

    def __init__(self, threads: int, clock: Clock = time.perf_counter_ns) -> None:
        self.ns: dict[Kernel, list[int]] = {"gemm": [], "stream": []}
        self._clock = clock
        self._threads = [ThreadPoolExecutor(1, initializer=_stay_on, initargs=(core,)) for core in _cores()[:threads]]
        self._blas = ThreadpoolController().select(user_api="blas")
        self._square = np.ones((GEMM_SIDE, GEMM_SIDE), np.float32)
        self._product = np.empty_like(self._square)
        # Ones, not zeros: untouched memory would be one page of zeros, again and again.
        self._parts = np.array_split(np.ones(STREAM_BYTES // 4, np.float32), threads)
        self._rows = [*zip(*(np.array_split(matrix, threads) for matrix in (self._square, self._product)), strict=True)]
        self.run()
        self.ns = {"gemm": [], "stream": []}

    def run(self) -> None:
        """Times each of them once more, behind one run that finds memory and threads awake."""
        kernels: dict[Kernel, Callable[[], None]] = {"stream": self._sum, "gemm": self._multiply}
        for kernel, call in kernels.items():
            with self._blas.limit(limits=1):
                call()
                start = self._clock()
                call()
                self.ns[kernel].append(self._clock() - start)

    def as_records(self) -> dict[Kernel, Reference]:
        """Work, median and spread of each over all runs so far, of which there is at least one."""
        work: dict[Kernel, int] = {"gemm": 2 * GEMM_SIDE**3, "stream": STREAM_BYTES}
        return {kernel: _reference(kernel, work[kernel], np.array(ns)) for kernel, ns in self.ns.items()}

    @property
    def noisy(self) -> bool:
        """Whether the middle half of the runs of one of them lies further apart than a tenth of their median."""
        return any(reference.spread > NOISY_SPREAD for reference in self.as_records().values())

    def _multiply(self) -> None:
        self._share_out(lambda rows: np.matmul(rows[0], self._square, out=rows[1]), self._rows)

    def _sum(self) -> None:
        self._share_out(np.sum, self._parts)

    def _share_out(self, work: Callable[[Any], object], parts: Sequence[Any]) -> None:
        pending = [thread.submit(work, part) for thread, part in zip(self._threads, parts, strict=True)]
        for future in pending:
            future.result()


def _stay_on(core: int) -> None:
    """Keeps the calling thread on one core."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, {core})


def _reference(kernel: Kernel, work: int, ns: Int[np.ndarray, " n_runs"]) -> Reference:
    low, median, high = np.quantile(ns, (0.25, 0.5, 0.75)).tolist()
    spread = (high - low) / median
    return Reference(kernel=kernel, work=work, n_calls=ns.size, median_ms=median / 1e6, spread=spread)


@dataclass(frozen=True, eq=False)
class Samples:
    """The timed calls of one submission.

    Args:
        stages: nanoseconds of each, in the order of the calls, (n_calls,) int64.
        rounds: the round of each call, from 0, (n_calls,) int64.
        reference_ns: of each kernel, once a round, (n_rounds,) int64.
    """

    stages: Mapping[Stage, Int[np.ndarray, " n_calls"]]
    rounds: Int[np.ndarray, " n_calls"]
    reference_ns: Mapping[Kernel, Int[np.ndarray, " n_rounds"]]


def measure(
    asks: Mapping[str, Ask], n_calls: int, references: References, clock: Clock = time.perf_counter_ns
) -> dict[str, Samples]:
    """What each of `asks` took in `n_calls` timed calls, in rounds that all of them take part in.

    A round runs the references, then each ask: one untimed call, because the references empty the caches, and
    ROUND_CALLS timed ones, during which Python collects no garbage. The order is turned round after every round. Where
    that would give fewer than MIN_ROUNDS rounds, they are shorter.

    Args:
        asks: by name; every one is warmed up with WARM_UP_CALLS calls or for WARM_UP_S, whichever takes longer.
        n_calls: at least 1; the last round is shorter where it must be.
        references: whose runs are added to those that it has.
        clock: nanoseconds, for the warm-up; asks have their own.
    """
    for ask in asks.values():
        _warm_up(ask, clock)
    round_calls = max(1, min(ROUND_CALLS, n_calls // MIN_ROUNDS))
    rounds = np.arange(n_calls) // round_calls
    n_before = len(references.ns["gemm"])
    order, calls = list(asks), {name: list[Mapping[Stage, int]]() for name in asks}
    for n_in_round in np.bincount(rounds).tolist():
        references.run()
        for name in order:
            calls[name] += _time_round(asks[name], n_in_round)
        order.reverse()
    reference_ns = {kernel: np.array(ns[n_before:], np.int64) for kernel, ns in references.ns.items()}
    return {name: Samples(_by_stage(calls[name]), rounds, reference_ns) for name in asks}


def _warm_up(ask: Ask, clock: Clock) -> None:
    start, n_done = clock(), 0
    while n_done < WARM_UP_CALLS or clock() - start < WARM_UP_S * 1e9:
        ask()
        n_done += 1


def _time_round(ask: Ask, n_calls: int) -> list[Mapping[Stage, int]]:
    with _garbage_kept():
        ask()
        return [ask() for _ in range(n_calls)]


@contextmanager
def _garbage_kept() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _by_stage(calls: Sequence[Mapping[Stage, int]]) -> dict[Stage, Int[np.ndarray, " n_calls"]]:
    return {stage: np.array([call[stage] for call in calls], np.int64) for stage in calls[0]}


def latency(ns: Int[np.ndarray, " n_calls"]) -> Latency:
    """Percentiles of all calls, in milliseconds; None where a percentile needs more calls.

    Args:
        ns: nanoseconds of each call, at least one.
    """
    enough = {percent: ns.size >= n_needed for percent, n_needed in MIN_CALLS.items()}
    found = {percent: float(np.percentile(ns, percent)) / 1e6 if enough[percent] else None for percent in MIN_CALLS}
    return Latency(n_calls=ns.size, p50_ms=found[50], p90_ms=found[90], p95_ms=found[95], p99_ms=found[99])


def relative(samples: Samples, stage: Stage) -> float:
    """The stage's median over that of the reference that does work of its kind, of the same rounds."""
    return float(np.median(samples.stages[stage]) / np.median(samples.reference_ns[KERNEL_OF_STAGE[stage]]))


def grows_by_itself(samples: Samples, stage: Stage) -> bool:
    """Whether calls become slower with their number, and more so than the reference of the same rounds."""
    ns = samples.stages[stage]
    reference_ns = samples.reference_ns[KERNEL_OF_STAGE[stage]][samples.rounds]
    return grows(ns) and grows(ns / reference_ns)


def grows(ns: Int[np.ndarray, " n_calls"] | Float[np.ndarray, " n_calls"]) -> bool:
    """Whether calls become slower with their number, both beyond chance and by much.

    The medians of N_BLOCKS blocks rise by Mann and Kendall's test at GROWTH_LEVEL, one-sided, and the last third's
    median is above GROWTH_FACTOR times the first's. The test alone would find every slow mood of a machine, the factor
    alone every burst. False where there are too few calls for a median.

    Source: Mann, Nonparametric tests against trend, Econometrica 1945; variance without ties.
    """
    if ns.size < MIN_CALLS[50]:
        return False
    blocks = _medians(ns, N_BLOCKS)
    n_rising = sum(np.sign(blocks[place + 1 :] - blocks[place]).sum() for place in range(N_BLOCKS))
    deviation = sqrt(N_BLOCKS * (N_BLOCKS - 1) * (2 * N_BLOCKS + 5) / 18)
    first, _, last = _medians(ns, 3)
    return bool((n_rising - 1) / deviation > NormalDist().inv_cdf(1 - GROWTH_LEVEL) and last > GROWTH_FACTOR * first)


def _medians(ns: np.ndarray, n_parts: int) -> Float[np.ndarray, " n_parts"]:
    return np.array([np.median(part) for part in np.array_split(ns, n_parts)])


def ratios(a: Samples, b: Samples, stage: Stage, rng: np.random.Generator) -> Estimate:
    """B's time over A's: the median over rounds of the ratio of their medians in the round, with its interval.

    Args:
        a: as `measure` gave it, together with `b`.
        b: see `a`.
        stage: that both have.
        rng: of the resamples of the rounds, whose 95 % percentile interval it is.

    Raises:
        UsageError: there are fewer than MIN_ROUNDS rounds.
    """
    of_rounds = _by_round(b, stage) / _by_round(a, stage)
    if of_rounds.size < MIN_ROUNDS:
        raise UsageError(f"{of_rounds.size} rounds give a ratio no interval; expected {MIN_ROUNDS}. Time more calls.")
    drawn = rng.integers(of_rounds.size, size=(N_RESAMPLES, of_rounds.size))
    ends = interval(np.median(of_rounds[drawn], axis=1))
    return estimate(float(np.median(of_rounds)), ends.low, ends.high)


def _by_round(samples: Samples, stage: Stage) -> Float[np.ndarray, " n_rounds"]:
    ns = samples.stages[stage]
    return np.array([np.median(ns[samples.rounds == number]) for number in range(samples.rounds[-1] + 1)])
