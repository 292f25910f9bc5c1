"""Pixels, gradients and second stages across the process boundary: right ones arrive, wrong ones have their status."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.errors import ProtocolError, SubmissionCrash, SubmissionError, UsageError
from bench.submission import find_submission
from bench.worker.host import Worker, WorkerSettings

TOYS = Path(__file__).parents[2] / "toys"
IMAGES = [np.random.Generator(np.random.Philox(i)).integers(0, 256, (32, 32, 3), dtype=np.uint8) for i in range(3)]
PIXELS = (np.stack(IMAGES).transpose(0, 3, 1, 2) / 255).astype(np.float32)
TEXTS = ["a red ball", "a blue cube", "green and white"]


def start(function: str, **settings: str) -> Worker:
    return Worker(find_submission(str(TOYS / function)), WorkerSettings(**settings))


@pytest.fixture(scope="module")
def shared() -> Iterator[Worker]:
    with start("soft_colours/faulty.py:load") as worker:
        yield worker


@pytest.fixture
def worker(shared: Worker) -> Worker:
    """Soft colours in two stages, honest."""
    shared.encode_texts(["honest"])
    return shared


def embed(worker: Worker) -> np.ndarray:
    return worker.embed_pixels(PIXELS, grad=True)


def pull(worker: Worker) -> np.ndarray:
    return worker.pull_back(np.ones_like(embed(worker)))


def test_a_worker_says_what_it_can_do_and_refuses_the_rest(worker: Worker) -> None:
    assert (worker.loaded.differentiable, worker.loaded.reranker, worker.loaded.differentiable_reranker) == (True,) * 3
    with start("soft_colours/model.py:load", dtype="bfloat16") as half:
        assert half.loaded.differentiable
        assert not half.loaded.reranker
        assert not half.loaded.differentiable_reranker
        with pytest.raises(UsageError, match=r"in float32; .* runs in bfloat16"):
            embed(half)
    with start("faulty.py:honest") as plain:
        assert not plain.loaded.differentiable
        for ask in (embed, lambda w: w.pixels(IMAGES)):
            with pytest.raises(UsageError, match="is not Differentiable"):
                ask(plain)
        for ask in (lambda w: w.image_tokens(IMAGES), lambda w: w.score_pairs(PIXELS, TEXTS)):
            with pytest.raises(UsageError, match="is not a Reranker"):
                ask(plain)


def test_pixels_of_the_right_size_are_the_image_and_embed_to_the_same(worker: Worker) -> None:
    np.testing.assert_array_equal(worker.pixels(IMAGES), PIXELS)
    np.testing.assert_allclose(worker.embed_pixels(PIXELS), worker.encode_images(IMAGES), atol=1e-6)


def test_the_gradient_is_the_slope(worker: Worker) -> None:
    rng = np.random.Generator(np.random.Philox(0))
    direction = rng.standard_normal(PIXELS.shape, np.float32)
    weights = rng.standard_normal(embed(worker).shape, np.float32)
    gradient = worker.pull_back(weights)
    up, down = (worker.embed_pixels(PIXELS + step * direction).astype(np.float64) for step in (1e-4, -1e-4))
    slopes = (weights * (up - down)).sum(axis=1) / 2e-4
    np.testing.assert_allclose((gradient * direction).sum(axis=(1, 2, 3)), slopes, rtol=0.02, atol=0.01)


def test_a_graph_serves_once_and_the_latest_counts(worker: Worker) -> None:
    first = pull(worker)
    assert worker.graph is None
    embed(worker)
    darker = worker.embed_pixels(PIXELS[:2] / 2, grad=True)
    worker.embed_pixels(PIXELS)
    second = worker.pull_back(np.ones_like(darker))
    assert second.shape == (2, 3, 32, 32)
    assert np.abs(first[:2] - second).max() > 1e-4
    with pytest.raises(UsageError, match="no graph; each serves once"):
        worker.pull_back(np.ones_like(darker))
    embed(worker)
    with pytest.raises(UsageError, match=r"of an output of shape \(3, 10\)"):
        worker.pull_back(np.ones((2, 10), np.float32))


@pytest.mark.parametrize(
    ("fault", "ask", "kind", "words"),
    [
        ("nan_pixels", lambda w: w.pixels(IMAGES), ProtocolError, r"from nan to nan; expected them in \[0, 1\]"),
        ("normalised_pixels", lambda w: w.pixels(IMAGES), ProtocolError, r"from -1\.5 to -1\.5"),
        ("flat_pixels", lambda w: w.pixels(IMAGES), ProtocolError, r"\(3, 48\).*expected \(3, 3, height, width\)"),
        ("array_pixels", lambda w: w.pixels(IMAGES), ProtocolError, "an array of float32; expected a torch tensor"),
        ("embeds_one_too_few", embed, ProtocolError, r"\(2, 10\) float32 for 3 images; expected \(3, dim\)"),
        ("embeds_halves", embed, ProtocolError, r"a torch tensor of torch\.float16"),
        ("raises", embed, SubmissionError, "no way there"),
        ("raises_backward", pull, SubmissionError, "or back"),
        ("nan_scores", lambda w: w.score_pairs(PIXELS, TEXTS), ProtocolError, r"a score of nan \(pair 0 of 3, 3 in"),
        ("one_score", lambda w: w.score_pixels(PIXELS, TEXTS), ProtocolError, r"\(1\) float32 .* expected \(3\)"),
        ("double_tokens", lambda w: w.image_tokens(IMAGES), ProtocolError, r"float64 .* \(3, \.\.\.\) float16 or fl"),
    ],
)
def test_a_fault_has_its_status_and_leaves_no_graph_behind(
    fault: str, ask: Callable[[Worker], object], kind: type[SubmissionError], words: str, worker: Worker
) -> None:
    worker.encode_texts([fault])
    with pytest.raises(SubmissionError, match=words) as caught:
        ask(worker)
    assert type(caught.value) is kind
    assert worker.graph is None
    worker.encode_texts(["honest"])
    assert np.isfinite(pull(worker)).all()


def test_a_crash_on_the_way_back_is_a_crash() -> None:
    with start("soft_colours/faulty.py:load") as worker:
        worker.encode_texts(["crashes_backward"])
        with pytest.raises(SubmissionCrash, match=r"ended during 'pull_back' .*SIGSEGV"):
            pull(worker)


def test_gradients_that_are_nan_or_nothing_are_handed_on(worker: Worker) -> None:
    before = worker.detached_gradients
    worker.encode_texts(["nan_gradient"])
    assert np.isnan(pull(worker)).all()
    assert worker.detached_gradients == before
    worker.encode_texts(["detached"])
    assert not pull(worker).any()
    assert worker.detached_gradients == before + 1


def test_an_optimiser_at_inference_time_is_counted(worker: Worker) -> None:
    before = worker.autograd_calls
    pull(worker)
    worker.encode_images(IMAGES)
    assert worker.autograd_calls == before
    worker.encode_texts(["purifies"])
    worker.encode_images(IMAGES)
    assert worker.autograd_calls == before + 3
    pull(worker)
    assert worker.autograd_calls == before + 6


def test_modes_that_a_submission_leaves_on_do_not_matter(worker: Worker) -> None:
    with start("soft_colours/faulty.py:leaves_modes_on") as careless:
        np.testing.assert_array_equal(embed(careless), embed(worker))
        np.testing.assert_array_equal(pull(careless), pull(worker))


def test_a_second_stage_scores_tokens_and_pixels_alike(worker: Worker) -> None:
    tokens = worker.image_tokens(IMAGES)
    assert tokens.dtype == np.float16
    assert tokens.shape == (3, 16, 10)
    scores = worker.score_pairs(tokens, TEXTS)
    np.testing.assert_array_equal(worker.score_pairs(tokens[::-1], TEXTS[::-1]), scores[::-1])
    np.testing.assert_allclose(worker.score_pixels(PIXELS, TEXTS, grad=True), scores, atol=1e-3)
    gradient = worker.pull_back(np.array([1, 0, 0], np.float32))
    assert gradient[0].any()
    assert not gradient[1:].any()
