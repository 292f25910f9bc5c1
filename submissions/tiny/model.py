"""`tiny`: an open_clip ViT of about five million parameters that reads small pictures and has its own vocabulary."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import load_file

from bench.errors import InputError
from bench.types import LoadContext
from submissions.backbones.open_clip_encoder import OpenClipEncoder

IMAGE_PX = 96
CONTEXT = 64
EMBED_DIM = 256
VISION = {"image_size": IMAGE_PX, "patch_size": 16, "width": 192, "head_width": 48, "layers": 8}
TEXT = {"context_length": CONTEXT, "width": 160, "heads": 4, "layers": 3}
PREPROCESS = PreprocessCfg(size=(IMAGE_PX, IMAGE_PX), resize_mode="squash", interpolation="bicubic")
WEIGHTS_FILE, MERGES_FILE = "weights.safetensors", "merges.txt"


def load(context: LoadContext) -> OpenClipEncoder:
    """The encoder whose weights and vocabulary lie in the submission's folder.

    Raises:
        InputError: they do not.
    """
    weights = context.folder / WEIGHTS_FILE
    if not weights.is_file():
        raise InputError(
            f"{weights} is missing; `rove fit tiny --train scenes --output DIR` makes a folder that has it."
        )
    merges = (context.folder / MERGES_FILE).read_text(encoding="utf-8").splitlines()
    tokenizer = build_tokenizer(merges)
    model = build_model(tokenizer.vocab_size)
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()}, strict=True)
    return OpenClipEncoder(
        model, image_transform_v2(PREPROCESS, is_train=False), tokenizer, context.device, context.dtype
    )


def build_model(vocab_size: int) -> Any:
    """An open_clip CLIP of this configuration, randomly initialised."""
    return open_clip.CLIP(EMBED_DIM, VISION, {**TEXT, "vocab_size": vocab_size})


def build_tokenizer(merges: Sequence[str]) -> Any:
    """open_clip's byte-pair tokenizer over our own merges (rows "left right"); unknown words fall into bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "merges.gz"
        path.write_bytes(gzip.compress("\n".join(["#version: 1", *merges]).encode()))
        return open_clip.SimpleTokenizer(str(path), context_length=CONTEXT)
