"""The chart of recall against search latency: every index that was tried over one gallery, and which of them to want.

Recall is drawn as what is lost of it, on an axis that stretches the last percent, because that is where indexes differ:
on a linear axis from 0 to 1 one pixel would hold all between .997 and 1. The labels still say recall.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.errors import InputError
from bench.records import Estimate
from bench.store import write_atomic
from bench.timing_records import Point, Sweep
from leaderboard.sizes import name_size

if TYPE_CHECKING:
    import altair

_WIDTH, _HEIGHT = 636, 372
_PNG_SCALE = 2
_INK, _SOFT, _GRID = "#1c2430", "#5b6675", "#e6eaef"
_FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
# Colours by Okabe and Ito, which every kind of colour vision tells apart; without their yellow, too pale on white.
_COLOURS = {
    "Flat": "#000000",
    "IVF-Flat": "#cc79a7",
    "IVF-SQ": "#d55e00",
    "IVF-PQ": "#56b4e9",
    "IVF-PQ refined": "#0072b2",
    "SQ": "#d55e00",
    "PQ": "#8fbf9f",
    "PQ refined": "#009e73",
    "HNSW": "#e69f00",
}
_OTHER_COLOUR = "#8a8f98"
_SHAPES = {"IVF": "square", "IMI": "square", "HNSW": "triangle-up", "NSG": "triangle-up"}
_GRAPHS = ("HNSW", "NSG")
_CODES = ("Flat", "PQ", "SQ", "RaBitQ", "RQ", "LSQ", "PRQ", "PLSQ", "LSH")
# Percent of recall lost below which the axis is nearly linear instead of logarithmic, so that 0 has a place on it.
_LINEAR_BELOW = 0.05
_RECALLS = (100, 99.9, 99.7, 99, 97, 90, 70, 40, 0)
_FONT_SIZE, _LINE, _LETTER, _GAP, _MARK = 10, 12.0, 5.0, 6.0, 5.0


class Spot(NamedTuple):
    """One setting as it is drawn: milliseconds, and percent of recall that is lost."""

    point: Point
    p50_ms: float
    lost: float
    least_lost: float
    most_lost: float


class Corner(NamedTuple):
    """On which side of a spot its label is."""

    left: bool
    above: bool


class Label(NamedTuple):
    """Text beside a spot."""

    spot: Spot
    lines: list[str]
    corner: Corner


class Box(NamedTuple):
    """A rectangle in pixels from the plot's upper left corner."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether they share a pixel."""
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.bottom <= other.top or other.bottom <= self.top)

    def is_inside(self) -> bool:
        """Whether all of it is on the plot."""
        return self.left >= 0 and self.top >= 0 and self.right <= _WIDTH and self.bottom <= _HEIGHT


# The upper left first: nothing can be there that would not beat the spot.
_CORNERS = (Corner(True, True), Corner(False, False), Corner(False, True), Corner(True, False))


class Frame(NamedTuple):
    """The ranges of both axes, and where a spot comes to lie between them."""

    fastest_ms: float
    slowest_ms: float
    most_lost: float
    least_lost: float

    def across(self, p50_ms: float) -> float:
        """Pixels from the left."""
        return _WIDTH * math.log(p50_ms / self.fastest_ms) / math.log(self.slowest_ms / self.fastest_ms)

    def down(self, lost: float) -> float:
        """Pixels from the top."""
        top, bottom = _stretch(self.least_lost), _stretch(self.most_lost)
        return _HEIGHT * (_stretch(lost) - top) / (bottom - top)


def write_tradeoff(sweep: Sweep, folder: Path) -> tuple[Path, Path]:
    """Writes the chart as `tradeoff.png` and as Vega-Lite, `tradeoff.vl.json`, and returns both paths.

    The same sweep gives the same bytes of the latter; the picture depends on the fonts that are installed.

    Raises:
        InputError: no point has a median latency.
        RoveError: a file cannot be written.
    """
    import altair
    import vl_convert

    spec = json.dumps(draw_tradeoff(sweep).to_dict(), sort_keys=True, indent=1, allow_nan=False)
    version = re.findall(r"\d+\.\d+", altair.SCHEMA_VERSION)[0]
    picture, text = folder / "tradeoff.png", folder / "tradeoff.vl.json"
    write_atomic(picture, vl_convert.vegalite_to_png(spec, vl_version=version, scale=_PNG_SCALE))
    write_atomic(text, f"{spec}\n".encode())
    return picture, text


def draw_tradeoff(sweep: Sweep) -> altair.LayerChart:
    """The sweep as a chart: median latency across, recall up, what nothing else beats joined by a line.

    A bar is the 95 % interval of recall. The dashed line is how long it takes to read every vector once, at the speed
    that was measured between the calls: the least that exact search of one query could take.

    Raises:
        InputError: no point has a median latency.
    """
    import altair

    spots = _place(sweep.points)
    if not spots:
        raise InputError(f"the sweep of {sweep.label} has no median latency; expected at least 30 calls of an index.")
    reading_ms = find_reading_ms(sweep)
    frame = _frame(spots, reading_ms)
    x, y = _latency_axis(frame), _recall_axis(frame, sweep.k)
    layers = [*_draw_reading(sweep, reading_ms, frame, x), *_draw_spots(spots, x, y)]
    layers += [_draw_label(label, x, y) for label in _choose_labels(spots, frame)]
    return _style(altair.LayerChart(layer=layers).properties(width=_WIDTH, height=_HEIGHT, title=_title(sweep)))


def find_family(factory: str) -> str:
    """The kind of index that a faiss factory string names: `IVF-PQ refined` for `OPQ64_128,IVF4096_HNSW32,PQ64,RFlat`.

    How lists are found or walked (IVF, IMI, HNSW, NSG), what is stored of a vector (Flat, PQ, SQ, ...), and whether
    candidates are scored again. What turns vectors before is left out, and so is what stands in brackets. A graph over
    whole vectors is called by its own name, and what has no known part is `other`.

    Source: faiss/index_factory.cpp, for the names of the parts.
    """
    words = re.findall(r"(?:^|[,_])([A-Za-z]+)", re.sub(r"\(.*?\)", "", factory.removesuffix(",RFlat")))
    refined = " refined" if factory.endswith(",RFlat") or "Refine" in words else ""
    ways = [way for word in words for way in _SHAPES if word == way]
    codes = [code for word in words for code in _CODES if word.startswith(code)]
    way, code = "".join(ways[:1]), "".join(codes[-1:])
    parts = [way] if way in _GRAPHS and code == "Flat" else [way, code]
    return "-".join(part for part in parts if part) + refined or "other"


def find_reading_ms(sweep: Sweep) -> float | None:
    """Milliseconds that the reference's streaming sum would take over all float32 vectors; None without a reference."""
    reference = sweep.references.get("stream")
    return None if reference is None else reference.median_ms * _vector_bytes(sweep) / reference.work


def _vector_bytes(sweep: Sweep) -> int:
    return 4 * sweep.gallery.dim * sweep.gallery.n_items


def _place(points: Iterable[Point]) -> list[Spot]:
    """The points that have a median, in an order that depends on them alone."""
    timed = [(point, point.latency.p50_ms or 0.0) for point in points]
    spots = [Spot(point, p50_ms, *_lost(point.overlap)) for point, p50_ms in timed if p50_ms > 0]
    return sorted(spots, key=lambda spot: (spot.p50_ms, spot.lost, spot.point.factory, _setting(spot.point)))


def _lost(recall: Estimate) -> tuple[float, float, float]:
    """Percent that is lost of a recall: value, least and most."""
    value, least, most = (100 * max(0.0, 1 - share) for share in (recall.value, recall.high, recall.low))
    return value, least, most


def _frame(spots: Sequence[Spot], reading_ms: float | None) -> Frame:
    """Room for all spots, and to the left of them for the labels."""
    latencies = [spot.p50_ms for spot in spots] + ([reading_ms] if reading_ms else [])
    span = max(2.0, max(latencies) / min(latencies))
    lost = max(spot.most_lost for spot in spots)
    return Frame(min(latencies) / span**0.16, max(latencies) * span**0.06, max(1.0, lost) * 1.25, -0.2 * _LINEAR_BELOW)


def _stretch(lost: float) -> float:
    """The axis's own scale, which Vega calls symlog."""
    return math.copysign(math.log1p(abs(lost) / _LINEAR_BELOW), lost)


def _latency_axis(frame: Frame) -> altair.X:
    import altair

    exponents = range(math.floor(math.log10(frame.fastest_ms)), math.ceil(math.log10(frame.slowest_ms)))
    ticks = [digit * 10.0**exponent for exponent in exponents for digit in (1, 2, 5)]
    inside = [float(f"{tick:.3g}") for tick in ticks if frame.fastest_ms <= tick <= frame.slowest_ms]
    return altair.X(
        "p50_ms:Q",
        title="Median latency of one query, ms",
        scale=altair.Scale(type="log", domain=[frame.fastest_ms, frame.slowest_ms], nice=False),
        axis=altair.Axis(values=inside, labelExpr="format(datum.value, '~r')"),
    )


def _recall_axis(frame: Frame, k: int) -> altair.Y:
    import altair

    return altair.Y(
        "lost:Q",
        title=f"Recall@{k} against exact search, %",
        scale=altair.Scale(
            type="symlog", constant=_LINEAR_BELOW, domain=[frame.most_lost, frame.least_lost], nice=False
        ),
        axis=altair.Axis(
            values=[round(100 - recall, 1) for recall in _RECALLS if 100 - recall <= frame.most_lost],
            labelExpr="format(100 - datum.value, '~r')",
        ),
    )


def _draw_spots(spots: Sequence[Spot], x: altair.X, y: altair.Y) -> list[altair.Chart]:
    """The front's line, the intervals and the marks, one above the other."""
    import altair

    front, rows = _data([_row(spot) for spot in spots if spot.point.best]), _data([_row(spot) for spot in spots])
    colour, shape = _family_scales({find_family(spot.point.factory) for spot in spots})
    paler = altair.condition("datum.best", altair.value(1), altair.value(0.35))
    line = altair.Chart(front).mark_line(color=_SOFT, strokeWidth=1.5, interpolate="step-after").encode(x=x, y=y)
    bars = (
        altair.Chart(rows)
        .mark_rule(strokeWidth=1.5)
        .encode(x=x, y=altair.Y("least_lost:Q"), y2="most_lost:Q", color=colour, opacity=paler)
    )
    marks = (
        altair.Chart(rows)
        .mark_point(filled=True, size=80, stroke="white", strokeWidth=0.8)
        .encode(x=x, y=y, color=colour, shape=shape, opacity=paler, tooltip=_tooltip())
    )
    return [line, bars, marks]


def _family_scales(families: Iterable[str]) -> tuple[altair.Color, altair.Shape]:
    """The same colour and shape for a family in every chart."""
    import altair

    known = list(_COLOURS)
    names = sorted(families, key=lambda name: (known.index(name) if name in known else len(known), name))
    colours = [_COLOURS.get(name, _OTHER_COLOUR) for name in names]
    shapes = [_SHAPES.get(name.partition("-")[0], "circle") for name in names]
    return (
        altair.Color("family:N", title="Index", scale=altair.Scale(domain=names, range=colours)),
        altair.Shape("family:N", title="Index", scale=altair.Scale(domain=names, range=shapes)),
    )


def _row(spot: Spot) -> dict[str, Any]:
    point = spot.point
    value, low, high = (f"{100 * share:.2f}" for share in (point.overlap.value, point.overlap.low, point.overlap.high))
    p95_ms = point.latency.p95_ms
    return {
        "p50_ms": spot.p50_ms,
        "lost": spot.lost,
        "least_lost": spot.least_lost,
        "most_lost": spot.most_lost,
        "best": point.best,
        "family": find_family(point.factory),
        "index": point.factory,
        "setting": _setting(point),
        "recall": f"{value} % ({low} to {high})",
        "p50": f"{spot.p50_ms:.3g} ms",
        "p95": "" if p95_ms is None else f"{p95_ms:.3g} ms",
        "relative": f"{point.relative:.3g} x a streaming sum",
        "size": name_size(point.n_bytes),
        "build": f"{point.build_s:.3g} s",
    }


def _tooltip() -> list[altair.Tooltip]:
    import altair

    fields = ("index", "setting", "recall", "p50", "p95", "relative", "size", "build")
    return [altair.Tooltip(f"{field}:N", title=field) for field in fields]


def _setting(point: Point) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(point.search.items()))


def _choose_labels(spots: Sequence[Spot], frame: Frame) -> list[Label]:
    """Labels for as many spots of the front as have room, from the fastest on; an index's name stands once in a row."""
    labels: list[Label] = []
    taken = _obstacles(spots, frame)
    for spot in (spot for spot in spots if spot.point.best):
        named = labels and labels[-1].spot.point.factory == spot.point.factory
        lines = [line for line in ("" if named else spot.point.factory, _setting(spot.point)) if line]
        for corner in _CORNERS if lines else ():
            box = _box(spot, lines, corner, frame)
            if box.is_inside() and not any(box.overlaps(other) for other in taken):
                labels.append(Label(spot, lines, corner))
                taken.append(box)
                break
    return labels


def _obstacles(spots: Sequence[Spot], frame: Frame) -> list[Box]:
    """What a label must not hide: marks, intervals and the front's line."""
    marks, bars = [], []
    for spot in spots:
        x, y = frame.across(spot.p50_ms), frame.down(spot.lost)
        marks.append(Box(x - _MARK, y - _MARK, x + _MARK, y + _MARK))
        bars.append(Box(x - 1, frame.down(spot.least_lost), x + 1, frame.down(spot.most_lost)))
    steps = []
    for before, after in pairwise(spot for spot in spots if spot.point.best):
        x, y = frame.across(after.p50_ms), frame.down(before.lost)
        steps.append(Box(frame.across(before.p50_ms), y - 1, x, y + 1))
        steps.append(Box(x - 1, frame.down(after.lost), x + 1, y))
    return marks + bars + steps


def _box(spot: Spot, lines: Sequence[str], corner: Corner, frame: Frame) -> Box:
    """About as much as the text will take."""
    width, height = _LETTER * max(map(len, lines)), _LINE * len(lines)
    x, y = frame.across(spot.p50_ms), frame.down(spot.lost)
    left = x - _GAP - width if corner.left else x + _GAP
    top = y - _GAP - height if corner.above else y + _GAP
    return Box(left, top, left + width, top + height)


def _draw_label(label: Label, x: altair.X, y: altair.Y) -> altair.Chart:
    import altair

    text = altair.Chart(_data([{"p50_ms": label.spot.p50_ms, "lost": label.spot.lost}]))
    left, above = label.corner
    return text.mark_text(
        text=label.lines,
        align="right" if left else "left",
        baseline="bottom" if above else "top",
        dx=-_GAP if left else _GAP,
        dy=-_GAP - _LINE * (len(label.lines) - 1) if above else _GAP,
        fontSize=_FONT_SIZE,
        lineHeight=_LINE,
        color=_INK,
    ).encode(x=x, y=y)


def _draw_reading(sweep: Sweep, reading_ms: float | None, frame: Frame, x: altair.X) -> list[altair.Chart]:
    """The dashed line and what it says, or nothing."""
    import altair

    if reading_ms is None:
        return []
    data = altair.Chart(_data([{"p50_ms": reading_ms}]))
    text = [f"reading {name_size(_vector_bytes(sweep))} of vectors once", f"{reading_ms:.3g} ms (streaming sum)"]
    right = reading_ms**2 > frame.fastest_ms * frame.slowest_ms
    return [
        data.mark_rule(strokeDash=[4, 4], color=_SOFT).encode(x=x),
        data.mark_text(
            text=text,
            align="right" if right else "left",
            baseline="bottom",
            dx=-_GAP if right else _GAP,
            dy=-_GAP - _LINE,
            fontSize=_FONT_SIZE,
            lineHeight=_LINE,
            color=_SOFT,
        ).encode(x=x, y=altair.value(_HEIGHT)),
    ]


def _title(sweep: Sweep) -> altair.TitleParams:
    import altair

    gallery = sweep.gallery
    size = f"{gallery.n_items:,} items, {gallery.n_synthetic:,} synthetic"
    facts = ["Search alone, one query at a time", sweep.hardware_class, *sweep.flags]
    key = "The line joins the settings that no other beats in both; the others are pale. Bars are 95 % intervals."
    return altair.TitleParams(f"{sweep.label}: {size}", subtitle=[" · ".join(facts), key])


def _data(rows: list[dict[str, Any]]) -> altair.InlineData:
    import altair

    return altair.InlineData(values=rows)


def _style(chart: altair.LayerChart) -> altair.LayerChart:
    axis = {"gridColor": _GRID, "domainColor": _SOFT, "tickColor": _SOFT, "labelColor": _SOFT, "titleColor": _INK}
    sizes = {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "titlePadding": 10}
    return (
        chart.configure(font=_FONT, background="white", padding=14)
        .configure_view(stroke=None)
        .configure_axis(**axis, **sizes)
        .configure_title(
            anchor="start",
            color=_INK,
            fontSize=16,
            subtitleColor=_SOFT,
            subtitleFontSize=12,
            subtitlePadding=5,
            offset=14,
        )
        .configure_legend(labelColor=_INK, titleColor=_SOFT, labelFontSize=11, titleFontWeight="normal", symbolSize=80)
    )
