"""Soft colours in two stages that do with pixels and gradients what they must not.

`load` gives one that is honest until it is sent the name of a fault below as a text, and "honest" heals it; one process
serves many tests so. The other functions are faults that show from the start.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from model import SoftColours
from torch.autograd import grad
from two_stage import TwoStage


class Switched(TwoStage):
    def encode_texts(self, texts):
        known = [text for text in texts if text in FAULTS or text == "honest"]
        if known:
            for method in METHODS:
                vars(self).pop(method, None)
            vars(self).update(FAULTS.get(known[0], {}))
        return super().encode_texts(texts)


def through_backward(function):
    """An `embed_pixels` whose gradient is `function` of what it would be."""

    class Changed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, pixels):
            return pixels.clone()

        @staticmethod
        def backward(ctx, gradient):
            return function(gradient)

    return {"embed_pixels": lambda pixels: HONEST.embed_pixels(Changed.apply(pixels))}


def fail(*arguments):
    raise ValueError("no way there or back")


def without_margin(image):
    """A sixteenth cropped away on every side, whatever the size."""
    x, y = image.width // 16, image.height // 16
    return image.crop((x, y, image.width - x, image.height - y))


def purify(pixels):
    """Takes three steps of its own before it looks, by a function that it imported long before."""
    with torch.enable_grad():
        for _ in range(3):
            start = pixels.detach().requires_grad_()
            (slope,) = grad(start.square().sum(), start)
            pixels = pixels - 1e-3 * slope
    return HONEST.embed_pixels(pixels)


HONEST = TwoStage()
METHODS = ("pixels", "embed_pixels", "encode_images", "image_tokens", "score_pairs", "score_pixels")
FAULTS = {
    "nan_pixels": {"pixels": lambda images: torch.full((len(images), 3, 4, 4), float("nan"))},
    "normalised_pixels": {"pixels": lambda images: torch.full((len(images), 3, 4, 4), -1.5)},
    "flat_pixels": {"pixels": lambda images: torch.zeros(len(images), 48)},
    "array_pixels": {"pixels": lambda images: HONEST.pixels(images).numpy()},
    "sized_pixels": {"pixels": lambda images: torch.zeros(len(images), 3, images[0].height, 4)},
    "cropped_pixels": {"pixels": lambda images: HONEST.pixels([without_margin(image) for image in images])},
    "embeds_one_too_few": {"embed_pixels": lambda pixels: HONEST.embed_pixels(pixels[1:])},
    "embeds_halves": {"embed_pixels": lambda pixels: HONEST.embed_pixels(pixels).half()},
    "embeds_others": {
        "embed_pixels": lambda pixels: HONEST.embed_pixels(1 - pixels),
        "encode_images": HONEST.encode_images,
    },
    "raises": {"embed_pixels": fail},
    "raises_backward": through_backward(fail),
    "crashes_backward": through_backward(lambda gradient: os.kill(os.getpid(), 11)),
    "nan_gradient": through_backward(lambda gradient: gradient * float("nan")),
    "zero_gradient": through_backward(torch.zeros_like),
    "detached": {"embed_pixels": lambda pixels: HONEST.embed_pixels(pixels.detach())},
    "purifies": {
        "embed_pixels": purify,
        "encode_images": lambda images: purify(HONEST.pixels(images)).detach().numpy(),
    },
    "nan_scores": {"score_pairs": lambda tokens, texts: np.full(len(texts), np.nan, np.float32)},
    "one_score": {"score_pixels": lambda pixels, texts: pixels.sum().reshape(1)},
    "double_tokens": {"image_tokens": lambda images: np.zeros((len(images), 2))},
}


def load(context):
    return Switched(context.device)


def leaves_modes_on(context):
    torch.set_grad_enabled(False)
    torch.autocast("cpu", dtype=torch.bfloat16).__enter__()
    return SoftColours(context.device)
