"""Pocket's first head applied to all 7 x 7 places of an image and to all words of a caption, as a second stage.

Of an image 49 vectors of 512 half floats are kept, 50,176 bytes; a pair's score is the mean over words of the best
cosine with a place (FILIP, arXiv 2111.07783, section 3.1). The head was never trained for that: this is for timing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from submissions.pocket import model as pocket


class LateInteraction:
    """Pocket's first member as the first stage, and its places and words as the second."""

    def __init__(self, encoder):
        self._encoder = encoder
        self.images, self.texts = encoder.images, encoder.texts
        self.encode_images, self.encode_texts = encoder.encode_images, encoder.encode_texts

    @torch.inference_mode()
    def image_tokens(self, images):
        tower, head = self.images
        places = tower.net.extract_features((pocket.to_pixels(images) - 127.0) / 128.0)
        return (
            functional.normalize(head(places.flatten(2).transpose(1, 2).flatten(0, 1)))
            .view(len(images), -1, pocket.SHARED)
            .half()
            .numpy()
        )

    @torch.inference_mode()
    def score_pairs(self, tokens, texts):
        unique = list(dict.fromkeys(texts))
        words = dict(zip(unique, map(self._words, unique), strict=True))
        places = torch.from_numpy(tokens).float()
        return np.array(
            [float((words[text] @ one.T).amax(dim=1).mean()) for text, one in zip(texts, places, strict=True)],
            np.float32,
        )

    def _words(self, text):
        tower, head = self.texts
        tokens = tower.tokenize([text], truncation=True, max_length=128, return_tensors="pt")
        return functional.normalize(head(tower.net(**tokens).last_hidden_state[0]))


def load(context):
    folder = Path(context.args["head"]).parent
    return LateInteraction(pocket.load(replace(context, folder=folder, args={"members": "1"})))
