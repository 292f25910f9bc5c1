"""The eight backgrounds, told to a domain's brush as sky, sun, clouds and stretches of land."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from bench.data.scenes.canvas import SIDE, Canvas, Colour, measure_grid
from bench.data.scenes.canvas import WHOLE as WHOLE_BOX
from bench.data.scenes.noise import Field, hash_cells
from bench.data.scenes.shapes import smoothstep

Ridge = Field


class Brush(Protocol):
    """How a domain draws what backgrounds are made of."""

    def sky(self, canvas: Canvas, top: Colour, bottom: Colour, horizon: float) -> None:
        """A sky from `top` to `bottom` at the horizon."""

    def sun(self, canvas: Canvas, x: float, y: float, radius: float, colour: Colour) -> None:
        """The sun, or what stands in the sky in its place."""

    def clouds(self, canvas: Canvas, colour: Colour, horizon: float) -> None:
        """Clouds above the horizon."""

    def land(self, canvas: Canvas, ridge: Ridge, far: Colour, near: Colour, detail: Field, amount: float) -> None:
        """Ground below `ridge`, (256,) px, coloured from far to near; `detail` in [-1, 1] varies its brightness."""


def _draw_ridge(rng: np.random.Generator, canvas: Canvas, base: float, height: float, cell: int, seed: int) -> Ridge:
    row = int(rng.integers(SIDE))
    return np.float32(base) - (canvas.noise(cell, cell, seed)[row] * np.float32(0.5) + np.float32(0.5)) * np.float32(
        height
    )


def _level(height: float) -> Ridge:
    return np.full(SIDE, height, dtype=np.float32)


def _place_sun(rng: np.random.Generator, low: float, high: float) -> tuple[float, float]:
    side = 0.12 if rng.random() < 0.5 else 0.72
    return SIDE * (side + 0.16 * float(rng.random())), low + (high - low) * float(rng.random())


def _beach(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    horizon = 112 + 14 * float(rng.random())
    brush.sky(canvas, (0.36, 0.66, 0.93), (0.80, 0.92, 0.98), horizon)
    brush.sun(canvas, *_place_sun(rng, 28, 60), 13, (1.0, 0.96, 0.78))
    brush.clouds(canvas, (1.0, 1.0, 1.0), horizon)
    waves = canvas.noise(32, 2, 11) * 0.6 + canvas.noise(64, 4, 12) * 0.4
    brush.land(canvas, _level(horizon), (0.13, 0.50, 0.72), (0.22, 0.74, 0.79), waves, 0.10)
    shore = _draw_ridge(rng, canvas, horizon + 44, 14, 64, 13)
    nothing = np.zeros((SIDE, SIDE), dtype=np.float32)
    brush.land(canvas, shore - np.float32(4), (0.97, 0.98, 0.97), (0.97, 0.98, 0.97), nothing, 0)
    sand = canvas.noise(4, 2, 14) * 0.4 + canvas.noise(64, 8, 15) * 0.8
    brush.land(canvas, shore, (0.90, 0.80, 0.58), (0.97, 0.87, 0.66), sand, 0.06)


def _meadow(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    horizon = 120 + 12 * float(rng.random())
    brush.sky(canvas, (0.42, 0.70, 0.95), (0.86, 0.94, 0.97), horizon)
    brush.clouds(canvas, (1.0, 1.0, 1.0), horizon)
    hills = canvas.noise(16, 16, 21)
    brush.land(
        canvas, _draw_ridge(rng, canvas, horizon + 6, 36, 128, 22), (0.55, 0.73, 0.58), (0.48, 0.69, 0.45), hills, 0.04
    )
    brush.land(
        canvas, _draw_ridge(rng, canvas, horizon + 14, 22, 64, 23), (0.46, 0.70, 0.34), (0.40, 0.66, 0.28), hills, 0.05
    )
    grass = canvas.noise(2, 8, 24) * 0.7 + canvas.noise(32, 16, 25) * 0.5
    brush.land(
        canvas, _draw_ridge(rng, canvas, horizon + 22, 8, 128, 26), (0.49, 0.73, 0.30), (0.32, 0.58, 0.18), grass, 0.12
    )


def _desert(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    horizon = 116 + 14 * float(rng.random())
    brush.sky(canvas, (0.53, 0.74, 0.86), (0.98, 0.90, 0.74), horizon)
    brush.sun(canvas, *_place_sun(rng, 26, 52), 15, (1.0, 0.95, 0.72))
    ripples = canvas.noise(32, 4, 31) * 0.7 + canvas.noise(8, 2, 32) * 0.3
    dunes = (
        (4, 44, 128, (0.93, 0.73, 0.49), (0.86, 0.62, 0.38)),
        (20, 36, 128, (0.95, 0.74, 0.46), (0.85, 0.60, 0.34)),
        (36, 16, 64, (0.96, 0.76, 0.47), (0.90, 0.66, 0.38)),
    )
    for k, (drop, height, cell, far, near) in enumerate(dunes):
        brush.land(canvas, _draw_ridge(rng, canvas, horizon + drop, height, cell, 33 + k), far, near, ripples, 0.06)


def _snow(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    horizon = 118 + 12 * float(rng.random())
    brush.sky(canvas, (0.56, 0.68, 0.82), (0.90, 0.93, 0.96), horizon)
    rocks = canvas.noise(16, 8, 41) * 0.7 + canvas.noise(4, 4, 42) * 0.4
    peaks = _draw_ridge(rng, canvas, horizon + 14, 64, 32, 43)
    brush.land(canvas, peaks, (0.86, 0.90, 0.95), (0.52, 0.60, 0.72), rocks, 0.08)
    drifts = canvas.noise(64, 16, 44) * 0.8 + canvas.noise(2, 2, 45) * 0.2
    brush.land(
        canvas,
        _draw_ridge(rng, canvas, horizon + 18, 14, 128, 46),
        (0.86, 0.91, 0.97),
        (0.82, 0.88, 0.96),
        drifts,
        0.04,
    )
    brush.land(
        canvas, _draw_ridge(rng, canvas, horizon + 46, 18, 128, 47), (0.95, 0.97, 1.0), (0.86, 0.91, 0.98), drifts, 0.05
    )


def _lake(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    horizon = 104 + 12 * float(rng.random())
    brush.sky(canvas, (0.47, 0.66, 0.86), (0.93, 0.93, 0.88), horizon)
    brush.clouds(canvas, (1.0, 0.99, 0.96), horizon)
    trees = canvas.noise(4, 8, 51)
    brush.land(
        canvas, _draw_ridge(rng, canvas, horizon, 56, 64, 52), (0.50, 0.60, 0.70), (0.58, 0.68, 0.72), trees, 0.03
    )
    brush.land(
        canvas, _draw_ridge(rng, canvas, horizon + 4, 16, 8, 53), (0.20, 0.38, 0.31), (0.17, 0.34, 0.28), trees, 0.05
    )
    ripples = canvas.noise(64, 2, 54) * 0.7 + canvas.noise(16, 2, 55) * 0.3
    brush.land(canvas, _level(horizon + 6), (0.30, 0.50, 0.62), (0.50, 0.70, 0.78), ripples, 0.12)
    pebbles = canvas.noise(8, 4, 56) * 0.7 + canvas.noise(4, 2, 57) * 0.5
    brush.land(
        canvas,
        _draw_ridge(rng, canvas, horizon + 66, 16, 128, 58),
        (0.56, 0.57, 0.53),
        (0.67, 0.66, 0.60),
        pebbles,
        0.10,
    )


def _wall(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    floor = 146 + 10 * float(rng.random())
    offset = 40 * float(rng.random())
    brush.land(canvas, _level(-1), (0.66, 0.36, 0.28), (0.70, 0.40, 0.31), _lay_bricks(offset), 0.16)
    slabs = canvas.noise(4, 4, 61) * 0.5 + canvas.noise(64, 16, 62) * 0.4
    brush.land(canvas, _level(floor), (0.58, 0.57, 0.56), (0.72, 0.71, 0.69), slabs, 0.06)


def _lay_bricks(offset: float) -> Field:
    """Bricks of different brightness with pale mortar between them."""
    x, y = measure_grid(WHOLE_BOX)
    row = np.floor(y * np.float32(1 / 17))
    along = (x + np.float32(offset)) * np.float32(1 / 36) + (row - 2 * np.floor(row * np.float32(0.5))) * np.float32(
        0.5
    )
    column = np.floor(along)
    to_side = np.minimum(along - column, column + 1 - along) * 36
    to_edge = np.minimum(to_side, np.minimum(y - row * 17, row * 17 + 17 - y))
    tone = hash_cells(column.astype(np.int64), row.astype(np.int64), 63) * np.float32(0.9) - np.float32(0.55)
    mortar = smoothstep(0.7, 1.9, to_edge)
    return tone * mortar + (1 - mortar) * np.float32(1.0)


def _floor(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    edge = 138 + 12 * float(rng.random())
    vanishing = SIDE * (0.35 + 0.3 * float(rng.random()))
    paper = canvas.noise(64, 64, 71) * np.float32(0.5)
    brush.land(canvas, _level(-1), (0.80, 0.84, 0.80), (0.74, 0.79, 0.76), paper, 0.03)
    blank = np.zeros((SIDE, SIDE), dtype=np.float32)
    brush.land(canvas, _level(edge - 9), (0.95, 0.94, 0.90), (0.93, 0.92, 0.88), blank, 0)
    planks = _lay_planks(edge, vanishing) + canvas.noise(4, 64, 72) * np.float32(0.35)
    brush.land(canvas, _level(edge), (0.62, 0.42, 0.26), (0.78, 0.56, 0.36), planks, 0.12)


def _lay_planks(edge: float, vanishing: float) -> Field:
    """Floorboards that run towards a vanishing point, with dark seams."""
    x, y = measure_grid(WHOLE_BOX)
    depth = np.maximum(y - np.float32(edge - 60), 8)
    along = (x - np.float32(vanishing)) / depth * np.float32(4.2) + 64
    column = np.floor(along)
    to_seam = np.minimum(along - column, column + 1 - along) * depth * np.float32(1 / 4.2)
    tone = hash_cells(column.astype(np.int64), np.zeros_like(column, dtype=np.int64), 73) - np.float32(0.5)
    seam = smoothstep(0.2, 1.3, to_seam)
    return tone * seam - (1 - seam) * np.float32(1.0)


def _sunset(canvas: Canvas, brush: Brush, rng: np.random.Generator) -> None:
    horizon = 122 + 10 * float(rng.random())
    brush.sky(canvas, (0.36, 0.24, 0.52), (1.0, 0.62, 0.34), horizon)
    brush.sun(canvas, SIDE * (0.2 + 0.6 * float(rng.random())), horizon - 20, 24, (1.0, 0.88, 0.52))
    brush.clouds(canvas, (0.96, 0.55, 0.48), horizon)
    soil = canvas.noise(16, 8, 81)
    brush.land(
        canvas, _draw_ridge(rng, canvas, horizon + 4, 34, 64, 82), (0.62, 0.34, 0.48), (0.55, 0.30, 0.44), soil, 0.03
    )
    brush.land(
        canvas, _draw_ridge(rng, canvas, horizon + 14, 22, 64, 83), (0.44, 0.25, 0.40), (0.40, 0.24, 0.38), soil, 0.04
    )
    field = canvas.noise(32, 4, 84) * 0.7 + canvas.noise(4, 2, 85) * 0.4
    brush.land(
        canvas, _draw_ridge(rng, canvas, horizon + 26, 8, 128, 86), (0.60, 0.37, 0.40), (0.47, 0.33, 0.42), field, 0.07
    )


BACKDROPS: dict[str, Callable[[Canvas, Brush, np.random.Generator], None]] = {
    "beach": _beach,
    "meadow": _meadow,
    "desert": _desert,
    "snow": _snow,
    "lake": _lake,
    "wall": _wall,
    "floor": _floor,
    "sunset": _sunset,
}
