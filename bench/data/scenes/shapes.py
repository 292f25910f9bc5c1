"""The outlines and surfaces of the twelve kinds, as signed distance functions with normals.

A kind is a list of parts, back to front, in its own coordinates: u to the right, v down, about -1 to 1, resting on
v = 1. Only operations that IEEE 754 defines exactly are used per pixel, so every machine computes the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.data.scenes.noise import Field

Colour = tuple[float, float, float]
Point = tuple[float, float]

BARK: Colour = (0.45, 0.30, 0.19)
CREAM: Colour = (0.96, 0.91, 0.80)
INK: Colour = (0.10, 0.10, 0.13)
WINDOW: Colour = (0.98, 0.88, 0.52)


@dataclass(frozen=True)
class Part:
    """A piece of a thing's surface.

    Args:
        distance: signed distance to its outline in the thing's units, negative inside, (height, width) float32.
        nx, ny, nz: unit normal: to the right, down, and towards the viewer.
        paint: a fixed colour, or how bright it is compared with the thing's own colour.
    """

    distance: Field
    nx: Field
    ny: Field
    nz: Field
    paint: Colour | float = 1.0

    @property
    def is_own_colour(self) -> bool:
        """Whether it shows the thing's colour and pattern."""
        return isinstance(self.paint, float)


@dataclass(frozen=True)
class Shape:
    """A kind's parts as a function of local coordinates, and where things rest on it."""

    draw: Callable[[Field, Field], list[Part]]
    top: float = -1.0
    bottom: float = 1.0


def smoothstep(low: float, high: float, x: Field) -> Field:
    """0 below `low`, 1 above `high`, a cubic in between."""
    t = np.clip((x - np.float32(low)) * np.float32(1.0 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


def _length(x: Field, y: Field) -> Field:
    return np.sqrt(x * x + y * y)


def _circle(u: Field, v: Field, centre: Point, radius: float) -> Field:
    return _length(u - np.float32(centre[0]), v - np.float32(centre[1])) - np.float32(radius)


def _ellipse(u: Field, v: Field, centre: Point, radii: Point) -> Field:
    x, y = u - np.float32(centre[0]), v - np.float32(centre[1])
    a, b = np.float32(1 / radii[0]), np.float32(1 / radii[1])
    unit = _length(x * a, y * b)
    steepness = _length(x * a * a, y * b * b) + np.float32(1e-4)
    return unit * (unit - 1) / steepness


def _box(u: Field, v: Field, centre: Point, half: Point, rounding: float = 0.0) -> Field:
    x = np.abs(u - np.float32(centre[0])) - np.float32(half[0] - rounding)
    y = np.abs(v - np.float32(centre[1])) - np.float32(half[1] - rounding)
    outside = _length(np.maximum(x, 0), np.maximum(y, 0))
    return outside + np.minimum(np.maximum(x, y), 0) - np.float32(rounding)


def _polygon(u: Field, v: Field, corners: Sequence[Point], rounding: float = 0.0) -> Field:
    """Distance to a convex polygon whose corners go clockwise on the screen."""
    sides = []
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        span = math.sqrt((x1 - x0) * (x1 - x0) + (y1 - y0) * (y1 - y0))
        a, b = (y1 - y0) / span, -(x1 - x0) / span
        sides.append(u * np.float32(a) + v * np.float32(b) - np.float32(a * x0 + b * y0 - rounding))
    return np.maximum.reduce(sides) - np.float32(rounding)


def _star(u: Field, v: Field, radius: float) -> Field:
    """Distance to a five-pointed star. Source: Inigo Quilez, "2D distance functions", sdStar5."""
    cosine, sine, inner = 0.809017, 0.587785, 0.47
    x, y = np.abs(u), -v
    for side in (1, -1):
        fold = np.float32(2) * np.maximum(np.float32(side * cosine) * x - np.float32(sine) * y, np.float32(0))
        x, y = x - fold * np.float32(side * cosine), y + fold * np.float32(sine)
    x, y = np.abs(x), y - np.float32(radius)
    ax, ay = inner * sine, inner * cosine - 1
    along = np.clip((x * np.float32(ax) + y * np.float32(ay)) * np.float32(1 / (ax * ax + ay * ay)), 0, radius)
    side_of = y * np.float32(ax) - x * np.float32(ay)
    return _length(x - along * np.float32(ax), y - along * np.float32(ay)) * np.sign(side_of)


def _heart(u: Field, v: Field) -> Field:
    """Distance to a heart. Source: Inigo Quilez, "2D distance functions", sdHeart."""
    scale = 1.66
    x, y = np.abs(u) * np.float32(1 / scale), (1 - v) * np.float32(1 / scale)
    lobe = _length(x - np.float32(0.25), y - np.float32(0.75)) - np.float32(math.sqrt(2) / 4)
    diagonal = np.maximum(x + y, 0) * np.float32(0.5)
    to_notch = x * x + (y - 1) * (y - 1)
    to_side = (x - diagonal) * (x - diagonal) + (y - diagonal) * (y - diagonal)
    body = np.sqrt(np.minimum(to_notch, to_side)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, body) * np.float32(scale)


def _puff(distance: Field, bevel: float, paint: Colour | float = 1.0) -> Part:
    """A cushion: flat in the middle, rounded off over `bevel` towards its outline."""
    gx, gy = np.zeros_like(distance), np.zeros_like(distance)
    gx[:, 1:-1] = distance[:, 2:] - distance[:, :-2]
    gy[1:-1] = distance[2:] - distance[:-2]
    gx, gy = _soften(gx), _soften(gy)
    steep = (1 - np.clip(distance * np.float32(-1 / bevel), 0, 1)) * np.float32(0.92)
    scale = steep / (_length(gx, gy) + np.float32(1e-6))
    return Part(distance, gx * scale, gy * scale, np.sqrt(1 - steep * steep), paint)


def _soften(field: Field) -> Field:
    """The mean of each pixel and its neighbours, so that ridges are no staircases."""
    soft = field.copy()
    soft[1:-1] = (field[:-2] + field[2:] + 2 * field[1:-1]) * np.float32(0.25)
    softer = soft.copy()
    softer[:, 1:-1] = (soft[:, :-2] + soft[:, 2:] + 2 * soft[:, 1:-1]) * np.float32(0.25)
    return softer


def _dome(distance: Field, u: Field, v: Field, centre: Point, radii: Point, paint: Colour | float = 1.0) -> Part:
    """A part of an ellipsoid."""
    nx = np.clip((u - np.float32(centre[0])) * np.float32(1 / radii[0]), -1, 1)
    ny = np.clip((v - np.float32(centre[1])) * np.float32(1 / radii[1]), -1, 1)
    square = nx * nx + ny * ny
    shrink = 1 / np.sqrt(np.maximum(square, 1))
    nx, ny = nx * shrink, ny * shrink
    return Part(distance, nx, ny, np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0)), paint)


def _barrel(distance: Field, across: Field, paint: Colour | float = 1.0) -> Part:
    """An upright cylinder; `across` goes from -1 at its left to 1 at its right edge."""
    nx = np.clip(across, -1, 1) * np.float32(0.97)
    return Part(distance, nx, np.zeros_like(nx), np.sqrt(1 - nx * nx), paint)


def _face(distance: Field, normal: tuple[float, float, float], paint: Colour | float = 1.0) -> Part:
    """A flat side."""
    nx, ny, nz = (np.full_like(distance, value) for value in normal)
    return Part(distance, nx, ny, nz, paint)


def _merge(one: Part, other: Part) -> Part:
    """The union of two parts; each point shows the part in which it lies deeper."""
    nearer = other.distance < one.distance
    nx, ny, nz = (np.where(nearer, getattr(other, n), getattr(one, n)) for n in ("nx", "ny", "nz"))
    return Part(np.minimum(one.distance, other.distance), nx, ny, nz, one.paint)


def _ball(u: Field, v: Field) -> list[Part]:
    return [_dome(_circle(u, v, (0, 0), 1.0), u, v, (0, 0), (1.0, 1.0))]


def _cube(u: Field, v: Field) -> list[Part]:
    left = [(-0.9, -0.52), (0.0, -0.12), (0.0, 1.0), (-0.9, 0.55)]
    right = [(0.0, -0.12), (0.9, -0.52), (0.9, 0.55), (0.0, 1.0)]
    top = [(-0.9, -0.52), (0.0, -0.95), (0.9, -0.52), (0.0, -0.12)]
    faces = (left, (-0.55, 0.1, 0.83), 1.0), (right, (0.72, 0.25, 0.65), 1.0), (top, (-0.1, -0.85, 0.52), 1.0)
    return [_face(_polygon(u, v, corners, 0.04) - np.float32(0.02), normal, paint) for corners, normal, paint in faces]


def _cone(u: Field, v: Field) -> list[Part]:
    half = (v + 1) * np.float32(0.46)
    flank = _polygon(u, v, [(0.0, -1.0), (0.82, 0.8), (-0.82, 0.8)], 0.03)
    foot = _ellipse(u, v, (0.0, 0.78), (0.81, 0.22))
    side = _barrel(np.minimum(flank, foot), u / np.maximum(half, np.float32(0.05)))
    lift = np.sqrt(np.float32(0.86)) * np.ones_like(u)
    return [Part(side.distance, side.nx * lift, np.full_like(u, -0.37), side.nz * lift)]


def _draw_star(u: Field, v: Field) -> list[Part]:
    return [_puff(_star(u, v - np.float32(0.06), 1.1) - np.float32(0.04), 0.34)]


def _draw_heart(u: Field, v: Field) -> list[Part]:
    return [_puff(_heart(u, v), 0.6)]


def _ring(u: Field, v: Field) -> list[Part]:
    reach = _length(u, v)
    tube = (reach - np.float32(0.7)) * np.float32(1 / 0.3)
    scale = np.clip(tube, -1, 1) / (reach + np.float32(1e-6))
    nx, ny = u * scale, v * scale
    return [Part((np.abs(tube) - 1) * np.float32(0.3), nx, ny, np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0)))]


def _mug(u: Field, v: Field) -> list[Part]:
    handle = np.abs(_ellipse(u, v, (0.5, 0.08), (0.42, 0.45))) - np.float32(0.12)
    x = u + np.float32(0.2)
    wall = _box(x, v, (0.0, 0.08), (0.72, 0.72))
    body = np.minimum(
        np.minimum(wall, _ellipse(x, v, (0, 0.78), (0.72, 0.22))), _ellipse(x, v, (0, -0.64), (0.72, 0.24))
    )
    rim = _ellipse(x, v, (0, -0.66), (0.72, 0.25))
    inside = _ellipse(x, v, (0, -0.65), (0.6, 0.17))
    hollow = _barrel(inside, x * np.float32(-1 / 0.6), 0.5)
    return [_puff(handle, 0.12), _barrel(body, x * np.float32(1 / 0.74)), _face(rim, (-0.2, -0.6, 0.77), 1.12), hollow]


def _house(u: Field, v: Field) -> list[Part]:
    chimney = _box(u, v, (0.42, -0.62), (0.11, 0.34))
    wall = _box(u, v, (0.0, 0.45), (0.74, 0.55), 0.02)
    roof = _polygon(u, v, [(0.0, -1.0), (1.0, 0.02), (-1.0, 0.02)], 0.03)
    door = np.minimum(_box(u, v, (-0.28, 0.68), (0.17, 0.32)), _circle(u, v, (-0.28, 0.38), 0.17))
    window = _box(u, v, (0.32, 0.45), (0.2, 0.2))
    bars = np.minimum(_box(u, v, (0.32, 0.45), (0.025, 0.2)), _box(u, v, (0.32, 0.45), (0.2, 0.025)))
    facade = (-0.1, 0.0, 0.99)
    return [
        _face(chimney, facade, 0.55),
        _face(wall, facade),
        _face(roof, (-0.1, -0.55, 0.83), 0.62),
        _face(door, facade, 0.4),
        _face(window, facade, WINDOW),
        _face(bars, facade, 0.5),
    ]


def _tree(u: Field, v: Field) -> list[Part]:
    trunk = _polygon(u, v, [(-0.12, 0.0), (0.12, 0.0), (0.2, 1.0), (-0.2, 1.0)])
    lobes = (
        (-0.5, 0.06, 0.4),
        (0.5, 0.06, 0.4),
        (0.0, 0.12, 0.42),
        (-0.3, -0.42, 0.42),
        (0.34, -0.4, 0.4),
        (0.0, -0.6, 0.4),
    )
    crown: Part | None = None
    for x, y, r in lobes:
        leaf = _dome(_circle(u, v, (x, y), r), u, v, (x * 0.7, y * 0.7 - 0.1), (r * 1.5, r * 1.5))
        crown = leaf if crown is None else _merge(crown, leaf)
    return [_barrel(trunk, u * np.float32(1 / 0.2), BARK), *([crown] if crown else [])]


def _fish(u: Field, v: Field) -> list[Part]:
    tail = np.minimum(
        _polygon(u, v, [(0.45, 0.0), (1.0, -0.62), (0.86, 0.04)], 0.04),
        _polygon(u, v, [(0.45, 0.06), (0.86, -0.02), (1.0, 0.62)], 0.04),
    )
    fin = _polygon(u, v, [(-0.35, -0.4), (0.1, -0.86), (0.3, -0.3)], 0.05)
    belly = _polygon(u, v, [(-0.2, 0.4), (0.2, 0.35), (0.12, 0.82)], 0.05)
    body = _ellipse(u, v, (-0.18, 0.0), (0.8, 0.56))
    side_fin = _polygon(u, v, [(-0.05, 0.02), (0.3, -0.1), (0.3, 0.28)], 0.05)
    return [
        _puff(tail, 0.3, 0.8),
        _puff(np.minimum(fin, belly), 0.25, 0.8),
        _dome(body, u, v, (-0.18, 0.0), (0.82, 0.58)),
        _puff(side_fin, 0.2, 0.72),
        _face(_circle(u, v, (-0.6, -0.12), 0.14), (-0.1, -0.1, 0.99), CREAM),
        _face(_circle(u, v, (-0.63, -0.12), 0.075), (-0.1, -0.1, 0.99), INK),
    ]


def _boat(u: Field, v: Field) -> list[Part]:
    mast = _box(u, v, (0.0, -0.2), (0.05, 0.78))
    main = _polygon(u, v, [(0.1, -0.86), (0.8, 0.3), (0.1, 0.3)], 0.02)
    jib = _polygon(u, v, [(-0.1, -0.62), (-0.1, 0.3), (-0.66, 0.3)], 0.02)
    hull = np.maximum(_ellipse(u, v, (0.0, 0.3), (1.0, 0.7)), np.float32(0.42) - v)
    deck = _box(u, v, (0.0, 0.47), (1.0, 0.07), 0.03)
    return [
        _barrel(mast, u * np.float32(1 / 0.05), BARK),
        _puff(main, 0.5, CREAM),
        _puff(jib, 0.5, 1.25),
        _dome(hull, u, v, (0.0, 0.3), (1.05, 0.8)),
        _face(deck, (-0.2, -0.5, 0.84), 0.75),
    ]


def _mushroom(u: Field, v: Field) -> list[Part]:
    half = np.float32(0.24) + (v + np.float32(0.1)) * (v + np.float32(0.1)) * np.float32(0.1)
    stem = np.minimum(
        np.maximum(np.abs(u) - half, np.abs(v - np.float32(0.4)) - np.float32(0.52)),
        _ellipse(u, v, (0, 0.86), (0.33, 0.13)),
    )
    cap = np.maximum(_ellipse(u, v, (0.0, 0.08), (1.0, 1.06)), _ellipse(u, v, (0.0, -0.65), (1.4, 0.86)))
    gills = _ellipse(u, v, (0.0, 0.08), (0.86, 0.19))
    spots = [
        _ellipse(u, v, (x, y), (r, r * 0.9))
        for x, y, r in (
            (-0.34, -0.5, 0.15),
            (0.3, -0.6, 0.13),
            (0.08, -0.2, 0.14),
            (0.62, -0.18, 0.12),
            (-0.66, -0.12, 0.1),
        )
    ]
    spot = np.minimum.reduce(spots)
    return [
        _barrel(stem, u * np.float32(1 / 0.34), CREAM),
        _face(gills, (0.0, 0.6, 0.8), (0.80, 0.70, 0.58)),
        _dome(cap, u, v, (0.0, 0.1), (1.03, 1.12)),
        _dome(spot, u, v, (0.0, 0.1), (1.03, 1.12), CREAM),
    ]


SHAPES: dict[str, Shape] = {
    "ball": Shape(_ball),
    "cube": Shape(_cube, top=-0.5),
    "cone": Shape(_cone, top=-0.97),
    "star": Shape(_draw_star, top=-1.0, bottom=0.97),
    "heart": Shape(_draw_heart, top=-0.66),
    "ring": Shape(_ring),
    "mug": Shape(_mug, top=-0.7),
    "house": Shape(_house, top=-0.97),
    "tree": Shape(_tree, top=-0.96),
    "fish": Shape(_fish, top=-0.56, bottom=0.6),
    "boat": Shape(_boat, top=-0.92),
    "mushroom": Shape(_mushroom, top=-0.93),
}
