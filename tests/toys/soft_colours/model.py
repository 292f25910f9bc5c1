"""Counts colours in pictures by a 1 x 1 convolution and a softmax, and colour words in captions: it has a gradient."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

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
SIDE = 32
SOFTNESS = 0.02


class SoftColours:
    def __init__(self, device="cpu"):
        self.device = device
        colours = torch.tensor(list(PALETTE.values())) / 255
        self.nearness = nn.Conv2d(3, len(PALETTE), kernel_size=1)
        self.nearness.weight.data = (2 * colours / SOFTNESS)[:, :, None, None]
        self.nearness.bias.data = -colours.square().sum(dim=1) / SOFTNESS
        self.nearness.requires_grad_(False).to(device)

    def encode_images(self, images):
        return self.embed_pixels(self.pixels(images).to(self.device)).cpu().numpy()

    def encode_texts(self, texts):
        return np.array([[text.lower().count(word) for word in PALETTE] for text in texts], np.float32) + 1e-3

    def pixels(self, images):
        resized = np.stack([np.asarray(image.resize((SIDE, SIDE))) for image in images])
        return torch.from_numpy(resized).permute(0, 3, 1, 2).float() / 255

    def embed_pixels(self, pixels):
        return (self.shares(pixels).mean(dim=(2, 3)) + 1e-6).sqrt()

    def shares(self, pixels):
        """Of each colour at each place, (n, n_colours, height, width)."""
        return self.nearness(pixels).softmax(dim=1)


def load(context):
    return SoftColours(context.device)
