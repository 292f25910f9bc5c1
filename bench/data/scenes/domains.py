"""The five ways to draw a scene: natural, pencil sketch, flat cartoon, oil painting and night.

Each draws the same outlines with its own means; none is a filter over another one's picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bench.data.scenes import surfaces
from bench.data.scenes.backdrops import Brush, Ridge
from bench.data.scenes.canvas import SIDE, WHOLE, Box, Canvas, Colour, Placed, cover, measure_grid
from bench.data.scenes.graph import Thing
from bench.data.scenes.noise import Cells, Field, hash_cells
from bench.data.scenes.shapes import smoothstep
from bench.data.scenes.surfaces import Lamp, Patch


class Domain(Brush, Protocol):
    """A brush that also draws things."""

    def shadow(self, canvas: Canvas, placed: Placed) -> None:
        """The shadow that a thing casts on what is beneath it."""

    def thing(self, canvas: Canvas, patches: list[Patch]) -> None:
        """A thing's parts, back to front."""

    def finish(self, canvas: Canvas) -> None:
        """What is done once everything is drawn."""


def _rows_from(top: float) -> Box:
    return slice(min(max(int(top), 0), SIDE - 1), SIDE), slice(0, SIDE)


def _measure_depth(ridge: Ridge, box: Box) -> tuple[Field, Field]:
    """How far a box's pixels lie above the ridge, and 0 at the ridge's top to 1 at the bottom, each (h, 256)."""
    _, y = measure_grid(box)
    top = float(ridge.min())
    return ridge[None, :] - y, np.clip((y - np.float32(top)) * np.float32(1 / (SIDE - top)), 0, 1)


def _measure_shadow(placed: Placed, box: Box) -> Field:
    """A soft blot under a thing, paler the higher it floats, 0 to 1."""
    x, y = measure_grid(box)
    gap = max(placed.ground - (placed.y + placed.radius * 0.95), 0.0)
    wide, flat = placed.radius * 1.05, placed.radius * (0.14 if placed.rests_on_thing else 0.24)
    a = (x - np.float32(placed.x + 0.16 * placed.radius)) * np.float32(1 / wide)
    b = (y - np.float32(placed.ground - 0.02 * placed.radius)) * np.float32(1 / flat)
    blot = np.clip(1 - np.sqrt(a * a + b * b), 0, 1)
    return blot * (2 - blot) * np.float32(1 / (1 + gap / 60))


def _shadow_box(placed: Placed) -> Box:
    wide, flat = placed.radius * 1.3 + 2, placed.radius * 0.3 + 2
    rows = slice(max(int(placed.ground - flat), 0), min(int(placed.ground + flat) + 1, SIDE))
    return rows, slice(max(int(placed.x - wide), 0), min(int(placed.x + wide) + 1, SIDE))


def _gradient(low: Colour, high: Colour, t: Field) -> list[Field]:
    return [np.float32(a) + t * np.float32(b - a) for a, b in zip(low, high, strict=True)]


def _scale(colour: Colour, factor: float) -> Colour:
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def _luminance(colour: Colour) -> float:
    return 0.30 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]


def _measure_clouds(canvas: Canvas, horizon: float, box: Box) -> Field:
    """Where clouds are, 0 to 1; none near the horizon."""
    _, y = measure_grid(box)
    billow = canvas.noise(64, 32, 1, box) * np.float32(0.62) + canvas.noise(16, 8, 2, box) * np.float32(0.26)
    billow = billow + canvas.noise(8, 4, 3, box) * np.float32(0.12)
    return billow * smoothstep(horizon, horizon * 0.55, y)


@dataclass(frozen=True)
class Natural:
    """Daylight with soft shading, textures, reflections and refraction."""

    lamp: Lamp = surfaces.DAYLIGHT

    def sky(self, canvas: Canvas, top: Colour, bottom: Colour, horizon: float) -> None:
        _, y = measure_grid(WHOLE)
        t = np.clip(y * np.float32(1 / horizon), 0, 1)
        for plane, column in zip(canvas.rgb, _gradient(top, bottom, t * (2 - t)), strict=True):
            plane[:] = column

    def sun(self, canvas: Canvas, x: float, y: float, radius: float, colour: Colour) -> None:
        far = _measure_disc(x, y, WHOLE) - np.float32(radius)
        glow = np.clip(1 - far * np.float32(1 / (radius * 3.2)), 0, 1)
        canvas.blend(WHOLE, colour, glow * glow * np.float32(0.5))
        canvas.blend(WHOLE, colour, cover(far))

    def clouds(self, canvas: Canvas, colour: Colour, horizon: float) -> None:
        box = (slice(0, int(horizon) + 1), slice(0, SIDE))
        canvas.blend(box, colour, smoothstep(0.05, 0.65, _measure_clouds(canvas, horizon, box)) * np.float32(0.85))

    def land(self, canvas: Canvas, ridge: Ridge, far: Colour, near: Colour, detail: Field, amount: float) -> None:
        box = _rows_from(float(ridge.min()) - 1)
        above, depth = _measure_depth(ridge, box)
        opacity = cover(above)
        relief = detail[box] * np.float32(amount)
        canvas.blend(box, np.stack([band + relief for band in _gradient(far, near, depth)]), opacity)

    def shadow(self, canvas: Canvas, placed: Placed) -> None:
        box = _shadow_box(placed)
        canvas.blend(box, (0.05, 0.05, 0.12), _measure_shadow(placed, box) * np.float32(0.62))

    def thing(self, canvas: Canvas, patches: list[Patch]) -> None:
        for patch in patches:
            colour = surfaces.light_part(canvas, patch, self.lamp)
            canvas.blend(patch.box, np.clip(colour, 0, 1), cover(patch.part.distance * np.float32(patch.radius)))

    def finish(self, canvas: Canvas) -> None:
        """Nothing is left to do."""


def _measure_disc(x: float, y: float, box: Box) -> Field:
    to_x, to_y = measure_grid(box)
    to_x, to_y = to_x - np.float32(x), to_y - np.float32(y)
    return np.sqrt(to_x * to_x + to_y * to_y)


_MOONLIGHT = Lamp((0.44, 0.45, 0.50), (0.48, 0.49, 0.54), (1.0, 0.62, 0.20))


@dataclass(frozen=True)
class Night:
    """Moonlight and stars, with a lamp behind the things at their right."""

    inner: Natural = Natural(_MOONLIGHT)

    def sky(self, canvas: Canvas, top: Colour, bottom: Colour, horizon: float) -> None:
        glow = _darken(bottom)
        self.inner.sky(canvas, (0.02, 0.03, 0.10), (glow[0] * 0.9, glow[1] * 0.9, glow[2]), horizon)
        y, x = np.divmod(np.arange(150), 15)
        jitter = [hash_cells(x, y, seed) for seed in (5, 6, 7)]
        shift = int(canvas.noise(64, 64, 8)[0, 0] * 40) % SIDE
        rows = ((y + jitter[0]) * np.float32(horizon / 10)).astype(np.int64)
        columns = ((x + jitter[1]) * 17 + np.float32(shift)).astype(np.int64) % SIDE
        canvas.rgb[:, rows, columns] += jitter[2] * jitter[2] * np.float32(0.9)

        self._draw_moon(canvas, (36.0 + 184.0 * float(jitter[1][7]) + shift) % 184.0 + 36.0, 34.0)

    def _draw_moon(self, canvas: Canvas, x: float, y: float) -> None:
        box = (slice(0, int(y) + 66), slice(0, SIDE))
        far = _measure_disc(x, y, box)
        halo = np.clip(1 - far * np.float32(1 / 64), 0, 1)
        canvas.blend(box, (0.62, 0.70, 0.88), halo * halo * np.float32(0.4))
        bite = _measure_disc(x + 7, y - 4, box) - np.float32(13)
        canvas.blend(box, (0.96, 0.95, 0.84), cover(np.maximum(far - np.float32(14), -bite)))

    def sun(self, canvas: Canvas, x: float, y: float, radius: float, colour: Colour) -> None:
        """There is none: every night sky has its moon."""

    def clouds(self, canvas: Canvas, colour: Colour, horizon: float) -> None:
        box = (slice(0, int(horizon) + 1), slice(0, SIDE))
        haze = smoothstep(0.1, 0.8, _measure_clouds(canvas, horizon, box)) * np.float32(0.5)
        canvas.blend(box, (0.20, 0.24, 0.36), haze)

    def land(self, canvas: Canvas, ridge: Ridge, far: Colour, near: Colour, detail: Field, amount: float) -> None:
        self.inner.land(canvas, ridge, _darken(far), _darken(near), detail, amount * 0.55)

    def shadow(self, canvas: Canvas, placed: Placed) -> None:
        box = _shadow_box(placed)
        canvas.blend(box, (0.0, 0.0, 0.03), _measure_shadow(placed, box) * np.float32(0.75))

    def thing(self, canvas: Canvas, patches: list[Patch]) -> None:
        self.inner.thing(canvas, patches)

    def finish(self, canvas: Canvas) -> None:
        """Nothing is left to do."""


def _darken(colour: Colour) -> Colour:
    grey = _luminance(colour)
    return (
        0.01 + 0.07 * grey + 0.17 * colour[0],
        0.02 + 0.09 * grey + 0.20 * colour[1],
        0.08 + 0.14 * grey + 0.22 * colour[2],
    )


_OUTLINE: Colour = (0.09, 0.08, 0.13)


@dataclass(frozen=True)
class Cartoon:
    """Flat colours in few steps of light inside thick dark outlines."""

    def sky(self, canvas: Canvas, top: Colour, bottom: Colour, horizon: float) -> None:
        _, y = measure_grid(WHOLE)
        band = np.floor(np.clip(y * np.float32(1 / horizon), 0, 0.99) * 3) * np.float32(0.5)
        for plane, column in zip(canvas.rgb, _gradient(_vivify(top), _vivify(bottom), band), strict=True):
            plane[:] = column

    def sun(self, canvas: Canvas, x: float, y: float, radius: float, colour: Colour) -> None:
        far = _measure_disc(x, y, WHOLE)
        canvas.blend(WHOLE, colour, cover(far - np.float32(radius * 1.7)) * np.float32(0.45))
        canvas.blend(WHOLE, _OUTLINE, cover(far - np.float32(radius + 2)))
        canvas.blend(WHOLE, _vivify(colour), cover(far - np.float32(radius)))

    def clouds(self, canvas: Canvas, colour: Colour, horizon: float) -> None:
        box = (slice(0, int(horizon) + 1), slice(0, SIDE))
        canvas.blend(box, colour, smoothstep(0.23, 0.27, _measure_clouds(canvas, horizon, box)))

    def land(self, canvas: Canvas, ridge: Ridge, far: Colour, near: Colour, detail: Field, amount: float) -> None:
        box = _rows_from(float(ridge.min()) - 3)
        above, depth = _measure_depth(ridge, box)
        canvas.blend(box, _OUTLINE, cover(above - np.float32(1.2)))
        inside = cover(above + np.float32(1.2))
        canvas.blend(box, _vivify(far), inside)
        canvas.blend(box, _vivify(near), inside * smoothstep(0.40, 0.41, depth))
        if amount >= 0.05:
            marks = smoothstep(0.50, 0.56, np.abs(detail[box])) * inside * np.float32(min(amount * 2.5, 0.4))
            canvas.blend(box, _scale(near, 0.55), marks)

    def shadow(self, canvas: Canvas, placed: Placed) -> None:
        box = _shadow_box(placed)
        canvas.blend(box, (0.05, 0.04, 0.15), smoothstep(0.22, 0.27, _measure_shadow(placed, box)) * np.float32(0.42))

    def thing(self, canvas: Canvas, patches: list[Patch]) -> None:
        for patch in patches:
            away = patch.part.distance * np.float32(patch.radius)
            canvas.blend(patch.box, _OUTLINE, cover(away - np.float32(2.4)))
        for patch in patches:
            away = patch.part.distance * np.float32(patch.radius)
            canvas.blend(patch.box, _OUTLINE, cover(away - np.float32(0.6)))
            canvas.blend(patch.box, self._flatten(canvas, patch), cover(away + np.float32(0.9)))

    def _flatten(self, canvas: Canvas, patch: Patch) -> Field:
        """The part in three steps of light, with a mark that tells its material."""
        thing = patch.thing
        grainless = Patch(patch.part, patch.box, patch.u, patch.v, patch.radius, _replace_wood(thing))
        colour = surfaces.paint_albedo(canvas, grainless)
        light = surfaces.measure_light(patch.part)
        steps = (
            np.float32(0.70)
            + smoothstep(0.10, 0.14, light) * np.float32(0.30)
            + smoothstep(0.80, 0.84, light) * np.float32(0.10)
        )
        colour *= steps
        if thing.material == "wooden":
            colour *= 1 - smoothstep(0.55, 0.65, surfaces.draw_grain(canvas, patch)) * np.float32(0.38)
        if thing.material == "metal":
            slope = patch.v + patch.u * np.float32(0.5) + patch.part.ny * np.float32(0.5)
            dark = smoothstep(0.10, 0.13, slope) * smoothstep(0.52, 0.49, slope)
            shine = smoothstep(-0.62, -0.59, slope) * smoothstep(-0.24, -0.27, slope)
            colour *= 1 - dark * np.float32(0.5)
            colour += (1 - colour) * (shine * np.float32(0.72))
        if thing.material == "glass":
            slope = patch.u * np.float32(0.8) + patch.v
            shine = smoothstep(-0.75, -0.72, slope) * smoothstep(-0.42, -0.45, slope)
            shine = np.maximum(shine, smoothstep(-0.30, -0.27, slope) * smoothstep(-0.14, -0.17, slope))
            behind = canvas.rgb[:, patch.box[0], patch.box[1]] if patch.part.is_own_colour else colour
            colour = colour * np.float32(0.84) + behind * np.float32(0.16)
            colour += (1 - colour) * (shine * np.float32(0.6))
        return np.clip(colour, 0, 1)

    def finish(self, canvas: Canvas) -> None:
        """Nothing is left to do."""


def _replace_wood(thing: Thing) -> Thing:
    if thing.material != "wooden":
        return thing
    return Thing(thing.kind, thing.colour, thing.size, "rubber", thing.pattern)


def _vivify(colour: Colour) -> Colour:
    grey = _luminance(colour)
    red, green, blue = (min(max(grey + (value - grey) * 1.3 + 0.02, 0.0), 1.0) for value in colour)
    return (red, green, blue)


@dataclass(frozen=True)
class Sketch:
    """Pencil on paper: outlines, hatching for shade, no colour."""

    def sky(self, canvas: Canvas, top: Colour, bottom: Colour, horizon: float) -> None:
        self._lay_paper(canvas, WHOLE, np.ones((SIDE, SIDE), dtype=np.float32))

    def sun(self, canvas: Canvas, x: float, y: float, radius: float, colour: Colour) -> None:
        far = _measure_disc(x + 1.5 * float(canvas.noise(16, 16, 9)[0, 0]), y, WHOLE)
        self._draw(canvas, WHOLE, _line(far - np.float32(radius), 0.9) * np.float32(0.55))

    def clouds(self, canvas: Canvas, colour: Colour, horizon: float) -> None:
        box = (slice(0, int(horizon) + 1), slice(0, SIDE))
        edge = (_measure_clouds(canvas, horizon, box) - np.float32(0.25)) * 28
        self._draw(canvas, box, _line(edge, 0.9) * np.float32(0.35))

    def land(self, canvas: Canvas, ridge: Ridge, far: Colour, near: Colour, detail: Field, amount: float) -> None:
        box = _rows_from(float(ridge.min()) - 3)
        above, depth = _measure_depth(ridge, box)
        above = above + canvas.noise(32, 32, 4, box) * np.float32(1.2)
        self._lay_paper(canvas, box, cover(above))
        self._draw(canvas, box, _line(above, 0.8) * np.float32(0.6))
        tone = (0.75 - _luminance(far)) * (1 - depth) + (0.75 - _luminance(near)) * depth
        marks = smoothstep(0.35, 0.75, np.abs(detail[box])) * np.float32(min(amount * 3, 0.4))
        shade = np.clip(tone, 0, 1) * np.float32(0.55) * self._hatch(canvas, box, 7, False)
        self._draw(canvas, box, (shade + marks) * cover(above))

    def shadow(self, canvas: Canvas, placed: Placed) -> None:
        box = _shadow_box(placed)
        blot = smoothstep(0.05, 0.6, _measure_shadow(placed, box))
        self._draw(canvas, box, blot * (self._hatch(canvas, box, 4, False) * np.float32(0.5) + np.float32(0.2)))

    def thing(self, canvas: Canvas, patches: list[Patch]) -> None:
        for patch in patches:
            wobble = canvas.noise(16, 16, 4, patch.box) * np.float32(0.9)
            away = patch.part.distance * np.float32(patch.radius) + wobble
            self._lay_paper(canvas, patch.box, cover(away))
            self._draw(canvas, patch.box, self._shade(canvas, patch) * cover(away))
            second = patch.part.distance * np.float32(patch.radius) - canvas.noise(32, 32, 6, patch.box) * np.float32(
                1.3
            )
            self._draw(canvas, patch.box, _line(away, 1.1) * np.float32(0.85))
            self._draw(canvas, patch.box, _line(second, 0.6) * np.float32(0.35))

    def _shade(self, canvas: Canvas, patch: Patch) -> Field:
        """Hatching: one direction in half shade, two in the dark; the material's marks on top."""
        thing = patch.thing
        light = surfaces.measure_light(patch.part)
        dark = np.clip(np.float32(0.62) - light * np.float32(0.75), 0, 1)
        if thing.material == "metal":
            height = 2 * patch.part.nz * patch.part.ny + (patch.u + patch.v) * np.float32(0.25)
            dark = smoothstep(-0.12, 0.02, height) * smoothstep(0.75, 0.1, height)
            dark = np.maximum(dark, smoothstep(-0.6, -1.1, height) * np.float32(0.5))
        if thing.material == "glass":
            rim = 1 - patch.part.nz
            dark = rim * rim * np.float32(0.55) + smoothstep(0.5, 0.0, light) * np.float32(0.12)
        if isinstance(patch.part.paint, float):
            dark = dark + np.float32(max(1 - patch.part.paint, 0) * 0.9)
        elif _luminance(patch.part.paint) < 0.3:
            dark = dark + np.float32(0.5)
        if thing.pattern != "plain" and patch.part.is_own_colour:
            dark = dark * np.float32(0.6) + surfaces.draw_pattern(patch) * np.float32(0.6)
        shade = smoothstep(0.12, 0.9, dark) * self._hatch(canvas, patch.box, 4, False)
        shade = shade + smoothstep(0.45, 1.1, dark) * self._hatch(canvas, patch.box, 4, True) * np.float32(0.7)
        shade = shade + np.clip(dark - np.float32(0.3), 0, 1) * np.float32(0.3)
        if thing.material == "wooden":
            shade = shade * np.float32(0.7) + _line(
                surfaces.draw_grain(canvas, patch) - np.float32(0.5), 0.22
            ) * np.float32(0.5)
        if thing.material == "glass":
            streak = patch.u * np.float32(0.8) + patch.v + np.float32(0.55)
            shade = shade + _line(np.abs(streak) - np.float32(0.1), 0.035) * np.float32(0.5)
        return shade

    def _hatch(self, canvas: Canvas, box: Box, spacing: int, is_crossed: bool) -> Field:
        x, y = measure_grid(box)
        across = x - y if is_crossed else x + y
        bent = (across + canvas.noise(32, 32, 5, box) * np.float32(2.5)) * np.float32(0.7071 / spacing)
        return smoothstep(0.10, 0.34, np.abs(bent - np.floor(bent) - np.float32(0.5))) * np.float32(0.62)

    def _lay_paper(self, canvas: Canvas, box: Box, opacity: Field) -> None:
        grain = canvas.noise(2, 2, 3, box) * np.float32(0.015) + canvas.noise(64, 64, 2, box) * np.float32(0.012)
        canvas.blend(box, np.stack([np.float32(level) + grain for level in (0.965, 0.955, 0.925)]), opacity)

    def _draw(self, canvas: Canvas, box: Box, darkness: Field) -> None:
        """Graphite, which catches on the paper's grain."""
        grain = np.float32(0.86) + canvas.noise(2, 2, 7, box) * np.float32(0.30)
        canvas.blend(box, (0.17, 0.17, 0.20), np.clip(darkness * grain, 0, 0.92))

    def finish(self, canvas: Canvas) -> None:
        """Nothing is left to do."""


def _line(distance: Field, width: float) -> Field:
    """A line along the zero of a distance, with soft sides."""
    return np.clip(np.float32(1.25) - np.abs(distance) * np.float32(1 / width), 0, 1)


_WARM = Lamp((0.50, 0.46, 0.50), (0.66, 0.60, 0.46), (0.06, 0.08, 0.20))


@dataclass(frozen=True)
class Painting:
    """Oil on canvas: warm light, cool shade, and brush strokes that follow the forms."""

    inner: Natural = Natural(_WARM)

    def sky(self, canvas: Canvas, top: Colour, bottom: Colour, horizon: float) -> None:
        self.inner.sky(canvas, _vivify(top), _vivify(bottom), horizon)
        canvas.flow[1] = canvas.noise(64, 64, 1) * np.float32(0.7)

    def sun(self, canvas: Canvas, x: float, y: float, radius: float, colour: Colour) -> None:
        self.inner.sun(canvas, x, y, radius * 1.15, colour)

    def clouds(self, canvas: Canvas, colour: Colour, horizon: float) -> None:
        self.inner.clouds(canvas, colour, horizon)

    def land(self, canvas: Canvas, ridge: Ridge, far: Colour, near: Colour, detail: Field, amount: float) -> None:
        self.inner.land(canvas, ridge, _vivify(far), _vivify(near), detail, amount * 1.5)

    def shadow(self, canvas: Canvas, placed: Placed) -> None:
        box = _shadow_box(placed)
        canvas.blend(box, (0.13, 0.09, 0.30), _measure_shadow(placed, box) * np.float32(0.7))

    def thing(self, canvas: Canvas, patches: list[Patch]) -> None:
        for patch in patches:
            wobble = canvas.noise(8, 8, 4, patch.box) * np.float32(0.9)
            opacity = cover(patch.part.distance * np.float32(patch.radius) + wobble)
            canvas.blend(patch.box, np.clip(surfaces.light_part(canvas, patch, self.inner.lamp), 0, 1), opacity)
            inside = opacity > np.float32(0.5)
            canvas.is_thing[patch.box] |= inside
            steep = np.abs(patch.part.nx) + np.abs(patch.part.ny) > np.float32(0.25)
            for plane, run in zip(canvas.flow, (-patch.part.ny, patch.part.nx), strict=True):
                plane[patch.box] = np.where(inside, np.where(steep, run, np.float32(0.7)), plane[patch.box])

    def finish(self, canvas: Canvas) -> None:
        """Lays strokes, coarse ones everywhere and fine ones on things, in the colour under each stroke's middle."""
        ground = canvas.rgb.copy()
        _lay_strokes(canvas, ground, spacing=9, length=22, width=10, seed=1, where=~canvas.is_thing)
        _lay_strokes(canvas, ground, spacing=6, length=12, width=4, seed=2, where=~canvas.is_thing)
        _lay_strokes(canvas, ground, spacing=4, length=7, width=4, seed=3, where=canvas.is_thing)
        _lay_strokes(canvas, ground, spacing=2, length=4, width=2, seed=4, where=canvas.is_thing)
        weave = canvas.noise(2, 4, 5) * canvas.noise(4, 2, 6)
        canvas.rgb += weave * np.float32(0.035)


def _lay_strokes(
    canvas: Canvas, ground: Field, spacing: int, length: int, width: int, seed: int, where: NDArray[np.bool_]
) -> None:
    """Strokes on a jittered grid in a shuffled order, along the canvas's flow; `length` and `width` in pixels."""
    cells = SIDE // spacing + 1
    row, column = np.divmod(np.arange(cells * cells), cells)
    shuffled = np.argsort(hash_cells(column, row, seed), kind="stable")
    row, column = row[shuffled], column[shuffled]
    y = np.clip((row + hash_cells(column, row, seed + 10)) * spacing, 0, SIDE - 1).astype(np.int64)
    x = np.clip((column + hash_cells(column, row, seed + 20)) * spacing, 0, SIDE - 1).astype(np.int64)
    kept = where[y, x]
    y, x, row, column = y[kept], x[kept], row[kept], column[kept]
    along, across = _measure_stroke(length, width)
    run_x, run_y = canvas.flow[0, y, x], canvas.flow[1, y, x]
    scale = 1 / np.sqrt(run_x * run_x + run_y * run_y + np.float32(1e-6))
    run_x, run_y = (run_x * scale)[:, None], (run_y * scale)[:, None]
    middle = np.float32(0.5)
    to_y = np.clip(along * run_y + across * run_x + (y[:, None].astype(np.float32) + middle), 0, SIDE - 1)
    to_x = np.clip(along * run_x - across * run_y + (x[:, None].astype(np.float32) + middle), 0, SIDE - 1)
    place = to_y.astype(np.int32) * SIDE + to_x.astype(np.int32)
    bristle = np.floor(across * 2).astype(np.int32) + _BRISTLES // 2
    owner = np.full(SIDE * SIDE, -1, dtype=np.int32)
    owner[place] = np.arange(len(y), dtype=np.int32)[:, None] * _BRISTLES + bristle
    _colour_strokes(canvas, ground[:, y, x], row * cells + column, owner)


_BRISTLES = 64


def _colour_strokes(canvas: Canvas, colours: Field, names: Cells, owner: NDArray[np.int32]) -> None:
    """Paints each pixel that a bristle of a stroke owns; strokes differ a little in tone, and so do their bristles."""
    painted = np.flatnonzero(owner >= 0)
    stroke, bristle = np.divmod(owner[painted].astype(np.int64), _BRISTLES)
    streaks = (hash_cells(bristle, names[stroke], 31) - np.float32(0.5)) * np.float32(0.07)
    tones = (hash_cells(names, names, 32) - np.float32(0.5)) * np.float32(0.09)
    tone = tones[stroke] + streaks
    for plane, colour in zip(canvas.rgb.reshape(3, -1), colours, strict=True):
        plane[painted] = colour[stroke] + tone


@lru_cache(maxsize=8)
def _measure_stroke(length: int, width: int) -> tuple[Field, Field]:
    """The points of one stroke, along and across it, (1, n_points) each; its ends are round."""
    step = np.float32(0.75)
    reach = np.arange(-length, length + 1, dtype=np.float32) * step
    t, s = np.meshgrid(reach[np.abs(reach) * 2 <= length], reach[np.abs(reach) * 2 <= width])
    past_end = np.maximum(np.abs(t) - np.float32((length - width) / 2), 0)
    is_inside = past_end * past_end + s * s <= np.float32(width * width / 4)
    return t[is_inside][None], s[is_inside][None]


DOMAINS: dict[str, Domain] = {
    "natural": Natural(),
    "sketch": Sketch(),
    "cartoon": Cartoon(),
    "painting": Painting(),
    "night": Night(),
}
