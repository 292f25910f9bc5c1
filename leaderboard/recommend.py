"""Which submissions of a suite to use under limits: those that pass, and of these the ones that no other beats.

What is compared is what `rove score` and `rove time` measured, under one set of terms for all: one gallery size on one
class of hardware. Point values decide, and each is shown with its interval; `strict` lets the interval decide.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from bench.errors import UsageError
from bench.records import Estimate
from bench.summary import Held
from leaderboard.entries import Entry
from leaderboard.queries import list_queries
from leaderboard.ranking import find_dominators, pareto

_Value = TypeVar("_Value", int, str)


@dataclass(frozen=True)
class Limits:
    """What a submission must keep to; None asks for nothing.

    Args:
        max_latency_ms: median end to end of one query alone.
        max_parameters: that are loaded.
        max_lost: share of the clean R@1 that is lost, mean over families of shifts, a fraction.
        min_r1: mean R@1 under shift, a fraction.
        strict: the far end of the 95 % interval must keep to `max_lost` and `min_r1`, not only the value. A latency
            is recorded without an interval.
        hardware: the class that latency was measured on, or a part of its name that no other class has; None is the
            class on which most rows were timed.
        n_items: size of the gallery that was searched; None is the size at which most rows were timed on that
            hardware, the smallest of several.

    Raises:
        UsageError: a limit is negative or no number.
    """

    max_latency_ms: float | None = None
    max_parameters: int | None = None
    max_lost: float | None = None
    min_r1: float | None = None
    strict: bool = False
    hardware: str | None = None
    n_items: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_latency_ms", "max_parameters", "max_lost", "min_r1"):
            limit = getattr(self, name)
            if limit is not None and not (math.isfinite(limit) and limit >= 0):
                raise UsageError(f"the limit {name} is {limit}; expected a number of at least 0, or none at all.")


class Terms(NamedTuple):
    """Under which all latencies are compared; None where no row was timed and nothing was asked for."""

    n_items: int | None
    hardware_class: str | None


@dataclass(frozen=True)
class Speed:
    """What `rove time` measured end to end, from a caption to its images, one query at a time."""

    p50_ms: float
    p95_ms: float | None
    index: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Advice:
    """Whether a submission is recommended.

    Args:
        label: the submission's.
        kept: it passes all limits, and no other that does dominates it.
        reasons: why it is left out, with its figures and the limits; empty if it is kept.
        excess: how many times it exceeds the limit that it misses by most; infinite where a figure is unknown, 1 if it
            misses none.
        held: how it does under shift, as fractions; None of one that is not ranked.
        parameters: as loaded, or as its author states; None if nobody knows.
        speed: under the common terms; None if it was not timed under them.
    """

    label: str
    kept: bool
    reasons: tuple[str, ...]
    excess: float
    held: Held | None
    parameters: int | None
    speed: Speed | None

    def as_dict(self) -> dict[str, Any]:
        """As plain data, ready for JSON."""
        held = self.held.model_dump() if self.held else {"r1": None, "lost": None}
        speed = asdict(self.speed) if self.speed else None
        facts = {"label": self.label, "kept": self.kept, "reasons": list(self.reasons)}
        return {**facts, **held, "parameters": self.parameters, "latency": speed}


class Miss(NamedTuple):
    """A limit that is not kept to: what to say of it, and how many times it is exceeded."""

    reason: str
    excess: float


def recommend(entries: Sequence[Entry], limits: Limits) -> list[Advice]:
    """What to say of every entry of one suite: those recommended first, each part by R@1 under shift, best first.

    Among the entries that pass all limits those are recommended that no other dominates: by finding as much under
    shift, losing as small a share, being as fast and as small, and better in one of these. R@1 stands beside the share
    because a submission that finds nothing has nothing to lose. Latency counts where it is known of all that pass;
    a submission of unknown size counts as larger than any other.

    Args:
        entries: of one suite.
        limits: what they must keep to.

    Raises:
        UsageError: no row was timed on the hardware that is asked for, or it is the name of several.
    """
    terms = find_terms(entries, limits)
    judged = [_judge(entry, limits, terms) for entry in entries]
    passing = _compare([advice for advice in judged if not advice.reasons])
    left_out = [advice for advice in judged if advice.reasons]
    return sorted([*passing, *left_out], key=_prominence)


def find_terms(entries: Iterable[Entry], limits: Limits) -> Terms:
    """The hardware that `limits` names, or the class on which most rows were timed; on it likewise the gallery size.

    Raises:
        UsageError: no row was timed on the hardware that is asked for, or it is the name of several.
    """
    timed = [(entry.bundle_sha256, query) for entry in entries for query in list_queries(entry)]
    classes = {query.hardware for _, query in timed}
    wanted = None if limits.hardware is None else _match_hardware(limits.hardware, classes)
    n_items = limits.n_items
    hardware = wanted or _most_common((row, query.hardware) for row, query in timed if n_items in (None, query.n_items))
    sizes = ((row, query.n_items) for row, query in timed if query.hardware == hardware)
    return Terms(_most_common(sizes) if n_items is None else n_items, hardware)


def find_nearest(advice: Iterable[Advice]) -> Advice | None:
    """The one that misses its worst limit by least, in multiples of the limit; then that which misses fewer of them.

    None if one is recommended, or there is none.
    """
    found = list(advice)
    if any(one.kept for one in found):
        return None
    return min(found, key=lambda one: (one.excess, len(one.reasons), one.label), default=None)


def _prominence(advice: Advice) -> tuple[bool, float, str]:
    return (not advice.kept, -advice.held.r1.value if advice.held else math.inf, advice.label)


def _match_hardware(text: str, classes: set[str]) -> str:
    matches = sorted(name for name in classes if text.lower() in name.lower())
    if text in classes:
        return text
    if len(matches) == 1:
        return matches[0]
    known = "; ".join(matches or sorted(classes)) or "none, because no row was timed"
    raise UsageError(f"--hardware got '{text}'; expected a part of the name of one class among: {known}.")


def _most_common(pairs: Iterable[tuple[str, _Value]]) -> _Value | None:
    """The value that most rows have; the smallest of several, None if there is none."""
    counts = Counter(value for _, value in set(pairs))
    return min(counts, key=lambda value: (-counts[value], value), default=None)


def _judge(entry: Entry, limits: Limits, terms: Terms) -> Advice:
    advice = Advice(
        label=entry.label,
        kept=True,
        reasons=(),
        excess=1.0,
        held=None if entry.unranked else entry.overall,
        parameters=entry.parameters,
        speed=_find_speed(entry, terms),
    )
    misses = [*_find_misses(advice, limits, terms, entry)]
    if not misses:
        return advice
    reasons = tuple(miss.reason for miss in misses)
    return replace(advice, kept=False, reasons=reasons, excess=max(miss.excess for miss in misses))


def _find_speed(entry: Entry, terms: Terms) -> Speed | None:
    """None if it was not timed under these terms."""
    query = next((query for query in list_queries(entry) if (query.n_items, query.hardware) == terms), None)
    if query is None:
        return None
    return Speed(query.p50_ms, query.p95_ms, query.timing.index.factory, query.timing.flags)


def _find_misses(advice: Advice, limits: Limits, terms: Terms, entry: Entry) -> Iterator[Miss]:
    if advice.held is None:
        yield Miss(f"not ranked: {entry.unranked or 'no shifted cell was scored'}", math.inf)
    else:
        yield from _find_misses_of_quality(advice.held, limits)
    if limits.max_parameters is not None:
        if advice.parameters is None:
            yield Miss(f"nobody knows its parameters; at most {limits.max_parameters:,} are asked", math.inf)
        elif advice.parameters > limits.max_parameters:
            reason = f"{advice.parameters:,} parameters; at most {limits.max_parameters:,} are asked"
            yield Miss(reason, _excess(advice.parameters, limits.max_parameters))
    if limits.max_latency_ms is not None:
        if advice.speed is None:
            yield Miss(_not_timed(entry, terms), math.inf)
        elif advice.speed.p50_ms > limits.max_latency_ms:
            reason = f"{advice.speed.p50_ms:.2f} ms a query; at most {limits.max_latency_ms:g} ms are asked"
            yield Miss(reason, _excess(advice.speed.p50_ms, limits.max_latency_ms))


def _find_misses_of_quality(held: Held, limits: Limits) -> Iterator[Miss]:
    whole = " of the whole interval" if limits.strict else ""
    lost = held.lost.high if limits.strict else held.lost.value
    if limits.max_lost is not None and lost > limits.max_lost:
        reason = f"loses {_percent(held.lost)} of its R@1; at most {100 * limits.max_lost:g} % are asked{whole}"
        yield Miss(reason, _excess(lost, limits.max_lost))
    r1 = held.r1.low if limits.strict else held.r1.value
    if limits.min_r1 is not None and r1 < limits.min_r1:
        reason = f"R@1 under shift is {_percent(held.r1)}; at least {100 * limits.min_r1:g} % are asked{whole}"
        yield Miss(reason, _excess(limits.min_r1, r1))


def _excess(larger: float, smaller: float) -> float:
    return larger / smaller if smaller > 0 else math.inf


def _percent(value: Estimate) -> str:
    return f"{100 * value.value:.2f} % ({100 * value.low:.2f} to {100 * value.high:.2f})"


def _not_timed(entry: Entry, terms: Terms) -> str:
    """What was not done, and the command that does it."""
    manifest = entry.manifest
    defaults = manifest.submission.args
    changed = [f"{name}={value}" for name, value in sorted(manifest.args.items()) if defaults.get(name) != value]
    command = ["rove", "time", manifest.submission.name, *(part for pair in changed for part in ("--model-arg", pair))]
    command += [] if terms.n_items is None else ["--gallery", str(terms.n_items)]
    command += [] if manifest.rerank_k is None else ["--rerank-k", str(manifest.rerank_k)]
    over = "" if terms.n_items is None else f" over {terms.n_items:,} items"
    on = "" if terms.hardware_class is None else f" on {terms.hardware_class}"
    return f"not timed{over}{on}: `{shlex.join(command)}`"


def _compare(passing: Sequence[Advice]) -> list[Advice]:
    """The same, those that another one dominates no longer kept."""
    ordered = sorted(passing, key=_prominence)
    is_timed = all(advice.speed for advice in ordered)
    points = _place(ordered, is_timed)
    front = np.flatnonzero(pareto(points))
    compared = []
    for row, advice in enumerate(ordered):
        dominators = front[find_dominators(points[front], points[row])]
        if dominators.size:
            reason = _describe_dominator(ordered[dominators[0]], advice, is_timed)
            advice = replace(advice, kept=False, reasons=(reason,))
        compared.append(advice)
    return compared


def _place(passing: Sequence[Advice], is_timed: bool) -> Float[np.ndarray, "n d"]:
    """One point for each, smaller is better in every column; latency only if it is known of all."""
    columns = [
        [-advice.held.r1.value if advice.held else math.inf for advice in passing],
        [advice.held.lost.value if advice.held else math.inf for advice in passing],
        [math.inf if advice.parameters is None else float(advice.parameters) for advice in passing],
        [advice.speed.p50_ms if advice.speed else math.inf for advice in passing],
    ]
    return np.array(columns if is_timed else columns[:-1]).T


def _describe_dominator(better: Advice, advice: Advice, is_timed: bool) -> str:
    """By whom, and in what: figures of the dominator against those of the dominated."""
    parts = []
    if better.held and advice.held:
        parts.append(f"R@1 under shift {_percent(better.held.r1)} against {_percent(advice.held.r1)}")
        parts.append(f"lost {_percent(better.held.lost)} against {_percent(advice.held.lost)}")
    sizes = ["unknown" if one.parameters is None else f"{one.parameters:,}" for one in (better, advice)]
    parts.append(f"parameters {sizes[0]} against {sizes[1]}")
    if is_timed and better.speed and advice.speed:
        parts.append(f"{better.speed.p50_ms:.2f} ms against {advice.speed.p50_ms:.2f} ms")
    else:
        parts.append("latency left out because not all that pass were timed alike")
    return f"dominated by {better.label}: {', '.join(parts)}"
