"""What attacks on two stages are after: against formulae written out, and on a toy of two stages end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from bench.retrieval.exact import Positives
from bench.retrieval.rerank import rerank_positives
from shifts.attacks import goal as single
from shifts.attacks import rerank
from shifts.attacks.goal import Goal, Logits
from shifts.attacks.rerank import PairGoal, PoolGoal, QueryTextGoal


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: threads that wait for each other would take most of the time."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


few = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def cross_entropy(logits: Tensor) -> Tensor:
    return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="none")


def lost_share(scores: np.ndarray, own: np.ndarray) -> float:
    """-log of the share that the positives have of exp(scores), in float64."""
    shares = np.exp(scores.astype(np.float64) - scores.max())
    return float(-np.log(shares[own].sum() / shares.sum()))


def random_case(seed: int, n: int = 5, k: int = 7) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    own = rng.random((n, k)) < 0.3
    own[np.arange(n), rng.integers(0, k, n)] = True
    return torch.from_numpy(rng.normal(-3.0, 4.0, (n, k))), torch.from_numpy(own)


def fixed(table: Tensor) -> rerank.PixelScores:
    return lambda pixels, rows, candidates: table[rows, candidates]


def whole(n: int, k: int) -> Tensor:
    return torch.arange(k).expand(n, k)


@few
@given(seed=st.integers(0, 10**6), offset=st.floats(-1e5, 1e5))
def test_a_query_loses_minus_log_of_its_positives_share_whatever_the_offset(seed: int, offset: float) -> None:
    scores, own = random_case(seed)
    goal = PairGoal(fixed(scores + offset), whole(5, 7), own, scale=2.0)
    losses = cross_entropy(goal.logits(torch.zeros(5, 3, 2, 2)))
    expected = [lost_share(scores[row].numpy() / 2.0, own[row].numpy()) for row in range(5)]
    assert losses.numpy() == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("in_gallery", [False, True])
def test_pairs_scored_by_cosine_are_the_goal_of_the_first_stage(in_gallery: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, texts = (functional.normalize(torch.randn(n, 6, generator=generator)) for n in (4, 9))
    _, own = random_case(1, 4, 9)
    own[0, own.any(dim=0).logical_not()] = True
    levels = single.rival_levels(texts @ vectors.T, own.T) if in_gallery else None
    pairs = rerank.rival_levels(texts @ vectors.T, own.T, single.TEMPERATURE) if in_gallery else None

    def score(pixels: Tensor, rows: Tensor, candidates: Tensor) -> Tensor:
        return (pixels.flatten(1)[rows] * texts[candidates]).sum(dim=2)

    expected = Goal(texts, own, levels).losses(vectors)
    order = torch.stack([torch.randperm(9, generator=generator) for _ in range(4)])
    goal = PairGoal(score, order, own.gather(1, order), pairs, single.TEMPERATURE)
    assert torch.allclose(cross_entropy(goal.logits(vectors.view(4, 6, 1, 1))), expected, rtol=1e-4, atol=1e-4)
    assert expected.max() > 0.1


def test_an_image_with_nothing_but_positives_loses_nothing_and_gives_finite_gradients() -> None:
    scores = torch.randn(2, 4, requires_grad=True)
    losses = cross_entropy(PairGoal(fixed(scores), whole(2, 4), torch.ones(2, 4, dtype=torch.bool)).logits(scores))
    losses.sum().backward()
    assert losses.abs().max() == 0
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("k", [1, 3, 6])
def test_a_pool_is_lost_exactly_when_the_best_positive_is_behind_k_rivals(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    texts = functional.normalize(torch.randn(12, 4, generator=generator))
    vectors = torch.randn(200, 4, generator=generator)
    own = torch.eye(12, dtype=torch.bool)[torch.arange(200) % 12]
    goal = PoolGoal(texts, own, k)
    cosines = functional.normalize(vectors) @ texts.T
    ranks = 1 + (cosines > cosines[own][:, None]).sum(dim=1)
    losses = goal.losses(vectors)
    assert 10 < int((ranks > k).sum()) < 190
    assert torch.equal(losses > np.log(2.0), ranks > k)
    assert torch.allclose(cross_entropy(goal.logits(vectors)), losses, atol=1e-6)
    rows = torch.tensor([5, 5, 0])
    assert torch.allclose(goal.take(rows).losses(vectors[rows]), losses[rows], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("k", [3, 9])
def test_a_pool_that_holds_the_whole_gallery_cannot_be_lost(k: int) -> None:
    texts = functional.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    losses = PoolGoal(texts, torch.eye(3, dtype=torch.bool), k).losses(-texts * 0.99 + 0.05)
    assert (losses < np.log(2.0)).all()


def test_candidates_are_all_positives_and_the_strongest_rivals() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.8, -0.5, 0.3], [0.2, 0.4, -0.1, 0.0, 0.1]])
    own = torch.tensor([[False, True, False, True, False], [False, False, True, False, False]])
    candidates, are_own = rerank.choose_candidates(scores, own, 3)
    assert [set(row.tolist()) for row in candidates] == [{1, 3, 0}, {2, 1, 0}]
    assert torch.equal(are_own, own.gather(1, candidates))
    assert rerank.choose_candidates(scores, own, 50)[0].shape == (2, 5)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_the_unit_of_the_scores_changes_no_loss(unit: float) -> None:
    scores, own = random_case(2)
    losses = [
        cross_entropy(PairGoal(fixed(table), whole(5, 7), own, scale=rerank.choose_scale(table)).logits(scores))
        for table in (scores, scores * unit)
    ]
    assert torch.allclose(losses[0], losses[1])
    spread = (scores / rerank.choose_scale(scores)).std(dim=1, correction=0).median()
    assert float(spread) == pytest.approx(rerank.SPREAD)
    assert rerank.choose_scale(torch.ones(3, 4)) == 1.0


@few
@given(seed=st.integers(0, 10**6))
def test_either_stage_has_the_sum_of_both_losses(seed: int) -> None:
    first, second = random_case(seed)[0], random_case(seed + 1, k=3)[0]
    both = rerank.either_stage(lambda pixels: first, lambda pixels: second)(first)
    assert both.shape == (5, 2)
    assert torch.allclose(cross_entropy(both), cross_entropy(first) + cross_entropy(second), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("odds", [(-1e4, -1e4), (-60.0, 3.0), (1e4, -1e4), (1e4, 1e4), (-40.0, -41.0), (1e-9, -1e-9)])
def test_either_stage_stays_exact_and_finite_at_any_size_of_loss(odds: tuple[float, float], dtype: torch.dtype) -> None:
    stages = torch.tensor([odds], dtype=dtype, requires_grad=True)
    pair = [functional.pad(stages[:, i : i + 1], (1, 0)) for i in (0, 1)]
    logits = rerank.either_stage(lambda pixels: pair[0], lambda pixels: pair[1])(stages)
    expected = sum(np.logaddexp(0.0, part) for part in odds)
    found = functional.softplus(logits[:, 1] - logits[:, 0], threshold=100)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5, abs=0)
    found.sum().backward()
    assert stages.grad is not None
    assert stages.grad[0].numpy() == pytest.approx(1 / (1 + np.exp(-np.clip(odds, -700, 700))), rel=1e-4, abs=1e-300)


@pytest.mark.parametrize("size", [0.1, 3.0, 30.0])
def test_gradients_of_either_stage_equal_finite_differences(size: float) -> None:
    rng = np.random.default_rng(0)
    first, second = (torch.from_numpy(rng.normal(0.0, size, (3, n))) for n in (4, 3))
    _, own = random_case(3, 3, 3)

    def loss(one: Tensor, two: Tensor) -> Tensor:
        pair = PairGoal(fixed(two), whole(3, 3), own, scale=0.7)
        return cross_entropy(rerank.either_stage(lambda pixels: one, pair.logits)(torch.zeros(3, 1)))

    assert torch.autograd.gradcheck(loss, (first.requires_grad_(), second.requires_grad_()))


class Letters:
    """A second stage that counts how often the letter of an image's token stands in a text."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def score_pairs(self, tokens: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        self.sizes.append(len(texts))
        pairs = zip(tokens.tolist(), texts, strict=True)
        return np.array([text.count(chr(token)) for token, text in pairs], dtype=np.float32)

    def score_pixels(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        return pixels.flatten(1).sum(dim=1) * torch.tensor([float(len(text)) for text in texts])


def test_a_text_loses_minus_log_of_the_share_of_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerank, "PAIRS_AT_ONCE", 5)
    model, tokens = Letters(), np.array([ord(letter) for letter in "abcd"])
    candidates, own = np.array([[0, 1, 2], [3, 2, 0]]), np.array([[True, False, False], [True, True, False]])
    goal = QueryTextGoal(rerank.text_scores(model.score_pairs, tokens), candidates, own, scale=0.5)
    texts, rows = ["aab", "", "dcaa", "b", "aab"], np.array([0, 0, 1, 1, 1])
    losses = goal.losses(texts, rows)
    for text, row, loss in zip(texts, rows, losses, strict=True):
        counts = np.array([text.count("abcd"[image]) for image in candidates[row]], dtype=np.float64)
        assert loss == pytest.approx(lost_share(counts / 0.5, own[row]), rel=1e-5)
    assert losses.dtype == np.float32
    assert model.sizes == [5, 5, 5]
    both = rerank.either_stage_losses(lambda texts, rows: np.float32(rows + 10.0), goal.losses)
    assert both(texts, rows) == pytest.approx(losses + rows + 10.0)
    assert goal.losses([], np.array([], dtype=np.int64)).shape == (0,)


def test_pixels_are_scored_beside_the_texts_that_are_named() -> None:
    score = rerank.pixel_scores(Letters().score_pixels, ["", "a", "bb", "ccc"])
    pixels = torch.tensor([1.0, 10.0]).view(2, 1, 1, 1)
    found = score(pixels, torch.tensor([[0, 0, 0], [1, 1, 1]]), torch.tensor([[1, 3, 0], [2, 2, 3]]))
    assert found.tolist() == [[1, 3, 0], [20, 20, 30]]


class TwoStages:
    """Random convolutions that find 40 texts, one an image: a cosine first, then a joint scorer of its own features."""

    def __init__(self, seed: int, n: int = 40, k: int = 5) -> None:
        self.n, self.k, self.scale = n, k, 1.0
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randint(0, 256, (n, 3, 16, 16), generator=generator) / 255
        self.filters = [torch.randn(24, 3, 4, 4, generator=generator) for _ in range(2)]
        self.mixes = [torch.randn(24 * 9, 16, generator=generator) / 24**0.5 for _ in range(2)]
        clean = [self._features(self.images, stage) for stage in (0, 1)]
        self.centres = [part.mean(dim=0) for part in clean]
        vectors = [part - centre for part, centre in zip(clean, self.centres, strict=True)]
        self.texts, self.keys = (
            functional.normalize(part + noise * part.std() * torch.randn(part.shape, generator=generator))
            for part, noise in zip(vectors, (1.0, 0.5), strict=True)
        )
        self.scale = rerank.choose_scale(self.score(self.images, *self._all_pairs()))

    def _features(self, pixels: Tensor, stage: int) -> Tensor:
        found = functional.conv2d(pixels - 0.5, self.filters[stage], stride=4).relu()
        return functional.avg_pool2d(found, 2, stride=1).flatten(1) @ self.mixes[stage]

    def _all_pairs(self) -> tuple[Tensor, Tensor]:
        rows, columns = torch.meshgrid(torch.arange(self.n), torch.arange(self.n), indexing="ij")
        return rows, columns

    def embed(self, pixels: Tensor) -> Tensor:
        return functional.normalize(self._features(pixels, 0) - self.centres[0])

    def score(self, pixels: Tensor, rows: Tensor, candidates: Tensor) -> Tensor:
        tokens = functional.normalize(self._features(pixels, 1) - self.centres[1])
        return torch.tanh(8 * tokens[rows] * self.keys[candidates]).sum(dim=2)

    def first_logits(self, pixels: Tensor) -> Tensor:
        return PoolGoal(self.texts, torch.eye(self.n, dtype=torch.bool), self.k).logits(self.embed(pixels))

    def second_logits(self) -> Logits:
        clean = self.embed(self.images) @ self.texts.T
        candidates, own = rerank.choose_candidates(clean, torch.eye(self.n, dtype=torch.bool), self.k)
        return PairGoal(self.score, candidates, own, scale=self.scale).logits

    def r1(self, pixels: Tensor, k: int | None = None) -> float:
        """Final R@1 with image queries; with k = n that of the second stage alone."""
        table = self.score(pixels, *self._all_pairs()).numpy()
        one_each = Positives(np.arange(self.n), np.arange(self.n + 1), np.arange(self.n))
        vectors, texts = self.embed(pixels).numpy(), self.texts.numpy()
        ranking = rerank_positives(vectors, texts, one_each, k or self.k, lambda asked, items: table[asked, items])
        return float((ranking.pessimistic == 1).mean())


def ascend(logits: Callable[[Tensor], Tensor], images: Tensor, eps: float, steps: int = 10) -> Tensor:
    attacked = images.clone()
    for _ in range(steps):
        attacked.requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(logits(attacked)).sum(), attacked)
        attacked = (attacked.detach() + eps / 4 * slope.sign()).clamp(images - eps, images + eps).clamp(0, 1)
    return attacked


def test_each_stage_falls_to_its_own_attack_and_the_final_ranking_most_to_that_on_both() -> None:
    final, alone = [], []
    for seed in range(4):
        toy = TwoStages(seed)
        second = toy.second_logits()
        goals = (toy.first_logits, second, rerank.either_stage(toy.first_logits, second))
        results = [toy.images, *(ascend(logits, toy.images, 6 / 255) for logits in goals)]
        final.append([toy.r1(pixels) for pixels in results])
        alone.append([toy.r1(pixels, toy.n) for pixels in results])
    (clean, on_first, on_second, on_both), alone_mean = np.mean(final, axis=0), np.mean(alone, axis=0)
    assert clean > 0.8
    assert alone_mean[1] > alone_mean[0] - 0.05
    assert alone_mean[2] < alone_mean[0] - 0.4
    assert max(on_first, on_second) < clean - 0.4
    assert on_both < min(on_first, on_second)
