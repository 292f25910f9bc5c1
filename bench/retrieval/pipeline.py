"""A submission as it would be served: captions in, rows of the gallery out, and the nanoseconds of every stage.

encode (worker) -> search (index) -> fetch (tokens from disk) -> rerank (worker)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float32, Int

from bench.errors import UsageError
from bench.evaluate import to_unit
from bench.timing_records import Stage


class Encodes(Protocol):
    """What is asked of the submission's process."""

    def encode_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "n_texts dim"]: ...

    def score_pairs(self, tokens: np.ndarray, texts: Sequence[str]) -> Float32[np.ndarray, " n_pairs"]: ...


class Searches(Protocol):
    """What is asked of the index: rows of falling score, -1 where it found too few."""

    def search(
        self, queries: Float32[np.ndarray, "n_queries dim"], k: int
    ) -> tuple[Float32[np.ndarray, "n_queries k"], Int[np.ndarray, "n_queries k"]]: ...


class Fetches(Protocol):
    """What is asked of the payload file."""

    def fetch(self, rows: Int[np.ndarray, " n_rows"]) -> np.ndarray: ...


class Answer(NamedTuple):
    """The best rows of each query, best first, -1 where there are too few, and what each stage took."""

    rows: Int[np.ndarray, "n_queries k"]
    ns: dict[Stage, int]


class Pipeline:
    """Answers captions with rows of a gallery.

    Args:
        encoder: the submission.
        index: the gallery.
        payload: what the second stage keeps of each item; None without one.
        k: items in an answer.
        rerank_k: items of each query that the second stage orders; those behind them stay where they were.
        clock: nanoseconds.
    """

    def __init__(
        self,
        encoder: Encodes,
        index: Searches,
        payload: Fetches | None = None,
        k: int = 10,
        rerank_k: int = 0,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        if (payload is None) != (rerank_k == 0) or rerank_k < 0 or k < 1:
            kind = "no payload" if payload is None else "a payload"
            raise UsageError(f"k is {k} and rerank_k {rerank_k} with {kind}; expected both or none, and k at least 1.")
        self._encoder, self._index, self._payload = encoder, index, payload
        self._k, self._rerank_k, self._clock = k, rerank_k, clock

    def answer(self, texts: Sequence[str]) -> Answer:
        """The best rows for each text.

        Raises:
            SubmissionError: the submission failed.
        """
        times = [self._clock()]
        vectors = to_unit(self._encoder.encode_texts(texts))
        times.append(self._clock())
        _, rows = self._index.search(vectors, max(self._k, self._rerank_k))
        times.append(self._clock())
        stages: tuple[Stage, ...] = ("encode", "search")
        if self._payload is not None:
            pool = rows[:, : self._rerank_k]
            tokens = self._payload.fetch(pool[pool >= 0])
            times.append(self._clock())
            rows = np.concatenate([self._rerank(pool, tokens, texts), rows[:, self._rerank_k :]], axis=1)
            times.append(self._clock())
            stages = ("encode", "search", "fetch", "rerank")
        ns: dict[Stage, int] = dict(zip(stages, np.diff(times).tolist(), strict=True))
        return Answer(rows[:, : self._k], {**ns, "end_to_end": times[-1] - times[0]})

    def _rerank(
        self, pool: Int[np.ndarray, "n_queries rerank_k"], tokens: np.ndarray, texts: Sequence[str]
    ) -> Int[np.ndarray, "n_queries rerank_k"]:
        """Each pool in the order of the second stage's scores, of equal ones the better of the first stage first."""
        found = pool >= 0
        scores = np.full(pool.shape, -np.inf, np.float32)
        scores[found] = self._encoder.score_pairs(tokens, [texts[query] for query in np.nonzero(found)[0].tolist()])
        return np.take_along_axis(pool, np.argsort(-scores, axis=1, kind="stable"), axis=1)
