"""The `imagecorruptions` package as an oracle, with stand-ins for what NumPy 2, scikit-image and setuptools dropped."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import skimage


def load_imagecorruptions() -> ModuleType:
    """The package, working; its `corruptions` module holds one function per corruption.

    The stand-ins belong to that module alone: `np.float_`, `gaussian(multichannel=)`, `pkg_resources`, and a
    `random_noise` that obeys `np.random.seed`, from which it draws a seed of its own.
    """
    stand_in = ModuleType("pkg_resources")
    stand_in.resource_filename = _resource_filename  # type: ignore[attr-defined]
    real = sys.modules.get("pkg_resources")
    sys.modules["pkg_resources"] = stand_in
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            package = importlib.import_module("imagecorruptions")
    finally:
        sys.modules.pop("pkg_resources")
        if real is not None:
            sys.modules["pkg_resources"] = real
    corruptions = package.corruptions
    corruptions.np = _Overlay(np, float_=np.float64)
    corruptions.gaussian = _gaussian
    corruptions.sk = _Overlay(skimage, util=_Overlay(skimage.util, random_noise=_random_noise))
    return package


class _Overlay:
    """A module with some names replaced, for one reader."""

    def __init__(self, module: ModuleType, **names: Any) -> None:
        self._module = module
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _resource_filename(package: str, path: str) -> str:
    spec = importlib.util.find_spec(package.partition(".")[0])
    assert spec is not None
    assert spec.submodule_search_locations
    return str(Path(spec.submodule_search_locations[0], path))


def _gaussian(image: np.ndarray, sigma: float, multichannel: bool = False, **options: Any) -> np.ndarray:
    return skimage.filters.gaussian(image, sigma, channel_axis=-1 if multichannel else None, **options)


def _random_noise(image: np.ndarray, mode: str, amount: float) -> np.ndarray:
    rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002
    return skimage.util.random_noise(image, mode=mode, amount=amount, rng=rng)


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
