"""What an attack may change: its results are brought back inside the budget here, whatever the author's code did.

Pixels have three forms: whole levels (uint8, channels last) are what is stored and scored, the float form (channels
first, 1 = level 255) is what attacks compute with, and an eps counts levels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from bench.errors import InputError
from shifts.text.meaning import edit_distance

Levels = UInt8[np.ndarray, "batch height width 3"]
Pixels = Float[Tensor, "batch 3 height width"]
EditUnit = Literal["characters", "words"]


def to_pixels(levels: Levels) -> Pixels:
    """Whole levels as float32 in [0, 1], on the processor."""
    return torch.from_numpy(levels).permute(0, 3, 1, 2).contiguous().float() / 255


def to_levels(pixels: Pixels) -> Levels:
    """The nearest whole levels of finite pixels; exact for what came from `to_pixels`."""
    rounded = (pixels.detach() * 255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(rounded.permute(0, 2, 3, 1).cpu().numpy())


def clip_pixels(attacked: Pixels, original: Levels, eps: int) -> Pixels:
    """The result of an attack, at most `eps` levels from the original and in [0, 1], not rounded; on the processor.

    Args:
        attacked: anything of that shape; a value that is not finite becomes the original's.

    Raises:
        InputError: the shape is another.
    """
    start = to_pixels(original)
    if attacked.shape != start.shape:
        raise InputError(
            f"an attack returned {tuple(attacked.shape)} for images {tuple(start.shape)}; expected as many."
        )
    moved = attacked.detach().to(start)
    moved = torch.where(moved.isfinite(), moved, start)
    return moved.clamp(start - eps / 255, start + eps / 255).clamp(0, 1)


def enforce_pixels(attacked: Pixels, original: Levels, eps: int) -> Levels:
    """The result of an attack in whole levels, at most `eps` from the original: what is scored; see `clip_pixels`."""
    rounded = to_levels(clip_pixels(attacked, original, eps)).astype(np.int16)
    return np.clip(rounded, original.astype(np.int16) - eps, original.astype(np.int16) + eps).astype(np.uint8)


def find_broken(attacked: Pixels) -> Bool[np.ndarray, " batch"]:
    """The images in which an attack left a value that is not finite: to be reported, since it fell back there."""
    return ~attacked.detach().isfinite().flatten(1).all(dim=1).cpu().numpy()


def largest_change(a: Levels, b: Levels) -> int:
    """The greatest difference of two values in the same place, in levels."""
    return int(np.abs(a.astype(np.int16) - b).max(initial=0))


def enforce_text(attacked: str, original: str, budget: int, unit: EditUnit) -> str:
    """The attacked string, or the original if it was edited more than `budget` times or is no text.

    No text is what is not a string, contains NUL, or cannot be encoded (a lone surrogate).
    """
    return attacked if _is_text(attacked) and count_edits(attacked, original, unit) <= budget else original


def count_edits(a: str, b: str, unit: EditUnit) -> int:
    """The Levenshtein distance in code points, or in words, which are what stands between white space."""
    if unit == "characters":
        return edit_distance(a, b)
    letters: dict[str, str] = {}  # a character for each word, so that words can be compared as characters are

    def spell(text: str) -> str:
        return "".join(letters.setdefault(word, chr(len(letters))) for word in text.split())

    return edit_distance(spell(a), spell(b))


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
