"""What things are made of: colours, patterns, wood's grain, and how light falls on rubber, metal, glass and wood."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.data.scenes.canvas import SIDE, Box, Canvas, Colour
from bench.data.scenes.graph import Thing
from bench.data.scenes.noise import Field
from bench.data.scenes.shapes import Part, smoothstep

PALETTE: dict[str, Colour] = {
    "red": (0.86, 0.13, 0.14),
    "orange": (0.97, 0.50, 0.08),
    "yellow": (0.98, 0.84, 0.14),
    "green": (0.16, 0.62, 0.22),
    "teal": (0.05, 0.66, 0.66),
    "blue": (0.14, 0.33, 0.86),
    "purple": (0.50, 0.20, 0.74),
    "pink": (0.98, 0.50, 0.70),
    "brown": (0.45, 0.26, 0.13),
    "white": (0.95, 0.95, 0.94),
}
_LIGHT = (-0.48, -0.62, 0.62)
_HALFWAY = (-0.267, -0.344, 0.9)


@dataclass(frozen=True)
class Patch:
    """One part of a thing as it lies on the canvas.

    Args:
        part: outline and normals.
        box: rows and columns of the canvas.
        u, v: the thing's own coordinates.
        radius: pixels per unit of them.
        thing: what it belongs to.
    """

    part: Part
    box: Box
    u: Field
    v: Field
    radius: float
    thing: Thing


@dataclass(frozen=True)
class Lamp:
    """How bright each light of a domain is: from all sides, from the upper left, and from behind at the right."""

    ambient: Colour
    key: Colour
    rim: Colour


DAYLIGHT = Lamp((0.50, 0.52, 0.56), (0.60, 0.57, 0.52), (0.0, 0.0, 0.0))


def tint(thing: Thing, part: Part) -> Colour:
    """The colour of a part before light, pattern and grain."""
    if isinstance(part.paint, tuple):
        return part.paint
    own, scale = PALETTE[thing.colour], part.paint
    if scale <= 1:
        return (own[0] * scale, own[1] * scale, own[2] * scale)
    blend = 1.6 * (scale - 1)
    return (own[0] + (1 - own[0]) * blend, own[1] + (1 - own[1]) * blend, own[2] + (1 - own[2]) * blend)


def measure_light(part: Part) -> Field:
    """How much a part faces the light in the upper left, -1 to 1."""
    return _dot(part, _LIGHT)


def _dot(part: Part, direction: tuple[float, float, float]) -> Field:
    x, y, z = (np.float32(value) for value in direction)
    return part.nx * x + part.ny * y + part.nz * z


def measure_gloss(part: Part) -> Field:
    """A sharp highlight, 0 to 1."""
    gloss = np.clip(_dot(part, _HALFWAY), 0, 1)
    for _ in range(5):
        gloss = gloss * gloss
    return gloss


def paint_albedo(canvas: Canvas, patch: Patch) -> Field:
    """The part's colour with its pattern and wood's grain but no light, (3, h, w) float32."""
    base = tint(patch.thing, patch.part)
    albedo = np.empty((3, *patch.u.shape), dtype=np.float32)
    for plane, value in zip(albedo, base, strict=True):
        plane[:] = np.float32(value)
    if patch.part.is_own_colour and patch.thing.pattern != "plain":
        mask = draw_pattern(patch)
        for plane, value in zip(albedo, _contrast(base), strict=True):
            plane += (np.float32(value) - plane) * mask
    if patch.thing.material == "wooden":
        _add_grain(canvas, patch, albedo)
    return albedo


def _contrast(base: Colour) -> Colour:
    is_light = 0.3 * base[0] + 0.59 * base[1] + 0.11 * base[2] > 0.56
    return (0.14, 0.15, 0.26) if is_light else (0.98, 0.95, 0.86)


def _triangle(x: Field) -> Field:
    """A wave between -1 and 1 of period 1."""
    return np.abs(x - np.floor(x) - np.float32(0.5)) * 4 - 1


def draw_pattern(patch: Patch) -> Field:
    """Where the pattern's second colour lies, 0 to 1."""
    u, v = patch.u, patch.v
    if patch.thing.pattern == "striped":
        wave, period = _triangle(u * np.float32(2.1) + v * np.float32(0.5)), 0.46
    elif patch.thing.pattern == "zigzag":
        wave, period = _triangle(v * np.float32(1.9) + _triangle(u * np.float32(1.6)) * np.float32(0.22)), 0.5
    elif patch.thing.pattern == "ringed":
        wave, period = _triangle(np.sqrt(u * u + v * v) * np.float32(2.3)), 0.43
    elif patch.thing.pattern == "checked":
        wave, period = _triangle(u * np.float32(1.5)) * _triangle(v * np.float32(1.5) + np.float32(0.25)), 0.5
    else:
        row = np.floor(v * np.float32(2.6))
        across = u * np.float32(2.3) + row * np.float32(0.5)
        x, y = across - np.floor(across) - np.float32(0.5), v * np.float32(2.6) - row - np.float32(0.5)
        wave, period = np.float32(1.0) - np.sqrt(x * x + y * y) * np.float32(3.3), 0.5
    return np.clip(np.float32(0.5) + wave * np.float32(patch.radius * period / 4), 0, 1)


def draw_grain(canvas: Canvas, patch: Patch) -> Field:
    """How dark wood's rings are, 0 to 1."""
    bend = canvas.noise(32, 16, 91, patch.box) * np.float32(0.55) + canvas.noise(64, 64, 92, patch.box)
    rings = _triangle(patch.v * np.float32(3.1) + patch.u * np.float32(0.45) + bend * np.float32(0.8))
    return smoothstep(0.1, 0.9, rings)


def _add_grain(canvas: Canvas, patch: Patch, albedo: Field) -> None:
    fibre = canvas.noise(32, 2, 93, patch.box) * np.float32(0.07)
    shade = (
        np.float32(1.06)
        + fibre
        - draw_grain(canvas, patch) * np.float32(0.42 if patch.thing.pattern == "plain" else 0.2)
    )
    for plane, timber in zip(albedo, (0.72, 0.50, 0.30), strict=True):
        plane += (np.float32(timber) - plane) * np.float32(0.16)
        plane *= shade


def light_part(canvas: Canvas, patch: Patch, lamp: Lamp) -> Field:
    """The part's colour under `lamp`, (3, h, w) float32."""
    albedo = paint_albedo(canvas, patch)
    if patch.thing.material == "metal":
        lit = _light_metal(patch, albedo, lamp)
    elif patch.thing.material == "glass":
        lit = _light_glass(canvas, patch, albedo, lamp)
    else:
        lit = _light_matte(patch, albedo, lamp)
    rim = _measure_rim(patch.part)
    for plane, value in zip(lit, lamp.rim, strict=True):
        plane += rim * np.float32(value)
    return lit


def _measure_rim(part: Part) -> Field:
    facing = np.clip(_dot(part, (0.90, -0.1, -0.12)), 0, 1)
    return facing * facing


def _light_matte(patch: Patch, albedo: Field, lamp: Lamp) -> Field:
    wrapped = np.clip(measure_light(patch.part) * np.float32(0.62) + np.float32(0.38), 0, 1)
    bounce = np.clip(patch.part.ny, 0, 1) * np.float32(0.10)
    sheen = np.clip(_dot(patch.part, _HALFWAY), 0, 1)
    sheen = sheen * sheen * sheen * sheen
    sheen = sheen * sheen * np.float32(0.16 if patch.thing.material == "rubber" else 0.05)
    for plane, ambient, key in zip(albedo, lamp.ambient, lamp.key, strict=True):
        plane *= np.float32(ambient) - bounce + wrapped * np.float32(key)
        plane += sheen * np.float32(key)
    return albedo


def _light_metal(patch: Patch, albedo: Field, lamp: Lamp) -> Field:
    """A mirror of a bright sky above a dark horizon and a paler ground."""
    part = patch.part
    height = 2 * part.nz * part.ny + part.nx * np.float32(0.35) + (patch.u + patch.v) * np.float32(0.22)
    sky = np.float32(0.78) + smoothstep(-0.05, -1.0, height) * np.float32(0.5)
    ground = np.float32(0.22) + smoothstep(0.05, 0.95, height) * np.float32(0.55)
    mirror = sky + (ground - sky) * smoothstep(-0.06, 0.10, height)
    glint = smoothstep(-0.50, -0.58, height) * smoothstep(-0.80, -0.70, height) * np.float32(0.38) + measure_gloss(part)
    for plane, ambient, key in zip(albedo, lamp.ambient, lamp.key, strict=True):
        plane *= mirror * np.float32(0.95 * (ambient + key) / 1.1)
        plane += glint * np.float32(key + 0.15)
    return albedo


def _light_glass(canvas: Canvas, patch: Patch, albedo: Field, lamp: Lamp) -> Field:
    """What lies behind, bent and tinted, with a bright rim and sharp reflections."""
    part = patch.part
    behind = _refract(canvas, patch)
    rim = (1 - part.nz) * (1 - part.nz)
    caustic = np.clip(_dot(part, (0.5, 0.62, 0.45)), 0, 1)
    caustic = caustic * caustic * caustic
    gloss = measure_gloss(part)
    edge = smoothstep(-0.09, 0.0, part.distance) * np.float32(0.16)
    streak = (
        smoothstep(0.55, 0.75, measure_light(part)) * smoothstep(0.99, 0.85, measure_light(part)) * np.float32(0.22)
    )
    for plane, see, ambient, key in zip(albedo, behind, lamp.ambient, lamp.key, strict=True):
        power = np.float32(ambient + key * 0.6)
        tinted = see * (plane * np.float32(0.72) + np.float32(0.26))
        body = plane * power * np.float32(0.92)
        glow = (caustic * np.float32(0.34) + np.float32(0.05)) * power
        plane[:] = tinted + (body - tinted) * (np.float32(0.44) + rim * np.float32(0.3)) + plane * glow
        plane += (gloss + streak + edge + rim * np.float32(0.22)) * np.float32(key + 0.25)
    return albedo


def _refract(canvas: Canvas, patch: Patch) -> Field:
    rows, columns = patch.box
    reach = np.float32(patch.radius * 0.55)
    y = np.arange(rows.start, rows.stop)[:, None] - np.floor(patch.part.ny * reach).astype(np.int64)
    x = np.arange(columns.start, columns.stop)[None, :] - np.floor(patch.part.nx * reach).astype(np.int64)
    return canvas.rgb.reshape(3, -1)[:, np.clip(y, 0, SIDE - 1) * SIDE + np.clip(x, 0, SIDE - 1)]
