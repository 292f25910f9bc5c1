"""Smooth random textures from an integer hash: the same bytes on every machine."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

TILE = 512


def hash_cells(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, 1) for each integer cell, float32."""
    h = x.astype(np.uint32) * np.uint32(374761393) + y.astype(np.uint32) * np.uint32(668265263)
    h = h + np.uint32(seed * 2246822519 % 2**32)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(1274126177)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(2654435769)
    return ((h ^ (h >> np.uint32(15))) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


@lru_cache(maxsize=64)
def tile_noise(cell_x: int, cell_y: int, seed: int) -> np.ndarray:
    """A seamless texture of `TILE` x `TILE` in [-1, 1] whose features are `cell_x` wide and `cell_y` high, float32."""
    ix, fx = _split_axis(cell_x)
    iy, fy = _split_axis(cell_y)
    columns, rows = TILE // cell_x, TILE // cell_y
    ix0, iy0 = np.meshgrid(ix, iy)
    ix1, iy1 = np.meshgrid((ix + 1) % columns, (iy + 1) % rows)
    upper = hash_cells(ix0, iy0, seed) * (1 - fx) + hash_cells(ix1, iy0, seed) * fx
    lower = hash_cells(ix0, iy1, seed) * (1 - fx) + hash_cells(ix1, iy1, seed) * fx
    noise = (upper * (1 - fy[:, None]) + lower * fy[:, None]) * 2 - 1
    noise = noise.astype(np.float32)
    noise.setflags(write=False)
    return noise


def _split_axis(cell: int) -> tuple[np.ndarray, np.ndarray]:
    place = np.arange(TILE, dtype=np.int64)
    t = ((place % cell).astype(np.float32) + np.float32(0.5)) * np.float32(1 / cell)
    return place // cell, t * t * (3 - 2 * t)
