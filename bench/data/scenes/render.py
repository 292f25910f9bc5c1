"""From a scene graph to pixels: where everything stands, then drawing it back to front in a domain's manner."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bench.data.scenes.backdrops import BACKDROPS
from bench.data.scenes.canvas import SIDE, Canvas, Placed, measure_grid
from bench.data.scenes.domains import DOMAINS
from bench.data.scenes.graph import Scene, Thing, open_stream
from bench.data.scenes.shapes import SHAPES
from bench.data.scenes.surfaces import Patch

RADII = {"small": 0.11 * SIDE, "large": 0.18 * SIDE}
_ROOM = SIDE - 20.0
_CLOSE_UP = 1.6


def render_scene(scene: Scene, look: tuple[str, str, int], domain: str) -> NDArray[np.uint8]:
    """The picture of `scene`, (256, 256, 3) uint8.

    Args:
        scene: what to draw.
        look: family, split and number of the random stream that poses things and shapes the landscape.
        domain: one of `DOMAINS`.
    """
    brush = DOMAINS[domain]
    rng = open_stream(*look, "look")
    placed = place_things(scene, rng)
    canvas = Canvas((int(rng.integers(SIDE)), int(rng.integers(SIDE))))
    BACKDROPS[scene.background](canvas, brush, rng)
    for thing in placed:
        brush.shadow(canvas, thing)
        brush.thing(canvas, _cut_patches(thing))
    brush.finish(canvas)
    return canvas.to_bytes()


def place_things(scene: Scene, rng: np.random.Generator) -> list[Placed]:
    """Where each thing of `scene` stands, in the order in which to draw them: back to front."""
    baseline = 216.0 + 12.0 * float(rng.random())
    slack = float(rng.random())
    side = 1.0 if rng.random() < 0.5 else -1.0
    poses = [(float(rng.random()) * 2 - 1, bool(rng.random() < 0.5)) for _ in range(3)]
    columns = [_stack([scene.things[i] for i in members], scene.stacking, side, poses) for members in scene.columns]
    spans = [_measure_span(column) for column in columns]
    gap = 8.0 if len(columns) > 1 else 0.0
    width = sum(right - left for left, right in spans) + gap * (len(columns) - 1)
    scale = min(_CLOSE_UP if len(scene.things) == 1 else 1.0, _ROOM / width)
    free = SIDE - scale * width - 16.0
    spread = free * (0.25 + 0.35 * slack) / max(len(columns) - 1, 1) if len(columns) > 1 else 0.0
    x = 8.0 + (free - spread * (len(columns) - 1)) * (0.3 + 0.4 * slack)
    placed: list[Placed] = []
    for column, (left, right) in zip(columns, spans, strict=True):
        placed += [_anchor(thing, scale, x - left * scale, baseline) for thing in column]
        x += (right - left + gap) * scale + spread
    return placed


def _anchor(thing: Placed, scale: float, x: float, baseline: float) -> Placed:
    """A column's thing, whose origin is its foot, moved onto the canvas."""
    return replace(
        thing,
        x=x + thing.x * scale,
        y=baseline + thing.y * scale,
        radius=thing.radius * scale,
        ground=baseline + thing.ground * scale,
    )


def _measure_span(column: list[Placed]) -> tuple[float, float]:
    return min(p.x - p.radius for p in column), max(p.x + p.radius for p in column)


def _stack(things: list[Thing], stacking: str, side: float, poses: list[tuple[float, bool]]) -> list[Placed]:
    """A column's things around the point (0, 0) on the ground, back to front."""
    lower = _stand(things[-1], poses)
    if len(things) == 1:
        return [lower]
    upper = _stand(things[0], poses)
    if stacking == "in front of":
        overlap = 0.75 * min(upper.radius, lower.radius)
        rise = upper.radius + lower.radius - overlap
        shift = side * 0.45 * upper.radius
        y = upper.y - rise
        ground = y + SHAPES[lower.thing.kind].bottom * lower.radius
        return [replace(lower, x=shift, y=y, ground=ground), upper]
    top = lower.y + SHAPES[lower.thing.kind].top * lower.radius
    if stacking == "on top of":
        sits = top + 0.05 * lower.radius
        y = sits - SHAPES[upper.thing.kind].bottom * upper.radius
        return [lower, replace(upper, y=y, lean=0.0, ground=sits, rests_on_thing=True)]
    free = 205.0 - 2 * lower.radius - 2 * upper.radius
    gap = 0.22 * SIDE * 0.5 + max(min(0.4 * (free - 28.0), 24.0), -12.0)
    return [lower, replace(upper, y=lower.y - lower.radius - gap - upper.radius, ground=0.0)]


def _stand(thing: Thing, poses: list[tuple[float, bool]]) -> Placed:
    lean, is_mirrored = poses[thing.pose]
    radius = RADII[thing.size]
    bottom = SHAPES[thing.kind].bottom
    return Placed(thing, 0.0, -bottom * radius, radius, 0.1 * lean, is_mirrored, 0.0)


def _cut_patches(placed: Placed) -> list[Patch]:
    """A thing's parts where it stands, mirrored and leaning about its foot."""
    box = placed.box
    x, y = measure_grid(box)
    across, down = (
        (x - np.float32(placed.x)) * np.float32(1 / placed.radius),
        (y - np.float32(placed.y)) * np.float32(1 / placed.radius),
    )
    bottom = SHAPES[placed.thing.kind].bottom
    cosine, sine = np.float32(math.sqrt(1 - placed.lean * placed.lean)), np.float32(placed.lean)
    below = down - np.float32(bottom)
    u, v = across * cosine + below * sine, below * cosine - across * sine + np.float32(bottom)
    turn = np.float32(-1 if placed.is_mirrored else 1)
    parts = SHAPES[placed.thing.kind].draw(u * turn, v)
    if placed.is_mirrored:
        parts = [replace(part, nx=-part.nx) for part in parts]
    return [Patch(part, box, u * turn, v, placed.radius, placed.thing) for part in parts]
