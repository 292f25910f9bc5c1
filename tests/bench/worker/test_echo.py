"""The echo answers through the process boundary as any submission does."""

from __future__ import annotations

import numpy as np
import pytest

from bench.errors import UsageError
from bench.worker.echo import N_READY, echo_submission
from bench.worker.host import Worker, WorkerSettings

IMAGES = [np.zeros((4, 5 + i, 3), np.uint8) for i in range(3)]


def test_it_has_one_stage_by_default_and_answers_batches_of_any_size() -> None:
    with Worker(echo_submission(16), WorkerSettings()) as worker:
        images, texts = worker.encode_images(IMAGES), worker.encode_texts(["a"] * (N_READY + 1))
        assert not worker.loaded.reranker
        with pytest.raises(UsageError):
            worker.image_tokens(IMAGES)
    assert images.shape == (3, 16)
    assert texts.shape == (N_READY + 1, 16)
    assert np.isfinite(texts).all()
    assert (np.linalg.norm(texts, axis=1) > 0).all()


def test_with_a_shape_of_tokens_it_has_two_stages() -> None:
    with Worker(echo_submission(8, (4, 6)), WorkerSettings()) as worker:
        tokens = worker.image_tokens(IMAGES)
        scores = worker.score_pairs(tokens, ["a", "b", "c"])
        assert worker.encode_texts(["a"]).shape == (1, 8)
    assert (tokens.shape, tokens.dtype) == ((3, 4, 6), np.float16)
    assert scores.shape == (3,)
    assert np.isfinite(tokens).all()


def test_what_it_answers_with_is_in_its_fingerprint() -> None:
    submissions = [echo_submission(8), echo_submission(16), echo_submission(8, (2,))]
    assert len({submission.fingerprint for submission in submissions}) == 3
    assert {submission.name for submission in submissions} == {"echo"}
