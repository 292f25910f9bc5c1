"""Soft colours with a second stage that looks where in the picture each colour is most, in a grid of four by four."""

from __future__ import annotations

import torch
from model import SoftColours
from torch.nn import functional


class TwoStage(SoftColours):
    def image_tokens(self, images):
        return self._tokens(self.pixels(images).to(self.device)).half().cpu().numpy()

    def score_pairs(self, tokens, texts):
        return self._scores(torch.from_numpy(tokens).float().to(self.device), texts).cpu().numpy()

    def score_pixels(self, pixels, texts):
        return self._scores(self._tokens(pixels), texts)

    def _tokens(self, pixels):
        return functional.adaptive_avg_pool2d(self.shares(pixels), 4).flatten(2).transpose(1, 2)

    def _scores(self, tokens, texts):
        words = torch.from_numpy(self.encode_texts(texts)).to(tokens.device)
        return (tokens.amax(dim=1) * functional.normalize(words)).sum(dim=1)


def load(context):
    return TwoStage(context.device)


class Opaque(TwoStage):
    """One whose second stage gives no gradient."""

    score_pixels = None


def opaque(context):
    return Opaque(context.device)
