"""A submission that computes nothing: what a call of it takes is the harness's own share of every latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float16, Float32

from bench.submission import Submission, find_submission
from bench.types import Encoder, LoadContext

N_READY = 64
"""Rows that are drawn while loading; a larger batch draws its own when it first comes."""


class Echo:
    """Answers with the first rows of an array that it holds, as many as were asked about."""

    def __init__(self, dim: int) -> None:
        self._vectors = _Rows((dim,), np.float32)

    def encode_images(self, images: Sequence[object]) -> Float32[np.ndarray, "n_images dim"]:
        return self._vectors.first(len(images))

    def encode_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "n_texts dim"]:
        return self._vectors.first(len(texts))


class RerankingEcho(Echo):
    """The same with a second stage."""

    def __init__(self, dim: int, token_shape: tuple[int, ...]) -> None:
        super().__init__(dim)
        self._tokens, self._scores = _Rows(token_shape, np.float16), _Rows((), np.float32)

    def image_tokens(self, images: Sequence[object]) -> Float16[np.ndarray, "n_images ..."]:
        return self._tokens.first(len(images))

    def score_pairs(self, tokens: np.ndarray, texts: Sequence[str]) -> Float32[np.ndarray, " n_pairs"]:
        return self._scores.first(len(tokens))


class _Rows:
    """Random rows of one shape, drawn once."""

    def __init__(self, shape: tuple[int, ...], dtype: type[np.floating]) -> None:
        self._shape, self._dtype = shape, dtype
        self._rows = self._draw(N_READY)

    def first(self, n: int) -> np.ndarray:
        if n > len(self._rows):
            self._rows = self._draw(n)
        return self._rows[:n]

    def _draw(self, n: int) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((n, *self._shape), np.float32).astype(self._dtype)


def load(context: LoadContext) -> Encoder:
    """An echo of the width in `args["dim"]`; with a second stage where `args["token_shape"]` is, say, "49x512"."""
    dim, token_shape = int(context.args["dim"]), context.args["token_shape"]
    return RerankingEcho(dim, tuple(map(int, token_shape.split("x")))) if token_shape else Echo(dim)


def echo_submission(dim: int, token_shape: Sequence[int] = ()) -> Submission:
    """The echo for a `Worker`.

    Args:
        dim: of its embeddings.
        token_shape: of what it keeps of one image for its second stage, float16; empty without one.
    """
    args = {"dim": str(dim), "token_shape": "x".join(map(str, token_shape))}
    # By its name in the package: loaded as a file, it would put this folder's modules among everybody's.
    return replace(find_submission(f"{__file__}:load", args), import_name=__name__)
