"""The `imagecorruptions` package as an oracle: it imports pkg_resources, which setuptools no longer has."""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType

import numpy as np


def load_imagecorruptions() -> ModuleType:
    """The package, imported with a stand-in for pkg_resources (only its frost needs the real one)."""
    stand_in = ModuleType("pkg_resources")
    stand_in.resource_filename = lambda package, path: path  # type: ignore[attr-defined]
    real = sys.modules.get("pkg_resources")
    sys.modules["pkg_resources"] = stand_in
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module("imagecorruptions")
    finally:
        sys.modules.pop("pkg_resources")
        if real is not None:
            sys.modules["pkg_resources"] = real


def synthetic_photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Sky, ground, boxes and grain, (height, width, 3) uint8: edges, flat areas and texture as a photo has them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    photo = np.stack([90 + 110 * y / height, 120 + 60 * x / width, 200 - 120 * y / height], axis=-1)
    for colour in rng.uniform(0, 255, (12, 3)):
        top, left = rng.integers(0, height), rng.integers(0, width)
        photo[top : top + height // 4 + 1, left : left + width // 5 + 1] = colour
    photo += rng.normal(0, 6, photo.shape) * (y > height / 2)[..., np.newaxis]
    return np.clip(photo, 0, 255).astype(np.uint8)
