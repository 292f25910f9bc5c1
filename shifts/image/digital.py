"""What storing and processing do to an image: compression, contrast, resolution."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_JPEG_QUALITY = (25, 18, 15, 10, 7)


def jpeg_compression(
    pixels: UInt8[np.ndarray, "height width 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image after one round through a JPEG file of low quality; `rng` is not used.

    The bytes are those of the libjpeg that Pillow was built with.

    Source: arXiv 1903.12261, section 3; bytes as imagecorruptions 1.1.2.
    """
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_JPEG_QUALITY[severity - 1])
    return np.array(Image.open(file, formats=("JPEG",)))
