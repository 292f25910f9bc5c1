"""The picture under work, and the few ways in which every domain puts colour on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.data.scenes.graph import Thing
from bench.data.scenes.noise import Field, tile_noise

SIDE = 256
Colour = tuple[float, float, float]
Box = tuple[slice, slice]
WHOLE: Box = (slice(0, SIDE), slice(0, SIDE))


@dataclass(frozen=True)
class Placed:
    """A thing's place on the canvas.

    Args:
        thing: what it is.
        x, y: its middle, in pixels.
        radius: half its extent, in pixels.
        lean: sine of the angle by which it leans.
        is_mirrored: whether left and right are swapped.
        ground: height on the canvas of the ground beneath it, in pixels.
        rests_on_thing: whether its shadow falls on another thing rather than the ground.
    """

    thing: Thing
    x: float
    y: float
    radius: float
    lean: float
    is_mirrored: bool
    ground: float
    rests_on_thing: bool = False

    @property
    def box(self) -> Box:
        """The rows and columns that it may touch."""
        reach = self.radius * 1.12 + 5
        rows = slice(max(int(self.y - reach), 0), min(int(self.y + reach) + 1, SIDE))
        return rows, slice(max(int(self.x - reach), 0), min(int(self.x + reach) + 1, SIDE))


class Canvas:
    """Colour planes, and for the painter how strokes run.

    Args:
        shift: offset of all noise, so that two scenes do not share their texture.
    """

    def __init__(self, shift: tuple[int, int]) -> None:
        self.rgb = np.zeros((3, SIDE, SIDE), dtype=np.float32)
        self.flow = np.zeros((2, SIDE, SIDE), dtype=np.float32)
        self.flow[0] = 1
        self.is_thing = np.zeros((SIDE, SIDE), dtype=bool)
        self._shift = shift

    def noise(self, cell_x: int, cell_y: int, seed: int, box: Box = WHOLE) -> Field:
        """A window of a smooth random texture in [-1, 1]."""
        rows, columns = box
        x, y = self._shift
        tile = tile_noise(cell_x, cell_y, seed)
        return tile[rows.start + y : rows.stop + y, columns.start + x : columns.stop + x]

    def blend(self, box: Box, colour: Field | Colour, opacity: Field) -> None:
        """Lays `colour`, (3, h, w) or one colour, over a box with the given opacity, (h, w)."""
        for plane, value in zip(self.rgb, colour, strict=True):
            patch = plane[box]
            target = value if isinstance(value, np.ndarray) else np.float32(value)
            patch += (target - patch) * opacity

    def to_bytes(self) -> NDArray[np.uint8]:
        """The picture, (256, 256, 3) uint8."""
        levels = np.clip(self.rgb, 0, 1) * np.float32(255) + np.float32(0.5)
        return np.ascontiguousarray(levels.astype(np.uint8).transpose(1, 2, 0))


def measure_grid(box: Box) -> tuple[Field, Field]:
    """The x and y of each pixel's middle in a box, (1, w) and (h, 1) float32."""
    rows, columns = box
    x = np.arange(columns.start, columns.stop, dtype=np.float32) + np.float32(0.5)
    y = np.arange(rows.start, rows.stop, dtype=np.float32) + np.float32(0.5)
    return x[None, :], y[:, None]


def cover(distance_px: Field) -> Field:
    """How much of each pixel lies inside an outline at a signed distance in pixels."""
    return np.clip(np.float32(0.5) - distance_px, 0, 1)
