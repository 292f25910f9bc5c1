"""What a picture is drawn on: grain and stains of the paper, a hash of the coordinates and no choice of a shift."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image


def paper_grain(height: int, width: int, sheet: int = 0) -> Int32[np.ndarray, "height width"]:
    """White noise in [-2^15, 2^15); each `sheet` has its own."""
    y, x = np.indices((height, width), dtype=np.uint32, sparse=True)
    mixed = x * np.uint32(374761393) + y * np.uint32(668265263) + np.uint32(sheet * 1442695041 % 2**32)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(1274126177)
    mixed ^= mixed >> np.uint32(16)
    grain: np.ndarray = (mixed & np.uint32(0xFFFF)).astype(np.int32) - 2**15
    return grain


def stains(height: int, width: int, cell_px: float, sheet: int) -> UInt8[np.ndarray, "height width"]:
    """Smooth noise in [0, 255] with blots about `cell_px` wide: coarse grain, enlarged."""
    rows, columns = (max(2, round(side / cell_px) + 1) for side in (height, width))
    coarse = (paper_grain(rows, columns, sheet) + 2**15 >> 8).astype(np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
