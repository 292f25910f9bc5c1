"""Encoded images that are read and decoded only when asked, within an allow-list of formats and a pixel limit.

JPEG, PNG, WebP, BMP and GIF (first frame) are read; TIFF and the rest are not, because no captioned data set needs them
and their decoders are large. Colours become RGB the way open_clip does it, with Pillow's `convert("RGB")`: greyscale is
repeated, a palette is looked up, and transparency is dropped without blending. Damaged files are refused, never padded.
Decoding the largest image takes about 300 MB, whatever its format.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import PIL.Image
import PIL.ImageOps

from bench.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_IMAGE_BYTES = 128 << 20  # more than PIXEL_LIMIT pixels have without compression
PIXEL_LIMIT = 32_000_000
WEBP_PIXEL_LIMIT = PIXEL_LIMIT // 2  # its decoder holds four copies of an image
MAX_SCANS = 100  # of a progressive JPEG, which has ten as a rule; each takes as long as all pixels do
EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})

# It warns of damage that does not matter, once for every tag, and of sizes that are refused here.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class EncodedImage:
    """One image as encoded bytes that lie somewhere else.

    Args:
        id: stable name within its collection.
        read: gives the encoded bytes; called anew for every use, so that nothing is kept in memory.
    """

    id: str
    read: Callable[[], bytes] = field(repr=False, compare=False)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the encoded bytes.

        Raises:
            InputError: they cannot be read.
        """
        return hashlib.sha256(self._read()).hexdigest()

    def decode(self) -> PIL.Image.Image:
        """The image in RGB, EXIF orientation applied.

        Raises:
            InputError: it is missing, damaged, too large, or in a format or mode that is not allowed.
        """
        return decode_image(self._read(), self.id)

    def _read(self) -> bytes:
        try:
            return self.read()
        except OSError as error:
            raise InputError(
                f"image {self.id} cannot be read: {error}. Restore it, or fetch the data again."
            ) from error


def decode_image(data: bytes, image_id: str) -> PIL.Image.Image:
    """The encoded `data` as an RGB image, EXIF orientation applied.

    Raises:
        InputError: as in `EncodedImage.decode`; the message names `image_id`.
    """
    image = _open(data, image_id)
    _check_size(image, image_id)
    _check_mode(image, image_id)
    _check_scans(image, data, image_id)
    try:
        PIL.ImageOps.exif_transpose(image, in_place=True)
        # Pillow warns when it drops a palette's transparency in one step; in two it gives the same pixels.
        return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
    except Exception as error:  # Pillow's decoders raise many kinds on damaged bytes
        raise _corrupt(image_id, error) from error


def _open(data: bytes, image_id: str) -> PIL.Image.Image:
    try:
        return PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except PIL.UnidentifiedImageError:
        expected = f"expected an intact one of {', '.join(FORMATS)}, got {data[:8]!r}..."
        raise InputError(
            f"image {image_id} is corrupt or of another format; {expected}. Convert or restore it."
        ) from None
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise _too_large(image_id, str(error)) from error
    except Exception as error:  # as above
        raise _corrupt(image_id, error) from error


def _check_size(image: PIL.Image.Image, image_id: str) -> None:
    if image.width * image.height > (WEBP_PIXEL_LIMIT if image.format == "WEBP" else PIXEL_LIMIT):
        raise _too_large(image_id, f"{image.width} x {image.height} pixels of {image.format}")


def _check_mode(image: PIL.Image.Image, image_id: str) -> None:
    if image.mode not in EIGHT_BIT_MODES:
        raise InputError(
            f"image {image_id} has pixel mode {image.mode}; expected 8 bits per channel. Convert it first."
        )


def _check_scans(image: PIL.Image.Image, data: bytes, image_id: str) -> None:
    """Refuses the JPEG of a few kilobytes that takes minutes: scans that say next to nothing, thousands of them."""
    n_scans = data.count(b"\xff\xda") if image.info.get("progressive") else 1
    if n_scans > MAX_SCANS:
        raise InputError(
            f"image {image_id} has {n_scans} progressive scans; expected at most {MAX_SCANS}. Save it anew as a JPEG."
        )


def _too_large(image_id: str, found: str) -> InputError:
    limits = f"{PIXEL_LIMIT:,} pixels ({WEBP_PIXEL_LIMIT:,} of WebP)"
    return InputError(
        f"image {image_id} is too large to decode: expected at most {limits}, got {found}. Scale it down."
    )


def _corrupt(image_id: str, error: Exception) -> InputError:
    return InputError(f"image {image_id} is corrupt: {error}. Restore it, or fetch the data again.")
