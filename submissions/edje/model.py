"""EDJE: an image is kept as a few tokens, which a small joint encoder reads together with a caption, to re-rank."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from jaxtyping import Bool, Float, Float16, Int
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import UsageError
from bench.types import LoadContext
from submissions.backbones.backbone import BLANK_PX, Backbone, Changed, add_part
from submissions.backbones.fitted import Stored, load_fitted
from submissions.backbones.plan import parse_count, parse_number, parse_yes
from submissions.edje.compression import Compression, Local
from submissions.edje.joint import (
    MINILM_LAYERS,
    MINILM_WIDTH,
    JointEncoder,
    Size,
    Tokenizer,
    Words,
    fill_from_minilm,
)

PART = "reranker"
PAIRS_AT_ONCE = 256
FIRST_WEIGHT, HUB_SHARE = 20.0, 0.5
ALIGNED_SCALE = 20.0


class Bank(Stored):
    """Vectors of training pairs, by which the first stage's hubs are found: items that are near to everything.

    An image's hub is the log of the mean of exp(scale x cosine) over the captions of the bank, over scale; a caption's
    is that over its images. Taking it from cosines is what querybank normalisation does, with inverted softmax.

    Args:
        n_pairs: in the bank.
        dim: of the vectors.

    Source: arXiv:2112.12777, section 3; arXiv:1702.03859, section 2.
    """

    def __init__(self, n_pairs: int, dim: int) -> None:
        super().__init__()
        self.images = nn.Parameter(torch.zeros(n_pairs, dim, dtype=torch.float16), requires_grad=False)
        self.texts = nn.Parameter(torch.zeros(n_pairs, dim, dtype=torch.float16), requires_grad=False)

    @torch.no_grad()
    def fill(self, images: Float[Tensor, "n_pairs dim"], texts: Float[Tensor, "n_pairs dim"]) -> None:
        """Keeps such vectors, of length one."""
        self.images.copy_(images)
        self.texts.copy_(texts)

    def hubs(
        self, vectors: Float[Tensor, "n dim"], bank: Float[Tensor, "n_pairs dim"], scale: float | Tensor
    ) -> Float[Tensor, " n"]:
        """Of vectors of length one, among those of the other modality."""
        return soften(vectors @ bank.float().T, scale)


def soften(cosines: Float[Tensor, "n n_pairs"], scale: float | Tensor) -> Float[Tensor, " n"]:
    """The log of the mean of exp(scale x cosine), over scale: hubs, of cosines with a bank's vectors."""
    return (torch.logsumexp(scale * cosines, dim=1) - np.log(cosines.shape[1])) / scale


class SecondStage(nn.Module):
    """All that is added to the base.

    Args:
        adapter: makes the tokens of an image from the tower's states.
        encoder: reads them with a caption.
        n_carried: tokens that carry the base's image vector, for the first stage's score; none leaves that out.
        bank: of training pairs; None leaves cosines as they are.
        scale: the base's own factor on cosines, at which hubs are found before a fit has chosen.
        aligned: whether the logit begins with how well words and tokens match one by one.
    """

    def __init__(
        self, adapter: nn.Module, encoder: JointEncoder, n_carried: int, bank: Bank | None, scale: float, aligned: bool
    ) -> None:
        super().__init__()
        self.adapter, self.encoder, self.n_carried, self.bank = adapter, encoder, n_carried, bank
        width = encoder.size.width
        self.aligned = Aligned(width) if aligned else None
        self.first_weight = nn.Parameter(torch.tensor(FIRST_WEIGHT), requires_grad=n_carried > 0)
        self.hub_share = nn.Parameter(torch.tensor(HUB_SHARE), requires_grad=bank is not None)
        self.hub_scale = nn.Parameter(torch.tensor(scale), requires_grad=bank is not None)

    def compress(self, states: Float[Tensor, "n n_states states"]) -> Float[Tensor, "n n_tokens width"]:
        """The learnt tokens of images; each state is normalised first, as towers differ in their scale."""
        return self.adapter(functional.layer_norm(states, states.shape[-1:]))

    def logits(self, words: Words, tokens: Float[Tensor, "n n_tokens width"]) -> Float[Tensor, " n"]:
        """How well each caption matches the learnt tokens beside it."""
        return self.judge(words, tokens, self.encoder.join(words, tokens, 1)[:, 0])

    def judge(
        self, words: Words, tokens: Float[Tensor, "n n_tokens width"], first: Float[Tensor, "n width"]
    ) -> Float[Tensor, " n"]:
        """The same where the last state of [CLS] is known."""
        logits = self.encoder.score(first)
        return logits if self.aligned is None else logits + self.aligned(words, tokens)

    def carry(self, vectors: Float[Tensor, "n dim"]) -> Float[Tensor, "n n_carried width"]:
        """Image vectors of length one as tokens, the last filled up with zeros."""
        width = self.encoder.size.width
        vectors = functional.normalize(vectors)
        return functional.pad(vectors, (0, self.n_carried * width - vectors.shape[1])).view(len(vectors), -1, width)

    def first_stage(
        self, carried: Float[Tensor, "n n_carried width"], texts: Float[Tensor, "n_texts dim"], rows: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """The first stage's cosine of each image and the text that `rows` names, less both hubs' share, weighted."""
        images, texts = carried.flatten(1)[:, : texts.shape[1]], functional.normalize(texts)
        cosines = (images * texts[rows]).sum(dim=1)
        if self.bank is not None:
            scale = self.hub_scale
            hubs = self.bank.hubs(images, self.bank.texts, scale) + self.bank.hubs(texts, self.bank.images, scale)[rows]
            cosines = cosines - self.hub_share * hubs
        return self.first_weight * cosines


class Aligned(nn.Module):
    """How well words find their like among an image's tokens: the mean over words of a soft maximum of cosines.

    It makes the tokens comparable with words before the joint layers have learnt to compare them [ours]; that images
    and texts are aligned before they are fused is ALBEF's observation.

    Args:
        width: of words and tokens.

    Source: arXiv:2107.07651, section 3.2 (align before fuse); arXiv:2111.07783, section 3.1 (word by word).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.tensor(ALIGNED_SCALE).log())
        nn.init.eye_(self.words.weight)
        nn.init.zeros_(self.words.bias)

    def forward(self, words: Words, tokens: Float[Tensor, "n n_tokens width"]) -> Float[Tensor, " n"]:
        """Of each caption with the tokens beside it."""
        asked, tokens = self._unit(words, tokens)
        return self._mean(asked @ tokens.transpose(1, 2), words.seen)

    def table(
        self, words: Words, tokens: Float[Tensor, "n_images n_tokens width"]
    ) -> Float[Tensor, "n_images n_captions"]:
        """Of every image with every caption, by one product of matrices."""
        asked, tokens = self._unit(words, tokens)
        cosines = tokens.flatten(0, 1) @ asked.flatten(0, 1).T
        cosines = cosines.view(*tokens.shape[:2], *asked.shape[:2]).permute(0, 2, 3, 1)
        return self._mean(cosines, words.seen)

    def _unit(self, words: Words, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return functional.normalize(self.words(words.states), dim=-1), functional.normalize(tokens, dim=-1)

    def _mean(
        self, cosines: Float[Tensor, "*n length n_tokens"], seen: Bool[Tensor, "n length"]
    ) -> Float[Tensor, "*n"]:
        found = torch.logsumexp(ALIGNED_SCALE * cosines.float(), dim=-1) / ALIGNED_SCALE
        return self.log_scale.exp() * (found * seen).sum(dim=-1) / seen.sum(dim=-1)


class Reranking(Changed):
    """Implements `Encoder` by the base's own vectors, and `DifferentiableReranker` by a `SecondStage`.

    Args:
        base: finds candidates; its image tower is read for the tokens, too.
        stage: what is added.
        tokenizer: of the joint encoder.
    """

    def __init__(self, base: Backbone, stage: SecondStage, tokenizer: Tokenizer) -> None:
        super().__init__(base, base.module)
        self.stage, self.tokenizer, self.dtype = stage, tokenizer, torch.float32
        add_part(base, stage.to(base.device), PART)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Within it the second stage computes in `dtype`."""
        kind = self.device.partition(":")[0]
        return torch.autocast(kind, self.dtype) if self.dtype != torch.float32 else contextlib.nullcontext()

    def tokens_of(self, pixels: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n n_tokens width"]:
        """What `image_tokens` keeps, before it is rounded; differentiable."""
        vectors, states = self.base.embed_with_states(pixels)
        with self.autocast():
            tokens = self.stage.compress(states).float()
        return torch.cat([tokens, self.stage.carry(vectors)], dim=1) if self.stage.n_carried else tokens

    def score(self, tokens: Float[Tensor, "n n_tokens width"], texts: Sequence[str]) -> Float[Tensor, " n"]:
        """Of each image's tokens with the text beside it; each different text is read once."""
        unique = list(dict.fromkeys(texts))
        place = {text: row for row, text in enumerate(unique)}
        rows = torch.tensor([place[text] for text in texts], device=self.device)
        n_learnt = tokens.shape[1] - self.stage.n_carried
        learnt, carried = tokens[:, :n_learnt], tokens[:, n_learnt:]
        with self.autocast():
            words = self.stage.encoder.read(*self.tokenizer(unique, self.device))
            scores = self.stage.logits(words.pick(rows), learnt).float()
        if not self.stage.n_carried:
            return scores
        return scores + self.stage.first_stage(carried, self.embed_texts(unique), rows)

    @torch.inference_mode()
    def image_tokens(self, images: Sequence[PIL.Image.Image]) -> Float16[np.ndarray, "n_images n_tokens width"]:
        """The learnt tokens and those that carry the base's vector; 2 bytes x tokens x width an image."""
        return self.tokens_of(self.pixels(images)).half().cpu().numpy()

    @torch.inference_mode()
    def score_pairs(
        self, tokens: Float16[np.ndarray, "n_pairs n_tokens width"], texts: Sequence[str]
    ) -> Float[np.ndarray, " n_pairs"]:
        """`score` of such tokens, (n_pairs,) float32; pairs are read in the order of their texts' lengths."""
        order = self._by_length(texts)
        scores = np.empty(len(texts), np.float32)
        for start in range(0, len(texts), PAIRS_AT_ONCE):
            rows = order[start : start + PAIRS_AT_ONCE]
            part = torch.from_numpy(tokens[rows]).to(self.device).float()
            scores[rows] = self.score(part, [texts[row] for row in rows]).cpu().numpy()
        return scores

    def score_pixels(self, pixels: Float[Tensor, "n 3 height width"], texts: Sequence[str]) -> Float[Tensor, " n"]:
        """`score` from pixels in [0, 1], (n_pairs,) float32, differentiable; its tokens are not rounded."""
        return self.score(self.tokens_of(pixels), texts)

    def _by_length(self, texts: Sequence[str]) -> Int[np.ndarray, " n"]:
        """Rows such that equal texts are neighbours, and so are texts of equal length."""
        unique = list(dict.fromkeys(texts))
        rank = {
            text: place
            for place, (_, text) in enumerate(sorted(zip(self.tokenizer.lengths(unique), unique, strict=True)))
        }
        return np.argsort([rank[text] for text in texts], kind="stable")


@dataclass(frozen=True)
class Told:
    """What the recipe's arguments say of the second stage.

    Args:
        tokens: learnt tokens an image.
        inner: width within the adapter; 0 is the tower's own.
        layers: of the joint encoder.
        fused: of these, those that see the image.
        width: of the joint encoder and of the tokens.
        first_stage: whether the score begins with the base's.
        bank: training pairs kept to find hubs by; 0 is none.
        aligned: whether the logit begins with words' likeness to tokens.
    """

    tokens: int
    inner: int
    layers: int
    fused: int
    width: int
    first_stage: bool
    bank: int
    aligned: bool


def attach(backbone: Backbone, args: Mapping[str, str]) -> Reranking:
    """The base as a first stage, with a second of compressed tokens and a joint encoder that learn.

    Of a joint encoder of MiniLM's width the embeddings and the layers that see no image are MiniLM's and stay so.

    Raises:
        InputError: the base's image tower has no states to read, or MiniLM's package is not installed.
        UsageError: an argument is not as it must be.
    """
    return attach_reading(backbone, parse_told(args), local=False)


def attach_reading(backbone: Backbone, told: Told, local: bool) -> Reranking:
    """As `attach`; with `local` tokens, one a state, as the teacher reads them."""
    states, dim = _sizes_of(backbone)
    tokenizer = Tokenizer()
    inner = told.inner or states
    adapter = Local(states, told.width) if local else Compression(states, told.tokens, told.width, inner)
    encoder = JointEncoder(Size(tokenizer.vocabulary, tokenizer.end, told.width, told.layers, told.fused))
    if told.width == MINILM_WIDTH:
        fill_from_minilm(encoder)
        for part in (
            encoder.words,
            encoder.places,
            encoder.kinds,
            encoder.embedded,
            *encoder.layers[: encoder.n_alone],
        ):
            part.requires_grad_(False)
    n_carried = -(-dim // told.width) if told.first_stage else 0
    bank = Bank(told.bank, dim) if told.bank and n_carried else None
    stage = SecondStage(adapter, encoder, n_carried, bank, float(backbone.log_scale.exp()), told.aligned)
    return Reranking(backbone, stage, tokenizer)


def parse_told(args: Mapping[str, str]) -> Told:
    """The arguments, checked.

    Raises:
        UsageError: one is not as it must be.
    """
    counts = {name: parse_count(name, args[name]) for name in ("tokens", "layers", "fused", "width")}
    if counts["fused"] > counts["layers"]:
        raise UsageError(f"--recipe-arg fused is '{args['fused']}'; expected at most the {counts['layers']} layers.")
    if counts["width"] == MINILM_WIDTH and counts["layers"] > MINILM_LAYERS:
        raise UsageError(
            f"--recipe-arg layers is '{args['layers']}'; MiniLM has {MINILM_LAYERS}. A joint encoder of another width "
            "than 384 starts from random weights and may have more."
        )
    return Told(
        **counts,
        inner=parse_number("inner", args["inner"], int),
        first_stage=parse_yes("first_stage", args["first_stage"]),
        bank=parse_number("bank", args["bank"], int),
        aligned=parse_yes("aligned", args["aligned"]),
    )


def load(context: LoadContext) -> Backbone:
    """The base with its fitted second stage."""
    backbone = load_fitted(context, attach)
    if isinstance(backbone, Reranking):
        backbone.dtype = getattr(torch, context.dtype)
    return backbone


@torch.no_grad()
def _sizes_of(backbone: Backbone) -> tuple[int, int]:
    """Width of the image tower's states, and length of vectors: of a blank image."""
    pixels = backbone.pixels([PIL.Image.new("RGB", (BLANK_PX, BLANK_PX))])
    vectors, states = backbone.embed_with_states(pixels)
    return states.shape[2], vectors.shape[1]
