"""Counts colours in pictures and colour words in captions: no weights, no torch, better than chance on scenes."""

from __future__ import annotations

import numpy as np

PALETTE = {
    "red": (215, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (240, 215, 50),
    "green": (45, 160, 60),
    "teal": (40, 160, 150),
    "blue": (40, 80, 220),
    "purple": (130, 60, 190),
    "pink": (240, 130, 180),
    "brown": (130, 80, 40),
    "white": (240, 240, 240),
}
PLACES = ("beach", "meadow", "desert", "snow", "lake", "wall", "floor", "sunset")


class Colours:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def encode_images(self, images):
        return np.stack([self._image(image) for image in images]).astype(np.float32) * self.scale

    def encode_texts(self, texts):
        words = [*PALETTE, *PLACES]
        counts = [[text.lower().count(word) for word in words] for text in texts]
        return (np.array(counts, np.float32) + 1e-3) * self.scale

    def _image(self, image):
        pixels = np.asarray(image.resize((32, 32)), np.float64).reshape(-1, 3)
        distances = ((pixels[:, None] - np.array(list(PALETTE.values()))) ** 2).sum(axis=2)
        shares = np.bincount(distances.argmin(axis=1), minlength=len(PALETTE)) / len(pixels)
        return np.concatenate([np.sqrt(shares), np.zeros(len(PLACES))]) + 1e-3


def load(context):
    return Colours(float(context.args["scale"]))
