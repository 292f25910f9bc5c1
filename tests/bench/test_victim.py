"""Torch functions over a worker: gradients as in one process whatever the batches, errors as they are, texts once."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.check import Report, check_gradient
from bench.errors import ProtocolError, SubmissionError, UsageError
from bench.submission import find_submission
from bench.victim import Victim
from bench.worker.host import Worker, WorkerSettings

TOYS = Path(__file__).parents[1] / "toys"
IMAGES = [np.random.Generator(np.random.Philox(i)).integers(0, 256, (32, 32, 3), dtype=np.uint8) for i in range(5)]
PIXELS = torch.from_numpy(np.stack(IMAGES)).permute(0, 3, 1, 2).contiguous().float() / 255
TEXTS = ["a red ball", "a blue cube", "green and white", "an orange", "a brown dog"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Worker]:
    with Worker(find_submission(f"{TOYS / 'soft_colours' / 'faulty.py'}:load"), WorkerSettings()) as worker:
        yield worker


@pytest.fixture
def worker(shared: Worker) -> Worker:
    """Soft colours in two stages, honest."""
    shared.encode_texts(["honest"])
    return shared


@pytest.fixture(scope="module")
def encoder() -> Iterator[Any]:
    """The same in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("model", "two_stage"):
            spec = importlib.util.spec_from_file_location(name, TOYS / "soft_colours" / f"{name}.py")
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, name, module)
            spec.loader.exec_module(module)
        yield module.TwoStage()


def loss(vectors: torch.Tensor) -> torch.Tensor:
    return (vectors * torch.arange(vectors.numel()).reshape(vectors.shape)).square().sum()


def gradient(of: Any, pixels: torch.Tensor = PIXELS) -> torch.Tensor:
    start = pixels.clone().requires_grad_()
    return torch.autograd.grad(loss(of(start)), start)[0]


@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_values_and_gradients_are_those_of_one_process(batch_size: int, worker: Worker, encoder: Any) -> None:
    victim = Victim(worker, batch_size)
    torch.testing.assert_close(victim.embed_pixels(PIXELS), encoder.embed_pixels(PIXELS))
    torch.testing.assert_close(gradient(victim.embed_pixels), gradient(encoder.embed_pixels))
    torch.testing.assert_close(victim.score_pixels(PIXELS, TEXTS), encoder.score_pixels(PIXELS, TEXTS))
    torch.testing.assert_close(
        gradient(lambda pixels: victim.score_pixels(pixels, TEXTS)),
        gradient(lambda pixels: encoder.score_pixels(pixels, TEXTS)),
    )


def test_two_calls_may_share_a_backward_pass(worker: Worker, encoder: Any) -> None:
    def both(embed: Any) -> Any:
        return lambda pixels: embed(pixels) + embed(1 - pixels) * embed(pixels.flip(0))

    torch.testing.assert_close(gradient(both(Victim(worker, 8).embed_pixels)), gradient(both(encoder.embed_pixels)))


def test_a_graph_serves_once_unless_it_is_retained(worker: Worker) -> None:
    pixels = PIXELS.clone().requires_grad_()
    value = loss(Victim(worker, 8).embed_pixels(pixels))
    first, second = (torch.autograd.grad(value, pixels, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    value.backward()
    with pytest.raises(RuntimeError, match="a second time"):
        value.backward()


def test_there_is_no_gradient_of_the_gradient(worker: Worker) -> None:
    pixels = PIXELS.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(Victim(worker, 8).embed_pixels(pixels)), pixels, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.sum().backward()


def test_the_worker_keeps_a_graph_only_where_a_gradient_is_wanted(worker: Worker) -> None:
    victim = Victim(worker, 8)
    gradient(victim.embed_pixels)
    with torch.no_grad():
        victim.embed_pixels(PIXELS.clone().requires_grad_())
    assert not victim.embed_pixels(PIXELS).requires_grad
    assert worker.graph is None


def test_pixels_and_tokens_are_the_same_in_batches(worker: Worker) -> None:
    few, many = Victim(worker, 2), Victim(worker, 8)
    torch.testing.assert_close(few.pixels(IMAGES), PIXELS, rtol=0, atol=0)
    torch.testing.assert_close(few.encode_images(IMAGES), many.embed_pixels(PIXELS))
    tokens = few.image_tokens(IMAGES)
    np.testing.assert_array_equal(tokens, many.image_tokens(IMAGES))
    torch.testing.assert_close(few.score_pairs(tokens, TEXTS), many.score_pixels(PIXELS, TEXTS), rtol=0, atol=1e-3)
    worker.encode_texts(["sized_pixels"])
    with pytest.raises(ProtocolError, match="expected one for all images"):
        few.pixels([IMAGES[0], IMAGES[1], IMAGES[2][:16]])


def test_a_submission_without_gradient_sees_whole_levels() -> None:
    with Worker(find_submission(str(TOYS / "colours")), WorkerSettings()) as worker:
        victim = Victim(worker, 2)
        assert not victim.differentiable
        found = victim.embed_pixels((PIXELS + 0.3 / 255).clamp(0, 1).requires_grad_())
        assert not found.requires_grad
        np.testing.assert_array_equal(found.numpy(), worker.encode_images(IMAGES))
        with pytest.raises(UsageError, match="not Differentiable"):
            victim.pixels(IMAGES)


def test_texts_are_encoded_once_and_come_in_order(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    encode = worker.encode_texts
    monkeypatch.setattr(worker, "encode_texts", lambda texts: asked.extend(texts) or encode(texts))
    monkeypatch.setattr("bench.victim.RECENT_TEXTS", 4)
    victim = Victim(worker, 2)
    texts = sorted(TEXTS, key=lambda text: (len(text), text))  # the order in which they are asked for
    expected = torch.from_numpy(encode(texts))
    torch.testing.assert_close(victim.encode_texts(TEXTS), torch.from_numpy(encode(TEXTS)))
    torch.testing.assert_close(victim.encode_texts([*texts[:0:-1], texts[1]]), expected[[4, 3, 2, 1, 1]])
    assert asked == texts
    victim.encode_texts(texts[:1])
    assert asked == [*texts, texts[0]]


def test_errors_of_the_worker_stay_what_they_are_on_the_way_back(worker: Worker) -> None:
    worker.encode_texts(["raises_backward"])
    with pytest.raises(SubmissionError, match="no way there or back"):
        gradient(Victim(worker, 8).embed_pixels)


@pytest.mark.parametrize(
    ("fault", "step", "words"),
    [
        ("honest", "", ""),
        ("normalised_pixels", "pixels", "expected them in [0, 1]"),
        ("sized_pixels", "pixels", "expected one shape"),
        ("cropped_pixels", "pixels", "attacked images are stored at that size"),
        ("embeds_others", "gradient", "is not encode_images(images)"),
        ("nan_gradient", "gradient", "is not finite (16 of 16 images)"),
        ("zero_gradient", "gradient", "is zero (16 of 16 images)"),
        ("detached", "gradient", "is it detached?"),
    ],
)
def test_rove_check_looks_at_pixels_and_gradient(fault: str, step: str, words: str, worker: Worker) -> None:
    worker.encode_texts([fault])
    worker.detached_gradients = 0
    report = Report()
    check_gradient(worker, "float32", report)
    assert [found.name for found in report.steps if not found.passed] == [step] * bool(step)
    assert words in report.steps[-1].detail
