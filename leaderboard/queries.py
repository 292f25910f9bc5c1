"""What one query costs, end to end, as `rove time` measured it: the one latency that rows are compared by."""

from __future__ import annotations

from typing import NamedTuple

from bench.timing_records import TimingRecord
from leaderboard.entries import Entry


class Query(NamedTuple):
    """What one query alone took, over one gallery on one class of hardware."""

    hardware: str
    n_items: int
    p50_ms: float
    p95_ms: float | None
    timing: TimingRecord


def list_queries(entry: Entry) -> list[Query]:
    """One per gallery size and class of hardware, smallest gallery first.

    Of several indexes it is the one that finds most of what exact search finds, because exact search was scored; then
    the fastest. Timings with another second stage than was scored are left out: that would be another submission.
    """
    best: dict[tuple[int, str], tuple[tuple[float, float, str], Query]] = {}
    for timing in entry.timings:
        single = next((served for served in timing.served if served.batch_size == 1), None)
        latency = single.stages.get("end_to_end") if single else None
        if latency is None or latency.p50_ms is None or timing.rerank_k != (entry.manifest.rerank_k or 0):
            continue
        place = (timing.gallery.n_items, timing.hardware_class)
        key = (-timing.recall.overlap.value, latency.p50_ms, timing.slug)
        if place not in best or key < best[place][0]:
            best[place] = (key, Query(place[1], place[0], latency.p50_ms, latency.p95_ms, timing))
    return [best[place][1] for place in sorted(best)]
