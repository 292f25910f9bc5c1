"""What shifts do to one image or one caption, to look at."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from bench.data.images import MAX_IMAGE_BYTES, decode_image
from bench.errors import InputError, UsageError
from bench.records import read_plain
from bench.store import write_atomic
from shifts.canvas import canonical_canvas
from shifts.catalogue import Shift, apply_shift

TILE_PX = 176
_GAP_PX = 6
_LABEL_PX = 16
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}


def read_canvas(path: Path) -> np.ndarray:
    """The image file on the canonical canvas, (height, width, 3) uint8.

    Raises:
        InputError: it cannot be read.
    """
    try:
        data = read_plain(path, MAX_IMAGE_BYTES)
    except OSError as error:
        raise InputError(f"image {path} cannot be read: {error.strerror}.") from None
    return np.asarray(canonical_canvas(decode_image(data, str(path))))


def draw_sheet(shifts: Sequence[Shift], pixels: np.ndarray, partner: np.ndarray | None, seed: int) -> PIL.Image.Image:
    """One row per shift: the image as it is, then every severity, each under its id.

    Args:
        shifts: of images, or of the gallery where a partner is given.
        pixels: a canvas, (height, width, 3) uint8.
        partner: what gallery shifts blend in, any size.
    """
    rows = [[("original", pixels), *_severities(shift, pixels, partner, seed)] for shift in shifts]
    height, width = pixels.shape[:2]
    scale = TILE_PX / max(height, width)
    tile = (max(1, round(width * scale)), max(1, round(height * scale)))
    font = PIL.ImageFont.load_default(11)
    widest = max(math.ceil(font.getlength(label)) for row in rows for label, _ in row)
    step = (max(tile[0], widest) + _GAP_PX, tile[1] + _LABEL_PX + _GAP_PX)
    columns = max(len(row) for row in rows)
    sheet = PIL.Image.new("RGB", (columns * step[0] + _GAP_PX, len(rows) * step[1] + _GAP_PX), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for row, tiles in enumerate(rows):
        for column, (label, image) in enumerate(tiles):
            left, top = _GAP_PX + column * step[0], _GAP_PX + row * step[1]
            draw.text((left, top), label, "black", font)
            small = PIL.Image.fromarray(image).resize(tile, PIL.Image.Resampling.LANCZOS)
            sheet.paste(small, (left, top + _LABEL_PX))
    return sheet


def write_sheet(sheet: PIL.Image.Image, output: Path) -> None:
    """The sheet as a file, in the format that its name says.

    Raises:
        UsageError: the name says none of PNG, JPEG and WebP.
    """
    if output.suffix.lower() not in _FORMATS:
        raise UsageError(f"--output got '{output}'; expected a name that ends in {', '.join(_FORMATS)}.")
    buffer = io.BytesIO()
    sheet.save(buffer, _FORMATS[output.suffix.lower()], quality=82)
    write_atomic(output, buffer.getvalue())


def list_rewordings(shifts: Sequence[Shift], caption: str, seed: int) -> list[tuple[str, str]]:
    """The caption under every severity of text shifts: (id, caption)."""
    return [
        (shift.id(severity), apply_shift(shift, severity, caption, "preview", seed))
        for shift in shifts
        for severity in shift.severities
    ]


def _severities(
    shift: Shift, pixels: np.ndarray, partner: np.ndarray | None, seed: int
) -> list[tuple[str, np.ndarray]]:
    item = (pixels, partner) if shift.modality == "gallery_image" else pixels
    return [(shift.id(severity), apply_shift(shift, severity, item, "preview", seed)) for severity in shift.severities]
