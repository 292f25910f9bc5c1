"""Smooth random textures from an integer hash: the same bytes on every machine."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Cells = NDArray[np.int64]

TILE = 512


def hash_cells(x: Cells, y: Cells, seed: int) -> Field:
    """A number in [0, 1) for each integer cell, float32."""
    h = x.astype(np.uint32) * np.uint32(374761393) + y.astype(np.uint32) * np.uint32(668265263)
    h = h + np.uint32(seed * 2246822519 % 2**32)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(1274126177)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(2654435769)
    return ((h ^ (h >> np.uint32(15))) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


@lru_cache(maxsize=64)
def tile_noise(cell_x: int, cell_y: int, seed: int) -> Field:
    """A seamless texture of `TILE` x `TILE` in [-1, 1] whose features are `cell_x` wide and `cell_y` high, float32."""
    ix, fx = _split_axis(cell_x)
    iy, fy = _split_axis(cell_y)
    columns, rows = TILE // cell_x, TILE // cell_y
    ix0, iy0 = np.meshgrid(ix, iy)
    ix1, iy1 = np.meshgrid((ix + 1) % columns, (iy + 1) % rows)
    upper = hash_cells(ix0, iy0, seed) * (1 - fx) + hash_cells(ix1, iy0, seed) * fx
    lower = hash_cells(ix0, iy1, seed) * (1 - fx) + hash_cells(ix1, iy1, seed) * fx
    noise: Field = ((upper * (1 - fy[:, None]) + lower * fy[:, None]) * 2 - 1).astype(np.float32)
    noise.setflags(write=False)
    return noise


def _split_axis(cell: int) -> tuple[Cells, Field]:
    place = np.arange(TILE, dtype=np.int64)
    t = ((place % cell).astype(np.float32) + np.float32(0.5)) * np.float32(1 / cell)
    smooth: Field = (t * t * (3 - 2 * t)).astype(np.float32)
    return place // cell, smooth
