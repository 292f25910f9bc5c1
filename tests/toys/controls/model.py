"""Encoders that hide their gradient or their answer from an attack, each in its own way, and two that do not.

All of them are one small network, which `fit.py` made, with what the argument `fault` adds to it: a name of `FAULTS`.
"""

from __future__ import annotations

import re

import numpy as np
import PIL.Image
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

SIDE_PX, DIM = 64, 64
WEIGHTS = "weights.safetensors"


class Towers(nn.Module):
    """A small convolutional network for images, and a sum of word vectors for texts."""

    def __init__(self, words):
        super().__init__()
        self._row_of = {word: row for row, word in enumerate(words)}
        self.images = nn.Sequential(
            nn.Conv2d(3, 24, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(24, 48, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(48, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 16, DIM),
        )
        self.words = nn.EmbeddingBag(len(words), DIM, mode="sum")

    def embed_pixels(self, pixels):
        return self.images((pixels - 0.5) / 0.25)

    def embed_texts(self, texts):
        rows = [[self._row_of[word] for word in words_of(text) if word in self._row_of] or [0] for text in texts]
        offsets = np.cumsum([0, *map(len, rows[:-1])])
        return self.words(torch.tensor([row for text in rows for row in text]), torch.tensor(offsets))


def words_of(text):
    return re.findall(r"[a-z]+", text.lower())


def read_pixels(images):
    side = (SIDE_PX, SIDE_PX)
    resized = [im if im.size == side else im.resize(side, PIL.Image.Resampling.BICUBIC) for im in images]
    return torch.from_numpy(np.stack([np.asarray(im) for im in resized])).permute(0, 3, 1, 2).float() / 255


class Honest:
    """Nothing added; the others replace `embed_pixels`, or what is deployed."""

    def __init__(self, towers):
        self.towers = towers

    def pixels(self, images):
        return read_pixels(images)

    def embed_pixels(self, pixels):
        return self.towers.embed_pixels(pixels)

    def encode_images(self, images):
        return self.deploy(read_pixels(images)).numpy()

    def encode_texts(self, texts):
        with torch.no_grad():
            return self.towers.embed_texts(texts).numpy()

    def deploy(self, pixels):
        with torch.no_grad():
            return self.embed_pixels(pixels)


class Blurred(Honest):
    """Honest, and a little more robust: fine patterns do not reach the network."""

    def embed_pixels(self, pixels):
        line = torch.tensor([0.06, 0.24, 0.4, 0.24, 0.06])
        kernel = (line[:, None] * line).expand(3, 1, 5, 5)
        padded = functional.pad(pixels, (2, 2, 2, 2), mode="replicate")
        return super().embed_pixels(functional.conv2d(padded, kernel, groups=3))


class Detached(Honest):
    """No gradient at all."""

    def embed_pixels(self, pixels):
        return super().embed_pixels(pixels.detach())


class Saturated(Honest):
    """The sign of every value through a hard sigmoid so steep that it is flat, its size from elsewhere."""

    def embed_pixels(self, pixels):
        vectors = super().embed_pixels(pixels)
        return (2 * (1e6 * vectors + 0.5).clamp(0, 1) - 1) * vectors.detach().abs()


class HiddenZero(Honest):
    """No gradient but that of a random linear function, too small to change any vector."""

    def embed_pixels(self, pixels):
        vectors = super().embed_pixels(pixels.detach())
        weights = torch.randn(pixels[0].numel(), DIM, generator=torch.Generator().manual_seed(0))
        return vectors + 1e-7 * pixels.flatten(1) @ weights


class Randomised(Honest):
    """Noise on the input, new for each call."""

    def embed_pixels(self, pixels):
        return super().embed_pixels(pixels + 0.1 * torch.randn_like(pixels))


class SeededByPlace(Honest):
    """Noise on the input that is the same for each call and differs only by the place in the batch."""

    def embed_pixels(self, pixels):
        noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
        return super().embed_pixels(pixels + 0.1 * noise)


class InputQuantiser(Honest):
    """Sixteen levels of brightness."""

    def embed_pixels(self, pixels):
        return super().embed_pixels((pixels * 15).round() / 15)


class StraightThroughQuantiser(Honest):
    """Sixteen levels of brightness, and a gradient as if there were none of that."""

    def embed_pixels(self, pixels):
        return super().embed_pixels(pixels + ((pixels * 15).round() / 15 - pixels).detach())


class OutputQuantiser(Honest):
    """Only the signs of the embedding, with the gradient of what they were taken from."""

    def embed_pixels(self, pixels):
        vectors = super().embed_pixels(pixels)
        return vectors + (vectors.sign() - vectors).detach()


class _ReplacedGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by `factor`."""

    @staticmethod
    def forward(context, pixels, factor):
        context.save_for_backward(factor)
        return pixels.clone()

    @staticmethod
    def backward(context, gradient):
        (factor,) = context.saved_tensors
        return gradient * factor, None


class NanGradient(Honest):
    """A gradient that is not a number."""

    def embed_pixels(self, pixels):
        return super().embed_pixels(_ReplacedGradient.apply(pixels, torch.tensor(torch.nan)))


class Liar(Honest):
    """The size of the true gradient with signs drawn once: plausible and wrong."""

    def embed_pixels(self, pixels):
        signs = torch.randint(0, 2, pixels[0].shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1
        return super().embed_pixels(_ReplacedGradient.apply(pixels, signs))


class HalfLiar(Honest):
    """The true gradient at images, nothing between their levels, where attacks pass."""

    def embed_pixels(self, pixels):
        levels = pixels * 255
        off_grid = (levels - levels.round()).abs().amax() > 0.01
        return super().embed_pixels(pixels.detach() if off_grid else pixels)


class Optimiser(Honest):
    """Climbs a few steps towards the nearest word before it encodes; the gradient is the original image's."""

    def embed_pixels(self, pixels):
        vectors = super().embed_pixels(pixels)
        return vectors + (super().embed_pixels(self._climb(pixels)) - vectors).detach()

    def _climb(self, pixels):
        moved = pixels.detach()
        with torch.enable_grad():
            for _ in range(2):
                leaf = moved.clone().requires_grad_()
                (gradient,) = torch.autograd.grad(self.confidence(leaf).sum(), leaf)
                moved = leaf.detach() + gradient.sign() * 3 / 255
        return moved

    def confidence(self, pixels):
        words = functional.normalize(self.towers.words.weight.detach())
        return (functional.normalize(self.towers.embed_pixels(pixels)) @ words.T).amax(dim=1)


class Searcher(Optimiser):
    """The same by trial, without any gradient."""

    def _climb(self, pixels):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            best, highest = pixels.detach(), self.confidence(pixels)
            for _ in range(5):
                block = torch.randint(0, 2, (3, 8, 8), generator=generator).kron(torch.ones(1, 8, 8)) * 2 - 1
                tried = best + block * 20 / 255
                reached = self.confidence(tried)
                best = torch.where((reached > highest)[:, None, None, None], tried, best)
                highest = torch.maximum(reached, highest)
        return best


class Drifting(Honest):
    """Every call turns the embedding a little further."""

    turned = 0.0

    def embed_pixels(self, pixels):
        self.turned += 1e-4
        return super().embed_pixels(pixels).roll(1, dims=1) * self.turned + super().embed_pixels(pixels)


class OtherPath(Honest):
    """Attacked as it is, deployed with a filter in front."""

    def deploy(self, pixels):
        with torch.no_grad():
            return super().deploy(functional.avg_pool2d(pixels, 5, stride=1, padding=2, count_include_pad=False))


FAULTS = {
    "none": Honest,
    "blurred": Blurred,
    "detached": Detached,
    "saturated": Saturated,
    "hidden_zero": HiddenZero,
    "randomised": Randomised,
    "seeded_by_place": SeededByPlace,
    "input_quantiser": InputQuantiser,
    "straight_through": StraightThroughQuantiser,
    "output_quantiser": OutputQuantiser,
    "nan_gradient": NanGradient,
    "liar": Liar,
    "half_liar": HalfLiar,
    "optimiser": Optimiser,
    "searcher": Searcher,
    "drifting": Drifting,
    "other_path": OtherPath,
}


def load(context):
    weights = str(context.folder / WEIGHTS)
    with safe_open(weights, "pt") as file:
        towers = Towers(file.metadata()["words"].split())
    towers.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})
    return FAULTS[context.args["fault"]](towers.eval().requires_grad_(False))
