"""Blur of optics and motion."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

_DEFOCUS_RADIUS_PX_AND_EDGE_SIGMA = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))


def defocus_blur(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image convolved with a disk, as a lens out of focus would; borders are mirrored; `rng` is not used.

    Filtered in float64 because the result is truncated: in float32, flat areas would fall one level here and there.
    OpenCV sums in another order on processors without AVX2; a value in half a million may then differ by one level.

    Source: arXiv 1903.12261, section 3; bytes as imagecorruptions 1.1.2.
    """
    radius, edge_sigma = _DEFOCUS_RADIUS_PX_AND_EDGE_SIGMA[severity - 1]
    blurred = cv2.filter2D(pixels / 255.0, -1, _disk(radius, edge_sigma))
    np.clip(blurred, 0, 1, out=blurred)
    blurred *= 255
    return blurred.astype(np.uint8)


def _disk(radius: int, edge_sigma: float) -> Float32[np.ndarray, "side side"]:
    """A disk with softened edge; up to radius 8 on 17 x 17, where the softening mirrors at the border.

    At radius 8 and above it therefore sums to 1.01, not 1: kept, for parity.
    """
    reach, softening = (8, 3) if radius <= 8 else (radius, 5)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.float32)
    disk /= disk.sum()
    softened: np.ndarray = cv2.GaussianBlur(disk, (softening, softening), edge_sigma)
    return softened
