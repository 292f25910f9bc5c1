"""The canonical canvas: the one size at which every image is shifted, whatever the model will do to it later."""

from __future__ import annotations

from PIL import Image

from bench.errors import InputError

MAX_SHORTER_SIDE_PX = 384


def canonical_canvas(image: Image.Image) -> Image.Image:
    """The image with its shorter side at most 384 px: bicubic with antialias, aspect kept, never upscaled.

    An image that is small enough already comes back as it is, the same object.

    Args:
        image: RGB, any size, EXIF orientation already applied.

    Raises:
        InputError: the image is not RGB (Pillow would resize a palette without interpolation).
    """
    if image.mode != "RGB":
        raise InputError(f"the canonical canvas got an image of mode {image.mode}; expected RGB. Convert it first.")
    shorter = min(image.size)
    if shorter <= MAX_SHORTER_SIDE_PX:
        return image
    width, height = (round(side * MAX_SHORTER_SIDE_PX / shorter) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
